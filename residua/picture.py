"""One network on a plane: the places of its nodes in pixels, and the bands of equal resolution. Layer 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from residua.layout import Layout, layout
from residua.scheme import Node, Scheme, shared_path
from residua.svg import shortened, text_width

__all__ = ["GAP", "RADIUS", "SIZE", "BRACKET", "Picture", "height_of", "picture"]

SIZE, BOX, GAP, RADIUS = 11, 22, 16, 8
ARC = 15  # width of a lane that holds arcs only
BRACKET = 12 + 34  # room on the left of blocks that are drawn once: the bracket and the number


@dataclass
class Picture:
    """A network with the place of every node. `sizes` are those of the maps on the main way from top to bottom, `heights` how
    much each takes; `kinds` the (kind, way) of its skips; coordinates begin right of the sizes, at the top."""

    nodes: Sequence[Node]
    plan: Layout
    repeats: dict[int, int]
    bands: list[tuple[str, int, int]]  # size, first and last row
    across: dict[int, float] = field(default_factory=dict)  # lane -> x of its middle
    down: list[float] = field(default_factory=list)  # row -> y of its upper edge
    row_heights: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)  # room below each row
    leaving: dict[int, list[int]] = field(default_factory=dict)  # row -> nodes that ways beside the main one leave
    widths: list[float] = field(default_factory=list)
    width: float = 0
    height: float = 0
    edges: list[float] = field(default_factory=list)  # upper edge of each band

    @property
    def sizes(self) -> list[str]:
        return [size for size, _, _ in self.bands]

    @property
    def centre(self) -> float:
        return self.across[0]

    @property
    def margin(self) -> float:
        """Room for the sizes on the left."""
        texts = [text for (size, first, last) in self.bands for text in (size, self.group(first, last))]
        return max((text_width(content, SIZE) for content in texts), default=0) + 14

    @property
    def kinds(self) -> set[tuple[str, str]]:
        return {node.kinds for node in self.nodes if node.kind == "choice"}

    @property
    def heights(self) -> dict[str, float]:
        ends = [*self.edges[1:], self.height]
        return {size: end - start for (size, _, _), start, end in zip(self.bands, self.edges, ends)}

    def spread(self, order: Sequence[str], heights: Mapping[str, float]) -> None:
        """Moves each size to the place that it has where all sizes of `order` have the given heights."""
        places, y = {}, 0.0
        for size in order:
            places[size], y = y, y + heights[size]
        for index, (size, first, last) in enumerate(self.bands):
            shift = places[size] - self.edges[index]
            self.edges[index] = places[size]
            self.down[first : last + 1] = [value + shift for value in self.down[first : last + 1]]
        self.bands = [(size, *next(((a, b) for s, a, b in self.bands if s == size), (0, -1))) for size in order]
        self.edges, self.height = [places[size] for size in order], y

    def of_lane(self, lane: int) -> list[int]:
        """The nodes of a lane."""
        return [number for number, own in enumerate(self.plan.lanes) if own == lane]

    def middle(self, number: int) -> float:
        """The height of a node's middle."""
        row = self.plan.rows[number]
        return self.down[row] + self.row_heights[row] / 2

    def top(self, number: int) -> float:
        """A node's upper edge."""
        return self.middle(number) - height_of(self.nodes[number]) / 2

    def bottom(self, number: int) -> float:
        """A node's lower edge."""
        return self.middle(number) + height_of(self.nodes[number]) / 2

    def right(self, number: int) -> float:
        """A node's right edge."""
        x = self.across[self.plan.lanes[number]]
        return x + (RADIUS if self.nodes[number].kind == "choice" else self.widths[number] / 2)

    def split(self, number: int) -> float:
        """Where ways leave below a node: the nodes of one row at heights of their own."""
        row = self.plan.rows[number]
        return self.down[row] + self.row_heights[row] + 4 + 4 * self.leaving[row].index(number)

    def group(self, first: int, last: int) -> str:
        """The module path that the layers of a band share."""
        main = [self.nodes[number] for number in self.plan.main if first <= self.plan.rows[number] <= last]
        return shortened(shared_path([node.group for node in main]), 20)


def height_of(node: Node) -> float:
    """The height of a node's mark."""
    return 2 * RADIUS if node.kind == "choice" else 14 if node.kind == "source" else BOX


