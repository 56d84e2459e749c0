"""Rules of veit2016 on networks with units or layers off, or out of order. Layer 4."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from scipy import stats

from residua.claims import Evidence, Measured, Outcome, Verdict, not_attempted
from residua.rules import unbroken

__all__ = [
    "decided", "deletion_hurts_little", "deletion_of_a_layer", "first_unit", "grows_smoothly", "increases", "only_for_deep",
    "reordering", "robustness", "stochastic_depth", "transitions",
]  # fmt: skip

Result = Mapping[str, Any]


def _lesions(evidence: Evidence, arm: str) -> list[dict[str, Any]]:
    return evidence.measurement(arm, "lesion")


def _none(arm: str) -> Outcome:
    return not_attempted(f"There is no measurement of lesions of {arm} yet.")


def increases(result: Result, ordinary: bool | None = None) -> list[float]:
    """Points of error that each unit's absence adds: of all, of the ordinary ones, or of the first and the transitions."""
    found = []
    for place, row in enumerate(result["single"]):
        special = row["transition"] or place == 0
        if ordinary is None or ordinary is not special:
            found.append(row["error"] - result["baseline"])
    return found


def decided(shown: Sequence[bool], refuted: Sequence[bool]) -> Verdict:
    """Of all seeds: shown if it is in every one, refuted if it is in any, else under-powered."""
    return "shown" if all(shown) else "refuted" if any(refuted) else "under-powered"


def deletion_hurts_little(arm: str, limit: float) -> Measured:
    """delete_one_resnet."""

    def decide(evidence: Evidence) -> Outcome:
        results = _lesions(evidence, arm)
        if not results:
            return _none(arm)
        medians = [median(increases(result, ordinary=True)) for result in results]
        shares = [fmean(value <= 2 * limit for value in increases(result, ordinary=True)) for result in results]
        listed = ", ".join(f"{value:.2f}" for value in medians)
        why = f"{arm}, ordinary units off one at a time: median increase {listed} points; {min(shares):.0%} within {2 * limit:g}."
        shown = [value <= limit and share >= 0.75 for value, share in zip(medians, shares)]
        return Outcome(decided(shown, [value > 2 * limit for value in medians]), why, {"median": medians, "share": shares})

    return Measured(
        f"In {arm}, every unit but the first and those at stage transitions, off one at a time: shown if the median increase "
        f"of the test error is at most {limit:g} points and at least three quarters of them stay within {2 * limit:g}, in "
        f"every seed; refuted if the median exceeds {2 * limit:g}.",
        unbroken(arm, decide),
    )


def deletion_of_a_layer(arm: str) -> Measured:
    """delete_one_vgg."""

    def decide(evidence: Evidence) -> Outcome:
        results = _lesions(evidence, arm)
        if not results:
            return _none(arm)
        least = [min(row["error"] for row in result["single"]) for result in results]
        broken = [fmean(row["error"] >= 0.85 * result["chance"] for row in result["single"]) for result in results]
        why = f"{arm}, layers removed one at a time: lowest error {min(least):.1f} %; {min(broken):.0%} reach 0.85 of chance."
        return Outcome(
            decided([share == 1 for share in broken], [share < 0.5 for share in broken]),
            why,
            {"least": least, "share": broken},
        )

    return Measured(
        f"In {arm} with any one layer removed (zero where that changes the shape): shown if every error is at least 0.85 of "
        "that of chance, in every seed; refuted if fewer than half of the layers reach that; else under-powered.",
        unbroken(arm, decide),
    )


def transitions(arm: str) -> Measured:
    """transition_blocks_matter."""

    def decide(evidence: Evidence) -> Outcome:
        results = _lesions(evidence, arm)
        if not results:
            return _none(arm)
        gaps = []
        for result in results:
            changed = [row["error"] - result["baseline"] for row in result["single"] if row["transition"]]
            gaps.append(min(changed) - median(increases(result, ordinary=True)))
        why = f"{arm}: the mildest transition adds {', '.join(f'{gap:+.1f}' for gap in gaps)} points to the ordinary median."
        return Outcome(decided([gap >= 2 for gap in gaps], [gap <= 0 for gap in gaps]), why, {"gaps": gaps})

    return Measured(
        f"In {arm}: shown if every unit at a stage transition, off, raises the error by at least 2 points more than the median "
        "of the ordinary units, in every seed; refuted if one raises it less than that median; else under-powered.",
        unbroken(arm, decide),
    )


def robustness(arms: Sequence[str]) -> Measured:
    """robustness_grows_with_depth."""

    def decide(evidence: Evidence) -> Outcome:
        found = {arm: [median(increases(result)) for result in _lesions(evidence, arm)] for arm in arms}
        missing = [arm for arm, values in found.items() if not values]
        if missing:
            return _none(", ".join(missing))
        means = [fmean(values) for values in found.values()]
        why = (
            "Median increase with one unit off: " + ", ".join(f"{arm} {mean:.2f}" for arm, mean in zip(arms, means)) + " points."
        )
        falling = all(deeper < shallower for shallower, deeper in pairwise(means))
        shown = falling and 2 * max(means[-1], 0) <= means[0]
        verdict: Verdict = "shown" if shown else "refuted" if means[-1] >= means[0] else "under-powered"
        return Outcome(verdict, why, {"medians": found})

    return Measured(
        f"Median over all units of the increase of the test error, mean of the seeds, in the order {', '.join(arms)}: shown if "
        "it falls at every step and by half or more in all; refuted if the last is not below the first; else under-powered.",
        decide,
    )


