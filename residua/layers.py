"""Convolution, normalisation and activation in one to three dimensions, and the initialisers. Layer 0: torch only."""

from __future__ import annotations

import math

from torch import Tensor, nn

__all__ = ["activation", "conv", "global_pool", "he_normal_", "max_pool", "norm", "sequence"]

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_BATCH = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_MAX_POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}


def conv(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, groups: int = 1, bias: bool = False, dims: int = 2
) -> nn.Module:
    """A convolution that keeps the size at stride 1 (padding (kernel - 1) / 2, `kernel` odd); without bias by default,
    since a normalisation follows."""
    return _CONV[dims](in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)


def norm(channels: int, *, kind: str = "batch", dims: int = 2) -> nn.Module:
    """A normalisation over `channels`: `batch` (eps 1e-5, momentum 0.1), `group` (8 groups, or as many as divide), `none`.

    Only `batch` ties the samples of a batch together; use `group` where each sample must stand alone.
    """
    if kind == "batch":
        return _BATCH[dims](channels)
    if kind == "group":
        return nn.GroupNorm(math.gcd(8, channels), channels)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"norm {kind!r} is none of 'batch', 'group', 'none'")


def activation(inplace: bool = False) -> nn.Module:
    """ReLU. Not in place by default: analyses read the signals before and after it."""
    return nn.ReLU(inplace=inplace)


def max_pool(kernel: int, stride: int, *, dims: int = 2) -> nn.Module:
    """Max pooling with padding (kernel - 1) / 2."""
    return _MAX_POOL[dims](kernel, stride, padding=kernel // 2)


def global_pool(x: Tensor) -> Tensor:
    """The mean over all positions, [N, C, ...] -> [N, C]."""
    return x.flatten(2).mean(2)


def sequence(**layers: nn.Module) -> nn.Sequential:
    """A chain of named layers, in the order of the arguments."""
    chain = nn.Sequential()
    for name, layer in layers.items():
        chain.add_module(name, layer)
    return chain


def he_normal_(model: nn.Module) -> nn.Module:
    """Initialises in place as He et al. 2015b ("Delving deep into rectifiers", equation 10), used by he2015 sections 3.4 and 4.2.

    Weights of convolutions and of the classifier: zero-mean Gaussian of standard deviation sqrt(2 / fan_in), where fan_in
    is inputs per output (kernel size times input channels per group). Biases 0; normalisation scale 1, offset 0.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    return model
