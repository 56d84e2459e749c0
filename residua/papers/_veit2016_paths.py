"""Rules of veit2016 on paths: how long they are, and which carry the gradient. Layer 4."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from scipy import stats

from residua.claims import Evidence, Measured, Outcome, not_attempted
from residua.papers._settled import images, settled, skips_of
from residua.papers._veit2016_lesions import decided
from residua.paths import path_lengths
from residua.rules import unbroken

__all__ = ["binomial_paths", "cannot_be_split", "carried_by_short_paths", "decays_exponentially", "short_paths_are_rare"]

MODULES = 54


def decays_exponentially(arm: str) -> Measured:
    """gradient_decays."""

    def decide(evidence: Evidence) -> Outcome:
        fits = []
        for result in evidence.measurement(arm, "paths"):
            points = [(length, math.log10(norm)) for length, norm in zip(result["length"], result["norm"]) if norm]
            if len(points) >= 3:
                line = stats.linregress(*zip(*points))
                fits.append({"slope": float(line.slope), "r2": float(line.rvalue**2), "lengths": len(points)})
        if not fits:
            return not_attempted(f"There is no measurement of the paths of {arm} yet.")
        said = ", ".join(f"{fit['slope']:+.3f} a unit (R2 {fit['r2']:.3f})" for fit in fits)
        shown = [fit["slope"] < -0.02 and fit["r2"] >= 0.9 for fit in fits]
        return Outcome(
            decided(shown, [fit["slope"] >= 0 or fit["r2"] < 0.5 for fit in fits]),
            f"{arm}, log10 of the norm: {said}.",
            {"fits": fits},
        )

    return Measured(
        f"In {arm}, log10 of the mean gradient norm over single paths against their length, a straight line by least squares: "
        "shown if it falls by at least 0.02 a unit with R2 of at least 0.9, in every seed; refuted if it does not fall or R2 "
        "is below 0.5.",
        unbroken(arm, decide),
    )


def carried_by_short_paths(arm: str, longest: float, rare: float) -> Measured:
    """short_paths_carry_gradient: `longest` and `rare` as shares of the number of units and of all paths."""

    def decide(evidence: Evidence) -> Outcome:
        results = evidence.measurement(arm, "paths")
        if not results:
            return not_attempted(f"There is no measurement of the paths of {arm} yet.")
        rows = [result["effective"] | {"units": result["units"]} for result in results]
        said = "; ".join(
            f"{row['from']} to {row['to']} of {row['units']} units, {row['share_of_paths']:.2%} of all paths" for row in rows
        )
        shown = [row["to"] <= longest * row["units"] and row["share_of_paths"] <= rare for row in rows]
        refuted = [row["to"] > row["units"] / 2 and row["share_of_paths"] > 0.5 for row in rows]
        return Outcome(decided(shown, refuted), f"{arm}, 95 % of the gradient: {said}.", {"seeds": rows})

    return Measured(
        f"In {arm}, the lengths that together carry 95 % of the sum of number of paths times mean norm: shown if the longest "
        f"is at most {longest:.0%} of the units and these lengths are at most {rare:.0%} of all paths, in every seed; refuted "
        "if the longest is above half of the units and they are more than half of all paths; else under-powered.",
        unbroken(arm, decide),
    )


# ------------------------------------------------------------------------------------------------------------ exact


def _lengths() -> Any:
    with torch.random.fork_rng(devices=[]):
        return path_lengths(skips_of("preact_resnet110", 3, 32).flow, "units")


def binomial_paths() -> Outcome:
    """binomial_paths, of the captured graph of the pre-activation net of 110 layers."""
    found = _lengths()
    expected = {length: math.comb(MODULES, length) for length in range(MODULES + 1)}
    share = found.share(19, 35)
    why = f"{found.num_paths:,} paths of the graph, binomial: {found.counts == expected}; {share:.4%} have 19 to 35 units."
    return settled(dict(found.counts) == expected and share > 0.95, why, share=share, paths=str(found.num_paths))


def short_paths_are_rare() -> Outcome:
    """Part of short_paths_carry_gradient: the share of the paths of 5 to 17 units."""
    share = _lengths().share(5, 17)
    return settled(round(100 * share, 2) == 0.45, f"{share:.5%} of the paths have 5 to 17 units.", share=share)


def cannot_be_split() -> Outcome:
    """ensemble_size_dispute: the output of two units beside the sum of what their four paths give by themselves."""
    x = images(64, 1, 4, "split").flatten(1)
    weights = images(4, 1, 16, "weights").flatten(1, 2) / 4
    apart = {}
    functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"linear branches": lambda t: t, "ReLU branches": torch.relu}
    for name, bend in functions.items():

        def branch(t: torch.Tensor, unit: int, bend: Callable[[torch.Tensor], torch.Tensor] = bend) -> torch.Tensor:
            return bend(t @ weights[2 * unit]) @ weights[2 * unit + 1]

        middle = x + branch(x, 0)
        whole = middle + branch(middle, 1)
        paths = x + branch(x, 0) + branch(x, 1) + branch(branch(x, 0), 1)
        apart[name] = float((whole - paths).norm() / whole.norm())
    why = ", ".join(f"{name} {value:.1e}" for name, value in apart.items()) + " of the output."
    holds = apart["linear branches"] < 1e-12 and apart["ReLU branches"] > 1e-2
    return settled(holds, f"The sum of the four paths of two units misses {why}", **apart)
