"""Two samples of runs compared: the difference of their means with its confidence interval, and Holm's correction. Layer 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

from scipy import stats

__all__ = ["CONFIDENCE", "Comparison", "binomial_error", "compared", "holm"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Comparison:
    """How much larger the right sample is than the left.

    `estimate` is the difference of the means, `low` and `high` its one-sided confidence bounds, `p_positive` the p-value against
    "not above 0", `p_below` that against "at least `least`". `single` says that a side has one value only: the bounds then hold
    the sampling error of the test set alone, and the p-values are 1.
    """

    left: tuple[float, ...]
    right: tuple[float, ...]
    estimate: float
    low: float
    high: float
    p_positive: float
    p_below: float
    single: bool

    def numbers(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "left": list(self.left), "right": list(self.right), "estimate": self.estimate, "low": self.low, "high": self.high,
            "p": None if self.single else self.p_positive,
        }  # fmt: skip

    def words(self, left: str, right: str) -> str:
        """The difference in a sentence."""
        seeds = f"{len(self.left)} and {len(self.right)} seeds" if not self.single else "one seed on a side"
        means = f"{left} {fmean(self.left):.4g}, {right} {fmean(self.right):.4g}"
        bounds = f"95 % one-sided bounds {self.low:+.3g} and {self.high:+.3g}"
        if self.single:
            bounds = f"{bounds} by the choice of test images alone" if self.low < self.high else ""
        return f"{means}: the difference is {self.estimate:+.3g} ({', '.join(filter(None, (bounds, seeds)))})."


def compared(left: Sequence[float], right: Sequence[float], least: float = 0.0, num_test: int = 0) -> Comparison:
    """Compares two samples by Welch's t-test; with one value on a side by the binomial error of `num_test` images (0: none) on
    which both errors, in per cent, stand."""
    estimate = fmean(right) - fmean(left)
    if min(len(left), len(right)) < 2:
        margin = math.hypot(binomial_error(fmean(left), num_test), binomial_error(fmean(right), num_test))
        return Comparison(tuple(left), tuple(right), estimate, estimate - margin, estimate + margin, 1.0, 1.0, single=True)
    parts = [variance(values) / len(values) for values in (left, right)]
    error = math.sqrt(sum(parts))
    if not error:  # values that are equal to the last digit, as those of networks that stay at chance
        positive, below = float(estimate <= 0), float(estimate >= least)
        return Comparison(tuple(left), tuple(right), estimate, estimate, estimate, positive, below, single=False)
    freedom = sum(parts) ** 2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, (left, right)))
    reach = float(stats.t.ppf(CONFIDENCE, freedom)) * error
    positive = float(stats.t.sf(estimate / error, freedom))
    below = float(stats.t.cdf((estimate - least) / error, freedom))
    return Comparison(tuple(left), tuple(right), estimate, estimate - reach, estimate + reach, positive, below, single=False)


def binomial_error(percent: float, count: int) -> float:
    """The one-sided 95 % margin of an error of `percent` measured on `count` images, in points; 0 for no images."""
    if not count:
        return 0.0
    share = min(1.0, max(0.0, percent / 100))
    return 100 * float(stats.norm.ppf(CONFIDENCE)) * math.sqrt(share * (1 - share) / count)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
