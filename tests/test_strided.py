"""Convolutions of stride 2, tap by tap, against float64, and networks that use them against the plain ones."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from maps import error, gradients, laid_out, made
from torch import Tensor, nn
from torch.nn import functional as F

from residua import convolving, strided

here = pytest.mark.skipif(strided.obstacle() is not None, reason=str(strided.obstacle()))
SHAPES = [  # images, inputs, outputs, height, width
    (3, 16, 24, 7, 10), (2, 24, 16, 9, 12), (2, 16, 40, 8, 11), (5, 32, 64, 5, 8), (33, 72, 72, 6, 9), (2, 16, 16, 1, 4),
    (2, 16, 16, 2, 1), (1, 16, 32, 33, 36), (20, 16, 16, 32, 32), (2, 128, 80, 8, 8), (1, 16, 48, 70, 150), (1, 16, 16, 1, 1),
    (2, 8, 8, 40, 300),
]  # fmt: skip


def sides(height: int, width: int) -> tuple[int, int]:
    return (height + 1) // 2, (width + 1) // 2


@here
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_and_gradients_are_those_in_float64_up_to_the_roundings_of_a_plain_convolution(shape: tuple[int, ...]) -> None:
    images, inputs, outputs, height, width = shape
    small = sides(height, width)
    x, dy = made(images, inputs, height, width, seed=1), made(images, outputs, *small, seed=2)
    beside, past = made(images, outputs, *small, seed=3), made(images, inputs, height, width, seed=4)
    weight, bias = made(outputs, inputs, 3, 3, seed=5).float(), torch.randn(outputs, generator=torch.Generator().manual_seed(6))
    exact = F.conv2d(x.double(), weight.double(), padding=1, stride=2)
    dx, dweight = gradients(x, weight, dy)
    found = strided.convolution(x, weight)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert error(found, exact) < 2**-8
    whole = exact + bias[:, None, None].double() + beside.double()
    assert error(strided.convolution(x, weight, bias=bias, beside=beside), whole) < 2**-8
    assert error(strided.input_gradient(dy, weight, x), dx) < 2**-8
    assert error(strided.input_gradient(dy, weight, x, beside=past), dx + past.double()) < 2**-8
    assert error(strided.weight_gradient(x, dy, weight), dweight) < 1e-5, "sums are in float32, and nothing is rounded before"


@here
def test_small_whole_numbers_are_computed_without_any_error() -> None:
    generator = torch.Generator().manual_seed(0)
    for images, inputs, outputs, height, width in SHAPES:
        x = laid_out(torch.randint(-3, 4, (images, inputs, height, width), generator=generator))
        dy = laid_out(torch.randint(-3, 4, (images, outputs, *sides(height, width)), generator=generator))
        weight = torch.randint(-3, 4, (outputs, inputs, 3, 3), generator=generator).float()
        dx, dweight = gradients(x, weight, dy)
        exact = F.conv2d(x.double(), weight.double(), padding=1, stride=2)
        assert torch.equal(strided.convolution(x, weight), exact.bfloat16())
        assert torch.equal(strided.input_gradient(dy, weight, x), dx.bfloat16())
        assert torch.equal(strided.weight_gradient(x, dy, weight), dweight.float())


@here
def test_the_bytes_do_not_depend_on_the_number_of_threads() -> None:
    x, dy, weight = made(19, 48, 15, 14, seed=1), made(19, 80, 8, 7, seed=2), made(80, 48, 3, 3, seed=3).float()
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(
                (strided.convolution(x, weight), strided.input_gradient(dy, weight, x), strided.weight_gradient(x, dy, weight))
            )
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others))


@here
@pytest.mark.parametrize("needs", ["all", "weights", "input"])
def test_a_layer_gives_the_gradients_of_all_that_needs_one(needs: str) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 48, 3, padding=1, stride=2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, dy = made(4, 32, 12, 13, seed=1), made(4, 48, 6, 7, seed=2)
    conv.weight.requires_grad_(needs != "input")
    exact = copy.deepcopy(conv).double()
    theirs, ours = x.double().requires_grad_(needs != "weights"), x.clone().requires_grad_(needs != "weights")
    exact(theirs).backward(dy.double())
    loops = convolving.loops_for(conv)
    assert loops is strided
    with torch.autocast("cpu", torch.bfloat16):
        y = convolving.Convolution(conv, loops)(ours)
    assert type(y.grad_fn).__name__ == "_ConvolvedBackward"
    y.backward(dy)
    for found, wanted in ((ours.grad, theirs.grad), (conv.weight.grad, exact.weight.grad), (conv.bias.grad, exact.bias.grad)):
        assert (found is None) == (wanted is None)
        if found is not None and wanted is not None:
            assert error(found, wanted) < 2**-8
    h = made(4, 48, 6, 7, seed=3)
    with torch.autocast("cpu", torch.bfloat16):
        added = convolving.Convolution(conv, loops).added(x, h)
    assert error(added.detach(), exact(x.double()).detach() + h.double()) < 2**-8


@here
@pytest.mark.parametrize("through", ["both", "the branch", "the shortcut"])
def test_the_gradient_of_a_shortcut_that_subsamples_is_added_to_that_of_the_branch(through: str) -> None:
    conv = nn.Conv2d(16, 24, 3, padding=1, stride=2, bias=False)
    layer = convolving.Convolution(conv, strided)
    assert layer.subsamples(2, 8)
    assert not layer.subsamples(2, 0)
    assert not layer.subsamples(1, 8)
    x = made(3, 16, 9, 12, seed=1)
    exact, theirs, ours = copy.deepcopy(conv).double(), x.double().requires_grad_(), x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer.subsampled(ours, 8)
        assert layer.subsampled(ours.float(), 8) is None
    assert found is not None
    y, h = found
    expected = F.pad(theirs[:, :, ::2, ::2], (0, 0, 0, 0, 0, 8))
    assert torch.equal(h.double(), expected)
    dy, dh = made(3, 24, 5, 6, seed=2), made(3, 24, 5, 6, seed=3)
    sums = {"both": (y * dy).sum() + (h * dh).sum(), "the branch": (y * dy).sum(), "the shortcut": (h * dh).sum()}
    branch, past = (exact(theirs) * dy.double()).sum(), (expected * dh.double()).sum()
    sums[through].backward()
    {"both": branch + past, "the branch": branch, "the shortcut": past}[through].backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert error(ours.grad, theirs.grad) < 2**-8
    if through != "the shortcut":
        assert conv.weight.grad is not None
        assert exact.weight.grad is not None
        assert error(conv.weight.grad, exact.weight.grad) < 2**-8


@here
@pytest.mark.parametrize(
    "change",
    [lambda x: x.contiguous(), lambda x: x[:, :, :, :7].contiguous(memory_format=torch.channels_last)],
    ids=["another order", "few columns"],
)
def test_other_maps_go_through_the_plain_layer(change: Callable[[Tensor], Tensor]) -> None:
    conv = nn.Conv2d(32, 32, 3, padding=1, stride=2)
    x = change(made(8, 32, 16, 16, seed=0)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = convolving.Convolution(conv, strided)(x)
        assert torch.equal(y, conv(x))
    assert type(y.grad_fn).__name__ != "_ConvolvedBackward"


def test_layers_of_another_kind_are_left_as_they_are() -> None:
    kinds = [
        nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 1, stride=2), nn.Conv2d(64, 64, 3, stride=2),
        nn.Conv2d(64, 64, 3, padding=2, dilation=2, stride=2), nn.Conv2d(64, 64, 3, padding=1, stride=(2, 1)),
        nn.Conv2d(64, 64, 3, padding=1, groups=2, stride=2), nn.Conv2d(3, 64, 3, padding=1, stride=2),
        nn.Conv2d(36, 64, 3, padding=1, stride=2), nn.Conv2d(64, 256, 3, padding=1, stride=2),
        nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect", stride=2), nn.Conv3d(64, 64, 3, padding=1, stride=2),
        nn.Identity(), None,
    ]  # fmt: skip
    assert not any(strided.suits(kind) for kind in kinds)
    assert strided.suits(nn.Conv2d(48, 64, 3, padding=1, stride=2))
