"""Rules on differences of differences, and on what a curve shows along the way, over seeds. Layer 4."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

from scipy import stats

from residua.claims import Evidence, Outcome, not_attempted
from residua.comparing import CONFIDENCE
from residua.rules import named

__all__ = ["Estimate", "Wider", "judged", "weighed"]

SINGLE = "A side has one seed, so that nothing is known of the spread."


@dataclass(frozen=True)
class Estimate:
    """A weighted sum of means with its one-sided confidence bounds, its standard error and degrees of freedom; `single` where a
    sample has one value only, so that there are none (then the bounds are the estimate)."""

    value: float
    low: float
    high: float
    single: bool
    error: float = 0.0
    freedom: float = 1.0

    def below(self, least: float) -> float:
        """The p-value against an effect of at least `least`."""
        if not self.error:
            return float(self.value >= least)
        return float(stats.t.cdf((self.value - least) / self.error, self.freedom))

    def words(self, what: str) -> str:
        bounds = SINGLE if self.single else f"95 % one-sided bounds {self.low:+.3g} and {self.high:+.3g}."
        return f"{what}: {self.value:+.3g}. {bounds}"

    def numbers(self) -> dict[str, Any]:
        return {"estimate": self.value, "low": self.low, "high": self.high, "single": self.single}


def weighed(terms: Sequence[tuple[float, Sequence[float]]]) -> Estimate:
    """The sum of weight times mean over samples, by Welch and Satterthwaite."""
    value = math.fsum(weight * fmean(sample) for weight, sample in terms)
    if any(len(sample) < 2 for _, sample in terms):
        return Estimate(value, value, value, single=True)
    parts = [weight**2 * variance(sample) / len(sample) for weight, sample in terms]
    total = math.fsum(parts)
    if not total:
        return Estimate(value, value, value, single=False)
    freedom = total**2 / math.fsum(part**2 / (len(sample) - 1) for part, (_, sample) in zip(parts, terms))
    error = math.sqrt(total)
    reach = float(stats.t.ppf(CONFIDENCE, freedom)) * error
    return Estimate(value, value - reach, value + reach, single=False, error=error, freedom=freedom)


def judged(found: Estimate, least: float, what: str, gross: float = math.inf) -> Outcome:
    """Shown if above 0 and at least `least`, refuted if below `least`, else under-powered; with one seed beyond `gross` only."""
    said = found.words(what)
    if found.single:
        limit = max(least, gross)
        verdict = "shown" if found.value > limit else "refuted" if found.value < -limit else "under-powered"
        return Outcome(verdict, said, found.numbers())  # type: ignore[arg-type]
    against = found.below(least)
    if found.low > 0 and found.value >= least:
        return Outcome("shown", said, found.numbers(), against)
    if found.high < least:
        return Outcome("refuted", f"{said} An effect of {least:g} is excluded.", found.numbers(), against)
    return Outcome("under-powered", f"{said} The seeds do not decide.", found.numbers(), against)


@dataclass(frozen=True)
class Wider:
    """The measure of `worse` exceeds that of `better` by more in the first pair of arms than in the second, by at least `least`.

    Pairs are (better, worse). `gross` decides where an arm has one seed.
    """

    first: tuple[str, str]
    second: tuple[str, str]
    measure: str = "test_error"
    least: float = 0.0
    gross: float = math.inf
    reason: str = ""

    @property
    def text(self) -> str:
        one = f"only beyond {self.gross:g} it decides" if math.isfinite(self.gross) else "nothing is decided"
        return (
            f"The {named(self.measure)} of {self.first[1]} exceeds that of {self.first[0]} by more than that of {self.second[1]} "
            f"exceeds that of {self.second[0]}. One-sided test of the contrast over seeds at 95 % (Welch, Satterthwaite), least "
            f"effect {self.least:g}; with one seed in an arm {one}.{f' {self.reason}' if self.reason else ''}"
        )

    def __call__(self, evidence: Evidence) -> Outcome:
        names = (self.first[1], self.first[0], self.second[1], self.second[0])
        samples = [evidence.values(name, self.measure) for name in names]
        missing = [name for name, sample in zip(names, samples) if not sample]
        if missing:
            return not_attempted(f"There is no {named(self.measure)} of {', '.join(missing)} yet.")
        found = weighed(list(zip((1.0, -1.0, -1.0, 1.0), samples)))
        return judged(found, self.least, "The first difference less the second", self.gross)
