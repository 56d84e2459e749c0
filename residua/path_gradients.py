"""The gradient of single paths, and of all paths of one length, through a network of units (veit2016 section 5). Layer 1.

A path takes, at every unit with a shortcut, either the branch or the bypass; its length is the number of branches it takes. With
the activations of the full forward pass held fixed, the gradient at the images is the sum over all 2^n paths, since it is a
product of sums. Three ways to look at it:

    one path at a time     `norms` of given paths: one backward pass for a whole batch, another path for each image
    sampled paths          `drawn`: k of n units at random (veit2016 section 5)
    all of a length, exact `sums_by_length`: with the factor t on every branch the gradient is the polynomial sum_k t^k G_k whose
                           coefficients G_k are the sums over all paths of length k; its values at the n + 1 roots of
                           unity give them by a Fourier transform, in n / 2 + 1 backward passes instead of 2^n.

Shapes: images and gradients [N, ...]; paths bool-like float [n, N], 1 where the branch is taken.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from residua.gates import BRANCH, Ways

__all__ = ["Pass", "drawn", "effective", "every", "norms", "orders", "products", "sums_by_length"]


class Pass:
    """One forward pass of `model` with its gates (`residua.gates.watched`), for many backward passes.

    The loss is each image's own cross-entropy, in nats; `gradient` is that at the images.
    """

    def __init__(self, model: nn.Module, ways: Ways, images: Tensor, labels: Tensor, *, doubled: bool = False) -> None:
        self.ways = ways
        self.images = (torch.cat((images, images)) if doubled else images).detach().requires_grad_()
        with torch.enable_grad():
            self.logits = model(self.images)
        with torch.enable_grad():
            free = self.logits.detach()[: len(images)].requires_grad_()
            loss = F.cross_entropy(free, labels, reduction="sum")
        (self.upstream,) = torch.autograd.grad(loss, free)
        if doubled:
            self.upstream = torch.cat((self.upstream, torch.zeros_like(self.upstream)))

    def gradient(self, factors: Tensor | None = None) -> Tensor:
        """The gradient at the images with these factors at the gates (None: all of it)."""
        self.ways.factors = factors
        try:
            (found,) = torch.autograd.grad(
                self.logits, self.images, self.upstream, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        finally:
            self.ways.factors = None
        return found


def orders(units: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` random orders of the units: the place of each unit, int64 [units, count]."""
    return torch.rand(units, count, generator=generator, dtype=torch.float64).argsort(0).argsort(0)


def drawn(order: Tensor, length: int) -> Tensor:
    """The paths that take the branches of the first `length` units of each of `orders`: float [units, count].

    Each is drawn evenly from all paths of that length. One order for all lengths makes the means of neighbouring lengths err
    alike, so that their ratios are surer than they are.
    """
    return (order < length).float()


def every(units: int, length: int) -> Tensor:
    """All paths of the given length: float [units, (units over length)]."""
    chosen = list(itertools.combinations(range(units), length))
    paths = torch.zeros(units, len(chosen))
    for place, taken in enumerate(chosen):
        paths[list(taken), place] = 1
    return paths


def norms(once: Pass, paths: Tensor) -> Tensor:
    """The Euclidean norm of the gradient over one path for each image: float64 [N], of paths [n, N]."""
    return once.gradient(once.ways.only(paths.to(once.images.device))).flatten(1).double().norm(dim=1)


def sums_by_length(model: nn.Module, ways: Ways, images: Tensor, labels: Tensor) -> Tensor:
    """G_k, the sum of the gradients over all paths of each length k = 0 .. n: [n + 1, N, ...] in the dtype of the images.

    Rounding: the error of each G_k is of the order of the dtype's precision times the largest of them.
    """
    count = len(ways.gated) + 1
    once = Pass(model, ways, images, labels, doubled=True)
    values = []
    for power in range(count // 2 + 1):
        angle = 2 * math.pi * power / count
        factors = torch.ones(ways.rows, 2, dtype=torch.complex128, device=images.device)
        factors[ways.gated, BRANCH] *= complex(math.cos(angle), math.sin(angle))
        real, imaginary = once.gradient(factors).chunk(2)
        values.append(torch.complex(real, -imaginary))
    return torch.fft.irfft(torch.stack(values), n=count, dim=0)


def products(units: int, lengths: Sequence[int], gradient: Sequence[float]) -> list[float]:
    """The number of paths of each of `lengths` times its mean gradient norm, as shares of their sum (figure 6c of veit2016)."""
    logs = [
        math.log(math.comb(units, length)) + math.log(value) if value > 0 else -math.inf
        for length, value in zip(lengths, gradient)
    ]
    top = max(logs)
    weights = [math.exp(value - top) if top > -math.inf else 0.0 for value in logs]
    total = math.fsum(weights)
    return [weight / total if total else 0.0 for weight in weights]


def effective(units: int, lengths: Sequence[int], shares: Sequence[float], least: float = 0.95) -> tuple[int, int, float]:
    """The fewest neighbouring lengths whose `shares` add to at least `least` (of several, those with the largest share):
    (shortest, longest, their share of all paths)."""
    sums = [0.0, *itertools.accumulate(shares)]
    spans = [
        (high - low, sums[low] - sums[high + 1], low, high)
        for low in range(len(shares))
        for high in range(low, len(shares))
        if sums[high + 1] - sums[low] >= least - 1e-12
    ]
    low, high = min(spans)[2:] if spans else (0, len(shares) - 1)
    inside = sum(math.comb(units, length) for length in range(lengths[low], lengths[high] + 1))
    return lengths[low], lengths[high], float(Fraction(inside, 2**units))
