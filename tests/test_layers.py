"""Convolutions, normalisations, pooling and the initialiser, against torch's own and against statistics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from residua import branches
from residua.layers import conv, global_pool, he_normal_, max_pool, norm, sequence


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_a_convolution_keeps_the_size_and_divides_it_by_its_stride_rounded_up(dims: int, kernel: int) -> None:
    for size in (5, 6):
        x = torch.zeros(1, 4, *(size,) * dims)
        assert conv(4, 6, kernel, dims=dims)(x).shape == (1, 6, *(size,) * dims)
        assert conv(4, 6, kernel, 2, dims=dims)(x).shape == (1, 6, *(3,) * dims)
    assert conv(4, 6, kernel, dims=dims).bias is None
    assert conv(4, 6, kernel, groups=2, dims=dims).weight.shape == (6, 2, *(kernel,) * dims)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_pooling_takes_the_mean_and_the_largest_value(dims: int) -> None:
    x = torch.randn(2, 3, *(5, 6, 7)[:dims], dtype=torch.float64)
    torch.testing.assert_close(global_pool(x), x.mean(tuple(range(2, 2 + dims))))
    assert torch.equal(max_pool(3, 1, dims=dims)(x).amax(tuple(range(2, 2 + dims))), x.amax(tuple(range(2, 2 + dims))))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_group_normalization_centres_and_scales_each_group_of_each_sample(dims: int) -> None:
    x = 3 + 2 * torch.randn(2, 16, *(4,) * dims, dtype=torch.float64)
    y = norm(16, kind="group", dims=dims).double()(x).detach().view(2, 8, -1)
    torch.testing.assert_close(y.mean(2), torch.zeros(2, 8, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(y.var(2, unbiased=False), torch.ones(2, 8, dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("channels", "groups"), [(16, 8), (12, 4), (6, 2), (7, 1)])
def test_there_are_eight_groups_or_as_many_as_divide(channels: int, groups: int) -> None:
    assert norm(channels, kind="group").num_groups == groups


def test_a_normalization_is_batch_group_or_none() -> None:
    assert isinstance(norm(4, kind="none"), nn.Identity)
    assert isinstance(norm(4, dims=3), nn.BatchNorm3d)
    with pytest.raises(ValueError, match="'batch', 'group', 'none'"):
        norm(4, kind="layer")


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (nn.Conv2d(64, 128, 3), 64 * 9),
        (nn.Conv2d(64, 128, 3, groups=4), 16 * 9),
        (nn.Conv1d(64, 256, 5), 64 * 5),
        (nn.Conv3d(16, 64, 3), 16 * 27),
        (nn.Linear(300, 200), 300),
    ],
    ids=["2d", "grouped", "1d", "3d", "linear"],
)
def test_weights_start_as_a_gaussian_of_variance_two_over_fan_in(layer: nn.Module, fan_in: int) -> None:
    torch.manual_seed(0)
    weights = he_normal_(layer).weight.detach().double().flatten()
    count, std = len(weights), math.sqrt(2 / fan_in)
    assert abs(float(weights.mean())) < 4 * std / math.sqrt(count)
    assert abs(float(weights.std()) / std - 1) < 4 / math.sqrt(2 * count)
    kurtosis = float(((weights - weights.mean()) / weights.std()).pow(4).mean())
    assert abs(kurtosis - 3) < 5 * math.sqrt(24 / count), "Gaussian, not uniform (1.8)"
    assert not bool(layer.bias.any())


def test_normalizations_start_as_the_identity() -> None:
    for layer in (nn.BatchNorm2d(4), nn.GroupNorm(2, 4)):
        nn.init.constant_(layer.weight, 7)
        nn.init.constant_(layer.bias, 7)
        he_normal_(layer)
        assert bool((layer.weight == 1).all())
        assert not bool(layer.bias.any())


def test_a_sequence_runs_its_layers_in_the_order_of_the_arguments() -> None:
    chain = sequence(b=nn.Linear(2, 3), a=nn.Linear(3, 4))
    assert [name for name, _ in chain.named_children()] == ["b", "a"]
    x = torch.randn(1, 2)
    assert torch.equal(chain(x), chain.a(chain.b(x)))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_branches_work_in_one_to_three_dimensions(dims: int) -> None:
    x = torch.randn(2, 8, *(6,) * dims)
    assert branches.basic(8, 16, 2, dims=dims)(x).shape == (2, 16, *(3,) * dims)
    for place in ("1x1", "3x3"):
        assert branches.bottleneck(8, 4, 2, stride_on=place, dims=dims)(x).shape == (2, 16, *(3,) * dims)


def test_the_bottlenecks_stride_sits_where_it_is_asked_for() -> None:
    for place, strides in (("1x1", [2, 1, 1]), ("3x3", [1, 2, 1])):
        branch = branches.bottleneck(8, 4, 2, stride_on=place)
        assert [branch.conv1.stride[0], branch.conv2.stride[0], branch.conv3.stride[0]] == strides
