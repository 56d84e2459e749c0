"""The ResNeXts: three equal forms of one block, the paper's counts, products of dimensions, and torchvision's networks."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
import torchvision
from graphs import captured
from peers import assert_equal_to_the_peer, in_float64
from torch import Tensor, nn

from residua.cost import multiply_adds, num_parameters
from residua.errors import RequestError
from residua.models import CATALOG, create_model, resnext
from residua.network import Network
from residua.unit import walk

NAMES = [name for name in resnext.__all__ if name.startswith("resnext")]

# Exact counts, and in millions and 1e9 multiply-adds as Tables 1 and 7 print them.
PARAMETERS = {
    "resnext50_32x4d": (25_028_904, 25.0),
    "resnext101_32x4d": (44_177_704, None),
    "resnext101_64x4d": (83_455_272, None),
    "resnext29_8x64d": (34_426_698, 34.4),
    "resnext29_16x64d": (68_155_210, 68.1),
}
MULTIPLY_ADDS = {"resnext50_32x4d": 4_230_479_872, "resnext101_32x4d": 7_969_996_800, "resnext101_64x4d": 15_460_270_080}
# Table 2: width of the grouped convolution, and the weights C (256 d + 9 d^2 + 256 d) of a template of the first stage.
TEMPLATES = {"1x64d": (64, 69_632), "2x40d": (80, 69_760), "4x24d": (96, 69_888), "8x14d": (112, 71_456), "32x4d": (128, 70_144)}


def on_meta(name: str, **options: object) -> Network:
    with torch.device("meta"):
        return create_model(name, **options)


# -------------------------------------------------------------------------------------------------------------- facts


@pytest.mark.parametrize(("name", "counts"), PARAMETERS.items())
def test_the_parameters_are_the_papers(name: str, counts: tuple[int, float | None]) -> None:
    exact, printed = counts
    assert num_parameters(on_meta(name)) == exact
    assert printed is None or exact / 1e6 == pytest.approx(printed, abs=0.06)


def test_the_network_for_100_classes_has_the_papers_parameters() -> None:
    assert num_parameters(on_meta("resnext29_8x64d", num_classes=100)) == 34_518_948


@pytest.mark.parametrize(("name", "expected"), MULTIPLY_ADDS.items())
def test_the_multiply_adds_are_the_papers(name: str, expected: int) -> None:
    assert multiply_adds(on_meta(name), (3, 224, 224)) == expected


@pytest.mark.parametrize(("setting", "expected"), TEMPLATES.items())
def test_the_templates_have_the_width_and_weights_of_table_2(setting: str, expected: tuple[int, int]) -> None:
    branch = on_meta(f"resnext50_{setting}").stages[0][1].branch
    cardinality, width = map(int, setting.removesuffix("d").split("x"))
    weights = sum(parameter.numel() for parameter in branch.parameters() if parameter.ndim == 4)
    assert (branch.conv2.out_channels, weights) == expected
    assert weights == cardinality * (256 * width + 9 * width**2 + 256 * width)
    assert branch.conv2.groups == cardinality


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("plain", [False, True])
def test_the_facts_follow_from_products_of_dimensions(name: str, plain: bool) -> None:
    entry, expected = CATALOG.get(name), closed_form(name, plain)
    if not plain:
        assert (entry.parameters, entry.multiply_adds) == expected
    else:
        model = on_meta(name, plain=True)
        assert (num_parameters(model), multiply_adds(model, entry.input_shape)) == expected


def closed_form(name: str, plain: bool) -> tuple[int, int]:
    """(parameters, multiply-adds) from Table 1 and appendix A."""
    depth, cardinality, first = map(int, re.fullmatch(r"resnext(\d+)_(\d+)x(\d+)d", name).groups())
    imagenet = depth > 29
    units = {29: (3, 3, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
    classes, side = (1000, 56) if imagenet else (10, 32)
    weights = 7 * 7 * 3 * 64 if imagenet else 3 * 3 * 3 * 64
    cost = weights * (112 if imagenet else 32) ** 2
    channels, scales = 64, 2 * 64
    for stage, count in enumerate(units):
        width, outer = first * 2**stage, 256 * 2**stage
        for unit in range(count):
            before = side
            side //= 2 if stage and not unit else 1
            layers = [(channels * width, before)] * cardinality + [(9 * width**2 + width * outer, side)] * cardinality
            if channels != outer and not plain:
                layers.append((channels * outer, side))
                scales += 2 * outer
            weights += sum(size for size, _ in layers)
            cost += sum(size * place * place for size, place in layers)
            scales += 4 * cardinality * width + 2 * outer
            channels = outer
    return weights + scales + channels * classes + classes, cost + channels * classes


def test_a_cardinality_of_one_is_he2015s_network() -> None:
    for depth in (50, 101):
        ours, known = on_meta(f"resnext{depth}_1x64d"), on_meta(f"resnet{depth}")
        assert [(name, p.shape) for name, p in ours.named_parameters()] == [(n, p.shape) for n, p in known.named_parameters()]
        assert str(ours) == str(known)


@pytest.mark.parametrize("name", NAMES)
def test_depth_counts_the_weight_layers_outside_shortcuts(name: str) -> None:
    weighted = [path for path, module in on_meta(name).named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert sum("shortcut" not in path for path in weighted) == CATALOG.get(name).depth


# ----------------------------------------------------------------------------------------------------- three equal forms


def in_form(form: str, tensors: Mapping[str, Tensor], cardinality: int) -> dict[str, Tensor]:
    """Weights, statistics or gradients of the grouped form, sliced for another one."""
    sliced: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"(.*\.branch)\.(\w+)\.(\w+)", name)
        if not found or found[2] == "norm3" or (found[2] == "conv3" and form != "paths"):
            sliced[name] = tensor
            continue
        branch, layer, kind = found.groups()
        paths = f"{branch}.paths.{'tower' if form == 'concatenated' else 'path'}"
        if (layer, kind) == ("conv3", "bias"):
            sliced[f"{paths}1.conv3.bias"] = tensor
            continue
        slices: Sequence[Tensor]
        slices = tensor.chunk(cardinality, dim=1 if layer == "conv3" else 0) if tensor.dim() else [tensor] * cardinality
        sliced.update({f"{paths}{place}.{layer}.{kind}": slice_ for place, slice_ in enumerate(slices, 1)})
    return sliced


def with_gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    x = x.clone().requires_grad_(True)
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], floor: float = 0.0) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        scale = float(tensor.abs().max())
        torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-10 * scale + floor, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("normalization", ["batch", "none"])
@pytest.mark.parametrize(("cardinality", "width"), [(1, 8), (4, 3), (8, 2)])
@pytest.mark.parametrize("form", ["concatenated", "paths"])
def test_the_three_forms_agree_in_outputs_gradients_and_statistics(
    form: str, cardinality: int, width: int, normalization: str, training: bool
) -> None:
    options = {"depth": 11, "cardinality": cardinality, "width": width, "normalization": normalization}
    with in_float64():
        grouped = create_model("cifar_resnext", **options)
        other = create_model("cifar_resnext", form=form, **options)
    for tensor in grouped.state_dict().values():
        if tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5)  # fresh scales, offsets and statistics would hide a slice in the wrong place
    other.load_state_dict(in_form(form, grouped.state_dict(), cardinality))
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    y, dx, gradients = with_gradients(grouped.train(training), x)
    y2, dx2, gradients2 = with_gradients(other.train(training), x)
    assert_close({"y": y2, "dx": dx2}, {"y": y, "dx": dx})
    assert_close(gradients2, in_form(form, gradients, cardinality), floor=1e-13 * float(dx.abs().max()))
    assert_close(
        {name: tensor.double() for name, tensor in other.state_dict().items()},
        in_form(form, {name: tensor.double() for name, tensor in grouped.state_dict().items()}, cardinality),
    )


@pytest.mark.parametrize("form", ["concatenated", "paths"])
def test_the_three_forms_have_one_size_and_one_cost(form: str) -> None:
    grouped, other = on_meta("resnext50_4x24d"), on_meta("resnext50_4x24d", form=form)
    assert num_parameters(other) == num_parameters(grouped)
    assert multiply_adds(other, (3, 224, 224)) == multiply_adds(grouped, (3, 224, 224))
    assert len(list(walk(other))) == 16


def test_the_summed_paths_begin_as_large_as_the_grouped_form() -> None:
    """Standard deviation sqrt(2 / (C d)), the fan-in of the whole sum."""
    torch.manual_seed(0)
    model = create_model("cifar_resnext", depth=11, cardinality=8, width=8, form="paths")
    last = torch.cat([path.conv3.weight for path in model.stages[0][0].branch.paths.children()], dim=1).detach()
    assert last.shape == (256, 64, 1, 1)
    assert float(last.std()) == pytest.approx((2 / 64) ** 0.5, rel=4 / (2 * last.numel()) ** 0.5)


@pytest.mark.parametrize("form", ["grouped", "concatenated", "paths"])
def test_each_form_is_captured_in_one_graph_that_computes_the_same(form: str) -> None:
    model = create_model("cifar_resnext", depth=11, cardinality=2, width=2, form=form).train()
    twin, x = copy.deepcopy(model), torch.randn(2, 3, 8, 8)
    y, graphs = captured(model, x)
    assert graphs == 1
    torch.testing.assert_close(y, twin(x), rtol=0, atol=0)


# --------------------------------------------------------------------------------------------------------------- the peer


@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("resnext50_32x4d", True),
        pytest.param("resnext50_32x4d", False, marks=pytest.mark.slow),
        pytest.param("resnext101_32x8d", True, marks=pytest.mark.slow),
        pytest.param("resnext101_64x4d", True, marks=pytest.mark.slow),
    ],
)
def test_outputs_and_gradients_equal_torchvisions_with_the_same_weights(name: str, training: bool) -> None:
    builder: Callable[..., nn.Module] = getattr(torchvision.models, name)
    with in_float64():
        ours, theirs = create_model(name), builder(weights=None)
        x = torch.randn(2, 3, 40, 40)
    assert_equal_to_the_peer(ours, theirs, x, training)


# ---------------------------------------------------------------------------------------------------------------- options


def test_group_normalization_leaves_the_samples_apart_in_training() -> None:
    model = create_model("cifar_resnext", depth=11, cardinality=2, width=4, normalization="group").double().train()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(model(x), torch.cat([model(one[None]) for one in x]))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cifar_resnext", {"depth": 30}, "29 and 38"),
        ("cifar_resnext", {"depth": 2}, "9n + 2"),
        ("imagenet_resnext", {"depth": 29}, "50, 101, 152"),
        ("resnext29_8x64d", {"form": "sum"}, "'grouped', 'concatenated', 'paths'"),
        ("resnext29_8x64d", {"cardinality": 0}, "cardinality"),
        ("resnext29_8x64d", {"width": 1.5}, "width"),
        ("resnext29_8x64d", {"stem": "tiny"}, "'imagenet', 'small'"),
        ("resnext50_32x4d", {"normalization": "layer"}, "'batch', 'group', 'none'"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_can(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError) as refused:
        create_model(name, **options)
    assert words in str(refused.value)


# --------------------------------------------------------------------------------------------------------- narrower ones


def test_a_narrower_network_has_the_same_form_with_a_fourth_of_the_maps() -> None:
    """All weights of convolutions between units have 1/16 of their number with a fourth of outer and width."""
    whole, narrow = (on_meta("cifar_resnext", depth=20, cardinality=4, width=w, outer=o) for w, o in ((24, 256), (6, 64)))
    for (path, big), (other, small) in zip(whole.stages.named_parameters(), narrow.stages.named_parameters()):
        assert path == other
        assert big.numel() == small.numel() * (16 if big.ndim == 4 else 4)
    assert narrow.feature_channels == (64, 128, 256)


@pytest.mark.parametrize(
    ("outer", "words"), [(0, "a multiple of 4"), (30, "a multiple of 4"), (2.5, r"a whole number, not 2\.5")]
)
def test_an_outer_width_that_is_no_multiple_of_4_is_refused(outer: float, words: str) -> None:
    with pytest.raises(RequestError, match=f"outer .*must be {words}"):
        create_model("cifar_resnext", outer=outer)
