"""What operations do to the positions of a map: how far a position of the output looks, along each axis of the input. Layer 3.

A convolution or pooling with kernel k, stride s and dilation d widens the field by (k - 1) d times the distance, in the input, of
neighbouring positions (the jump), and multiplies that distance by s. Fields of transposed convolutions and of interpolation are
upper bounds, since their width depends on the position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, fx

from residua.functional import operation
from residua.graph import shape_of

__all__ = ["Field", "Interval", "NotLocalError", "after"]


@dataclass(frozen=True)
class Interval:
    """Along one axis, relative to the position's own place in the input: what it sees."""

    left: Fraction
    right: Fraction

    @property
    def width(self) -> int:
        return math.floor(self.right - self.left) + 1

    def __or__(self, other: Interval) -> Interval:
        return Interval(min(self.left, other.left), max(self.right, other.right))


@dataclass(frozen=True)
class Field:
    """Of a map: `axes` says of each of its axes which axis of the input's positions it follows (None: batch, channels), `jumps`
    how far apart neighbours lie in the input, `shortest` and `longest` what a position sees, by axis of positions."""

    axes: tuple[int | None, ...]
    jumps: tuple[Fraction, ...]
    shortest: tuple[Interval, ...]
    longest: tuple[Interval, ...]

    def along(self, axis: int, *, stretch: Fraction, before: Fraction, after: Fraction) -> Field:
        """Further widened along an axis of positions, by `before` and `after` (in the map's own positions); its jump grows by
        the factor `stretch`."""
        jump = self.jumps[axis]

        def wider(intervals: tuple[Interval, ...]) -> tuple[Interval, ...]:
            old = intervals[axis]
            return (*intervals[:axis], Interval(old.left + before * jump, old.right + after * jump), *intervals[axis + 1 :])

        jumps = (*self.jumps[:axis], jump * stretch, *self.jumps[axis + 1 :])
        return replace(self, jumps=jumps, shortest=wider(self.shortest), longest=wider(self.longest))


class NotLocalError(Exception):
    """An operation after which positions have no field of their own; the message says why."""


def after(node: fx.Node, local: Sequence[tuple[fx.Node, Field]], is_skip: bool, has_gate: bool) -> Field:
    """The field of what a node gives, from those of the inputs that have one.

    At a skip the shortest path takes the narrower way; elsewhere all are taken together. `has_gate`: another input is a factor
    that sees everything. Raises `NotLocalError`.
    """
    name, target = operation(node), node.target
    by_element = isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags
    (source, field), *rest = local
    if rest or has_gate or name in _JOINING:
        if by_element or name in _JOINING:
            return _joined(node, local, is_skip)
    elif name in _RULES:
        return _RULES[name](node, field, shape_of(source), _arguments(node))
    elif by_element or name in _KEEPING:
        return field
    raise NotLocalError(f"{name} lets positions look at each other in a way that is not followed.")


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by name, defaults included."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    given = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
    given |= {argument.name: value for argument, value in zip(schema.arguments, node.args)}
    return given | dict(node.kwargs)


def _joined(node: fx.Node, local: Sequence[tuple[fx.Node, Field]], is_skip: bool) -> Field:
    """Of several maps that are added, multiplied or concatenated."""
    rank = len(shape_of(node))
    (_, field), *rest = local
    field = _broadcast(field, rank)
    if operation(node) in _JOINING:
        axis = _arguments(node).get("dim", 0) % rank
        if field.axes[axis] is not None:
            raise NotLocalError("Positions of different maps are put in one row.")
    for _, further in rest:
        other = _broadcast(further, rank)
        if other.axes != field.axes or other.jumps != field.jumps:
            raise NotLocalError("Maps whose positions do not correspond meet.")
        both = tuple(a | b for a, b in zip(field.shortest, other.shortest))
        narrower = min(
            (field.shortest, other.shortest), key=lambda seen: sum(interval.right - interval.left for interval in seen)
        )
        field = replace(
            field, shortest=narrower if is_skip else both, longest=tuple(a | b for a, b in zip(field.longest, other.longest))
        )
    return field


def _broadcast(field: Field, rank: int) -> Field:
    return replace(field, axes=(None,) * (rank - len(field.axes)) + field.axes)


Rule = Callable[[fx.Node, Field, tuple[int, ...], dict[str, Any]], Field]


