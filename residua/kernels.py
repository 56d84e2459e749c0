"""The unit, fused: batch normalisation with the activation and the addition that follow it, in few passes over memory. Layer 2.

On a CPU a training step spends a third of its time outside the convolutions, moving maps to and from memory: normalisation,
ReLU and addition, each with a pass of its own. Here a normalisation with what follows it takes two passes forward (statistics,
result) and two backward (sums, gradient), and keeps for backward its input and, where an addition stands between, its result:
nothing else. Of a maximum it keeps the place, a byte. Where x goes past a branch as it is, the first layer of the branch adds up
the two gradients of x. The loops are in kernels.c and need maps in channels-last order, bfloat16 or float32; other maps go
through the plain layers. `obstacle` says why the loops cannot be had on a machine: plans do without them there, or are refused.

`fused(network)` gives a twin that shares all weights and buffers and computes the same to rounding. It is rewritten by the
vocabulary: a normalisation and a ReLU in a chain, in a unit the last normalisation of the branch, the addition and the ReLU
after it, or the first normalisation and the shortcut; poolings; and, if it is asked for, convolutions (`residua.convolving`),
with the normalisation and the ReLU before them where they are 1x1.
"""

from __future__ import annotations

import copy
import ctypes
import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from residua import convolving, native, pointwise, sparing
from residua.native import FLAG, NUMBER, POINTER, REAL, Source
from residua.network import Network
from residua.shortcuts import ZeroPad
from residua.sparing import SparingStage
from residua.unit import Add, BranchOnly, Concat, Unit

__all__ = [
    "FusedNorm",
    "FusedUnit",
    "NormConvolution",
    "Pool",
    "PooledNorm",
    "PreUnit",
    "available",
    "fused",
    "obstacle",
    "spared",
]

NONE, RELU, GELU = range(3)  # what follows a normalisation and an addition, as in kernels.c
_RUNNING, _BATCH, _GIVEN = range(3)  # where the statistics come from, as in kernels.c
CLOSED = 255
"""The place of a maximum that ReLU does not let through, as in kernels.c."""
NARROW = 128
"""Results of a 1x1 convolution with more channels are so wide that the gradient of what stands before it is better kept between
two passes than made twice."""


def available() -> bool:
    """Whether the fused loops can run on this machine; the first call compiles them."""
    return obstacle() is None


def obstacle() -> str | None:
    """Why the fused loops cannot run here, in a sentence; None if they can."""
    return next((why for source in _LOOPS.values() if (why := source.obstacle())), None)


class _Windows(ctypes.Structure):
    """`pool` of kernels.c."""

    _fields_ = (
        [(name, ctypes.c_long) for name in ("images", "height", "width", "channels", "down", "across")]
        + [(name, ctypes.c_int) for name in ("high", "wide", "stride_down", "stride_across", "above", "left")]
    )  # fmt: skip


_LOOPS = {
    dtype: Source(
        "kernels.c",
        {
            "norm_forward": [POINTER] * 9 + [NUMBER, NUMBER, REAL, REAL, FLAG, FLAG],
            "norm_backward": [POINTER] * 7 + [NUMBER] + [POINTER] * 6 + [NUMBER, NUMBER, FLAG, FLAG],
            "pool_forward": [POINTER] * 3 + [ctypes.POINTER(_Windows)],
            "pool_backward": [POINTER] * 3 + [ctypes.POINTER(_Windows)],
            "norm_pool_forward": [POINTER] * 8 + [ctypes.POINTER(_Windows)],
            "norm_pool_backward": [POINTER] * 11 + [FLAG, ctypes.POINTER(_Windows)],
        },
        nothing=["pool_forward", "pool_backward"],
        macros=macros,
    )
    for dtype, macros in ((torch.bfloat16, ("-DBFLOAT16",)), (torch.float32, ()))
}
"""For maps of each type."""


