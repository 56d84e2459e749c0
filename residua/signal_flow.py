"""How signal and gradient travel through a network of units (he2016, sections 2 and 3). Layer 1.

With identity shortcuts and an identity after the addition (he2016 equations 4 and 5)

    x_L = x_l + sum F(x_i)          dE/dx_l = dE/dx_L (1 + d/dx_l sum F(x_i)),        i = l .. L - 1

so that the gradient has a direct term, which passes no weights, and one through the weights. Where shortcuts or what follows the
addition are something else, the identities break; the functions here say where, and by how much. The direct term is then what
comes back over the shortcuts alone (and what stands between units), with the activations of the full forward pass.

Shapes: signals of a unit [N, ...] for N images. The loss is the sum of the images' cross-entropies, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from residua.gates import BRANCH, BYPASS, Seen, Ways, in_series, watched
from residua.unit import Add, BranchOnly, SampledAdd, Unit, switched_off

__all__ = [
    "Check", "Terms", "batch_statistics", "broken_identities", "carried", "gradient_terms", "similarity", "variances",
    "without_shortcuts",
]  # fmt: skip


@dataclass(frozen=True)
class Terms:
    """The gradient at the input of each unit and its direct term, for each image: float64 [units, N].

    `full`, `direct` and `longest` are Euclidean norms, `product` the inner product of the full gradient and its direct term.
    `longest` is of what comes back through every branch and no shortcut, the product of the branches' Jacobians, which is all
    that a plain network has. Before a plain unit there is no direct term: it is 0.
    """

    full: Tensor
    direct: Tensor
    product: Tensor
    longest: Tensor

    def direct_share(self) -> list[float]:
        """By unit the share of the gradient that is direct: its projection on the full gradient, sum (direct . full) / sum
        |full|^2. The rest, which makes it up to 1, comes through weights; either can be negative where the two oppose."""
        return (self.product.sum(1) / self.full.square().sum(1).clamp_min(1e-300)).tolist()

    def sum_derivative(self) -> Tensor:
        """By unit and image d/dx_l sum F as the direct term sees it: (full - direct) . direct / |direct|^2, NaN where no direct
        term arrives. At -1 the weights take away what the shortcuts bring (he2016, below equation 5)."""
        return torch.where(self.direct > 0, self.product / self.direct.square() - 1, torch.nan)


@dataclass(frozen=True)
class Check:
    """How far one unit is from y = x + F(x) and dE/dx = dE/dy (1 + dF/dx).

    `signal` is |y - x - F| / |y| and `gradient` |dE/dx - dE/dy - dE/dy dF/dx| / |dE/dx|, over all images; None where the
    shapes of x and y differ, so that nothing can be added. `why` names the parts that are not the identity's ("" if all are).
    """

    path: str
    signal: float | None
    gradient: float | None
    why: str


def _inputs(seen: Sequence[Seen]) -> list[Tensor]:
    return [item.whole()[0] for item in seen]


def _loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images.detach().requires_grad_()), labels, reduction="sum")


def variances(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """By depth: "signal", the variance of each unit's output over images, channels and positions; "branch", that of its F; and
    "gradient", the mean square of dE/dy over the same. The first entry of "signal" and "gradient" is the first unit's input."""
    with watched(model) as ways, torch.enable_grad():
        loss = _loss(model, images, labels)
        signals = [ways.seen[0].whole()[0], *(seen.whole()[1] for seen in ways.seen)]
        branches = [seen.f for seen in ways.seen if seen.f is not None]
        gradients = torch.autograd.grad(loss, signals, allow_unused=True, materialize_grads=True)
        return {
            "signal": [float(signal.detach().double().var(correction=0)) for signal in signals],
            "branch": [float(branch.detach().double().var(correction=0)) for branch in branches],
            "gradient": [float(gradient.double().square().mean()) for gradient in gradients],
        }