def _each(value: Any, count: int) -> list[int]:
    """A number for each axis, from one number, one in a list, or as many."""
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _windows(field: Field, shape: tuple[int, ...], kernel: Any, stride: Any, padding: Any, dilation: Any) -> Field:
    """Windows that slide over the last axes."""
    first = len(shape) - (len(kernel) if not isinstance(kernel, int) else len(shape) - 2)
    count = len(shape) - first
    if len(field.axes) != len(shape) or any(axis is not None for axis in field.axes[:first]):
        raise NotLocalError("Windows slide over axes among which channels are.")
    if padding in ("same", "valid"):
        padding = [(k - 1) * d // 2 if padding == "same" else 0 for k, d in zip(_each(kernel, count), _each(dilation, count))]
    settings = zip(*(_each(value, count) for value in (kernel, stride, padding, dilation)))
    for axis, (k, s, p, d) in zip(field.axes[first:], settings):
        if axis is not None:
            field = field.along(axis, stretch=Fraction(s), before=Fraction(-p), after=Fraction((k - 1) * d - p))
    return field


def _convolved(node: fx.Node, field: Field, shape: tuple[int, ...], given: dict[str, Any]) -> Field:
    weight = given["weight"]
    kernel = shape_of(weight)[2:]
    if given.get("transposed") or operation(node).startswith("conv_transpose"):
        for place, (k, s, p, d) in enumerate(
            zip(kernel, *(_each(given[name], len(kernel)) for name in ("stride", "padding", "dilation")))
        ):
            axis = field.axes[2 + place]
            if axis is not None:
                middle, half = Fraction(2 * p - (k - 1) * d, 2 * s), Fraction((k - 1) * d // s, 2)
                field = field.along(axis, stretch=Fraction(1, s), before=middle - half, after=middle + half)
        return field
    return _windows(field, shape, kernel, given["stride"], given["padding"], given["dilation"])


def _pooled(_node: fx.Node, field: Field, shape: tuple[int, ...], given: dict[str, Any]) -> Field:
    kernel = _each(given["kernel_size"], len(shape) - 2)
    return _windows(field, shape, kernel, given["stride"] or kernel, given["padding"], given.get("dilation", 1))


def _adaptively_pooled(node: fx.Node, field: Field, shape: tuple[int, ...], _given: dict[str, Any]) -> Field:
    value = node.meta.get("val")
    out = tuple((value if isinstance(value, Tensor) else value[0]).shape) if value is not None else ()
    if any(size == 1 < before for size, before in zip(out[2:], shape[2:])):
        raise NotLocalError("All positions are pooled into one.")
    for place, (size, before) in enumerate(zip(out[2:], shape[2:]), 2):
        axis = field.axes[place]
        if axis is not None:
            kernel = before // size if before % size == 0 else -(-before // size) + 1
            field = field.along(axis, stretch=Fraction(before, size), before=Fraction(0), after=Fraction(kernel - 1))
    return field


def _resampled(node: fx.Node, field: Field, shape: tuple[int, ...], _given: dict[str, Any]) -> Field:
    """Interpolation between the neighbours: one of them (nearest), two (linear) or four (cubic) along each axis."""
    neighbours = 1 if "nearest" in operation(node) else 4 if "cubic" in operation(node) else 2
    for place, (size, before) in enumerate(zip(shape_of(node)[2:], shape[2:]), 2):
        axis = field.axes[place]
        if axis is not None and size != before:
            middle, half = Fraction(before - size, 2 * size), Fraction(neighbours - 1, 2)
            field = field.along(axis, stretch=Fraction(before, size), before=middle - half, after=middle + half)
    return field


def _across(why: str, axes_of: Callable[[dict[str, Any], int], Collection[int]], *, drops: bool = False) -> Rule:
    """An operation that goes over whole axes, which must not be positions; they go if it `drops` them."""

    def rule(_node: fx.Node, field: Field, shape: tuple[int, ...], given: dict[str, Any]) -> Field:
        rank = len(shape)
        axes = {axis % rank for axis in axes_of(given, rank)}
        if any(field.axes[axis] is not None and shape[axis] > 1 for axis in axes):
            raise NotLocalError(why)
        if drops and not given.get("keepdim"):
            return replace(field, axes=tuple(axis for place, axis in enumerate(field.axes) if place not in axes))
        return field

    return rule


def _dims(given: dict[str, Any], rank: int) -> Collection[int]:
    dims = given.get("dim", given.get("dims"))
    return range(rank) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims


def _permuted(node: fx.Node, field: Field, shape: tuple[int, ...], given: dict[str, Any]) -> Field:
    order = list(range(len(shape)))
    if operation(node) == "permute":
        order = [axis % len(shape) for axis in given["dims"]]
    else:
        a, b = (given[name] % len(shape) for name in ("dim0", "dim1"))
        order[a], order[b] = order[b], order[a]
    return replace(field, axes=tuple(field.axes[axis] for axis in order))


def _viewed(node: fx.Node, field: Field, shape: tuple[int, ...], _given: dict[str, Any]) -> Field:
    """Another shape: axes of positions must stay axes of their own."""
    new = shape_of(node)
    axes: list[int | None] = []
    for old_group, new_group in _groups(shape, new):
        positions = [field.axes[place] for place in old_group if field.axes[place] is not None and shape[place] > 1]
        wide = [place for place in new_group if new[place] > 1]
        if positions and (len(wide) != 1 or sum(shape[place] > 1 for place in old_group) > 1):
            raise NotLocalError("Positions are rearranged into other axes.")
        axes += [positions[0] if positions and place in wide else None for place in new_group]
    return replace(field, axes=tuple(axes))


def _groups(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[range, range]]:
    """The axes of two shapes of one size in the least groups of equal size."""
    i = j = 0
    while i < len(old) or j < len(new):
        start, end = i, j
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while (left := math.prod(old[start:i])) != (right := math.prod(new[end:j])):
            i, j = (i + 1, j) if left < right else (i, j + 1)
        yield range(start, i), range(end, j)


def _sliced(_node: fx.Node, field: Field, shape: tuple[int, ...], given: dict[str, Any]) -> Field:
    place = given["dim"] % len(shape)
    axis = field.axes[place]
    if axis is None:
        return field
    start = given["start"] or 0
    start = max(0, start + shape[place]) if start < 0 else start
    return field.along(axis, stretch=Fraction(given["step"]), before=Fraction(start), after=Fraction(start))


def _padded(_node: fx.Node, field: Field, shape: tuple[int, ...], given: dict[str, Any]) -> Field:
    for place, before in enumerate(given["pad"][::2]):
        axis = field.axes[len(shape) - 1 - place]
        if axis is not None:
            field = field.along(axis, stretch=Fraction(1), before=Fraction(-before), after=Fraction(-before))
    return field


def _embedded(_node: fx.Node, field: Field, _shape: tuple[int, ...], _given: dict[str, Any]) -> Field:
    return replace(field, axes=(*field.axes, None))


def _unsqueezed(_node: fx.Node, field: Field, shape: tuple[int, ...], given: dict[str, Any]) -> Field:
    place = given["dim"] % (len(shape) + 1)
    return replace(field, axes=(*field.axes[:place], None, *field.axes[place:]))


_last = _across("A linear layer goes over all positions.", lambda _given, rank: [rank - 1])
_normalized = _across(
    "The normalisation goes over all positions.", lambda given, rank: range(rank - len(given["normalized_shape"]), rank)
)
_everywhere = _across("The normalisation goes over all positions.", lambda _given, rank: range(1, rank))
_reduced = _across("All positions are taken together.", _dims, drops=True)
_softmax = _across("A softmax goes over all positions.", _dims)
_split = _across("Positions are divided among several maps.", lambda given, _rank: [given.get("dim", 0)])
_selected = _across("One position is taken out.", _dims, drops=True)

_RULES: dict[str, Rule] = {
    **dict.fromkeys([f"conv{n}d" for n in (1, 2, 3)] + [f"conv_transpose{n}d" for n in (1, 2, 3)] + ["convolution"], _convolved),
    **dict.fromkeys([f"{kind}_pool{n}d" for kind in ("max", "avg") for n in (1, 2, 3)], _pooled),
    **dict.fromkeys([f"max_pool{n}d_with_indices" for n in (1, 2, 3)], _pooled),
    **dict.fromkeys([f"adaptive_{kind}_pool{n}d" for kind in ("max", "avg") for n in (1, 2, 3)], _adaptively_pooled),
    **dict.fromkeys(
        ["upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d",
         "upsample_trilinear3d", "upsample_bicubic2d"], _resampled
    ),
    "linear": _last, "layer_norm": _normalized, "rms_norm": _normalized, "group_norm": _everywhere, "instance_norm": _everywhere,
    **dict.fromkeys(["mean", "sum", "amax", "amin", "linalg_vector_norm"], _reduced), "softmax": _softmax, "_softmax": _softmax,
    **dict.fromkeys(["chunk", "split", "split_with_sizes"], _split), "select": _selected, "squeeze": _selected,
    "permute": _permuted, "transpose": _permuted, "slice": _sliced, "unsqueeze": _unsqueezed, "embedding": _embedded,
    **dict.fromkeys(["view", "reshape", "_unsafe_view", "flatten"], _viewed),
    **dict.fromkeys(["pad", "constant_pad_nd"], _padded),
}  # fmt: skip
_KEEPING = {
    "batch_norm", "dropout", "clone", "contiguous", "detach", "alias", "to", "_to_copy", "type_as", "getitem", "feature_dropout",
    "relu6", "hardtanh", "prelu", "hardswish", "hardsigmoid", "gelu", "silu", "mish", "elu", "selu", "leaky_relu",
    "softplus", "expand",
}  # fmt: skip
_JOINING = {"cat", "concat", "concatenate"}
