"""The result of an evaluation: its fields, how they follow from the scores, and how it is saved. Layer 4."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from residua import statistics
from residua.errors import RequestError
from residua.images import printable
from residua.runs import write_atomically
from residua.scoring import Scores

__all__ = ["Evaluation", "Member", "Wrong", "save", "summarize", "top_errors"]

NUM_WORST = 24


@dataclass(frozen=True)
class Wrong:
    """A sample that was taken for another class: its name, its place in the split, the label and the prediction, each with
    the probability (0 to 1) that the network gave it."""

    name: str
    place: int
    label: str
    predicted: str
    label_probability: float
    predicted_probability: float


@dataclass(frozen=True)
class Member:
    """One run of an evaluation: errors in per cent (`top5_error` None for five classes or fewer)."""

    run: str
    top1_error: float
    top5_error: float | None
    image_size: int
    scales: tuple[int, ...] | None
    precision: str


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    `top1_error`, `top5_error`, their 95 % Wilson intervals and `balanced_accuracy` are in per cent, and so are recall,
    precision and f1 in `per_class`; top-5 is None for five classes or fewer. `nll` is in nats, `brier` in 0 to 2,
    probabilities and everything in `calibration` in 0 to 1. In `confusion_matrix` a row is a label and a column a
    prediction. `unreadable` files, (name, reason), count nowhere. `worst`: the wrongly classified samples, those whose label
    got the least probability first. `weights` is "final" or "last"; `seconds` is the time from the first file read to the
    last score; `saved` the file written, if any.
    """

    runs: tuple[str, ...]
    data: str
    split: str
    protocol: str
    scales: tuple[int, ...] | None
    weights: str
    num_samples: int
    num_unreadable: int
    unreadable: tuple[tuple[str, str], ...]
    top1_error: float
    top1_interval: tuple[float, float]
    top5_error: float | None
    top5_interval: tuple[float, float] | None
    balanced_accuracy: float
    nll: float
    brier: float
    calibration: dict[str, Any]
    classes: tuple[str, ...]
    missing_classes: tuple[str, ...]
    per_class: tuple[dict[str, Any], ...]
    confusion_matrix: tuple[tuple[int, ...], ...]
    worst: tuple[Wrong, ...]
    members: tuple[Member, ...]
    device: str
    seconds: float
    images_per_second: float
    note: str
    saved: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: the fields by their names, an entry of `unreadable` as {"name", "reason"}."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        values["unreadable"] = [{"name": name, "reason": reason} for name, reason in self.unreadable]
        return values


def summarize(found: Scores, classes: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """The fields of an `Evaluation` that follow from the scores alone; `names` are those of the split's samples.

    Raises `RequestError` if no sample could be read.
    """
    count, num_classes = len(found.labels), len(classes)
    if not count:
        name, reason = found.unreadable[0]
        raise RequestError(f"None of the {len(found.unreadable)} images can be read; the first, {name}: {reason}")
    predicted = found.probabilities.argmax(1)
    table = statistics.class_scores(found.labels, predicted, num_classes)
    bins = statistics.reliability(found.probabilities, found.labels)
    top1, top5 = _num_wrong(found)
    return {
        "num_samples": count,
        "num_unreadable": len(found.unreadable),
        "unreadable": tuple((printable(name), reason) for name, reason in found.unreadable),
        "top1_error": 100 * top1 / count,
        "top1_interval": _interval(top1, count),
        "top5_error": None if top5 is None else 100 * top5 / count,
        "top5_interval": None if top5 is None else _interval(top5, count),
        "balanced_accuracy": 100 * statistics.balanced_accuracy(table),
        "nll": statistics.negative_log_likelihood(found.probabilities, found.labels),
        "brier": statistics.brier_score(found.probabilities, found.labels),
        "calibration": {"ece": statistics.expected_calibration_error(bins), "bins": [asdict(item) for item in bins]},
        "classes": tuple(classes),
        "missing_classes": tuple(name for name, score in zip(classes, table) if not score.count),
        "per_class": tuple(_in_per_cent(name, score) for name, score in zip(classes, table)),
        "confusion_matrix": tuple(map(tuple, statistics.confusion_matrix(found.labels, predicted, num_classes))),
        "worst": _worst(found, predicted, classes, names),
    }


def top_errors(found: Scores) -> tuple[float, float | None]:
    """Top-1 and top-5 error in per cent; top-5 is None for five classes or fewer."""
    count = len(found.labels)
    top1, top5 = _num_wrong(found)
    return 100 * top1 / count, None if top5 is None else 100 * top5 / count


def _num_wrong(found: Scores) -> tuple[int, int | None]:
    top1 = int((found.probabilities.argmax(1) != found.labels).sum())
    if found.probabilities.shape[1] <= 5:
        return top1, None
    top = found.probabilities.topk(5, dim=1).indices
    return top1, len(top) - int((top == found.labels[:, None]).sum())


def _interval(wrong: int, count: int) -> tuple[float, float]:
    low, high = statistics.wilson_interval(wrong, count)
    return 100 * low, 100 * high


def _in_per_cent(name: str, score: statistics.ClassScore) -> dict[str, Any]:
    shares = {"recall": score.recall, "precision": score.precision, "f1": score.f1}
    return {"class": name, "count": score.count, **{k: None if v is None else 100 * v for k, v in shares.items()}}


def _worst(found: Scores, predicted: Tensor, classes: Sequence[str], names: Sequence[str]) -> tuple[Wrong, ...]:
    own = found.probabilities.gather(1, found.labels[:, None]).squeeze(1)
    wrong = (predicted != found.labels).nonzero().flatten()
    wrong = wrong[own[wrong].argsort(stable=True)[:NUM_WORST]]
    return tuple(
        Wrong(
            printable(names[int(found.places[row])]),
            int(found.places[row]),
            classes[int(found.labels[row])],
            classes[int(predicted[row])],
            float(own[row]),
            float(found.probabilities[row, predicted[row]]),
        )
        for row in wrong.tolist()
    )


def save(result: Evaluation, folder: Path) -> Evaluation:
    """Writes `<folder>/<source>-<split>-<protocol>.json` (and "-last" for the last weights); says where in `saved`.

    Where the folder cannot be written the result is kept and `note` says why.
    """
    path = folder / f"{_file_name(result)}.json"
    kept = replace(result, saved=str(path))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(kept.to_dict(), ensure_ascii=False))
    except OSError as error:
        return replace(result, note=f"{result.note} Not saved: {folder} cannot be written ({error.strerror}).".strip())
    return kept


def _file_name(result: Evaluation) -> str:
    """A name that every file system takes; sources that would get the same one are told apart by a hash."""
    source = re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(result.data).name).strip("._")[:60]
    if source != result.data:
        source += "-" + hashlib.sha256(result.data.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    weights = "" if result.weights == "final" else f"-{result.weights}"
    return f"{source}-{result.split}-{result.protocol}{weights}".lstrip("-")
