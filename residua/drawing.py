"""A unit as a figure: the branch on the left, the shortcut round it, the merge, what follows. SVG, drawn from the modules.

Layer 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from torch import nn

from residua.layers import Scale, Shift, Towers
from residua.shortcuts import ZeroPad
from residua.svg import COLOURS, LINE, arrow, document, line
from residua.unit import Add, Concat, Gate, SampledAdd, Unit

__all__ = ["unit_svg"]

BOX, GAP, SIDE, MARGIN = 26, 16, 26, 14
CHARACTER = 7.4  # mean width of a character at 13 pixels, in pixels
SIGNS = {Add: "+", SampledAdd: "b +", Concat: "[ ]", Gate: "T"}


@dataclass
class Figure:
    """A part of the drawing: its size, the place of the line that enters at the top and leaves at the bottom, and its marks,
    all relative to its upper left corner."""

    width: float
    height: float
    centre: float
    marks: list[str] = field(default_factory=list)

    def placed(self, x: float, y: float) -> str:
        """The marks as a group at (x, y)."""
        return f'<g transform="translate({x:g} {y:g})">{"".join(self.marks)}</g>'


def unit_svg(unit: nn.Module, title: str = "") -> str:
    """The figure of a unit (or of any module) as the text of an SVG file.

    Boxes name the layers with their kernel, channels and stride; the line at the right is the shortcut, unboxed where it is the
    identity; the circle is the merge: + addition, [ ] concatenation, T a gate, b + addition with a drawn factor.
    """
    body = figure(unit)
    top = MARGIN + (22 if title else 0)
    caption = 2 * MARGIN + CHARACTER * len(title)
    width, height = max(body.width + 2 * MARGIN, caption), body.height + top + MARGIN + 2 * GAP
    x = (width - body.width) / 2
    centre = x + body.centre
    parts = []
    if title:
        parts.append(f'<text x="{width / 2:g}" y="20" text-anchor="middle" font-weight="bold">{escape(title)}</text>')
    parts += [line(centre, top, centre, top + GAP), body.placed(x, top + GAP)]
    parts.append(arrow(centre, top + GAP + body.height, centre, height - MARGIN))
    return document(width, height, title or "unit", parts)


def figure(module: nn.Module) -> Figure:
    """The figure of a module: of a unit its four parts, of a chain its layers one under the other, of towers side by side."""
    if isinstance(module, Unit):
        return _unit(module)
    if isinstance(module, nn.Identity):
        return Figure(2, 0, 1)
    children = list(module.children())
    if isinstance(module, nn.Sequential):
        return stacked([part for part in map(figure, children) if part.height])
    if children and all(isinstance(child, nn.Sequential) for child in children):
        return _towers([figure(child) for child in children], "concatenate" if isinstance(module, Towers) else "add")
    return box(*label(module))


def label(module: nn.Module) -> tuple[str, str]:
    """What a box says of a layer, and its kind."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        kernel = "\u00d7".join(map(str, module.kernel_size))
        stride = f", /{module.stride[0]}" if module.stride[0] > 1 else ""
        groups = f", {module.groups} groups" if module.groups > 1 else ""
        return f"{kernel} conv, {module.out_channels}{groups}{stride}", "weights"
    if isinstance(module, nn.Linear):
        return f"linear, {module.out_features}", "weights"
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
        return "batch norm", "norm"
    if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
        return type(module).__name__.replace("Norm", " norm").lower(), "norm"
    if isinstance(module, (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU)):
        return type(module).__name__, "activation"
    if isinstance(module, (nn.Dropout, nn.Dropout2d)):
        return f"dropout {module.p:g}", "other"
    if isinstance(module, Scale):
        value = f" {module.weight.item():g}" if not module.weight.dim() else " one a channel"
        return f"\u00d7{value}", "other"
    if isinstance(module, Shift):
        return "+ bias", "other"
    if isinstance(module, ZeroPad):
        return f"zero-pad +{module.extra}" + (f", /{module.stride}" if module.stride > 1 else ""), "other"
    return type(module).__name__, "other"


def box(text: str, kind: str) -> Figure:
    """One layer."""
    width = max(70.0, CHARACTER * len(text) + 16)
    marks = [
        f'<rect width="{width:g}" height="{BOX}" rx="4" fill="{COLOURS[kind]}" stroke="{LINE}"/>',
        f'<text x="{width / 2:g}" y="{BOX / 2 + 4.5:g}" text-anchor="middle">{escape(text)}</text>',
    ]
    return Figure(width, BOX, width / 2, marks)


def stacked(parts: Sequence[Figure]) -> Figure:
    """Parts one under the other, joined by a line."""
    if not parts:
        return Figure(2, 0, 1)
    left = max(part.centre for part in parts)
    width = left + max(part.width - part.centre for part in parts)
    marks, y = [], 0.0
    for index, part in enumerate(parts):
        if index:
            marks.append(arrow(left, y, left, y + GAP))
            y += GAP
        marks.append(part.placed(left - part.centre, y))
        y += part.height
    return Figure(width, y, left, marks)


def _towers(parts: Sequence[Figure], joining: str) -> Figure:
    """Parts side by side, from one line to one box that says how they are joined."""
    width = sum(part.width for part in parts) + GAP * (len(parts) - 1)
    tallest, middle = max(part.height for part in parts), width / 2
    bottom = GAP + tallest + GAP
    marks, x, centres = [], 0.0, []
    for part in parts:
        centre = x + part.centre
        centres.append(centre)
        marks += [line(centre, 0, centre, GAP), part.placed(x, GAP), line(centre, GAP + part.height, centre, bottom)]
        x += part.width + GAP
    marks += [line(min(centres), 0, max(centres), 0), line(min(centres), bottom, max(centres), bottom)]
    joined = box(joining, "other")
    marks += [line(middle, bottom, middle, bottom + GAP), joined.placed(middle - joined.centre, bottom + GAP)]
    return Figure(width, bottom + GAP + BOX, middle, marks)


def _unit(unit: Unit) -> Figure:
    branch, post = figure(unit.branch), figure(unit.post)
    if unit.shortcut is None:
        return stacked([part for part in (branch, post) if part.height])
    way = figure(unit.shortcut)
    radius = 13
    split, merge = GAP / 2, GAP + branch.height + GAP + radius
    right = branch.width + SIDE + way.centre
    x = branch.centre
    marks = [
        line(x, 0, x, GAP),
        branch.placed(0, GAP),
        arrow(x, GAP + branch.height, x, merge - radius),
        f'<circle cx="{x:g}" cy="{split:g}" r="2.5" fill="{LINE}"/>',
        f'<path d="M{x:g} {split:g} H{right:g} V{merge:g} H{x + radius:g}" fill="none" stroke="{LINE}" stroke-width="1.4"/>',
        f'<path d="M{x + radius + 7:g} {merge - 4:g} L{x + radius:g} {merge:g} L{x + radius + 7:g} {merge + 4:g}" '
        f'stroke="{LINE}" stroke-width="1.4" fill="none"/>',
    ]
    if way.height:
        marks.append(way.placed(right - way.centre, GAP + (branch.height - way.height) / 2))
    sign = SIGNS.get(type(unit.merge), type(unit.merge).__name__)
    marks += [
        f'<circle cx="{x:g}" cy="{merge:g}" r="{radius}" fill="white" stroke="{LINE}"/>',
        f'<text x="{x:g}" y="{merge + 4.5:g}" text-anchor="middle">{escape(sign)}</text>',
    ]
    whole = Figure(max(branch.width, right + way.width - way.centre), merge + radius, x, marks)
    return stacked([whole, post]) if post.height else whole
