"""Networks made ready for inference: the same function as before, in every family, in exact arithmetic and to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toy_runs import SIZE, make_run, one_thread, write_folder  # noqa: F401

from residua import evaluation, infer, kernels, packed, winograd
from residua.affine import Folded, folded, scaled
from residua.evaluation import evaluate
from residua.infer import Prepared, precision_here, prepared, ready
from residua.layers import Scale, Shift, norm, sequence
from residua.models import CATALOG, create_model, list_models
from residua.network import Head, Network, Stage, small_stem
from residua.packed import (
    FusedConvolution,
    Joined,
    Normalization,
    OwnConvolution,
    PointwiseConvolution,
    WinogradConvolution,
    layer_of,
)
from residua.prediction import predict
from residua.published import Published
from residua.unit import SampledAdd, Unit, switched_off, walk

CPU = torch.device("cpu")
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "ResNet, option A": ("resnet20", {}, 8),
    "ResNet, option B": ("resnet20", {"shortcut": "B"}, 8),
    "ResNet, option C": ("resnet20", {"shortcut": "C"}, 8),
    "ResNet, units of one layer": ("cifar_resnet", {"depth": 14, "layers": 1}, 8),
    "ResNet, group normalisation": ("resnet20", {"normalization": "group"}, 8),
    "ResNet without normalisation": ("resnet20", {"normalization": "none"}, 8),
    "stochastic depth": ("resnet20", {"stochastic_depth": 0.5}, 8),
    "bottlenecks, ImageNet stem": ("resnet50", {"num_classes": 10}, 64),
    "plain": ("plain20", {}, 8),
    **{
        f"unit {unit}": ("preact_cifar_resnet", {"depth": 20, "unit": unit}, 8)
        for unit in (
            "original", "bn-after-addition", "relu-before-addition", "relu-only-preactivation", "full-preactivation",
            "constant-scaling", "exclusive-gating", "shortcut-only-gating", "conv-shortcut", "dropout-shortcut",
        )
    },
    "pre-activation bottlenecks": ("preact_cifar_resnet", {"depth": 20, "branch": "bottleneck"}, 8),
    "wide": ("wrn_16_4", {"dropout": 0.3}, 8),
    "ResNeXt": ("resnext50_32x4d", {"num_classes": 10}, 64),
    "DenseNet": ("densenet_40_12", {}, 8),
    "DenseNet-BC": ("densenet_bc_40_36", {"dropout": 0.2}, 8),
    "DenseNet with light memory": ("densenet_bc_40_36", {"light": True}, 8),
    "highway, fully connected": ("highway_10", {}, 28),
    "highway, convolutions": ("highway_conv_19", {}, 32),
    "residual MLP": ("residual_mlp", {"normalization": "batch", "image_size": 8}, 8),
    "Inception-ResNet": ("inception_resnet", {"version": "v1", "num_classes": 10}, 75),
    "GoogLeNet": ("googlenet", {"num_classes": 10}, 48),
    "GoogLeNet with normalisation": ("googlenet", {"num_classes": 10, "normalization": "batch"}, 48),
    "Inception v3": ("inception_v3", {"num_classes": 10, "stem": "small"}, 16),
    "VGG": ("vgg", {"configuration": "A", "num_classes": 10, "head": "linear", "normalization": "batch"}, 32),
    "VGG with response normalisation": ("vgg", {"configuration": "A-LRN", "num_classes": 10, "head": "linear"}, 32),
}  # fmt: skip


def built(name: str, options: dict[str, Any], side: int, *, count: int | None = None) -> tuple[Network, Tensor]:
    """A network in float64 whose normalisations have not the statistics, scales and offsets of the start, and three images.

    The statistics are those of `count` images, enough that no channel has hardly any variance in the last maps, whose
    normalisation would blow up the rounding before it.
    """
    count = count or (16 if side <= 32 else 8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = create_model(name, **options).double()
        channels = next(m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
        in_channels = channels.in_channels if isinstance(channels, nn.Conv2d) else channels.in_features // side**2
        images = torch.randn(count, in_channels, side, side, dtype=torch.float64)
        for module in network.modules():
            if isinstance(module, NORMS):
                module.momentum = 1.0
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
        with torch.no_grad():
            network.train()(images)
    return network.eval(), images[:3]


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> tuple[Network, Tensor]:
    return built(*FAMILIES[request.param])


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest value."""
    return float((found.double() - expected.double()).abs().max() / expected.abs().max())


