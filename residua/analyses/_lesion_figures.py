"""The figures of the lesion study, and what they say. Layer 3."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping
from typing import Any

from residua.analysis import Drawing
from residua.panels import Curve, panel
from residua.wording import percent

__all__: list[str] = []

Results = Mapping[str, Mapping[str, Any]]


def draw(results: Results) -> list[Drawing]:
    """One figure for single lesions, one for k at once, one for swaps where there are any."""
    alike = len({(result["kind"], len(result["single"])) for result in results.values()}) == 1
    figures = [_single(results, alike), _random(results, alike)]
    return [*figures, _swaps(results)] if any(result["swaps"] for result in results.values()) else figures


def read(results: Results) -> tuple[str, str]:
    """What to look for, and what these numbers say."""
    how = (
        "A residual network loses little with any one unit but those at the stage transitions, and its error grows smoothly with "
        "the number of units that are off or out of order, while a plain network breaks with any one layer (veit2016)."
    )
    said = []
    for name, result in results.items():
        worst = max(result["single"], key=lambda row: row["error"])
        edges = [row["error"] for row in result["single"] if row["transition"]]
        inner = [row["error"] for row in result["single"] if not row["transition"]]
        text = f"in {name} the error of {percent(result['baseline'], 1)} becomes"
        if inner:
            middle = percent(statistics.median(inner), 1)
            text += f" {middle} (median) without one of {len(inner)} {_things(result)} inside a stage"
        if edges:
            text += f"{' and' if inner else ''} {percent(statistics.median(edges), 1)} without one at a transition"
        said.append(f"{text}, at worst {percent(worst['error'], 1)} ({worst['path']})")
    sentence = "; ".join(said) + "."
    return how, sentence[0].upper() + sentence[1:]


def _things(result: Mapping[str, Any]) -> str:
    return str(result["kind"])


def _single(results: Results, alike: bool) -> Drawing:
    curves = []
    for network, (name, result) in enumerate(results.items()):
        rows = result["single"]
        xs = [number + 1 if alike else 100 * (number + 0.5) / len(rows) for number in range(len(rows))]
        ringed = [number for number, row in enumerate(rows) if row["transition"]]
        curves.append(Curve(xs, [row["error"] for row in rows], f"{name}, one {_things(result)[:-1]} less", network, style="both",
                            ringed=ringed))  # fmt: skip
        ends = [xs[0], xs[-1]] if len(xs) > 1 else [xs[0] - 0.5, xs[0] + 0.5]
        curves.append(Curve(ends, [result["baseline"]] * 2, "", network, style="dashed"))
    kinds = {_things(result) for result in results.values()}
    label = f"{kinds.pop()[:-1]} that is damaged" if alike else "place in the network, % of its units or layers"
    return Drawing(
        "One at a time",
        panel("lesion-single", "Error after single lesions", curves, label, "error, %", whole=alike, levels=_chance(results)),
        "Rings: stage transitions, where the shape changes. Dashed: the undamaged network."
        + ("" if not any(result["kind"] == "layers" for result in results.values())
           else " Plain layers are removed where they keep their shape, and zero elsewhere."),
    )  # fmt: skip


def _random(results: Results, alike: bool) -> Drawing:
    curves = []
    for network, (name, result) in enumerate(results.items()):
        rows = [{"k": 0, "median": result["baseline"], "q1": result["baseline"], "q3": result["baseline"]}, *result["random"]]
        xs = [row["k"] if alike else 100 * row["k"] / len(result["single"]) for row in rows]
        low, middle, high = ([row[key] for row in rows] for key in ("q1", "median", "q3"))
        curves.append(Curve(xs, middle, name, network, low, high, style="both"))
    kinds = {_things(result) for result in results.values()}
    label = f"random {kinds.pop()} off at once" if alike else "units or layers off at once, % of all"
    return Drawing(
        "Several at a time",
        panel("lesion-random", "Error after several lesions at once", curves, label, "error, %", levels=_chance(results),
              whole=alike),
        f"Median over {_draws(results)} random draws of each number; the band holds the middle half of the draws.",
    )  # fmt: skip


def _swaps(results: Results) -> Drawing:
    curves = []
    for network, (name, result) in enumerate(results.items()):
        rows = result["swaps"]
        if rows:
            curves.append(Curve([row["tau"] for row in rows], [row["error"] for row in rows], name, network, style="points"))
            bins = _binned(rows, result["baseline"])
            curves.append(Curve([tau for tau, _ in bins], [error for _, error in bins], "", network))
    return Drawing(
        "Swapped",
        panel("lesion-swaps", "Error after swaps, by Kendall's tau", curves, "Kendall's tau of the order (1: as trained)",
              "error, %", levels=_chance(results), reverse=True),
        "Each point is one draw of pairs of units of a stage that change places; the line joins their medians.",
    )  # fmt: skip


def _binned(rows: list[dict[str, Any]], baseline: float, most: int = 10) -> list[tuple[float, float]]:
    """Medians of the error over draws of one tau, or over equal numbers of draws where there are too many taus."""
    ordered = sorted(rows, key=lambda row: -row["tau"])
    parts = [list(group) for _, group in itertools.groupby(ordered, key=lambda row: row["tau"])]
    if len(parts) > most:
        size = -(-len(ordered) // most)
        parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    medians = [(statistics.median(r["tau"] for r in part), statistics.median(r["error"] for r in part)) for part in parts]
    return [(1.0, baseline), *medians]


def _draws(results: Results) -> str:
    return " and ".join(sorted({str(result["used"]["draws"]) for result in results.values()}))


def _chance(results: Results) -> dict[str, float]:
    levels = {round(result["chance"], 1) for result in results.values()}
    return {"the most frequent class": levels.pop()} if len(levels) == 1 else {}