class _Normalized(torch.autograd.Function):
    """activation(norm(x) + h) or any part of it; x and h of one shape and type, dense in channels-last order."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h: Tensor | None, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, activation: int, training: bool
    ) -> Tensor:
        mean, invstd = torch.empty_like(weight), torch.empty_like(weight)
        y = _normalized(x, h, weight, bias, mean, invstd, activation, norm, _BATCH if training else _RUNNING)
        if training and (spared := sparing.current()) is not None:
            plain = weight.detach(), bias.detach(), mean, invstd, activation  # weights change only after they were used again
            spared.norm(y, x, h, lambda x, h: _normalized(x, h, *plain))
        ctx.activation, ctx.training, ctx.added = activation, training, h is not None
        beside = [] if h is None or activation == NONE else [h if activation == GELU else y]
        ctx.save_for_backward(x, weight, bias, mean, invstd, *beside)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        dx, dh, dweight, dbias = _gradients(ctx, dy, None)
        return dx, dh if ctx.added else None, dweight, dbias, None, None, None


class _Forked(torch.autograd.Function):
    """activation(norm(x)), and x once more for what goes past it: the gradient of both is summed as it is made."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, activation: int, training: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        y: Tensor = _Normalized.forward(ctx, x, None, weight, bias, norm, activation, training)
        return y, x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, past: Tensor | None) -> tuple[Any, ...]:
        if dy is None:
            return past, None, None, None, None, None
        dx, _, dweight, dbias = _gradients(ctx, dy, past)
        return dx, dweight, dbias, None, None, None


def _gradients(ctx: Any, dy: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of x (with `past` added), of h, of weight and of bias."""
    x, weight, bias, mean, invstd, *rest = ctx.saved_tensors
    dy = convolving.laid_out_like(dy, x)
    past = None if past is None else _in_rows(past, x)
    return _norm_gradients(
        dy, x, pointwise.Norm(weight, bias, mean, invstd), rest[0] if rest else None, past, ctx.activation, ctx.training
    )


def _in_rows(past: Tensor, x: Tensor) -> Tensor:
    """The gradient of what goes past, as the loops read it: also as a slice of the channels of a wider one."""
    return past if past.dtype == x.dtype and pointwise.step_of(past) else convolving.laid_out_like(past, x)


def _norm_gradients(
    dy: Tensor, x: Tensor, norm: pointwise.Norm, beside: Tensor | None, past: Tensor | None, activation: int, training: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`beside`: the result where a ReLU follows an addition; what was added where GELU does."""
    weight, bias, mean, invstd = norm
    y, h = (None, beside) if activation == GELU else (beside, None)
    dx, dh = torch.empty_like(x), torch.empty_like(x) if activation == GELU or y is not None else None
    dweight, dbias = torch.empty_like(weight), torch.empty_like(bias)
    channels = x.shape[1]
    _LOOPS[x.dtype].library.norm_backward(
        dy.data_ptr(), x.data_ptr(), _address(y), _address(h), _address(dh), dx.data_ptr(), _address(past),
        pointwise.step_of(past), weight.data_ptr(), bias.data_ptr(), mean.data_ptr(), invstd.data_ptr(), dweight.data_ptr(),
        dbias.data_ptr(), x.numel() // channels, channels, activation, training,
    )  # fmt: skip
    return dx, dy if dh is None else dh, dweight, dbias


def _normalized(
    x: Tensor, h: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, activation: int,
    norm: nn.BatchNorm2d | None = None, statistics: int = _GIVEN,
) -> Tensor:  # fmt: skip
    """activation(norm(x) + h) with the statistics in `mean` and `invstd`, or with those that `statistics` says, left there."""
    y = torch.empty_like(x)
    _normalize(x, h, y, weight, bias, mean, invstd, activation, norm, statistics)
    return y


def _normalize(
    x: Tensor, h: Tensor | None, y: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, activation: int,
    norm: nn.BatchNorm2d | None, statistics: int,
) -> None:  # fmt: skip
    """Writes that to y; without y there are the statistics only."""
    channels = x.shape[1]
    running = (None, None, 0.0, 0.0) if norm is None else (norm.running_mean, norm.running_var, norm.eps, norm.momentum)
    _LOOPS[x.dtype].library.norm_forward(
        x.data_ptr(), _address(h), _address(y), weight.data_ptr(), bias.data_ptr(), _address(running[0]), _address(running[1]),
        mean.data_ptr(), invstd.data_ptr(), x.numel() // channels, channels, running[2], running[3], activation, statistics,
    )  # fmt: skip


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _fits(norm: nn.BatchNorm2d, x: Tensor, h: Tensor | None) -> bool:
    """Whether the loops take these maps; else the plain layers do."""
    return (
        native.laid_out(x)
        and x.numel() > x.shape[1]
        and (h is None or (h.shape == x.shape and h.dtype == x.dtype and h.is_contiguous(memory_format=torch.channels_last)))
        and norm.weight.dtype == torch.float32
    )


def _activation(module: nn.Module) -> int | None:
    """Which one the loops compute for it; None for another."""
    if _hooked(module):
        return None
    if type(module) is nn.GELU:
        return GELU if module.approximate == "none" else None
    return {nn.Identity: NONE, nn.ReLU: RELU}.get(type(module))


def _apply(norm: nn.BatchNorm2d, x: Tensor, h: Tensor | None, activation: int) -> Tensor:
    if not _fits(norm, x, h):
        y = norm(x) if h is None else h + norm(x)
        return y if activation == NONE else y.relu() if activation == RELU else nn.functional.gelu(y)
    _count_batch(norm)
    return _Normalized.apply(x, h, norm.weight, norm.bias, norm, activation, norm.training)


def _count_batch(norm: nn.BatchNorm2d) -> None:
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)


