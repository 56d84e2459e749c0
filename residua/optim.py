"""Parameter groups, optimisers, averaging of weights, and schedules as pure functions. Layer 1."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer, RMSprop

from residua import orthogonal
from residua.network import Network
from residua.recipe import Average, Optim, Schedule

__all__ = [
    "Averaged",
    "Muon",
    "build_optimizer",
    "learning_rate_factor",
    "load_optimizer",
    "optimizer_tensors",
    "set_learning_rate",
]

WIDE, HALVED = 256, 128  # rows from which on a matrix is worth a product by itself, and a symmetric product halves


def learning_rate_factor(schedule: Schedule, progress: float) -> float:
    """The factor of the learning rate after the share `progress` in [0, 1] of all steps."""
    if progress < schedule.warmup:
        if schedule.warmup_shape == "constant":
            return schedule.warmup_factor
        return schedule.warmup_factor + (1 - schedule.warmup_factor) * progress / schedule.warmup
    if schedule.shape == "steps":
        return schedule.drop_factor ** sum(progress >= drop for drop in schedule.drops)
    if schedule.shape == "constant":
        return 1.0
    done = min(1.0, (progress - schedule.warmup) / (1 - schedule.warmup))
    falling = 1 - done if schedule.shape == "linear" else (1 + math.cos(math.pi * done)) / 2
    return schedule.final + (1 - schedule.final) * falling


def set_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Sets every group's learning rate to `factor` times the one it was built with."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def parameter_groups(network: Network, optim: Optim) -> list[dict[str, Any]]:
    """Groups by learning rate and weight decay. The rate falls with the distance from the head, lr times layer_decay ** distance.

    The step along the gradient has a factor besides: `bias_factor` for biases and normalisations, `scale_factor` for the scales
    of these, `head_factor` for the weights of the head, and `stem_factor` for all of the stem. The decay is divided by it, so
    that all weights which decay, decay alike. Unless `decay_all`, tensors of one dimension do not.
    """
    depths = [group for group in network.depth_order() if group]
    scales = {id(p) for name, p in network.named_parameters() if p.ndim < 2 and name.rpartition(".")[2] == "weight"}
    stem = {id(parameter) for parameter in network.stem.parameters()}
    of_scales = optim.bias_factor if optim.scale_factor is None else optim.scale_factor
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for index, parameters in enumerate(depths):
        lr = optim.lr * optim.layer_decay ** (len(depths) - 1 - index)
        of_weights = optim.head_factor if index == len(depths) - 1 else 1.0
        for parameter in parameters:
            factor = of_weights if parameter.ndim > 1 else of_scales if id(parameter) in scales else optim.bias_factor
            factor *= optim.stem_factor if id(parameter) in stem else 1.0
            decays = factor > 0 and (optim.decay_all or parameter.ndim > 1)
            groups.setdefault((lr * factor, optim.weight_decay / factor if decays else 0.0), []).append(parameter)
    return [{"params": params, "lr": lr, "base_lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def build_optimizer(network: Network, optim: Optim, *, bf16: bool = False) -> Optimizer:
    """The optimiser of the recipe over all parameters of `network`, which multiplies in bf16 what it may if `bf16`.

    "sgd" is Nesterov's or heavy-ball momentum with the decay added to the gradient, as the papers train; "adamw" decouples
    the decay; "rmsprop" divides by the root of the running mean square plus eps; "muon" see `Muon`.
    """
    groups = parameter_groups(network, optim)
    if optim.name == "adamw":
        square = 0.999 if optim.square_decay is None else optim.square_decay
        return AdamW(groups, betas=(optim.momentum, square), eps=optim.eps or 1e-8)
    if optim.name == "rmsprop":
        square = 0.99 if optim.square_decay is None else optim.square_decay
        return RMSprop(groups, alpha=square, eps=optim.eps or 1e-8, momentum=optim.momentum)
    if optim.name == "muon":
        return Muon(groups, momentum=optim.momentum, keep_norm=optim.keep_norm, bf16=bf16)
    return SGD(groups, momentum=optim.momentum, nesterov=optim.nesterov)


class Muon(Optimizer):
    """Momentum whose update is made orthogonal for the weights of convolutions (Jordan et al. 2024, "Muon").

    A weight [out, in, ...] is taken as the matrix [out, in * ...]; its update is scaled by ratio * sqrt(max(rows, columns)),
    which gives it a root mean square of about `ratio` (Liu et al. 2025, section 2.2), and its decay is decoupled. With
    `keep_norm` the weight keeps the norm that it starts with, the update is the share `lr` of it, and nothing decays (Jordan
    2024, "airbench94_muon"): where a normalisation follows, only the direction of a weight counts. The classifier, biases and
    normalisations follow SGD with Nesterov momentum.

    With `bf16` matrices that are not small are multiplied in loops of our own (`residua.orthogonal`), on processors that can.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        momentum: float = 0.9,
        ratio: float = 0.2,
        keep_norm: bool = False,
        bf16: bool = False,
    ) -> None:
        super().__init__(groups, {"momentum": momentum, "ratio": ratio, "keep_norm": keep_norm})
        self.loops = bf16 and orthogonal.obstacle() is None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update from the gradients at hand."""
        for group in self.param_groups:
            found = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in found:
                if not self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
                    if group["keep_norm"] and parameter.ndim >= 3:
                        self.state[parameter]["norm"] = parameter.norm()
            self._nesterov([parameter for parameter in found if parameter.ndim < 3], group)
            shapes: dict[torch.Size, list[Tensor]] = {}
            for parameter in found:
                if parameter.ndim >= 3:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for parameters in shapes.values():
                self._orthogonal(parameters, group)

    def _nesterov(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        if not parameters:
            return
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        gradients = list(torch._foreach_add(gradients_of(parameters), parameters, alpha=group["weight_decay"]))
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, gradients)
        torch._foreach_add_(gradients, buffers, alpha=group["momentum"])
        torch._foreach_add_(parameters, gradients, alpha=-group["lr"])

    def _orthogonal(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """The update of convolutions of one shape."""
        first = parameters[0]
        own = self.loops and first.device.type == "cpu" and first.dtype == torch.float32
        if own and orthogonal.suits(first.shape[0], first[0].numel()):
            for parameter in parameters:
                self._by_loops(parameter, group)
            return
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        gradients = gradients_of(parameters)
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        mixed = torch._foreach_lerp(gradients, buffers, group["momentum"])
        if group["keep_norm"]:
            directions = orthogonalized(torch.stack([matrix.flatten(1) for matrix in mixed]))
            for parameter, direction in zip(parameters, directions):
                self._turn(parameter, direction.view(first.shape), group["lr"])
            return
        kept, scale = _factors(first, group)
        if min(first.shape[0], first[0].numel()) < WIDE:  # many small ones: their matrices are multiplied in one batch
            directions = orthogonalized(torch.stack([matrix.flatten(1) for matrix in mixed]))
            torch._foreach_mul_(parameters, kept)
            torch._foreach_add_(parameters, [direction.view(first.shape) for direction in directions], alpha=-scale)
            return
        for parameter, whole in zip(parameters, mixed):
            weight, update = as_matrices(parameter, whole)
            if update.shape[0] > update.shape[1]:
                weight.addmm_(update, orthogonalizing(update.mT[None])[0], beta=kept, alpha=-scale)
            else:
                weight.addmm_(orthogonalizing(update[None])[0], update, beta=kept, alpha=-scale)

    def _by_loops(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """The same for one parameter, in loops of our own, which read each of its tensors once."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if state["momentum_buffer"].stride() != parameter.stride():  # it comes from a file
            state["momentum_buffer"] = torch.empty_like(parameter).copy_(state["momentum_buffer"])
        past = {"buffer": state["momentum_buffer"], "momentum": group["momentum"]}
        if group["keep_norm"]:
            direction = torch.empty_like(parameter)
            orthogonal.update_(direction, parameter.grad, kept=0.0, scale=-1.0, **past)
            self._turn(parameter, direction, group["lr"])
        else:
            kept, scale = _factors(parameter, group)
            orthogonal.update_(parameter, parameter.grad, kept=kept, scale=scale, **past)

    def _turn(self, parameter: Tensor, direction: Tensor, lr: float) -> None:
        """Brings a weight to its norm, then adds an update that is the share `lr` of this norm."""
        norm = self.state[parameter]["norm"]
        parameter.mul_(norm / parameter.norm())
        length = direction.norm().clamp(min=1e-7)  # a gradient of zero turns nothing
        parameter.addcmul_(direction, norm / length, value=-lr)


