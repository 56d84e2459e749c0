"""Bytes of images to normalised floats, cropped from their padded selves and mirrored on the way, in one pass. Layer 1.

What a byte becomes is looked up in a table, so the values are those that `residua.augment` computes one step after the other. The
loop is in normalizing.c and is for the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from residua.native import FLAG, NUMBER, POINTER, Source

__all__ = ["normalized", "obstacle"]

_LOOPS = Source("normalizing.c", {"normalize": [POINTER] * 7 + [NUMBER] * 5 + [FLAG]})
obstacle = _LOOPS.obstacle


def normalized(
    images: Tensor, tables: Tensor, mirrored: Tensor | None = None, *,
    top: Tensor | None = None, left: Tensor | None = None, pad: int = 0, outside: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """uint8 images [N, C, H, W] on the CPU, contiguous or in channels-last order -> float32, laid out alike.

    `tables` [C, 256]: what each byte becomes. `top`, `left`, int64 [N]: the corner of the crop of H x W from the image padded by
    `pad`; the padding becomes `outside` [C], or reflects the image. `mirrored`, bool [N]: which crops are mirrored.
    """
    last = images.is_contiguous(memory_format=torch.channels_last)
    assert last or images.is_contiguous(), "another order would be read wrongly"
    assert len(tables) == images.shape[1], "each channel has its table"
    assert outside is not None or pad < min(images.shape[2:]), "there is no more than the image to reflect"
    found = torch.empty(images.shape, memory_format=torch.channels_last if last else torch.contiguous_format)
    given = [tensor if tensor is None else tensor.contiguous() for tensor in (outside, top, left, mirrored)]
    tables = tables.float().contiguous()
    addresses = [None if tensor is None else tensor.data_ptr() for tensor in given]
    _LOOPS.library.normalize(images.data_ptr(), found.data_ptr(), tables.data_ptr(), *addresses, *images.shape, pad, last)
    return found
