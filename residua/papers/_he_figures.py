"""Figures of he2015, he2016 and veit2016: curves by panel, what analyses draw, units and networks. Layer 4."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count

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

__all__ = ["Draw", "analysed", "both", "by_depth", "by_split", "curves_of", "loss_and_error", "networks_drawn", "units_drawn"]

Draw = Callable[[Evidence], Sequence[Drawing]]
SIZE = (5.2, 3.6)
PRINTED_TOP, PRINTED_STEPS = 20.0, 20_000  # per cent, where the axes of he2015's figures 1 and 6 end; updates of a long training
FIRST = "the first seed of each network."


def curves_of(*panels: tuple[str, str, Mapping[str, str]], train: str = "thin") -> Draw:
    """One panel of error curves for each (name, title, {arm: label}): the first seed of each arm that has run, training in the
    style `train` ("thin", or "faint": thin and dashed) and test bold. Networks of one depth have one colour in all panels."""
    colours = by_depth([list(arms.values()) for _, _, arms in panels])

    def draw(evidence: Evidence) -> list[Drawing]:
        drawn = []
        for (name, title, arms), places in zip(panels, colours):
            curves = [
                curve
                for (arm, label), place in zip(arms.items(), places)
                for curve in (
                    *_curve(evidence, arm, "test_error", label, place),
                    *_curve(evidence, arm, "train_error", "", place, train),
                )
            ]
            if curves:
                style = "thin" if train == "thin" else "dashed"
                drawn.append(Drawing(title, _errors(name, title, curves), f"Training {style}, test bold; {FIRST}"))
        return drawn

    return draw


def by_split(name: str, arms: Mapping[str, str]) -> Draw:
    """Two panels, training error and test error, of the first seed of each arm (name: label), as figure 1 of he2015."""

    def draw(evidence: Evidence) -> list[Drawing]:
        drawn = []
        for split, title in (("train", "Training error"), ("test", "Test error")):
            curves = [
                curve
                for place, (arm, label) in enumerate(arms.items())
                for curve in _curve(evidence, arm, f"{split}_error", label, place)
            ]
            if curves:
                drawn.append(
                    Drawing(title, _errors(f"{name}-{split}", title, curves, f"{title.lower()} (%)"), FIRST.capitalize())
                )
        return drawn

    return draw


def loss_and_error(*panels: tuple[str, str, Mapping[str, str]]) -> Draw:
    """One panel for each (name, title, {arm: label}), as he2016 draws training: the training loss dashed, by the left axis, and
    the test error bold, by the right one; the first seed of each arm that has run."""

    def draw(evidence: Evidence) -> list[Drawing]:
        drawn = []
        for name, title, arms in panels:
            losses = [c for place, arm in enumerate(arms) for c in _curve(evidence, arm, "train_loss", "", place, "faint")]
            errors = [c for place, arm in enumerate(arms) for c in _curve(evidence, arm, "test_error", arms[arm], place)]
            if losses or errors:
                svg = panel(
                    name, title, losses, "updates", "training loss", size=SIZE, right=errors, right_label="test error (%)"
                )
                drawn.append(Drawing(title, svg, f"Training loss dashed (left), test error bold (right); {FIRST}"))
        return drawn

    return draw


def by_depth(panels: Sequence[Sequence[str]]) -> list[list[int]]:
    """The number of the colour of each label of each panel: one for all labels that end in the same number, and within a panel
    one for each label."""
    ends = {label: label[len(label.rstrip("0123456789")) :] or label for labels in panels for label in labels}
    known = {end: place for place, end in enumerate(dict.fromkeys(ends.values()))}
    found = []
    for labels in panels:
        taken: list[int] = []
        for label in labels:
            place = known[ends[label]]
            if place in taken:
                place = next(free for free in count(len(known)) if free not in taken)
            taken.append(place)
        found.append(taken)
    return found


def _curve(evidence: Evidence, arm: str, measure: str, label: str, place: int, style: str = "bold") -> list[Curve]:
    """The curve of a measure of the first seed of an arm, if it has one."""
    points = next(iter(evidence.curve(arm, measure)), [])
    if not points:
        return []
    x, y = thinned([float(step) for step, _ in points], [value for _, value in points], 80)
    return [Curve(x, y, label, place, style=style)]


def _errors(name: str, title: str, curves: Sequence[Curve], y_label: str = "error (%)") -> str:
    """A panel of errors: up to 20 % as in he2015 where trainings are as long as there and end well below that, else as far as
    they reach."""
    ends = [(curve.x[-1] or 0, curve.y[-1] or 0) for curve in curves]
    printed = all(steps >= PRINTED_STEPS and error < PRINTED_TOP - 2 for steps, error in ends)
    top = PRINTED_TOP if printed else None
    return panel(name, title, curves, "updates", y_label, size=SIZE, top=top)


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
