"""What the small budget asks for: another rule than at full, or the reason why a small form has no meaning. Layer 4."""

from __future__ import annotations

from typing import Any

from residua.claims import Evidence, Measured, Outcome, Rule
from residua.comparing import compared
from residua.rules import ByBudget

__all__ = ["IMAGENET", "LENGTH", "PRINTED", "by_budget", "not_worse", "unavailable"]

IMAGENET = "it needs ImageNet, and some days of eight GPUs"
PRINTED = "It sets printed numbers against one another, which decides nothing."
LENGTH = "a training of some epochs does not see it"


def unavailable(reason: str) -> dict[str, Any]:
    """The `small` (or `smoke`) of an arm that has none."""
    return {"unavailable": reason}


def by_budget(full: Rule, small: Rule, because: str) -> ByBudget:
    """`full` decides at the full budget, `small` at the others; `because` says why they differ."""
    return ByBudget(full, small, because)


def not_worse(left: str, right: str, margin: float, measure: str = "test_error", reason: str = "") -> Measured:
    """The measure of `left` is not higher than that of `right` by more than `margin`: a one-sided Welch test at 95 %."""

    def decide(evidence: Evidence) -> Outcome:
        values = evidence.values(left, measure), evidence.values(right, measure)
        if not all(values):
            return Outcome("not attempted", f"There is no {measure.replace('_', ' ')} of {left if not values[0] else right} yet.")
        one = compared(*values, num_test=evidence.num_test if measure == "test_error" else 0)
        said = one.words(left, right)  # one.low and high bound the right minus the left
        if one.single:
            return Outcome("under-powered", f"{said} One seed on a side shows nothing of the spread.", one.numbers())
        if one.low > -margin:
            return Outcome("shown", f"{said} It is not higher by {margin:g}.", one.numbers())
        if one.high < -margin:
            return Outcome("refuted", f"{said} It is higher by more than {margin:g}.", one.numbers())
        return Outcome("under-powered", f"{said} The seeds do not exclude a loss of {margin:g}.", one.numbers())

    return Measured(
        f"The {measure.replace('_', ' ')} of {left} is not higher than that of {right} by more than {margin:g}: "
        f"one-sided Welch test "
        f"over seeds at 95 %, shown if the interval excludes so much, refuted if all of it lies beyond, else, and with "
        f"one seed "
        f"on a side, under-powered.{' ' + reason if reason else ''}",
        decide,
    )
