"""How good a classifier's scores are, in numbers: errors, intervals, tables, calibration. Layer 1.

Shapes: `probabilities` float [N, K], rows that sum to 1; `labels` and `predicted` int64 [N] in 0 .. K - 1; N at least 1; all on
the CPU. Shares are fractions in [0, 1]; a share of nothing (the recall of a class without samples) is None, never 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn import metrics
from torch import Tensor

__all__ = [
    "Bin", "ClassScore", "balanced_accuracy", "brier_score", "class_scores", "confusion_matrix", "expected_calibration_error",
    "negative_log_likelihood", "reliability", "wilson_interval",
]  # fmt: skip

_TINY = torch.finfo(torch.float32).tiny


def wilson_interval(successes: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """The score interval of a binomial share, `successes` of `count`, at confidence `level` (Wilson 1927).

    Within [0, 1] and of sensible width even where nothing, or everything, succeeds.
    """
    interval = binomtest(successes, count).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def confusion_matrix(labels: Tensor, predicted: Tensor, num_classes: int) -> list[list[int]]:
    """Counts [K][K]: row the label, column the prediction."""
    counts = metrics.confusion_matrix(labels.numpy(), predicted.numpy(), labels=np.arange(num_classes))
    return counts.tolist()


@dataclass(frozen=True)
class ClassScore:
    """One class: how many samples have its label (`count`), the share of them that is found (`recall`), the share of the
    predictions of it that is right (`precision`), and their harmonic mean (`f1`)."""

    count: int
    recall: float | None
    precision: float | None
    f1: float | None


def class_scores(labels: Tensor, predicted: Tensor, num_classes: int) -> list[ClassScore]:
    """The table of all K classes."""
    precision, recall, f1, count = metrics.precision_recall_fscore_support(
        labels.numpy(), predicted.numpy(), labels=np.arange(num_classes), zero_division=np.nan
    )
    return [ClassScore(int(n), _share(r), _share(p), _share(f)) for n, r, p, f in zip(count, recall, precision, f1)]


def _share(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def balanced_accuracy(scores: list[ClassScore]) -> float:
    """The mean recall of the classes that have samples (Brodersen et al. 2010)."""
    recalls = [score.recall for score in scores if score.recall is not None]
    return math.fsum(recalls) / len(recalls)


@dataclass(frozen=True)
class Bin:
    """The samples whose confidence, the probability of the prediction, lies in (`low`, `high`]: how many, their mean
    confidence and the share of them that is right."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


def reliability(probabilities: Tensor, labels: Tensor, num_bins: int = 15) -> list[Bin]:
    """The reliability diagram: `num_bins` bins of equal width over the confidence (Guo et al. 2017, section 2)."""
    top = probabilities.max(1)
    confidence: NDArray[np.float64] = top.values.double().numpy()
    right = (top.indices == labels).double().numpy()
    edges = np.linspace(0, 1, num_bins + 1)
    place = np.digitize(confidence, edges[1:-1], right=True)
    bins = []
    for index in range(num_bins):
        inside = place == index
        means = (float(confidence[inside].mean()), float(right[inside].mean())) if inside.any() else (None, None)
        bins.append(Bin(float(edges[index]), float(edges[index + 1]), int(inside.sum()), *means))
    return bins


def expected_calibration_error(bins: list[Bin]) -> float:
    """The mean distance between confidence and accuracy over the bins, weighed by their counts (Guo et al. 2017, eq. 3)."""
    total = sum(item.count for item in bins)
    return math.fsum(
        item.count / total * abs(item.confidence - item.accuracy)
        for item in bins
        if item.confidence is not None and item.accuracy is not None
    )


def negative_log_likelihood(probabilities: Tensor, labels: Tensor) -> float:
    """The mean of -ln p(label), in nats; probabilities below the smallest normal float32 count as that (87.3 nats)."""
    own = probabilities.gather(1, labels[:, None]).double()
    return float(-own.clamp_min(_TINY).log().mean())


def brier_score(probabilities: Tensor, labels: Tensor) -> float:
    """The mean of sum_k (p_k - [k = label])^2, from 0 to 2 (Brier 1950)."""
    own = probabilities.gather(1, labels[:, None]).double().squeeze(1)
    squares = torch.linalg.vector_norm(probabilities, dim=1, dtype=torch.float64).square()
    return float((squares - 2 * own + 1).mean())
