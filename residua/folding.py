"""Series of equal blocks, drawn as one with a count. Layer 3.

A chain of blocks is found by dominators: a block lies between two nodes d and n such that every way to n leads through d and
every way from d leads through n. Blocks in series are equal if their layers, merges and resolutions are.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Sequence

from residua.scheme import Node, Repeat, Scheme, shared_path, without

__all__ = ["chains", "dominators", "folded"]

LONGEST_PERIOD = 12  # blocks that take turns, such as attention and perceptron


def folded(drawn: Scheme) -> Scheme:
    """The scheme with every series of equal blocks drawn once, outer series first; the nodes are changed in place."""
    while True:
        for chain in chains(drawn):
            if dropped := _fold_chain(drawn, chain):
                drawn = without(drawn, dropped)
                break
        else:
            return drawn


def dominators(inputs: Sequence[Sequence[int]]) -> list[int]:
    """The immediate dominator of each node of a graph in topological order; -1, which precedes all, where there is none."""
    found: list[int] = []
    depth: dict[int, int] = {-1: 0}
    for number, sources in enumerate(inputs):
        common = sources[0] if sources else -1
        for other in sources[1:]:
            while common != other:
                if depth[common] >= depth[other]:
                    common = found[common]
                else:
                    other = found[other]
        found.append(common)
        depth[number] = depth[common] + 1
    return found


def chains(drawn: Scheme) -> list[list[int]]:
    """Chains n_0, n_1, ... in which every way to n_{i+1} leads through n_i, and every way from n_i through n_{i+1}; those that
    span most come first."""
    total = len(drawn.nodes)
    before = dominators([node.inputs for node in drawn.nodes])
    readers: list[list[int]] = [[] for _ in range(total)]
    for number, node in enumerate(drawn.nodes):
        for source in node.inputs:
            readers[source].append(number)
    mirrored = dominators([[total - 1 - reader for reader in readers[total - 1 - number]] for number in range(total)])
    after = [total - 1 - mirrored[total - 1 - number] for number in range(total)]
    following = {before[number]: number for number in range(total) if before[number] >= 0 and after[before[number]] == number}
    starts = following.keys() - set(following.values())
    found = []
    for start in starts:
        alone = len(drawn.nodes[start].inputs) == 1  # then it is a block itself, wherever else its input is read
        chain = [*drawn.nodes[start].inputs, start] if alone else [start]
        while chain[-1] in following:
            chain.append(following[chain[-1]])
        found.append(chain)
    return sorted(found, key=lambda chain: (chain[0] - chain[-1], chain[0]))


def _fold_chain(drawn: Scheme, chain: Sequence[int]) -> set[int]:
    """Folds every series of equal blocks in a chain; gives the nodes that are drawn no more."""
    blocks = [_block(drawn, first, last) for first, last in itertools.pairwise(chain)]
    signs: dict[Hashable, int] = {}
    signatures = [signs.setdefault(_signature(drawn, first, block), len(signs)) for first, block in zip(chain, blocks)]
    place, dropped = 0, set[int]()
    while place < len(blocks):
        period, count = _series(signatures, [len(block) for block in blocks], place)
        if count > 1:
            start = place + period * (count - 1)
            _merge(drawn, blocks[place : start + period], chain[place], chain[start], period, count)
            dropped.update(itertools.chain.from_iterable(blocks[place:start]))
        place += period * count
    return dropped


def _series(signatures: Sequence[int], sizes: Sequence[int], place: int) -> tuple[int, int]:
    """The period and count of the series that begins at `place` and saves most nodes, two at least; (1, 1) for none."""
    best, most = (1, 1), 1
    for period in range(1, min(LONGEST_PERIOD, (len(signatures) - place) // 2) + 1):
        end = place + period
        while end < len(signatures) and signatures[end] == signatures[end - period]:
            end += 1
        count = (end - place) // period
        saved = sum(sizes[place : place + period]) * (count - 1)
        if saved > most:
            best, most = (period, count), saved
    return best


def _block(drawn: Scheme, first: int, last: int) -> list[int]:
    """The nodes after `first` up to and with `last`, in order."""
    found, pending = {last}, [last]
    while pending:
        for source in drawn.nodes[pending.pop()].inputs:
            if source != first and source not in found:
                found.add(source)
                pending.append(source)
    return sorted(found)


def _signature(drawn: Scheme, first: int, block: Sequence[int]) -> Hashable:
    place = {number: index for index, number in enumerate((first, *block))}
    counts = {repeat.number: repeat.count for repeat in drawn.repeats}
    return tuple(
        (
            node.kind, node.kinds, _words(node), node.shape[1:] if len(node.shape) > 2 else (),
            tuple(place[source] for source in node.inputs), tuple(counts[fold] for fold in node.folds),
        )
        for node in map(drawn.nodes.__getitem__, block)
    )  # fmt: skip


def _words(node: Node) -> str:
    """What equal nodes have in common: of a layer what it does, or its name but for numbers; merges are known by their inputs."""
    return node.detail or ("" if node.kind in ("choice", "join") else re.sub(r"\d+", "#", node.note.partition(":")[0]))


def _merge(drawn: Scheme, blocks: Sequence[Sequence[int]], first: int, start: int, period: int, count: int) -> None:
    """Draws the last `period` of `blocks` for all of them: they read `first` in place of `start`."""
    number = len(drawn.repeats)
    drawn.repeats.append(Repeat(number, count))
    for offset in range(period):
        kept = blocks[period * (count - 1) + offset]
        others = [blocks[period * turn + offset] for turn in range(count - 1)]
        for index, place in enumerate(kept):
            node = drawn.nodes[place]
            node.inputs = [first if source == start else source for source in node.inputs]
            node.skips = tuple(skip for block in (*others, kept) for skip in drawn.nodes[block[index]].skips)
            node.folds = (number, *node.folds)
            node.group = shared_path([drawn.nodes[block[index]].group for block in (*others, kept)])
            node.note = f"{node.note} ({count} in series, the last named)"
