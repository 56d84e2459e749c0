"""Merges of two operands: concatenations, stacks and their sums, fused sums and gates in one operation, unfolded. Layer 3.

Every rewriting here keeps what the graph computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from residua.functional import arguments, operation

__all__ = ["fold_merges"]

_aten = torch.ops.aten


def fold_merges(graph: fx.Graph) -> None:
    """Concatenations and stacks as concatenations of two; fused products and sums, and interpolations, as sums of two ways; the
    sum or mean of a stack, along the axis that it adds, as sums of two."""
    folded: dict[tuple[Any, ...], fx.Node] = {}
    for node in list(graph.nodes):
        if operation(node) in ("sum", "mean") and isinstance(node.target, torch._ops.OpOverload):
            stack = arguments(node)[0]
            if operation(stack) == "stack" and _adds_up(node, stack):
                _replace(graph, node, partial(_added, graph, node, stack))
                if not stack.users:
                    graph.erase_node(stack)
    for node in list(graph.nodes):
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        match operation(node):
            case "copy":
                _replace(graph, node, partial(_copied, graph, node))
            case "stack":
                _replace(graph, node, partial(_unstacked, graph, node))
            case "addcmul" | "addmm" | "baddbmm" | "addbmm" | "addmv" | "addr" if _varies(arguments(node)[0]):
                _replace(graph, node, partial(_unfused, graph, node))
            case "lerp" if _varies(arguments(node)[0]) and _varies(arguments(node)[1]):
                _replace(graph, node, partial(_gated, graph, node, *arguments(node)))
            case "add" | "sub":
                ways = _interpolated(node)
                if ways is not None:
                    _replace(graph, node, partial(_gated, graph, node, *ways))
    for node in list(graph.nodes):
        if operation(node) in ("cat", "concat", "concatenate") and len(arguments(node)[0]) > 2:
            _replace(graph, node, partial(_folded, graph, node, folded))
        elif operation(node) in ("cat", "concat", "concatenate") and len(arguments(node)[0]) == 2:
            folded.setdefault((*arguments(node)[0], _axis(node)), node)


def _varies(value: Any) -> bool:
    """Whether a value is computed from something: no stored parameter, no number."""
    return isinstance(value, fx.Node) and value.op != "get_attr"


def _replace(graph: fx.Graph, node: fx.Node, build: Callable[[], fx.Node | None]) -> None:
    with graph.inserting_before(node):
        new = build()
    if new is not None:
        new.meta = {**node.meta, "val": new.meta.get("val", node.meta.get("val"))}
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _call(graph: fx.Graph, like: fx.Node, target: Callable, *args: Any, shape: Iterable[int] | None = None) -> fx.Node:
    """A node at the present place of insertion, with the place in the modules of `like`, and its shape unless one is given."""
    node = graph.call_function(target, args)
    node.meta = dict(like.meta)
    value = like.meta.get("val")
    if shape is not None and isinstance(value, Tensor):
        node.meta["val"] = torch.empty(tuple(shape), dtype=value.dtype, device="meta")
    return node


def _unstacked(graph: fx.Graph, node: fx.Node) -> fx.Node:
    axis = _axis(node)
    parts = []
    for part in arguments(node)[0]:
        shape = list(part.meta["val"].shape) if isinstance(part.meta.get("val"), Tensor) else []
        place = axis if axis >= 0 else len(shape) + 1 + axis
        parts.append(_call(graph, node, _aten.unsqueeze.default, part, axis, shape=[*shape[:place], 1, *shape[place:]]))
    return _call(graph, node, _aten.cat.default, parts, axis)


def _adds_up(node: fx.Node, stack: fx.Node) -> bool:
    """Whether a sum or mean goes over just the axis along which `stack` puts its parts, in the parts' own type."""
    axes: Any = arguments(node)[1] if len(arguments(node)) > 1 else node.kwargs.get("dim")
    axes = [axes] if isinstance(axes, int) else axes
    values: list[Any] = [part.meta.get("val") for part in (stack, node, *arguments(stack)[0])]
    if not axes or len(axes) != 1 or len(values) < 4 or not all(isinstance(value, Tensor) for value in values):
        return False
    same = len({value.dtype for value in values}) == 1 and values[0].is_floating_point()
    return same and (axes[0] - _axis(stack)) % values[0].dim() == 0


