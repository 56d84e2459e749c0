"""The residual branches F of the literature. Layer 1. Shapes: [N, in, H, W] -> [N, out, H / stride, W / stride]."""

from __future__ import annotations

from torch import nn

from residua.layers import activation, conv, norm, sequence

__all__ = ["basic", "bottleneck"]


def basic(in_channels: int, width: int, stride: int, *, normalization: str = "batch", dims: int = 2) -> nn.Sequential:
    """3x3, 3x3 (he2015 figure 5, left): two convolutions of `width` channels, each followed by its normalisation."""
    bias = normalization == "none"
    return sequence(
        conv1=conv(in_channels, width, 3, stride, dims=dims, bias=bias),
        norm1=norm(width, kind=normalization, dims=dims),
        act1=activation(),
        conv2=conv(width, width, 3, dims=dims, bias=bias),
        norm2=norm(width, kind=normalization, dims=dims),
    )


def bottleneck(
    in_channels: int,
    width: int,
    stride: int,
    *,
    expansion: int = 4,
    stride_on: str = "3x3",
    normalization: str = "batch",
    dims: int = 2,
) -> nn.Sequential:
    """1x1 to `width`, 3x3, 1x1 to `expansion * width` (he2015 figure 5, right).

    `stride_on` places the stride: "1x1" on the first convolution (the form whose multiply-adds he2015 prints) or "3x3" (the
    re-implementations' form, more accurate and some 5 % dearer).
    """
    bias = normalization == "none"
    first, second = (stride, 1) if stride_on == "1x1" else (1, stride)
    return sequence(
        conv1=conv(in_channels, width, 1, first, dims=dims, bias=bias),
        norm1=norm(width, kind=normalization, dims=dims),
        act1=activation(),
        conv2=conv(width, width, 3, second, dims=dims, bias=bias),
        norm2=norm(width, kind=normalization, dims=dims),
        act2=activation(),
        conv3=conv(width, expansion * width, 1, dims=dims, bias=bias),
        norm3=norm(expansion * width, kind=normalization, dims=dims),
    )
