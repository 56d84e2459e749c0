"""Maps as the loops of convolutions read them, and their gradients by torch in float64."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["error", "gradients", "laid_out", "made"]


def laid_out(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)


def made(*shape: int, seed: int) -> Tensor:
    return laid_out(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def gradients(x: Tensor, weight: Tensor, dy: Tensor, stride: int = 2, padding: tuple[int, int] = (1, 1)) -> tuple[Tensor, Tensor]:
    """Of the input and the weights."""
    found = torch.ops.aten.convolution_backward(
        dy.double(), x.double(), weight.double(), None, [stride] * 2, padding, [1, 1], False, [0, 0], 1, [True, True, False]
    )
    return found[0], found[1]


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())