def root_mean_square(found: Tensor, expected: Tensor) -> float:
    """That of the differences over that of the values: it hangs less on chance than the largest."""
    return float((found.double() - expected.double()).norm() / expected.norm())


# ------------------------------------------------------------------------------------------------------------- the algebra


def test_affine_layers_fold_into_a_convolution_in_closed_form() -> None:
    conv, bn = nn.Conv2d(2, 3, 3, stride=2, padding=1).double(), nn.BatchNorm2d(3, eps=0.25).double()
    assert bn.running_mean is not None
    assert bn.running_var is not None
    assert conv.bias is not None
    bn.running_mean.copy_(torch.tensor([1.0, -2.0, 0.5]))
    bn.running_var.copy_(torch.tensor([0.75, 3.75, 8.75]))  # with eps 1, 4 and 9: standard deviations 1, 2 and 3
    bn.weight.data.copy_(torch.tensor([2.0, 2.0, -3.0]))
    bn.bias.data.copy_(torch.tensor([0.0, 1.0, 2.0]))
    shift = Shift().double()
    shift.bias.data.fill_(0.25)
    (found,) = folded(
        [sequence(conv=conv, norm=bn, drop=nn.Dropout(), scale=Scale(0.5, learned=False), shift=shift, act=nn.ReLU())]
    )
    assert isinstance(found, Folded)
    factors = torch.tensor([2.0, 1.0, -1.0], dtype=torch.float64) / 2
    assert found.relu
    torch.testing.assert_close(found.weight, conv.weight * factors.view(3, 1, 1, 1))
    offsets = (conv.bias - bn.running_mean) * factors + torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64) + 0.25
    assert found.bias is not None
    torch.testing.assert_close(found.bias, offsets)


def test_what_cannot_be_folded_stays() -> None:
    def kinds(*layers: nn.Module) -> list[str]:
        return [
            f"{type(part.layer).__name__}{'+relu' if part.relu else ''}" if isinstance(part, Folded) else type(part).__name__
            for part in folded(layers)
        ]

    conv = nn.Conv2d(4, 4, 3, padding=1)
    assert kinds(norm(4), nn.ReLU(), conv, norm(4)) == ["BatchNorm2d+relu", "Conv2d"]
    assert kinds(conv, nn.ReLU(), norm(4)) == ["Conv2d+relu", "BatchNorm2d"]
    assert kinds(conv, nn.MaxPool2d(2), norm(4)) == ["Conv2d", "MaxPool2d", "BatchNorm2d"]
    assert kinds(conv, nn.BatchNorm2d(4, track_running_stats=False)) == ["Conv2d", "BatchNorm2d"]
    assert kinds(conv, norm(4, kind="group"), nn.ReLU()) == ["Conv2d", "GroupNorm", "ReLU"]
    assert kinds(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), norm(4)) == ["Conv2d", "BatchNorm2d"]
    assert kinds(conv, norm(4), norm(4), nn.ReLU(), nn.ReLU()) == ["Conv2d+relu", "ReLU"]


def test_a_scaled_layer_is_the_layer_times_the_number() -> None:
    (found,) = folded([nn.Linear(3, 2)])
    assert isinstance(found, Folded)
    assert found.bias is not None
    halved = scaled(found, 0.5)
    torch.testing.assert_close(halved.weight, found.weight.double() / 2)
    torch.testing.assert_close(halved.bias, found.bias.double() / 2)


