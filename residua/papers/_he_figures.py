"""Figures of he2015, he2016 and veit2016: curves by panel, what analyses draw, units and networks. Layer 4."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from residua.analysis import CATALOG
from residua.census import census
from residua.claims import Drawing, Evidence
from residua.draw import Portrait, networks_svg
from residua.drawing import unit_svg
from residua.graph import capture
from residua.models import create_model
from residua.panels import Curve, panel
from residua.plots import thinned
from residua.unit import walk

__all__ = ["Draw", "analysed", "both", "curves_of", "networks_drawn", "units_drawn"]

Draw = Callable[[Evidence], Sequence[Drawing]]


def curves_of(*panels: tuple[str, str, Mapping[str, str]], measure: str = "error") -> Draw:
    """One panel of training curves for each (name, title, {arm: label}): the first seed of each arm that has run."""
    words = "error (%)" if measure == "error" else "loss"

    def draw(evidence: Evidence) -> list[Drawing]:
        drawn = []
        for name, title, arms in panels:
            curves = [curve for place, arm in enumerate(arms) for curve in _pair(evidence, arm, arms[arm], place, measure)]
            if curves:
                svg = panel(name, title, curves, "updates", words, zero=measure == "error", size=(5.2, 3.6))
                drawn.append(Drawing(title, svg, "Training dashed, test solid; the first seed of each network."))
        return drawn

    return draw


def _pair(evidence: Evidence, arm: str, label: str, place: int, measure: str) -> list[Curve]:
    """The curves of training and test of one arm in one colour; one of them has the label."""
    found: list[Curve] = []
    for split, style in (("test", "line"), ("train", "dashed")):
        points = next(iter(evidence.curve(arm, f"{split}_{measure}")), [])
        if points:
            x, y = thinned([float(step) for step, _ in points], [value for _, value in points], 80)
            found.append(Curve(x, y, "" if found else label, place, style=style))
    return found


def analysed(analysis: str, arms: Mapping[str, str]) -> Draw:
    """What an analysis of the catalogue draws of the first seed of each of `arms` (name: label) that has been measured."""

    def draw(evidence: Evidence) -> list[Drawing]:
        found = {label: results[0] for arm, label in arms.items() if (results := evidence.measurement(arm, analysis))}
        return list(CATALOG.get(analysis).draw(found)) if found else []

    return draw


def both(*draws: Draw) -> Draw:
    """The figures of all, in order."""
    return lambda evidence: [drawing for draw in draws for drawing in draw(evidence)]


def units_drawn(caption: str, *units: tuple[str, str, int, Mapping[str, object]]) -> Draw:
    """Unit number `index` of each network, (title, name, index, options)."""

    def draw(evidence: Evidence) -> list[Drawing]:  # noqa: ARG001 (drawn from the code)
        drawn = []
        for title, name, index, options in units:
            with torch.random.fork_rng(devices=[]):
                unit: nn.Module = list(walk(create_model(name, **options)))[index].unit
            drawn.append(Drawing(title, unit_svg(unit, title), caption))
        return drawn

    return draw


def networks_drawn(title: str, caption: str, side: int, *names: str) -> Draw:
    """The networks side by side, as they are for colour images of `side` pixels."""

    def draw(evidence: Evidence) -> list[Drawing]:  # noqa: ARG001 (drawn from the code)
        portraits = []
        for name in names:
            with torch.random.fork_rng(devices=[]):
                network = create_model(name).eval()
            found = census(capture(network, torch.zeros(1, 3, side, side)), proof=False)
            portraits.append(Portrait(found.flow, found.skips, name))
        return [Drawing(title, networks_svg(portraits, fold=False), caption, wide=True)]

    return draw
