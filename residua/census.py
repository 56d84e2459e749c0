"""The skips of any network, found by structure and proven by derivatives. Layer 3.

A skip is a merge of two ways (merges of more are folded from the left) that part at a common source, one of which bypasses weight
layers that the other crosses; `residua.skips` states the rule, `residua.signals` what a weight layer is. Each is proven
twice, by that structure and by `residua.proof`. What cannot be decided or proven is reported as unknown, never counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import Tensor, fx, nn

from residua.flow import Flow
from residua.graph import Captured
from residua.proof import Ways, prove, put_factors
from residua.reduction import reduce
from residua.signals import Signal, read
from residua.skips import Found, find, place

__all__ = ["Census", "Skip", "Unknown", "census", "wired"]


@dataclass(frozen=True)
class Skip:
    """A skip connection.

    `kind` is "add" (a difference too), "concatenate", "gate" (T F + (1 - T) h) or "index" (positions of a pooling, handed to an
    unpooling). `way` is the bypass: "identity" (values unchanged; views, slices and zero padding allowed), "projection" (one
    linear map, with normalisation or pooling), "gated", "dropped", "pooled" (resampled), or "scaled" (a factor, a
    normalisation or an elementwise function). `source` and `merge` say where it starts and ends: the path of the module, or
    the name of the operation. `span` is the largest number of weight layers on a way through the branch (layers that compute a
    gate count only where there are no others), `level` the number of skips around it (0: in none). `proven`: both ways have a
    non-zero derivative; `reason` says so, or why that was not asked. `source_node`, `merge_node` and `ways` (bypass, branch)
    are nodes of the captured graph.
    """

    index: int
    kind: str
    way: str
    source: str
    merge: str
    span: int
    level: int
    proven: bool
    reason: str
    source_node: fx.Node
    merge_node: fx.Node
    ways: tuple[fx.Node, fx.Node]


@dataclass(frozen=True)
class Unknown:
    """A merge that could not be decided or proven to be a skip: where it stands, and why."""

    merge: str
    reason: str
    merge_node: fx.Node


@dataclass(frozen=True)
class Census:
    """The skips of a captured module in the order of their merges, and the merges that are `unknown`.

    `dense_connections` counts apart the connections of dense blocks, in which every layer reads all earlier ones: L (L + 1) / 2
    for L layers whose concatenations follow each other. `flow` is the network reduced to what paths and drawings read.
    """

    captured: Captured
    skips: tuple[Skip, ...]
    unknown: tuple[Unknown, ...]
    dense_connections: int
    flow: Flow

    @property
    def by_kind(self) -> dict[tuple[str, str], int]:
        """How many skips there are of each (kind, way)."""
        return dict(Counter((skip.kind, skip.way) for skip in self.skips))


def census(captured: Captured, *, proof: bool = True) -> Census:
    """The census of a captured module; without `proof` the structure alone decides, and no skip is called proven."""
    signal = read(captured)
    findings = find(signal)
    unknown = dict(findings.unclear)
    found = dict(findings.skips)
    ways = {number: _ways(signal, skip) for number, skip in found.items()}
    if proof:
        for number, reason in zip(ways, prove(captured, list(ways.values()))):
            if reason:
                unknown[number] = reason
                del found[number]
    levels = Counter(inner for skip in found.values() for inner in skip.enclosed)
    skips = tuple(
        Skip(
            index=index,
            kind=skip.kind,
            way=skip.way.name,
            source=place(signal.spots[skip.way.source].node),
            merge=place(signal.spots[number].node),
            span=skip.span,
            level=levels[number],
            proven=proof,
            reason="The output has a non-zero derivative with respect to both ways."
            if proof
            else "The derivatives were not asked for.",
            source_node=signal.spots[skip.way.source].node,
            merge_node=ways[number][0],
            ways=ways[number][1:],
        )
        for index, (number, skip) in enumerate(found.items())
    )
    flow = reduce(signal, {number: (index, skip) for index, (number, skip) in enumerate(found.items())})
    doubts = tuple(
        Unknown(place(signal.spots[number].node), reason, signal.spots[number].node) for number, reason in sorted(unknown.items())
    )
    return Census(captured, skips, doubts, _dense_connections(found), flow)


def _ways(signal: Signal, skip: Found) -> Ways:
    merge = signal.spots[skip.merge].node
    by_spot = {signal.of[node]: node for node in merge.all_input_nodes if node in signal.of}
    return merge, by_spot[skip.bypass], by_spot[skip.branch]


def _dense_connections(skips: dict[int, Found]) -> int:
    chains: dict[int, int] = {}  # of the last merge of a chain its number of layers
    for number, skip in skips.items():
        if skip.kind == "concatenate" and skip.way.name == "identity" and not skip.way.inner:
            chains[number] = chains.pop(skip.way.source, 0) + 1
    return sum(layers * (layers + 1) // 2 for layers in chains.values() if layers > 1)


def wired(found: Census) -> nn.Module:
    """The captured module with a factor on both ways of every skip: `factors`, ones of [number of skips, 2] (bypass, branch).

    It is called as the model is and shares its parameters; a factor of zero switches a way off. The positions that an index
    skip hands over cannot be weighed: its first factor does nothing.
    """
    module = put_factors(found.captured, [(skip.merge_node, *skip.ways) for skip in found.skips])
    assert isinstance(module.factors, Tensor)
    return module