class FusedNorm(nn.Module):
    """A batch norm and the activation after it, if there is one: [N, C, H, W] -> the same. Shares the layer `norm`."""

    def __init__(self, norm: nn.BatchNorm2d, activation: int) -> None:
        super().__init__()
        self.norm, self.activation = norm, activation

    def forward(self, x: Tensor) -> Tensor:
        return _apply(self.norm, x, None, self.activation)

    def forked(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What it makes of x, and x for a shortcut, whose gradient the loops add to theirs."""
        norm = self.norm
        if not _fits(norm, x, None):
            return self(x), x
        _count_batch(norm)
        y, past = _Forked.apply(x, norm.weight, norm.bias, norm, self.activation, norm.training)
        return y, past


class _NormConvolved(torch.autograd.Function):
    """conv(relu(norm(x))) + beside by `residua.pointwise`, which keeps nothing between; and, if it is asked for, x once more for
    what goes past it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, filters: Tensor, beside: Tensor | None, norm: nn.BatchNorm2d,
        training: bool, forked: bool,
    ) -> Any:  # fmt: skip
        ctx.set_materialize_grads(False)
        mean, invstd = torch.empty_like(weight), torch.empty_like(weight)
        _normalize(x, None, None, weight, bias, mean, invstd, RELU, norm, _BATCH if training else _RUNNING)
        used, plain, outputs = pointwise.Norm(weight.detach(), bias.detach(), mean, invstd), filters.detach(), len(filters)
        y = pointwise.convolved(x, pointwise.packed(plain), outputs, beside=beside, norm=used)
        if beside is None and not forked and (spared := sparing.current()) is not None:
            spared.convolution(y, x, lambda x: pointwise.convolved(x, pointwise.packed(plain), outputs, norm=used))
        ctx.training = training
        ctx.save_for_backward(x, weight, bias, mean, invstd, filters)
        return (y, x.view_as(x)) if forked else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, past: Tensor | None = None) -> tuple[Any, ...]:
        x, *values, filters = ctx.saved_tensors
        if dy is None:
            return past, None, None, None, None, None, None, None
        norm = pointwise.Norm(*values)
        dy, past = convolving.laid_out_like(dy, x), None if past is None else _in_rows(past, x)
        dfilters = pointwise.weight_gradient(x, dy, filters, norm=norm) if ctx.needs_input_grad[3] else None
        if dy.shape[1] <= NARROW:
            u = pointwise.packed(filters, backward=True)
            dx, dweight, dbias = pointwise.norm_gradient(dy, x, u, norm, past=past, training=ctx.training)
        else:
            da = pointwise.input_gradient(dy, filters, x)
            dx, _, dweight, dbias = _norm_gradients(da, x, norm, None, past, RELU, ctx.training)
        return dx, dweight, dbias, dfilters, dy if ctx.needs_input_grad[4] else None, None, None, None


