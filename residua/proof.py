"""The second proof of a skip: both of its ways bear on the output, shown by derivatives in float64. Layer 3.

A scalar factor of one is put on each of the two ways of every merge, and one forward and one backward pass give the derivatives
of a random weighing of the outputs with respect to all of them. Parameters that are all zero are drawn anew on a copy, so that
a zero-initialised head or branch hides nothing. A way whose derivative is zero beyond rounding does not bear on the output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from residua.functional import sharing
from residua.graph import Captured
from residua.signals import is_floating
from residua.wide import Ways, exchange, wide_input, widened

__all__ = ["Ways", "prove", "put_factors"]

_ROUNDING = 1e-12  # relative to the norms of gradient and signal; float64 keeps 16 digits
_ATTEMPTS = 5


def prove(captured: Captured, merges: Sequence[Ways]) -> list[str]:
    """For each merge "" where a derivative shows that both of its ways bear on the output, else the reason why it is not shown.

    The global generator of random numbers is left as it was.
    """
    alive = torch.zeros(len(merges), 2, dtype=torch.bool)
    reason = ""
    with torch.random.fork_rng(devices=[]):
        for attempt in range(_ATTEMPTS if merges else 0):
            torch.manual_seed(attempt)
            try:
                alive |= _derivatives(captured, merges, attempt)
                reason = ""
            except Exception as error:
                reason = (
                    f"The derivatives could not be computed in float64: {(str(error).strip() or repr(error)).splitlines()[0]}"
                )
                if not isinstance(error, ArithmeticError):
                    break
            if bool(alive.all()):
                break
    return [_verdict(bool(bypass), bool(branch), reason) for bypass, branch in alive.tolist()]


def _verdict(bypass: bool, branch: bool, reason: str) -> str:
    if bypass and branch:
        return ""
    if reason:
        return reason
    dead = "neither way bears" if not bypass and not branch else f"the {'branch' if bypass else 'bypass'} does not bear"
    return f"By its structure this is a skip, but {dead} on the output: the derivative is zero."


def _derivatives(captured: Captured, merges: Sequence[Ways], attempt: int) -> Tensor:
    """Which ways have a derivative that is not zero: bool [merges, 2]."""
    found = torch.zeros(len(merges), 2, dtype=torch.bool)
    anchor = torch.ones((), dtype=torch.float64, requires_grad=True)
    shifts = [row for row, (_, bypass, _) in enumerate(merges) if not is_floating(bypass)]

    def weigh(value: Tensor, row: int, column: int) -> Tensor:
        return _Weigh.apply(value, anchor, found, row, column) if value.is_floating_point() or value.is_complex() else value

    inputs = [wide_input(value, attempt) for value in captured.example_inputs]
    with torch.enable_grad(), widened(captured, merges, weigh, attempt) as network:
        outputs = [out for out in network(*inputs) if isinstance(out, Tensor) and (out.is_floating_point() or out.is_complex())]
        if not outputs:
            raise TypeError("no output is a number with a fraction, which alone has a derivative.")
        loss = torch.stack([(out * torch.randn_like(out)).sum().real for out in outputs]).sum()
        if not math.isfinite(loss.item()):
            raise ArithmeticError("the outputs are not finite.")
        if loss.requires_grad:
            loss.backward()
    for row in shifts:
        found[row, 0] = _moves(captured, merges, row, inputs, outputs, attempt)
    return found


class _Weigh(torch.autograd.Function):
    """A factor of one, whose derivative is noted if it is not zero beyond rounding."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, _anchor: Tensor, found: Tensor, row: int, column: int) -> Tensor:
        ctx.save_for_backward(value)
        ctx.found, ctx.row, ctx.column = found, row, column
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,), (value,) = gradients, ctx.saved_tensors
        if gradient is not None:
            derivative = float((gradient * value.conj()).sum().abs())
            scale = float(gradient.norm()) * float(value.detach().norm())
            ctx.found[ctx.row, ctx.column] = math.isfinite(derivative) and derivative > _ROUNDING * scale > 0
        return (gradient if ctx.needs_input_grad[0] else None), None, None, None, None


def _moves(captured: Captured, merges: Sequence[Ways], row: int, inputs: Any, outputs: list[Tensor], attempt: int) -> bool:
    """Whether the outputs change when the positions that an unpooling uses move by one, which a derivative cannot show."""
    merge = merges[row][0]
    size = math.prod(merge.meta["val"].shape[2:])

    def shift(value: Tensor, _row: int, column: int) -> Tensor:
        return (value + 1) % size if column == 0 else value

    torch.manual_seed(attempt)
    with torch.no_grad(), widened(captured, [merges[row]], shift, attempt) as network:
        moved = [out for out in network(*inputs) if isinstance(out, Tensor)]
    torch.manual_seed(attempt)
    return any(bool((new - old).abs().max() > _ROUNDING * old.abs().max()) for new, old in zip(moved, outputs))


def put_factors(captured: Captured, merges: Sequence[Ways]) -> fx.GraphModule:
    """The captured module with `factors[row, 0]` on the bypass and `factors[row, 1]` on the branch of each merge.

    Its parameters are shared. `factors` is a buffer [number of merges, 2] of ones that is not saved. Positions of a pooling
    cannot be weighed and are not.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(captured.module.graph, copies)
    graph.output(result)
    graph.set_codegen(captured.module.graph._codegen)
    first = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(first):
        factors = graph.create_node("get_attr", "factors")
    for row, (merge, *ways) in enumerate(merges):
        weighed: dict[fx.Node, fx.Node] = {}
        with graph.inserting_before(copies[merge]):
            for column, way in enumerate(ways):
                if is_floating(way):
                    line = graph.call_function(torch.ops.aten.select.int, (factors, 0, row))
                    factor = graph.call_function(torch.ops.aten.select.int, (line, 0, column))
                    weighed[copies[way]] = graph.call_function(torch.ops.aten.mul.Tensor, (copies[way], factor))
        exchange(copies[merge], weighed)
    root = sharing(captured.module, graph)
    root.register_buffer("factors", torch.ones(len(merges), 2), persistent=False)
    return fx.GraphModule(root, graph)