def _leaving(plan: Layout) -> dict[int, list[int]]:
    """For each row, the nodes that ways leave beside the main one, from left to right."""
    found: dict[int, list[int]] = {}
    for number in sorted({way.start for way in plan.ways if way.start is not None}, key=lambda number: plan.lanes[number]):
        found.setdefault(plan.rows[number], []).append(number)
    return found


def picture(drawn: Scheme) -> Picture:
    """A network at its natural size."""
    nodes = drawn.nodes
    plan = layout(nodes, drawn.output)
    counts = {repeat.number: repeat.count for repeat in drawn.repeats}
    found = Picture(nodes, plan, counts, _bands_of(nodes, plan))
    found.widths = [2 * RADIUS if node.kind == "choice" else text_width(node.text, SIZE) + 12 for node in nodes]
    _columns(found)
    rows = max(plan.rows) + 1
    found.row_heights = [0.0] * rows
    for number, row in enumerate(plan.rows):
        found.row_heights[row] = max(found.row_heights[row], height_of(nodes[number]))
    found.leaving = _leaving(plan)
    found.gaps = [GAP + 4 * max(0, len(found.leaving.get(row, ())) - 1) for row in range(rows)]
    y = GAP / 2
    starts = {first: index for index, (_, first, _) in enumerate(found.bands)}
    for row in range(rows):
        if row in starts:
            found.edges.append(y - GAP / 2 + (4 if row else 0))
            y += 4 if row else 0
        found.down.append(y)
        y += found.row_heights[row] + found.gaps[row]
    found.height = y + GAP / 2
    return found


def _bands_of(nodes: Sequence[Node], plan: Layout) -> list[tuple[str, int, int]]:
    """Runs of rows on whose main nodes the maps have one size: size, first and last row."""
    bands: list[tuple[str, int, int]] = []
    for number, size in zip(plan.main, _sizes([nodes[number] for number in plan.main])):
        row = plan.rows[number]
        if bands and (bands[-1][0] == size or not size):
            bands[-1] = (bands[-1][0], bands[-1][1], row)
        else:
            if bands:
                bands[-1] = (*bands[-1][:2], row - 1)
            bands.append((size, row if bands else 0, row))
    bands[-1] = (*bands[-1][:2], max(plan.rows))
    return bands


def _sizes(way: Sequence[Node]) -> list[str]:
    """The size of the maps on a way: [C, ...] without its channels, which a linear layer has last; "1" for the vectors at the
    end, "" for sequences [L, D], which keep the size of the maps that they were."""
    end = max((place for place, node in enumerate(way) if len(node.shape) != 1), default=-1)
    found, last = [], False
    for place, node in enumerate(way):
        last = node.detail.startswith("fc, ") if node.kind == "layer" else last
        if len(node.shape) > 2:
            found.append("×".join(map(str, node.shape[:-1] if last else node.shape[1:])))
        else:
            found.append("1" if place > end and len(node.shape) == 1 else "")
    return found


def _columns(found: Picture) -> None:
    """The middle of each lane, and the width of all."""
    lanes = max([0, *(way.lane for way in found.plan.ways)])
    x = 0.0
    for lane in range(lanes + 1):
        own = found.of_lane(lane)
        boxes = [number for number in own if found.nodes[number].kind in ("layer", "other", "join")]
        widest = max((found.widths[number] for number in own), default=0.0)
        for number in boxes:
            found.widths[number] = max(found.widths[box] for box in boxes)
        levels = max((len(found.nodes[number].folds) for number in own), default=0) if _opens(found, own, lane) else 0
        room = max(widest + 10 if own else ARC, ARC) + BRACKET * levels
        found.across[lane] = x + BRACKET * levels + (room - BRACKET * levels) / 2 + (6 if lane == 1 and not own else 0)
        x += room + (6 if lane == 1 and not own else 0)
    found.width = x + 4


def _opens(found: Picture, own: Sequence[int], lane: int) -> bool:
    """Whether a repeat has its bracket on the left of a lane."""
    for number in own:
        for fold in found.nodes[number].folds:
            if lane == min(found.plan.lanes[i] for i, node in enumerate(found.nodes) if fold in node.folds):
                return True
    return False
