"""The ResNets against torchvision's with the same weights, and against the figures that the paper prints."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from graphs import captured
from torch import Tensor, nn

from residua.cost import multiply_adds, num_parameters
from residua.errors import RequestError
from residua.models import CATALOG, create_model, list_models
from residua.models.resnet import resnet
from residua.network import Network
from residua.shortcuts import ZeroPad
from residua.unit import SampledAdd, walk

# Table 1 of he2015: multiply-adds in units of 1e9 as printed.
PRINTED_GFLOPS = {18: 1.8, 34: 3.6, 50: 3.8, 101: 7.6, 152: 11.3}
# Computed from the description in section 3.4, the bottlenecks' stride on the first 1x1 convolution, as the paper counts.
STRIDE_ON_FIRST = {50: 3_857_973_248, 101: 7_570_194_432, 152: 11_282_415_616}
# Table 6: parameters in millions as printed.
PRINTED_MILLIONS = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7, 1202: 19.4}

FAMILY = [name for name in list_models() if CATALOG.modules[name] == "residua.models.resnet"]


def on_meta(name: str, **options: object) -> Network:
    with torch.device("meta"):
        return create_model(name, **options)


def with_gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The output, the input's gradient and every parameter's of an uneven sum of the outputs."""
    x = x.clone().requires_grad_(True)
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad, [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize(
    ("depth", "training"),
    [(18, True), (18, False), (34, True), (50, True)]
    + [pytest.param(depth, training, marks=pytest.mark.slow) for depth in (34, 50, 101) for training in (False, depth == 101)],
)
def test_outputs_and_gradients_equal_torchvisions_with_the_same_weights(depth: int, training: bool) -> None:
    ours = create_model(f"resnet{depth}").double()
    builder: Callable[..., nn.Module] = getattr(torchvision.models, f"resnet{depth}")
    theirs = builder(weights=None).double()
    own, other = ours.state_dict(), theirs.state_dict()
    assert [tensor.shape for tensor in own.values()] == [tensor.shape for tensor in other.values()]
    theirs.load_state_dict(dict(zip(other, own.values())))
    ours.train(training)
    theirs.train(training)
    x = torch.randn(3, 3, 40, 40, dtype=torch.float64)
    for found, expected in zip(with_gradients(ours, x), with_gradients(theirs, x)):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8 * scale(expected))
    for found, expected in zip(ours.state_dict().values(), theirs.state_dict().values()):
        torch.testing.assert_close(found, expected)


def scale(values: Tensor | list[Tensor]) -> float:
    return max(float(value.abs().max()) for value in ([values] if isinstance(values, Tensor) else values))


@pytest.mark.parametrize(("depth", "expected"), STRIDE_ON_FIRST.items())
def test_the_papers_own_form_has_the_multiply_adds_that_the_paper_prints(depth: int, expected: int) -> None:
    found = multiply_adds(on_meta(f"resnet{depth}", stride_on="1x1"), (3, 224, 224))
    assert found == expected
    assert found / 1e9 == pytest.approx(PRINTED_GFLOPS[depth], rel=0.02)


@pytest.mark.parametrize(("depth", "parameters", "cost"), [(18, 11_515_688, 1_794_805_760), (34, 21_623_848, 3_644_493_824)])
def test_option_a_costs_what_the_plain_twin_costs(depth: int, parameters: int, cost: int) -> None:
    for model in (on_meta(f"resnet{depth}", shortcut="A"), on_meta(f"plain{depth}")):
        assert (num_parameters(model), multiply_adds(model, (3, 224, 224))) == (parameters, cost)
    assert cost / 1e9 == pytest.approx(PRINTED_GFLOPS[depth], rel=0.02)


@pytest.mark.parametrize(("depth", "millions"), PRINTED_MILLIONS.items())
def test_the_cifar_networks_have_the_parameters_of_table_6(depth: int, millions: float) -> None:
    digits = len(str(millions).partition(".")[2])
    assert round(num_parameters(create_model(f"resnet{depth}")) / 1e6, digits) == millions


