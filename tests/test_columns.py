"""Convolutions of stride 2 with many channels, as products of columns, against float64."""

from __future__ import annotations

import copy

import pytest
import torch
from maps import error, gradients, laid_out, made
from torch import nn
from torch.nn import functional as F

from residua import columns, convolving

here = pytest.mark.skipif(columns.obstacle() is not None, reason=str(columns.obstacle()))
SHAPES = [(2, 256, 264, 7, 10), (1, 256, 512, 16, 16), (3, 264, 256, 1, 5), (2, 256, 256, 4, 1), (1, 16, 24, 9, 12)]


def test_columns_are_what_each_position_reads() -> None:
    x = torch.arange(2 * 3 * 5 * 6, dtype=torch.float64).view(2, 3, 5, 6).contiguous(memory_format=torch.channels_last)
    found = columns.columns(x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    expected = F.unfold(x, 3, padding=1, stride=2).view(2, 3, 9, 3, 3).transpose(1, 2).reshape(2, 27, 3, 3)
    assert torch.equal(found, expected)


@here
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_and_gradients_are_those_in_float64_up_to_the_roundings_of_a_plain_convolution(shape: tuple[int, ...]) -> None:
    images, inputs, outputs, height, width = shape
    small = (height + 1) // 2, (width + 1) // 2
    x, dy = made(images, inputs, height, width, seed=1), made(images, outputs, *small, seed=2)
    beside, past = made(images, outputs, *small, seed=3), made(images, inputs, height, width, seed=4)
    weight, bias = made(outputs, inputs, 3, 3, seed=5).float(), torch.randn(outputs, generator=torch.Generator().manual_seed(6))
    exact = F.conv2d(x.double(), weight.double(), padding=1, stride=2)
    dx, dweight = gradients(x, weight, dy)
    found = columns.convolution(x, weight)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert error(found, exact) < 2**-8
    whole = exact + bias[:, None, None].double() + beside.double()
    assert error(columns.convolution(x, weight, bias=bias, beside=beside), whole) < 2**-8
    assert error(columns.input_gradient(dy, weight, x), dx) < 2**-7
    assert error(columns.input_gradient(dy, weight, x, beside=past), dx + past.double()) < 2**-7
    given = columns.weight_gradient(x, dy, weight)
    assert given.dtype == torch.float32
    assert given.shape == weight.shape
    assert error(given, dweight) < 1e-5, "sums are in float32, and nothing is rounded before"


@here
def test_a_layer_gives_the_gradients_of_all_that_needs_one() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(256, 256, 3, padding=1, stride=2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, dy = made(2, 256, 8, 9, seed=1), made(2, 256, 4, 5, seed=2)
    exact = copy.deepcopy(conv).double()
    theirs, ours = x.double().requires_grad_(), x.clone().requires_grad_()
    exact(theirs).backward(dy.double())
    loops = convolving.loops_for(conv)
    assert loops is columns
    with torch.autocast("cpu", torch.bfloat16):
        y = convolving.Convolution(conv, loops)(ours)
        assert type(y.grad_fn).__name__ == "_ConvolvedBackward"
        wide = convolving.Convolution(conv, loops)(laid_out(torch.randn(1, 256, 20, 20)))
        assert type(wide.grad_fn).__name__ != "_ConvolvedBackward", "larger maps are left to torch"
    y.backward(dy)
    for found, wanted in ((ours.grad, theirs.grad), (conv.weight.grad, exact.weight.grad), (conv.bias.grad, exact.bias.grad)):
        assert found is not None
        assert wanted is not None
        assert error(found, wanted) < 2**-7


def test_other_layers_are_left_to_others() -> None:
    others = [
        nn.Conv2d(128, 128, 3, padding=1, stride=2), nn.Conv2d(256, 256, 3, padding=1), nn.Conv2d(256, 256, 1, stride=2),
        nn.Conv2d(256, 256, 3, padding=1, stride=2, groups=2), nn.Conv2d(256, 256, 3, stride=2), nn.Linear(256, 256), None,
    ]  # fmt: skip
    assert not any(columns.suits(layer) for layer in others)
    assert columns.suits(nn.Conv2d(256, 512, 3, padding=1, stride=2))


@here
@pytest.mark.parametrize("channels", [(16, 32), (64, 128), (128, 256), (256, 512)], ids=str)
def test_maps_of_one_position_have_gradients_of_written_memory_only(channels: tuple[int, int]) -> None:
    """By oneDNN those of the weights were, in bf16, what lay in its memory before: NaN, or anything."""
    torch.manual_seed(0)
    conv = nn.Conv2d(*channels, 3, padding=1, stride=2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    exact, loops = copy.deepcopy(conv).double(), convolving.loops_for(conv)
    assert loops is not None
    layer = convolving.Convolution(conv, loops)
    for seed in range(3):
        x, dy = made(5, channels[0], 1, 1, seed=seed), made(5, channels[1], 1, 1, seed=seed + 3)
        before = [torch.full((size,), 1e30) for size in (10**3, 10**4, 10**5, 10**6)]
        del before
        conv.zero_grad()
        exact.zero_grad()
        expected = exact(x.double())
        expected.backward(dy.double())
        with torch.autocast("cpu", torch.bfloat16):
            found = layer(x)
        found.backward(dy)
        assert error(found.detach(), expected.detach()) < 2**-7
        assert conv.weight.grad is not None
        assert exact.weight.grad is not None
        assert error(conv.weight.grad, exact.weight.grad) < 2**-7
