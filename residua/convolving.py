"""Convolutions by loops of our own, as layers for training. Layer 2.

One of `LOOPS` is one kind of convolution, as `Loops` says, and `residua.stems` makes such for images, by stride and margin. All
compute in bf16 and take maps in channels-last order; other maps go through the plain layers.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from residua import columns, native, pointwise, sparing, stems, strided, winograd

__all__ = [
    "LOOPS",
    "Convolution",
    "Loops",
    "PooledConvolution",
    "laid_out_like",
    "loops_for",
    "obstacle",
    "pools",
    "subsampled",
    "takes",
]


class Loops(Protocol):
    """A kind of convolution: which layers it `suits`, for which maps it `pays`, why it cannot run (`obstacle`), the result and
    both gradients. A module may be one."""

    def suits(self, layer: nn.Module | None) -> bool: ...
    def pays(self, x: Tensor) -> bool: ...
    def obstacle(self) -> str | None: ...
    def convolution(self, x: Tensor, weight: Tensor, *, bias: Any = None, beside: Tensor | None = None) -> Tensor: ...
    def input_gradient(self, dy: Tensor, weight: Tensor, x: Tensor, *, beside: Tensor | None = None) -> Tensor: ...
    def weight_gradient(self, x: Tensor, dy: Tensor, weight: Tensor) -> Tensor: ...


LOOPS: tuple[Loops, ...] = (winograd, pointwise, strided, columns)


def loops_for(layer: nn.Module | None) -> Loops | None:
    """The loops that compute a layer; None if there are none."""
    return next((loops for loops in LOOPS if loops.suits(layer)), None) or stems.loops_for(layer)


def obstacle() -> str | None:
    """Why the loops cannot run here, in a sentence; None if they can. The first call compiles them."""
    return next((why for loops in LOOPS if (why := loops.obstacle())), None) or stems.obstacle()


def takes(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether x is a map for the loops of `conv`, and torch would convolve it in bf16: autocast asks for it."""
    return (
        torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and native.laid_out(x)
        and x.shape[1] == conv.in_channels
        and conv.weight.dtype == torch.float32
    )


