"""The fused loops against float64, and fused networks against the plain ones with the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trainings import stopped, train, write_images

from residua import convolving, kernels, native, plan
from residua.errors import RequestError
from residua.kernels import FusedNorm, FusedUnit, Pool, PooledNorm, PreUnit, _Subsampled, fused
from residua.models import create_model
from residua.network import Network
from residua.unit import Unit, switched_off

convolutions = pytest.mark.skipif(convolving.obstacle() is not None, reason=str(convolving.obstacle()))
pytestmark = pytest.mark.skipif(kernels.obstacle() is not None, reason=str(kernels.obstacle()))

SHAPES = [(5, 3, 7, 5), (4, 16, 9, 9), (2, 24, 11, 3), (3, 64, 8, 8), (2, 520, 5, 5), (1, 1, 2, 1), (6, 16, 64, 64)]
NETWORKS = {
    "cifar_resnet": {"depth": 20, "num_classes": 10},
    "preact_resnet164": {"num_classes": 10},
    "imagenet_resnet": {"depth": 50, "num_classes": 10, "stem": "small"},
    "cifar_wide_resnet": {"depth": 10, "width": 1, "dropout": 0.3},
    "cifar_densenet": {"depth": 13, "growth": 4},
    "plain20": {},
}


def reference(x: Tensor, h: Tensor | None, norm: nn.BatchNorm2d, activation: int) -> Tensor:
    y = norm(x) if h is None else h + norm(x)
    return {kernels.NONE: nn.Identity(), kernels.RELU: nn.ReLU(), kernels.GELU: nn.GELU()}[activation](y)


def made(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 2
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def drawn_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.2)
    for tensor, seed in ((norm.weight, 1), (norm.bias, 2), (norm.running_mean, 3)):
        assert tensor is not None
        tensor.data.copy_(torch.randn(channels, generator=torch.Generator().manual_seed(seed)))
    assert norm.running_var is not None
    norm.running_var.copy_(1 + torch.rand(channels, generator=torch.Generator().manual_seed(4)))
    return norm


def test_the_loops_share_the_threads_of_torch_whatever_else_was_loaded() -> None:
    pytest.importorskip("sklearn.utils._openmp_helpers")  # it brings an OpenMP library of its own
    libraries = Path(torch.__file__).parent / "lib"
    if not list(libraries.glob("libgomp*")):
        pytest.skip("torch brings no OpenMP library of its own here")
    assert Path(native._openmp()).parent == libraries


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("added", [True, False], ids=["added", "alone"])
@pytest.mark.parametrize("activation", [kernels.NONE, kernels.RELU, kernels.GELU], ids=["none", "relu", "gelu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_gradients_and_statistics_equal_those_in_float64(
    shape: tuple[int, ...], activation: int, added: bool, training: bool, dtype: torch.dtype
) -> None:
    norm = drawn_norm(shape[1]).train(training)
    exact = copy.deepcopy(norm).double()
    x, h, dy = (made(shape, dtype, seed) for seed in (5, 6, 7))
    ours = [x.clone().requires_grad_(), h.clone().requires_grad_()]
    theirs = [x.double().requires_grad_(), h.double().requires_grad_()]
    y = kernels._apply(norm, ours[0], ours[1] if added else None, activation)
    expected = reference(theirs[0], theirs[1] if added else None, exact, activation)
    rounding = 2e-2 if dtype == torch.bfloat16 else 2e-5  # bfloat16 keeps 8 bits; sums of both kinds are in float32 and float64
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y.double(), expected, rtol=rounding, atol=rounding)
    settled = (expected.abs() > 10 * rounding) | torch.tensor(
        activation != kernels.RELU
    )  # elsewhere rounding may open or close the ReLU
    dy = torch.where(settled, dy, 0).to(dtype).contiguous(memory_format=torch.channels_last)
    y.backward(dy)
    expected.backward(dy.double())
    count = 2 if added else 1
    wanted = [tensor.grad for tensor in theirs[:count]] + [exact.weight.grad, exact.bias.grad]
    found = [tensor.grad for tensor in ours[:count]] + [norm.weight.grad, norm.bias.grad]
    for one, other in zip(found, wanted):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one.double(), other, rtol=rounding, atol=rounding * max(1.0, other.abs().max().item() / 10))
    for name, buffer in norm.named_buffers():
        torch.testing.assert_close(buffer.double(), exact.get_buffer(name).double(), rtol=1e-5, atol=1e-5)


def test_statistics_hold_where_the_mean_is_a_thousand_times_the_deviation() -> None:
    x = (1000 + torch.randn(8, 16, 32, 32)).contiguous(memory_format=torch.channels_last)
    norm = nn.BatchNorm2d(16, momentum=1.0)
    kernels._apply(norm, x, None, False)
    assert norm.running_var is not None
    torch.testing.assert_close(norm.running_var.double(), x.double().var((0, 2, 3)), rtol=1e-5, atol=0)


def test_the_bytes_do_not_depend_on_the_number_of_threads() -> None:
    x, h, dy = (made((16, 16, 64, 64), torch.bfloat16, seed) for seed in range(3))
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            inputs = [x.clone().requires_grad_(), h.clone().requires_grad_()]
            norm = drawn_norm(16)
            y = kernels._apply(norm, inputs[0], inputs[1], True)
            y.backward(dy)
            results.append([y, inputs[0].grad, inputs[1].grad, norm.weight.grad, norm.bias.grad, norm.running_var])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for one, two in zip(results[0], other):
            assert one is not None
            assert two is not None
            assert torch.equal(one, two)


def test_what_is_no_number_stays_none() -> None:
    x = made((2, 4, 3, 3), torch.bfloat16, 0)
    x[0, 1, 2, 2] = torch.nan
    y = kernels._apply(drawn_norm(4).eval(), x, None, True)
    assert y.isnan().nonzero().tolist() == [[0, 1, 2, 2]]
    assert kernels._apply(drawn_norm(4), x, x, True)[:, 1].isnan().all(), "the statistics of that channel are none either"


@pytest.mark.parametrize("name", NETWORKS)
def test_a_fused_network_learns_as_the_plain_one(name: str) -> None:
    torch.manual_seed(0)
    network = create_model(name, **NETWORKS[name]).train()
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    other = copy.deepcopy(network)
    names = list(network.state_dict())
    twin = fused(other)
    assert any(isinstance(module, FusedNorm | FusedUnit) for module in twin.modules())
    assert list(network.state_dict()) == list(other.state_dict()) == names
    assert {id(p) for p in twin.parameters()} == {id(p) for p in other.parameters()}
    images = torch.randn(6, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(6)
    exact = copy.deepcopy(network).double()
    losses, gradients = [], []
    for model, x in ((exact, images.double()), (network, images), (twin, images)):
        torch.manual_seed(1)  # dropout draws alike
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        losses.append(loss.double())
        gradients.append(torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None]))
    # A deep network at its start multiplies what rounding does, so float32 itself says how far it is from float64.
    rounding = [(found - gradients[0]).norm() / gradients[0].norm() for found in gradients]
    torch.testing.assert_close(losses[2], losses[0], rtol=1e-3, atol=1e-5)
    assert rounding[2] < 2 * rounding[1] + 1e-5
    for (key, mine), theirs in zip(other.state_dict().items(), network.state_dict().values()):
        torch.testing.assert_close(mine, theirs, rtol=5e-3, atol=1e-3, msg=key)
    other.eval()
    network.load_state_dict(other.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(twin(images), network.eval()(images), rtol=1e-3, atol=1e-3)


def basic_network(**options: object) -> Network:
    torch.manual_seed(0)
    network = create_model("cifar_resnet", depth=20, **options).train()
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def test_recomputation_gives_the_same_gradients_and_moves_the_statistics_once() -> None:
    images = torch.randn(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    found = []
    for every in (0, 2):
        network = basic_network(recompute_every=every)
        fused(network)(images).logsumexp(1).sum().backward()
        found.append([*(p.grad for p in network.parameters()), *network.buffers()])
    for kept, recomputed in zip(*found):
        torch.testing.assert_close(kept, recomputed)


def test_the_fused_unit_keeps_less_for_the_backward_pass() -> None:
    network = basic_network()
    images = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    plain, twin = plan.PLANS["bf16"], plan.PLANS["bf16-fused"]
    less = plan.activation_bytes(network, images, twin)
    assert less <= plan.activation_bytes(network, images, plain)


def test_layers_with_hooks_are_taken_over_whole() -> None:
    network = basic_network().eval()
    unit = next(module for module in network.modules() if isinstance(module, Unit))
    seen: list[Tensor] = []
    norm = unit.branch[-1]  # type: ignore[index]
    handle = norm.register_forward_hook(lambda _m, _i, out: seen.append(out))
    fused(network)(torch.randn(2, 3, 16, 16))
    handle.remove()
    assert len(seen) == 1
    with switched_off(unit), torch.no_grad():
        x = torch.randn(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(fused(network)(x), network(x), rtol=1e-4, atol=1e-4)


def test_maps_in_another_order_go_through_the_plain_layers() -> None:
    norm = drawn_norm(4)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    expected = copy.deepcopy(norm).double()(x).relu()
    with pytest.raises(RuntimeError):
        kernels._apply(norm, x, None, True)  # as the plain layer does with weights of another type
    torch.testing.assert_close(kernels._apply(norm.double(), x, None, True), expected)


@pytest.fixture
def no_loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """To call when the C compiler is to be gone, and with it what was compiled."""

    def take_away() -> None:
        native.forget()
        monkeypatch.setenv("PATH", "/nowhere")
        monkeypatch.delenv("CC", raising=False)

    yield take_away
    monkeypatch.undo()
    native.forget()


def test_a_fused_run_is_refused_without_a_compiler_before_any_work(no_loops: Callable[[], None], tmp_path: Path) -> None:
    data = write_images(tmp_path / "images", {"dark": 12, "light": 12})
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    train(data, ended, plan="fp32-fused")
    stopped(data, begun, at=2, plan="fp32-fused")
    manifest = (begun / "manifest.json").read_bytes()
    no_loops()
    for out in (begun, tmp_path / "new"):
        with pytest.raises(RequestError, match="'fp32-fused' cannot be used here: there is no C compiler"):
            train(data, out, plan="fp32-fused")
    assert (begun / "manifest.json").read_bytes() == manifest
    assert train(data, ended, plan="fp32-fused").finished(), "there is nothing left to compute"
    assert not (tmp_path / "new").exists()
    nothing_to_fuse = create_model("cifar_resnet", depth=8, normalization="group")
    plan.check(plan.PLANS["fp32-fused"], torch.device("cpu"), network=nothing_to_fuse)
    plan.check(plan.PLANS["fp32-fused"], torch.device("cuda"))


def test_a_compiler_that_fails_is_an_obstacle_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing = tmp_path / "cc"
    failing.write_text("#!/bin/sh\necho 'no such processor' >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setenv("CC", str(failing))
    native.forget()
    try:
        assert kernels.obstacle() == "the C compiler could not make the loops of kernels.c: no such processor"
        monkeypatch.setenv("PATH", "/nowhere")
        monkeypatch.delenv("CC")
        native.forget()
        assert "no C compiler" in str(kernels.obstacle())
    finally:
        native.forget()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("activation", [kernels.NONE, kernels.RELU, kernels.GELU], ids=["none", "relu", "gelu"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_normalisation_adds_the_gradient_of_what_goes_past_it(training: bool, activation: int, dtype: torch.dtype) -> None:
    norm = drawn_norm(24).train(training)
    other = copy.deepcopy(norm)
    x, dy, dh = (made((3, 24, 9, 7), dtype, seed) for seed in (5, 6, 7))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, h = FusedNorm(norm, activation).forked(ours)
    assert torch.equal(h, x)
    expected = FusedNorm(other, activation)(theirs)
    torch.autograd.backward([y, h], [dy, dh])
    torch.autograd.backward([expected, theirs], [dy, dh])
    assert ours.grad is not None
    assert theirs.grad is not None
    rounding = 2e-2 if dtype == torch.bfloat16 else 1e-6  # theirs is rounded before the sum, too
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=rounding, atol=rounding)
    found = [y, norm.weight.grad, norm.bias.grad, *norm.buffers()]
    for one, two in zip(found, [expected, other.weight.grad, other.bias.grad, *other.buffers()]):
        assert one is not None
        assert two is not None
        assert torch.equal(one, two)
    again = x.clone().requires_grad_()
    _, alone = FusedNorm(norm, activation).forked(again)
    alone.backward(dh)
    assert torch.equal(again.grad, dh)  # type: ignore[arg-type]


def test_gelu_is_that_of_torch_to_rounding_over_all_numbers() -> None:
    """With a normalisation that changes nothing; 0 and what lies far out, infinities and what is no number included."""
    v = torch.cat([torch.linspace(-30, 30, 60_001), torch.tensor([0.0, -0.0, 1e-30, -1e-20, 1e5, -1e5, torch.inf, torch.nan])])
    x = v.repeat(4, 1)[:, :, None, None].contiguous(memory_format=torch.channels_last).requires_grad_()
    norm = nn.BatchNorm2d(len(v), eps=0.0).eval()
    y = kernels._apply(norm, x, None, kernels.GELU)
    start = x.detach().double().requires_grad_()
    expected = F.gelu(start)
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    (slope,) = torch.autograd.grad(y, x, torch.ones_like(y))
    (exact,) = torch.autograd.grad(expected, start, torch.ones_like(expected))
    kept = v.isfinite()
    torch.testing.assert_close(slope.double()[:, kept], exact[:, kept], rtol=1e-6, atol=1e-6)


def test_units_with_gelu_and_plain_ones_are_fused() -> None:
    network = fused(create_model("speed_resnet", widths=[16, 24], units=[2, 1]))
    units = [module for module in network.modules() if isinstance(module, FusedUnit)]
    assert [(unit.activation, unit.shortcut is None) for unit in units] == [
        (kernels.GELU, True), (kernels.GELU, False), (kernels.GELU, False), (kernels.GELU, True), (kernels.GELU, False)
    ]  # fmt: skip
    assert not any(isinstance(module, nn.GELU) for stage in network.stages for module in stage.modules())  # type: ignore[union-attr]
    plain = [module for module in fused(create_model("plain20")).modules() if isinstance(module, FusedUnit)]
    assert plain
    assert all(unit.shortcut is None and unit.activation == kernels.RELU for unit in plain)
    rough = Unit(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)), post=nn.GELU(approximate="tanh"))
    assert not isinstance(fused(rough), FusedUnit)


def test_units_of_pre_activation_are_fused() -> None:
    network = create_model("preact_resnet110")
    units = [module for module in fused(network).modules() if isinstance(module, PreUnit)]
    assert len(units) == 51, "all but the first of each stage, where the shortcut reads what the first normalisation gives"
    twin = fused(create_model("cifar_densenet", depth=13, growth=4))
    assert sum(isinstance(module, PreUnit) for module in twin.modules()) == 9, "they are concatenated"
    light = fused(create_model("cifar_densenet", depth=13, growth=4, light=True))
    assert not any(isinstance(module, PreUnit) for module in light.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"bottleneck": True, "compression": 0.5}, {"dropout": 0.2}], ids=str)
def test_a_dense_unit_adds_the_gradient_of_its_shortcut_where_it_lies(dtype: torch.dtype, options: dict[str, Any]) -> None:
    """It is a slice of the channels of a wider map, whose rows are further apart."""
    torch.manual_seed(0)
    stage = create_model("cifar_densenet", depth=16, growth=12, **options).stages[0].train()  # type: ignore[union-attr]
    stage = stage.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    exact, twin = copy.deepcopy(stage).double(), fused(stage, own_convolutions=True)
    channels = next(module.num_features for module in stage.modules() if isinstance(module, nn.BatchNorm2d))
    x = torch.randn(3, channels, 9, 7).contiguous(memory_format=torch.channels_last)
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        torch.manual_seed(1)
        y = twin(ours.to(dtype))
    torch.manual_seed(1)
    expected = exact(theirs)
    if "dropout" in options:  # which draws otherwise in float64
        assert y.shape == expected.shape
        return
    dy = torch.randn(y.shape)
    y.backward(dy.to(y.dtype))
    expected.backward(dy.double())
    pairs = [(ours.grad, theirs.grad), *((p.grad, q.grad) for p, q in zip(stage.parameters(), exact.parameters()))]
    for found, wanted in [(y, expected), *pairs]:
        assert found is not None
        assert wanted is not None
        away = (found.detach().double() - wanted.detach()).norm() / wanted.detach().norm()
        assert away < (1e-4 if dtype == torch.float32 else 0.1), "rounding opens or closes some ReLU"


@pytest.mark.parametrize(
    ("dtype", "own"),
    [(torch.float32, False), (torch.bfloat16, False), pytest.param(torch.bfloat16, True, marks=convolutions)],
    ids=["float32", "bfloat16", "by own loops"],
)
def test_the_gradient_of_a_shortcut_that_subsamples_is_added_where_it_belongs(dtype: torch.dtype, own: bool) -> None:
    torch.manual_seed(0)
    unit = create_model("cifar_resnet", depth=8).stages[1][0].train().to(memory_format=torch.channels_last)  # type: ignore[index]
    exact, twin = copy.deepcopy(unit).double(), fused(unit, own_convolutions=own)
    assert isinstance(twin, FusedUnit)
    assert twin.pad is not None
    x = torch.randn(3, 16, 9, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    start = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    theirs = x.double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = twin(start)
    expected = exact(theirs)
    y.float().square().sum().backward()
    expected.square().sum().backward()
    pairs = [(start.grad, theirs.grad), *((p.grad, q.grad) for p, q in zip(unit.parameters(), exact.parameters()))]
    for found, wanted in [(y, expected), *pairs]:
        assert found is not None
        assert wanted is not None
        away = (found.detach().double() - wanted.detach()).norm() / wanted.detach().norm()
        assert away < (1e-5 if dtype == torch.float32 else 0.05)
    start = start.detach().requires_grad_()
    x, h = _Subsampled.apply(start, 2, 16)
    for wanted, y in ((torch.ones_like(start), x), (torch.zeros_like(start), h)):
        (alone,) = torch.autograd.grad(y.float().sum(), start, retain_graph=True)
        if y is h:
            wanted[:, :, ::2, ::2] = 1
        assert torch.equal(alone, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 5, 9, 8), {"kernel_size": 2}),
        ((3, 64, 12, 12), {"kernel_size": 3, "stride": 2, "padding": 1}),
        ((2, 130, 7, 11), {"kernel_size": (3, 2), "stride": (1, 3), "padding": (1, 0)}),
        ((1, 4, 1, 1), {"kernel_size": 3, "stride": 2, "padding": 1}),
        ((2, 16, 33, 17), {"kernel_size": 16, "stride": 5, "padding": 8}),
        ((2, 8, 6, 6), {"kernel_size": 1, "stride": 4}),
    ],
    ids=str,
)
def test_maxima_and_their_gradients_are_those_of_torch_ties_included(
    shape: tuple[int, ...], options: dict[str, object], dtype: torch.dtype
) -> None:
    """Small whole numbers, so that many are equal, and sums of gradients exact."""
    pool = nn.MaxPool2d(**options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-3, 4, shape, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)
    x[0, 0, 0, 0], x[-1, -1, -1, -1] = -torch.inf, torch.nan
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    twin = fused(nn.Sequential(pool))
    assert isinstance(twin, nn.Sequential)
    assert isinstance(twin[0], Pool)
    y, expected = twin(ours), pool(theirs)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    dy = torch.randint(-3, 4, expected.shape, generator=generator).to(dtype)
    y.backward(dy)
    expected.backward(dy)
    assert type(y.grad_fn).__name__ == "_PooledBackward"
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)


def test_windows_that_the_loops_do_not_take_are_left_to_torch() -> None:
    others = [
        nn.MaxPool2d(2, dilation=2),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(2, return_indices=True),
        nn.MaxPool2d(17),
    ]
    assert all(fused(nn.Sequential(pool))[0] is pool for pool in others)  # type: ignore[index]
    twin, x = fused(nn.MaxPool2d(2)), torch.randn(2, 3, 4, 4)
    assert torch.equal(twin(x), nn.MaxPool2d(2)(x))
    assert torch.equal(twin(x[0]), nn.MaxPool2d(2)(x[0]))
    with pytest.raises(RuntimeError, match="too small"):
        twin(torch.randn(2, 3, 1, 1).contiguous(memory_format=torch.channels_last))


POOLED = [
    ((2, 5, 9, 8), {"kernel_size": 2}),
    ((3, 64, 12, 12), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ((2, 130, 7, 11), {"kernel_size": (3, 2), "stride": (1, 3), "padding": (1, 0)}),
    ((2, 24, 6, 6), {"kernel_size": 1, "stride": 4}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("shape", "options"), POOLED, ids=str)
def test_the_maxima_of_a_normalisation_and_their_gradients_are_those_in_float64(
    shape: tuple[int, ...], options: dict[str, object], training: bool, dtype: torch.dtype
) -> None:
    layers = nn.Sequential(drawn_norm(shape[1]), nn.ReLU(), nn.MaxPool2d(**options)).train(training)  # type: ignore[arg-type]
    with torch.no_grad():
        layers[0].weight[::3] *= -1
    exact, twin = copy.deepcopy(layers).double(), fused(layers)
    assert [type(layer) for layer in twin.children()] == [PooledNorm]
    x = made(shape, dtype, 5)
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    y, expected = twin(ours), exact(theirs)
    assert type(y.grad_fn).__name__ == "_PooledNormBackward"
    assert y.is_contiguous(memory_format=torch.channels_last)
    rounding = 2e-2 if dtype == torch.bfloat16 else 2e-5
    torch.testing.assert_close(y.double(), expected, rtol=rounding, atol=rounding)
    dy = torch.where(expected > 10 * rounding, made(tuple(expected.shape), dtype, 6), 0).to(dtype)  # elsewhere ReLU may close
    y.backward(dy)
    expected.backward(dy.double())
    parts = [(ours.grad, theirs.grad), *((a.grad, b.grad) for a, b in zip(layers.parameters(), exact.parameters()))]
    assert len(parts) == 3
    for one, other in parts:
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one.double(), other, rtol=rounding, atol=rounding * max(1.0, other.abs().max().item() / 10))
    for name, buffer in layers.named_buffers():
        torch.testing.assert_close(buffer.double(), exact.get_buffer(name).double(), rtol=1e-5, atol=1e-5)


def test_the_maxima_of_a_normalisation_are_to_the_bit_those_of_the_loops_apart_on_any_number_of_threads() -> None:
    layers, x = nn.Sequential(drawn_norm(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)), made((5, 64, 20, 21), torch.bfloat16, 1)
    alone, threads, found = copy.deepcopy(layers[0]), torch.get_num_threads(), []
    expected = Pool(layers[2])(FusedNorm(alone, kernels.RELU)(x))  # type: ignore[arg-type]
    dy = made(tuple(expected.shape), torch.bfloat16, 2)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            layers.zero_grad()
            start, twin = x.clone().requires_grad_(), fused(layers)
            y = twin(start)
            y.backward(dy)
            assert torch.equal(y, expected)
            found.append(
                [start.grad, *(parameter.grad.clone() for parameter in layers.parameters() if parameter.grad is not None)]
            )
    finally:
        torch.set_num_threads(threads)
    assert len(found[0]) == 3
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others))


def test_what_is_no_number_passes_the_maxima_of_a_normalisation() -> None:
    layers, x = nn.Sequential(drawn_norm(16), nn.ReLU(), nn.MaxPool2d(2)).eval(), made((1, 16, 6, 6), torch.bfloat16, 1)
    x[0, 3, 2, 2] = torch.nan
    y = fused(layers)(x)
    assert y[0, 3, 1, 1].isnan()
    assert int(y.isnan().sum()) == 1


def test_maps_that_the_loops_do_not_take_pass_the_layers_apart() -> None:
    layers, x = nn.Sequential(drawn_norm(4), nn.ReLU(), nn.MaxPool2d(2)).eval(), torch.randn(2, 4, 6, 6)
    twin = fused(layers)
    assert torch.equal(twin(x), layers(x))
    expected = layers.double()(x.double())
    assert torch.equal(twin(x.double()), expected)
    layers[1].register_forward_hook(lambda *_: None)
    assert not any(isinstance(layer, PooledNorm) for layer in fused(layers).modules())
    wide = nn.Sequential(drawn_norm(4), nn.ReLU(), nn.MaxPool2d(16))
    assert [type(layer) for layer in fused(wide).children()] == [FusedNorm, Pool]
