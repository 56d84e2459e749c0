"""What a node of a captured graph does, in the words of figure 3 of he2015: "3×3 conv, 64, /2", "max pool, /2", "fc, 1000".

Layer 1: reads fx nodes of aten operations, with the shapes in their `meta["val"]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import fx

__all__ = ["join_words", "layer_words", "resolution_words"]

_TIMES = "×"
_JOINS = {"cat": "concat", "stack": "stack", "add": "sum", "sub": "difference", "mul": "product", "div": "quotient"}


def layer_words(node: fx.Node) -> str:
    """Kernel, outgoing channels, groups and stride of a convolution, outgoing features of a linear map or an embedding, of any
    other operation its name: "" where the shapes are not known."""
    name = operation(node)
    weight = next((shape for shape in map(shape_of, node.all_input_nodes[1:]) if len(shape) >= 2), ())
    if name.startswith("conv") and "transpose" not in name and name != "convolution":
        return _convolution(weight, _argument(node, 3), _argument(node, 6, 1), transposed=False)
    if name.startswith("conv_transpose"):
        return _convolution(weight, _argument(node, 3), _argument(node, 6, 1), transposed=True)
    if name == "convolution":
        return _convolution(weight, _argument(node, 3), _argument(node, 8, 1), transposed=bool(_argument(node, 6, False)))
    out = shape_of(node)
    if name in ("linear", "addmm", "mm", "bmm", "matmul", "baddbmm") and out:
        return f"fc, {out[-1]}"
    if name == "embedding" and out:
        return f"embedding, {out[-1]}"
    return f"{name.replace('_', ' ')}, {out[-1]}" if out else ""


def join_words(node: fx.Node) -> str:
    """How an operation joins its inputs: "concat", "sum", "product"; "" for one that has no short name."""
    return _JOINS.get(operation(node).rstrip("_"), "")


def resolution_words(node: fx.Node) -> str:
    """What an operation without weights does to the resolution: "max pool, /2", "avg pool" (of the whole map), "upsample, ×2";
    "" where it leaves the resolution alone."""
    name = operation(node)
    before, after = shape_of(node.all_input_nodes[0])[2:] if node.all_input_nodes else (), shape_of(node)[2:]
    if "pool" in name and "unpool" not in name:
        kind = "max pool" if "max" in name else "avg pool"
    elif name.startswith("upsample"):
        kind = "upsample"
    elif name == "mean":
        return "avg pool" if before and math.prod(after) <= 1 else ""
    else:
        return ""
    if not before or not after or math.prod(after) == 1:
        return kind
    if len(before) == len(after):  # a map of one dimension may be given two, the first of size 1
        kept = [(old, new) for old, new in zip(before, after) if (old, new) != (1, 1)]
        before, after = tuple(old for old, _ in kept), tuple(new for _, new in kept)
    if before == after:
        return "" if "adaptive" in name else f"{kind}, /1"
    if len(before) == len(after) and all(old >= new for old, new in zip(before, after)):
        return f"{kind}, /{_side([math.ceil(old / new - 0.25) for old, new in zip(before, after)])}"
    return f"{kind}, {_TIMES}{_side([round(new / old) for old, new in zip(before, after)])}"


def operation(node: fx.Node) -> str:
    """The name of a node's operation without its overload: "conv2d" of aten.conv2d.default."""
    packet = getattr(node.target, "overloadpacket", None)
    name = packet.__name__ if packet is not None else getattr(node.target, "__name__", str(node.target).split(".")[-1])
    return name.lstrip("_").removesuffix("_with_indices")


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's (first) tensor; () where it is not known."""
    value = node.meta.get("val", node.meta.get("tensor_meta"))
    if isinstance(value, (tuple, list)):
        value = value[0] if value else None
    return tuple(int(size) for size in getattr(value, "shape", ()))


def _convolution(weight: Sequence[int], stride: object, groups: object, *, transposed: bool) -> str:
    if len(weight) < 3:
        return "up-conv" if transposed else "conv"
    count = groups if isinstance(groups, int) else 1
    channels = weight[1] * count if transposed else weight[0]
    steps = list(stride) if isinstance(stride, (list, tuple)) else [stride] if isinstance(stride, int) else [1]
    kernel = _TIMES.join(map(str, weight[2:])) if len(weight) > 3 else str(weight[2])
    text = f"{kernel} {'up-conv' if transposed else 'conv'}, {channels}"
    if count > 1:
        text += f", {count} groups" if count < channels else ", depthwise"
    if max(steps) > 1:
        text += f", {_TIMES if transposed else '/'}{_side(steps)}"
    return text


def _side(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else _TIMES.join(map(str, values))


def _argument(node: fx.Node, place: int, default: object = None) -> object:
    names = {3: "stride", 6: "groups", 8: "groups"}
    return node.args[place] if len(node.args) > place else node.kwargs.get(names.get(place, ""), default)
