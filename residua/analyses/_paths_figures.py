"""Figures and sentences of the analysis `paths`. Layer 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from residua.analysis import Drawing
from residua.panels import Curve, panel
from residua.wording import counted, decimal, percent

__all__ = ["draw", "read"]

ALIKE = 0.05  # mean lengths that differ by less count as the same


def draw(results: Mapping[str, Mapping[str, Any]]) -> list[Drawing]:
    size, together, shares = [], [], []
    for network, (name, result) in enumerate(results.items()):
        lengths, norm, error = result["length"], result["norm"], result["standard_error"]
        positive = [value if value else None for value in norm]
        low = [max(n - e, 0.05 * n) if n and e else None for n, e in zip(norm, error)]
        high = [n + e if n and e else None for n, e in zip(norm, error)]
        size.append(Curve(lengths, positive, name, network, low=low, high=high, style="both"))
        if "sum_norm" in result:
            together.append(Curve(lengths, [value or None for value in result["sum_norm"]], name, network, style="both"))
        if result["choices"]:
            shares.append(Curve(lengths, result["share_of_gradient"], name, network, style="both"))
            shares.append(Curve(lengths, result["paths_of_length"], f"all paths of {name}", network, style="dashed"))
    drawings = [
        Drawing(
            "Gradient over one path",
            panel("paths-norm", "Gradient norm by path length", size, "path length in units", "gradient norm at the image",
                  log=True, whole=True),
            "Mean over paths of each length and over images; the band is one standard error.",
        ),
    ]  # fmt: skip
    if shares:
        drawings.append(
            Drawing(
                "Which lengths carry the gradient",
                panel("paths-share", "Share of the gradient by path length", shares, "path length in units", "share", whole=True),
                "The norm times the number of paths of the length, as a share of the sum over all lengths (veit2016, figure 6); "
                "dashed: the share of all paths that have the length.",
            )
        )
    if together:
        drawings.append(
            Drawing(
                "All paths of one length together",
                panel("paths-sum", "Norm of the summed gradient by path length", together, "path length in units",
                      "norm of the sum", log=True, whole=True),
                "The norm of the sum of the gradients over all paths of a length, exact: where it lies far below the norm times "
                "the number, paths cancel.",
            )
        )  # fmt: skip
    return drawings


def read(results: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    how = (
        "If every path handed on equally much gradient, the product of number and norm would follow the dashed curve: the "
        "further it lies to the left, the more the network trains like an ensemble of shallow ones (veit2016)."
    )
    said = []
    for name, result in results.items():
        if not result["choices"]:
            said.append(f"{name} has a single path, {counted(result['units'], 'unit')} long")
            continue
        reach = result["effective"]
        said.append(
            f"in {name} lengths {reach['from']} to {reach['to']} of {result['length'][0]} to {result['length'][-1]} carry "
            f"{percent(100 * reach['share'], 0)} of it and are {percent(100 * reach['share_of_paths'])} of all paths; the mean "
            f"length is {decimal(result['mean_effective_length'])} by gradient and {decimal(result['mean_length'])} by number, "
            f"so that the gradient comes over {_compared(result['mean_effective_length'], result['mean_length'])}"
        )
    text = "; ".join(said) + "."
    return how, text[0].upper() + text[1:]


def _compared(by_gradient: float, by_number: float) -> str:
    if by_gradient < (1 - ALIKE) * by_number:
        return "shorter paths than most are"
    return "longer paths than most are" if by_gradient > (1 + ALIKE) * by_number else "paths as long as most are"
