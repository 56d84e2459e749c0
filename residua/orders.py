"""Rules that compare arms over seeds: one lower than another, several in order, two equal. Layer 3.

Confidence is 95 % one-sided throughout. For a difference in a stated direction:

    shown          the confidence interval excludes 0 in that direction, and the estimate is at least `least`
    refuted        the interval excludes an effect of `least` in that direction
    under-powered  neither

With a single seed on a side nothing is known of the spread over seeds, so only differences beyond `gross` decide, the binomial
error of the test set taken off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from residua.comparing import CONFIDENCE, Comparison, compared, holm
from residua.evidence import Evidence, Outcome, Verdict, not_attempted
from residua.rules import because, missing_of, named, tested_images

__all__ = ["Equal", "Lower", "Ordered"]

GROSS = 10.0  # points of error: runs of one recipe that differ in their seed only lie closer together, unless one of them fails


@dataclass(frozen=True)
class Lower:
    """The measure of arm `left` is lower than that of `right`, by at least `least` (in the measure's unit), for which `reason`
    says why it is the least effect that counts. One-sided Welch test over seeds; where a side has one seed only a difference
    beyond `gross` decides (None: 10 points for errors; nothing for other measures)."""

    left: str
    right: str
    measure: str = "test_error"
    least: float = 0.0
    gross: float | None = None
    reason: str = ""

    @property
    def text(self) -> str:
        return (
            f"The {named(self.measure)} of {self.left} is lower than that of {self.right}. "
            f"{_tested(self.measure, self.least, self.gross)}{because(self.reason)}"
        )

    def __call__(self, evidence: Evidence) -> Outcome:
        if missing := missing_of(evidence, [self.left, self.right], self.measure):
            return not_attempted(missing)
        one = _difference(evidence, self.left, self.right, self.measure, self.least)
        verdict = _judged(one, self.least, _limit(self.measure, self.gross))
        said = f"{one.words(self.left, self.right)} {_reading(verdict, one, self.least, _limit(self.measure, self.gross))}"
        return Outcome(verdict, said.rstrip(), one.numbers(), None if one.single else one.p_below)


@dataclass(frozen=True)
class Ordered:
    """The measure rises along `arms`, each neighbour by at least `least`. All neighbours are tested as in `Lower`, their p-values
    corrected by Holm (1979): shown if all are shown, refuted if one is refuted."""

    arms: Sequence[str]
    measure: str = "test_error"
    least: float = 0.0
    gross: float | None = None
    reason: str = ""

    @property
    def text(self) -> str:
        return (
            f"The {named(self.measure)} rises in the order {', '.join(self.arms)}: every neighbour is tested, with Holm's "
            f"correction; all must be shown, and one refutes. {_tested(self.measure, self.least, self.gross)}"
            f"{because(self.reason)}"
        )

    def __call__(self, evidence: Evidence) -> Outcome:
        if missing := missing_of(evidence, self.arms, self.measure):
            return not_attempted(missing)
        pairs = list(zip(self.arms, self.arms[1:]))
        found = [_difference(evidence, left, right, self.measure, self.least) for left, right in pairs]
        verdicts = self._verdicts(found)
        verdict: Verdict = "shown" if set(verdicts) == {"shown"} else "refuted" if "refuted" in verdicts else "under-powered"
        listed = ", ".join(
            f"{left} to {right} {one.estimate:+.3g} ({part})" for (left, right), one, part in zip(pairs, found, verdicts)
        )
        numbers = {"neighbours": [{"from": a, "to": b, **one.numbers()} for (a, b), one in zip(pairs, found)]}
        against = None if any(one.single for one in found) else min(holm([one.p_below for one in found]))
        return Outcome(verdict, f"Steps of the {named(self.measure)}: {listed}.", numbers, against)

    def _verdicts(self, found: Sequence[Comparison]) -> list[Verdict]:
        if any(one.single for one in found):
            return [_judged(one, self.least, _limit(self.measure, self.gross)) for one in found]
        level = 1 - CONFIDENCE
        rises, falls = holm([one.p_positive for one in found]), holm([one.p_below for one in found])
        return [
            "shown" if up <= level and one.estimate >= self.least else "refuted" if down <= level else "under-powered"
            for one, up, down in zip(found, rises, falls)
        ]


@dataclass(frozen=True)
class Equal:
    """The measure of two arms differs by less than `margin`: two one-sided tests (Schuirmann 1987). One seed a side cannot show
    it; beyond `gross` it refutes."""

    left: str
    right: str
    measure: str = "test_error"
    margin: float = 1.0
    gross: float | None = None
    reason: str = ""

    @property
    def text(self) -> str:
        return (
            f"The {named(self.measure)} of {self.left} and {self.right} differ by less than {self.margin:g}. Two one-sided Welch "
            "tests over seeds at 95 %: shown if the interval lies within the margin, refuted if it lies outside, else "
            f"under-powered; one seed a side cannot show it.{because(self.reason)}"
        )

    def __call__(self, evidence: Evidence) -> Outcome:
        if missing := missing_of(evidence, [self.left, self.right], self.measure):
            return not_attempted(missing)
        one = _difference(evidence, self.left, self.right, self.measure, 0.0)
        outside = max(self.margin, _limit(self.measure, self.gross)) if one.single else self.margin
        if one.low > outside or one.high < -outside:
            verdict: Verdict = "refuted"
        else:
            verdict = "shown" if not one.single and -self.margin < one.low and one.high < self.margin else "under-powered"
        said = {
            "shown": f"That lies within {self.margin:g}.", "refuted": f"That lies beyond {outside:g}.",
            "under-powered": "One seed a side cannot show equality." if one.single else f"That lies across {self.margin:g}.",
        }[verdict]  # fmt: skip
        above, below = (_difference(evidence, self.left, self.right, self.measure, edge) for edge in (self.margin, -self.margin))
        against = None if one.single else min(1 - above.p_below, below.p_below)
        return Outcome(verdict, f"{one.words(self.left, self.right)} {said}", one.numbers(), against)


def _limit(measure: str, given: float | None) -> float:
    """What decides with one seed a side: as given, else `GROSS` points for errors, and nothing for other measures."""
    return given if given is not None else GROSS if measure.endswith("_error") else math.inf


def _tested(measure: str, least: float, given: float | None) -> str:
    limit = _limit(measure, given)
    shown = "the interval excludes 0 in that direction" + (f" and the estimate is at least {least:g}" if least else "")
    effect = f"an effect of {least:g}" if least else "any effect in that direction"
    single = f"only a difference beyond {limit:g} decides" if math.isfinite(limit) else "nothing is decided"
    return (
        f"One-sided Welch test over seeds at 95 %: shown if {shown}, refuted if the interval excludes {effect}, else "
        f"under-powered; with one seed a side {single}."
    )


def _difference(evidence: Evidence, left: str, right: str, measure: str, least: float) -> Comparison:
    values = (evidence.values(left, measure), evidence.values(right, measure))
    return compared(*values, least, tested_images(evidence, measure))


def _judged(one: Comparison, least: float, limit: float) -> Verdict:
    if one.single:
        limit = max(least, limit)
        return "shown" if one.low > limit else "refuted" if one.high < -limit else "under-powered"
    if one.low > 0 and one.estimate >= least:
        return "shown"
    return "refuted" if one.high < least else "under-powered"


def _reading(verdict: Verdict, one: Comparison, least: float, limit: float) -> str:
    if one.single:
        limit = max(least, limit)
        if math.isinf(limit):
            return "One seed a side decides nothing."
        return f"That is {'within' if verdict == 'under-powered' else 'beyond'} {limit:g}, which decides with one seed a side."
    if verdict == "under-powered":
        return f"That excludes neither 0 nor {least:g}." if least else "That does not exclude 0."
    return "" if verdict == "shown" else f"That excludes {least:g}." if least else "That excludes any effect in that direction."