def _factors(parameter: Tensor, group: dict[str, Any]) -> tuple[float, float]:
    """What a weight is multiplied by, and the size of its update."""
    size = max(parameter.shape[0], parameter[0].numel()) ** 0.5
    return 1 - group["lr"] * group["weight_decay"], group["lr"] * group["ratio"] * size


def gradients_of(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The gradients of those parameters that have one."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def as_matrices(weight: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """A weight [out, in, ...] as the matrix [out, in * ...] that shares its memory, and another tensor of its shape in the same
    order of columns: the order in which those of the first lie, which does not matter to what is made orthogonal."""
    if weight.is_contiguous():
        return weight.view(weight.shape[0], -1), other.contiguous().view(weight.shape[0], -1)
    last = (0, *range(2, weight.ndim), 1)
    return weight.permute(last).view(weight.shape[0], -1), other.permute(last).reshape(weight.shape[0], -1)


def orthogonalized(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrices, roughly (singular values in about [0.7, 1.2]). [B, rows, columns] -> the same."""
    if matrices.shape[1] > matrices.shape[2]:
        return matrices @ orthogonalizing(matrices.mT)
    return orthogonalizing(matrices) @ matrices


def orthogonalizing(wide: Tensor, steps: int = 5) -> Tensor:
    """The symmetric matrices that make those of `wide` roughly orthogonal from the left. [B, rows, columns] -> [B, rows, rows].

    The quintic Newton-Schulz iteration with Jordan's coefficients, X <- (a + b XX' + c (XX')^2) X from X / |X|. Every X is a
    polynomial of the first Gram matrix times the first X, so the iteration runs on the small square matrices alone, and the wide
    ones are multiplied twice in all: for the kernels of convolutions that is less than half of the work. All these
    polynomials are symmetric and commute, so only one triangle of their products is computed.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    gram = symmetric_product(wide, wide.mT)
    scale = 1 / (gram.diagonal(dim1=1, dim2=2).sum(1).sqrt() + 1e-7)[:, None, None]
    gram = gram * scale.square()
    product = gram
    for step in range(steps):
        factor = symmetric_product(gram, gram).mul_(c).add_(gram, alpha=b)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = symmetric_product(factor, product) if step else factor
        if step < steps - 1:
            gram = symmetric_product(symmetric_product(factor, gram), factor)
    return product * scale


def symmetric_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right where that is symmetric: the blocks below the diagonal are those above. [B, n, k], [B, k, n] -> [B, n, n]."""
    size = left.shape[1]
    if size < HALVED:
        return left @ right
    half = size // 2
    product = left.new_empty(left.shape[0], size, size)
    product[:, :half, :half] = symmetric_product(left[:, :half], right[:, :, :half])
    product[:, half:, half:] = symmetric_product(left[:, half:], right[:, :, half:])
    product[:, :half, half:] = left[:, :half] @ right[:, :, half:]
    product[:, half:, :half] = product[:, :half, half:].mT
    return product


class Averaged:
    """An exponential moving average of all floating-point weights and buffers of `network`; others are copied.

    Taken every `every` updates, with the decay min(decay * share ** rise, (1 + step) / (10 + step)), where `share` is the part of
    the run that is done; early weights fade however short the run. With `lookahead` the network goes back to the average each
    time: k steps forward, 1 step back (Zhang et al. 2019, algorithm 1, whose alpha is 1 - decay). The weights are to change in
    place, as optimisers change them.
    """

    def __init__(self, network: nn.Module, average: Average) -> None:
        self.settings = average
        current = network.state_dict()  # collected once: names are long in the making, and share their memory with the weights
        self.tensors = {name: tensor.clone() for name, tensor in current.items()}
        pairs = [(self.tensors[name], tensor) for name, tensor in current.items()]
        self.floating = [pair for pair in pairs if pair[0].is_floating_point()]
        self.others = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int, total_steps: int) -> None:
        """What follows update number `step` (from 0) of `total_steps`."""
        if (step + 1) % self.settings.every and step + 1 < total_steps:
            return
        share = (step + 1) / total_steps
        decay = min(self.settings.decay * share**self.settings.rise, (1 + step) / (10 + step))
        averages, currents = [average for average, _ in self.floating], [current for _, current in self.floating]
        torch._foreach_lerp_(averages, currents, 1 - decay)
        if self.settings.lookahead:
            torch._foreach_copy_(currents, averages)
        for average, current in self.others:
            average.copy_(current)


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors, "<parameter number>.<name>"."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, entry in state.items() for name, value in entry.items() if value is not None}


def load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Puts back what `optimizer_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