def _added(graph: fx.Graph, node: fx.Node, stack: fx.Node) -> fx.Node:
    """((a + b) + c) + ..., divided by their number for a mean."""
    total, *rest = arguments(stack)[0]
    shape = total.meta["val"].shape
    for part in rest:
        total = _call(graph, node, _aten.add.Tensor, total, part, shape=shape)
    if operation(node) == "mean":
        total = _call(graph, node, _aten.div.Tensor, total, len(rest) + 1, shape=shape)
    kept = arguments(node)[2] if len(arguments(node)) > 2 else node.kwargs.get("keepdim", False)
    return _call(graph, node, _aten.unsqueeze.default, total, _axis(stack)) if kept else total


def _copied(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """The second operand in the shape of the first: what copying over it leaves. `copy` has no derivative."""
    into, source = arguments(node)[:2]
    shapes = [value.meta.get("val") for value in (into, source)]
    if not all(isinstance(value, Tensor) for value in shapes) or shapes[0].dtype != shapes[1].dtype:
        return None
    return _call(graph, node, _aten.expand.default, source, list(shapes[0].shape))


def _axis(node: fx.Node) -> int:
    axis = arguments(node)[1] if len(arguments(node)) > 1 else node.kwargs.get("dim", 0)
    assert isinstance(axis, int)
    return axis


def _folded(graph: fx.Graph, node: fx.Node, folded: dict[tuple[Any, ...], fx.Node]) -> fx.Node:
    axis, (first, *rest) = _axis(node), arguments(node)[0]
    for part in rest:
        key = (first, part, axis)
        if key not in folded:
            left, right = first.meta.get("val"), part.meta.get("val")
            shape = None
            if isinstance(left, Tensor) and isinstance(right, Tensor) and left.dim() == right.dim():
                shape = list(left.shape)
                shape[axis] += right.shape[axis]
            folded[key] = _call(graph, node, _aten.cat.default, [first, part], axis, shape=shape)
        first = folded[key]
    return first


def _unfused(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """beta * self + alpha * (the product), as two nodes; None where the factors are not 1."""
    if any(value != 1 for value in node.kwargs.values()) or len(arguments(node)) > 3:
        return None
    product = {"addcmul": _aten.mul.Tensor, "addmm": _aten.mm.default, "baddbmm": _aten.bmm.default, "addmv": _aten.mv.default}
    target = product.get(operation(node))
    if target is None:
        return None
    right = _call(graph, node, target, arguments(node)[1], arguments(node)[2])
    return _call(graph, node, _aten.add.Tensor, arguments(node)[0], right)


def _gated(graph: fx.Graph, node: fx.Node, shortcut: Any, branch: Any, gate: Any) -> fx.Node:
    """(1 - gate) shortcut + gate branch."""
    if isinstance(gate, fx.Node):
        rest: Any = _call(graph, gate, _aten.rsub.Scalar, gate, 1)
    else:
        rest = 1 - gate
    left = _call(graph, node, _aten.mul.Tensor, shortcut, rest)
    return _call(graph, node, _aten.add.Tensor, left, _call(graph, node, _aten.mul.Tensor, branch, gate))


def _interpolated(node: fx.Node) -> tuple[fx.Node, Any, Any] | None:
    """(h, F, T) of h + T (F - h), which is a gate written with one product."""
    if operation(node) != "add" or node.kwargs or len(arguments(node)) != 2:
        return None
    for h, product in (arguments(node), arguments(node)[::-1]):
        if isinstance(product, fx.Node) and operation(product) == "mul" and len(product.users) == 1:
            for difference, gate in (arguments(product), arguments(product)[::-1]):
                if (
                    isinstance(difference, fx.Node)
                    and operation(difference) == "sub"
                    and not difference.kwargs
                    and len(difference.users) == 1
                    and arguments(difference)[1] is h
                    and _varies(h)
                ):
                    return h, arguments(difference)[0], gate
    return None
