"""The residual branches F of the literature. Layer 1. Shapes: [N, in, H, W] -> [N, out, H / stride, W / stride]."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from residua.layers import activation, conv, norm

__all__ = ["ORDERS", "Order", "Shape", "basic", "basic_shapes", "bottleneck", "bottleneck_shapes", "ordered"]

Shape = tuple[int, int, int, int]  # Of a convolution: input channels, output channels, kernel, stride.


@dataclass(frozen=True)
class Order:
    """Where normalisation ("norm") and activation ("act") stand: before each convolution of a branch, after each but the last,
    after the last, and after the addition (then they are the unit's post)."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    post: tuple[str, ...] = ()


# he2016 figure 4, (a) to (e).
ORDERS = {
    "original": Order(after=("norm", "act"), last=("norm",), post=("act",)),
    "bn-after-addition": Order(after=("norm", "act"), post=("norm", "act")),
    "relu-before-addition": Order(after=("norm", "act"), last=("norm", "act")),
    "relu-only-preactivation": Order(before=("act",), after=("norm",), last=("norm",)),
    "full-preactivation": Order(before=("norm", "act")),
}


def basic(
    in_channels: int, width: int, stride: int, *, layers: int = 2, normalization: str = "batch", dims: int = 2
) -> nn.Sequential:
    """3x3, 3x3 (he2015 figure 5, left): `layers` convolutions of `width` channels, each followed by its normalisation, and
    by an activation between two. he2015 section 3.2 has two or three of them, he2016 table 3 also one."""
    shapes = basic_shapes(in_channels, width, stride, layers=layers)
    return ordered(shapes, ORDERS["original"], normalization=normalization, dims=dims)


def bottleneck(
    in_channels: int,
    width: int,
    stride: int,
    *,
    expansion: int = 4,
    stride_on: str = "3x3",
    normalization: str = "batch",
    dims: int = 2,
) -> nn.Sequential:
    """1x1 to `width`, 3x3, 1x1 to `expansion * width` (he2015 figure 5, right).

    `stride_on` places the stride: "1x1" on the first convolution (the form whose multiply-adds he2015 prints) or "3x3" (the
    re-implementations' form, more accurate and some 5 % dearer).
    """
    shapes = bottleneck_shapes(in_channels, width, stride, expansion=expansion, stride_on=stride_on)
    return ordered(shapes, ORDERS["original"], normalization=normalization, dims=dims)


def basic_shapes(in_channels: int, width: int, stride: int, *, layers: int = 2) -> list[Shape]:
    """The convolutions of `basic`; the first one strides."""
    return [(in_channels, width, 3, stride), *[(width, width, 3, 1)] * (layers - 1)]


def bottleneck_shapes(in_channels: int, width: int, stride: int, *, expansion: int = 4, stride_on: str = "3x3") -> list[Shape]:
    """The convolutions of `bottleneck`."""
    first, second = (stride, 1) if stride_on == "1x1" else (1, stride)
    return [(in_channels, width, 1, first), (width, width, 3, second), (width, expansion * width, 1, 1)]


def ordered(
    shapes: Iterable[Shape], order: Order, *, activated: bool = False, normalization: str = "batch", dims: int = 2
) -> nn.Sequential:
    """Convolutions of the given shapes with normalisation and activation where `order` puts them (`order.post` apart).

    With `activated` nothing stands before the first one: what should has already acted on the unit's input.
    """
    shapes, chain = list(shapes), nn.Sequential()

    def add(names: Iterable[str], place: int, channels: int) -> None:
        for name in names:
            layer = activation() if name == "act" else norm(channels, kind=normalization, dims=dims)
            chain.add_module(f"{name}{place}", layer)

    for place, (width_in, width_out, kernel, stride) in enumerate(shapes, start=1):
        add(() if activated and place == 1 else order.before, place, width_in)
        chain.add_module(f"conv{place}", conv(width_in, width_out, kernel, stride, dims=dims, bias=normalization == "none"))
        add(order.last if place == len(shapes) else order.after, place, width_out)
    return chain
