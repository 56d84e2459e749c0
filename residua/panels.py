"""Panels of the analyses: one colour a network; curves with bands over draws, points, and bars. Layer 1.

What `residua.plots` says of colours and inks holds here too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from residua.plots import INK, grid, shortened, styled, svg

__all__ = ["COLOURS", "Curve", "bars", "colour", "panel"]

COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#17becf", "#e377c2")
WEIGHTS = {"thin": 0.6, "faint": 0.9, "bold": 2.2}  # of lines, in points; 1.4 for all others
Series = Sequence[float | None]


@dataclass(frozen=True)
class Curve:
    """`y` over `x` in the colour of network `network` (its number among those that are drawn). `low` and `high` bound a band.

    `style`: "line", "thin", "bold", "points", "both", "dashed", or "faint" (thin and dashed). `ringed` are the numbers of the
    points that are drawn as rings (stage transitions, say). Places where a value is None are left out. Without a label a curve
    is not in the legend.
    """

    x: Series
    y: Series
    label: str = ""
    network: int = 0
    low: Series | None = None
    high: Series | None = None
    style: str = "line"
    ringed: Sequence[int] = ()


def colour(network: int) -> str:
    """The colour of a network by its number."""
    return COLOURS[network % len(COLOURS)]


def panel(
    name: str,
    title: str,
    curves: Sequence[Curve],
    x_label: str,
    y_label: str,
    *,
    log: bool = False,
    size: tuple[float, float] = (5.2, 3.3),
    zero: bool = True,
    whole: bool = False,
    levels: Mapping[str, float] | None = None,
    reverse: bool = False,
    top: float | None = None,
    ticks: Sequence[float] = (),
    right: Sequence[Curve] = (),
    right_label: str = "",
) -> str:
    """Curves over a common x axis, as SVG. `log`: a logarithmic y axis; `zero`: else it begins at 0; `whole`: the x axis has
    whole numbers only, `ticks`: these; `levels`: dotted horizontal lines with their names, unless they lie far above the
    curves; `reverse`: x falls from left to right; `top` ends the y axis; `right`: curves by an axis of their own on the right.
    """
    with styled():
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        for curve in curves:
            _draw(axes, curve)
        if log:
            axes.set_yscale("log")
            _number(axes)
        elif zero:
            axes.set_ylim(bottom=0)
        if top is not None:
            axes.set_ylim(top=top)
        for text, level in (levels or {}).items():
            low, high = axes.get_ylim()
            if not low <= level <= 2 * high:
                continue
            axes.set_ylim(top=max(high, 1.06 * level))
            axes.axhline(level, color=INK, alpha=0.55, linewidth=0.8, linestyle=(0, (1, 2)))
            axes.annotate(text, (1, level), (0, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
                          ha="right", fontsize=7.5, alpha=0.8)  # fmt: skip
        if whole:
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        if ticks:
            axes.set_xticks(ticks)
        if reverse:
            axes.invert_xaxis()
        axes.set(xlabel=x_label, ylabel=y_label)
        grid(axes)
        if right:
            other = axes.twinx()
            other.spines["right"].set_visible(True)
            for curve in right:
                _draw(other, curve)
            other.set_ylim(bottom=0)
            other.set_ylabel(right_label)
        labelled = [curve for curve in (*curves, *right) if curve.label]
        if labelled:
            figure.legend(loc="outside upper left", ncols=2 if len(labelled) > 1 else 1, handlelength=1.5)
        return svg(figure, name, title)


def bars(
    name: str,
    title: str,
    rows: Sequence[str],
    values: Mapping[str, Series],
    x_label: str,
    *,
    size: tuple[float, float] | None = None,
    zero_line: bool = True,
    row_label: str = "",
) -> str:
    """Horizontal bars, one group of networks a row, from top to bottom; texts of `rows` may come from a user."""
    with styled():
        height = 0.17 if len(rows) > 30 else 0.24
        figure = Figure(figsize=size or (5.2, 0.9 + height * len(rows) * max(1, 0.6 * len(values))))
        axes = figure.subplots()
        thick = 0.8 / max(1, len(values))
        for network, (label, series) in enumerate(values.items()):
            for place, value in enumerate(series):
                if value is not None and math.isfinite(value):
                    middle = place - 0.4 + thick * (network + 0.5)
                    axes.barh(middle, value, thick * 0.9, color=colour(network))[0].set_gid("bar")
            axes.barh(0, 0, 0, color=colour(network), label=shortened(label, 40))
        axes.set_yticks(range(len(rows)), [shortened(row, 30) for row in rows], fontsize=8 if len(rows) <= 30 else 6.5)
        axes.set(xlabel=x_label, ylabel=row_label, ylim=(len(rows) - 0.4, -0.6))
        if zero_line:
            axes.axvline(0, color=INK, linewidth=0.6)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        grid(axes)
        if len(values) > 1:
            axes.legend(loc="best", handlelength=1.2)
        return svg(figure, name, title, rows)


def _number(axes: Axes) -> None:
    """Plain numbers at the powers of ten of a logarithmic y axis, and between them where it spans little more than one."""
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(plain)
    low, high = axes.get_ylim()
    if high > 12 * low:
        axes.yaxis.set_minor_formatter(NullFormatter())
        return
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5) if high > 3 * low else range(2, 10)))
    axes.yaxis.set_minor_formatter(plain)


def _draw(axes: Axes, curve: Curve) -> None:
    ink = colour(curve.network)
    points = [
        (x, y, number)
        for number, (x, y) in enumerate(zip(curve.x, curve.y))
        if x is not None and y is not None and math.isfinite(y)
    ]
    if curve.low is not None and curve.high is not None:
        band = [row for row in zip(curve.x, curve.low, curve.high) if None not in row]
        xs, lows, highs = ([float(row[part] or 0.0) for row in band] for part in range(3))
        axes.fill_between(xs, lows, highs, color=ink, alpha=0.18, linewidth=0)
    lined = curve.style != "points"
    dots = curve.style in ("points", "both")
    (line,) = axes.plot(
        [p[0] for p in points], [p[1] for p in points], color=ink, linestyle="-" if lined else "",
        linewidth=WEIGHTS.get(curve.style, 1.4),
        marker="o" if dots or len(points) == 1 else None, markersize=2.6 if lined or len(points) > 40 else 3.2,
        alpha=1.0 if lined else 0.7, label=shortened(curve.label, 40) if curve.label else None, zorder=3,
    )  # fmt: skip
    if curve.style in ("dashed", "faint"):
        line.set_linestyle((0, (4, 2)))
    line.set_gid("curve")
    rings = [p for p in points if p[2] in set(curve.ringed)]
    axes.plot([p[0] for p in rings], [p[1] for p in rings], linestyle="", marker="o", markersize=6.5, color=ink,
              markerfacecolor="none", markeredgewidth=1.0, zorder=4)  # fmt: skip
