"""What each unit adds to the logits directly, over shortcuts alone, so that the parts add up to the logits. Layer 3.

With every branch output F_l taken as given, what is left of a residual network is its direct way: shortcuts, what follows the
additions, and the head. There ReLU, and pooling by the maximum, are linear once it is fixed which values they let through for
this image; normalisation in evaluation mode, convolution and the classifier are affine. So

    logit_k = constant_k + < d logit_k / d x_0 , x_0 > + sum_l < d logit_k / d F_l , F_l >    (derivatives over the direct way)

holds exactly, where x_0 is the signal that enters the first unit and the constant collects the biases on the direct way. In a
network without anything after the additions (pre-activation), the direct way is x_L = x_0 + sum F_l of he2016 equation 4, and
only the head bends it. Where a unit is followed by ReLU (he2015), which values pass depends on all branches before it, and so
does what is counted for each: the sum is exact, the division is that of the fixed pattern. A branch also acts through the later
branches that read it; that is no part of these figures, but of the change of the logits when the unit is off.

Layers on the direct way that are neither (a sigmoid, a layer normalisation) break the equation: the error of completeness, the
logits minus all parts, shows by how much.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from residua.analysis import NotApplicable, Place
from residua.unit import Gate, Unit

__all__ = ["Contrast", "Decomposition", "decomposed", "each_class", "margin"]


Contrast = Callable[[Tensor], Tensor]
"""From logits [N, K] to weights [D, N, K]: which D weighted sums of each image's logits are divided."""


@dataclass(frozen=True)
class Decomposition:
    """For N images and D weighted sums of their logits: the `sums` [N, D]; their parts `start` [N, D] (the signal that enters the
    first unit), `units` [U, N, D] (one for each branch) and `constant` [N, D]; `logits` [N, K] are the network's."""

    sums: Tensor
    start: Tensor
    units: Tensor
    constant: Tensor
    logits: Tensor

    @property
    def error(self) -> Tensor:
        """What the parts miss, [N, D]: zero to rounding where the direct way is piecewise linear."""
        return self.sums - self.start - self.units.sum(0) - self.constant


def margin(logits: Tensor) -> Tensor:
    """The contrast that decides a prediction: the largest logit minus the second largest, weights [1, N, K]."""
    first, second = logits.topk(2, dim=1).indices.unbind(1)
    weights = torch.zeros_like(logits)
    weights.scatter_(1, first[:, None], 1.0).scatter_(1, second[:, None], -1.0)
    return weights[None]


def each_class(logits: Tensor) -> Tensor:
    """The contrast whose sums are the logits themselves, weights [K, N, K]."""
    return torch.eye(logits.shape[1]).to(logits)[:, None].expand(-1, *logits.shape)


def decomposed(
    model: nn.Module,
    images: Tensor,
    places: Sequence[Place],
    contrast: Contrast = each_class,
    *,
    dtype: torch.dtype = torch.float64,
) -> Decomposition:
    """The parts of weighted sums of the logits that `model` gives for `images` [N, C, H, W] in evaluation mode.

    `places` are units of the model, those that lie in no other one, in order. The work is done on a copy in `dtype`. Raises
    `NotApplicable` where the units are not called once each, one after the other.
    """
    twin = copy.deepcopy(model).to(dtype).eval().requires_grad_(False)
    units = [twin.get_submodule(place.path) for place in places]
    with _direct(twin, [unit for unit in units if isinstance(unit, Unit)]) as way, torch.enable_grad():
        logits = twin(images.to(dtype))
    if len(way.sources) != len(units) + 1:
        raise NotApplicable("The logits can be divided only among units that are each called once, one after the other.")
    outputs = [output for output, _ in way.affine]
    rows, constants = [], []
    weights = contrast(logits.detach())
    for one in weights:
        inputs = [*way.sources, *outputs]
        gradients = torch.autograd.grad((one * logits).sum(), inputs, retain_graph=True, allow_unused=True)
        rows.append(torch.stack([_inner(g, source) for g, source in zip(gradients, way.sources)]))
        biased = zip(gradients[len(way.sources) :], (constant for _, constant in way.affine))
        constants.append(sum((_inner(g, constant) for g, constant in biased), torch.zeros_like(rows[-1][0])))
    parts = torch.stack(rows, dim=-1).detach()
    sums = (weights * logits.detach()).sum(-1).T
    return Decomposition(sums, parts[0], parts[1:], torch.stack(constants, dim=-1).detach(), logits.detach())


@dataclass(frozen=True)
class _Way:
    """What is met on the direct way: the signals it starts from (that of the first unit, then each branch's output), and (output,
    what it would be for an input of zeros) of each module with biases."""

    sources: list[Tensor] = field(default_factory=list)
    affine: list[tuple[Tensor, Tensor]] = field(default_factory=list)


@contextmanager
def _direct(model: nn.Module, units: Sequence[Unit]) -> Iterator[_Way]:
    """Within the block gradients of `model` flow over the direct way only; it is run once."""
    way = _Way()

    def begin(_unit: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        way.sources.append(inputs[0].detach().requires_grad_())
        return (way.sources[-1], *inputs[1:])

    def cut(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(item.detach() if isinstance(item, Tensor) else item for item in inputs)

    def given(_branch: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        way.sources.append(output.detach().requires_grad_())
        return way.sources[-1]

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad and len(inputs) == 1 and isinstance(inputs[0], Tensor):
            with torch.no_grad():
                constant = module.forward(torch.zeros_like(inputs[0]))
            if constant.any():
                way.affine.append((output, constant))

    handles = [module.register_forward_hook(note) for module in model.modules() if not any(True for _ in module.children())]
    handles += [units[0].register_forward_pre_hook(begin)] if units else []
    for unit in units:
        handles += [unit.branch.register_forward_pre_hook(cut), unit.branch.register_forward_hook(given)]
        if isinstance(unit.merge, Gate):  # what the gate lets through is fixed like what a ReLU lets through
            handles.append(unit.merge.transform.register_forward_pre_hook(cut))
    try:
        yield way
    finally:
        for handle in handles:
            handle.remove()


def _inner(gradient: Tensor | None, signal: Tensor) -> Tensor:
    """The inner product for each image, [N]."""
    return torch.zeros(len(signal)).to(signal) if gradient is None else (gradient * signal).flatten(1).sum(1)
