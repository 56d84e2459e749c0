"""One unit with its forward and its backward ways, and a few units unravelled into their 2^n paths. Layer 3.

y = h(x) + F(x)      dE/dx = dE/dy (dh/dx + dF/dx):   the direct term, and the term through the weights (he2016 section 2)
y_3 = y_2 + f_3(y_2) = y_1 + f_2(y_1) + f_3(y_1 + f_2(y_1)) = ...                   (veit2016 section 3.1 and figure 1)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import comb

from residua.errors import RequestError
from residua.flow import Flow, Step
from residua.folding import dominators
from residua.marks import KINDS, SIGNS, network_marks
from residua.picture import picture
from residua.scheme import DrawnSkip, scheme, shared_path
from residua.svg import COLOURS, LINE, document, line, shortened, text, text_width

__all__ = ["unit_ways_svg", "unravelled_svg"]

MOST_UNITS = 5
MARGIN, SIZE, RADIUS = 16, 12, 9
# What the bypass makes of x, and its derivative.
BYPASS = {
    "identity": ("x", "1"), "projection": ("W x", "W"), "pooled": ("P x", "P"), "scaled": ("s x", "s"),
    "gated": ("G x", "G"), "dropped": ("b x", "b"),
}  # fmt: skip


def unit_ways_svg(flow: Flow, skips: Sequence[DrawnSkip], skip: int, title: str = "") -> str:
    """One unit twice: on the left what it computes, from top to bottom, on the right how the gradient returns, from bottom to
    top, over the direct way (coloured) and through the weights. The equations of both stand below.

    `skip` is the index of its skip. Raises RequestError for a skip that the flow does not have, and for one whose ways do not
    part at one place.
    """
    merge = next((number for number, step in enumerate(flow.steps) if step.kind == "choice" and step.skip == skip), None)
    if merge is None or not 0 <= skip < len(skips):
        raise RequestError(f"There is no skip {skip} to draw; the network has {len(skips)}, counted from 0.")
    source = dominators([step.inputs for step in flow.steps])[merge]
    if source < 0:
        raise RequestError(f"The ways of skip {skip} begin at different inputs of the network, so that it is no unit.")
    kept = [source, *_between(flow, source, merge)]
    place = {number: index for index, number in enumerate(kept)}
    steps = [Step("source", (), "x", shape=flow.steps[source].shape)]
    steps += [replace(flow.steps[n], inputs=tuple(place[i] for i in flow.steps[n].inputs)) for n in kept[1:]]
    part = picture(scheme(Flow(tuple(steps), len(steps) - 1), skips))
    forward, backward = _equations(skips[skip])
    panels = (("forward", forward, False), ("backward", backward, True))
    room = max(part.width, *(text_width(words, SIZE) for _, lines, _ in panels for words in lines)) + 2 * MARGIN
    top = MARGIN + (28 if title else 4)
    marks = [text(room, MARGIN + 12, title, size=14, bold=True)] if title else []
    for index, (name, lines, reverse) in enumerate(panels):
        x = index * room
        marks.append(text(x + room / 2, top + 12, name, size=SIZE, bold=True))
        inner = network_marks(part, sizes=False, groups=False, bands=False, backward=reverse)
        marks.append(f'<g transform="translate({x + (room - part.width) / 2:g} {top + 20:g})">{"".join(inner)}</g>')
        for row, words in enumerate(lines):
            marks.append(text(x + room / 2, top + 20 + part.height + 22 + 18 * row, words, size=SIZE))
    colour = KINDS[skips[skip].kind][0]
    y = top + 20 + part.height + 22 + 18 * 2 + 12
    for x, ink, words in ((MARGIN, colour, "direct term"), (MARGIN + 120, LINE, "term through the weights")):
        marks += [line(x, y - 4, x + 24, y - 4, ink), text(x + 30, y, words, size=SIZE, anchor="start")]
    return document(max(2 * room, 330), y + MARGIN, title or "unit", marks, SIZE)


def _between(flow: Flow, source: int, merge: int) -> list[int]:
    """The steps on the ways from `source` to `merge`, that included, in order."""
    found, pending = {merge}, [merge]
    while pending:
        new = [number for number in flow.steps[pending.pop()].inputs if number != source and number not in found]
        found.update(new)
        pending += new
    return sorted(found)


def _equations(skip: DrawnSkip) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the unit computes, and its gradient."""
    h, slope = BYPASS[skip.way]
    if skip.kind == "gate":
        return ("y = T F(x) + (1 − T) x",), ("∂E/∂x = ∂E/∂y (1 − T)", "+ ∂E/∂y (T ∂F/∂x + (F − x) ∂T/∂x)")
    if skip.kind == "concatenate":
        return (f"y = [{h}, F(x)]",), (f"∂E/∂x = ∂E/∂y₁ · {slope} + ∂E/∂y₂ · ∂F/∂x", "y₁ and y₂: the two parts of y")
    if skip.kind == "index":
        return ("y = F(x) at the positions p(x)",), ("∂E/∂x = ∂E/∂y · ∂F/∂x", "positions carry no gradient")
    return (f"y = {h} + F(x)",), (f"∂E/∂x = ∂E/∂y · {slope} + ∂E/∂y · ∂F/∂x",)


