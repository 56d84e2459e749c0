"""Normalisation folded into the layers before it: exact algebra, for inference. Layer 1.

In evaluation a batch normalisation is s x + t with constants s and t a channel, and so is a `Scale`. Behind a convolution or a
linear layer, W x + b, it is the same layer with other weights: (s W) x + (s b + t), computed here in float64 and rounded once.
Nothing can be folded over an addition, a ReLU or a padded border, so that the normalisations of a pre-activation
network that stand before a convolution remain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from residua.layers import Scale, Shift
from residua.unit import BranchOnly, Unit

__all__ = ["BATCH_NORMS", "CONVOLUTIONS", "Folded", "Weighted", "flattened", "folded", "scaled"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_IDLE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)

Weighted = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


@dataclass(frozen=True)
class Folded:
    """A convolution, a linear layer or a batch normalisation with the affine layers behind it folded in, and a ReLU if `relu`.

    `layer` gives the geometry (stride, padding, ...); `weight` has the shape of the layer's own ([channels] for a
    normalisation, which is then weight x + bias), `bias` [outputs]; both are float64 where something was folded or
    the layer is a normalisation, else the layer's own.
    """

    layer: Weighted
    weight: Tensor
    bias: Tensor | None
    relu: bool = False


def flattened(layers: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The layers of a chain in evaluation, one by one: chains within it and plain units are opened, dropout and identities left
    out. A subclass of `Sequential` with a forward pass of its own is opened if it declares `chain_in_evaluation`."""
    for layer in layers:
        if isinstance(layer, nn.Sequential) and _is_chain(layer):
            yield from flattened(layer)
        elif type(layer) is Unit and layer.shortcut is None and type(layer.merge) is BranchOnly:
            yield from flattened((layer.branch, layer.post))
        elif type(layer) not in _IDLE:
            yield layer


def folded(layers: Iterable[nn.Module]) -> list[nn.Module | Folded]:
    """The layers of a chain (`flattened`), each with the affine layers and the ReLU behind it folded in where that is exact."""
    chain: list[nn.Module | Folded] = []
    for layer in flattened(layers):
        last = chain[-1] if chain else None
        absorbed = _absorbed(last, layer) if isinstance(last, Folded) else None
        if absorbed is not None:
            chain[-1] = absorbed
        else:
            chain.append(_opened(layer))
    return chain


def scaled(found: Folded, factor: float) -> Folded:
    """`found`, which has no ReLU, times a number."""
    assert not found.relu
    return _affine(found, torch.tensor(factor, dtype=torch.float64), torch.zeros((), dtype=torch.float64))


def _is_chain(layer: nn.Sequential) -> bool:
    return type(layer).forward is nn.Sequential.forward or bool(getattr(layer, "chain_in_evaluation", False))


def _opened(layer: nn.Module) -> nn.Module | Folded:
    """The layer as one that takes up what follows, or itself if it is none."""
    if type(layer) is nn.Linear or (type(layer) in CONVOLUTIONS and _pads_plainly(layer)):
        assert isinstance(layer, (*CONVOLUTIONS, nn.Linear))
        return Folded(layer, layer.weight.detach(), None if layer.bias is None else layer.bias.detach())
    constants = _constants(layer) if type(layer) in BATCH_NORMS else None
    if constants is None:
        return layer
    assert isinstance(layer, BATCH_NORMS)
    return Folded(layer, *constants)


def _pads_plainly(layer: nn.Module) -> bool:
    return getattr(layer, "padding_mode", None) == "zeros" and not isinstance(getattr(layer, "padding", None), str)


def _absorbed(last: Folded, layer: nn.Module) -> Folded | None:
    """`last` with `layer` folded in; None where that is not exact."""
    if last.relu:
        return None
    if type(layer) is nn.ReLU:
        return replace(last, relu=True)
    constants = _constants(layer)
    if constants is None:
        return None
    scale, shift = constants
    if scale.dim() and (len(scale) != len(last.weight) or (isinstance(last.layer, nn.Linear) and isinstance(layer, Scale))):
        return None
    return _affine(last, scale, shift)


def _affine(last: Folded, scale: Tensor, shift: Tensor) -> Folded:
    weight = last.weight.double()
    weight = weight * (scale.view(-1, *(1,) * (weight.dim() - 1)) if scale.dim() else scale)
    bias = weight.new_zeros(weight.shape[0]) if last.bias is None else last.bias.double()
    return replace(last, weight=weight, bias=bias * scale + shift)


def _constants(layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """(s, t) of the layer s x + t in evaluation, float64 of shape [channels] or []; None if it is no such layer."""
    if type(layer) in BATCH_NORMS:
        assert isinstance(layer, BATCH_NORMS)
        if layer.running_mean is None or layer.running_var is None:
            return None
        scale = (layer.running_var.double() + layer.eps).rsqrt()
        if layer.weight is not None:
            scale = scale * layer.weight.detach().double()
        shift = -layer.running_mean.double() * scale
        return scale, shift if layer.bias is None else shift + layer.bias.detach().double()
    if type(layer) is Scale and (layer.axis == 1 or not layer.weight.dim()):
        weight = layer.weight.detach().double()
        return weight, torch.zeros_like(weight)
    if type(layer) is Shift:
        shift = layer.bias.detach().double()
        return torch.ones_like(shift), shift
    return None