class NormConvolution(nn.Module):
    """A batch norm, ReLU and a 1x1 convolution: [N, C, H, W] -> [N, K, H, W]. Shares the layers of `norm` and `conv`."""

    def __init__(self, norm: FusedNorm, conv: convolving.Convolution) -> None:
        super().__init__()
        self.norm, self.conv = norm, conv

    def forward(self, x: Tensor) -> Tensor:
        if not self._takes(x):
            y: Tensor = self.conv(self.norm(x))
            return y
        found: Tensor = self._convolved(x, None)
        return found

    def added(self, x: Tensor, h: Tensor) -> Tensor:
        """h + what it makes of x."""
        if not (self._takes(x) and self.conv.adds(x, h)):
            return self.conv.added(self.norm(x), h)
        y: Tensor = self._convolved(x, h)
        return y

    def forked(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What it makes of x, and x for a shortcut, whose gradient the loops add to theirs."""
        if not self._takes(x):
            y, past = self.norm.forked(x)
            return self.conv(y), past
        y, past = self._convolved(x, None, forked=True)
        return y, past

    def _takes(self, x: Tensor) -> bool:
        return (
            x.dtype == torch.bfloat16
            and convolving.takes(self.conv.conv, x)
            and pointwise.pays(x)
            and _fits(self.norm.norm, x, None)
        )

    def _convolved(self, x: Tensor, beside: Tensor | None, forked: bool = False) -> Any:
        norm = self.norm.norm
        _count_batch(norm)
        filters = self.conv.conv.weight
        return _NormConvolved.apply(x, norm.weight, norm.bias, filters, beside, norm, norm.training, forked)


class _Pooled(torch.autograd.Function):
    """The maxima of windows, and for the backward pass only their places, a byte each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, windows: _Windows) -> Tensor:
        ctx.windows, ctx.shape = windows, x.shape
        shape = windows.images, windows.channels, windows.down, windows.across
        y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        places = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
        _LOOPS[x.dtype].library.pool_forward(x.data_ptr(), y.data_ptr(), places.data_ptr(), ctypes.byref(windows))
        ctx.save_for_backward(places)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        (places,) = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = torch.empty(ctx.shape, dtype=dy.dtype, memory_format=torch.channels_last)
        _LOOPS[dy.dtype].library.pool_backward(dy.data_ptr(), places.data_ptr(), dx.data_ptr(), ctypes.byref(ctx.windows))
        return dx, None


