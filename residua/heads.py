"""The head of a network for inference: means over positions, and scores by a linear layer, in float32. Layer 2.

The last layer of ResNet-50 has eight megabytes of weights, which a product with few rows has to wait for. Matrix libraries read
them in one thread where there is one image, and slowly where there are some.

The loops are in heads.c, for processors with AVX-512 BF16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from residua.native import NUMBER, POINTER, Source

__all__ = ["means", "obstacle", "scores"]

_LOOPS = Source(
    "heads.c",
    {"head_means": [POINTER, POINTER] + [NUMBER] * 3, "head_scores": [POINTER] * 4 + [NUMBER] * 3},
    nothing=["head_means", "head_scores"],
    bf16=True,
)
obstacle = _LOOPS.obstacle


def means(x: Tensor) -> Tensor:
    """Over all positions: [N, C, H, W] in bf16 and channels-last order -> [N, C] in float32."""
    images, channels, height, width = x.shape
    found = torch.empty((images, channels))
    _LOOPS.library.head_means(x.data_ptr(), found.data_ptr(), images, height * width, channels)
    return found


def scores(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W' + bias: x [N, C], `weight` [K, C], `bias` [K], all in float32 and dense -> [N, K]. Without gradient."""
    found = torch.empty((len(x), len(weight)))
    _LOOPS.library.head_scores(
        x.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr(), found.data_ptr(), *x.shape, len(weight)
    )
    return found
