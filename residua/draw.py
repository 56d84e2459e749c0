"""A network as a figure: the main way straight down, weight layers as boxes, skips as arcs coloured by kind. Pure functions.

After figure 3 of he2015: kernel, channels and stride in the boxes, the size of the maps on the left, and shortcuts that change
dimensions dotted. A figure has a natural size at which its texts have 11 to 14 pixels; it may be scaled. Layer 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from residua.errors import RequestError
from residua.flow import Flow
from residua.folding import folded
from residua.marks import legend_marks, network_marks
from residua.picture import GAP, Picture, picture
from residua.scheme import DrawnSkip, scheme
from residua.svg import document, text, text_width

__all__ = ["Portrait", "network_svg", "networks_svg"]

MOST_SIDE_BY_SIDE = 3
MOST_NODES = 64  # a network with more is folded unless asked otherwise
TITLE, MARGIN = 14, 16


@dataclass(frozen=True)
class Portrait:
    """A network to be drawn: its flow, the skips of its census by index, and what stands above it."""

    flow: Flow
    skips: Sequence[DrawnSkip]
    title: str = ""


def network_svg(flow: Flow, skips: Sequence[DrawnSkip], title: str = "", *, fold: bool | None = None) -> str:
    """The figure of one network as the text of an SVG file.

    `fold` draws a series of equal blocks once, with its number; None: where the network has more than 64 layers and merges.
    Every skip has an arc, an element of the class "skip" that lists the indices of the skips it stands for in `data-skips`;
    every box has the module path of its layer as its tooltip.
    """
    return networks_svg([Portrait(flow, skips, title)], fold=fold)


def networks_svg(portraits: Sequence[Portrait], *, fold: bool | None = None) -> str:
    """The figures of one to three networks side by side, with maps of one size at one height where all of them go from large to
    small maps, as in figure 3 of he2015. Raises RequestError for another number of networks; `fold` as in `network_svg`."""
    if not 1 <= len(portraits) <= MOST_SIDE_BY_SIDE:
        raise RequestError(f"One to {MOST_SIDE_BY_SIDE} networks can be drawn side by side, not {len(portraits)}.")
    pictures = [_picture(portrait, fold) for portrait in portraits]
    aligned = _aligned([part.sizes for part in pictures]) if len(pictures) > 1 else None
    if aligned is not None:
        _align(pictures, aligned)
    marks, x = [], float(MARGIN)
    top = MARGIN + (TITLE + 12 if any(portrait.title for portrait in portraits) else 0)
    height = max(part.height for part in pictures)
    for index, (part, portrait) in enumerate(zip(pictures, portraits)):
        shown = network_marks(part, sizes=aligned is None or not index, groups=len(pictures) == 1)
        left = part.margin if aligned is None or not index else 0
        room = max(left + part.width, text_width(portrait.title, TITLE) * 1.1)
        start = x + max(0.0, (room - left - part.width) / 2)
        marks.append(f'<g transform="translate({start + left:g} {top:g})">{"".join(shown)}</g>')
        if portrait.title:
            middle = min(max(start + left + part.centre, x + text_width(portrait.title, TITLE) * 0.55),
                         x + room - text_width(portrait.title, TITLE) * 0.55)  # fmt: skip
            marks.append(text(middle, MARGIN + TITLE - 2, portrait.title, size=TITLE, bold=True))
        x += room + 2 * GAP
    width = max(x - 2 * GAP + MARGIN, 300.0)
    kinds = {pair for part in pictures for pair in part.kinds}
    legend, legend_height = legend_marks(kinds, width - 2 * MARGIN)
    marks.append(f'<g transform="translate({MARGIN} {top + height + GAP:g})">{"".join(legend)}</g>')
    titles = ", ".join(portrait.title for portrait in portraits if portrait.title)
    return document(width, top + height + GAP + legend_height + MARGIN, titles or "network", marks, 11)


def _picture(portrait: Portrait, fold: bool | None) -> Picture:
    missing = [s.skip for s in portrait.flow.steps if s.kind == "choice" and not 0 <= (s.skip or 0) < len(portrait.skips)]
    if missing:
        raise RequestError(f"The flow has skip {missing[0]}, but only {len(portrait.skips)} skips are given to draw it.")
    drawn = scheme(portrait.flow, portrait.skips)
    if fold or (fold is None and len(drawn.nodes) > MOST_NODES):
        drawn = folded(drawn)
    return picture(drawn)


def _aligned(sequences: Sequence[Sequence[str]]) -> list[str] | None:
    """The sizes of all networks in one order that each of them follows; None where there is none, or where one repeats a size."""
    order: list[str] = []
    pending = [list(sequence) for sequence in sequences]
    if any(len(set(sequence)) < len(sequence) for sequence in sequences):
        return None
    while any(pending):
        heads = [sequence[0] for sequence in pending if sequence]
        free = [head for head in heads if not any(head in sequence[1:] for sequence in pending)]
        if not free:
            return None
        order.append(free[0])
        pending = [sequence[1:] if sequence and sequence[0] == free[0] else sequence for sequence in pending]
    return order


def _align(pictures: Sequence[Picture], order: Sequence[str]) -> None:
    """Gives each size the same height in all pictures."""
    heights = {size: max(part.heights.get(size, 0.0) for part in pictures) for size in order}
    for part in pictures:
        part.spread(order, heights)
