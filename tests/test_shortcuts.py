"""The three shortcut options of he2015 section 3.3."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from residua.shortcuts import ZeroPad, option


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("wider", "stride"), [(0, 2), (3, 1), (4, 2), (1, 3)])
def test_zero_padding_takes_every_stride_th_position_and_appends_zero_channels(dims: int, wider: int, stride: int) -> None:
    size = (5, 7, 4)[:dims]
    x = torch.randn(2, 3, *size)
    y = ZeroPad(3, 3 + wider, stride)(x)
    assert y.shape == (2, 3 + wider, *(-(-side // stride) for side in size))
    for place in torch.cartesian_prod(*(torch.arange(side) for side in y.shape[2:])).reshape(-1, dims).tolist():
        source = x[(slice(None), slice(None), *(stride * p for p in place))]
        found = y[(slice(None), slice(None), *place)]
        assert torch.equal(found[:, :3], source)
        assert not bool(found[:, 3:].any())


def test_zero_padding_has_no_parameters_and_equals_the_strided_size_of_a_convolution() -> None:
    assert not list(ZeroPad(2, 4, 2).parameters())
    for side in range(1, 9):
        x = torch.zeros(1, 2, side, side)
        assert ZeroPad(2, 4, 2)(x).shape == nn.Conv2d(2, 4, 3, 2, padding=1)(x).shape


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_options_are_those_of_the_paper(dims: int) -> None:
    assert isinstance(option("A", 4, 4, 1, dims=dims), nn.Identity)
    assert isinstance(option("B", 4, 4, 1, dims=dims), nn.Identity)
    assert isinstance(option("A", 4, 8, 2, dims=dims), ZeroPad)
    for kind, channels, stride in (("B", 8, 2), ("B", 8, 1), ("B", 4, 2), ("C", 4, 1), ("C", 8, 2)):
        shortcut = option(kind, 4, channels, stride, dims=dims)
        assert [type(part).__name__ for part in shortcut] == [f"Conv{dims}d", f"BatchNorm{dims}d"]
        assert sum(p.numel() for p in shortcut.conv.parameters()) == 4 * channels
        assert shortcut(torch.randn(2, 4, *(4,) * dims)).shape == (2, channels, *(4 // stride,) * dims)


def test_a_projection_without_normalization_has_a_bias() -> None:
    assert option("C", 4, 4, 1, normalization="none").conv.bias is not None
    assert isinstance(option("C", 4, 4, 1, normalization="group").norm, nn.GroupNorm)
