"""Plots as inline SVG: pure functions from data to text. Layer 1.

Colours are the field's own (matplotlib's tab10); of the curves of one network, training is thin and the measured split is
bold, as the papers draw them (he2015 figures 1, 4 and 6). Ink is `currentColor` and nothing lies behind the plot, so a plot
reads on a light page and on a dark one. Texts stay texts, and take the page's font.

Every plot has a `name` that no other plot of the page has: the ids inside the SVG begin with it.
"""

from __future__ import annotations

import io
import math
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

__all__ = ["Line", "class_counts", "confusion", "curves", "grid", "reliability", "shortened", "styled", "svg", "thinned"]

INK = "#010203"  # becomes currentColor
BLUE, ORANGE = "#1f77b4", "#ff7f0e"
MOST_POINTS = 1000
_TURNING = re.compile("[\u202a-\u202e\u2066-\u2069]")
LEAST = 0.74  # plots with a name a row shrink to this share of their width, and then scroll
_STYLE: Any = {
    "svg.fonttype": "none", "text.parse_math": False, "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0, "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4, "axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none",
    "figure.facecolor": "none", "savefig.facecolor": "none", "legend.frameon": False, "axes.unicode_minus": True,
    "axes.axisbelow": True,
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One curve: `y` over `x`; `bold` for the measured split, thin for training."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    bold: bool = True


def thinned(x: Sequence[float], y: Sequence[float], most: int = MOST_POINTS) -> tuple[list[float], list[float]]:
    """The curve by the means of equal buckets, at most `most` of them; points that are not finite are left out."""
    points = [(a, b) for a, b in zip(x, y) if math.isfinite(a) and math.isfinite(b)]
    size = max(1, -(-len(points) // most))
    buckets = [points[start : start + size] for start in range(0, len(points), size)]
    return [math.fsum(p[0] for p in b) / len(b) for b in buckets], [math.fsum(p[1] for p in b) / len(b) for b in buckets]


def curves(name: str, title: str, lines: Sequence[Line], x_label: str, y_label: str, *, log: bool | None = None) -> str:
    """Curves over a common x axis. `log` None: a logarithmic y axis where all values are positive and span a factor over 20."""
    with styled():
        figure = Figure(figsize=(5.2, 3.1), layout="constrained")
        axes = figure.subplots()
        drawn: list[float] = []
        for line in lines:
            x, y = thinned(line.x, line.y)
            drawn += y
            marker = "o" if len(x) == 1 or (line.bold and len(x) <= 40) else None
            (curve,) = axes.plot(
                x, y, color=BLUE, label=line.label, marker=marker, markersize=3.5, solid_capstyle="round",
                linewidth=2.2 if line.bold else 0.9, alpha=1.0 if line.bold else 0.65, zorder=3 if line.bold else 2,
            )  # fmt: skip
            curve.set_gid("curve")
        if log if log is not None else _wide(drawn):
            _logarithmic(axes, drawn)
        elif drawn and min(drawn) >= 0:
            axes.set_ylim(bottom=0)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.set_xlim(left=0)
        grid(axes)
        if len(lines) > 1:
            axes.legend(loc="best", handlelength=1.6)
        return svg(figure, name, title)


def class_counts(name: str, title: str, classes: Sequence[str], counts: Mapping[str, Sequence[int]]) -> str:
    """How many images each class has: one panel of bars a split, the classes from top to bottom."""
    with styled():
        row = 0.22 if len(classes) <= 25 else 0.16
        figure = Figure(figsize=(1.4 + 1.8 * len(counts), 0.55 + row * len(classes)))
        panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
        places = range(len(classes))
        for axes, (split, values) in zip(panels, counts.items()):
            for bar in axes.barh(places, values, height=0.72, color=BLUE):
                bar.set_gid("bar")
            for place, value in zip(places, values):
                axes.annotate(f"{value:,}", (value, place), (3, 0), textcoords="offset points", va="center",
                              fontsize=8 if row > 0.2 else 7)  # fmt: skip
            axes.set_title(f"{split} ({sum(values):,})", fontsize=9)
            axes.set_xlim(0, max([*values, 1]) * 1.25)
            axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
            axes.tick_params(axis="y", length=0)
            axes.spines[["left", "bottom"]].set_visible(False)
            axes.tick_params(axis="x", length=0, labelbottom=False)
        panels[0].set_yticks(list(places), [shortened(c, 22) for c in classes], fontsize=9 if row > 0.2 else 8)
        panels[0].set_ylim(len(classes) - 0.4, -0.6)
        figure.subplots_adjust(wspace=0.08)
        return svg(figure, name, title, classes)


def confusion(name: str, title: str, classes: Sequence[str], matrix: Sequence[Sequence[int]]) -> str:
    """The confusion matrix, a row a label: counts, blue by the row's share where right, orange by its square root where wrong."""
    with styled():
        side = max(2.2, 0.42 * len(classes) if len(classes) <= 14 else 0.34 * len(classes))
        figure = Figure(figsize=(side, side))
        axes = figure.subplots()
        for row, values in enumerate(matrix):
            total = sum(values)
            for column, value in enumerate(values):
                if value:
                    _cell(axes, row, column, value, value / total, 8.5 if len(classes) <= 14 else 7)
        names = [shortened(c, 16) for c in classes]
        upright = max(map(columns, names)) <= 3
        axes.set_xticks(range(len(names)), names, rotation=0 if upright else 45, ha="center" if upright else "right",
                        rotation_mode="anchor")  # fmt: skip
        axes.set_yticks(range(len(names)), names)
        edge = len(classes) - 0.5
        axes.set(xlim=(-0.5, edge), ylim=(edge, -0.5), xlabel="predicted", ylabel="label", aspect="equal")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        places = [place - 0.5 for place in range(len(classes) + 1)]
        for lines in (axes.hlines, axes.vlines):
            lines(places, -0.5, edge, color=INK, alpha=0.12, linewidth=0.5, zorder=0)
        return svg(figure, name, title, classes)


def reliability(name: str, title: str, bins: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy of the predictions of each confidence (bars) against the confidence itself (strokes), and how many they are."""
    with styled():
        figure = Figure(figsize=(4.2, 4.1), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
        upper.plot([0, 1], [0, 1], color=INK, alpha=0.5, linewidth=0.8, linestyle=(0, (4, 3)))
        total = sum(b["count"] for b in bins) or 1
        for b in (b for b in bins if b["count"]):
            middle, width = (b["low"] + b["high"]) / 2, 0.92 * (b["high"] - b["low"])
            for axes, height, kind in ((upper, b["accuracy"], "bar"), (lower, b["count"] / total, "share")):
                axes.bar(middle, height, width, color=BLUE, alpha=0.85)[0].set_gid(kind)
            upper.plot([middle - width / 2, middle + width / 2], [b["confidence"]] * 2, color=ORANGE, linewidth=2.2)
        upper.plot([], [], color=ORANGE, linewidth=2.2, label="stated confidence (mean)")
        upper.bar(0, 0, color=BLUE, alpha=0.85, label="how often right")
        figure.legend(loc="outside upper left", ncols=2, handlelength=1.4)
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        lower.set(xlabel="confidence of the prediction", ylabel="images", ylim=(0, None))
        lower.yaxis.set_major_locator(MaxNLocator(3))
        lower.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        for axes in (upper, lower):
            grid(axes)
        return svg(figure, name, title)


def columns(text: str) -> int:
    """How many columns a text takes in a fixed-width font: wide East Asian characters and emoji take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text)


def shortened(text: str, most: int) -> str:
    """The text on one line in at most `most` columns, an ellipsis for what is cut; control characters become spaces, and those
    that turn the direction of reading become visible."""
    text = _TURNING.sub("\N{REPLACEMENT CHARACTER}", text)
    text = " ".join("".join(c if unicodedata.category(c) not in ("Cc", "Cs") else " " for c in text).split())
    if columns(text) <= most:
        return text or "(empty)"
    while columns(text) >= most:
        text = text[: len(text) - max(1, (columns(text) - most) // 2)]
    return text.rstrip() + "…"


# ------------------------------------------------------------------------------------------------------------- drawing


def _cell(axes: Axes, row: int, column: int, value: int, share: float, size: float) -> None:
    right = row == column
    depth = 0.16 + 0.79 * (share if right else math.sqrt(share))
    face = Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=BLUE if right else ORANGE, alpha=depth, linewidth=0)
    face.set_gid("cell")
    axes.add_patch(face)
    dark = right and depth > 0.6
    axes.text(column, row, f"{value}", ha="center", va="center", color="white" if dark else INK,
              fontsize=size if value < 1000 else size - 1.5)  # fmt: skip


def _wide(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) > 20 * min(values)


def _logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic y axis with plain numbers, at 1, 2 and 5 of each decade where there are few."""
    if not values or min(values) <= 0:
        return
    axes.set_yscale("log")
    few = max(values) < 3000 * min(values)
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def grid(axes: Axes) -> None:
    """Faint lines behind a plot."""
    axes.grid(True, color=INK, alpha=0.12, linewidth=0.5)


@contextmanager
def styled() -> Iterator[None]:
    """The block in which a figure is made and written: fonts and inks of this module."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph")  # the page's font has what the measuring one lacks
        yield


def svg(figure: Figure, name: str, title: str, texts: Sequence[str] = ()) -> str:
    """The figure as an SVG element for an HTML page. `texts` may hold characters wider than the measuring font knows."""
    wide = max((sum(unicodedata.east_asian_width(c) in "WF" for c in shortened(text, 22)) for text in texts), default=0)
    box = {}
    if texts:  # the names stand on the left and, in a matrix, below
        left, bottom, right, top = figure.get_tightbbox().extents
        box["bbox_inches"] = Bbox.from_extents(left - 0.04 - 0.05 * wide, bottom - 0.04 - 0.05 * wide, right + 0.04, top + 0.04)
    written = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(written, format="svg", metadata=nothing, **box)  # type: ignore[arg-type]
    return _inlined(written.getvalue(), name, title, LEAST if texts else 0)


def _inlined(svg: str, name: str, title: str, least: float) -> str:
    """What a page needs of a stand-alone SVG: no prologue, no name spaces, ids that begin with `name` and only where used;
    it may shrink to `least` of its width."""
    root = ElementTree.fromstring(svg)
    used = {value[1:] for e in root.iter() for key, value in e.attrib.items() if key.endswith("href") and value[0] == "#"}
    used |= {value[5:-1] for e in root.iter() for value in e.attrib.values() if value.startswith("url(#")}
    for parent in root.iter():
        for child in [c for c in parent if c.tag.endswith(("}style", "}metadata"))]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            element.attrib.update(_attribute(key.rpartition("}")[2], value, name, used))
    root.attrib.pop("version", None)
    root.attrib.update({"role": "img", "aria-label": title, "stroke-linejoin": "round"})
    if least:
        root.set("style", f"min-width: {least * float(root.attrib['width'].removesuffix('pt')):.0f}pt")
    return ElementTree.tostring(root, encoding="unicode")


def _attribute(key: str, value: str, name: str, used: set[str]) -> dict[str, str]:
    if key == "id":
        return {"id": f"{name}-{value}"} if value in used else {"class": value.rstrip("0123456789").rstrip("_")}
    if key == "href" and value.startswith("#"):
        return {key: f"#{name}-{value[1:]}"}
    if key == "style":
        kept = [part for part in value.split("; ") if not part.startswith("font-family")]
        value = "; ".join(kept).replace(INK, "currentColor")
    return {key: value.replace("url(#", f"url(#{name}-").replace("\n", "")}
