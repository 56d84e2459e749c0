"""3x3 convolutions with 2.25 times fewer multiplications, in bf16: Winograd's algorithm F(2x2, 3x3). Layer 2.

Most multiplications of a residual network are in 3x3 convolutions of stride 1. Taken tile by tile, 2 x 2 outputs at once, they
need 16 multiplications a channel in place of 36 (Lavin and Gray 2016, section 4.1), and so do both gradients. The transforms of
tiles and weights are additions in float32, made while the tiles lie in the processor's cache. What is multiplied is rounded to
bf16 once more than in a plain convolution: the result is some 0.4 % of its size away from one in float64, a plain one's 0.2 %.

The loops are in winograd.c, for processors that multiply bf16 (AVX-512 BF16), and take maps in channels-last order. `Convolution`
is the layer for training; `packed` and `convolved` are its parts, without gradient.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from residua import native, sparing

__all__ = ["Convolution", "convolved", "obstacle", "packed", "pays", "preferred", "suits"]

_SOURCE = "winograd.c"
LEAST_CHANNELS = 16
"""With 16 what is saved is a tenth of the time, with more a third to a half."""
LEAST_TILES = 64
"""With fewer the transform of the weights costs what is saved."""


@cache
def obstacle() -> str | None:
    """Why the loops cannot run here, in a sentence; None if they can. The first call compiles them."""
    return native.no_bf16() or native.obstacle(_SOURCE, ())


@cache
def preferred() -> bool:
    """Whether to use the loops where nothing is measured first: they run here, and oneDNN has no matrix unit (AMX) to be ahead
    with."""
    return "amx_tile" not in native.processor() and obstacle() is None


@cache
def _library() -> ctypes.CDLL:
    library = native.library(_SOURCE, ())
    pointer, number, flag = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    library.winograd_weights.argtypes = [pointer, pointer, number, number, flag]
    library.winograd_weights.restype = None
    library.winograd_convolve.argtypes = [pointer] * 5 + [flag] + [number] * 5
    library.winograd_gradient.argtypes = [pointer] * 3 + [number] * 5
    return library


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
    """Whether the tiles of maps [N, C, H, W] need less than four fifths of a plain convolution's multiplications, and are
    many enough (at least `least`) to outweigh the transform of the weights."""
    images, _, height, width = x.shape
    tiles = -(-height // 2) * -(-width // 2)
    return images * tiles >= least and 16 * tiles < 0.8 * 9 * height * width


def packed(weight: Tensor, *, flipped: bool = False) -> Tensor:
    """Weights [K, C, 3, 3] as the loops read them, in bf16: 16/9 as many. `flipped`: for the gradient of the input."""
    outputs, inputs = weight.shape[:2]
    weight = weight.detach().float().contiguous(memory_format=torch.channels_last)
    u = torch.empty(16 * _filled(outputs) * _filled(inputs), dtype=torch.bfloat16)
    _library().winograd_weights(weight.data_ptr(), u.data_ptr(), inputs, outputs, flipped)
    return u


def _filled(channels: int) -> int:
    return -(-channels // 16) * 16


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
    failed = _library().winograd_convolve(
        x.data_ptr(), u.data_ptr(), out.data_ptr(), None if bias is None else bias.data_ptr(),
        None if beside is None else beside.data_ptr(), relu, images, height, width, inputs, outputs,
    )  # fmt: skip
    if failed:
        raise MemoryError("no memory for the tiles of a convolution")
    return out


def _weight_gradient(x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
    images, inputs, height, width = x.shape
    found = torch.empty_like(weight, dtype=torch.float32, memory_format=torch.channels_last)
    if _library().winograd_gradient(
        x.data_ptr(), dy.data_ptr(), found.data_ptr(), images, height, width, inputs, dy.shape[1]
    ):  # fmt: skip
        raise MemoryError("no memory for the gradient of a convolution")
    return found


class _Convolved(torch.autograd.Function):
    """A 3x3 convolution of x, bf16 and in channels-last order, with float32 weights; `beside`, like the result, is added."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, beside: Tensor | None = None) -> Tensor:
        outputs, plain, offset = len(weight), weight.detach(), None if bias is None else bias.detach().float()
        y = convolved(x, packed(plain), outputs, bias=offset, beside=beside)
        if beside is None and (spared := sparing.current()) is not None:
            spared.convolution(y, x, lambda x: convolved(x, packed(plain), outputs, bias=offset))
        ctx.save_for_backward(x, weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = dy.to(x.dtype).contiguous(memory_format=torch.channels_last)
        dx = convolved(dy, packed(weight, flipped=True), x.shape[1]) if ctx.needs_input_grad[0] else None
        dweight = _weight_gradient(x, dy, weight) if ctx.needs_input_grad[1] else None
        dbias = dy.float().sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return dx, dweight, dbias, dy if ctx.needs_input_grad[3] else None


class _Forked(torch.autograd.Function):
    """The same, and x once more for what goes past the convolution: the gradient of both is summed as it is made."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        y: Tensor = _Convolved.forward(ctx, x, weight, None)
        return y, x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, past: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        if dy is None:
            return past, None
        dy, past = (one if one is None else one.to(x.dtype).contiguous(memory_format=torch.channels_last) for one in (dy, past))
        assert dy is not None
        dx = convolved(dy, packed(weight, flipped=True), x.shape[1], beside=past) if ctx.needs_input_grad[0] else None
        return dx, _weight_gradient(x, dy, weight) if ctx.needs_input_grad[1] else None


class Convolution(nn.Module):
    """A convolution by these loops where it is computed in bf16 and they pay, else as it is. Shares the layer `conv`."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        if not self._takes(x):
            return self.conv(x)
        y: Tensor = _Convolved.apply(x.to(torch.bfloat16), self.conv.weight, self.conv.bias, None)
        return y

    def added(self, x: Tensor, h: Tensor) -> Tensor:
        """h + what it makes of x."""
        shape = (len(x), self.conv.out_channels, *x.shape[2:])
        laid_out = h.shape == shape and h.dtype == torch.bfloat16 and h.is_contiguous(memory_format=torch.channels_last)
        if not (laid_out and self._takes(x)):
            return h + self(x)
        y: Tensor = _Convolved.apply(x.to(torch.bfloat16), self.conv.weight, self.conv.bias, h)
        return y

    def forked(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What it makes of x, and x for a shortcut: where the loops are used they add the shortcut's gradient to theirs."""
        if self.conv.bias is not None or x.dtype != torch.bfloat16 or not self._takes(x):
            return self(x), x
        y, past = _Forked.apply(x, self.conv.weight)
        return y, past

    def _takes(self, x: Tensor) -> bool:
        return _in_bf16() and _fits(x, self.conv) and pays(x)


def _in_bf16() -> bool:
    """Whether torch would convolve in bf16: autocast asks for it."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def _fits(x: Tensor, conv: nn.Conv2d) -> bool:
    return native.laid_out(x) and x.shape[1] == conv.in_channels and conv.weight.dtype == torch.float32
