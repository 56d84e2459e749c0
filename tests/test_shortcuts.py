"""The three shortcut options of he2015 section 3.3."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from residua.shortcuts import Dropped, Gated, ZeroPad, option


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


def test_a_gated_shortcut_is_one_minus_the_gate_times_the_shortcut() -> None:
    x, transform = torch.randn(2, 4, 3, 3), nn.Conv2d(4, 6, 1)
    gated = Gated(ZeroPad(4, 6, 1), transform)
    expected = (1 - torch.sigmoid(transform(x))) * ZeroPad(4, 6, 1)(x)
    torch.testing.assert_close(gated(x), expected)
    assert len(list(gated.parameters())) == 2


@pytest.mark.parametrize("rate", [0.5, 0.3])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("inverted", [False, True])
def test_a_dropped_shortcut_has_the_stated_values_and_expectation(rate: float, inverted: bool, whole: bool) -> None:
    torch.manual_seed(0)
    x = torch.rand(4_000, 3, 2, 2, dtype=torch.float64) + 1
    dropped = Dropped(rate, inverted=inverted, whole=whole).train()
    ratios = dropped(x) / x
    kept = ratios > 0
    torch.testing.assert_close(ratios[kept], torch.full_like(ratios[kept], 1 / (1 - rate) if inverted else 1.0))
    one_draw = kept[:, :1, :1, :1]
    assert torch.equal(kept, one_draw.expand_as(kept)) == whole
    draws = one_draw if whole else kept
    assert abs(float(draws.double().mean()) - (1 - rate)) < 5 * (rate * (1 - rate) / draws.numel()) ** 0.5
    expectation = x if inverted else (1 - rate) * x
    torch.testing.assert_close(dropped.eval()(x), expectation)
    torch.testing.assert_close(float(ratios.mean()), float((expectation / x).mean()), rtol=0.08, atol=0)


def test_dropped_shortcuts_are_drawn_anew_and_by_torchs_generator() -> None:
    dropped, x = Dropped(0.5), torch.ones(1, 8, 8, 8)
    torch.manual_seed(1)
    first, second = dropped(x), dropped(x)
    torch.manual_seed(1)
    assert torch.equal(dropped(x), first)
    assert not torch.equal(first, second)
