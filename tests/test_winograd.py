"""Convolutions by Winograd's algorithm against float64, and networks that use them against the plain ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trainings import final_bytes, stopped, train, write_images

from residua import convolving, native, plan, winograd
from residua.errors import RequestError
from residua.infer import prepared
from residua.kernels import FusedUnit, Pool, fused
from residua.models import create_model
from residua.packed import WinogradConvolution

here = pytest.mark.skipif(winograd.obstacle() is not None, reason=str(winograd.obstacle()))
TRANSFORMS = {
    "B": [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
    "G": [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]],
    "A": [[1, 1, 1, 0], [0, 1, -1, -1]],
}
SHAPES = [  # images, inputs, outputs, height, width
    (2, 32, 32, 8, 8), (1, 16, 48, 7, 5), (3, 48, 16, 5, 7), (5, 64, 96, 6, 9), (1, 160, 80, 4, 3), (2, 256, 64, 14, 14),
    (7, 16, 16, 1, 2), (40, 32, 112, 7, 7), (3, 24, 40, 6, 6),
    (2, 56, 24, 9, 4), (2, 72, 136, 5, 8),
]  # fmt: skip


def made(*shape: int, seed: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)


def weights(outputs: int, inputs: int) -> Tensor:
    return torch.randn(outputs, inputs, 3, 3, generator=torch.Generator().manual_seed(9)) / (9 * inputs) ** 0.5


def gradients(x: Tensor, weight: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Of the input and the weights, by torch in the precision of its arguments."""
    one, pair = [1, 1], [True, True, False]
    dx, dweight, _ = torch.ops.aten.convolution_backward(dy, x, weight, None, one, one, one, False, [0, 0], 1, pair)
    return dx, dweight


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def by_tiles(x: Tensor, weight: Tensor) -> Tensor:
    """The algorithm as the paper writes it, in float64 on maps of even sides."""
    b, g, a = (torch.tensor(TRANSFORMS[name], dtype=torch.float64) for name in "BGA")
    tiles = F.pad(x.double(), (1, 1, 1, 1)).unfold(2, 4, 2).unfold(3, 4, 2)  # [N, C, down, across, 4, 4]
    product = torch.einsum("kcij,nctuij->nktuij", g @ weight.double() @ g.mT, b @ tiles @ b.mT)
    y = a @ product @ a.mT
    return y.permute(0, 1, 2, 4, 3, 5).reshape(len(x), len(weight), x.shape[2], x.shape[3])


def test_the_algorithm_is_a_convolution() -> None:
    x, weight = made(2, 3, 6, 8, seed=0).double(), weights(5, 3).double()
    torch.testing.assert_close(by_tiles(x, weight), F.conv2d(x, weight, padding=1))


@here
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_and_gradients_are_as_near_to_float64_as_two_roundings_allow(shape: tuple[int, ...]) -> None:
    """A plain convolution in bf16 rounds its result to 8 bits, 2^-9 of it at most; here what is multiplied is rounded as well."""
    images, inputs, outputs, height, width = shape
    x, dy, weight = (
        made(images, inputs, height, width, seed=1),
        made(images, outputs, height, width, seed=2),
        weights(outputs, inputs),
    )
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    dx, dweight = gradients(x.double(), weight.double(), dy.double())
    found = winograd.convolved(x, winograd.packed(weight), outputs)
    plain = F.conv2d(x, weight.bfloat16(), padding=1)
    assert error(found, exact) < 2.5 * error(plain, exact) < 2.5 * 2**-8
    assert error(winograd.convolved(dy, winograd.packed(weight, backward=True), inputs), dx) < 2**-7
    assert error(winograd.convolution(x, weight), exact) < 2.5 * error(plain, exact), "with fewer points where a side is odd"
    assert error(winograd.input_gradient(dy, weight, x), dx) < 2**-7
    assert error(winograd.weight_gradient(x, dy, weight), dweight) < 2**-7
    assert found.is_contiguous(memory_format=torch.channels_last)


