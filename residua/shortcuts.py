"""The shortcuts h of the literature. Layer 1.

he2015 section 3.3 names three for a change of shape: (A) identity with zero-padded channels and no parameters, (B) a 1x1
convolution where the shape changes and the identity elsewhere, (C) a 1x1 convolution everywhere. he2016 section 3 sets
others against the identity: scaled by a constant (`residua.layers.Scale`), gated, a 1x1 convolution, dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from residua.layers import conv, norm, sequence

__all__ = ["Dropped", "Gated", "PoolingIndices", "ZeroPad", "option", "projection"]


class ZeroPad(nn.Module):
    """Option A: every `stride`-th position of x, its channels followed by zeros up to `out_channels`. No parameters.

    he2015 does not say how the identity strides; positions 0, stride, 2 stride, ... are kept (subsampling, as in the
    published re-implementations). Works in any number of dimensions: [N, C, ...] -> [N, out_channels, ...].
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = out_channels - in_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        kept = x[(slice(None), slice(None), *(slice(None, None, self.stride) for _ in range(x.dim() - 2)))]
        return F.pad(kept, (*(0, 0) * (x.dim() - 2), 0, self.extra))


class Gated(nn.Module):
    """(1 - g(x)) h(x) with g = sigmoid(transform(x)): shortcut-only gating (he2016 section 3.1, figure 2d).

    `shortcut` is h; `transform` maps x to logits of the shape of h(x).
    """

    def __init__(self, shortcut: nn.Module, transform: nn.Module) -> None:
        super().__init__()
        self.shortcut, self.transform = shortcut, transform

    def forward(self, x: Tensor) -> Tensor:
        return (1 - torch.sigmoid(self.transform(x))) * self.shortcut(x)


class Dropped(nn.Module):
    """x with a part of it set to zero in training, drawn anew at each forward pass (he2016 section 3.1, figure 2f).

    Each value is kept with probability 1 - `rate` or, with `whole`, each sample's map as a whole. What is kept is not rescaled,
    as in the paper, so that the expectation is (1 - rate) x, and in evaluation the output is that; with `inverted` it is divided
    by 1 - rate, as dropout usually is, so that the expectation is x.
    """

    def __init__(self, rate: float, *, inverted: bool = False, whole: bool = False) -> None:
        super().__init__()
        self.rate, self.inverted, self.whole = rate, inverted, whole

    def forward(self, x: Tensor) -> Tensor:
        mask = x.new_ones((len(x), *(1,) * (x.dim() - 1)) if self.whole else x.shape)
        return x * F.dropout(mask, self.rate, self.training) * (1 if self.inverted else 1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}, inverted={self.inverted}, whole={self.whole}"


class PoolingIndices(nn.Module):
    """Where in x the largest value of each window of side `kernel` stands, for the merge `residua.unit.Unpool` (SegNet).

    [N, C, ...] -> int64 of [N, C, each size / kernel], in one to three dimensions; raises `ValueError` for sizes that `kernel`
    does not divide, since the positions would then not be those of the unpooled map.
    """

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        if any(size % self.kernel for size in x.shape[2:]):
            raise ValueError(f"Unpooling by {self.kernel} needs sizes that it divides, not {tuple(x.shape[2:])}.")
        pool = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}[x.dim()]
        return pool(x, self.kernel, return_indices=True)[1]

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}"


def projection(in_channels: int, out_channels: int, stride: int, *, dims: int = 2, normalization: str = "batch") -> nn.Module:
    """A strided 1x1 convolution and its normalisation."""
    return sequence(
        conv=conv(in_channels, out_channels, 1, stride, dims=dims, bias=normalization == "none"),
        norm=norm(out_channels, kind=normalization, dims=dims),
    )


def option(
    kind: str, in_channels: int, out_channels: int, stride: int, *, dims: int = 2, normalization: str = "batch"
) -> nn.Module:
    """The shortcut of option `kind` (A, B or C) between the given shapes."""
    changes = stride != 1 or in_channels != out_channels
    if kind == "C" or (kind == "B" and changes):
        return projection(in_channels, out_channels, stride, dims=dims, normalization=normalization)
    return ZeroPad(in_channels, out_channels, stride) if changes else nn.Identity()