def grows_smoothly(arm: str) -> Measured:
    """error_grows_smoothly."""

    def decide(evidence: Evidence) -> Outcome:
        results = _lesions(evidence, arm)
        if not results:
            return _none(arm)
        shown, refuted, said = [], [], []
        for result in results:
            line = [result["baseline"], *(row["median"] for row in result["random"])]
            steps = [b - a for a, b in pairwise(line)]
            whole = line[-1] - line[0]
            jump = max(steps) / whole if whole > 0 else math.inf
            shown.append(min(steps) >= -2 and jump <= 0.5)
            refuted.append(jump > 0.75)
            said.append(f"{line[0]:.1f} to {line[-1]:.1f} %, largest step {jump:.0%} of it")
        return Outcome(decided(shown, refuted), f"{arm}: {'; '.join(said)}.", {"seeds": said})

    return Measured(
        f"In {arm}, median test error over draws against the number of units that are off: shown if no step falls by more than "
        "2 points and none is more than half of the whole rise, in every seed; refuted if one is more than three quarters; "
        "else under-powered.",
        unbroken(arm, decide),
    )


def reordering(arm: str) -> Measured:
    """reorder_smooth."""

    def decide(evidence: Evidence) -> Outcome:
        results = [result for result in _lesions(evidence, arm) if len(result["swaps"]) >= 8]
        if not results:
            return _none(arm)
        found = [_rank_correlation([row["tau"] for row in r["swaps"]], [row["error"] for row in r["swaps"]]) for r in results]
        listed = ["undefined (all orders have one error)" if one is None else f"{one[0]:+.2f}" for one in found]
        why = f"{arm}: rank correlation of error with Kendall's tau {', '.join(listed)}."
        shown = [one is not None and one[0] <= -0.6 and one[1] < 0.05 for one in found]
        rows = [dict(zip(("rho", "p"), one or (None, None))) for one in found]
        return Outcome(decided(shown, [one is not None and one[0] > 0 for one in found]), why, {"seeds": rows})

    return Measured(
        f"In {arm}, units swapped in pairs within their stages: shown if Spearman's correlation of the test error with "
        "Kendall's tau of the order is at most -0.6 and below 0 at 95 %, in every seed; refuted if it is above 0; else "
        "under-powered.",
        unbroken(arm, decide),
    )


def _rank_correlation(one: Sequence[float], other: Sequence[float]) -> tuple[float, float] | None:
    """Spearman's correlation and its p-value; None where a side is constant, which leaves it undefined."""
    if min(len(set(one)), len(set(other))) < 2:
        return None
    found = stats.spearmanr(one, other)
    return float(found.statistic), float(found.pvalue)


def stochastic_depth(plain: str, sampled: str) -> Measured:
    """stochastic_depth_only_helps_transitions."""

    def decide(evidence: Evidence) -> Outcome:
        without, with_it = _lesions(evidence, plain), _lesions(evidence, sampled)
        if not without or not with_it:
            return _none(plain if not without else sampled)
        helps = {}
        for name, ordinary in (("ordinary", True), ("transitions and first", False)):
            before, after = (fmean(median(increases(result, ordinary)) for result in results) for results in (without, with_it))
            helps[name] = before - after
        why = f"Stochastic depth lowers the median increase by {helps['ordinary']:+.2f} points for ordinary units, "
        why += f"{helps['transitions and first']:+.2f} for the others."
        more, less = helps["transitions and first"], helps["ordinary"]
        verdict: Verdict = (
            "shown" if more >= 2 and more >= 2 * less else "refuted" if less > more and less >= 2 else "under-powered"
        )
        return Outcome(verdict, why, helps)

    return Measured(
        f"Median increase of the error with one unit off, {plain} less {sampled}: shown if it is at least 2 points for the "
        "first unit and the transitions, and at least twice that of the ordinary units; refuted if the ordinary units gain "
        "more, 2 points or more.",
        decide,
    )


def only_for_deep(arm: str) -> Measured:
    """claim_is_for_deep_nets."""

    def decide(evidence: Evidence) -> Outcome:
        medians = [median(increases(result)) for result in _lesions(evidence, arm)]
        if not medians:
            return _none(arm)
        why = f"{arm}: median increase {', '.join(f'{value:.1f}' for value in medians)} points with one unit off."
        return Outcome(decided([v >= 5 for v in medians], [v < 1 for v in medians]), why, {"medians": medians})

    return Measured(
        f"In {arm}, any one unit off: shown if the median increase of the error is at least 5 points in every seed, refuted if "
        "below 1.",
        unbroken(arm, decide),
    )


def first_unit(arm: str) -> Measured:
    """first_block."""

    def decide(evidence: Evidence) -> Outcome:
        results = _lesions(evidence, arm)
        if not results:
            return _none(arm)
        ranks = [1 + sum(value > increases(result)[0] for value in increases(result)) for result in results]
        why = f"{arm}: the first unit's place by damage is {', '.join(map(str, ranks))} of {len(results[0]['single'])}."
        return Outcome(decided([r == 1 for r in ranks], [r > 3 for r in ranks]), why, {"ranks": ranks})

    return Measured(
        f"In {arm}: shown if no unit does more damage when off than the first one, in every seed; refuted if more than two do.",
        unbroken(arm, decide),
    )