def test_basic_and_bottleneck_branches_have_the_weights_of_figure_5() -> None:
    def weights(name: str) -> int:
        unit = on_meta(name).stages[0][1]
        return sum(p.numel() for p in unit.branch.parameters() if p.ndim == 4)

    assert weights("resnet34") == 2 * 3 * 3 * 64 * 64 == 73_728
    assert weights("resnet50") == 256 * 64 + 3 * 3 * 64 * 64 + 64 * 256 == 69_632


def projections(model: nn.Module) -> int:
    return sum(path.endswith("shortcut.conv") for path, _ in model.named_modules())


@pytest.mark.parametrize(("depth", "b", "c"), [(18, 3, 8), (34, 3, 16), (50, 4, 16)])
def test_option_c_projects_everywhere_and_option_b_only_at_a_change_of_shape(depth: int, b: int, c: int) -> None:
    assert projections(on_meta(f"resnet{depth}", shortcut="A")) == 0
    assert projections(on_meta(f"resnet{depth}", shortcut="B")) == b
    assert projections(on_meta(f"resnet{depth}", shortcut="C")) == c


def test_option_c_has_13_projections_more_than_b_in_the_34_layer_network() -> None:
    assert projections(on_meta("resnet34", shortcut="C")) - projections(on_meta("resnet34", shortcut="B")) == 13


def test_the_cifar_networks_pad_with_zeros_at_the_two_changes_of_shape_only() -> None:
    kinds = [type(located.unit.shortcut) for located in walk(create_model("resnet20"))]
    assert kinds == [nn.Identity] * 3 + [ZeroPad] + [nn.Identity] * 2 + [ZeroPad] + [nn.Identity] * 2


def test_any_other_depth_of_the_cifar_family_is_built_by_its_builder() -> None:
    model = create_model("cifar_resnet", depth=14)
    assert len(list(walk(model))) == 6
    assert all(torch.equal(a, b) for a, b in zip(same_seed("cifar_resnet", depth=20), same_seed("resnet20")))


def same_seed(name: str, **options: object) -> list[Tensor]:
    torch.manual_seed(5)
    return list(create_model(name, **options).state_dict().values())


@pytest.mark.parametrize("name", ["resnet18", "plain18", "resnet20", "plain20"])
def test_any_number_of_classes_and_channels(name: str) -> None:
    for in_channels, num_classes in ((1, 1), (4, 13)):
        model = create_model(name, in_channels=in_channels, num_classes=num_classes)
        assert model(torch.zeros(2, in_channels, 32, 32)).shape == (2, num_classes)
        assert model.stem.conv.weight.shape[1] == in_channels


def test_the_stem_for_small_images_keeps_the_size_and_the_other_divides_by_four() -> None:
    x = torch.zeros(1, 3, 32, 32)
    small, large = create_model("resnet18", stem="small"), create_model("resnet20", stem="imagenet")
    assert (small.eval().stem(x).shape[-1], large.eval().stem(x).shape[-1]) == (32, 8)
    assert small.feature_reductions == (1, 2, 4, 8)
    assert large.feature_reductions == (4, 8, 16)
    assert create_model("resnet18").feature_reductions == (4, 8, 16, 32)


@pytest.mark.parametrize(
    ("builder", "depth", "width"),
    [
        ("imagenet_resnet", 18, 0.5), ("imagenet_resnet", 50, 2), ("preact_imagenet_resnet", 50, 0.125),
        ("cifar_resnet", 20, 1.5), ("preact_cifar_resnet", 20, 0.25),
    ],
)  # fmt: skip
def test_the_width_is_a_factor_of_all_channels_but_the_inputs(builder: str, depth: int, width: float) -> None:
    own, usual = on_meta(builder, depth=depth, width=width), on_meta(builder, depth=depth)
    assert own.feature_channels == tuple(int(width * channels) for channels in usual.feature_channels)
    for (name, mine), theirs in zip(own.named_parameters(), usual.parameters(), strict=True):
        scaled = (not name.startswith("head.classifier"), name != "stem.conv.weight")
        channels = [width * count if one else count for count, one in zip(theirs.shape[:2], scaled)]
        assert list(mine.shape[:2]) == channels, name
        assert mine.shape[2:] == theirs.shape[2:]