@here
def test_small_whole_numbers_are_computed_without_any_error() -> None:
    """Their transforms need no rounding, so an index that is wrong anywhere would show."""
    generator = torch.Generator().manual_seed(0)
    for images, inputs, outputs, height, width in SHAPES:
        x = torch.randint(-3, 4, (images, inputs, height, width), generator=generator).bfloat16()
        dy = torch.randint(-3, 4, (images, outputs, height, width), generator=generator).bfloat16()
        x, dy = (one.contiguous(memory_format=torch.channels_last) for one in (x, dy))
        weight = 4.0 * torch.randint(-3, 4, (outputs, inputs, 3, 3), generator=generator)
        dx, dweight = gradients(x.double(), weight.double(), dy.double())
        exact = F.conv2d(x.double(), weight.double(), padding=1)
        assert torch.equal(winograd.convolved(x, winograd.packed(weight), outputs), exact.bfloat16())
        assert torch.equal(winograd.convolved(dy, winograd.packed(weight, backward=True), inputs), dx.bfloat16())
        assert torch.equal(winograd.convolution(x, weight), exact.bfloat16())
        assert torch.equal(winograd.input_gradient(dy, weight, x), dx.bfloat16())
        assert torch.equal(winograd.weight_gradient(x, dy, weight), dweight.float())


@here
@pytest.mark.parametrize("edged", [False, True])
def test_bias_addition_and_relu_are_computed_before_the_rounding_and_may_write_over_what_is_added(edged: bool) -> None:
    x, beside, weight, bias = made(2, 32, 9, 7, seed=1), made(2, 64, 9, 7, seed=2), weights(64, 32), torch.randn(64)
    u = winograd.packed(weight, edged=edged)
    exact = (F.conv2d(x.double(), weight.double(), bias.double(), padding=1) + beside.double()).relu()
    found = winograd.convolved(x, u, 64, bias=bias, beside=beside, relu=True)
    assert error(found, exact) < 2**-7
    assert torch.equal(winograd.convolved(x, u, 64, bias=bias, beside=beside, relu=True, out=beside), found)
    assert torch.equal(beside, found)
    nothing = x.clone()
    nothing[0, 3, 4, 4] = torch.nan
    assert winograd.convolved(nothing, u, 64, relu=True)[0, :, 4, 4].isnan().all(), "what is no number stays none"


@here
@pytest.mark.parametrize("side", [7, 14, 31])
def test_the_bytes_do_not_depend_on_the_number_of_threads_or_images_beside(side: int) -> None:
    x, dy, weight = made(9, 64, side, side, seed=1), made(9, 96, side, side, seed=2), weights(96, 64)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 9):
            torch.set_num_threads(count)
            alone = winograd.convolution(x[4:5], weight)  # few tiles are shared by the threads
            found.append((winograd.convolution(x, weight), winograd.weight_gradient(x, dy, weight), alone))
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others))
    assert torch.equal(found[0][2], found[0][0][4:5])


