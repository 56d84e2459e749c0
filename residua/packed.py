"""Layers for inference: weights packed as the processor reads them, ReLU and addition computed with the convolution. Layer 2.

Each is made of a `residua.affine.Folded` in the precision (dtype) of the network that it becomes part of, computes
in that precision whatever the precision of its input, and has no gradient. Where torch offers oneDNN's fused
operations they are used, else those of `torch.nn.functional`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from residua import pointwise, stems, winograd
from residua.affine import CONVOLUTIONS, Folded

__all__ = ["Convolution", "Joined", "Layer", "Linear", "Normalization", "layer_of"]

_CONVOLVE = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


def offers_fusion(dtype: torch.dtype) -> bool:
    """Whether torch offers convolutions in `dtype` with ReLU and addition in them, and packed weights."""
    names = ("_convolution_pointwise", "_convolution_pointwise_", "_reorder_convolution_weight", "_is_mkldnn_bf16_supported")
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Layer(nn.Module):
    """A folded layer and its ReLU."""

    def __init__(self, found: Folded, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.relu = dtype, found.relu
        self.weight = found.weight.to(dtype)
        self.bias = None if found.bias is None else found.bias.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = self.applied(x.to(self.dtype))
        return y.relu_() if self.relu else y

    def joined(self, x: Tensor, h: Tensor, *, relu: bool, overwrite: bool) -> Tensor:
        """h + the layer's output, then ReLU if `relu`; `overwrite` allows to write it over h. The layer has no own ReLU."""
        y = self.applied(x.to(self.dtype)).add_(h)
        return y.relu_() if relu else y

    def applied(self, x: Tensor) -> Tensor:
        """The layer's output without ReLU, as a new tensor."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"shape={tuple(self.weight.shape)}, dtype={self.dtype}, relu={self.relu}"


class Linear(Layer):
    """[N, ..., inputs] -> [N, ..., outputs]."""

    def applied(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Normalization(Layer):
    """weight x + bias a channel, [N, C, ...] in any number of dimensions: a batch normalisation that nothing could take up."""

    def __init__(self, found: Folded, dtype: torch.dtype) -> None:
        wide = torch.promote_types(dtype, torch.float32)
        super().__init__(found, wide)
        self.dtype = dtype
        self.mean, self.variance = torch.zeros_like(self.weight), torch.ones_like(self.weight)

    def applied(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.variance, self.weight, self.bias, eps=0.0)


class Convolution(Layer):
    """A convolution in one to three dimensions by `torch.nn.functional`."""

    def __init__(self, found: Folded, dtype: torch.dtype) -> None:
        super().__init__(found, dtype)
        assert isinstance(found.layer, CONVOLUTIONS)
        self.convolve: Any = _CONVOLVE[type(found.layer)]
        self.geometry: dict[str, Any] = {
            "stride": found.layer.stride, "padding": found.layer.padding, "dilation": found.layer.dilation,
            "groups": found.layer.groups,
        }  # fmt: skip

    def applied(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.weight, self.bias, **self.geometry)


class FusedConvolution(Convolution):
    """A convolution by oneDNN with ReLU and addition in it, float32 or bfloat16, on the CPU.

    The weights are packed anew for each size of the input, batch included, and kept for the last few sizes: oneDNN orders them
    otherwise for another size, and would reorder them at each call.
    """

    KEPT = 2  # full batches and the last one

    def __init__(self, found: Folded, dtype: torch.dtype) -> None:
        super().__init__(found, dtype)
        self.packed: dict[torch.Size, Tensor] = {}
        geometry = self.geometry
        self.shape = [list(geometry["padding"]), list(geometry["stride"]), list(geometry["dilation"]), geometry["groups"]]
        self.format = torch.channels_last if self.weight.dim() == 4 else torch.channels_last_3d

    def forward(self, x: Tensor) -> Tensor:
        return self._convolved(self._laid_out(x), "relu" if self.relu else "none")

    def applied(self, x: Tensor) -> Tensor:
        return self._convolved(self._laid_out(x), "none")

    def joined(self, x: Tensor, h: Tensor, *, relu: bool, overwrite: bool) -> Tensor:
        x, other = self._laid_out(x), self._laid_out(h)
        given = (self._weight_for(x.shape), self.bias, *self.shape, "add", None, "relu" if relu else None, [], None)
        if overwrite:
            return torch.ops.mkldnn._convolution_pointwise_(other, x, *given)
        return torch.ops.mkldnn._convolution_pointwise(x, other, *given)

    def _convolved(self, x: Tensor, after: str) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(x, self._weight_for(x.shape), self.bias, *self.shape, after, [], "")

    def _laid_out(self, x: Tensor) -> Tensor:
        return x.to(self.dtype).contiguous(memory_format=self.format)

    def _weight_for(self, size: torch.Size) -> Tensor:
        packed = self.packed.get(size)
        if packed is None:
            packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.shape, list(size))
            if len(self.packed) == self.KEPT:
                del self.packed[next(iter(self.packed))]
            self.packed[size] = packed
        return packed

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, fused"


class OwnConvolution(FusedConvolution):
    """The same by loops of our own in bfloat16, for sizes of the input where they pay; their weights are packed once."""

    def __init__(self, found: Folded, dtype: torch.dtype) -> None:
        super().__init__(found, dtype)
        self.wide_bias = None if found.bias is None else found.bias.float().contiguous()
        self.whole: Tensor | None = found.weight.float()
        self.filters: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self._laid_out(x)
        return self._by_loops(x, relu=self.relu) if self._pays(x) else super().forward(x)

    def applied(self, x: Tensor) -> Tensor:
        x = self._laid_out(x)
        return self._by_loops(x) if self._pays(x) else super().applied(x)

    def joined(self, x: Tensor, h: Tensor, *, relu: bool, overwrite: bool) -> Tensor:
        x = self._laid_out(x)
        if not self._pays(x):
            return super().joined(x, h, relu=relu, overwrite=overwrite)
        h = self._laid_out(h)
        return self._by_loops(x, beside=h, relu=relu, out=h if overwrite else None)

    def _by_loops(self, x: Tensor, **following: Any) -> Tensor:
        if self.filters is None:
            assert self.whole is not None
            self.filters, self.whole = self._filters(self.whole, x), None
        return self._convolved_by(x, self.filters, len(self.weight), bias=self.wide_bias, **following)

    def _pays(self, x: Tensor) -> bool:
        """Whether the loops are faster for maps of the size of x, which they can read."""
        raise NotImplementedError

    def _filters(self, weight: Tensor, x: Tensor) -> Tensor:
        """`weight`, in float32, as the loops read it, for maps like x."""
        raise NotImplementedError

    def _convolved_by(self, x: Tensor, filters: Tensor, outputs: int, **following: Any) -> Tensor:
        raise NotImplementedError


class WinogradConvolution(OwnConvolution):
    """A 3x3 convolution with fewer multiplications (`residua.winograd`)."""

    LEAST_TILES = 16, 32  # for even sides, and for odd ones, whose weights are more; they are transformed once

    def _pays(self, x: Tensor) -> bool:
        return x.dim() == 4 and winograd.pays(x, self.LEAST_TILES[winograd.odd(x)])

    def _filters(self, weight: Tensor, x: Tensor) -> Tensor:
        return winograd.packed(weight, edged=winograd.odd(x))

    def _convolved_by(self, x: Tensor, filters: Tensor, outputs: int, **following: Any) -> Tensor:
        return winograd.convolved(x, filters, outputs, **following)


class PointwiseConvolution(OwnConvolution):
    """A 1x1 convolution (`residua.pointwise`); with a stride, of the positions that it reads."""

    def _pays(self, x: Tensor) -> bool:
        return x.dim() == 4 and pointwise.pays(x)

    def _filters(self, weight: Tensor, x: Tensor) -> Tensor:
        return pointwise.packed(weight)

    def _convolved_by(self, x: Tensor, filters: Tensor, outputs: int, **following: Any) -> Tensor:
        down, across = self.geometry["stride"]
        if down > 1 or across > 1:
            x = x[:, :, ::down, ::across].contiguous(memory_format=torch.channels_last)
        return pointwise.convolved(x, filters, outputs, **following)


class StemConvolution(OwnConvolution):
    """A convolution of images (`residua.stems`)."""

    def __init__(self, found: Folded, dtype: torch.dtype) -> None:
        super().__init__(found, dtype)
        loops = stems.loops_for(found.layer)
        assert loops is not None
        self.loops = loops

    def _pays(self, x: Tensor) -> bool:
        return x.dim() == 4 and self.loops.pays(x)

    def _filters(self, weight: Tensor, x: Tensor) -> Tensor:
        return self.loops.packed(weight)

    def _convolved_by(self, x: Tensor, filters: Tensor, outputs: int, **following: Any) -> Tensor:
        return self.loops.convolved(x, filters, self.weight.shape, **following)


class Joined(nn.Module):
    """A residual unit whose branch ends in `last`: addition and ReLU are computed with that layer.

    post(h(x) + last(before(x))), ReLU first if `relu`. With `overwrite` what the shortcut gives is written over.
    """

    def __init__(
        self, before: nn.Sequential, last: Layer, shortcut: nn.Module, post: nn.Sequential, *, relu: bool, overwrite: bool
    ) -> None:
        super().__init__()
        self.before, self.last, self.shortcut, self.post = before, last, shortcut, post
        self.relu, self.overwrite = relu, overwrite

    def forward(self, x: Tensor) -> Tensor:
        h = self.shortcut(x)
        return self.post(self.last.joined(self.before(x), h, relu=self.relu, overwrite=self.overwrite))

    def extra_repr(self) -> str:
        return f"relu={self.relu}, overwrite={self.overwrite}"


def layer_of(found: Folded, dtype: torch.dtype) -> Layer:
    """The layer that computes `found` in `dtype`."""
    if isinstance(found.layer, nn.Linear):
        return Linear(found, dtype)
    if isinstance(found.layer, nn.BatchNorm2d) and _fuses(found, dtype):
        return FusedConvolution(_as_convolution(found), dtype)
    if not isinstance(found.layer, CONVOLUTIONS):
        return Normalization(found, dtype)
    if not isinstance(found.layer, (nn.Conv2d, nn.Conv3d)) or not _fuses(found, dtype):
        return Convolution(found, dtype)
    own = dtype == torch.bfloat16 and winograd.preferred()
    if own and winograd.suits(found.layer):
        return WinogradConvolution(found, dtype)
    if own and pointwise.reads(found.layer) and pointwise.obstacle() is None:
        return PointwiseConvolution(found, dtype)
    if own and stems.loops_for(found.layer) is not None and stems.obstacle() is None:
        return StemConvolution(found, dtype)
    return FusedConvolution(found, dtype)


def _fuses(found: Folded, dtype: torch.dtype) -> bool:
    return found.weight.device.type == "cpu" and offers_fusion(dtype)


def _as_convolution(found: Folded) -> Folded:
    """A normalisation as a convolution of each channel by one number: one pass over memory where norm and ReLU would be two,
    of which torch's own norm in bf16 takes most of the time."""
    channels = len(found.weight)
    alone = nn.Conv2d(channels, channels, 1, groups=channels, device="meta")
    return replace(found, layer=alone, weight=found.weight.view(channels, 1, 1, 1))
