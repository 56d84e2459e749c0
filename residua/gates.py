"""The two ways of every unit, watched in the forward pass and gated in the backward pass. Layer 1.

At a merge two ways meet: the bypass (the shortcut h) and the branch (F). The derivative of everything behind the merge with
respect to what lies before it is the sum of what comes back over the one and over the other (he2016 equation 5), and over n
units it is the sum over 2^n paths (veit2016 section 3). A gate stands on each way: it hands the signal on unchanged and
multiplies the gradient by a factor that can be set anew before each backward pass, so that one forward pass serves for many
path-limited backward ones. The model itself is not edited: hooks stand in it for the time of a `with` block.

With the merge `Gate` what comes back through the transform T belongs to the branch, since it passes weights.

Shapes: signals [N, ...]; factors [number of units, 2] or [number of units, 2, N], bypass first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from residua.unit import Gate, Unit, walk

__all__ = ["BRANCH", "BYPASS", "Seen", "Ways", "gate", "in_series", "run_in_series", "watched"]

BYPASS, BRANCH = 0, 1


def in_series(model: nn.Module) -> list[tuple[str, Unit]]:
    """The (path, unit) of the outermost units, in order: what is nested in a unit belongs to that unit's branch."""
    return [(found.path, found.unit) for found in walk(model) if not found.depth]


def run_in_series(model: nn.Module, images: Tensor) -> bool:
    """Whether every way from the images to what `model` gives passes each of its outermost units once, so that n choices make
    2^n paths: none is called several times or not at all, and none stands in one of several towers.

    The ways are counted in the graph that one forward pass leaves for the backward pass.
    """
    images = images.detach().requires_grad_()
    with watched(model) as ways, torch.enable_grad():
        output = model(images)
        ends = [seen.y.grad_fn if seen.y is not None else None for seen in ways.seen]
        once = all(seen.runs == 1 for seen in ways.seen)
    if not once or output.grad_fn is None or None in ends:
        return False
    order = _backwards(output.grad_fn)
    behind = Counter({output.grad_fn: 1})
    for node in order:
        for source in _sources(node):
            behind[source] += behind[node]
    ahead: Counter[Any] = Counter()
    for node in reversed(order):
        own = getattr(node, "variable", None) is images  # other leaves are parameters
        ahead[node] = int(own) + sum(ahead[source] for source in _sources(node))
    return all(ahead[end] * behind[end] == ahead[output.grad_fn] for end in ends)


def _sources(node: Any) -> list[Any]:
    return [source for source, _ in node.next_functions if source is not None]


def _backwards(last: Any) -> list[Any]:
    """The nodes of an autograd graph, each before those that it reads."""
    order: list[Any] = []
    entered: set[Any] = set()
    waiting = [(last, False)]
    while waiting:
        node, left = waiting.pop()
        if left:
            order.append(node)
        elif node not in entered:
            entered.add(node)
            waiting.append((node, True))
            waiting += [(source, False) for source in _sources(node)]
    return order[::-1]


@dataclass
class Seen:
    """The signals of one unit in the last forward pass: its input x, shortcut h (None in a plain unit), branch f, output y; and
    how often it ran in all passes."""

    x: Tensor | None = None
    h: Tensor | None = None
    f: Tensor | None = None
    y: Tensor | None = None
    runs: int = 0

    def whole(self) -> tuple[Tensor, Tensor]:
        """Input and output, of a unit that has run."""
        assert self.x is not None
        assert self.y is not None
        return self.x, self.y


@dataclass
class Ways:
    """The units that are watched, by path, what was `seen` of each, and the `factors` of the next backward pass.

    `factors` None lets everything pass; else [units, 2] or [units, 2, N], real, or complex where the first half of the
    gradient's rows is its real and the second half its imaginary part. `gated` lists the units that have a shortcut, the only
    ones with gates: in a plain unit there is no choice, and its row of the factors is not used. `rows` is the number of rows.
    """

    units: list[tuple[str, Unit]]
    seen: list[Seen]
    factors: Tensor | None = None
    gated: list[int] = field(default_factory=list)
    rows: int = 0

    def __post_init__(self) -> None:
        self.rows = self.rows or len(self.units)

    def scale(self, gradient: Tensor, unit: int, way: int) -> Tensor:
        """The gradient as it goes on beyond the gate of that unit and way."""
        if self.factors is None:
            return gradient
        factor = self.factors[unit, way]
        if factor.is_complex():
            real, imaginary = gradient.chunk(2)
            a, b = factor.real.to(gradient.dtype), factor.imag.to(gradient.dtype)
            return torch.cat((a * real - b * imaginary, b * real + a * imaginary))
        factor = factor.to(gradient)
        return gradient * (factor.reshape(-1, *(1,) * (gradient.dim() - 1)) if factor.dim() else factor)

    def only(self, branches: Tensor) -> Tensor:
        """Factors that let the gradient through the branch of unit i of `gated` where `branches` [G, ...] is 1 and through its
        bypass where it is 0."""
        factors = branches.new_ones(self.rows, 2, *branches.shape[1:])
        factors[self.gated, BYPASS], factors[self.gated, BRANCH] = 1 - branches, branches
        return factors


class _Gated(torch.autograd.Function):
    """The identity, whose gradient is scaled by what `Ways.factors` says at the time of the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ways: Ways, unit: int, way: int) -> Tensor:
        ctx.gate = (ways, unit, way)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        ways, unit, way = ctx.gate
        return ways.scale(gradients[0], unit, way), None, None, None


def gate(signal: Tensor, ways: Ways, unit: int, way: int) -> Tensor:
    """The signal, whose gradient `ways` scales on its way back."""
    return _Gated.apply(signal, ways, unit, way)


@contextmanager
def watched(model: nn.Module) -> Iterator[Ways]:
    """Within the block each forward pass of `model` fills `Ways.seen`, and each backward pass obeys `Ways.factors`.

    A unit that is used several times in one pass is gated every time, and seen as it was the last time.
    """
    units = in_series(model)
    ways = Ways(
        units, [Seen() for _ in units], gated=[place for place, (_, unit) in enumerate(units) if unit.shortcut is not None]
    )
    with ExitStack() as stack:
        for place, (_, unit) in enumerate(units):
            for handle in _hooks(ways, place, unit):
                stack.callback(handle.remove)
        yield ways


def _hooks(ways: Ways, place: int, unit: Unit) -> Iterator[Any]:
    seen = ways.seen[place]
    before: list[Tensor] = []

    def entered(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.runs += 1
        seen.x = inputs[0]

    def merged(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        h, f = inputs
        seen.h, seen.f = h, f
        if h is None:
            return inputs
        before[:] = [h]
        bypass = gate(h, ways, place, BYPASS) if h.is_floating_point() else h
        return bypass, gate(f, ways, place, BRANCH)

    def transformed(_: nn.Module, __: tuple[Any, ...]) -> tuple[Any, ...]:
        return (gate(before[0], ways, place, BRANCH),)

    def left(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        seen.y = output

    yield unit.register_forward_pre_hook(entered)
    yield unit.merge.register_forward_pre_hook(merged)
    if isinstance(unit.merge, Gate):
        yield unit.merge.transform.register_forward_pre_hook(transformed)
    yield unit.register_forward_hook(left)
