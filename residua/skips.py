"""Where a captured graph has skips: the structure of every merge, decided by the ways that meet in it. Layer 3.

A *skip* is a merge of two ways that part at a common source, one of which, the bypass, goes round weight layers that the
other, the branch, crosses. A way is a bypass if the signal on it crosses no weight layer, or one linear map (a projection:
convolutions without a nonlinearity after or between them; normalisation and pooling are allowed, and normalisation with an
activation before them, as in pre-activation), or again only units that have such a bypass themselves. Where both ways are of that
kind, the one that crosses fewer weight layers on its longest way is the bypass, then the one that crosses fewer on its
shortest; two that are equal are parallel towers, which are no skip. So are ways that both carry weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from torch import fx

from residua.functional import arguments, operation
from residua.graph import module_path
from residua.signals import Signal, Spot, gate_base, is_floating, is_gate
from residua.ways import MIXING, Behind, Way, back, dominates, is_linear

__all__ = ["Findings", "Found", "find", "place"]

_MERGES = {"add": "add", "sub": "add", "cat": "concatenate", "concat": "concatenate", "concatenate": "concatenate"}
_UNPOOLING = {"max_unpool2d", "max_unpool3d"}
# Multiplying, comparing and attending combine what two ways hold; they hand on neither of them.
_COMBINING = MIXING | {
    "mul", "div", "pow", "eq", "ne", "lt", "gt", "le", "ge", "atan2", "dist", "cosine_similarity", "cdist", "_cdist_forward",
    "complex", "polar", "fmod", "remainder", "bitwise_and", "logical_and", "bitwise_or", "logical_or", "floor_divide",
    "bucketize", "searchsorted",
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A skip by structure: its merge, bypass and branch (numbers of spots), kind and way, and the weight layers that the branch
    crosses (on its longest way). `enclosed` are the merges of other skips between source and merge."""

    merge: int
    bypass: int
    branch: int
    kind: str
    way: Way
    span: int
    enclosed: frozenset[int] = frozenset()


@dataclass
class Findings:
    """The skips in the order of their merges, and merges that look like one and are of no known kind, each with the reason."""

    skips: dict[int, Found] = field(default_factory=dict)
    unclear: dict[int, str] = field(default_factory=dict)
    ways: dict[int, Way] = field(default_factory=dict)  # the bypass of each skip


def find(signal: Signal) -> Findings:
    """Every skip of a signal graph, by its structure alone."""
    findings = Findings()
    for spot in signal.spots:
        if len(spot.carried) != 2 or spot.weighs:
            continue
        kind = _MERGES.get(spot.name) or ("index" if spot.name in _UNPOOLING else None)
        if kind is None and spot.name in _COMBINING:
            continue
        found = _decide(signal, findings, spot, kind or "")
        if found is None:
            continue
        if kind is None:
            findings.unclear[spot.number] = (
                f"{spot.name} joins a way that bypasses {_layers(found.span)} with one that crosses them, and is no known "
                "merge: it neither adds, concatenates, gates nor unpools."
            )
        else:
            findings.skips[spot.number], findings.ways[spot.number] = found, found.way
    return findings


def _layers(count: int) -> str:
    return f"{count} weight layer{'s' if count != 1 else ''}"


def _decide(signal: Signal, findings: Findings, spot: Spot, kind: str) -> Found | None:
    """The skip that a merge of two ways is, if it is one."""
    ways = [spot.carried, spot.carried[::-1]]
    candidates = [
        _candidate(signal, findings, spot, kind, *pair) for pair in ways if kind != "index" or _is_index(signal, pair[0])
    ]
    skips = [found for found in candidates if found is not None]
    if not skips:
        return None
    if len(skips) == 2 and skips[0].way.source == skips[1].way.source:
        weights = [_crossed(signal.spots, found) for found in skips]
        if weights[0] == weights[1]:
            return None
        found = skips[weights.index(min(weights))]
    elif (
        len(skips) == 1 and skips[0].span <= len(skips[0].way.weights) and is_linear(signal, skips[0].way.source, skips[0].branch)
    ):
        return None  # sums of linear maps that cross equally many layers
    else:
        # Of two sources the earlier is that of the way that goes round what leads to the later one.
        found = min(skips, key=lambda found: found.way.source)
    enclosed = found.enclosed | set(found.way.inner) | {n for i in found.way.inner for n in findings.skips[i].enclosed}
    found = replace(found, enclosed=enclosed)
    if kind == "index":
        return replace(found, way=replace(found.way, pooled=True))
    if kind == "add" and _is_gate(signal.spots[found.bypass].node, signal.spots[found.branch].node):
        return replace(found, kind="gate")
    return found


def _candidate(signal: Signal, findings: Findings, spot: Spot, kind: str, bypass: int, branch: int) -> Found | None:
    """The skip with these two ways, if `bypass` is one."""
    behind = Behind(signal.spots, branch)
    first: Way | None = None
    for way in back(signal, findings.ways, bypass, behind):
        first = first or way
        lengths = behind.lengths(way.source, way.weights)
        span = lengths[branch][0] or lengths[branch][1]
        if span and not ((way.inner or way.gated) and _shares_all(signal.spots, way, bypass, lengths)):
            enclosed = frozenset(number for number in lengths if number in findings.skips and number != way.source)
            return Found(spot.number, bypass, branch, kind, way, span, enclosed)
        # The branch may start further up than where it first meets the bypass (one projection cut in two, say).
        if first.weights or dominates(signal.spots, way.source, branch):
            break
    return None


def _are_alike(signal: Signal, found: Found) -> bool:
    """Whether a projection meets a sum of linear maps, none of which crosses more layers than it does."""
    return found.span <= len(found.way.weights) and is_linear(signal, found.way.source, found.branch)


def _shares_all(spots: list[Spot], way: Way, bypass: int, branch: Iterable[int]) -> bool:
    """Whether the units and gates on a bypass cross every weight layer of the branch: the merge then only puts parts of one
    signal side by side again (of which some were added to, say), or mixes by a gate what crosses no other layers."""
    own = Behind(spots, bypass).lengths(way.source)
    return all(number in own for number in branch if spots[number].weighs)


def _crossed(spots: list[Spot], found: Found) -> tuple[int, int]:
    """The weight layers on the longest and on the shortest way through a bypass."""
    longest = Behind(spots, found.bypass).lengths(found.way.source)[found.bypass][0]
    return longest, len(found.way.weights)


def _is_index(signal: Signal, number: int) -> bool:
    return not is_floating(signal.spots[number].node)


def _is_gate(bypass: fx.Node, branch: fx.Node) -> bool:
    """Whether the two ways are weighed by T and 1 - T."""
    bases = [_gate_bases(node) for node in (bypass, branch)]
    return bool(bases[0] & bases[1])


def _gate_bases(node: fx.Node) -> set[fx.Node]:
    while (
        operation(node) in ("view", "reshape", "getitem", "contiguous", "clone", "squeeze", "unsqueeze") and node.all_input_nodes
    ):
        node = node.all_input_nodes[0]
    if operation(node) != "mul":
        return set()
    return {gate_base(value) for value in arguments(node)[:2] if isinstance(value, fx.Node) and is_gate(value)}


def place(node: fx.Node) -> str:
    """Where a node stands, for people: the path of its module, else its own name."""
    return node.name if node.op == "placeholder" else module_path(node) or node.name
