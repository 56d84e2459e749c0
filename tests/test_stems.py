"""Convolutions of images against float64, and networks that begin with them against the plain ones."""

from __future__ import annotations

import copy

import pytest
import torch
from maps import error, gradients, laid_out, made
from torch import Tensor, nn
from torch.nn import functional as F

from residua import convolving, infer, packed, plan, stems
from residua.models import create_model
from residua.stems import Stem

here = pytest.mark.skipif(stems.obstacle() is not None, reason=str(stems.obstacle()))
LAYERS = [  # images, inputs, outputs, height, width, kernel, stride, padding
    (3, 3, 16, 9, 12, (3, 3), 1, (1, 1)), (2, 3, 64, 33, 41, (7, 7), 2, (3, 3)), (2, 1, 24, 28, 28, (5, 5), 1, (2, 2)),
    (2, 4, 40, 17, 23, (3, 3), 2, (0, 0)), (1, 3, 96, 60, 70, (11, 11), 4, (2, 2)), (20, 3, 8, 8, 8, (3, 3), 2, (1, 1)),
    (2, 2, 130, 10, 9, (4, 6), 3, (2, 0)), (1, 3, 16, 1, 8, (3, 3), 1, (1, 1)), (2, 3, 17, 5, 300, (1, 3), 1, (0, 1)),
    (1, 3, 32, 40, 9, (2, 9), 5, (0, 0)), (17, 1, 16, 12, 11, (3, 2), 1, (0, 1)),
]  # fmt: skip


def whole(*shape: int, seed: int) -> Tensor:
    return laid_out(torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)))


@here
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_results_and_gradients_are_those_in_float64_up_to_the_roundings_of_a_plain_convolution(layer: tuple) -> None:
    images, inputs, outputs, height, width, kernel, stride, padding = layer
    stem = Stem(stride, padding)
    x, weight = made(images, inputs, height, width, seed=1), made(outputs, inputs, *kernel, seed=2).float()
    bias = torch.randn(outputs, generator=torch.Generator().manual_seed(3))
    exact = F.conv2d(x.double(), weight.double(), padding=padding, stride=stride)
    dy, beside = made(*exact.shape, seed=4), made(*exact.shape, seed=5)
    found = stem.convolution(x, weight)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert error(found, exact) < 2**-8
    offset = exact + bias[:, None, None].double()
    assert error(stem.convolution(x, weight, bias=bias), offset) < 2**-8
    assert error(stem.convolution(x, weight, bias=bias, relu=True), offset.relu()) < 2**-8
    assert error(stem.convolution(x, weight, bias=bias, beside=beside), offset + beside.double()) < 2**-7
    assert error(stem.convolution(x, weight, bias=bias, beside=beside, relu=True), (offset + beside.double()).relu()) < 2**-7
    dx, dweight = gradients(x, weight, dy, stride, padding)
    assert error(stem.weight_gradient(x, dy, weight), dweight) < 1e-5, "sums are in float32, and nothing is rounded before"
    assert error(stem.input_gradient(dy, weight, x), dx) < 2**-7
    past = made(*x.shape, seed=6)
    assert error(stem.input_gradient(dy, weight, x, beside=past), dx + past.double()) < 2**-7


@here
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_small_whole_numbers_are_computed_without_any_error(layer: tuple) -> None:
    images, inputs, outputs, height, width, kernel, stride, padding = layer
    stem = Stem(stride, padding)
    x, weight = whole(images, inputs, height, width, seed=1), whole(outputs, inputs, *kernel, seed=2).float()
    exact = F.conv2d(x.double(), weight.double(), padding=padding, stride=stride)
    dy = whole(*exact.shape, seed=3)
    assert torch.equal(stem.convolution(x, weight), exact.bfloat16())
    assert torch.equal(stem.weight_gradient(x, dy, weight), gradients(x, weight, dy, stride, padding)[1].float())


