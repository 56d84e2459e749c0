"""3x3 convolutions of stride 2 with many channels in bf16, as products of columns. Layer 2.

What a position of the result reads lies side by side in a column, nine positions of the input with all their channels; so the
convolution is one of 1x1, and so is the gradient of its weights. Where channels are many and maps are small, copying the
columns costs little beside the products: `residua.pointwise` is as fast as oneDNN's convolution then, and faster for the gradient
of the weights. That of the input is oneDNN's. With fewer channels `residua.strided` needs no columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from residua import pointwise, strided

__all__ = ["columns", "convolution", "input_gradient", "obstacle", "pays", "suits", "weight_gradient"]

obstacle = pointwise.obstacle
LEAST_CHANNELS = 256
"""Of the input and of the result; with fewer, oneDNN is as fast."""
WIDEST = 16
"""So are larger maps, whose columns are many."""


def suits(layer: nn.Module | None) -> bool:
    """Whether a layer is a convolution of the kind that is computed here: as `strided.halves` says, with many channels."""
    return strided.halves(layer) and isinstance(layer, nn.Conv2d) and layer.out_channels >= LEAST_CHANNELS


def pays(x: Tensor) -> bool:
    """Whether maps [N, C, H, W] are as small, and have as many channels, as makes it faster."""
    return x.shape[1] >= LEAST_CHANNELS and x.shape[3] <= WIDEST


def columns(x: Tensor) -> Tensor:
    """[N, C, H, W], in channels-last order -> [N, 9 C, ceil(H / 2), ceil(W / 2)]: what each position of the result reads, row by
    row, in the same order."""
    images, channels, height, width = x.shape
    down, across = (height + 1) // 2, (width + 1) // 2
    framed = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, width % 2, 1, height % 2))
    framed = framed.contiguous()  # a single column could lie in either order
    image, row, place, _ = framed.stride()
    windows = framed.as_strided((images, down, across, 3, 3 * channels), (image, 2 * row, 2 * place, row, 1))
    return windows.reshape(images, down, across, 9 * channels).contiguous().permute(0, 3, 1, 2)  # and those of one overlap


def convolution(x: Tensor, weight: Tensor, *, bias: Tensor | None = None, beside: Tensor | None = None) -> Tensor:
    """conv(x) + bias + beside, as far as these are given, with weights [K, C, 3, 3]: x [N, C, H, W] in bf16 and channels-last
    order -> [N, K, ceil(H / 2), ceil(W / 2)]. Without gradient."""
    return pointwise.convolved(columns(x), pointwise.packed(_as_rows(weight)), len(weight), bias=bias, beside=beside)


def input_gradient(dy: Tensor, weight: Tensor, x: Tensor, *, beside: Tensor | None = None) -> Tensor:
    """That of the input x [N, C, H, W] from that of the result, in bf16 and channels-last order, with `beside` added."""
    dx: Tensor = torch.ops.aten.convolution_backward(
        dy, x, weight.to(dy.dtype), None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False]
    )[0]
    return dx if beside is None else dx.add_(beside)


def weight_gradient(x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
    """That of weights [K, C, 3, 3], in float32, from x [N, C, H, W] and the gradient of the result, both in bf16."""
    outputs, inputs = weight.shape[:2]
    found = pointwise.weight_gradient(columns(x), dy, _as_rows(weight))
    return found.view(outputs, 3, 3, inputs).permute(0, 3, 1, 2)


def _as_rows(weight: Tensor) -> Tensor:
    """Weights [K, C, 3, 3] -> [K, 9 C, 1, 1], in the order of columns."""
    return weight.detach().permute(0, 2, 3, 1).reshape(len(weight), -1, 1, 1)
