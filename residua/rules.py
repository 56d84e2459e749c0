"""The rules that decide claims; those that compare arms over seeds are in `residua.orders`. Layer 3.

Every rule is called with an `Evidence` and gives an `Outcome`; its `text` says in words what decides, so that it can be read, and
committed, before any run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol

from residua.comparing import CONFIDENCE, binomial_error, holm
from residua.evidence import Evidence, Outcome, not_attempted

__all__ = [
    "AllOf", "ByBudget", "Exact", "Fails", "Measured", "NotAttempted", "Rule", "Works", "because", "missing_of", "named",
    "settled_parts", "tested_images", "unbroken",
]  # fmt: skip

WORDS = {
    "test_error": "test error", "train_error": "training error", "best_test_error": "lowest test error", "test_loss": "test loss",
    "train_loss": "training loss", "seconds_per_image": "seconds an image", "top5_error": "top-5 test error",
    "dense.test_error": "test error, several scales", "ten-crop.test_error": "test error, ten crops",
    "lesion.baseline": "test error, nothing off", "lesion.median_increase": "median increase of the test error",
    "responses.median_std": "median standard deviation of the responses",
}  # fmt: skip


class Rule(Protocol):
    """What decides a claim."""

    @property
    def text(self) -> str:
        """What decides, in words."""

    def __call__(self, evidence: Evidence) -> Outcome:
        """The decision."""


@dataclass(frozen=True)
class Fails:
    """Training fails: the measure of every seed is above `above`, the binomial error of the test set taken off. Refuted if that
    of every seed is below."""

    arm: str
    above: float
    measure: str = "test_error"
    reason: str = ""

    @property
    def text(self) -> str:
        return (
            f"{self.arm} fails: the {named(self.measure)} of every seed is above {self.above:g}. Refuted if that of every seed "
            f"is below; otherwise, and within the 95 % binomial error of the test set, under-powered.{because(self.reason)}"
        )

    def __call__(self, evidence: Evidence) -> Outcome:
        return _sided(evidence, self.arm, self.measure, self.above, above=True)


@dataclass(frozen=True)
class Works:
    """Training works: the measure of every seed is below `below`, with the binomial error of the test set added. Refuted if that
    of every seed is above."""

    arm: str
    below: float
    measure: str = "test_error"
    reason: str = ""

    @property
    def text(self) -> str:
        return (
            f"{self.arm} works: the {named(self.measure)} of every seed is below {self.below:g}. Refuted if that of every seed "
            f"is above; otherwise, and within the 95 % binomial error of the test set, under-powered.{because(self.reason)}"
        )

    def __call__(self, evidence: Evidence) -> Outcome:
        return _sided(evidence, self.arm, self.measure, self.below, above=False)


class AllOf:
    """Several rules at once: refuted if one is refuted, else not attempted if one could not be attempted, else under-powered if
    one is, else shown. To show all of them each is tested at the full level (intersection-union); to refute one of them the
    p-values of those that rest on a test are corrected for their number (Holm 1979)."""

    def __init__(self, *rules: Rule) -> None:
        self.rules = rules

    @property
    def text(self) -> str:
        return "All of these; refuted if one of them is, with Holm's correction for the number of tests. " + " ".join(
            f"({number}) {rule.text}" for number, rule in enumerate(self.rules, 1)
        )

    def __call__(self, evidence: Evidence) -> Outcome:
        outcomes = _corrected([rule(evidence) for rule in self.rules])
        numbers = {"parts": [{"verdict": one.verdict, "why": one.why, "numbers": dict(one.numbers)} for one in outcomes]}
        for verdict in ("refuted", "not attempted", "under-powered"):
            if said := [one.why for one in outcomes if one.verdict == verdict]:
                against = [one.p_against for one in outcomes if one.p_against is not None]
                return Outcome(
                    verdict, " ".join(dict.fromkeys(said)), numbers, min(against) if against and verdict == "refuted" else None
                )
        return Outcome("shown", " ".join(one.why for one in outcomes), numbers)


def _corrected(outcomes: list[Outcome]) -> list[Outcome]:
    """Parts that are refuted at the full level, but not among so many tests, are under-powered; `p_against` is corrected."""
    places = [place for place, one in enumerate(outcomes) if one.p_against is not None]
    found = list(outcomes)
    for place, p in zip(places, holm([outcomes[place].p_against or 0.0 for place in places])):
        one = outcomes[place]
        if one.verdict == "refuted" and p > 1 - CONFIDENCE:
            one = replace(one, verdict="under-powered", why=f"{one.why} Among {len(places)} tests that is not enough.")
        found[place] = replace(one, p_against=p)
    return found


@dataclass(frozen=True)
class Measured:
    """Anything else that runs decide; `text` says how."""

    text: str
    decide: Callable[[Evidence], Outcome]

    def __call__(self, evidence: Evidence) -> Outcome:
        return self.decide(evidence)


@dataclass(frozen=True)
class Exact:
    """What structure or arithmetic on the networks themselves settles; no runs, no budget."""

    text: str
    decide: Callable[[], Outcome]

    def __call__(self, evidence: Evidence) -> Outcome:
        return _once(self.decide)


@cache
def _once(decide: Callable[[], Outcome]) -> Outcome:
    """What is settled stays so: networks are built for it once a process, whatever number of budgets it is asked at."""
    return decide()


@dataclass(frozen=True)
class ByBudget:
    """`full` decides at the full budget, `small` at the others; `because` says why they differ."""

    full: Rule
    small: Rule
    because: str

    @property
    def text(self) -> str:
        return f"At the full budget: {self.full.text} At the small one ({self.because}): {self.small.text}"

    def at(self, budget: str) -> Rule:
        """The rule that decides at a budget."""
        return self.full if budget == "full" else self.small

    def __call__(self, evidence: Evidence) -> Outcome:
        return self.at(evidence.budget)(evidence)


@dataclass(frozen=True)
class NotAttempted:
    """A claim that is not attempted, and why. The arms that its claim names tell what it would cost."""

    reason: str

    @property
    def text(self) -> str:
        return f"Not attempted: {self.reason}"

    def __call__(self, evidence: Evidence) -> Outcome:
        return not_attempted(self.reason)


def unbroken(arm: str, decide: Callable[[Evidence], Outcome]) -> Callable[[Evidence], Outcome]:
    """`decide` for what is said of every seed of an arm: not shown where one broke off, on which nothing could be measured."""

    def decided(evidence: Evidence) -> Outcome:
        outcome = decide(evidence)
        broken = [str(record.seed) for record in evidence.of(arm) if record.broken_off]
        if not broken or outcome.verdict != "shown":
            return outcome
        return Outcome("under-powered", f"{outcome.why} But seed {', '.join(broken)} of {arm} broke off.", outcome.numbers)

    return decided


def settled_parts(rule: Rule, budget: str) -> list[str]:
    """What structure or arithmetic shows of a rule of several parts, a text a part; runs must settle the others."""
    if isinstance(rule, ByBudget):
        return settled_parts(rule.at(budget), budget)
    if not isinstance(rule, AllOf):
        return []
    found: list[str] = []
    for part in rule.rules:
        if isinstance(part, Exact):
            outcome = _once(part.decide)
            found += [outcome.why] if outcome.verdict == "shown" else []
        else:
            found += settled_parts(part, budget)
    return found


def named(measure: str) -> str:
    """A measure in words."""
    return WORDS.get(measure, measure)


def because(reason: str) -> str:
    """The reason of a threshold, to be added to a text."""
    return f" {reason}" if reason else ""


def missing_of(evidence: Evidence, arms: Sequence[str], measure: str) -> str:
    """Which arms have no value, in a sentence; "" if all have one."""
    without = [arm for arm in arms if not evidence.values(arm, measure)]
    return f"There is no {named(measure)} of {', '.join(without)} yet." if without else ""


def tested_images(evidence: Evidence, measure: str) -> int:
    """The images that a measure is a share of; 0 where it is none of the test images."""
    return evidence.num_test if measure in ("test_error", "best_test_error", "top5_error") else 0


def _sided(evidence: Evidence, arm: str, measure: str, limit: float, *, above: bool) -> Outcome:
    missing = missing_of(evidence, [arm], measure)
    if missing:
        return not_attempted(missing)
    values = evidence.values(arm, measure)
    margins = [binomial_error(value, tested_images(evidence, measure)) for value in values]
    over = all(value - margin > limit for value, margin in zip(values, margins))
    under = all(value + margin < limit for value, margin in zip(values, margins))
    broken = [record.broken_off for record in evidence.of(arm) if record.broken_off]
    said = f"The {named(measure)} of {arm} is {', '.join(f'{value:.4g}' for value in values)}; the limit is {limit:g}."
    said += f" {broken[0]}" if broken else ""
    numbers: dict[str, Any] = {"arm": arm, "measure": measure, "values": values, "limit": limit}
    if over or under:
        return Outcome("shown" if over == above else "refuted", said, numbers)
    return Outcome("under-powered", f"{said} Not every seed lies clearly on one side.", numbers)
