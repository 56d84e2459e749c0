"""3x3 convolutions of stride 2 in bf16, as sums over their nine taps. Layer 2.

Winograd's algorithm (`residua.winograd`) saves nothing with stride 2. The taps of a row lie side by side in memory, and so are
multiplied as they are: products are those of a plain convolution in bf16, with sums in float32, for the result and for both
gradients. A row of the input's gradient has one tap or two, and no zeros are multiplied.

The loops are in direct.c, for processors that multiply bf16 (AVX-512 BF16), and take maps in channels-last order. Layers made of
them are in `residua.convolving`.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from residua import native

__all__ = ["TWO", "Direct", "obstacle"]

_SOURCE = "direct.c"


@cache
def obstacle() -> str | None:
    """Why the loops cannot run here, in a sentence; None if they can. The first call compiles them."""
    return native.no_bf16() or native.obstacle(_SOURCE, ())


@cache
def _library() -> ctypes.CDLL:
    library = native.library(_SOURCE, ())
    pointer, number, flag = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    library.direct_weights.argtypes = [pointer, pointer, number, number, flag, flag]
    library.direct_weights.restype = None
    library.direct_convolve.argtypes = [pointer] * 5 + [number] * 6 + [flag] * 2
    library.direct_gradient.argtypes = [pointer] * 3 + [number] * 5 + [flag]
    return library


@dataclass(frozen=True)
class Direct:
    """The loops for one `stride`, 1 or 2, and layers of at most `most` channels, in and out."""

    stride: int
    most: int

    def suits(self, layer: nn.Module | None) -> bool:
        """Whether a layer is a convolution of the kind that these loops compute: 3x3, padding 1, all channels together, in eights
        and neither few nor many."""
        return (
            type(layer) is nn.Conv2d
            and layer.kernel_size == (3, 3)
            and layer.stride == (self.stride, self.stride)
            and layer.padding == layer.dilation == (1, 1)
            and layer.groups == 1
            and layer.padding_mode == "zeros"
            and layer.in_channels % 8 == layer.out_channels % 8 == 0
            and min(layer.in_channels, layer.out_channels) >= 16
            and max(layer.in_channels, layer.out_channels) <= self.most
        )

    def pays(self, x: Tensor) -> bool:
        """Whether rows of maps [N, C, H, W] have positions enough to fill the loops' registers."""
        return x.shape[3] >= 4 * self.stride

    def obstacle(self) -> str | None:
        """Why the loops cannot run here, in a sentence; None if they can. The first call compiles them."""
        return obstacle()

    def _packed(self, weight: Tensor, *, backward: bool = False) -> Tensor:
        """Weights [K, C, 3, 3] as the loops read them, in bf16. `backward`: for the gradient of the input."""
        outputs, inputs = weight.shape[:2]
        weight = weight.detach().float().contiguous(memory_format=torch.channels_last)
        sums, columns = (outputs, inputs) if backward else (inputs, outputs)
        u = torch.empty(9 * sums * (-(-columns // 16) * 16), dtype=torch.bfloat16)
        _library().direct_weights(weight.data_ptr(), u.data_ptr(), inputs, outputs, self.stride, backward)
        return u

    def convolution(self, x: Tensor, weight: Tensor, *, bias: Tensor | None = None, beside: Tensor | None = None) -> Tensor:
        """conv(x) + bias + beside, as far as these are given, with weights [K, C, 3, 3]: x [N, C, H, W] in bf16 and channels-last
        order -> [N, K, H', W'], where H' is ceil(H / stride). Without gradient."""
        height, width = x.shape[2:]
        shape = (len(x), len(weight), (height - 1) // self.stride + 1, (width - 1) // self.stride + 1)
        return self._convolved(x, self._packed(weight), shape, (height, width), bias, beside, backward=False)

    def input_gradient(
        self, dy: Tensor, weight: Tensor, x: Tensor, *, beside: Tensor | None = None, thin: Tensor | None = None
    ) -> Tensor:
        """That of the input x [N, C, H, W] from that of the result, in bf16 and channels-last order. `beside`, like x, is added;
        `thin` [N, C or more, H', W'] to every `stride`-th position, its first C channels. One of them may be given."""
        return self._convolved(
            dy, self._packed(weight, backward=True), tuple(x.shape), tuple(x.shape[2:]), None, beside if thin is None else thin,
            backward=True, thin=0 if thin is None else thin.shape[1],
        )  # fmt: skip

    def _convolved(
        self, x: Tensor, u: Tensor, shape: tuple[int, ...], sides: tuple[int, ...], bias: Tensor | None, beside: Tensor | None,
        *, backward: bool, thin: int = 0,
    ) -> Tensor:  # fmt: skip
        y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        failed = _library().direct_convolve(
            x.data_ptr(), u.data_ptr(), y.data_ptr(), None if bias is None else bias.data_ptr(),
            None if beside is None else beside.data_ptr(), thin, len(x), *sides, x.shape[1], shape[1], self.stride, backward,
        )  # fmt: skip
        return _whole(failed, y)

    def weight_gradient(self, x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
        """That of weights [K, C, 3, 3], in float32, from x [N, C, H, W] and the gradient of the result, both in bf16."""
        images, inputs, height, width = x.shape
        found = torch.empty_like(weight, dtype=torch.float32, memory_format=torch.channels_last)
        failed = _library().direct_gradient(
            x.data_ptr(), dy.data_ptr(), found.data_ptr(), images, height, width, inputs, dy.shape[1], self.stride
        )
        return _whole(failed, found)


def _whole(failed: int, found: Tensor) -> Tensor:
    if failed:
        raise MemoryError("no memory for the rows of a convolution")
    return found


TWO = Direct(2, 128)
"""With more channels oneDNN is as fast. With stride 1 Winograd's algorithm is faster, with 16 channels by a tenth."""
