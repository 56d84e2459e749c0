"""The ways that meet in a merge, read backwards: how far one is a bypass, and what stands on it. Layer 3."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import fx

from residua.functional import arguments
from residua.signals import RECURRENT, Signal, Spot

__all__ = ["MIXING", "Behind", "Way", "back", "dominates", "is_linear"]

_LINEAR = {
    "view", "_unsafe_view", "reshape", "reshape_as", "expand", "expand_as",
    "unsqueeze", "squeeze", "permute", "transpose", "t", "numpy_T",
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
MIXING = {
    "mm", "bmm", "matmul", "addmm", "baddbmm", "einsum", "scaled_dot_product_attention", "_scaled_dot_product_attention_math",
    "_scaled_dot_product_flash_attention_for_cpu", "linear", "dot", "mv", "conv1d", "conv2d", "conv3d", "convolution",
}  # fmt: skip

_AVERAGES = {"mean", "var", "std", "var_mean", "std_mean", "sum", "norm", "linalg_vector_norm"}
# What a normalisation consists of that is written out: averages, and what divides by them.
_STATISTICS = _AVERAGES | {"pow", "square", "sqrt", "rsqrt", "reciprocal", "mul", "div", "abs", "neg", "clamp_min", "maximum"}


@dataclass(frozen=True)
class Way:
    """A bypass, read from the merge back to its source: what stands on it. `weights` are its weight layers, `inner` the merges of
    the units it goes through."""

    source: int
    weights: tuple[int, ...] = ()
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
            "projection": bool(self.weights),
            "gated": self.gated,
            "dropped": self.dropped,
            "pooled": self.pooled,
            "scaled": self.scaled,
        }
        return next((name for name, holds in names.items() if holds), "identity")


class Behind:
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

    def lengths(self, source: int, passed: tuple[int, ...] = ()) -> dict[int, tuple[int, int]]:
        """Of every spot between `source` and the start: the most weight layers on a way from `source`, without and with sides;
        those of `passed` do not count."""
        assert self.reaches(source)
        found = {source: (0, 0)}
        for number in sorted(n for n in self.seen if n > source):
            spot = self._spots[number]
            before = [(found[o], o in spot.side) for o in spot.operands if o in found]
            if before:
                own = spot.weighs and number not in passed
                carried = max((length for (length, _), side in before if not side), default=0) + own
                found[number] = (carried, max(full for (_, full), _ in before) + own)
        return found


def back(signal: Signal, units: Mapping[int, Way], start: int, behind: Behind) -> Iterator[Way]:
    """Back from a merge along one of its ways, as long as it is a bypass: the way at every spot on which the other depends.

    `units` are the ways of the bypasses of skips already found, by their merges."""
    spots = signal.spots
    way: Way | None = Way(start)
    while way is not None:
        if behind.reaches(way.source):
            yield way
        spot = spots[way.source]
        step: Way | None
        if way.source in units:
            inner = units[way.source]
            step = replace(
                way,
                source=inner.source,
                weights=(*way.weights, *inner.weights),
                nonlinear=way.nonlinear or inner.nonlinear,
                pooled=way.pooled or inner.pooled,
                scaled=way.scaled or inner.scaled,
                gated=way.gated or inner.gated,
                dropped=way.dropped or inner.dropped,
                inner=(*way.inner, way.source),
            )
        elif not spot.operands or spot.name in RECURRENT:
            step = None
        elif len(spot.carried) == 1:
            step = _through(signal, way, spot)
        else:
            step = _across(spots, way, spot)
        # A weight layer before a nonlinearity makes the way one that carries weights itself.
        way = None if step is not None and len(step.weights) > len(way.weights) and way.nonlinear else step


def _through(signal: Signal, way: Way, spot: Spot) -> Way:
    """One step back over an operation that reads one signal (and perhaps a gate)."""
    before = replace(way, source=spot.carried[0])
    name, node = spot.name, spot.node
    if spot.weighs:
        return replace(before, weights=(*way.weights, spot.number))
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
    """One step back over ways that part and meet again without weights, as in a normalisation or activation written out."""
    top = spot.dominator
    if top is None or spots[top].full != spot.full:
        return None
    pending, seen, names = [spot.number], {top}, set()
    while pending:
        number = pending.pop()
        if number not in seen:
            seen.add(number)
            names.add(spots[number].name)
            pending.extend(spots[number].operands)
    if names & MIXING:
        return None
    normalizes = bool(names & _AVERAGES) and names <= _STATISTICS | _LINEAR
    return replace(way, source=top, scaled=True, nonlinear=way.nonlinear or not (normalizes or names <= _LINEAR))


def dominates(spots: list[Spot], above: int, number: int) -> bool:
    """Whether every way from an input to `number` crosses `above`."""
    place: int | None = number
    while place is not None and spots[place].depth > spots[above].depth:
        place = spots[place].dominator
    return place == above


def is_linear(signal: Signal, source: int, end: int) -> bool:
    """Whether `end` is a linear function of `source` (normalisation in evaluation mode is taken as one)."""
    spots = signal.spots
    for number in Behind(spots, end).lengths(source):
        spot = spots[number]
        if number == source:
            continue
        if len(spot.carried) != len(spot.operands):
            return False
        if spot.name not in _LINEAR if len(spot.carried) > 1 else _through(signal, Way(number), spot).nonlinear:
            return False
    return True