# ------------------------------------------------------------------------------------------------------------- every family


def test_in_float64_nothing_changes_but_rounding(family: tuple[Network, Tensor]) -> None:
    network, images = family
    fast = prepared(network, torch.float64)
    with torch.no_grad():
        assert distance(fast(images), network(images)) < 1e-10
        for found, expected in zip(fast.features(images), network.features(images), strict=True):
            assert distance(found, expected) < 1e-10


def test_in_float32_and_bf16_results_differ_by_rounding_only(family: tuple[Network, Tensor]) -> None:
    network, images = family
    with torch.no_grad():
        expected = network(images)
        try:
            network.float()
            assert distance(prepared(network)(images.float()), expected) < 2e-4
            with torch.autocast("cpu", torch.bfloat16):
                eager = network(images.float())
            fast = prepared(network, "bf16")(images.float())
            assert fast.dtype == torch.float32
            assert root_mean_square(fast, expected) < 2 * root_mean_square(eager, expected) + 0.01, "further than torch in bf16"
        finally:
            network.double()


def test_preparing_leaves_the_network_as_it_was(family: tuple[Network, Tensor]) -> None:
    network, images = family
    network.train()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    given, generator = images.clone(), torch.get_rng_state()
    modules = [(name, module.training) for name, module in network.named_modules()]
    fast = prepared(network, torch.float64)
    assert not any(module.training for module in fast.train().modules())
    assert not fast(images).requires_grad
    assert [(name, module.training) for name, module in network.named_modules()] == modules
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(images, given)
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    assert all(parameter.requires_grad for parameter in network.parameters())
    network.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_every_published_network_computes_the_same(name: str) -> None:
    """All of the catalogue, in float64 on small images; needs up to 2.5 GB of memory. The deepest plain networks amplify
    rounding beyond 1e-10: there the measure is what they make of a change of the images by a few units of the last place."""
    entry = CATALOG.get(name)
    assert isinstance(entry, Published)
    side = max(entry.least_side, 64 if entry.input_shape[-1] > 32 else 8)
    network, images = built(name, {}, side, count=2)
    with torch.no_grad():
        expected = network(images)
        amplified = distance(network(images * (1 + 2**-50)), expected)
        assert distance(prepared(network, torch.float64)(images), expected) < max(1e-10, 4 * amplified)


# ---------------------------------------------------------------------------------------------------------------- the form


def kinds_in(network: nn.Module) -> dict[str, int]:
    names = [type(module).__name__ for module in network.modules()]
    return {name: names.count(name) for name in names}


