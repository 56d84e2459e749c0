"""Rules of he2015 that take more than one comparison: signals by depth, convergence, the start of training. Layer 4."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from residua.claims import Evidence, Lower, Measured, Outcome, not_attempted
from residua.papers._contrasts import judged, weighed
from residua.rules import unbroken

__all__ = [
    "BEST_OF_FIVE",
    "CONVERGENCE",
    "FORWARD",
    "HEALTHY",
    "NOT_VANISHING",
    "TREND_PLAIN",
    "TREND_RESIDUAL",
    "VANISHING",
    "WARMUP",
]

STATES = ("initial", "trained")
VANISHED, ALIVE = 1e-3, 0.1  # root mean square gradient at the first unit over that at the last
SPREAD = 100.0  # the largest over the smallest
LEVEL = 1.5  # nats
WARM_LEAST = 5.0  # points of training error
LEVEL_WORDS = f"{LEVEL:g} nats"
DEGRADED = Lower("plain20", "plain56", "train_error", least=1.0)


def _states(evidence: Evidence, arm: str) -> list[tuple[str, Mapping[str, Any]]]:
    """(state, what was measured in it) of every seed."""
    found = evidence.measurement(arm, "signal")
    return [(state, result[state]) for result in found for state in STATES if result.get(state)]


def _gradients(evidence: Evidence, arm: str) -> list[tuple[str, list[float]]]:
    """(state, root mean square gradient by depth, from the first unit's input to the last unit's output) of every seed."""
    return [
        (state, [math.sqrt(value) for value in found["gradient"] if value is not None]) for state, found in _states(evidence, arm)
    ]


def _every(values: Sequence[bool]) -> str:
    return "shown" if all(values) else "refuted" if not any(values) else "under-powered"


def _not_vanishing(evidence: Evidence) -> Outcome:
    found = _gradients(evidence, "plain56")
    if not found:
        return not_attempted("There is no measurement of signals in plain-56 yet.")
    ratios = [(state, rows[0] / rows[-1] if rows[-1] else 0.0) for state, rows in found]
    said = ", ".join(f"{state} {ratio:.3g}" for state, ratio in ratios)
    why = f"Root mean square gradient at the first unit of plain-56 over that at the last: {said}."
    numbers = {"ratios": [{"state": state, "ratio": ratio} for state, ratio in ratios]}
    if all(ratio >= ALIVE for _, ratio in ratios):
        return Outcome("shown", why, numbers)
    return Outcome("refuted" if any(ratio < VANISHED for _, ratio in ratios) else "under-powered", why, numbers)


def _healthy(evidence: Evidence) -> Outcome:
    found = _gradients(evidence, "plain56")
    if not found:
        return not_attempted("There is no measurement of signals in plain-56 yet.")
    spreads = [(state, max(rows) / min(rows) if min(rows) else math.inf) for state, rows in found]
    said = ", ".join(f"{state} {spread:.3g}" for state, spread in spreads)
    numbers = {"spreads": [{"state": state, "spread": spread if math.isfinite(spread) else None} for state, spread in spreads]}
    by_state = {state: _every([s <= SPREAD for name, s in spreads if name == state]) for state, _ in spreads}
    verdict = "refuted" if "refuted" in by_state.values() else "shown" if set(by_state.values()) == {"shown"} else "under-powered"
    return Outcome(verdict, f"The largest gradient of plain-56 over the smallest: {said}.", numbers)  # type: ignore[arg-type]


def _forward(evidence: Evidence) -> Outcome:
    found = [(state, [v for v in values["signal"] if v is not None]) for state, values in _states(evidence, "plain56")]
    if not found:
        return not_attempted("There is no measurement of signals in plain-56 yet.")
    fits = [bool(values) and min(values) > 1e-3 and max(values) < 1e3 for _, values in found]
    said = ", ".join(f"{state} {min(values, default=0):.3g} to {max(values, default=0):.3g}" for state, values in found)
    numbers = {"variances": [{"state": state, "lowest": min(v, default=0), "highest": max(v, default=0)} for state, v in found]}
    return Outcome(_every(fits), f"Variance of the signal after each unit of plain-56: {said}.", numbers)  # type: ignore[arg-type]


def _vanishing(evidence: Evidence) -> Outcome:
    degraded, alive = DEGRADED(evidence), NOT_VANISHING(evidence)
    numbers = {"degradation": degraded.verdict, "not vanishing": alive.verdict, **alive.numbers}
    for part in (degraded, alive):
        if part.verdict == "not attempted":
            return part
    if degraded.verdict != "shown":
        return Outcome("under-powered", f"The degradation itself is {degraded.verdict} here. {degraded.why}", numbers)
    verdict = {"shown": "refuted", "refuted": "shown"}.get(alive.verdict, "under-powered")
    return Outcome(verdict, f"The deeper plain net trains worse. {alive.why}", numbers)  # type: ignore[arg-type]


def updates_until(curve: Iterable[tuple[int, float]], level: float, window: int = 5) -> int | None:
    """The first update at which the mean of `window` points in a row lies below `level`; None where there is none."""
    points = list(curve)
    for end in range(min(window, len(points)), len(points) + 1):
        if points and fmean(value for _, value in points[max(0, end - window) : end]) < level:
            return points[end - 1][0]
    return None


def _times(evidence: Evidence, arm: str) -> tuple[list[int], bool]:
    """The updates of every seed until its training loss is below `LEVEL`, and whether any of them never was: then that seed
    counts with the length of the longest run, a lower bound."""
    curves = [(record.curves["train_loss"], record.broken_off) for record in evidence.of(arm) if record.curves.get("train_loss")]
    length = max((int(curve[-1][0]) for curve, _ in curves), default=0)
    found = [None if broken else updates_until(curve, LEVEL) for curve, broken in curves]  # type: ignore[arg-type]
    return [length if time is None else time for time in found], None in found


def _convergence(evidence: Evidence) -> Outcome:
    names = ("plain20", "plain56", "resnet20", "resnet56")
    found = {name: _times(evidence, name) for name in names}
    missing = [name for name, (times, _) in found.items() if not times]
    if missing:
        return not_attempted(f"There is no training loss of {', '.join(missing)} yet.")
    logs = {name: [math.log2(max(1, time)) for time in times] for name, (times, _) in found.items()}
    slower = [(1.0, "plain56"), (-1.0, "plain20")]
    more = [*slower, (-1.0, "resnet56"), (1.0, "resnet20")]
    outcomes = []
    for terms, least, what in (
        (slower, 1.0, "Plain, doublings from 20 to 56 layers"),
        (more, 0.5, "Plain less residual, doublings"),
    ):
        outcome = judged(weighed([(weight, logs[name]) for weight, name in terms]), least, what)
        late = {
            weight > 0: name for weight, name in terms if found[name][1]
        }  # True: the estimate is a lower bound; False: an upper
        if (outcome.verdict == "refuted" and True in late) or (outcome.verdict == "shown" and False in late):
            said = f"{outcome.why} That is a bound only: {late[outcome.verdict == 'refuted']} never fell below {LEVEL_WORDS}."
            outcome = Outcome("under-powered", said, outcome.numbers)
        outcomes.append(outcome)
    numbers = {
        "updates": {name: times for name, (times, _) in found.items()}, "never": [name for name in names if found[name][1]],
        "plain": outcomes[0].numbers, "plain less residual": outcomes[1].numbers,
    }  # fmt: skip
    verdicts = {outcome.verdict for outcome in outcomes}
    verdict = "refuted" if "refuted" in verdicts else "shown" if verdicts == {"shown"} else "under-powered"
    return Outcome(verdict, " ".join(outcome.why for outcome in outcomes), numbers)  # type: ignore[arg-type]


def _near(curve: Sequence[tuple[int, float]], first: int, last: int) -> float:
    """The mean of the points in (first, last], or the point nearest to `last`."""
    inside = [value for step, value in curve if first < step <= last]
    return fmean(inside) if inside else min(curve, key=lambda point: abs(point[0] - last))[1]


def _warmup(evidence: Evidence) -> Outcome:
    found = {}
    for arm in ("resnet110", "resnet110-no-warmup"):
        curves = [curve for curve in evidence.curve(arm, "train_error") if curve]
        if not curves:
            return not_attempted(f"There is no training error of {arm} yet.")
        windows = [_within(curve, 300, 400) for curve in curves]
        if not all(windows):
            return not_attempted(f"The training error of {arm} is not kept for the updates 300 to 400 by themselves.")
        found[arm] = [fmean(window) for window in windows]
    warm, cold = found.values()
    why = f"Training error in updates 300 to 400: {fmean(warm):.1f} % at 0.01, {fmean(cold):.1f} % at 0.1."
    if max(warm) < 80 <= min(cold) and min(cold) - max(warm) >= WARM_LEAST:
        return Outcome("shown", why, found)
    if min(warm) >= 80 or max(cold) < 78:
        return Outcome("refuted", why, found)
    return Outcome("under-powered", why, found)


def _within(curve: Sequence[tuple[int, float]], first: int, last: int) -> list[float]:
    """The points that are means of updates in (first, last] only; a point is the mean of all since the one before it."""
    begins = [0, *(step for step, _ in curve)]
    return [value for begin, (step, value) in zip(begins, curve) if begin >= first and step <= last]


def _trend(kind: str, rising: bool) -> Measured:
    """The ends decide; where the depths between are run, none may be clearly out of order."""
    shallow, deep = f"{kind}20", f"{kind}56"
    ends = Lower(shallow, deep, "test_error", 1.0) if rising else Lower(deep, shallow, "test_error", 0.5)
    chain = [f"{kind}{depth}" for depth in (20, 32, 44, 56)]

    def decide(evidence: Evidence) -> Outcome:
        outcome = ends(evidence)
        run = [arm for arm in chain if evidence.values(arm, "test_error")]
        for pair in pairwise(run):
            better, worse = pair if rising else reversed(pair)
            against = Lower(worse, better, "test_error", 0.5)(evidence)
            if outcome.verdict == "shown" and against.verdict == "shown" and len(run) > 2:
                return Outcome("refuted", f"{worse} is better than {better}. {against.why}", against.numbers)
        return outcome

    between = "Where 32 and 44 layers are run, no neighbours may be in the other order by 0.5 points (Welch)."
    return Measured(f"The ends decide: {ends.text} {between}", decide)


TREND_PLAIN, TREND_RESIDUAL = _trend("plain", rising=True), _trend("resnet", rising=False)


def _best_of_five(evidence: Evidence) -> Outcome:
    values = evidence.values("resnet110", "test_error")
    if evidence.budget != "full" or len(values) < 5:
        return not_attempted("It takes five runs of ResNet-110 at budget full.")
    gap = fmean(values) - min(values)
    why = f"Best {min(values):.2f} %, mean {fmean(values):.2f} % of {len(values)} runs."
    return Outcome("shown" if gap >= 0.1 else "refuted", why, {"best": min(values), "mean": fmean(values), "values": values})


def single_layer(evidence: Evidence) -> Outcome:
    """single_layer_residual_useless: the training errors of 110 layers in single-layer units, in units of two, and without
    shortcuts."""
    arms = ("resnet110-1layer", "plain110", "resnet110")
    errors = {arm: evidence.values(arm, "train_error") for arm in arms}
    missing = [arm for arm, values in errors.items() if not values]
    if missing:
        return not_attempted(f"There is no training error of {', '.join(missing)} yet.")
    single, plain, double = (fmean(errors[arm]) for arm in arms)
    gain, short = plain - single, single - double
    why = f"Single-layer units have a training error {gain:.1f} points below that of plain layers and {short:.1f} above that of "
    why += "units of two layers."
    verdict = "refuted" if gain > 10 else "shown" if gain < 5 and short > 15 else "under-powered"
    return Outcome(verdict, why, {**errors, "gain": gain, "short of two layers": short})  # type: ignore[arg-type]


def _faster(evidence: Evidence) -> Outcome:
    areas = {}
    for arm in ("imagenet-plain18", "imagenet-resnet18"):
        curves = [curve for curve in evidence.curve(arm, "train_loss") if curve]
        if not curves:
            return not_attempted(f"There is no training loss of {arm} yet.")
        areas[arm] = [_near(curve, 0, curve[-1][0] // 4) for curve in curves]
    plain, residual = areas.values()
    found = weighed([(1.0, plain), (-1.0, residual)])
    outcome = judged(found, 0.02, "Mean training loss in the first quarter, plain less residual")
    return Outcome(outcome.verdict, outcome.why, {**outcome.numbers, **areas})


FASTER = Measured(
    "Mean training loss in the first quarter of training: that of the residual net is lower by at least 0.02 nats. One-sided "
    "Welch test over seeds at 95 %; with one seed a side nothing is decided.",
    _faster,
)
NOT_VANISHING = Measured(
    "In plain-56, initial and trained, every seed: shown if the root mean square gradient at the first unit is at least "
    f"{ALIVE:g} times that at the last; refuted if it is below {VANISHED:g} times anywhere; else under-powered. A product of "
    "27 units that vanishes does so by many powers of ten, so that a factor of ten is no sign of it.",
    unbroken("plain56", _not_vanishing),
)
HEALTHY = Measured(
    f"In plain-56, initial and trained: shown if the largest root mean square gradient of all depths is at most {SPREAD:g} "
    "times the smallest in every seed; refuted if it is more in every seed of one state; else under-powered.",
    unbroken("plain56", _healthy),
)
FORWARD = Measured(
    "In plain-56, initial and trained: shown if the variance of the signal after every unit lies between 0.001 and 1,000 in "
    "every seed, refuted if in none; else under-powered. A signal that vanishes or explodes over 27 units leaves these bounds.",
    unbroken("plain56", _forward),
)
VANISHING = Measured(
    f"Shown if plain-56 trains worse than plain-20 ({DEGRADED.text}) and its gradients vanish; refuted if it trains worse and "
    f"they do not vanish ({NOT_VANISHING.text}); else under-powered.",
    _vanishing,
)
CONVERGENCE = Measured(
    f"Updates until the training loss falls below {LEVEL_WORDS} (mean of 5 points): plain-56 needs at least twice as many as "
    "plain-20, and more of a factor than the residual nets of the same depths by at least the root of two. One-sided Welch tests "
    "of the logarithms over seeds at 95 %, both must hold; refuted if either effect is excluded. A run that stays above, "
    "or breaks off, counts with its length, which is a bound: what it might hide is then neither shown nor refuted. Two depths "
    "cannot tell an exponential law from another.",
    _convergence,
)
WARMUP = Measured(
    "Mean training error in the updates 300 to 400: shown if it is below 80 % at rate 0.01 and at least 80 % at 0.1, in every "
    f"seed, with at least {WARM_LEAST:g} points between them; refuted if it is at least 80 % at 0.01, or below 78 % at 0.1.",
    _warmup,
)
BEST_OF_FIVE = Measured(
    "Five runs of ResNet-110 at budget full: the lowest error lies at least 0.1 points below the mean, so that it matters "
    "which is quoted.",
    _best_of_five,
)
