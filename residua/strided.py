"""3x3 convolutions of stride 2 in bf16, as sums over their nine taps. Layer 2.

Winograd's algorithm (`residua.winograd`) saves nothing with stride 2. The taps of a row lie side by side in memory, and so are
multiplied as they are: products are those of a plain convolution in bf16, with sums in float32, for the result and for both
gradients. A row of the input's gradient has one tap or two, and no zeros are multiplied.

The loops are in strided.c, for processors that multiply bf16 (AVX-512 BF16), and take maps in channels-last order. Layers made of
them are in `residua.convolving`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from residua.native import FLAG, NUMBER, POINTER, Source

__all__ = ["convolution", "halves", "input_gradient", "obstacle", "pays", "suits", "weight_gradient"]

_LOOPS = Source(
    "strided.c",
    {
        "strided_weights": [POINTER, POINTER, NUMBER, NUMBER, FLAG],
        "strided_convolve": [POINTER] * 5 + [NUMBER] * 6 + [FLAG],
        "strided_gradient": [POINTER] * 3 + [NUMBER] * 5,
    },
    nothing=["strided_weights"],
    bf16=True,
)
obstacle = _LOOPS.obstacle
LEAST_CHANNELS, MOST_CHANNELS = 16, 128
"""With more oneDNN is as fast."""


def halves(layer: nn.Module | None) -> bool:
    """Whether a layer is a convolution that halves the sides by three taps: 3x3, stride 2, padding 1, all channels together, in
    eights."""
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == (3, 3)
        and layer.stride == (2, 2)
        and layer.padding == layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and layer.in_channels % 8 == layer.out_channels % 8 == 0
    )


def suits(layer: nn.Module | None) -> bool:
    """Whether a layer is a convolution of the kind that these loops compute: such a one with channels neither few nor many."""
    if not halves(layer):
        return False
    assert isinstance(layer, nn.Conv2d)
    fewest, most = sorted((layer.in_channels, layer.out_channels))
    return fewest >= LEAST_CHANNELS and most <= MOST_CHANNELS


def pays(x: Tensor) -> bool:
    """Whether rows of maps [N, C, H, W] have positions enough to fill the loops' registers."""
    return x.shape[3] >= 8


def convolution(x: Tensor, weight: Tensor, *, bias: Tensor | None = None, beside: Tensor | None = None) -> Tensor:
    """conv(x) + bias + beside, as far as these are given, with weights [K, C, 3, 3]: x [N, C, H, W] in bf16 and channels-last
    order -> [N, K, ceil(H / 2), ceil(W / 2)]. Without gradient."""
    images, inputs, height, width = x.shape
    shape = (images, len(weight), (height + 1) // 2, (width + 1) // 2)
    y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    u = _packed(weight)
    _LOOPS.library.strided_convolve(
        x.data_ptr(), u.data_ptr(), y.data_ptr(), None if bias is None else bias.data_ptr(),
        None if beside is None else beside.data_ptr(), 0, images, height, width, inputs, len(weight), False,
    )  # fmt: skip
    return y


def input_gradient(dy: Tensor, weight: Tensor, x: Tensor, *, beside: Tensor | None = None, thin: Tensor | None = None) -> Tensor:
    """That of the input x [N, C, H, W] from that of the result, in bf16 and channels-last order. `beside`, like x, is added;
    `thin` [N, C or more, ceil(H / 2), ceil(W / 2)] to every other position, its first C channels. One of them may be given."""
    assert beside is None or thin is None, "one of them is read"
    images, inputs, height, width = x.shape
    dx = torch.empty(x.shape, dtype=dy.dtype, memory_format=torch.channels_last)
    u, past = _packed(weight, backward=True), beside if thin is None else thin
    _LOOPS.library.strided_convolve(
        dy.data_ptr(), u.data_ptr(), dx.data_ptr(), None, None if past is None else past.data_ptr(),
        0 if thin is None else thin.shape[1], images, height, width, dy.shape[1], inputs, True,
    )  # fmt: skip
    return dx


def weight_gradient(x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
    """That of weights [K, C, 3, 3], in float32, from x [N, C, H, W] and the gradient of the result, both in bf16."""
    images, inputs, height, width = x.shape
    found = torch.empty_like(weight, dtype=torch.float32, memory_format=torch.channels_last)
    _LOOPS.library.strided_gradient(x.data_ptr(), dy.data_ptr(), found.data_ptr(), images, height, width, inputs, dy.shape[1])
    return found


def _packed(weight: Tensor, *, backward: bool = False) -> Tensor:
    """Weights [K, C, 3, 3] as the loops read them, in bf16. `backward`: for the gradient of the input."""
    outputs, inputs = weight.shape[:2]
    weight = weight.detach().float().contiguous(memory_format=torch.channels_last)
    rows, columns = (outputs, inputs) if backward else (inputs, outputs)
    u = torch.empty(9 * rows * (-(-columns // 16) * 16), dtype=torch.bfloat16)
    _LOOPS.library.strided_weights(weight.data_ptr(), u.data_ptr(), inputs, outputs, backward)
    return u