@pytest.mark.skipif(not packed.offers_fusion(torch.float32), reason="this torch has no fused convolutions")
def test_a_residual_network_becomes_fused_convolutions_alone() -> None:
    fast = prepared(built("resnet50", {"num_classes": 10}, 64)[0].float())
    kinds = kinds_in(fast)
    assert isinstance(fast, Prepared)
    assert kinds["FusedConvolution"] == 53
    assert kinds["Joined"] == 16
    assert not {"BatchNorm2d", "ReLU", "Add", "Unit", "Normalization"} & set(kinds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_torch_fuses_nothing_plain_operations_give_the_same(
    family: tuple[Network, Tensor], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, images = family
    with torch.no_grad():
        expected = network(images)
        fused = distance(prepared(network.float(), dtype)(images.float()), expected)
        monkeypatch.setattr(packed, "offers_fusion", lambda _: False)
        plain = prepared(network, dtype)
        assert not any(isinstance(module, FusedConvolution) for module in plain.modules())
        assert distance(plain(images.float()), expected) < 2 * fused + (2e-4 if dtype == torch.float32 else 0.01)
        network.double()


def test_inputs_of_any_size_follow_each_other() -> None:
    network, _ = built("resnet20", {}, 8)
    network.float()
    fast = prepared(network)
    for count, height, width in ((4, 8, 8), (1, 8, 8), (2, 13, 9), (3, 32, 32), (4, 8, 8), (0, 8, 8)):
        images = torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(fast(images), network(images), rtol=1e-4, atol=1e-4)


def test_maps_that_were_handed_out_are_not_written_over() -> None:
    network, images = built("resnet20", {}, 8)
    network.float()
    fast = prepared(network)
    assert any(module.overwrite for module in fast.modules() if isinstance(module, Joined))
    maps = fast.features(images.float())
    copies = [found.clone() for found in maps]
    fast(images.float())
    with torch.no_grad():
        for found, copy, expected in zip(maps, copies, network.features(images.float()), strict=True):
            assert torch.equal(found, copy)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_branch_that_begins_with_its_last_convolution_does_not_write_over_its_input() -> None:
    fast = prepared(built("cifar_resnet", {"depth": 14, "layers": 1}, 8)[0].float())
    joined = [module for module in fast.modules() if isinstance(module, Joined)]
    assert joined
    assert not any(unit.overwrite for unit in joined)


def test_hooks_are_respected() -> None:
    network, images = built("resnet20", {}, 8)
    units = [located.unit for located in walk(network)]
    with torch.no_grad(), switched_off(units[1]):
        same = prepared(network, torch.float64)
        assert same is network
        handled = infer._Rewriter(torch.float64, network.head.classifier).network(network)
        assert not torch.equal(same(images), handled(images))  # what the switch does would be lost
    assert isinstance(prepared(network), Prepared)


class Weighing(nn.Module):
    """A module that no vocabulary knows: with weights of its own, and a layer whose weights it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 1)
        self.factor = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.inner.weight * self.factor, self.inner.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_unknown_module_with_weights_is_computed_as_it_is(dtype: torch.dtype) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        merge = SampledAdd(0.3)
        unit = Unit(sequence(conv=nn.Conv2d(4, 4, 3, padding=1), norm=norm(4), odd=Weighing()), nn.Identity(), merge, nn.ReLU())
        network = Network(
            small_stem(3, 4), [Stage(unit, Weighing())], Head(4, 5), feature_channels=[4], feature_reductions=[1]
        ).eval()
        images = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        assert distance(prepared(network, dtype)(images), network(images)) < (1e-5 if dtype == torch.float32 else 0.03)


def test_a_normalisation_that_stays_is_computed_in_any_number_of_dimensions() -> None:
    for kind, shape in ((nn.BatchNorm1d, (5, 3)), (nn.BatchNorm2d, (2, 3, 4, 5)), (nn.BatchNorm3d, (2, 3, 4, 5, 2))):
        bn = kind(3)
        assert bn.running_var is not None
        bn.running_var.copy_(torch.tensor([0.5, 1.0, 2.0]))
        bn.bias.data.copy_(torch.tensor([0.5, -1.0, 2.0]))
        (found,) = folded([bn, nn.ReLU()])
        assert isinstance(found, Folded)
        x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = bn.eval()(x).relu()
            for layer in (packed.layer_of(found, torch.float32), Normalization(found, torch.float32)):
                torch.testing.assert_close(layer(x), expected)


# ---------------------------------------------------------------------------------------------------------------- its use


def test_the_precision_is_the_plans_where_it_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(infer, "multiplies_bf16", lambda native=native: native)
        assert precision_here("bf16", CPU) == expected
        assert precision_here("fp32", CPU) == "fp32"
        assert precision_here("bf16", torch.device("cuda")) == "bf16"


def test_exact_runs_and_other_devices_use_the_network_itself() -> None:
    network, _ = built("resnet20", {}, 8)
    network.float()
    assert ready(network, "fp32", CPU, exact=True) is network
    assert ready(network, "bf16", torch.device("cuda")) is network
    assert isinstance(ready(network, "fp32", CPU), Prepared)


@pytest.mark.parametrize("protocol", ["center", "ten-crop", "dense"])
def test_evaluation_and_prediction_count_as_the_network_itself_does(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "images", sizes=((SIZE, SIZE), (20, 31)), per_class=4)
    run = make_run(tmp_path / "run", folder)
    used: list[type] = []
    original = evaluation.scores
    monkeypatch.setattr(
        evaluation, "scores", lambda network, *rest, **named: used.append(type(network)) or original(network, *rest, **named)
    )
    fast = evaluate(run, protocol=protocol, device="cpu", save=False)
    labels = predict(run, folder / "test", device="cpu")
    monkeypatch.setattr(evaluation, "ready", lambda network, *_, **__: network)
    plain = evaluate(run, protocol=protocol, device="cpu", save=False)
    assert set(used) == {Prepared, Network}
    assert (fast.top1_error, fast.top5_error, fast.num_samples) == (plain.top1_error, plain.top5_error, plain.num_samples)
    assert fast.confusion_matrix == plain.confusion_matrix
    assert fast.nll == pytest.approx(plain.nll, abs=1e-5)
    assert [item.label for item in labels] == [item.label for item in predict(run, folder / "test", device="cpu")]


@pytest.mark.skipif(not winograd.preferred(), reason="the loops do not run here, or are not preferred on this processor")
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "kind"), [(3, 1, WinogradConvolution), (1, 1, PointwiseConvolution), (1, 2, PointwiseConvolution)]
)
def test_convolutions_by_own_loops_add_and_clip_as_the_others_do(
    relu: bool, overwrite: bool, kernel: int, stride: int, kind: type[OwnConvolution]
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 48, kernel, stride, padding=kernel // 2)
    found = Folded(conv, conv.weight.detach().double(), conv.bias.detach().double(), relu)  # type: ignore[union-attr]
    layer, plain = layer_of(found, torch.bfloat16), FusedConvolution(found, torch.bfloat16)
    assert type(layer) is kind
    single = Folded(conv, found.weight, found.bias)
    own, other = kind(single, torch.bfloat16), FusedConvolution(single, torch.bfloat16)
    sides = [
        (12, True),
        (15, True),
        (4, False),
    ]  # weights are packed for the first: `layer` meets an even side first, `own` an odd
    torch.testing.assert_close(
        own.applied(torch.ones(1, 32, 15, 15)), other.applied(torch.ones(1, 32, 15, 15)), atol=0.02, rtol=0.02
    )
    for side, by_loops in sides:
        x = torch.randn(1, 32, side, side).bfloat16().contiguous(memory_format=torch.channels_last)
        small = (side - 1) // stride + 1
        h = torch.randn(1, 48, small, small).bfloat16().contiguous(memory_format=torch.channels_last)
        assert own._pays(x) is by_loops
        torch.testing.assert_close(layer(x), plain(x), atol=0.02, rtol=0.02)
        torch.testing.assert_close(own.applied(x), other.applied(x), atol=0.02, rtol=0.02)
        sums = [one.joined(x, h.clone(), relu=relu, overwrite=overwrite) for one in (own, other)]
        torch.testing.assert_close(*sums, atol=0.03, rtol=0.02)
        given = h.clone()
        assert (own.joined(x, given, relu=relu, overwrite=overwrite).data_ptr() == given.data_ptr()) is overwrite


@pytest.mark.skipif(not winograd.preferred(), reason="the loops of our own are not used here")
def test_poolings_are_those_of_torch_in_loops_of_our_own() -> None:
    network = create_model("resnet18").train()
    ready = prepared(network, "bf16")
    (pool,) = [layer for layer in ready.modules() if isinstance(layer, kernels.Pool)]
    assert all(module.training for module in network.modules()), "the network is left as it was"
    x = torch.randn(2, 64, 20, 21).bfloat16().contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(pool(x), F.max_pool2d(x, 3, 2, 1))
    assert not any(isinstance(layer, kernels.Pool) for layer in prepared(create_model("resnet18")).modules()), "in float32"
