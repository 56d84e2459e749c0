"""A captured graph in float64 whose merges can be weighed: what the derivatives of a proof are computed on. Layer 3.

Parameters that are all zero are drawn anew, and with every further attempt all of them. Of a network with many parameters no
second copy is kept: each weight layer widens its weights while it computes, and once more on the way back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate, map_arg

from residua.functional import arguments, operation
from residua.graph import Captured

__all__ = ["MANY", "Ways", "exchange", "wide_input", "widened"]

Ways = tuple[fx.Node, fx.Node, fx.Node]
"""A merge, and the nodes that are its bypass and its branch."""

MANY = 40_000_000  # parameters, 320 MB in float64
_WIDER = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}
_LAYERS = {"linear", "conv1d", "conv2d", "conv3d"}  # weights are their second argument


@contextmanager
def widened(
    captured: Captured,
    merges: Sequence[Ways],
    weigh: Callable[[Tensor, int, int], Tensor],
    attempt: int,
    many: int = MANY,
) -> Iterator[Callable[..., tuple[Any, ...]]]:
    """The graph in float64, as a function of the inputs that gives all outputs as one tuple, within the block.

    Before both operands of the merge `merges[row]` stands `weigh(operand, row, column)`, column 0 on the bypass and 1 on the
    branch. Parameters are drawn anew as `attempt` says; with more than `many` of them the copies are made layer by layer.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    rows = {merge: row for row, (merge, _, _) in enumerate(merges)}
    stored = {str(node.target): _stored(captured, node) for node in captured.module.graph.nodes if node.op == "get_attr"}
    drawn = {name: partial(_drawn, attempt=attempt, seed=1000 * attempt + place) for place, name in enumerate(stored)}
    late = _late(captured, stored) if sum(v.numel() for v in stored.values() if isinstance(v, Tensor)) > many else {}
    for node in captured.module.graph.nodes:
        if node.op == "output":
            graph.output(tuple(copies[source] for source in node.all_input_nodes))
            continue
        copy = graph.node_copy(node, copies.__getitem__)
        args: Any = map_aggregate(copy.args, _wide_type)
        kwargs: Any = map_aggregate(copy.kwargs, _wide_type)
        copy.args, copy.kwargs = args, kwargs
        if node in late:
            copy.target = _sparing(copy.target, drawn[late[node]])
        if node in rows:
            _put(graph, copy, merges[rows[node]], copies, rows[node], weigh)
        copies[node] = copy
    kept = set(late.values())
    holder = _holder({name: value if name in kept else drawn[name](value) for name, value in stored.items()})
    module = fx.GraphModule(holder, graph)
    try:
        yield module.forward
    finally:
        # A graph module refers to itself, so that its tensors would wait for the garbage collector.
        for part in (*module.modules(), *holder.modules()):
            part._buffers.clear()


def wide_input(value: Any, attempt: int) -> Any:
    """An example input in float64; noise in its place where it is constant, or with a further attempt."""
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return value
    wide = value.detach().to(_WIDER.get(value.dtype, value.dtype))
    # A constant image leaves normalised signals at zero.
    return torch.randn_like(wide) if attempt or bool((wide == wide.flatten()[0]).all()) else wide


def exchange(node: fx.Node, others: Mapping[fx.Node, fx.Node]) -> None:
    """Lets a node read others in the place of some of its operands."""
    args: Any = map_arg(node.args, lambda operand: others.get(operand, operand))
    node.args = args


def _put(
    graph: fx.Graph,
    merge: fx.Node,
    ways: Ways,
    copies: dict[fx.Node, fx.Node],
    row: int,
    weigh: Callable[[Any, int, int], Any],
) -> None:
    with graph.inserting_before(merge):
        weighed = {copies[way]: graph.call_function(weigh, (copies[way], row, column)) for column, way in enumerate(ways[1:])}
    exchange(merge, weighed)


def _stored(captured: Captured, node: fx.Node) -> Any:
    value: Any = captured.module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value


def _late(captured: Captured, stored: Mapping[str, Any]) -> dict[fx.Node, str]:
    """The weight layers that widen their own weights, each with the name of these: parameters that only such layers read."""
    readers: dict[str, list[fx.Node]] = {}
    for node in captured.module.graph.nodes:
        if node.op == "get_attr" and isinstance(stored[str(node.target)], torch.nn.Parameter):
            readers.setdefault(str(node.target), []).extend(node.users)
    return {
        reader: name
        for name, found in readers.items()
        if stored[name].dim() > 1 and all(_reads_as_weight(reader, name) for reader in found)
        for reader in found
    }


def _reads_as_weight(node: fx.Node, name: str) -> bool:
    operands = [source for source in node.all_input_nodes if source.op == "get_attr" and source.target == name]
    return operation(node) in _LAYERS and len(operands) == 1 and arguments(node)[1] is operands[0] and not node.kwargs


def _sparing(layer: Any, widen: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def sparing(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        result: Tensor = _Spared.apply(x, layer, widen, weight, rest)
        return result

    return sparing


class _Spared(torch.autograd.Function):
    """A layer that is linear in its input up to a constant; its wide weights live only while it computes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Callable, widen: Callable, weight: Tensor, rest: tuple[Any, ...]) -> Tensor:
        ctx.shape, ctx.layer, ctx.widen, ctx.weight, ctx.rest = x.shape, layer, widen, weight, rest
        y: Tensor = layer(x, widen(weight), *rest)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        with torch.enable_grad():
            x = torch.zeros(ctx.shape, dtype=gradient.dtype, requires_grad=True)
            y = ctx.layer(x, ctx.widen(ctx.weight), *ctx.rest)
        return (*torch.autograd.grad(y, x, gradient), None, None, None, None)


def _drawn(value: Any, *, attempt: int, seed: int) -> Any:
    """A stored value in float64, if it is a tensor; a parameter that is all zero, or with a further attempt any, drawn anew."""
    if not isinstance(value, Tensor):
        return value
    wide = value.detach().to(_WIDER.get(value.dtype, value.dtype))
    if not isinstance(value, torch.nn.Parameter) or not wide.is_floating_point():
        return wide
    generator = torch.Generator(wide.device).manual_seed(seed)
    noise = partial(torch.randn, wide.shape, generator=generator, dtype=wide.dtype, device=wide.device)
    if not bool(wide.any()):
        wide = noise() / math.sqrt(max(1, math.prod(wide.shape[1:]) if wide.dim() > 1 else 100))
    if not attempt:
        return wide
    # What a ReLU silences, or what grows beyond all numbers, does not with other weights: the claim is about the network.
    if wide.dim() > 1:
        return noise() * wide.norm() / math.sqrt(wide.numel()) / (1 + attempt % 2)
    return wide + 0.2 * torch.rand(wide.shape, generator=generator, dtype=wide.dtype, device=wide.device)


def _holder(attributes: Mapping[str, Any]) -> torch.nn.Module:
    """A module that has tensors under dotted names."""
    root = torch.nn.Module()
    for name, value in attributes.items():
        *path, last = name.split(".")
        place = root
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, torch.nn.Module())
            place = getattr(place, part)
        if isinstance(value, Tensor):
            place._buffers[last] = value
        else:
            setattr(place, last, value)
    return root


def _wide_type(value: Any) -> Any:
    return _WIDER.get(value, value) if isinstance(value, torch.dtype) else value