class _Convolved(torch.autograd.Function):
    """A convolution of x, bf16 and in channels-last order, with float32 weights; `beside`, like the result, is added."""

    @staticmethod
    def forward(ctx: Any, loops: Loops, x: Tensor, weight: Tensor, bias: Tensor | None, beside: Tensor | None = None) -> Tensor:
        plain, offset = weight.detach(), None if bias is None else bias.detach().float()
        y: Tensor = loops.convolution(x, plain, bias=offset, beside=beside)
        if beside is None and (spared := sparing.current()) is not None:
            spared.convolution(y, x, lambda x: loops.convolution(x, plain, bias=offset))
        ctx.loops = loops
        ctx.save_for_backward(x, weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = laid_out_like(dy, x)
        dx, dweight = _gradients(ctx, x, weight, dy, None)
        dbias = dy.float().sum((0, 2, 3)) if ctx.needs_input_grad[3] else None
        return None, dx, dweight, dbias, dy if ctx.needs_input_grad[4] else None


class _Forked(torch.autograd.Function):
    """The same, and x once more for what goes past the convolution: the gradient of both is summed as it is made."""

    @staticmethod
    def forward(ctx: Any, loops: Loops, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        y: Tensor = _Convolved.forward(ctx, loops, x, weight, None)
        return y, x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, past: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return None, past, None
        x, weight = ctx.saved_tensors
        return None, *_gradients(ctx, x, weight, laid_out_like(dy, x), None if past is None else laid_out_like(past, x))


class _ForkedThin(torch.autograd.Function):
    """The same for a convolution of stride 2, and every other position of x with `extra` channels of zeros, for a shortcut whose
    gradient is added where these are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, extra: int) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        y: Tensor = _Convolved.forward(ctx, strided, x, weight, None)
        return y, subsampled(x, 2, extra)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, past: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = x.new_zeros(_made(x, weight, 2)) if dy is None else dy
        dy, past = laid_out_like(dy, x), None if past is None else laid_out_like(past, x)
        dx = strided.input_gradient(dy, weight, x, thin=past) if ctx.needs_input_grad[0] else None
        return dx, strided.weight_gradient(x, dy, weight) if ctx.needs_input_grad[1] else None, None


def subsampled(x: Tensor, stride: int, extra: int) -> Tensor:
    """Every `stride`-th position of x [N, C, H, W], with `extra` channels of zeros behind its own; in channels-last order."""
    kept = x[:, :, ::stride, ::stride]
    shape = (len(x), x.shape[1] + extra, *kept.shape[2:])
    h = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    h[:, : x.shape[1]] = kept
    h[:, x.shape[1] :] = 0
    return h


def _made(x: Tensor, weight: Tensor, stride: int) -> tuple[int, ...]:
    """The shape of what a convolution that keeps the sides, but for its stride, makes of x."""
    return len(x), len(weight), *((side - 1) // stride + 1 for side in x.shape[2:])


def laid_out_like(gradient: Tensor, x: Tensor) -> Tensor:
    """A gradient in the type and the order that the loops read."""
    return gradient.to(x.dtype).contiguous(memory_format=torch.channels_last)


def _gradients(ctx: Any, x: Tensor, weight: Tensor, dy: Tensor, past: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Of x, with `past` added, and of the weights."""
    loops: Loops = ctx.loops
    dx = loops.input_gradient(dy, weight, x, beside=past) if ctx.needs_input_grad[1] else None
    return dx, loops.weight_gradient(x, dy, weight) if ctx.needs_input_grad[2] else None


def _plain(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """conv(x) by torch. With a stride, of maps of one position, oneDNN's gradient of the weights in bf16 is made of memory that
    nobody wrote; there only the tap in the middle meets a value, so that is all that is computed."""
    middle = [side // 2 for side in conv.kernel_size]
    if x.shape[2:] != (1, 1) or conv.stride == (1, 1) or list(conv.padding) != middle or conv.dilation != (1, 1):
        y: Tensor = conv(x)
        return y
    down, across = middle
    return F.conv2d(x, conv.weight[:, :, down : down + 1, across : across + 1], conv.bias, groups=conv.groups)


class Convolution(nn.Module):
    """A convolution by `loops` where it is computed in bf16 and they pay, else as it is. Shares the layer `conv`."""

    def __init__(self, conv: nn.Conv2d, loops: Loops) -> None:
        super().__init__()
        self.conv, self.loops = conv, loops

    def forward(self, x: Tensor) -> Tensor:
        if not self._takes(x):
            return _plain(self.conv, x)
        y: Tensor = _Convolved.apply(self.loops, x.to(torch.bfloat16), self.conv.weight, self.conv.bias, None)
        return y

    def added(self, x: Tensor, h: Tensor) -> Tensor:
        """h + what it makes of x."""
        if not (self.adds(x, h) and self._takes(x)):
            return h + self(x)
        y: Tensor = _Convolved.apply(self.loops, x.to(torch.bfloat16), self.conv.weight, self.conv.bias, h)
        return y

    def adds(self, x: Tensor, h: Tensor) -> bool:
        """Whether h is laid out as the loops' result for x."""
        shape = _made(x, self.conv.weight, self.conv.stride[0])
        return h.shape == shape and h.dtype == torch.bfloat16 and h.is_contiguous(memory_format=torch.channels_last)

    def forked(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What it makes of x, and x for a shortcut: where the loops are used they add the shortcut's gradient to theirs."""
        if self.conv.bias is not None or x.dtype != torch.bfloat16 or not self._takes(x):
            return self(x), x
        y, past = _Forked.apply(self.loops, x, self.conv.weight)
        return y, past

    def subsamples(self, stride: int, extra: int) -> bool:
        """Whether a shortcut that takes every `stride`-th position and `extra` channels of zeros fits its result."""
        fits = stride == 2 and self.conv.out_channels == self.conv.in_channels + extra
        return fits and self.loops is strided and self.conv.bias is None

    def subsampled(self, x: Tensor, extra: int) -> tuple[Tensor, Tensor] | None:
        """What it makes of x, and such a shortcut's result, whose gradient the loops add to theirs; None if they are not used."""
        if x.dtype != torch.bfloat16 or not self._takes(x):
            return None
        y, h = _ForkedThin.apply(x, self.conv.weight, extra)
        return y, h

    def _takes(self, x: Tensor) -> bool:
        return takes(self.conv, x) and bool(self.loops.pays(x))


class _Maxima(torch.autograd.Function):
    """The maxima of a 3x3 convolution of x, bf16 and in channels-last order, in windows of 2 x 2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        y, places = winograd.maxima(x, winograd.packed(weight), len(weight))
        ctx.save_for_backward(x, weight, places)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, places = ctx.saved_tensors
        dy, dx = laid_out_like(dy, x), None
        if ctx.needs_input_grad[0]:
            turned = winograd.packed(weight, backward=True)
            dx = winograd.convolved_maxima(dy, places, turned, x.shape[1], x.shape[2:])
        return dx, winograd.weight_gradient(x, dy, weight, places=places) if ctx.needs_input_grad[1] else None


class PooledConvolution(nn.Module):
    """A 3x3 convolution and the maxima of 2x2 windows of its result, which itself is not written.

    [N, C, H, W] -> [N, K, H // 2, W // 2]. Shares the layer of `conv`; `pool` is used where the loops are not.
    """

    def __init__(self, conv: Convolution, pool: nn.Module) -> None:
        super().__init__()
        self.conv, self.pool = conv, pool

    def forward(self, x: Tensor) -> Tensor:
        layer = self.conv.conv
        if min(x.shape[2:]) < 2 or not (takes(layer, x) and winograd.pays(x)):
            y: Tensor = self.pool(self.conv(x))
            return y
        found: Tensor = _Maxima.apply(x.to(torch.bfloat16), layer.weight)
        return found


def pools(conv: nn.Module, pool: nn.Module | None) -> bool:
    """Whether `PooledConvolution` computes both layers."""
    return (
        isinstance(conv, nn.Conv2d)
        and winograd.suits(conv)
        and conv.bias is None
        and type(pool) is nn.MaxPool2d
        and all(
            given in (value, (value, value)) for given, value in zip((pool.kernel_size, pool.stride, pool.padding), (2, 2, 0))
        )
        and pool.dilation in (1, (1, 1))
        and not (pool.ceil_mode or pool.return_indices)
    )
