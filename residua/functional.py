"""The form of a captured graph that the census reads: no side effects and no wrapped regions. Layer 3.

Every rewriting here keeps what the graph computes.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

__all__ = [
    "arguments",
    "decline",
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


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """The positional arguments of a node."""
    return node.args


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
            if isinstance(copied, fx.Node) and copied.op == "get_attr" and not _holds(module, str(copied.target)):
                copied.target = f"{prefix}.{copied.target}"
        values = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        for user in list(node.users):
            assert user.target is operator.getitem
            user.replace_all_uses_with(values[arguments(user)[1]])
            module.graph.erase_node(user)
        module.graph.erase_node(node)


def _holds(module: Any, name: str) -> bool:
    """Whether a module has an attribute of this dotted name."""
    for part in name.split("."):
        if not hasattr(module, part):
            return False
        module = getattr(module, part)
    return True


def decline(graph: fx.Graph) -> str:
    """The names of the operations of the graph that have side effects."""
    return ", ".join(sorted({operation(node) for node in graph.nodes if _is_mutable(node)}))


def _is_mutable(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def remove_side_effects(graph: fx.Graph) -> bool:
    """Puts x = f(x) in the place of every in-place f_(x). False, and nothing done, where something else also sees x change.

    A buffer that is changed in place keeps its value: what is computed from it afterwards is computed from the new one.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    groups: dict[fx.Node, list[fx.Node]] = {}  # nodes that may share storage, by any of them
    planned: list[tuple[fx.Node, Callable]] = []
    stored = Counter(node.target for node in graph.nodes if node.op == "get_attr")
    for node in graph.nodes:
        shared = [source for source in node.all_input_nodes if _shares(node, source)]
        groups[node] = groups[shared[0]] if shared else []
        groups[node].append(node)
        if not _is_mutable(node):
            continue
        functional = _functional(node)
        changed = arguments(node)[0] if arguments(node) else None
        if functional is None or not isinstance(changed, fx.Node) or stored[changed.target] > 1:
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
