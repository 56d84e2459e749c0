"""The marks of a drawing: boxes, merges, arcs, brackets, bands and the legend, at the places of a picture. Layer 3."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from html import escape

from residua.layout import Way
from residua.picture import BRACKET, GAP, RADIUS, SIZE, Picture, height_of
from residua.svg import COLOURS, LINE, arrow, text, text_width

__all__ = ["KINDS", "SIGNS", "WAYS", "legend_marks", "network_marks"]

# Okabe and Ito's colours, which the colour-blind tell apart.
KINDS = {
    "add": ("#0072B2", "addition"), "concatenate": ("#D55E00", "concatenation"),
    "gate": ("#009E73", "gate"), "index": ("#CC79A7", "pooling indices"),
}  # fmt: skip
WAYS = {
    "identity": ("", "identity"), "projection": ("1.5 3", "projection or change of dimensions"),
    "pooled": ("7 3", "pooled"), "scaled": ("9 2 2 2", "scaled"), "gated": ("12 3", "gated"), "dropped": ("1 6", "dropped"),
}  # fmt: skip
SIGNS = {"add": "+", "concatenate": "[ ]", "gate": "T", "index": "i"}


def network_marks(part: Picture, *, sizes: bool, groups: bool, bands: bool = True, backward: bool = False) -> list[str]:
    """All marks, from the back to the front.

    `bands` are the runs of one resolution, `sizes` their sizes on the left, `groups` the module paths below these; `backward`
    turns every arrow round: the ways of the gradient.
    """
    found = _bands(part, sizes, groups) if bands else []
    found += [mark for way in part.plan.ways for mark in _way(part, way, backward)]
    x, last = part.across[0], part.plan.main[-1]
    straight = [(part.bottom(above), part.top(below)) for above, below in itertools.pairwise(part.plan.main)]
    straight.append((part.bottom(last), part.bottom(last) + GAP))
    found += [arrow(x, end, x, start) if backward else arrow(x, start, x, end) for start, end in straight]
    found += [mark for number in range(len(part.nodes)) for mark in _node(part, number)]
    return found + [mark for number, count in part.repeats.items() for mark in _bracket(part, number, count)]


def _way(part: Picture, way: Way, backward: bool) -> list[str]:
    """A way beside the main one, with the dot where it leaves and the head where it ends (where it leaves, if backward)."""
    x = part.across[way.lane]
    end = part.nodes[way.end]
    colour, dash = LINE, ""
    attributes = ""
    if way.bypass:
        colour, dash = KINDS[end.kinds[0]][0], WAYS[end.kinds[1]][0]
        attributes = f' class="skip" data-skips="{" ".join(map(str, end.skips))}"'
    points: list[str] = []
    dots = []
    if way.start is not None:
        y, from_x = part.split(way.start), part.across[part.plan.lanes[way.start]]
        first = part.top(way.chain[0]) if way.chain else part.middle(way.end)
        bend = min(12.0, x - from_x, (first - y) / 2)
        points.append(f"M{from_x:g} {y:g} H{x - bend:g} Q{x:g} {y:g} {x:g} {y + bend:g}")
        points.append(f"V{first:g}" if way.chain else "")
        if part.plan.lanes[way.start]:
            points.insert(0, f"M{from_x:g} {part.bottom(way.start):g} V{y:g}")
        dots.append(f'<circle cx="{from_x:g}" cy="{y:g}" r="2" fill="{LINE}"/>')
    for above, below in zip(way.chain, way.chain[1:]):
        points.append(f"M{x:g} {part.bottom(above):g} V{part.top(below):g}")
    if way.end not in way.chain:
        y, right = part.middle(way.end), part.right(way.end)
        if way.chain:
            points.append(f"M{x:g} {part.bottom(way.chain[-1]):g}")
        elif way.start is None:
            points.append(f"M{x:g} {part.middle(way.end) - GAP:g}")
        bend = min(12.0, x - right - 8, y - (part.bottom(way.chain[-1]) if way.chain else y - 12))
        if not way.chain and way.start is not None:
            bend = min(12.0, x - right - 8, (y - part.split(way.start)) / 2)
        bend = max(bend, 0.0)
        points.append(f"V{y - bend:g} Q{x:g} {y:g} {x - bend:g} {y:g} H{right:g}")
    style = f' stroke-dasharray="{dash}"' if dash else ""
    marks = [
        f'<path{attributes} d="{" ".join(filter(None, points))}" fill="none" stroke="{colour}" '
        f'stroke-width="{1.8 if way.bypass else 1.2}"{style}/>'
    ]
    tip: tuple[float, float] | None = None
    if backward and way.start is not None:
        tip = part.across[part.plan.lanes[way.start]] + 2, part.split(way.start)
    elif not backward and way.end not in way.chain:
        tip = part.right(way.end), part.middle(way.end)
    if tip is not None:
        x, y = tip
        marks.append(
            f'<path d="M{x + 6:g} {y - 3.5:g} L{x:g} {y:g} L{x + 6:g} {y + 3.5:g}" fill="none" '
            f'stroke="{colour}" stroke-width="1.4"/>'
        )
    return marks + dots


def _node(part: Picture, number: int) -> list[str]:
    node, x, y = part.nodes[number], part.across[part.plan.lanes[number]], part.middle(number)
    note = f"<title>{escape(node.note)}</title>" if node.note else ""
    if node.kind == "choice":
        colour = KINDS[node.kinds[0]][0]
        return [
            f'<circle class="merge" cx="{x:g}" cy="{y:g}" r="{RADIUS}" fill="white" stroke="{colour}" stroke-width="1.6">'
            f"{note}</circle>",
            text(x, y + 4, SIGNS[node.kinds[0]], size=SIZE),
        ]
    if node.kind == "source":
        return [text(x, y + 4, node.text, size=SIZE)]
    width, height = part.widths[number], height_of(node)
    fill = COLOURS["weights"] if node.kind == "layer" else COLOURS["other"]
    return [
        f'<rect class="{node.kind}" x="{x - width / 2:g}" y="{y - height / 2:g}" width="{width:g}" height="{height:g}" rx="4" '
        f'fill="{fill}" stroke="{LINE}">{note}</rect>',
        text(x, y + 4, node.text, size=SIZE),
    ]


def _bracket(part: Picture, number: int, count: int) -> list[str]:
    inside = [index for index, node in enumerate(part.nodes) if number in node.folds]
    lane = min(part.plan.lanes[index] for index in inside)
    within = [index for index in inside if part.plan.lanes[index] == lane]
    deeper = max(len(part.nodes[index].folds) - 1 - part.nodes[index].folds.index(number) for index in within)
    x = part.across[lane] - max(part.widths[index] for index in part.of_lane(lane)) / 2 - 8 - BRACKET * deeper
    top, bottom = min(part.top(index) for index in inside) - 3, max(part.bottom(index) for index in inside) + 3
    return [
        f'<path d="M{x:g} {top:g} H{x - 5:g} V{bottom:g} H{x:g}" fill="none" stroke="{LINE}" stroke-width="1.2"/>',
        text(x - 8, (top + bottom) / 2 + 4, f"×{count}", size=12, anchor="end", bold=True),
    ]


def _bands(part: Picture, sizes: bool, groups: bool) -> list[str]:
    marks = []
    ends = [*part.edges[1:], part.height]
    for index, ((size, first, last), top, bottom) in enumerate(zip(part.bands, part.edges, ends)):
        left = -part.margin if sizes else -GAP
        if index % 2:
            marks.append(
                f'<rect class="stage" x="{left:g}" y="{top:g}" width="{part.width - left + GAP:g}" height="{bottom - top:g}" '
                f'fill="#f5f5f5"/>'
            )
        if sizes and size:
            marks.append(text(left + 4, top + 16, size, size=SIZE, anchor="start", fill="#555555"))
            group = part.group(first, last) if groups else ""
            if group and bottom - top > 34:
                marks.append(text(left + 4, top + 30, group, size=SIZE, anchor="start", fill="#777777"))
    return marks


def legend_marks(kinds: Collection[tuple[str, str]], width: float) -> tuple[list[str], float]:
    """What the colours and strokes that occur mean, in lines of at most `width` pixels; and the height that this takes."""
    colours = {kind: look for kind, look in KINDS.items() if kind in {kind for kind, _ in kinds}}
    strokes = {way: look for way, look in WAYS.items() if way in {way for _, way in kinds}}
    if len(colours) == 1:
        ((ink, kind),) = colours.values()
        entries = [(ink, dash, f"{kind}, {words}") for dash, words in strokes.values()]
    else:
        entries = [(colour, "", words) for colour, words in colours.values()]
        entries += [(LINE, dash, words) for dash, words in strokes.values()]
    marks, x, y = [], 0.0, 14.0
    for colour, dash, words in entries:
        room = 34 + text_width(words, SIZE) + 14
        if x and x + room > width:
            x, y = 0.0, y + 18
        style = f' stroke-dasharray="{dash}"' if dash else ""
        marks.append(f'<path d="M{x:g} {y - 4:g} H{x + 28:g}" stroke="{colour}" stroke-width="2" fill="none"{style}/>')
        marks.append(text(x + 34, y, words, size=SIZE, anchor="start"))
        x += room
    return marks, y + 6 if entries else 0.0
