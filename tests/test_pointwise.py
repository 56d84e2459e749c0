"""1x1 convolutions by loops of our own, with the normalisation before them, against float64 and against the plain layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from residua import convolving, plan, pointwise
from residua.kernels import NARROW, FusedNorm, FusedUnit, NormConvolution, PreUnit, fused
from residua.models import create_model

here = pytest.mark.skipif(pointwise.obstacle() is not None, reason=str(pointwise.obstacle()))
SHAPES = [  # images, inputs, outputs, height, width
    (2, 16, 64, 8, 8), (3, 64, 16, 7, 5), (1, 24, 40, 5, 5), (5, 160, 208, 3, 3), (2, 256, 72, 9, 4),
    (1, 48, 96, 13, 3), (9, 272, 304, 5, 7), (40, 32, 112, 7, 7), (2, 512, 128, 5, 5),
]  # fmt: skip


def made(*shape: int, seed: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)


def weights(outputs: int, inputs: int) -> Tensor:
    return torch.randn(outputs, inputs, 1, 1, generator=torch.Generator().manual_seed(9)) / inputs**0.5


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.detach().double() - exact.detach()).norm() / exact.detach().norm())


def of_batch(x: Tensor, seed: int = 5) -> tuple[nn.BatchNorm2d, pointwise.Norm]:
    """A normalisation in float64, and the same with its statistics of x as the loops take it."""
    norm = nn.BatchNorm2d(x.shape[1]).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(x.shape[1], generator=generator))
        norm.bias.copy_(torch.randn(x.shape[1], generator=generator))
    mean, variance = x.double().mean((0, 2, 3)), x.double().var((0, 2, 3), correction=0)
    values = (norm.weight, norm.bias, mean, (variance + norm.eps).rsqrt())
    return norm, pointwise.Norm(*(value.detach().float() for value in values))


@here
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_and_gradients_are_those_in_float64_up_to_rounding(shape: tuple[int, ...]) -> None:
    images, inputs, outputs, height, width = shape
    x, dy, weight = (
        made(images, inputs, height, width, seed=1),
        made(images, outputs, height, width, seed=2),
        weights(outputs, inputs),
    )
    exact = F.conv2d(x.double(), weight.double())
    found = pointwise.convolved(x, pointwise.packed(weight), outputs)
    assert error(found, exact) < 1.1 * error(F.conv2d(x, weight.bfloat16()), exact) + 1e-4
    assert found.is_contiguous(memory_format=torch.channels_last)
    beside = made(*found.shape, seed=3)
    assert error(pointwise.convolved(x, pointwise.packed(weight), outputs, beside=beside), exact + beside.double()) < 2**-8
    bias = torch.randn(outputs, generator=torch.Generator().manual_seed(4))
    whole = exact + bias[:, None, None].double() + beside.double()
    given = beside.clone(memory_format=torch.preserve_format)
    all_of_it = {"bias": bias, "beside": given, "relu": True, "out": given}
    assert pointwise.convolved(x, pointwise.packed(weight), outputs, **all_of_it) is given
    assert error(given, whole.relu()) < 2**-8
    dx = F.conv2d(dy.double(), weight.double().transpose(0, 1))
    assert error(pointwise.convolved(dy, pointwise.packed(weight, backward=True), inputs), dx) < 2**-8
    dweight = torch.einsum("nkhw,nchw->kc", dy.double(), x.double())[:, :, None, None]
    assert error(pointwise.weight_gradient(x, dy, weight), dweight) < 1e-5


@here
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_normalisation_before_a_convolution_and_its_gradients_are_those_in_float64(shape: tuple[int, ...]) -> None:
    images, inputs, outputs, height, width = shape
    x, dy, past = (made(images, channels, height, width, seed=seed) for seed, channels in enumerate((inputs, outputs, inputs)))
    weight = weights(outputs, inputs)
    layer, norm = of_batch(x)
    start, filters = x.double().requires_grad_(), weight.double().requires_grad_()
    y = F.conv2d(layer(start).relu(), filters)
    y.backward(dy.double())
    assert error(pointwise.convolved(x, pointwise.packed(weight), outputs, norm=norm), y) < 2**-7
    u = pointwise.packed(weight, backward=True)
    dx, dscale, dshift = pointwise.norm_gradient(dy, x, u, norm, past=None, training=True)
    dweight = pointwise.weight_gradient(x, dy, weight, norm=norm)
    wanted = [start.grad, layer.weight.grad, layer.bias.grad, filters.grad]
    for found, expected in zip((dx, dscale, dshift, dweight), wanted):
        assert expected is not None
        assert error(found, expected) < 2**-7
    summed, *same = pointwise.norm_gradient(dy, x, u, norm, past=past, training=True)
    assert start.grad is not None
    assert error(summed, start.grad + past.double()) < 2**-7
    assert torch.equal(same[0], dscale)
    assert torch.equal(same[1], dshift)


@here
def test_with_given_statistics_the_gradient_does_not_pass_through_them() -> None:
    x, dy, weight = made(2, 64, 6, 6, seed=1), made(2, 32, 6, 6, seed=2), weights(32, 64)
    layer, _ = of_batch(x)
    layer.running_mean, layer.running_var = torch.rand(64).double(), torch.rand(64).double() + 0.5
    layer.eval()
    start = x.double().requires_grad_()
    F.conv2d(layer(start).relu(), weight.double()).backward(dy.double())
    invstd = (layer.running_var + layer.eps).rsqrt()
    norm = pointwise.Norm(*(value.detach().float() for value in (layer.weight, layer.bias, layer.running_mean, invstd)))
    dx, _, _ = pointwise.norm_gradient(dy, x, pointwise.packed(weight, backward=True), norm, past=None, training=False)
    assert start.grad is not None
    assert error(dx, start.grad) < 2**-7


@here
def test_small_whole_numbers_are_computed_without_any_error() -> None:
    """Then no rounding hides an index that is wrong."""
    generator = torch.Generator().manual_seed(0)
    for images, inputs, outputs, height, width in SHAPES:
        x = torch.randint(-2, 3, (images, inputs, height, width), generator=generator)
        dy = torch.randint(-2, 3, (images, outputs, height, width), generator=generator)
        weight = torch.randint(-1, 2, (outputs, inputs, 1, 1), generator=generator) * (torch.rand(outputs, inputs, 1, 1) < 0.2)
        ones = [(one.bfloat16()).contiguous(memory_format=torch.channels_last) for one in (x, dy)]
        exact = F.conv2d(x.double(), weight.double())
        assert torch.equal(pointwise.convolved(ones[0], pointwise.packed(weight.float()), outputs), exact.bfloat16())
        dx = F.conv2d(dy.double(), weight.double().transpose(0, 1))
        assert torch.equal(pointwise.convolved(ones[1], pointwise.packed(weight.float(), backward=True), inputs), dx.bfloat16())
        dweight = torch.einsum("nkhw,nchw->kc", dy.double(), x.double())[:, :, None, None]
        assert torch.equal(pointwise.weight_gradient(*ones, weight.float()), dweight.float())
        plain = pointwise.Norm(torch.ones(inputs), torch.ones(inputs), torch.zeros(inputs), torch.ones(inputs))
        a = (x + 1).clamp(min=0).double()
        found = pointwise.convolved(ones[0], pointwise.packed(weight.float()), outputs, norm=plain)
        assert torch.equal(found, F.conv2d(a, weight.double()).bfloat16())
        dweight = torch.einsum("nkhw,nchw->kc", dy.double(), a)[:, :, None, None]
        assert torch.equal(pointwise.weight_gradient(*ones, weight.float(), norm=plain), dweight.float())
        u = pointwise.packed(weight.float(), backward=True)
        found, dscale, dshift = pointwise.norm_gradient(ones[1], ones[0], u, plain, past=None, training=False)
        dz = dx * (x + 1 > 0)
        assert torch.equal(found, dz.bfloat16())
        assert torch.equal(dshift, dz.sum((0, 2, 3)).float())
        assert torch.equal(dscale, (dz * x).sum((0, 2, 3)).float())


@here
def test_what_is_no_number_stays_none() -> None:
    x, weight = made(2, 32, 6, 6, seed=1), weights(16, 32)
    x[1, 3, 2, 4] = torch.nan
    norm = pointwise.Norm(torch.ones(32), torch.zeros(32), torch.zeros(32), torch.ones(32))
    for given in (None, norm):
        found = pointwise.convolved(x, pointwise.packed(weight), 16, norm=given).isnan()
        assert found[1, :, 2, 4].all()
        assert found.sum() == 16


@here
def test_the_bytes_do_not_depend_on_the_number_of_threads() -> None:
    x, dy, weight = made(19, 64, 28, 28, seed=1), made(19, 96, 28, 28, seed=2), weights(96, 64)
    _, norm = of_batch(x)
    u, turned = pointwise.packed(weight), pointwise.packed(weight, backward=True)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append([
                pointwise.convolved(x, u, 96), pointwise.convolved(x, u, 96, norm=norm), pointwise.weight_gradient(x, dy, weight),
                *pointwise.norm_gradient(dy, x, turned, norm, past=None, training=True),
            ])  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others))


@here
@pytest.mark.parametrize("outputs", [32, NARROW + 32])
@pytest.mark.parametrize("way", ["alone", "added", "forked"])
def test_a_layer_gives_the_gradients_of_all_that_needs_one(outputs: int, way: str) -> None:
    torch.manual_seed(0)
    chain = nn.Sequential(nn.BatchNorm2d(48), nn.ReLU(), nn.Conv2d(48, outputs, 1, bias=False)).train()
    with torch.no_grad():
        chain[0].weight.normal_()  # type: ignore[operator]
        chain[0].bias.normal_()  # type: ignore[operator]
    exact = copy.deepcopy(chain).double()
    twin = next(fused(chain, own_convolutions=True).children())
    assert isinstance(twin, NormConvolution)
    x, dy, beside = made(4, 48, 9, 9, seed=1), made(4, outputs, 9, 9, seed=2), made(4, outputs, 9, 9, seed=3)
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    near, far = beside.clone().requires_grad_(), beside.double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        if way == "alone":
            y, expected = twin(ours), exact(theirs)
        elif way == "added":
            y, expected = twin.added(ours, near), exact(theirs) + far
        else:
            y, past = twin.forked(ours)
            expected = exact(theirs)
    assert type(y.grad_fn).__name__ == "_NormConvolvedBackward"
    assert error(y, expected) < 2**-7
    if way == "forked":
        torch.autograd.backward([y, past], [dy, x])
        torch.autograd.backward([expected, theirs.clone()], [dy.double(), x.double()])
    else:
        y.backward(dy)
        expected.backward(dy.double())
    pairs = [(ours.grad, theirs.grad), *((p.grad, q.grad) for p, q in zip(chain.parameters(), exact.parameters()))]
    pairs += [(near.grad, far.grad)] if way == "added" else []
    for found, wanted in pairs:
        assert found is not None
        assert wanted is not None
        assert error(found, wanted) < 2**-7
    for found, wanted in zip(chain.buffers(), exact.buffers()):
        torch.testing.assert_close(found.double(), wanted.double(), atol=1e-4, rtol=1e-4)


@here
def test_what_goes_past_a_layer_has_its_gradient_alone() -> None:
    chain = nn.Sequential(nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 1, bias=False))
    twin = next(fused(chain, own_convolutions=True).children())
    assert isinstance(twin, NormConvolution)
    x = made(2, 32, 8, 8, seed=0).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        _, past = twin.forked(x)
    (found,) = torch.autograd.grad(past.float().sum(), x, retain_graph=True)
    assert torch.equal(found, torch.ones_like(found))
    chain.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        twin(x).float().sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in chain.parameters())


@here
@pytest.mark.parametrize("change", ["another order", "few positions", "float32", "no autocast"])
def test_other_maps_go_through_the_plain_layers(change: str) -> None:
    chain = nn.Sequential(nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 1, bias=False)).eval()
    x = made(2, 32, 6, 6, seed=0)
    x = {"another order": x.contiguous(), "few positions": x[:1, :, :4, :4]}.get(change, x)
    if change in ("few positions", "float32"):
        x = x.contiguous(memory_format=torch.channels_last)
    if change in ("float32", "no autocast"):
        x = x.float()
    x.requires_grad_()
    layers = [convolving.Convolution(chain[2], pointwise), next(fused(chain, own_convolutions=True).children())]  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16, enabled=change != "no autocast"):
        for layer, plain in zip(layers, (chain[2], chain)):
            y, expected = layer(x), plain(x)
            torch.testing.assert_close(y, expected, atol=2**-6, rtol=2**-6)
            if change != "float32" or layer is not layers[0]:  # a convolution rounds what it is given; a normalisation does not
                assert type(y.grad_fn).__name__ not in ("_ConvolvedBackward", "_NormConvolvedBackward") or change == "float32"


def test_layers_of_another_kind_are_left_as_they_are() -> None:
    kinds = [
        nn.Conv2d(64, 64, 1, stride=2, bias=False), nn.Conv2d(64, 64, 3, bias=False), nn.Conv2d(64, 64, 1),
        nn.Conv2d(64, 64, 1, groups=2, bias=False), nn.Conv2d(36, 64, 1, bias=False), nn.Conv2d(8, 64, 1, bias=False),
        nn.Conv2d(64, 64, 1, padding=1, bias=False), nn.Conv3d(64, 64, 1, bias=False), nn.Linear(64, 64), nn.Identity(), None,
    ]  # fmt: skip
    assert not any(pointwise.suits(kind) for kind in kinds)
    assert pointwise.suits(nn.Conv2d(48, 64, 1, bias=False))
    found = [convolving.loops_for(kind) for kind in (kinds[0], nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1, bias=False))]
    assert [None if loops is None else loops.__name__ for loops in found] == [None, "residua.winograd", "residua.pointwise"]


def nodes(y: Tensor) -> dict[str, int]:
    """How many of each kind the backward pass of y computes."""
    seen, counts, ahead = set(), dict[str, int](), [y.grad_fn]
    while ahead:
        one = ahead.pop()
        if one is None or one in seen:
            continue
        seen.add(one)
        counts[type(one).__name__] = counts.get(type(one).__name__, 0) + 1
        ahead.extend(before for before, _ in one.next_functions)
    return counts


@here
@pytest.mark.parametrize(("name", "kind"), [("preact_cifar_resnet", PreUnit), ("imagenet_resnet", FusedUnit)])
def test_a_bottleneck_keeps_nothing_between_its_normalisations_and_1x1_convolutions(name: str, kind: type) -> None:
    torch.manual_seed(0)
    options = {"preact_cifar_resnet": {"depth": 29, "branch": "bottleneck"}, "imagenet_resnet": {"depth": 50, "width": 0.5}}[name]
    network = create_model(name, **options).train()
    unit = network.stages[1][-1].to(memory_format=torch.channels_last)  # type: ignore[index]
    exact, plain = copy.deepcopy(unit).double(), copy.deepcopy(unit)
    channels = next(module.in_channels for module in unit.modules() if isinstance(module, nn.Conv2d))
    x, dy = made(4, channels, 8, 8, seed=1), made(4, channels, 8, 8, seed=2)
    found, names = [], dict[str, int]()
    for module, start in ((exact, x.double()), (fused(plain), x.clone()), (fused(unit, own_convolutions=True), x.clone())):
        start.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=module is not exact):
            y = module(start)
        found.append([y.detach()])
        names = nodes(y)
        y.backward(dy.to(y.dtype))
        found[-1] += [start.grad, *(p.grad for p in module.parameters())]
    assert isinstance(fused(unit, own_convolutions=True), kind)
    assert names["_NormConvolvedBackward"] == (2 if kind is PreUnit else 1)
    assert "AddBackward0" not in names
    assert "ConvolutionBackward0" not in names
    for wanted, usual, ours in zip(*found):
        assert error(ours, wanted) < 1.5 * error(usual, wanted) + 2**-7


@here
@pytest.mark.parametrize("recompute", [(0, None), (2, 0), (1, None)], ids=str)
@pytest.mark.parametrize("name", ["preact29", "resnet50", "densenet"])
def test_a_network_of_bottlenecks_learns_as_the_plain_one_does_in_bf16(name: str, recompute: tuple[int, int | None]) -> None:
    builder, options = {
        "preact29": ("preact_cifar_resnet", {"depth": 29, "branch": "bottleneck"}),
        "resnet50": ("imagenet_resnet", {"depth": 50, "width": 0.5, "num_classes": 10, "stem": "small"}),
        "densenet": ("cifar_densenet", {"depth": 22, "growth": 16, "bottleneck": True, "compression": 0.5}),
    }[name]
    torch.manual_seed(0)
    network = create_model(builder, **options).train()
    network.recompute_every, network.recompute_stages = recompute
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=torch.channels_last)
    exact = copy.deepcopy(network).double()
    exact.recompute_every = 0
    found, losses = [], []
    for model, chosen in ((exact, None), (copy.deepcopy(network), "bf16-fused"), (copy.deepcopy(network), "bf16-winograd")):
        forward = plan.compiled(model, plan.PLANS[chosen]) if chosen else model
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16, enabled=chosen is not None):
            logits = forward(x.double() if chosen is None else x)
        loss = F.cross_entropy(logits.double(), torch.arange(16) % 10)
        loss.backward()
        losses.append(loss.item())
        found.append(torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None]))
    assert losses[2] == pytest.approx(losses[0], rel=0.05)
    away = [error(gradient, found[0]) for gradient in found[1:]]
    assert away[1] < 2 * away[0] + 0.01


@here
def test_hooked_layers_are_left_as_they_are() -> None:
    chain = nn.Sequential(nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 1, bias=False))
    handle = chain[2].register_forward_hook(lambda *_: None)
    kinds = [type(layer) for layer in fused(chain, own_convolutions=True).children()]
    assert kinds == [FusedNorm, nn.Conv2d]
    handle.remove()
    assert [type(layer) for layer in fused(chain).children()] == [FusedNorm, nn.Conv2d]