def unravelled_svg(flow: Flow, skips: Sequence[DrawnSkip], *, first: int = 0, units: int = 3, title: str = "") -> str:
    """`units` units in series, counted from skip `first`, above as they are built and below as the sum of their 2^units paths.

    Each row begins with a copy of the input; the units that its path takes stand at its left. Raises RequestError where fewer
    units follow one another than asked for, or more than 5 are asked for.
    """
    if not 1 <= units <= MOST_UNITS:
        raise RequestError(f"One to {MOST_UNITS} units can be unravelled in one figure (2^{MOST_UNITS} paths), not {units}.")
    chain = _series(flow, first, units)
    kinds = [skips[flow.steps[number].skip or 0].kind for number in chain]
    label = max(text_width(_taken((1 << units) - 1), SIZE), text_width("input", SIZE)) + 14
    step, row = 104.0, 30.0
    left = MARGIN + label
    heading = MARGIN + (28 if title else 0)
    series = heading + 34
    marks = [text(left + units * step / 2, MARGIN + 12, title, size=14, bold=True)] if title else []
    marks.append(text(left - 10, series + 4, "input", size=SIZE, anchor="end"))
    for index, kind in enumerate(kinds):
        marks += _unit(left + index * step, series, series - 24, index, step, kind)
    marks.append(_arrow(left + units * step, series, 22))
    top = series + 44
    counts = ", ".join(str(comb(units, length)) for length in range(units + 1))
    marks.append(
        text(MARGIN, top, f"2^{units} = {1 << units} paths; through 0 to {units} units: {counts}", size=SIZE, anchor="start")
    )
    top += 28
    for path in range(1 << units):
        y = top + row * path
        marks.append(f'<g class="path">{text(left - 10, y + 4, _taken(path), size=SIZE, anchor="end")}</g>')
    for index, kind in enumerate(kinds):
        for start in range(0, 1 << units, 2 << index):
            upper, lower = top + row * start, top + row * (start + (1 << index))
            marks += _unit(left + index * step, upper, lower, index, step, kind)
    marks.append(_arrow(left + units * step, top, 22))
    bottom = top + row * (1 << units)
    above = dominators([step.inputs for step in flow.steps])[chain[0]]
    places = [f"f{index}: {_place(flow, *ends)}" for index, ends in enumerate(zip([above, *chain], chain), 1)]
    for index, words in enumerate(places):
        marks.append(text(MARGIN, bottom + 6 + 18 * index, words, size=SIZE, anchor="start", fill="#555555"))
    named = max(text_width(words, SIZE) for words in places)
    width = max(left + units * step + 22, text_width(title, 14) * 1.1, MARGIN + named,
                MARGIN + text_width(f"2^{units} = {1 << units} paths; through 0 to {units} units: {counts}", SIZE))  # fmt: skip
    return document(width + MARGIN, bottom + 18 * units + MARGIN, title or "unravelled units", marks, SIZE)