class Pool(nn.Module):
    """The max pooling `pool`: [N, C, H, W] -> [N, C, H', W']."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.pool = pool
        self.window, self.stride, self.padding = (_pair(value) for value in (pool.kernel_size, pool.stride, pool.padding))

    def forward(self, x: Tensor) -> Tensor:
        windows = self.windows(x) if native.laid_out(x) else None
        y: Tensor = self.pool(x) if windows is None else _Pooled.apply(x, windows)
        return y

    def windows(self, x: Tensor) -> _Windows | None:
        """Those of x; None where there are none, of which torch says what is wrong."""
        images, channels, *sizes = x.shape
        sides = [
            (size + 2 * pad - window) // stride + 1
            for size, pad, window, stride in zip(sizes, self.padding, self.window, self.stride)
        ]
        if min(sides) < 1:
            return None
        return _Windows(images, *sizes, channels, *sides, *self.window, *self.stride, *self.padding)


class _PooledNorm(torch.autograd.Function):
    """The maxima of windows of relu(norm(x)), of which nothing else is written. For the backward pass there are x, and where and
    what in it the maxima are."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, training: bool, windows: _Windows
    ) -> Tensor:
        mean, invstd = torch.empty_like(weight), torch.empty_like(weight)
        _normalize(x, None, None, weight, bias, mean, invstd, RELU, norm, _BATCH if training else _RUNNING)
        shape = windows.images, windows.channels, windows.down, windows.across
        y, picked = (torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last) for _ in range(2))
        places = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
        _LOOPS[x.dtype].library.norm_pool_forward(
            x.data_ptr(), y.data_ptr(), places.data_ptr(), picked.data_ptr(), weight.data_ptr(), bias.data_ptr(),
            mean.data_ptr(), invstd.data_ptr(), ctypes.byref(windows),
        )  # fmt: skip
        ctx.windows, ctx.training = windows, training
        ctx.save_for_backward(x, weight, bias, mean, invstd, picked, places)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, weight, bias, mean, invstd, picked, places = ctx.saved_tensors
        dy, dx = convolving.laid_out_like(dy, x), torch.empty_like(x)
        dweight, dbias = torch.empty_like(weight), torch.empty_like(bias)
        _LOOPS[x.dtype].library.norm_pool_backward(
            dy.data_ptr(), places.data_ptr(), picked.data_ptr(), x.data_ptr(), dx.data_ptr(), weight.data_ptr(), bias.data_ptr(),
            mean.data_ptr(), invstd.data_ptr(), dweight.data_ptr(), dbias.data_ptr(), ctx.training, ctypes.byref(ctx.windows),
        )  # fmt: skip
        return dx, dweight, dbias, None, None, None


class PooledNorm(nn.Module):
    """A batch norm, ReLU and a max pooling: [N, C, H, W] -> [N, C, H', W']. Shares the layer of `norm`."""

    def __init__(self, norm: FusedNorm, pool: Pool) -> None:
        super().__init__()
        self.norm, self.pool = norm, pool

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm.norm
        windows = self.pool.windows(x) if _fits(norm, x, None) and sparing.current() is None else None
        if windows is None:
            y: Tensor = self.pool(self.norm(x))
            return y
        _count_batch(norm)
        found: Tensor = _PooledNorm.apply(x, norm.weight, norm.bias, norm, norm.training, windows)
        return found


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


class FusedUnit(nn.Module):
    """A unit whose branch ends with the batch norm `norm` and whose merge adds: activation(shortcut(x) + norm(branch(x))).
    A plain one has no shortcut.

    Where x, or every other position of it, goes past the branch and the branch begins with a convolution by loops of our own,
    that convolution adds up the two gradients of x. Where it begins otherwise, the gradient of the positions is added where they
    are.
    """

    def __init__(self, branch: nn.Module, norm: nn.BatchNorm2d, shortcut: nn.Module | None, activation: int) -> None:
        super().__init__()
        self.branch, self.norm, self.shortcut, self.activation = branch, norm, shortcut, activation
        plain = shortcut is not None and not _hooked(shortcut)
        self.whole = plain and type(shortcut) is nn.Identity
        self.pad = shortcut if plain and type(shortcut) is ZeroPad else None
        self.chain: list[Any] = [*_chained(branch)]  # a list, for its layers are those of `branch`

    def forward(self, x: Tensor, *extra: Tensor) -> Tensor:
        found = None if extra else self._parted(x)
        if found is None:
            f, h = self.branch(x, *extra), None if self.shortcut is None else self.shortcut(x)
        else:
            f, h, others = found
            for layer in others:
                f = layer(f)
        return _apply(self.norm, f, h, self.activation)

    def _parted(self, x: Tensor) -> tuple[Tensor, Tensor, list[Any]] | None:
        """What goes into the branch, what goes past it, and the layers to come; None where both have to be made apart."""
        first, *others = self.chain or [None]
        own = isinstance(first, convolving.Convolution)
        if self.whole and own:
            return *first.forked(x), others
        if self.pad is None or not native.laid_out(x):
            return None
        stride, channels = self.pad.stride, self.pad.extra
        found = first.subsampled(x, channels) if own and first.subsamples(stride, channels) else None
        return (*_Subsampled.apply(x, stride, channels), self.chain) if found is None else (*found, others)