def pooled(x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """The maxima of windows of 2 x 2 and, of their gradient, that of x."""
    start = x.clone().requires_grad_()
    y = Pool(nn.MaxPool2d(2))(start)
    return y.detach(), torch.autograd.grad(y, start, dy)[0]


@here
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if min(shape[3:]) > 1], ids=str)
def test_maxima_and_their_gradients_are_those_of_the_convolution_and_the_pooling(shape: tuple[int, ...]) -> None:
    images, inputs, outputs, height, width = shape
    x, weight = made(images, inputs, height, width, seed=1), weights(outputs, inputs)
    x[0, :, -1] = 0  # equals, of which the first counts
    dy = made(images, outputs, height // 2, width // 2, seed=2)
    u, turned = winograd.packed(weight), winograd.packed(weight, backward=True)
    y, wide = pooled(winograd.convolved(x, u, outputs), dy)
    found, places = winograd.maxima(x, u, outputs)
    assert torch.equal(found, y)
    dx = winograd.convolved_maxima(dy, places, turned, inputs, (height, width))
    assert torch.equal(dx, winograd.convolved(wide, turned, inputs))
    dweight = winograd.weight_gradient(x, dy, weight, places=places)
    assert error(dweight, winograd.weight_gradient(x, wide, weight).double()) < 1e-5
    whole = torch.randint(-3, 4, x.shape, generator=torch.Generator().manual_seed(3)).bfloat16()
    whole = whole.contiguous(memory_format=torch.channels_last)
    sparse = (4 * dy.round()).contiguous(memory_format=torch.channels_last)
    _, exact = gradients(whole.double(), weight.double(), pooled_at(places, sparse, height, width).double())
    assert torch.equal(winograd.weight_gradient(whole, sparse, weight, places=places), exact.float())


def pooled_at(places: Tensor, dy: Tensor, height: int, width: int) -> Tensor:
    """The map that is dy at the places of its windows and zero elsewhere."""
    found = torch.zeros(*dy.shape[:2], height, width)
    for place in range(4):
        target = found[:, :, place // 2 : height // 2 * 2 : 2, place % 2 : width // 2 * 2 : 2]
        target.copy_(dy * (places == place))
    return found.contiguous(memory_format=torch.channels_last)


@here
def test_the_maximum_of_what_is_no_number_is_none() -> None:
    x, u = made(2, 32, 9, 9, seed=1), winograd.packed(weights(48, 32))
    x[1, 3, 4, 5] = torch.nan
    full = winograd.convolved(x, u, 48)
    y, places = winograd.maxima(x, u, 48)
    assert torch.equal(y.nan_to_num(7.0), Pool(nn.MaxPool2d(2))(full).nan_to_num(7.0))
    assert y.isnan().any()
    at = pooled_at(places, torch.ones_like(y), 9, 9).bool()
    assert full[at].isnan().sum() == y.isnan().sum()


@here
@pytest.mark.parametrize("needs", [True, False])
def test_a_convolution_and_its_pooling_are_one_layer(needs: bool) -> None:
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Conv2d(32, 48, 3, padding=1, bias=False), nn.MaxPool2d(2)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    exact = copy.deepcopy(chain).double()
    twin = fused(chain, own_convolutions=True)
    assert [type(layer) for layer in twin.children()] == [convolving.PooledConvolution]
    x, dy = made(4, 32, 15, 15, seed=1), made(4, 48, 7, 7, seed=2)
    ours, theirs = x.clone().requires_grad_(needs), x.double().requires_grad_(needs)
    with torch.autocast("cpu", torch.bfloat16):
        y = twin(ours)
    assert "_MaximaBackward" in nodes(y)
    y.backward(dy)
    exact(theirs).backward(dy.double())
    wanted = exact[0].weight.grad
    assert chain[0].weight.grad is not None
    assert wanted is not None
    assert error(chain[0].weight.grad, wanted) < 0.1, "rounding decides between maxima that are near to one another"  # type: ignore[arg-type]
    assert (ours.grad is None) is not needs
    if theirs.grad is not None and ours.grad is not None:
        assert error(ours.grad, theirs.grad) < 0.15
    plain = x.float().requires_grad_()
    torch.testing.assert_close(twin(plain), chain(plain))


def test_other_poolings_are_layers_of_their_own() -> None:
    conv = nn.Conv2d(32, 48, 3, padding=1, bias=False)
    others = [
        nn.MaxPool2d(3, 2),
        nn.MaxPool2d(2, 1),
        nn.MaxPool2d(2, padding=1),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.AvgPool2d(2),
        None,
    ]
    assert not any(convolving.pools(conv, other) for other in others)
    assert not convolving.pools(nn.Conv2d(32, 48, 3, padding=1), nn.MaxPool2d(2)), "it has a bias"
    assert convolving.pools(conv, nn.MaxPool2d((2, 2)))


@here
def test_a_layer_gives_the_gradients_of_all_that_needs_one() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 48, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, dy = made(4, 32, 12, 12, seed=1), made(4, 48, 12, 12, seed=2)
    exact = copy.deepcopy(conv).double()
    theirs = x.double().requires_grad_()
    exact(theirs).backward(dy.double())
    ours = x.clone().requires_grad_()
    layer = convolving.Convolution(conv, winograd)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(ours)
    assert type(y.grad_fn).__name__ == "_ConvolvedBackward"
    y.backward(dy)
    wanted = [theirs.grad, exact.weight.grad, exact.bias.grad]
    for found, expected in zip((ours.grad, conv.weight.grad, conv.bias.grad), wanted):
        assert found is not None
        assert expected is not None
        assert found.shape == expected.shape
        assert error(found, expected) < 2**-7
    conv.weight.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).float().sum().backward()  # the bias alone


@here
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.contiguous(),
        lambda x: x[:, :, :1].contiguous(memory_format=torch.channels_last),
        lambda x: x[:1, :, :5, :5].contiguous(memory_format=torch.channels_last),
    ],
    ids=["another order", "one row", "few tiles"],
)
def test_other_maps_go_through_the_plain_layer(change: Callable[[Tensor], Tensor]) -> None:
    conv = nn.Conv2d(32, 32, 3, padding=1)
    x = change(made(8, 32, 8, 8, seed=0)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = convolving.Convolution(conv, winograd)(x)
        assert torch.equal(y, conv(x))
    assert type(y.grad_fn).__name__ != "_ConvolvedBackward"
    x = made(8, 32, 8, 8, seed=0).float()
    assert torch.equal(convolving.Convolution(conv, winograd)(x), conv(x)), (
        "without autocast the layer is computed in its precision"
    )


def test_layers_of_another_kind_are_left_as_they_are() -> None:
    kinds = [
        nn.Conv2d(64, 64, 3, padding=1, stride=2), nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 3),
        nn.Conv2d(64, 64, 3, padding=2, dilation=2),
        nn.Conv2d(64, 64, 3, padding=1, groups=2), nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(36, 64, 3, padding=1),
        nn.Conv2d(8, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(64, 64, 3, padding="same"),
        nn.Conv3d(64, 64, 3, padding=1), nn.Identity(), None,
    ]  # fmt: skip
    assert not any(winograd.suits(kind) for kind in kinds)
    assert winograd.suits(nn.Conv2d(48, 64, 3, padding=1))


@here
@pytest.mark.parametrize("recompute", [(0, None), (2, 0), (1, None)], ids=str)
@pytest.mark.parametrize("name", ["resnet20", "wrn_10", "vgg", "speed"])
def test_a_network_learns_as_the_plain_one_does_in_bf16(name: str, recompute: tuple[int, int | None]) -> None:
    builders = {
        "resnet20": ("cifar_resnet", {"depth": 20}),
        "wrn_10": ("cifar_wide_resnet", {"depth": 10, "width": 4}),
        "vgg": ("vgg", {"configuration": "A", "width": 0.5, "head": "linear", "num_classes": 10, "dropout": 0.0}),
        "speed": ("speed_resnet", {"widths": [32, 48], "units": [1, 1]}),
    }
    builder, options = builders[name]
    torch.manual_seed(0)
    network = create_model(builder, **options).train()
    network.recompute_every, network.recompute_stages = recompute
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=torch.channels_last)
    found, losses = [], []
    exact = copy.deepcopy(network).double()
    exact.recompute_every = 0
    for model, chosen in ((exact, None), (copy.deepcopy(network), "bf16-fused"), (copy.deepcopy(network), "bf16-winograd")):
        forward = plan.compiled(model, plan.PLANS[chosen]) if chosen else model
        if chosen == "bf16-winograd":
            assert isinstance(forward, nn.Module)
            assert any(isinstance(module, convolving.Convolution) for module in forward.modules())
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16, enabled=chosen is not None):
            logits = forward(x.double() if chosen is None else x)
        loss = F.cross_entropy(logits.double(), torch.arange(16) % 10)
        loss.backward()
        losses.append(loss.item())
        found.append(torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None]))
    assert losses[2] == pytest.approx(losses[0], rel=0.02)
    away = [error(gradient, found[0]) for gradient in found[1:]]
    assert away[1] < 3 * away[0] + 0.01, "rounding once more costs about as much as rounding once"


