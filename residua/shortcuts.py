"""The shortcuts h of the literature. Layer 1.

he2015 section 3.3 names three for a change of shape: (A) identity with zero-padded channels and no parameters, (B) a 1x1
convolution where the shape changes and the identity elsewhere, (C) a 1x1 convolution everywhere.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from residua.layers import conv, norm, sequence

__all__ = ["ZeroPad", "option", "projection"]


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