class _Subsampled(torch.autograd.Function):
    """x, and every `stride`-th position of it with `extra` channels of zeros, whose gradient is added at these positions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int, extra: int) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.stride, ctx.shape = stride, x.shape
        return x.view_as(x), convolving.subsampled(x, stride, extra)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx: Tensor | None, dh: Tensor | None) -> tuple[Any, ...]:
        if dh is None:
            return dx, None, None
        if dx is None:
            found = dh.new_zeros(ctx.shape).contiguous(memory_format=torch.channels_last)
        else:
            found = dx.clone()  # it may be another's, too
        found[:, :, :: ctx.stride, :: ctx.stride].add_(dh[:, : ctx.shape[1]])
        return found, None, None


class PreUnit(nn.Module):
    """A unit of which x goes past the branch as it is, and whose branch begins with a normalisation: post(x + branch(x)), or
    post([x, branch(x)]) where its merge is a concatenation.

    The normalisation adds up the two gradients of x, and a convolution by loops of our own at the end of the branch adds x.
    """

    def __init__(self, branch: nn.Module, post: nn.Module, merge: Add | Concat) -> None:
        super().__init__()
        self.branch, self.post, self.merge = branch, post, merge
        self.chain: list[Any] = [*_chained(branch)]  # a list, for its layers are those of `branch`

    def forward(self, x: Tensor, *extra: Tensor) -> Tensor:
        if extra:
            y: Tensor = self.post(self.merge(x, self.branch(x, *extra)))
            return y
        first, *others = self.chain
        last = others.pop() if type(self.merge) is Add else None
        f, h = first.forked(x)
        for layer in others:
            f = layer(f)
        if last is None:
            y = self.merge(h, f)
        else:
            y = last.added(f, h) if isinstance(last, convolving.Convolution | NormConvolution) else self.merge(h, last(f))
        return self.post(y)


def spared(network: Network) -> None:
    """Has a fused network (the twin that `fused` gave) make maps again in the backward pass as `recompute_every` and
    `recompute_stages` say: stages of fused units do so bit for bit, those that `recompute_stages` leaves out without their
    convolutions (`residua.sparing`); other stages by a second forward pass."""
    if not network.recompute_every or len(network.auxiliaries):
        return
    stages = len(network.stages) if network.recompute_stages is None else network.recompute_stages
    twins = [
        SparingStage(stage, network.recompute_every, convolutions=index < stages) if _only_fused_units(stage) else stage
        for index, stage in enumerate(network.stages)
    ]
    network.stages = nn.ModuleList(twins)


def _only_fused_units(stage: nn.Module) -> bool:
    return isinstance(stage, nn.Sequential) and all(type(unit) is FusedUnit and unit.shortcut is not None for unit in stage)


def fused(module: nn.Module, *, own_convolutions: bool = False) -> nn.Module:
    """A twin of `module` in which normalisations are fused with what follows them and, with `own_convolutions`, convolutions are
    made by loops of our own (`residua.convolving`); weights, buffers and all other layers are shared, and `module` stays as it
    is. A module with hooks is taken over whole."""
    if _hooked(module):
        return module
    if own_convolutions and (loops := convolving.loops_for(module)) is not None:
        assert isinstance(module, nn.Conv2d)
        return convolving.Convolution(module, loops)
    if isinstance(module, nn.BatchNorm2d):
        return FusedNorm(module, NONE) if _fusible(module) else module
    if type(module) is Unit and not _hooked(module.merge):
        twin_unit = _fused_unit(module, own_convolutions)
        if twin_unit is not None:
            return twin_unit
    if type(module) is nn.MaxPool2d and _poolable(module):
        return Pool(module)
    if not module._modules:
        return module
    twin = copy.copy(module)
    twin._modules = {}
    children = list(module._modules.items())
    chain = type(module).forward is nn.Sequential.forward
    while children:
        (name, child), *others = children
        following, third = ([*(layer for _, layer in others[:2]), None, None] if chain else [None, None])[:2]
        taken, made = 1, cast(nn.Module | None, None)
        activation = None if following is None else _activation(following)
        if _fusible(child) and activation in (RELU, GELU):
            assert isinstance(child, nn.BatchNorm2d)
            before = FusedNorm(child, activation)
            taken, made = 2, before
            if activation == RELU and third is not None and not _hooked(third):
                if own_convolutions and pointwise.suits(third):
                    assert isinstance(third, nn.Conv2d)
                    taken, made = 3, NormConvolution(before, convolving.Convolution(third, pointwise))
                elif type(third) is nn.MaxPool2d and _poolable(third, CLOSED):
                    taken, made = 3, PooledNorm(before, Pool(third))
        elif child is not None:
            made = fused(child, own_convolutions=own_convolutions)
            if (
                type(made) is convolving.Convolution
                and following is not None
                and not _hooked(following)
                and convolving.pools(child, following)
            ):
                assert isinstance(following, nn.MaxPool2d)
                taken, made = 2, convolving.PooledConvolution(made, Pool(following))
        twin._modules[name] = made
        children = children[taken:]
    return twin


def _fused_unit(unit: Unit, own_convolutions: bool) -> nn.Module | None:
    """A unit of which more is fused than its layers; None where there is nothing to fuse."""
    (branch, norm), activation = _without_last_norm(unit.branch), _activation(unit.post)
    merge, shortcut = unit.merge, unit.shortcut
    adds, plain = type(merge) is Add and shortcut is not None, type(merge) is BranchOnly and shortcut is None
    if norm is not None and activation is not None and (adds or (plain and activation != NONE)):
        past = None if shortcut is None else fused(shortcut, own_convolutions=own_convolutions)
        return FusedUnit(fused(branch, own_convolutions=own_convolutions), norm, past, activation)
    if isinstance(merge, Add | Concat) and type(shortcut) is nn.Identity and not _hooked(shortcut):
        twin_branch = fused(unit.branch, own_convolutions=own_convolutions)
        layers = [*_chained(twin_branch)]
        if len(layers) > 1 and type(layers[0]) in (FusedNorm, NormConvolution):
            return PreUnit(twin_branch, fused(unit.post, own_convolutions=own_convolutions), merge)
    return None


def _fusible(module: nn.Module | None) -> bool:
    return (
        type(module) is nn.BatchNorm2d
        and module.affine
        and module.track_running_stats
        and module.momentum is not None
        and not _hooked(module)
    )


def _poolable(pool: nn.MaxPool2d, most: int = 256) -> bool:
    """Whether the loops take such windows: no holes, whole, and of places that a byte can count."""
    window = _pair(pool.kernel_size)
    return _pair(pool.dilation) == (1, 1) and not pool.ceil_mode and not pool.return_indices and math.prod(window) <= most


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def _chained(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of a chain of chains, in order."""
    if type(module).forward is not nn.Sequential.forward or _hooked(module):
        yield module
        return
    for child in module.children():
        yield from _chained(child)


def _first(branch: nn.Module) -> nn.Module | None:
    return next(_chained(branch), None)


def _without_last_norm(branch: nn.Module) -> tuple[nn.Module, nn.BatchNorm2d | None]:
    """A chain without the batch norm that it ends with, and that; the chain itself and None if it ends otherwise."""
    if type(branch).forward is not nn.Sequential.forward or not len(branch._modules) or _hooked(branch):
        return branch, None
    *rest, (name, last) = branch._modules.items()
    if last is not None and type(last).forward is nn.Sequential.forward:
        inner, norm = _without_last_norm(last)
        rest = [*rest, (name, inner)]
    else:
        norm = last if _fusible(last) else None  # type: ignore[assignment]
    if norm is None:
        return branch, None
    shorter = copy.copy(branch)
    shorter._modules = dict(rest)
    return shorter, norm