def _series(flow: Flow, first: int, units: int) -> list[int]:
    """The merges of `units` units that follow one another, from that of skip `first` on."""
    above = dominators([step.inputs for step in flow.steps])
    start = next((number for number, step in enumerate(flow.steps) if step.kind == "choice" and step.skip == first), None)
    if start is None:
        raise RequestError(f"The network has no skip {first} to begin with.")
    chain = [start]
    for number in range(start + 1, len(flow.steps)):
        step = flow.steps[number]
        inside = _between(flow, chain[-1], number) if step.kind == "choice" and above[number] == chain[-1] else []
        if inside and len(chain) < units and not any(flow.steps[n].kind == "choice" for n in inside[:-1]):
            chain.append(number)
    if len(chain) < units:
        raise RequestError(
            f"Only {len(chain)} units follow one another from skip {first} on, not {units}: begin elsewhere, or ask for fewer."
        )
    return chain


def _place(flow: Flow, source: int, merge: int) -> str:
    """The module path that the layers of a unit share, or where it merges."""
    steps = [flow.steps[number] for number in _between(flow, source, merge)]
    return shortened(shared_path([step.label for step in steps]) or steps[-1].label, 40)


def _taken(path: int) -> str:
    """The units that a path takes; its number in binary says which."""
    return " ".join(f"f{index + 1}" for index in range(MOST_UNITS) if path >> index & 1) or "none"


def _unit(x: float, upper: float, lower: float, index: int, step: float, kind: str) -> list[str]:
    """A merge at the right end of a column: the bypass comes straight along one row, the branch through f along the other.

    In the series the bypass is the arc above (`lower` < `upper`); unravelled, the branch has a row of its own below.
    """
    end, colour = x + step - RADIUS - 6, KINDS[kind][0]
    arc = lower < upper
    branch = upper if arc else lower
    words = f"f{index + 1}"
    width = 40.0
    box = x + 20
    rise = f"M{x + 4:g} {upper:g} V{lower + 8:g} Q{x + 4:g} {lower:g} {x + 12:g} {lower:g}"
    fall = f"H{end - 8:g} Q{end:g} {lower:g} {end:g} {lower + 8:g} V{upper - RADIUS:g}"
    bypass = f"{rise} {fall}" if arc else f"M{x:g} {upper:g} H{end - RADIUS:g}"
    marks = [
        f'<path class="bypass" d="{bypass}" fill="none" stroke="{colour}" stroke-width="1.8"/>',
        line(x, branch, box, branch),
        f'<rect class="branch" x="{box:g}" y="{branch - 11:g}" width="{width:g}" height="22" rx="4" '
        f'fill="{COLOURS["weights"]}" stroke="{LINE}"/>',
        text(box + width / 2, branch + 4, words, size=SIZE),
    ]
    if arc:
        marks.append(line(box + width, branch, end - RADIUS, branch))
    else:
        marks.append(
            f'<path d="M{box + width:g} {lower:g} H{end - 8:g} Q{end:g} {lower:g} {end:g} {lower - 8:g} V{upper + RADIUS:g}" '
            f'fill="none" stroke="{LINE}" stroke-width="1.4"/>'
        )
    marks += [
        f'<circle class="merge" cx="{end:g}" cy="{upper:g}" r="{RADIUS}" fill="white" stroke="{colour}" stroke-width="1.6"/>',
        text(end, upper + 4, SIGNS[kind], size=SIZE),
        line(end + RADIUS, upper, x + step, upper),
    ]
    return marks


def _arrow(x: float, y: float, length: float) -> str:
    """An arrow to the right."""
    end = x + length - 4
    return line(x, y, end, y) + line(end - 6, y - 4, end, y) + line(end - 6, y + 4, end, y)
