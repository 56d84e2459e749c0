"""The form of a captured graph that the census reads: no side effects, no wrapped regions, and merges of two operands. Layer 3.

Every rewriting here keeps what the graph computes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

__all__ = [
    "arguments",
    "decline",
    "fold_merges",
    "inline_regions",
    "operation",
    "remove_side_effects",
    "sharing",
    "without_checks",
]

_aten = torch.ops.aten
# These give back their input itself where there is nothing to do, which their signature does not say.
_MAYBE_ALIAS = {"dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "type_as", "reshape", "contiguous", "to"}


def operation(node: fx.Node) -> str:
    """The name of a node's operation without namespace and overload ("add"); "getitem"; or "" if it calls no function."""
    if node.op != "call_function":
        return ""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.partition("::")[2]
    return getattr(node.target, "__name__", str(node.target))


def without_checks(graph: fx.Graph) -> None:
    """Removes assertions: they hold for the example inputs, and bind the types, which the proof changes."""
    for node in reversed(list(graph.nodes)):
        name = operation(node)
        if name.startswith(("_assert", "sym_constrain")) or (node.op == "call_module" and str(node.target).startswith("_guards")):
            graph.erase_node(node)


def inline_regions(module: fx.GraphModule) -> None:
    """Puts the nodes of regions under no_grad or autocast in the place of the node that runs the region."""
    for node in list(module.graph.nodes):
        first = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}.get(operation(node))
        if first is None:
            continue
        inner = module.get_submodule(str(arguments(node)[first].target))
        assert isinstance(inner, fx.GraphModule)
        inline_regions(inner)
        known = dict(zip((n for n in inner.graph.nodes if n.op == "placeholder"), arguments(node)[first + 1 :]))
        prefix = str(arguments(node)[first].target)
        with module.graph.inserting_before(node):
            outputs = module.graph.graph_copy(inner.graph, known)
        for copied in known.values():
            if isinstance(copied, fx.Node) and copied.op == "get_attr" and not hasattr(module, str(copied.target)):
                copied.target = f"{prefix}.{copied.target}"
        values = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        for user in list(node.users):
            assert user.target is operator.getitem
            user.replace_all_uses_with(values[arguments(user)[1]])
            module.graph.erase_node(user)
        module.graph.erase_node(node)


def decline(graph: fx.Graph) -> str:
    """The names of the operations of the graph that have side effects."""
    return ", ".join(sorted({operation(node) for node in graph.nodes if _is_mutable(node)}))


def _is_mutable(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def remove_side_effects(graph: fx.Graph) -> bool:
    """Puts x = f(x) in the place of every in-place f_(x). False, and nothing done, where something else also sees x change."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    groups: dict[fx.Node, list[fx.Node]] = {}  # nodes that may share storage, by any of them
    planned: list[tuple[fx.Node, Callable]] = []
    for node in graph.nodes:
        shared = [source for source in node.all_input_nodes if _shares(node, source)]
        groups[node] = groups[shared[0]] if shared else []
        groups[node].append(node)
        if not _is_mutable(node):
            continue
        functional = _functional(node)
        changed = arguments(node)[0] if arguments(node) else None
        if functional is None or not isinstance(changed, fx.Node) or changed.op == "get_attr":
            return False
        for other in groups[node]:
            if other not in (node, changed) and any(order[user] > order[node] for user in other.users):
                return False
        planned.append((node, functional))
    for node, functional in planned:
        changed = arguments(node)[0]
        assert isinstance(changed, fx.Node)
        with graph.inserting_before(node):
            new = graph.call_function(functional, arguments(node), node.kwargs)
        new.meta = dict(node.meta)
        for user in list(changed.users):
            if order.get(user, -1) > order[node]:
                user.replace_input_with(changed, new)
        node.replace_all_uses_with(new)
        order[new] = order[node]
        graph.erase_node(node)
    return True


def _shares(node: fx.Node, source: fx.Node) -> bool:
    """Whether what the node gives may lie in the storage of `source`."""
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    schema = node.target._schema
    aliased = any(result.alias_info is not None for result in schema.returns) or operation(node) in _MAYBE_ALIAS
    return aliased and bool(arguments(node)) and source is arguments(node)[0]


def _functional(node: fx.Node) -> Callable | None:
    """The operation without side effect that has the same arguments; None if there is none."""
    assert isinstance(node.target, torch._ops.OpOverload)
    name, overload = operation(node), node.target._overloadname
    writes = [arg for arg in node.target._schema.arguments if arg.alias_info is not None and arg.alias_info.is_write]
    if not name.endswith("_") or len(writes) != 1 or node.target.namespace != "aten":
        return None
    found = getattr(getattr(_aten, name[:-1], None), overload, None)
    return found if found is not None and not found._schema.is_mutable else None


def fold_merges(graph: fx.Graph) -> None:
    """Concatenations and stacks as concatenations of two; fused products and sums, and interpolations, as sums of two ways."""
    folded: dict[tuple[Any, ...], fx.Node] = {}
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


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """The positional arguments of a node."""
    return node.args


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


def sharing(module: torch.nn.Module, graph: fx.Graph) -> torch.nn.Module:
    """A module that holds under their own dotted names the tensors of `module` that the graph reads: the same ones, no copies."""
    root = torch.nn.Module()
    for name in dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "get_attr"):
        *path, last = name.split(".")
        place, source = root, module
        for part in path:
            source = getattr(source, part)
            if not hasattr(place, part):
                place.add_module(part, torch.nn.Module())
            place = getattr(place, part)
        value = getattr(source, last, None)
        if isinstance(value, torch.nn.Parameter):
            place.register_parameter(last, value)
        elif isinstance(value, Tensor):
            place.register_buffer(last, value, persistent=last not in source._non_persistent_buffers_set)
        elif value is not None:
            setattr(place, last, value)
    return root
