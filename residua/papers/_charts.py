"""Figures of evidence in the form of the papers' own: curves of training, a measure by depth or size, means. Layer 4."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from torch import nn

from residua.analysis import CATALOG
from residua.claims import Drawing, Evidence
from residua.drawing import unit_svg
from residua.panels import Curve, bars, panel

__all__ = ["analysed", "by_parameters", "by_size", "compared", "training", "units"]

AXES = {
    "test_error": "test error (%)",
    "train_error": "training error (%)",
    "train_loss": "training loss",
    "test_loss": "test loss",
}

MOST_TICKS = 6  # so few depths or sizes are each named on the axis


def training(evidence: Evidence, arms: Mapping[str, str], name: str, title: str, measure: str = "error") -> list[Drawing]:
    """The first seed of each of `arms` (name of the arm: label): training thin, test bold, as he2015 draws them."""
    drawn: list[Curve] = []
    for network, (arm, label) in enumerate(arms.items()):
        for split, style in (("train", "thin"), ("test", "bold")):
            found = evidence.curve(arm, f"{split}_{measure}")
            if found and found[0]:
                steps, values = zip(*found[0])
                drawn.append(Curve(steps, values, label if split == "test" else "", network, style=style))
    if not drawn:
        return []
    svg = panel(name, title, drawn, "updates", "error (%)" if measure == "error" else "loss")
    return [Drawing(title, svg, "Training thin, test bold; the first seed of each network.")]


def by_size(
    evidence: Evidence,
    series: Mapping[str, Mapping[float, str]],
    measure: str,
    name: str,
    title: str,
    x_label: str,
    *,
    log: bool = False,
    whole: bool = False,
) -> list[Drawing]:
    """A measure over depth or size: one curve a family (label: {x: arm}), the mean of the seeds, with a band from the
    lowest to the highest."""
    drawn = []
    for network, (label, arms) in enumerate(series.items()):
        points = [(x, found) for x, arm in arms.items() if (found := evidence.values(arm, measure))]
        if points:
            xs = [x for x, _ in points]
            means = [statistics.mean(found) for _, found in points]
            low, high = [min(found) for _, found in points], [max(found) for _, found in points]
            drawn.append(Curve(xs, means, label, network, low, high, style="both"))
    if not drawn:
        return []
    places = sorted({float(x) for arms in series.values() for x in arms})
    ticks = places if whole and len(places) <= MOST_TICKS else ()
    svg = panel(name, title, drawn, x_label, AXES.get(measure, measure), log=log, whole=whole, ticks=ticks)
    return [Drawing(title, svg, "The mean of the seeds; the band reaches from the lowest to the highest.")]


def compared(evidence: Evidence, arms: Mapping[str, str], measures: Sequence[str], name: str, title: str) -> list[Drawing]:
    """The means of the seeds as bars, a row for each of `arms` (name of the arm: label) that has run."""
    shown = {arm: label for arm, label in arms.items() if any(evidence.values(arm, measure) for measure in measures)}
    if not shown:
        return []
    values = {AXES.get(measure, measure): [_mean(evidence.values(arm, measure)) for arm in shown] for measure in measures}
    label = AXES.get(measures[0], measures[0]) if len(measures) == 1 else "per cent"
    return [Drawing(title, bars(name, title, list(shown.values()), values, label), "Means of the seeds.")]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None


def by_parameters(evidence: Evidence, series: Mapping[str, Sequence[str]], name: str, title: str) -> list[Drawing]:
    """The test error over the parameters: one curve a family (label: arms)."""
    drawn = []
    for network, (label, arms) in enumerate(series.items()):
        points = sorted(
            (sizes[0], statistics.mean(errors))
            for arm in arms
            if (sizes := evidence.values(arm, "parameters")) and (errors := evidence.values(arm, "test_error"))
        )
        if points:
            drawn.append(Curve([size for size, _ in points], [error for _, error in points], label, network, style="both"))
    if not drawn:
        return []
    return [Drawing(title, panel(name, title, drawn, "parameters", AXES["test_error"]), "Means of the seeds.")]


def units(parts: Mapping[str, nn.Module]) -> list[Drawing]:
    """Units (title: module), drawn from the code."""
    return [
        Drawing(title, unit_svg(module, title), "Drawn from the modules that are trained.") for title, module in parts.items()
    ]


def analysed(evidence: Evidence, analysis: str, arms: Sequence[str]) -> list[Drawing]:
    """What an analysis of the catalogue draws of the first seed of each of `arms` that has been measured."""
    found = {arm: results[0] for arm in arms if (results := evidence.measurement(arm, analysis))}
    return list(CATALOG.get(analysis).draw(found)) if found else []
