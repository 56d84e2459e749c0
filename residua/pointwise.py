"""1x1 convolutions in bf16, with the normalisation and the ReLU that stand before them. Layer 2.

Such a convolution multiplies little for the bytes it moves: a bottleneck's widest maps are read and written only for its sake. So
what stands before it, relu(norm(x)), is made a block at a time within the cache, in both directions, and kept nowhere; and what
goes past the unit is added as the result is made. Products are those of a plain convolution in bf16: rounded to bf16 before, to
bf16 after, with sums in float32.

The loops are in pointwise.c, for processors that multiply bf16 (AVX-512 BF16), and take maps in channels-last order. Layers made
of them are in `residua.convolving` and, with the normalisation, in `residua.kernels`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from residua.native import FLAG, NUMBER, POINTER, Source

__all__ = [
    "Norm", "convolution", "convolved", "input_gradient", "norm_gradient", "obstacle", "packed", "pays", "reads", "step_of",
    "suits", "weight_gradient",
]  # fmt: skip

_LOOPS = Source(
    "pointwise.c",
    {
        "pointwise_weights": [POINTER, POINTER, NUMBER, NUMBER, FLAG],
        "pointwise_convolve": [POINTER] * 9 + [FLAG] + [NUMBER] * 3,
        "pointwise_gradient": [POINTER] * 7 + [NUMBER] * 3,
        "pointwise_norm_gradient": [POINTER] * 8 + [NUMBER] + [POINTER] * 3 + [NUMBER] * 3 + [FLAG],
    },
    nothing=["pointwise_weights"],
    bf16=True,
)
obstacle = _LOOPS.obstacle
LEAST_CHANNELS = 16


class Norm(NamedTuple):
    """A normalisation: weight, bias, mean and 1 / standard deviation of each channel, [C] in float32."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    invstd: Tensor


def reads(layer: nn.Module | None) -> bool:
    """Whether a layer is a 1x1 convolution, of any stride, of all channels together, in eights and not few."""
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == (1, 1)
        and layer.padding in ((0, 0), "valid", "same")
        and layer.groups == 1
        and layer.in_channels % 8 == layer.out_channels % 8 == 0
        and min(layer.in_channels, layer.out_channels) >= LEAST_CHANNELS
    )


def suits(layer: nn.Module | None) -> bool:
    """Whether a layer is a convolution of the kind that these loops compute, with its gradients: such a one of stride 1, without
    bias."""
    return isinstance(layer, nn.Conv2d) and reads(layer) and layer.stride == (1, 1) and layer.bias is None


def pays(x: Tensor) -> bool:
    """Whether maps [N, C, H, W] have positions enough to fill the loops' registers."""
    return x.numel() // x.shape[1] >= 24


def packed(weight: Tensor, *, backward: bool = False) -> Tensor:
    """Weights [K, C, 1, 1] as the loops read them, in bf16. `backward`: for the gradient of the input."""
    outputs, inputs = weight.shape[:2]
    weight = weight.detach().float().contiguous()
    u = torch.empty(-(-(inputs if backward else outputs) // 16) * 16 * (outputs if backward else inputs), dtype=torch.bfloat16)
    _LOOPS.library.pointwise_weights(weight.data_ptr(), u.data_ptr(), inputs, outputs, backward)
    return u


def convolved(
    x: Tensor, u: Tensor, outputs: int, *, bias: Tensor | None = None, beside: Tensor | None = None, norm: Norm | None = None,
    relu: bool = False, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """relu(conv(x) + bias + beside), as far as these are given, or of relu(norm(x)) in place of x: x [N, C, H, W] in bf16 and
    channels-last order -> [N, `outputs`, H, W].

    `u` is what `packed` gave, `bias` [outputs] in float32, `beside` like the result, which is written to `out` if that is
    given; it may be `beside`. Without gradient.
    """
    images, inputs, height, width = x.shape
    if out is None:
        out = torch.empty((images, outputs, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    _LOOPS.library.pointwise_convolve(
        x.data_ptr(), *_addresses(norm), u.data_ptr(), out.data_ptr(), None if bias is None else bias.data_ptr(),
        None if beside is None else beside.data_ptr(), relu, images * height * width, inputs, outputs,
    )  # fmt: skip
    return out


def input_gradient(dy: Tensor, weight: Tensor, x: Tensor, *, beside: Tensor | None = None) -> Tensor:
    """That of the input x [N, C, H, W], with `beside` added, from that of the result, in bf16 and channels-last order."""
    return convolved(dy, packed(weight, backward=True), x.shape[1], beside=beside)


def convolution(x: Tensor, weight: Tensor, *, bias: None = None, beside: Tensor | None = None) -> Tensor:
    """conv(x) + beside, if that is given, with weights [K, C, 1, 1]; as `convolved`."""
    assert bias is None, "layers with a bias are not suited"
    return convolved(x, packed(weight), len(weight), beside=beside)


def weight_gradient(x: Tensor, dy: Tensor, weight: Tensor, *, norm: Norm | None = None) -> Tensor:
    """That of weights [K, C, 1, 1], in float32, from x [N, C, H, W] (before `norm` and the ReLU, if it is given) and the gradient
    of the result [N, K, H, W], both in bf16."""
    inputs, outputs = x.shape[1], dy.shape[1]
    found = torch.empty_like(weight, dtype=torch.float32, memory_format=torch.contiguous_format)
    rows = x.numel() // inputs
    _LOOPS.library.pointwise_gradient(
        x.data_ptr(), *_addresses(norm), dy.data_ptr(), found.data_ptr(), rows, inputs, outputs
    )  # fmt: skip
    return found


def norm_gradient(
    dy: Tensor, x: Tensor, u: Tensor, norm: Norm, *, past: Tensor | None, training: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of x, of the normalisation's weight and of its bias, for conv(relu(norm(x))): dy [N, K, H, W] and x [N, C, H, W] in bf16.

    `past`, laid out in rows (`step_of`), is added to the first; `u` is what `packed` gave for `backward`; `training`: the
    statistics were those of x.
    """
    inputs, outputs = x.shape[1], dy.shape[1]
    dx, dweight, dbias = torch.empty_like(x), torch.empty_like(norm.weight), torch.empty_like(norm.bias)
    _LOOPS.library.pointwise_norm_gradient(
        dy.data_ptr(), x.data_ptr(), *_addresses(norm), u.data_ptr(), None if past is None else past.data_ptr(),
        step_of(past), dx.data_ptr(), dweight.data_ptr(), dbias.data_ptr(), x.numel() // inputs, inputs, outputs, training,
    )  # fmt: skip
    return dx, dweight, dbias


def step_of(x: Tensor | None) -> int:
    """How many values are from one position of x [N, C, H, W] to the next, where these lie as in a slice of the channels of a map
    in channels-last order; 0 where they do not, and for None."""
    if x is None or x.stride(1) != 1:
        return 0
    step, (_, channels, height, width) = x.stride(3), x.shape
    rows = step >= channels and x.stride(2) == width * step and x.stride(0) == height * width * step
    return step if rows else 0


def _addresses(norm: Norm | None) -> list[int | None]:
    return [None] * 4 if norm is None else [tensor.data_ptr() for tensor in norm]
