"""Chains and parallel towers from their notation, and the layers that they are made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from residua.layers import AtLeast, Towers, conv_norm_act
from residua.network import fully_connected_head
from residua.towers import at_full_size, chain, series, towers


def test_a_chain_is_its_steps_in_series() -> None:
    built, channels = chain(4, "1x1 6, 3x3 8 /2, 1x7 5 V, max 3x3 /2, avg 3x3", normalization="none")
    assert channels == 5
    kinds = [type(step[0] if isinstance(step, nn.Sequential) else step) for step in built]
    assert kinds == [nn.Conv2d, nn.Conv2d, nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d]
    first, second, third = (step.conv for step in built[:3])
    x = torch.randn(2, 4, 13, 24)
    y = F.relu(F.conv2d(x, first.weight, first.bias))
    y = F.relu(F.conv2d(y, second.weight, second.bias, stride=2, padding=1))
    y = F.relu(F.conv2d(y, third.weight, third.bias))
    assert y.shape == (2, 5, 7, 12 - 6)
    y = F.avg_pool2d(F.max_pool2d(y, 3, 2, 1), 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(built(x), y)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [("3x3 7", (9, 12)), ("3x3 7 V", (7, 10)), ("3x3 7 /2", (5, 6)), ("3x3 7 /2 V", (4, 5)), ("7x1 7", (9, 12)),
     ("7x1 7 V", (3, 12)), ("1x7 7 V", (9, 6)), ("max 3x3", (9, 12)), ("max 3x3 /2", (5, 6)), ("max 3x3 /2 V", (4, 5))],
)  # fmt: skip
def test_padding_keeps_the_size_and_a_stride_halves_it(steps: str, expected: tuple[int, int]) -> None:
    built, channels = chain(7, steps)
    assert tuple(built(torch.zeros(1, 7, 9, 12)).shape) == (1, channels, *expected) == (1, 7, *expected)


def test_a_chain_can_end_in_two_layers_on_the_same_input() -> None:
    built, channels = chain(3, "1x1 4, 1x3 5 | 3x1 6")
    assert channels == 11
    x = torch.randn(2, 3, 5, 5)
    inner = built.eval()[0](x)
    torch.testing.assert_close(built(x), torch.cat([tower(inner) for tower in built.split.children()], 1))


def test_towers_are_concatenated_in_their_order() -> None:
    built, channels = towers(3, ("1x1 4", "1x1 2, 3x3 5", "max 3x3"))
    assert channels == 12
    x = torch.randn(2, 3, 6, 6)
    one, two, three = built.eval().children()
    torch.testing.assert_close(built(x), torch.cat([one(x), two(x), three(x)], 1))
    assert torch.equal(Towers(nn.Identity(), nn.ReLU())(x), torch.cat([x, x.relu()], 1))


def test_a_series_takes_the_width_of_each_part_to_the_next() -> None:
    parts, channels = series(3, ("3x3 8 /2", ("1x1 4", "max 3x3"), "1x1 5"), normalization="group")
    assert channels == 5
    assert nn.Sequential(*parts)(torch.zeros(1, 3, 8, 8)).shape == (1, 5, 4, 4)
    assert any(isinstance(module, nn.GroupNorm) for part in parts for module in part.modules())


def test_a_stem_at_full_size_keeps_its_layers_without_strides_and_pooling() -> None:
    assert at_full_size("3x3 32 /2 V, 3x3 32 V, max 3x3 /2 V, 1x1 80") == "3x3 32, 3x3 32, 1x1 80"
    assert at_full_size(("max 3x3 /2 V", "3x3 96 /2 V")) == ("max 3x3", "3x3 96")


def test_an_average_counts_its_padding_if_asked_to() -> None:
    ones = torch.ones(1, 1, 4, 4)
    assert torch.equal(chain(1, "avg 3x3")[0](ones), ones)
    assert float(chain(1, "avg 3x3", count_padding=True)[0](ones)[0, 0, 0, 0]) == pytest.approx(4 / 9)


def test_a_layer_has_a_bias_without_normalisation_or_on_demand() -> None:
    assert conv_norm_act(2, 3, 3).conv.bias is None
    assert conv_norm_act(2, 3, 3, normalization="none").conv.bias is not None
    assert conv_norm_act(2, 3, 3, bias=True).conv.bias is not None
    assert conv_norm_act(2, 3, 3, eps=1e-3).norm.eps == 1e-3


def test_small_maps_are_brought_to_the_least_size_and_others_stay() -> None:
    layer = AtLeast(4)
    large = torch.randn(1, 2, 4, 9)
    assert layer(large) is large
    one = torch.randn(1, 2, 1, 1)
    assert torch.equal(layer(one), one.expand(1, 2, 4, 4))
    two = torch.randn(1, 2, 2, 6)
    assert torch.equal(layer(two), two.repeat_interleave(2, 2))


@pytest.mark.parametrize("first", [False, True])
def test_the_fully_connected_head_flattens_the_map_of_the_published_size(first: bool) -> None:
    head = fully_connected_head(3, 2, (5, 4), 7, 0.5, dropout_first=first).eval()
    x = torch.randn(6, 3, 2, 2)
    hidden = F.relu(head.linear2(F.relu(head.linear1(x.flatten(1)))))
    torch.testing.assert_close(head(x), head.classifier(hidden))
    larger = x.repeat_interleave(3, 2).repeat_interleave(3, 3)
    torch.testing.assert_close(head(larger), head(x))
    names = [name.rstrip("12") for name, _ in head.named_children()]
    layer = ["dropout", "linear", "act"] if first else ["linear", "act", "dropout"]
    assert names == ["pool", "flatten", *layer, *layer, "classifier"]