def test_stochastic_depth_rises_linearly_to_the_last_unit() -> None:
    model = create_model("resnet20", stochastic_depth=0.5)
    drops = [module.drop for module in model.modules() if isinstance(module, SampledAdd)]
    assert drops == pytest.approx([0.5 * (index + 1) / 9 for index in range(9)])


@pytest.mark.parametrize("kind", ["group", "none"])
def test_without_batch_normalization_samples_do_not_touch_each_other_in_training(kind: str) -> None:
    model = create_model("cifar_resnet", depth=8, normalization=kind).double().train()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(model(x), torch.cat([model(one[None]) for one in x]))


def test_without_normalization_convolutions_have_a_bias() -> None:
    assert all(m.bias is not None for m in create_model("resnet20", normalization="none").modules() if isinstance(m, nn.Conv2d))
    assert all(m.bias is None for m in create_model("resnet20").modules() if isinstance(m, nn.Conv2d))


def test_models_are_listed_by_pattern() -> None:
    assert list_models("plain1*") == ["plain18", "plain101", "plain152", "plain110", "plain1202"]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet21", {}, "resnet20"),
        ("rasnet50", {}, "resnet50"),
        ("resnet20", {"shortcat": "A"}, "shortcut"),
        ("cifar_resnet", {"dept": 20}, "depth"),
        ("resnet20", {"depth": 32}, "depth"),
        ("resnet20", {"shortcut": "D"}, "'A', 'B', 'C'"),
        ("resnet18", {"stem": "tiny"}, "'imagenet', 'small'"),
        ("resnet50", {"stride_on": "5x5"}, "'3x3', '1x1'"),
        ("resnet20", {"normalization": "layer"}, "'batch', 'group', 'none'"),
        ("resnet20", {"stochastic_depth": 1.0}, "probability"),
        ("resnet20", {"num_classes": 0}, "num_classes"),
        ("resnet20", {"in_channels": -1}, "in_channels"),
        ("resnet20", {"num_classes": 2.5}, "num_classes"),
        ("cifar_resnet", {"depth": 20, "num_classes": 0}, "num_classes"),
        ("cifar_resnet", {"depth": 21}, "20 and 26"),
        ("cifar_resnet", {"depth": 2}, "6n + 2"),
        ("cifar_resnet", {}, "depth"),
        ("imagenet_resnet", {"depth": 51}, "18, 34, 50, 101, 152"),
        ("resnet18", {"width": 0.01}, "whole number of channels"),
        ("resnet20", {"width": float("inf")}, "whole number of channels"),
        ("preact_resnet101", {"width": "half"}, "width of preact_resnet101 must be a number"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_can(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError) as refused:
        create_model(name, **options)
    assert words in str(refused.value)


def test_a_stage_that_begins_with_a_stride_halves_the_resolution() -> None:
    model = resnet((1, 2), 4, "basic", shortcut="A", stem="small", in_channels=1, num_classes=2)
    strides = [tuple(located.unit.branch.conv1.stride) for located in walk(model)]
    assert strides == [(1, 1), (2, 2), (1, 1)]


# ------------------------------------------------------------------------------------------------ facts and graphs


@pytest.mark.parametrize("name", FAMILY)
def test_the_declared_facts_follow_from_products_of_dimensions(name: str) -> None:
    entry = CATALOG.get(name)
    assert (entry.parameters, entry.multiply_adds) == closed_form(name)


def closed_form(name: str) -> tuple[int, int]:
    """(parameters, multiply-adds) as sums of products of dimensions, from Table 1 and section 4.2 of he2015."""
    plain, depth = name.startswith("plain"), int(name.removeprefix("plain").removeprefix("resnet"))
    stages = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
    if depth in stages:
        bottlenecks, width, side, classes, blocks = depth >= 50, 64, 56, 1000, stages[depth]
        weights, cost = 7 * 7 * 3 * 64, 112 * 112 * 7 * 7 * 3 * 64
    else:
        n = (depth - 2) // 6
        bottlenecks, width, side, classes, blocks = False, 16, 32, 10, (n, n, n)
        weights, cost = 3 * 3 * 3 * 16, 32 * 32 * 3 * 3 * 3 * 16
    imagenet, channels = depth in stages, width
    scales = 2 * width
    for stage, count in enumerate(blocks):
        inner = width * 2**stage
        for block in range(count):
            before = side
            if stage and not block:
                side //= 2
            if bottlenecks:
                layers = [(1, channels, inner, before), (3, inner, inner, side), (1, inner, 4 * inner, side)]
            else:
                layers = [(3, channels, inner, side), (3, inner, inner, side)]
            outer = layers[-1][2]
            if imagenet and not plain and outer != channels:
                layers.append((1, channels, outer, side))
            weights += sum(kernel * kernel * fan * out for kernel, fan, out, _ in layers)
            cost += sum(place * place * kernel * kernel * fan * out for kernel, fan, out, place in layers)
            scales += sum(2 * out for _, _, out, _ in layers)
            channels = outer
    return weights + scales + channels * classes + classes, cost + channels * classes


@pytest.mark.parametrize("name", FAMILY)
def test_depth_counts_the_weight_layers_outside_shortcuts(name: str) -> None:
    weighted = [path for path, module in on_meta(name).named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert sum("shortcut" not in path for path in weighted) == CATALOG.get(name).depth


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("kind", "shortcut", "stem", "extra"),
    [
        ("basic", "A", "small", {}),
        ("basic", "plain", "small", {}),
        ("basic", "B", "imagenet", {}),
        ("3x3", "B", "imagenet", {}),
        ("3x3", "plain", "imagenet", {}),
        ("1x1", "C", "small", {"dropout": 0.5}),
    ],
)
def test_every_kind_of_unit_is_captured_in_one_graph_that_computes_the_same(
    kind: str, shortcut: str, stem: str, extra: dict[str, Any], training: bool
) -> None:
    """The graph of a network depends on its kinds of units, not on their number: two stages stand for all."""
    model = resnet((1, 1), 8, kind, shortcut=shortcut, stem=stem, in_channels=3, num_classes=5, **extra).train(training)
    twin = copy.deepcopy(model)
    x = torch.randn(4, 3, 32, 32)
    torch.manual_seed(3)
    y, graphs = captured(model, x)
    assert graphs == 1
    torch.manual_seed(3)
    torch.testing.assert_close(y, twin(x), rtol=0, atol=0)
    for (path, own), other in zip(model.state_dict().items(), twin.state_dict().values()):
        assert torch.equal(own, other), path


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar_resnet", {"depth": "20"}, "depth of cifar_resnet must be a whole number, not the text '20': give it without"),
        ("cifar_resnet", {"depth": 20.0}, r"depth of cifar_resnet must be a whole number, not 20\.0\."),
        ("cifar_resnet", {"depth": True}, r"depth of cifar_resnet must be a whole number, not True\."),
        ("cifar_resnet", {"depth": 20, "dropout": "much"}, r"dropout of cifar_resnet must be a number, not 'much'\."),
        ("resnet18", {"width": "2"}, "width of resnet18 must be a number, not the text '2'"),
        ("resnet20", {"plain": "no"}, r"plain of resnet20 must be true or false, not 'no'\."),
        ("cifar_resnet", {"depth": 20, "stochastic_depth": "0.5"}, r"stochastic_depth is a probability in \[0, 1\), not '0\.5'"),
        (
            "imagenet_densenet",
            {"depth": 121, "growth": "32"},
            "growth of imagenet_densenet must be a whole number or None",
        ),
    ],
)
def test_an_option_of_the_wrong_kind_is_named_with_the_kind_it_needs(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        create_model(name, **options)
