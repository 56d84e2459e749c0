"""Figures and sentences of the analysis `signal`. Layer 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from residua.analysis import Drawing
from residua.panels import Curve, panel
from residua.wording import decimal, percent

__all__ = ["draw", "read"]

ROUNDING = 1e-12


def draw(results: Mapping[str, Mapping[str, Any]]) -> list[Drawing]:
    drawings = [
        _by_depth(results, "signal", "Variance of the signal", "variance"),
        _by_depth(results, "gradient", "Mean square of the gradient", "mean square of dE/dx"),
        _jacobians(results),
    ]
    shares, sums, breaks, ends = [], [], [], []
    for network, (name, result) in enumerate(results.items()):
        depth = list(range(1, len(result["units"]) + 1))
        if result["shortcuts"]:
            shares.append(Curve(depth, result["trained"]["direct_share"], name, network, style="both"))
            if result["initial"]:
                label = f"{name}, at initialisation"
                shares.append(Curve(depth, result["initial"]["direct_share"], label, network, style="dashed"))
        if spread := result["trained"]["sum_derivative"]:
            low, median, high = spread["kept"]
            sums.append(Curve(depth, median, name, network, low=low, high=high, style="both"))
        for key, style in (("signal", "both"), ("gradient", "dashed")):
            values = [max(row[key], 1e-17) if row[key] is not None else None for row in result["identities"]]
            if any(value is not None for value in values):
                breaks.append(Curve(depth, values, name if key == "signal" else "", network, style=style))
        ends.append(Curve([*depth, len(depth) + 1], result["similarity"], name, network, style="both"))
        if any(value is not None for value in result["carried"]):
            ends.append(Curve(depth, result["carried"], f"{name}, over the shortcuts", network, style="dashed"))
    if shares:
        drawings.append(Drawing(
            "Share of the gradient that is direct",
            panel("signal-direct", "Share of the gradient over the direct term", shares, "input of unit", "share", whole=True,
                  zero=False),
            "The part of dE/dx that comes over shortcuts alone, projected on the whole; the rest comes through weights.",
        ))  # fmt: skip
    if sums:
        drawings.append(Drawing(
            "How near the sum's derivative comes to -1",
            panel("signal-sum", "Factor on the direct term", sums, "input of unit", "|1 + d/dx sum F|", log=True, whole=True,
                  levels={"1: the weights leave the direct term alone": 1.0}),
            "The factor on the direct term: at 0 the branches' derivative is -1 and takes it away. Median over images with "
            "the 5 % to 95 % band.",
        ))  # fmt: skip
    if breaks:
        drawings.append(Drawing(
            "How far each unit is from the identities",
            panel("signal-identities", "Break of the two identities by unit", breaks, "unit", "relative error", log=True,
                  whole=True),
            "In float64: |y - x - F| / |y| (points), and the same for the gradient (dashed). 1e-16 is rounding; units that "
            "concatenate or change the shape are left out.",
        ))  # fmt: skip
    drawings.append(Drawing(
        "What is left of an early signal at the end",
        panel("signal-survival", "Similarity of each signal with the last", ends, "input of unit", "share", whole=True),
        "Linear CKA of each unit's input with the last unit's output (points); dashed: the share of the last output's variance "
        "that goes along with what the shortcuts alone bring there.",
    ))  # fmt: skip
    return drawings


def _by_depth(results: Mapping[str, Mapping[str, Any]], key: str, title: str, label: str) -> Drawing:
    curves = []
    for network, (name, result) in enumerate(results.items()):
        for state, words, style in (
            ("trained", "", "both"), ("initial", ", at initialisation", "dashed"), ("initial_twin", ", its plain twin", "points"),
        ):  # fmt: skip
            if result[state]:
                values = [value or None for value in result[state][key]]
                curves.append(Curve(list(range(1, len(values) + 1)), values, f"{name}{words}", network, style=style))
    figure = panel(f"signal-{key}", f"{title} by depth", curves, "input of unit", label, log=True, whole=True)
    return Drawing(
        f"{title} by depth", figure, "The last point is the last unit's output. The plain twin is that at initialisation."
    )


def _jacobians(results: Mapping[str, Mapping[str, Any]]) -> Drawing:
    curves = []
    for network, (name, result) in enumerate(results.items()):
        depth = list(range(1, len(result["units"]) + 1))
        curves.append(Curve(depth, [value or None for value in result["trained"]["full"]], name, network, style="both"))
        if result["shortcuts"]:
            values = [value or None for value in result["trained"]["longest"]]
            curves.append(Curve(depth, values, f"{name}, product of Jacobians", network, style="dashed"))
    return Drawing(
        "Gradient, and the product of Jacobians",
        panel("signal-jacobians", "Gradient norm and product of Jacobians", curves, "input of unit", "norm of dE/dx", log=True,
              whole=True),
        "Norm of the gradient at each unit's input; dashed: of the part that passes all branches and no shortcut.",
    )  # fmt: skip


def read(results: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    how = (
        "With identity shortcuts the gradient at any depth is the one at the end plus a part through weights, so that it "
        "vanishes only where the sum's derivative is -1 (he2016, equation 5); a plain network has the product of Jacobians alone."
    )
    said = []
    for name, result in results.items():
        trained = result["trained"]
        if not result["shortcuts"]:
            said.append(f"{name} has no shortcuts, and so no direct term")
            continue
        broken = [(row["signal"], row["path"], row["why"]) for row in result["identities"] if row["signal"] is not None]
        worst = max(broken, default=(0.0, "", ""))
        exact = sum(value < ROUNDING for value, _, _ in broken)
        shares = [share for share in trained["direct_share"] if share is not None]
        mean = 100 * sum(shares) / len(shares) if shares else None
        joined = sum("merge Concat" in row["why"] for row in result["identities"])
        text = f"in {name} {percent(mean, 0)} of the gradient is direct, averaged over depth, and "
        if joined < len(result["units"]):
            text += f"{exact} of {len(result['units'])} units are exact identities plus a branch"
        if joined:
            other = len(result["units"]) - joined
            text += f"{', ' if other else 'all '}{joined} units concatenate, of which the identities of a sum are not asked"
        if worst[0] >= ROUNDING:
            text += f" (the farthest is {worst[1]}, off by {decimal(worst[0])}: {worst[2]})"
        if trained["sum_derivative"]:
            text += (
                f"; the sum's derivative is near -1 for {percent(100 * trained['sum_derivative']['near_minus_one'], 1)} of images"
            )
            text += " and depths"
        said.append(text)
    text = "; ".join(said) + "."
    return how, text[0].upper() + text[1:]
