"""Convolutions of images, the first layers of networks, in bf16 as sums over their taps. Layer 2.

Images have few channels, and vectors of those would stay empty. So a row of taps is multiplied as one, channels and all, and what
lies side by side in a vector is outputs, for the result and for the gradient of the weights: as many multiplications as a
plain convolution has, and one in vain where a row of taps has an odd number of values. That of the input is seldom asked for (of
images it is not), and is torch's.

The loops are in stems.c, for processors that multiply bf16 (AVX-512 BF16), and take maps in channels-last order. Layers made of
them are in `residua.convolving`.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from residua.native import FLAG, POINTER, Source

__all__ = ["Stem", "loops_for", "obstacle"]


class _Stem(ctypes.Structure):
    """`stem` of stems.c."""

    _fields_ = [
        (name, ctypes.c_long)
        for name in ("images", "height", "width", "inputs", "outputs", "high", "wide", "stride", "above", "before")
    ]


_LOOPS = Source(
    "stems.c",
    {
        "stems_weights": [POINTER, POINTER, ctypes.POINTER(_Stem)],
        "stems_convolve": [POINTER] * 4 + [FLAG, ctypes.POINTER(_Stem)],
        "stems_gradient": [POINTER] * 3 + [ctypes.POINTER(_Stem)],
    },
    nothing=["stems_weights"],
    bf16=True,
)
obstacle = _LOOPS.obstacle
MOST_CHANNELS = 4
"""Of images: grey, or colours, or colours and what is opaque. Other loops take channels in eights."""


@dataclass(frozen=True)
class Stem:
    """Convolutions of `stride`, of images with so many rows and columns of zeros round them: `margin`. `residua.convolving.Loops`
    for these layers."""

    stride: int
    margin: tuple[int, int]

    def suits(self, layer: nn.Module | None) -> bool:
        """Whether a layer is a convolution that these loops compute."""
        return loops_for(layer) == self

    def pays(self, x: Tensor) -> bool:
        """Whether maps [N, C, H, W] are as wide as images."""
        return x.shape[3] >= 8

    def obstacle(self) -> str | None:
        """Why the loops cannot run here, in a sentence; None if they can. The first call compiles them."""
        return obstacle()

    def convolution(
        self, x: Tensor, weight: Tensor, *, bias: Tensor | None = None, beside: Tensor | None = None, relu: bool = False
    ) -> Tensor:
        """conv(x) + bias + beside, as far as these are given, with weights [K, C, R, S]: x [N, C, H, W] in bf16 and channels-last
        order -> [N, K, H', W']. Without gradient."""
        return self.convolved(x, self.packed(weight), weight.shape, bias=bias, beside=beside, relu=relu)

    def convolved(
        self, x: Tensor, packed: Tensor, shape: torch.Size, *, bias: Tensor | None = None, beside: Tensor | None = None,
        relu: bool = False, out: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The same with weights of `shape` that `packed` gave; then ReLU, if that is asked for. `out` receives the result."""
        y = torch.empty((len(x), shape[0], *self._sides(x.shape, shape)), dtype=x.dtype, memory_format=torch.channels_last)
        offset, about = None if bias is None else bias.data_ptr(), self._about(x.shape, shape)
        _LOOPS.library.stems_convolve(
            x.data_ptr(), packed.data_ptr(), y.data_ptr(), offset, relu and beside is None, ctypes.byref(about)
        )
        if beside is not None:
            y = y.add_(beside).relu_() if relu else y.add_(beside)
        return y if out is None else out.copy_(y)

    def packed(self, weight: Tensor) -> Tensor:
        """Weights [K, C, R, S] as the loops read them, in bf16."""
        outputs, inputs, high, wide = weight.shape
        weight = weight.detach().float().contiguous(memory_format=torch.channels_last)
        u = torch.empty(high * -(-wide * inputs // 2) * 2 * (-(-outputs // 16) * 16), dtype=torch.bfloat16)
        about = self._about((0, inputs, 0, 0), weight.shape)
        _LOOPS.library.stems_weights(weight.data_ptr(), u.data_ptr(), ctypes.byref(about))
        return u

    def input_gradient(self, dy: Tensor, weight: Tensor, x: Tensor, *, beside: Tensor | None = None) -> Tensor:
        """That of the input x [N, C, H, W] from that of the result, in bf16 and channels-last order, with `beside` added."""
        stride, margin = [self.stride] * 2, list(self.margin)
        dx: Tensor = torch.ops.aten.convolution_backward(
            dy, x, weight.to(dy.dtype), None, stride, margin, [1, 1], False, [0, 0], 1, [True, False, False]
        )[0]
        return dx if beside is None else dx + beside

    def weight_gradient(self, x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
        """That of weights [K, C, R, S], in float32, from x [N, C, H, W] and the gradient of the result, both in bf16."""
        found = torch.empty_like(weight, dtype=torch.float32, memory_format=torch.channels_last)
        about = self._about(x.shape, weight.shape)
        _LOOPS.library.stems_gradient(x.data_ptr(), dy.data_ptr(), found.data_ptr(), ctypes.byref(about))
        return found

    def _about(self, x: tuple[int, ...], weight: tuple[int, ...]) -> _Stem:
        images, inputs, height, width = x
        outputs, _, high, wide = weight
        return _Stem(images, height, width, inputs, outputs, high, wide, self.stride, *self.margin)

    def _sides(self, x: tuple[int, ...], weight: tuple[int, ...]) -> list[int]:
        return [(side + 2 * pad - window) // self.stride + 1 for side, pad, window in zip(x[2:], self.margin, weight[2:])]


def loops_for(layer: nn.Module | None) -> Stem | None:
    """The loops for a convolution of images: of few channels, all together, without holes, with windows of more than one column,
    and of outputs that fill a vector. None for another layer."""
    if type(layer) is not nn.Conv2d or isinstance(layer.padding, str):
        return None
    suits = (
        layer.in_channels <= MOST_CHANNELS
        and layer.out_channels >= 16
        and layer.kernel_size[1] > 1
        and layer.stride[0] == layer.stride[1]
        and layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
    )
    margin = (int(layer.padding[0]), int(layer.padding[1]))
    return Stem(layer.stride[0], margin) if suits else None
