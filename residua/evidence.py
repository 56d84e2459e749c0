"""What runs have shown, as a rule of a claim reads it: `Record` of one run, `Evidence` of several, `Outcome` of a rule. Layer 3.

Errors are per cent, losses mean cross-entropies in nats, times seconds. Everything here is plain JSON values, so that a claim can
be decided again from what is kept of its runs, without weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["BUDGETS", "VERDICTS", "Evidence", "Outcome", "Record", "Verdict", "not_attempted"]

BUDGETS = ("smoke", "small", "full")
Verdict = Literal["shown", "refuted", "under-powered", "not attempted"]
VERDICTS: tuple[Verdict, ...] = ("shown", "refuted", "under-powered", "not attempted")


@dataclass(frozen=True)
class Outcome:
    """What a rule decides: the verdict, a sentence that says why, and the numbers that it stands on (plain JSON values).
    `p_against` is the p-value by which a test over seeds refutes; None where something else decides."""

    verdict: Verdict
    why: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    p_against: float | None = None


def not_attempted(why: str) -> Outcome:
    """The outcome of a claim that nothing decides yet."""
    return Outcome("not attempted", why)


@dataclass(frozen=True)
class Record:
    """One run of an arm: `values` by measure, `curves` of (update, value) by measure, and the result of each measurement.

    Measures of a training: "test_error", "test_loss", "top5_error" (of the final weights), "best_test_error" (the lowest that was
    seen), "train_error", "train_loss" (means over the last epoch, of the augmented images and the weights as they were),
    "seconds_per_image", "training_seconds", "parameters", "multiply_adds"; curves "train_error", "train_loss", "test_error",
    "test_loss". `broken_off` says why a training ended early: its loss was not finite; its errors then are those of
    chance, its losses those of equal probabilities. `plan` is the name of the plan it was computed by; "" for what was not
    trained.
    """

    arm: str
    seed: int
    values: Mapping[str, float]
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    measurements: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    broken_off: str = ""
    plan: str = ""


@dataclass(frozen=True)
class Evidence:
    """What a rule gets: the records of the arms that a claim names, the budget they were made at, and the number of images that a
    test error stands on (0: not known)."""

    records: Sequence[Record]
    budget: str = "full"
    num_test: int = 10_000

    def of(self, arm: str) -> list[Record]:
        """The records of an arm in the order of their seeds."""
        return sorted((record for record in self.records if record.arm == arm), key=lambda record: record.seed)

    def values(self, arm: str, measure: str) -> list[float]:
        """One number a seed: a measure of the training, or a number inside a measurement by its dotted path, such as
        "lesion.median_increase" or "responses.units.3.std". Seeds that do not have it are left out."""
        found = (_looked_up(record, measure) for record in self.of(arm))
        return [float(value) for value in found if isinstance(value, (int, float)) and not isinstance(value, bool)]

    def curve(self, arm: str, measure: str) -> list[list[tuple[int, float]]]:
        """One curve a seed: (update, value) by increasing update."""
        return [list(map(_pair, record.curves[measure])) for record in self.of(arm) if measure in record.curves]

    def measurement(self, arm: str, name: str) -> list[dict[str, Any]]:
        """The plain values of one measurement, one a seed."""
        return [dict(record.measurements[name]) for record in self.of(arm) if name in record.measurements]


def _looked_up(record: Record, measure: str) -> Any:
    if measure in record.values:
        return record.values[measure]
    name, _, path = measure.partition(".")
    found: Any = record.measurements.get(name)
    for part in path.split(".") if path else ():
        if isinstance(found, Mapping):
            found = found.get(part)
        elif isinstance(found, Sequence) and not isinstance(found, str) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        else:
            return None
    return found


def _pair(point: Sequence[float]) -> tuple[int, float]:
    return int(point[0]), float(point[1])
