"""3x3 convolutions with 2.25 times fewer multiplications, in bf16: Winograd's algorithm F(2x2, 3x3). Layer 2.

Most multiplications of a residual network are in 3x3 convolutions of stride 1. Taken tile by tile, 2 x 2 outputs at once, they
need 16 multiplications a channel in place of 36 (Lavin and Gray 2016, section 4.1), and so do both gradients; where a side is
odd, the tiles of its last outputs need half of that. The transforms of tiles and weights are additions in float32, made while the
tiles lie in the processor's cache. What is multiplied is rounded to bf16 once more than in a plain convolution: the result is
some 0.4 % of its size away from one in float64, a plain one's 0.2 %.

The loops are in winograd.c, for processors that multiply bf16 (AVX-512 BF16), and take maps in channels-last order. Layers made
of them are in `residua.convolving`.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn

from residua import native
from residua.native import FLAG, NUMBER, POINTER, Source

__all__ = [
    "convolution", "convolved", "convolved_maxima", "input_gradient", "maxima", "obstacle", "odd", "packed", "pays", "preferred",
    "suits", "weight_gradient",
]  # fmt: skip

_LOOPS = Source(
    "winograd.c",
    {
        "winograd_weights": [POINTER, POINTER, NUMBER, NUMBER, FLAG, FLAG],
        "winograd_convolve": [POINTER] * 7 + [FLAG] + [NUMBER] * 5 + [FLAG],
        "winograd_gradient": [POINTER] * 4 + [NUMBER] * 5,
    },
    nothing=["winograd_weights"],
    bf16=True,
)
obstacle = _LOOPS.obstacle
LEAST_CHANNELS = 16
"""With 16 what is saved is a tenth of the time, with more a third to a half."""
LEAST_TILES = 64
"""With fewer the transform of the weights costs what is saved."""


@cache
def preferred() -> bool:
    """Whether to use the loops where nothing is measured first: they run here, and oneDNN has no matrix unit (AMX) to be ahead
    with."""
    return "amx_tile" not in native.processor() and obstacle() is None


def suits(layer: nn.Module | None) -> bool:
    """Whether a layer is a convolution of the kind that these loops compute: 3x3, stride and padding 1, all channels together, in
    eights and not few."""
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == (3, 3)
        and layer.stride == layer.padding == layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and layer.in_channels % 8 == layer.out_channels % 8 == 0
        and min(layer.in_channels, layer.out_channels) >= LEAST_CHANNELS
    )


def pays(x: Tensor, least: int = LEAST_TILES) -> bool:
    """Whether maps [N, C, H, W] need less than four fifths of a plain convolution's multiplications, and their tiles are
    many enough (at least `least`) to outweigh the transform of the weights."""
    images, _, height, width = x.shape
    products = math.prod(4 * (side // 2) + 2 * (side % 2) for side in (height, width))
    return images * -(-height // 2) * -(-width // 2) >= least and min(height, width) > 1 and products < 0.8 * 9 * height * width


def packed(weight: Tensor, *, backward: bool = False, edged: bool = False) -> Tensor:
    """Weights [K, C, 3, 3] as the loops read them, in bf16: 16/9 as many. `backward`: for the gradient of the input. `edged`:
    25/9 as many, for maps with an odd side, whose last tiles then need half of the multiplications or less."""
    outputs, inputs = weight.shape[:2]
    weight = weight.detach().float().contiguous(memory_format=torch.channels_last)
    u = torch.empty((25 if edged else 16) * _of_point(inputs, outputs), dtype=torch.bfloat16)
    _LOOPS.library.winograd_weights(weight.data_ptr(), u.data_ptr(), inputs, outputs, backward, edged)
    return u


def odd(x: Tensor) -> bool:
    """Whether a side of maps [N, C, H, W] is odd, so that `edged` weights save multiplications."""
    return bool(x.shape[2] % 2 or x.shape[3] % 2)


def _of_point(inputs: int, outputs: int) -> int:
    """The values of one point of packed weights, as in winograd.c."""
    return -(-inputs // 16) * 16 * (-(-outputs // 16) * 16) + 32


def convolved(
    x: Tensor, u: Tensor, outputs: int, *, bias: Tensor | None = None, beside: Tensor | None = None, relu: bool = False,
    out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """relu(conv(x) + bias + beside), as far as these are given: x [N, C, H, W] in bf16 and channels-last order ->
    [N, `outputs`, H, W].

    `u` is what `packed` gave, `bias` [outputs] in float32, `beside` like the result, which is written to `out` if that is
    given; it may be `beside`. Without gradient.
    """
    images, inputs, height, width = x.shape
    if out is None:
        out = torch.empty((images, outputs, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    _LOOPS.library.winograd_convolve(
        x.data_ptr(), None, u.data_ptr(), out.data_ptr(), None, None if bias is None else bias.data_ptr(),
        None if beside is None else beside.data_ptr(), relu, images, height, width, inputs, outputs,
        u.numel() == 25 * _of_point(inputs, outputs),
    )  # fmt: skip
    return out


def convolution(x: Tensor, weight: Tensor, *, bias: Tensor | None = None, beside: Tensor | None = None) -> Tensor:
    """conv(x) + bias + beside, as far as these are given, with weights [K, C, 3, 3]; as `convolved`."""
    return convolved(x, packed(weight, edged=odd(x)), len(weight), bias=bias, beside=beside)


def input_gradient(dy: Tensor, weight: Tensor, x: Tensor, *, beside: Tensor | None = None) -> Tensor:
    """That of the input x [N, C, H, W], with `beside` added, from that of the result, in bf16 and channels-last order."""
    return convolved(dy, packed(weight, backward=True, edged=odd(x)), x.shape[1], beside=beside)


def maxima(x: Tensor, u: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
    """The maxima of conv(x) in windows of 2 x 2, in bf16, and their places in these (0 to 3, row by row; uint8):
    x [N, C, H, W] -> twice [N, `outputs`, H // 2, W // 2].

    As `residua.kernels.Pool` of `convolved`, to the bit; but a tile of the output is a window, so that what is in no window is
    not computed, and the result of the convolution is not written.
    """
    images, inputs, height, width = x.shape
    shape = (images, outputs, height // 2, width // 2)
    y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    places = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
    _LOOPS.library.winograd_convolve(
        x.data_ptr(), None, u.data_ptr(), y.data_ptr(), places.data_ptr(), None, None, False, images, height, width, inputs,
        outputs, False,
    )  # fmt: skip
    return y, places


def convolved_maxima(dy: Tensor, places: Tensor, u: Tensor, outputs: int, sides: tuple[int, int]) -> Tensor:
    """conv of the map [N, K, *`sides`] that is dy [N, K, H // 2, W // 2] at the `places` of its windows and zero elsewhere: with
    weights packed for `backward`, the gradient of the input for `maxima`. [N, `outputs`, *`sides`] in bf16."""
    images, inputs, _, _ = dy.shape
    found = torch.empty((images, outputs, *sides), dtype=dy.dtype, memory_format=torch.channels_last)
    _LOOPS.library.winograd_convolve(
        dy.data_ptr(), places.data_ptr(), u.data_ptr(), found.data_ptr(), None, None, None, False, images, *sides, inputs,
        outputs, False,
    )  # fmt: skip
    return found


def weight_gradient(x: Tensor, dy: Tensor, weight: Tensor, *, places: Tensor | None = None) -> Tensor:
    """That of weights [K, C, 3, 3], in float32, from x [N, C, H, W] and the gradient of the result [N, K, H, W], both in bf16, or
    that of its `maxima`, with their places."""
    images, inputs, height, width = x.shape
    found = torch.empty_like(weight, dtype=torch.float32, memory_format=torch.channels_last)
    _LOOPS.library.winograd_gradient(
        x.data_ptr(), dy.data_ptr(), None if places is None else places.data_ptr(), found.data_ptr(), images, height, width,
        inputs, dy.shape[1],
    )  # fmt: skip
    return found