@here
def test_what_is_no_number_stays_none_with_relu() -> None:
    x = made(1, 3, 9, 9, seed=1)
    x[0, 1, 4, 4] = torch.nan
    found = Stem(1, (1, 1)).convolution(x, made(16, 3, 3, 3, seed=2).float(), relu=True)
    assert found[0, :, 3:6, 3:6].isnan().all()
    assert not found[0, :, :, 7:].isnan().any()


@here
def test_the_bytes_do_not_depend_on_the_number_of_threads() -> None:
    stem, x, weight = Stem(2, (3, 3)), made(19, 3, 45, 52, seed=1), made(64, 3, 7, 7, seed=2).float()
    dy, threads, found = made(19, 64, 23, 26, seed=3), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append((stem.convolution(x, weight), stem.weight_gradient(x, dy, weight)))
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others))


@here
@pytest.mark.parametrize("needs", ["all", "weights", "input"])
def test_a_layer_gives_the_gradients_of_all_that_needs_one(needs: str) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 48, 7, padding=3, stride=2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, dy = made(4, 3, 22, 23, seed=1), made(4, 48, 11, 12, seed=2)
    conv.weight.requires_grad_(needs != "input")
    exact = copy.deepcopy(conv).double()
    theirs, ours = x.double().requires_grad_(needs != "weights"), x.clone().requires_grad_(needs != "weights")
    exact(theirs).backward(dy.double())
    loops = convolving.loops_for(conv)
    assert loops == Stem(2, (3, 3))
    with torch.autocast("cpu", torch.bfloat16):
        y = convolving.Convolution(conv, loops)(ours)
    assert type(y.grad_fn).__name__ == "_ConvolvedBackward"
    y.backward(dy)
    for found, wanted in ((ours.grad, theirs.grad), (conv.weight.grad, exact.weight.grad), (conv.bias.grad, exact.bias.grad)):
        assert (found is None) == (wanted is None)
        if found is not None and wanted is not None:
            assert error(found, wanted) < 2**-7


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(3, 4, 3), nn.Conv2d(3, 16, 1), nn.Conv2d(3, 16, 3, stride=(1, 2)),
        nn.Conv2d(3, 16, 3, dilation=2), nn.Conv2d(3, 15, 3, groups=3), nn.Conv2d(3, 16, 3, padding="same"),
        nn.Conv2d(3, 16, 3, padding=1, padding_mode="reflect"), nn.Linear(3, 16), nn.ConvTranspose2d(3, 16, 3), None,
    ],
    ids=str,
)  # fmt: skip
def test_other_layers_are_left_to_others(layer: nn.Module | None) -> None:
    assert stems.loops_for(layer) is None


@here
@pytest.mark.parametrize("name", ["resnet18", "resnet20"])
def test_networks_that_begin_with_one_learn_and_answer_as_the_plain_ones_do(name: str) -> None:
    torch.manual_seed(0)
    network = create_model(name, num_classes=10).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    stem = plan.compiled(network, plan.PLANS["bf16-winograd"]).stem
    first = [layer for layer in stem.modules() if isinstance(layer, convolving.Convolution) and isinstance(layer.loops, Stem)]
    assert len(first) == 1
    exact = copy.deepcopy(network.stem).double()
    expected = exact(x.double())
    dy = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    expected.backward(dy.double())
    errors = []
    for part in (network.stem, stem):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = part(x)
        y.backward(dy.to(y.dtype))
        assert error(y.detach(), expected.detach()) < 2**-6
        errors.append([error(a.grad, b.grad) for a, b in zip(network.stem.parameters(), exact.parameters())])
    for name_of, plain, own in zip(dict(network.stem.named_parameters()), *errors):
        assert own < 1.5 * plain + 2**-8, f"{name_of}: further from float64 than the layers of torch in bf16"
    ready = infer.prepared(network.eval(), "bf16")
    assert sum(isinstance(layer, packed.StemConvolution) for layer in ready.modules()) == 1
    with torch.no_grad():
        assert error(ready(x), network(x).double()) < 0.05
