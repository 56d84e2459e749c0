"""Where a captured graph has skips: the structure of every merge, decided by the ways that meet in it. Layer 3.

A *skip* is a merge of two ways that part at a common source, one of which, the bypass, goes round weight layers that the
other, the branch, crosses. A way is a bypass if the signal on it crosses no weight layer, or one linear map without a
nonlinearity (a projection), or again only units that have such a bypass themselves. Where both ways are of that kind, the one
that crosses fewer weight layers is the bypass, and two that cross as many are parallel towers, which are no skip. So are ways
that both carry weights.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace

from torch import fx

from residua.functional import arguments, operation
from residua.graph import module_path
from residua.signals import Signal, Spot, gate_base, is_gate

__all__ = ["Found", "Way", "find", "place"]

_LINEAR = {
    "view", "_unsafe_view", "reshape", "expand", "expand_as", "unsqueeze", "squeeze", "permute", "transpose", "t", "numpy_T",
    "getitem", "select", "slice", "narrow", "split", "split_with_sizes", "chunk", "unbind", "tensor_split", "contiguous",
    "clone", "alias", "to", "_to_copy", "flatten", "unflatten", "view_as", "type_as", "repeat", "repeat_interleave", "roll",
    "flip", "pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad2d", "pixel_shuffle",
    "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "index", "index_select", "gather", "cat", "add", "sub",
    "rsub", "movedim", "swapaxes", "unfold", "im2col", "col2im", "detach", "lift_fresh_copy", "permute_copy", "view_copy",
    "rot90", "as_strided", "unsafe_split", "unsafe_chunk", "masked_fill", "float", "type", "narrow_copy",
}  # fmt: skip
_NORMS = {
    "batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm", "_native_batch_norm_legit", "layer_norm",
    "native_layer_norm", "group_norm", "native_group_norm", "instance_norm", "rms_norm", "_fused_rms_norm", "cudnn_batch_norm",
}  # fmt: skip
_POOLS = ("pool", "upsample", "interpolate", "grid_sampler")
_MIXING = {
    "mm", "bmm", "matmul", "addmm", "baddbmm", "einsum", "scaled_dot_product_attention", "_scaled_dot_product_attention_math",
    "_scaled_dot_product_flash_attention_for_cpu", "linear", "dot", "mv", "conv1d", "conv2d", "conv3d", "convolution",
}  # fmt: skip
_MERGES = {"add": "add", "sub": "add", "cat": "concatenate", "concat": "concatenate", "concatenate": "concatenate"}
_UNPOOLING = {"max_unpool2d", "max_unpool3d"}
# Multiplying, comparing and attending combine what two ways hold; they hand on neither of them.
_COMBINING = _MIXING | {
    "mul", "div", "pow", "eq", "ne", "lt", "gt", "le", "ge", "atan2", "dist", "cosine_similarity", "cdist", "_cdist_forward",
    "complex", "polar", "fmod", "remainder", "bitwise_and", "logical_and", "bitwise_or", "logical_or", "floor_divide",
    "bucketize", "searchsorted",
}  # fmt: skip


@dataclass(frozen=True)
class Way:
    """A bypass, read from the merge back to its source: what stands on it. `inner` are the merges of the units it goes
    through."""

    source: int
    weights: int = 0
    nonlinear: bool = False
    pooled: bool = False
    scaled: bool = False
    gated: bool = False
    dropped: bool = False
    inner: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """What it is called: the first that holds of projection, gated, dropped, pooled, scaled; else identity."""
        names = {
            "projection": self.weights,
            "gated": self.gated,
            "dropped": self.dropped,
            "pooled": self.pooled,
            "scaled": self.scaled,
        }
        return next((name for name, holds in names.items() if holds), "identity")


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


class _Behind:
    """What a spot depends on, looked up from late to early, only as far back as is asked."""

    def __init__(self, spots: list[Spot], start: int) -> None:
        self._spots, self.seen, self._heap = spots, {start}, [-start]

    def reaches(self, number: int) -> bool:
        """Whether the spot depends on `number`, or is it; `number` may only fall from call to call."""
        while self._heap and -self._heap[0] > number:
            for operand in self._spots[-heapq.heappop(self._heap)].operands:
                if operand not in self.seen:
                    self.seen.add(operand)
                    heapq.heappush(self._heap, -operand)
        return number in self.seen

    def lengths(self, source: int) -> dict[int, tuple[int, int]]:
        """Of every spot between `source` and the start: the most weight layers on a way from `source`, without and with sides."""
        assert self.reaches(source)
        found = {source: (0, 0)}
        for number in sorted(n for n in self.seen if n > source):
            spot = self._spots[number]
            before = [(found[o], o in spot.side) for o in spot.operands if o in found]
            if before:
                carried = max((length for (length, _), side in before if not side), default=0) + spot.weighs
                found[number] = (carried, max(full for (_, full), _ in before) + spot.weighs)
        return found


def find(signal: Signal) -> Findings:
    """Every skip of a signal graph, by its structure alone."""
    findings = Findings()
    for spot in signal.spots:
        if len(spot.operands) != 2 or spot.weighs or spot.side:
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
            findings.skips[spot.number] = found
    return findings


def _layers(count: int) -> str:
    return f"{count} weight layer{'s' if count != 1 else ''}"


def _decide(signal: Signal, findings: Findings, spot: Spot, kind: str) -> Found | None:
    """The skip that a merge of two ways is, if it is one."""
    spots = signal.spots
    candidates = []
    for bypass, branch in (spot.operands, spot.operands[::-1]):
        behind = _Behind(spots, branch)
        way = _walk(signal, findings, bypass, behind)
        if kind == "index" and not _is_index(spots[bypass]):
            continue
        if way is None:
            continue
        lengths = behind.lengths(way.source)
        span = lengths[branch][0] or lengths[branch][1]
        if span:
            enclosed = frozenset(n for n in lengths if n in findings.skips and n != way.source)
            candidates.append((Found(spot.number, bypass, branch, kind, way, span, enclosed), span))
    if not candidates:
        return None
    found = candidates[0][0]
    if len(candidates) == 2:
        weights = [_crossed(spots, found.way.source, found.bypass) for found, _ in candidates]
        if weights[0] == weights[1]:
            return None
        found = candidates[weights.index(min(weights))][0]
    enclosed = found.enclosed | set(found.way.inner) | {n for i in found.way.inner for n in findings.skips[i].enclosed}
    found = replace(found, enclosed=enclosed)
    if kind == "index":
        return replace(found, way=replace(found.way, pooled=True))
    if kind == "add" and _is_gate(spots[found.bypass].node, spots[found.branch].node):
        return replace(found, kind="gate")
    return found


def _crossed(spots: list[Spot], source: int, end: int) -> int:
    return _Behind(spots, end).lengths(source)[end][0]


def _walk(signal: Signal, findings: Findings, start: int, behind: _Behind) -> Way | None:
    """Back from a merge along one of its ways to the first spot on which the other depends; None where the way is no bypass."""
    spots = signal.spots
    way = Way(start)
    while not behind.reaches(way.source):
        spot = spots[way.source]
        step: Way | None
        if way.source in findings.skips:
            inner = findings.skips[way.source]
            through = inner.way
            step = replace(
                way,
                source=through.source,
                weights=way.weights + through.weights,
                nonlinear=way.nonlinear or through.nonlinear,
                pooled=way.pooled or through.pooled,
                scaled=way.scaled or through.scaled,
                gated=way.gated or through.gated,
                dropped=way.dropped or through.dropped,
                inner=(*way.inner, way.source),
            )
        elif not spot.operands or spot.name == "recurrent":
            step = None
        elif len(spot.carried) == 1:
            step = _through(signal, way, spot)
        else:
            step = _across(spots, way, spot)
        if step is None or step.weights > 1 or (step.weights and step.nonlinear):
            return None
        way = step
    return way


def _through(signal: Signal, way: Way, spot: Spot) -> Way:
    """One step back over an operation that reads one signal (and perhaps a gate)."""
    before = replace(way, source=spot.carried[0])
    name, node = spot.name, spot.node
    if spot.weighs:
        return replace(
            before, weights=way.weights + 1, nonlinear=way.nonlinear or name in ("lstm", "gru", "rnn_tanh", "rnn_relu")
        )
    if spot.side:
        gates = max(signal.spots[side].full for side in spot.side) > signal.spots[spot.carried[0]].full
        return replace(before, gated=True) if gates else replace(before, scaled=True, nonlinear=True)
    if "dropout" in name:
        return replace(before, dropped=True)
    if name in ("mul", "div"):
        others = [value for value in arguments(node)[:2] if not (isinstance(value, fx.Node) and value in signal.of)]
        if any(isinstance(value, fx.Node) and signal.dropped.get(value, False) for value in others):
            return replace(before, dropped=True)
        return before if others == [1] and name == "mul" else replace(before, scaled=True)
    if any(pool in name for pool in _POOLS) or name in (
        "mean",
        "sum",
        "amax",
        "avg",
        "conv2d",
        "conv1d",
        "conv3d",
        "convolution",
    ):
        return replace(before, pooled=True)
    if name in _LINEAR:
        return before
    return replace(before, scaled=True, nonlinear=way.nonlinear or name not in _NORMS | {"neg", "mm", "matmul", "bmm", "linear"})


def _across(spots: list[Spot], way: Way, spot: Spot) -> Way | None:
    """One step back over ways that part and meet again without weights, as in a normalisation written out."""
    top = spot.dominator
    if top is None or spots[top].full != spot.full:
        return None
    pending, seen = [spot.number], {top}
    while pending:
        number = pending.pop()
        if number not in seen:
            seen.add(number)
            if spots[number].name in _MIXING:
                return None
            pending.extend(spots[number].operands)
    return replace(way, source=top, scaled=True)


def _is_index(spot: Spot) -> bool:
    value = spot.node.meta.get("val")
    return value is not None and not value.is_floating_point()


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
