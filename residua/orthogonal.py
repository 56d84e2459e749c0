"""Orthogonal updates of wide weights on processors that multiply bf16: Muon's iteration in loops of our own. Layer 1.

The products with the update round it to bf16, as Jordan's programs and torch's Muon do with all; the small square matrices
between them stay in float32, for their least eigenvalues decide. A direction is some 0.3 % of its size away from that in
float64, and up to 5 % where a matrix is square and nearly singular. The loops are in orthogonal.c and need AVX-512 BF16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from residua.native import NUMBER, POINTER, REAL, Source

__all__ = ["obstacle", "suits", "update_"]

_LOOPS = Source("orthogonal.c", {"muon_update": [POINTER] * 3 + [REAL] + [NUMBER] * 2 + [REAL] * 2}, bf16=True)
obstacle = _LOOPS.obstacle


def suits(rows: int, columns: int) -> bool:
    """Whether the loops take matrices of this shape."""
    return rows % 16 == columns % 16 == 0


def update_(
    weight: Tensor, update: Tensor, *, kept: float, scale: float, buffer: Tensor | None = None, momentum: float = 0.0
) -> None:
    """weight = kept * weight - scale * (the matrix nearest to `update` with singular values of about 1), both [rows, ...] in
    float32, taken as matrices [rows, columns]; the polynomial is that of `residua.optim.orthogonalizing`.

    With `buffer`, like them, `update` is a gradient: the buffer becomes momentum * buffer + (1 - momentum) * gradient, and the
    update is the same mixture of gradient and buffer (Nesterov). With `kept` 0 the weight may hold anything before. Columns are
    taken in the order in which those of the weight lie, which does not matter to what is made orthogonal."""
    rows, columns, order = len(weight), weight.numel() // len(weight), weight.stride()
    assert order[0] == columns, "rows lie one behind the other"
    assert weight.is_contiguous() or weight.permute(0, *range(2, weight.ndim), 1).is_contiguous(), "all of it is read"
    assert buffer is None or buffer.stride() == order, "it is read in the order of the weight"
    if any(side > 1 and own != given for side, own, given in zip(weight.shape, order, update.stride())):
        update = torch.empty_like(weight).copy_(update)
    past = None if buffer is None else buffer.data_ptr()
    _LOOPS.library.muon_update(weight.data_ptr(), update.data_ptr(), past, momentum, rows, columns, kept, scale)