def nodes(y: Tensor) -> set[str]:
    """The names of what the backward pass of y computes."""
    names, ahead = set(), [y.grad_fn]
    while ahead:
        one = ahead.pop()
        assert one is not None
        names.add(type(one).__name__)
        ahead.extend(before for before, _ in one.next_functions if before is not None)
    return names


@here
def test_a_unit_of_pre_activation_adds_within_its_last_convolution() -> None:
    torch.manual_seed(0)
    network = create_model("cifar_wide_resnet", depth=16, width=2).train()
    unit = network.stages[1][-1].to(memory_format=torch.channels_last)  # type: ignore[index]
    exact = copy.deepcopy(unit).double()
    plain = copy.deepcopy(unit)
    x, dy = made(4, 64, 8, 8, seed=1), made(4, 64, 8, 8, seed=2)
    found = []
    for module, start in ((exact, x.double()), (fused(plain), x.clone()), (fused(unit, own_convolutions=True), x.clone())):
        start.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=module is not exact):
            y = module(start)
        found.append([y.detach()])
        names = nodes(y)
        y.backward(dy.to(y.dtype))
        found[-1] += [start.grad, *(p.grad for p in module.parameters())]
    assert "AddBackward0" not in names
    assert "_ForkedBackward" in names
    for wanted, usual, ours in zip(*found):
        assert error(ours, wanted) < 2 * error(usual, wanted) + 2**-8
    layer = convolving.Convolution(unit.branch[-1], winograd)
    a, h = made(4, 64, 8, 8, seed=3), made(4, 64, 8, 8, seed=4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer.added(a, h), layer(a) + h, atol=0.05, rtol=0.02)
        torch.testing.assert_close(layer.added(a, h.float()), layer(a) + h.float(), atol=0, rtol=0)


