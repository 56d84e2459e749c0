"""Where the nodes of a drawing stand: rows from top to bottom, the main way in lane 0, all other ways in lanes to its right.

The main way follows, backwards from the output, the branch of every skip and the longest way into every join. Each other way, a
chain of nodes or a bare connection, has a lane of its own over the rows that it spans; short ones are nearer. Layer 3.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field

from residua.scheme import Node

__all__ = ["Layout", "Way", "layout"]


@dataclass
class Way:
    """What leads from node `start` (None: it begins with a source) through the nodes of `chain`, all in `lane`, to node `end`;
    `bypass` says that it is the bypass of the skip that merges at `end`."""

    start: int | None
    chain: list[int]
    end: int
    bypass: bool
    lane: int = 0


@dataclass
class Layout:
    """Row and lane of each node; `main` the nodes of lane 0 from top to bottom; the ways beside it."""

    rows: list[int]
    lanes: list[int]
    main: list[int]
    ways: list[Way] = field(default_factory=list)


def layout(nodes: Sequence[Node], output: int) -> Layout:
    """The places of all nodes. No two nodes share a row of a lane, and no way runs through a node of another one."""
    inputs = [node.inputs for node in nodes]
    longest = _longest(nodes)
    main = _main(nodes, output, longest)
    ways = _ways(nodes, main, longest)
    later: list[tuple[int, int]] = []  # pairs of nodes that may not share a row, the first of them above
    while True:
        rows = _rows(inputs, later)
        lanes = _lanes(ways, main, rows)
        blocking = _blocking(ways, rows, lanes)
        if not blocking:
            return Layout(rows, lanes, main, ways)
        later += blocking


def _longest(nodes: Sequence[Node]) -> list[int]:
    """The number of layers on the longest way to each node, itself included."""
    found: list[int] = []
    for node in nodes:
        found.append(max((found[source] for source in node.inputs), default=0) + (node.kind == "layer"))
    return found


def _ahead(node: Node, longest: Sequence[int]) -> int:
    """Which input the way to a node comes from, seen backwards."""
    return node.inputs[1] if node.kind == "choice" else max(node.inputs, key=lambda source: longest[source])


def _main(nodes: Sequence[Node], output: int, longest: Sequence[int]) -> list[int]:
    way = [output]
    while nodes[way[-1]].inputs:
        way.append(_ahead(nodes[way[-1]], longest))
    return way[::-1]


def _ways(nodes: Sequence[Node], main: Sequence[int], longest: Sequence[int]) -> list[Way]:
    """The ways beside the main one, each from a node that stands on it or on a way before it in the list. What nothing reads
    hangs below the node that it comes from: such a way ends on its own chain."""
    placed = set(main)
    done = set(itertools.pairwise(main))  # connections that are drawn straight

    def backwards(head: int) -> tuple[int | None, list[int]]:
        chain: list[int] = []
        while head not in placed:
            placed.add(head)
            chain.append(head)
            if not nodes[head].inputs:
                return None, chain[::-1]
            before = _ahead(nodes[head], longest)
            done.add((before, head))
            head = before
        return head, chain[::-1]

    ways: list[Way] = []
    pending = list(main)
    read = {source for node in nodes for source in node.inputs}
    dead = [number for number in range(len(nodes)) if number not in read]
    while pending or dead:
        if not pending:
            last = dead.pop()
            if last not in placed:
                start, chain = backwards(last)
                ways.append(Way(start, chain, last, False))
                pending += chain
            continue
        end = pending.pop()
        for place, source in enumerate(nodes[end].inputs):
            if (source, end) not in done:
                start, chain = backwards(source)
                ways.append(Way(start, chain, end, nodes[end].kind == "choice" and place == 0))
                pending += chain
    return ways


def _rows(inputs: Sequence[Sequence[int]], later: Sequence[tuple[int, int]]) -> list[int]:
    """The longest way from the top to each node; a source that others precede stands right above its first reader."""
    above: list[list[int]] = [list(sources) for sources in inputs]
    for first, second in later:
        above[second].append(first)
    rows = [-1] * len(inputs)

    def place(number: int) -> None:
        stack = [number]
        while stack:
            top = stack[-1]
            missing = [source for source in above[top] if rows[source] < 0]
            if missing:
                stack += missing
            else:
                rows[top] = max((rows[source] + 1 for source in above[top]), default=0)
                stack.pop()

    for number in range(len(inputs)):
        place(number)
    first_reader: dict[int, int] = {}
    for number, sources in enumerate(inputs):
        for source in sources:
            first_reader[source] = min(first_reader.get(source, len(rows) + 1), rows[number])
    lowered = {number: row - 1 for number, row in first_reader.items() if not inputs[number] and row > 1}
    forced = {first for first, _ in later}
    for number, row in lowered.items():
        if number not in forced:
            rows[number] = max(rows[number], row)
    return rows


def _lanes(ways: Sequence[Way], main: Sequence[int], rows: Sequence[int]) -> list[int]:
    """The lane of each node. A way's lane is right of the lanes of its ends, and free over the rows from one to the other."""
    home: dict[int, int] = dict.fromkeys(main, -1)  # the way on whose chain a node stands
    for index, way in enumerate(ways):
        home.update(dict.fromkeys(way.chain, index))
    waits: list[set[int]] = []
    readers: list[list[int]] = [[] for _ in ways]
    for index, way in enumerate(ways):
        needs = {home[number] for number in (way.start, way.end) if number is not None} - {-1, index}
        waits.append(needs)
        for need in needs:
            readers[need].append(index)

    def span(index: int) -> tuple[int, int]:
        way = ways[index]
        top = rows[way.chain[0]] - 1 if way.start is None else rows[way.start]
        return top, rows[way.end]

    ready = [(span(index)[1] - span(index)[0], span(index)[0], index) for index in range(len(ways)) if not waits[index]]
    heapq.heapify(ready)
    taken: list[list[tuple[int, int]]] = []
    lanes = [0] * len(rows)
    while ready:
        _, _, index = heapq.heappop(ready)
        way, (top, bottom) = ways[index], span(index)
        ends = [number for number in (way.start, way.end) if number is not None and home[number] != index]
        lane = max((lanes[number] for number in ends), default=0)
        while lane < len(taken) and not _free(taken[lane], top, bottom):
            lane += 1
        if lane >= len(taken):
            taken += [[] for _ in range(lane + 1 - len(taken))]
        insort(taken[lane], (top, bottom))
        way.lane = lane + 1
        for number in way.chain:
            lanes[number] = way.lane
        for reader in readers[index]:
            waits[reader].discard(index)
            if not waits[reader]:
                low, high = span(reader)
                heapq.heappush(ready, (high - low, low, reader))
    return lanes


def _free(taken: Sequence[tuple[int, int]], top: int, bottom: int) -> bool:
    """Whether the rows from below `top` to `bottom` are free of the intervals taken, which do not overlap, in order."""
    place = bisect_left(taken, (top, -1))
    return (place == len(taken) or taken[place][0] >= bottom) and (place == 0 or taken[place - 1][1] <= top)


def _blocking(ways: Sequence[Way], rows: Sequence[int], lanes: Sequence[int]) -> list[tuple[int, int]]:
    """Nodes that stand in the row of another node between it and a way that enters it from the right, with that node."""
    there: dict[int, list[tuple[int, int]]] = {}
    for way in ways:
        for number in way.chain:
            there.setdefault(rows[number], []).append((lanes[number], number))
    found = set()
    for way in ways:
        if way.end not in way.chain:
            for lane, number in there.get(rows[way.end], ()):
                if lanes[way.end] < lane <= way.lane and number != way.end:
                    found.add((number, way.end))
    return sorted(found)