def gradient_terms(model: nn.Module, images: Tensor, labels: Tensor) -> Terms:
    """The gradient at the input of each unit, and its parts: one forward and three backward passes."""
    with watched(model) as ways, torch.enable_grad():
        loss = _loss(model, images, labels)
        inputs = _inputs(ways.seen)

        def back(factors: Tensor | None) -> list[Tensor]:
            ways.factors = factors
            found = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
            return [gradient.flatten(1).double() for gradient in found]

        whole, longest = back(None), _norms(back(_cut(ways, BYPASS)))
        direct = back(_cut(ways, BRANCH))
    plain = [place for place in range(len(ways.units)) if place not in ways.gated]
    for gradient in direct[: max(plain, default=-1) + 1]:
        gradient.zero_()
    product = torch.stack([(a * b).sum(1) for a, b in zip(whole, direct)])
    return Terms(_norms(whole), _norms(direct), product, longest)


def _norms(gradients: Sequence[Tensor]) -> Tensor:
    return torch.stack([gradient.norm(dim=1) for gradient in gradients])


def _cut(ways: Ways, way: int) -> Tensor:
    """Factors that close one way of every unit with a shortcut."""
    factors = torch.ones(len(ways.units), 2)
    factors[ways.gated, way] = 0
    return factors


def broken_identities(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[list[Check], list[dict[str, float | int]]]:
    """Both identities for each unit, and for each chain of units that hand on one signal of one shape.

    A chain is {"first", "last" (numbers of units), "signal", "gradient"}: |x_L - x_l - sum F| / |x_L| and
    |dE/dx_l - dE/dx_L - dE/dx_L d(sum F)/dx_l| / |dE/dx_l|. Give a model and images in float64: what is left of identities
    is then some 1e-16.
    """
    with watched(model) as ways, torch.enable_grad():
        loss = _loss(model, images, labels)
        xs = _inputs(ways.seen)
        ys = [seen.whole()[1] for seen in ways.seen]
        fs = [seen.f for seen in ways.seen]
        at_x = torch.autograd.grad(loss, xs, retain_graph=True, allow_unused=True, materialize_grads=True)
        at_y = torch.autograd.grad(loss, ys, retain_graph=True, allow_unused=True, materialize_grads=True)

        def apart(first: int, last: int) -> tuple[float, float]:
            total = torch.stack([f for f in fs[first : last + 1] if f is not None]).sum(0)
            (through,) = torch.autograd.grad(
                total, xs[first], at_y[last], retain_graph=True, allow_unused=True, materialize_grads=True
            )
            signal = _relative(ys[last] - xs[first] - total, ys[last])
            return signal, _relative(at_x[first] - at_y[last] - through, at_x[first])

        found = []
        for place, (path, unit) in enumerate(ways.units):
            fits = _same_shape(xs[place], fs[place], ys[place])
            signal, gradient = apart(place, place) if fits else (None, None)
            found.append(Check(path, signal, gradient, _parts_that_differ(unit, fits)))
        chains: list[dict[str, float | int]] = []
        for first, last in _chains(xs, fs, ys):
            signal, gradient = apart(first, last)
            chains.append({"first": first, "last": last, "signal": signal, "gradient": gradient})
        return found, chains


def _chains(xs: Sequence[Tensor], fs: Sequence[Tensor | None], ys: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
    """The longest runs of units each of which takes what the one before gives, all of one shape."""
    first: int | None = None
    for place in range(len(xs)):
        if not _same_shape(xs[place], fs[place], ys[place]):
            first = None
            continue
        first = place if first is None else first
        follows = place + 1 < len(xs) and xs[place + 1] is ys[place] and _same_shape(xs[place + 1], fs[place + 1], ys[place + 1])
        if not follows:
            yield first, place
            first = None


def _same_shape(x: Tensor, f: Tensor | None, y: Tensor) -> bool:
    return f is not None and x.shape == f.shape == y.shape


def _relative(difference: Tensor, whole: Tensor) -> float:
    return float(difference.detach().norm() / whole.detach().norm().clamp_min(1e-300))


def _parts_that_differ(unit: Unit, fits: bool) -> str:
    """The parts of a unit in words that are not those of y = x + F(x)."""
    parts = []
    if unit.shortcut is None:
        parts.append("no shortcut")
    elif not isinstance(unit.shortcut, nn.Identity):
        parts.append(f"shortcut {type(unit.shortcut).__name__}")
    if isinstance(unit.merge, SampledAdd) and unit.merge.drop:
        parts.append("branch scaled by its probability")
    elif not isinstance(unit.merge, (Add, SampledAdd, BranchOnly)):
        parts.append(f"merge {type(unit.merge).__name__}")
    if not isinstance(unit.post, nn.Identity):
        parts.append(f"{type(unit.post).__name__} after the merge")
    if not fits:
        parts.append("another shape")
    return ", ".join(parts)


# --------------------------------------------------------------------------------------------------------- early features


def similarity(a: Tensor, b: Tensor) -> float | None:
    """Linear CKA of two signals of the same images, [N, ...] each (Kornblith et al. 2019), by the unbiased estimate of HSIC
    (Song et al. 2012, equation 5): 1 for signals that differ by a rotation and a scale, about 0 for unrelated ones. None for
    fewer than 4 images, which that estimate needs, and where it has no finite value."""
    if len(a) < 4:
        return None
    grams = [signal.flatten(1).double() @ signal.flatten(1).double().T for signal in (a, b)]
    cross, own_a, own_b = _hsic(*grams), _hsic(grams[0], grams[0]), _hsic(grams[1], grams[1])
    value = float(cross / (own_a * own_b).sqrt()) if own_a > 0 and own_b > 0 else math.nan
    return value if math.isfinite(value) else None


def _hsic(k: Tensor, l: Tensor) -> Tensor:
    count = len(k)
    k, l = (gram - torch.diag(gram.diagonal()) for gram in (k, l))
    one = k.sum() * l.sum() / ((count - 1) * (count - 2))
    return ((k * l).sum() + one - 2 / (count - 2) * (k.sum(0) @ l.sum(0))) / (count * (count - 3))


def carried(model: nn.Module, images: Tensor, first: int) -> float | None:
    """How much of the signal before unit `first` is in the last unit's output: the squared correlation, over images, channels and
    positions and around each channel's mean, of that output with what the shortcuts alone bring there.

    None where nothing is brought: a plain unit among those from `first` on, or a constant.
    """
    units = [unit for _, unit in in_series(model)]
    if any(unit.shortcut is None for unit in units[first:]):
        return None
    outputs: list[Tensor] = []
    handle = units[-1].register_forward_hook(lambda _m, _i, output: outputs.append(output))
    try:
        with torch.no_grad():
            model(images)
            with switched_off(*units[first:]):
                model(images)
    finally:
        handle.remove()
    whole, brought = (_centred(output) for output in outputs)
    size = whole.norm() * brought.norm()
    return float(((whole * brought).sum() / size) ** 2) if size > 0 else None


def _centred(signal: Tensor) -> Tensor:
    signal = signal.double()
    return signal - signal.mean([0, *range(2, signal.dim())], keepdim=True)


# ------------------------------------------------------------------------------------------------------------ other states


def batch_statistics(model: nn.Module) -> nn.Module:
    """Lets batch normalisations of `model` (which is changed) use the statistics of the batch, all else as in evaluation."""
    model.eval()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            module.train()
    return model


def without_shortcuts(model: nn.Module) -> int:
    """Makes `model` its plain twin: the shortcuts of its additive units are taken out. Returns how many were."""
    units = [unit for _, unit in in_series(model) if unit.shortcut is not None and isinstance(unit.merge, (Add, SampledAdd))]
    for unit in units:
        unit.shortcut, unit.merge = None, BranchOnly()
    return len(units)