@here
@pytest.mark.parametrize("frozen", [False, True])
def test_a_unit_adds_the_gradient_of_its_shortcut_within_the_convolution(frozen: bool) -> None:
    torch.manual_seed(0)
    network = create_model("cifar_resnet", depth=14, width=2).train()
    unit = network.stages[1][-1]  # type: ignore[index]
    unit = unit.to(memory_format=torch.channels_last)
    twin = fused(unit, own_convolutions=True)
    assert isinstance(twin, FusedUnit)
    exact = copy.deepcopy(unit).double()
    if frozen:
        unit.branch[0].weight.requires_grad_(False)
    x, dy = made(4, 64, 8, 8, seed=1), made(4, 64, 8, 8, seed=2)
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = twin(ours)
    assert "_ForkedBackward" in nodes(y)
    y.backward(dy)
    exact(theirs).backward(dy.double())
    assert ours.grad is not None
    assert theirs.grad is not None
    plain = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        fused(copy.deepcopy(unit))(plain).backward(dy)
    assert plain.grad is not None
    assert error(ours.grad, theirs.grad) < 2 * error(plain.grad, theirs.grad) < 0.2, "rounding opens or closes some ReLU"
    first = unit.branch[0].weight
    assert (first.grad is None) is frozen
    past = ours.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        alone, h = twin.chain[0].forked(past)  # type: ignore[index,operator]
    (found,) = torch.autograd.grad(h.float().sum(), past, retain_graph=True)
    assert torch.equal(found, torch.ones_like(found)), "only what goes past"
    (found,) = torch.autograd.grad(alone.float().sum(), past)
    assert torch.equal(found, winograd.convolved(torch.ones_like(alone), winograd.packed(first, backward=True), 64))


@here
def test_a_twin_shares_the_weights_and_leaves_hooked_layers_alone() -> None:
    network = create_model("cifar_resnet", depth=20)
    twin = fused(network, own_convolutions=True)
    assert {id(p) for p in twin.parameters()} == {id(p) for p in network.parameters()}
    assert not any(isinstance(module, convolving.Convolution) for module in fused(network).modules())
    layer = next(module for module in network.modules() if winograd.suits(module))
    handle = layer.register_forward_hook(lambda *_: None)
    assert any(module is layer for module in fused(network, own_convolutions=True).modules())
    handle.remove()


@here
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    data = write_images(tmp_path / "images", {"dark": 12, "light": 12})
    whole = train(data, tmp_path / "whole", plan="bf16-winograd")
    stopped(data, tmp_path / "begun", at=2, plan="bf16-winograd")
    assert final_bytes(train(data, tmp_path / "begun", plan="bf16-winograd")) == final_bytes(whole)


def test_a_processor_without_products_of_bf16_is_an_obstacle_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "processor", lambda: "flags: avx2")
    native.forget()
    winograd.preferred.cache_clear()
    try:
        assert not winograd.preferred()
        assert "AVX-512 BF16" in str(winograd.obstacle())
        network = create_model("cifar_resnet", depth=8)
        with pytest.raises(RequestError, match="'bf16-winograd' cannot be used here: this processor has no products of bf16"):
            plan.check(plan.PLANS["bf16-winograd"], torch.device("cpu"), network=network)
        nothing_for_it = create_model("cifar_resnet", depth=8, width=0.125)
        plan.check(plan.PLANS["bf16-winograd"], torch.device("cpu"), network=nothing_for_it)
    finally:
        native.forget()
        winograd.preferred.cache_clear()


@here
@pytest.mark.parametrize("unit", [True, False], ids=["matrix unit", "none"])
def test_inference_leaves_convolutions_to_a_matrix_unit(unit: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "processor", lambda: "flags: avx512_bf16" + " amx_tile" * unit)
    winograd.preferred.cache_clear()
    try:
        layers = {type(module) for module in prepared(create_model("cifar_resnet", depth=8), "bf16").modules()}
        assert (WinogradConvolution in layers) is not unit
    finally:
        winograd.preferred.cache_clear()


@here
def test_the_forecast_of_memory_does_not_depend_on_which_loops_a_size_calls_for() -> None:
    """Two images of this size have too few tiles and four have enough, and the plain loops keep the weights in bf16."""
    network = create_model("cifar_resnet", depth=8).train()
    images = torch.zeros(2, 3, 16, 16)
    found = [plan.activation_bytes(network, images, plan.PLANS[name]) for name in ("bf16-fused", "bf16-winograd")]
    assert found[0] == found[1] > 0
