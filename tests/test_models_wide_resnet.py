"""The wide ResNets against the paper's counts, products of dimensions, torchvision and a plainly written twin."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from residua.cost import multiply_adds, num_parameters
from residua.errors import RequestError
from residua.models import CATALOG, create_model, wide_resnet
from residua.network import Network
from residua.unit import walk

NAMES = [name for name in wide_resnet.__all__ if name.startswith("wrn_")]

# Parameters for CIFAR-10 and CIFAR-100, and in millions as Tables 4 to 7 and 9 print them.
CIFAR = {
    "wrn_40_1": (563_930, 569_780, 0.6),
    "wrn_40_2": (2_243_546, 2_255_156, 2.2),
    "wrn_40_4": (8_949_210, 8_972_340, 8.9),
    "wrn_40_8": (35_748_314, 35_794_484, 35.7),
    "wrn_28_10": (36_479_194, 36_536_884, 36.5),
    "wrn_28_12": (52_517_850, 52_587_060, 52.5),
    "wrn_22_8": (17_158_106, 17_204_276, 17.2),
    "wrn_22_10": (26_797_914, 26_855_604, 26.8),
    "wrn_16_8": (10_961_370, 11_007_540, 11.0),
    "wrn_16_10": (17_116_634, 17_174_324, 17.1),
    "wrn_28_2": (1_467_610, 1_479_220, 1.5),
    "wrn_40_10": (55_841_754, 55_899_444, 55.9),  # Table 9 prints 56.0
}
IMAGENET = {
    "wrn_18_1_5": (25_875_816, 25.9),
    "wrn_18_2": (45_618_216, 45.6),
    "wrn_18_3": (101_783_976, 101.8),
    "wrn_34_1_5": (48_613_608, 48.6),
    "wrn_34_2": (86_036_008, 86.0),
    "wrn_50_2": (68_883_240, 68.9),
}
# Table 2: block, depth, millions of parameters at k = 2.
BLOCKS = [
    ("B(1,3,1)", 40, 1.4),
    ("B(3,1)", 40, 1.2),
    ("B(1,3)", 40, 1.3),
    ("B(3,1,1)", 40, 1.3),
    ("B(3,3)", 28, 1.5),
    ("B(3,1,3)", 22, 1.1),
]


def on_meta(name: str, **options: object) -> Network:
    with torch.device("meta"):
        return create_model(name, **options)


# -------------------------------------------------------------------------------------------------------------- facts


@pytest.mark.parametrize(("name", "counts"), CIFAR.items())
def test_the_cifar_networks_have_the_papers_parameters(name: str, counts: tuple[int, int, float]) -> None:
    ten, hundred, printed = counts
    assert num_parameters(on_meta(name)) == ten
    assert num_parameters(on_meta(name, num_classes=100)) == hundred
    assert printed in (round(ten / 1e6, 1), round(hundred / 1e6, 1))


@pytest.mark.parametrize(("name", "counts"), IMAGENET.items())
def test_the_imagenet_networks_have_the_papers_parameters(name: str, counts: tuple[int, float]) -> None:
    assert num_parameters(on_meta(name)) == counts[0]
    assert round(counts[0] / 1e6, 1) == counts[1]


@pytest.mark.parametrize(("block", "depth", "millions"), BLOCKS)
def test_the_block_types_have_the_parameters_of_table_2(block: str, depth: int, millions: float) -> None:
    """Which also says that N = (depth - 4) / 6 for blocks of three convolutions too."""
    model = on_meta("cifar_wide_resnet", depth=depth, width=2, block=block)
    assert len(list(walk(model))) == 3 * (depth - 4) // 6
    assert num_parameters(model) == cifar_costs(depth, 2, block)[0]
    assert round(num_parameters(model) / 1e6, 1) == millions


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_any_number_of_3x3_in_a_block_gives_one_size_at_depth_40(layers: int) -> None:
    """Table 3: the same depth and 2.2 million parameters."""
    model = on_meta("cifar_wide_resnet", depth=40, width=2, block=f"B({','.join('3' * layers)})")
    assert num_parameters(model) == 2_243_546
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 40
    assert len(list(walk(model))) == 36 // layers


@pytest.mark.parametrize("name", NAMES)
def test_the_declared_facts_follow_from_products_of_dimensions(name: str) -> None:
    entry = CATALOG.get(name)
    depth, width = entry.arguments["depth"], entry.arguments["width"]
    costs = cifar_costs(depth, width) if entry.input_shape[-1] == 32 else imagenet_costs(depth, width)
    assert (entry.parameters, entry.multiply_adds) == costs


def cifar_costs(depth: int, width: int, block: str = "B(3,3)") -> tuple[int, int]:
    """(parameters, multiply-adds) from Table 1."""
    kernels = [int(kernel) for kernel in block[2:-1].split(",")]
    channels, side = 16, 32
    weights, scales, cost = 3 * 3 * 3 * 16, 0, 32 * 32 * 3 * 3 * 3 * 16
    for stage in range(3):
        inner = 16 * width * 2**stage
        for unit in range((depth - 4) // 6):
            side //= 2 if stage and not unit else 1
            layers = [(k, channels if not i else inner) for i, k in enumerate(kernels)]
            scales += sum(2 * fan for _, fan in layers)
            if channels != inner:
                layers.append((1, channels))
            weights += sum(k * k * fan * inner for k, fan in layers)
            cost += sum(side * side * k * k * fan * inner for k, fan in layers)
            channels = inner
    return weights + scales + 2 * channels + channels * 10 + 10, cost + channels * 10


def imagenet_costs(depth: int, width: float) -> tuple[int, int]:
    units = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
    channels, side = 64, 56
    weights, scales, cost = 7 * 7 * 3 * 64, 2 * 64, 112 * 112 * 7 * 7 * 3 * 64
    for stage, count in enumerate(units):
        inner = int(64 * width) * 2**stage
        for unit in range(count):
            before = side
            side //= 2 if stage and not unit else 1
            outer = inner if depth < 50 else 256 * 2**stage
            if depth < 50:
                layers = [(3, channels, inner, side), (3, inner, inner, side)]
            else:
                layers = [(1, channels, inner, before), (3, inner, inner, side), (1, inner, outer, side)]
            if channels != outer:
                layers.append((1, channels, outer, side))
            weights += sum(k * k * fan * out for k, fan, out, _ in layers)
            scales += sum(2 * out for _, _, out, _ in layers)
            cost += sum(k * k * fan * out * place * place for k, fan, out, place in layers)
            channels = outer
    return weights + scales + channels * 1000 + 1000, cost + channels * 1000


@pytest.mark.parametrize("name", [name for name in NAMES if CATALOG.get(name).input_shape[-1] == 32])
def test_depth_counts_the_convolutions_shortcuts_included(name: str) -> None:
    """The thin network, k = 1, has no projection in its first stage, but the paper counts as if it had."""
    found = sum(isinstance(module, nn.Conv2d) for module in on_meta(name).modules())
    assert found + (CATALOG.get(name).arguments["width"] == 1) == CATALOG.get(name).depth


def test_once_as_wide_is_he2015s_network() -> None:
    for depth in (34, 50):
        thin, known = on_meta("imagenet_wide_resnet", depth=depth, width=1), on_meta(f"resnet{depth}")
        assert [p.shape for p in thin.parameters()] == [p.shape for p in known.parameters()]
        assert multiply_adds(thin, (3, 64, 64)) == multiply_adds(known, (3, 64, 64))


# ---------------------------------------------------------------------------------------------------------- what they compute


def with_gradients(model: Callable[[Tensor], Tensor], x: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """The output, and the gradients of an uneven sum of it by the input and by `parameters`."""
    x = x.clone().requires_grad_(True)
    y = model(x)
    loss = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()
    return [y.detach(), *torch.autograd.grad(loss, [x, *parameters])]


def assert_equal_with_the_same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Outputs, gradients and running statistics, the layers being in the same order."""
    own, other = ours.state_dict(), theirs.state_dict()
    assert [tensor.shape for tensor in own.values()] == [tensor.shape for tensor in other.values()]
    theirs.load_state_dict({name: tensor.clone() for name, tensor in zip(other, own.values())}, assign=True)
    x = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    found, expected = (with_gradients(model, x, list(model.parameters())) for model in (ours, theirs))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()):
        torch.testing.assert_close(a, b)


def torchvisions(depth: int) -> nn.Module:
    builder: Callable[..., nn.Module] = getattr(torchvision.models, f"wide_resnet{depth}_2")
    with torch.device("meta"):
        return builder(weights=None, num_classes=10)


@pytest.mark.parametrize("training", [True, False])
def test_the_first_two_stages_equal_torchvisions_with_the_same_weights(training: bool) -> None:
    ours, theirs = on_meta("wrn_50_2"), torchvisions(50)
    half = nn.Sequential(ours.stem, ours.stages[0], ours.stages[1]).to_empty(device="cpu").double()
    for module in half.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            module.reset_parameters()
    peer = nn.Sequential(theirs.conv1, theirs.bn1, theirs.relu, theirs.maxpool, theirs.layer1, theirs.layer2)
    assert_equal_with_the_same_weights(half.train(training), peer.train(training))


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("depth", [50, 101])
def test_outputs_and_gradients_equal_torchvisions_with_the_same_weights(depth: int, training: bool) -> None:
    ours = create_model(f"wrn_{depth}_2", num_classes=10).double().train(training)
    assert_equal_with_the_same_weights(ours, torchvisions(depth).train(training))


def twin(x: Tensor, parameters: list[Tensor], units: int, kernels: list[int]) -> Tensor:
    """A wide ResNet in training, written out; `parameters` in the order of the model's."""
    rest = iter(parameters)

    def norm_relu(x: Tensor) -> Tensor:
        return F.relu(F.batch_norm(x, None, None, next(rest), next(rest), training=True))

    x = F.conv2d(x, next(rest), padding=1)
    for stage in range(3):
        for unit in range(units):
            opening = unit == 0
            stride = 2 if opening and stage else 1
            y = x
            if opening:
                x = y = norm_relu(x)
            for place, kernel in enumerate(kernels):
                if place or not opening:
                    y = norm_relu(y)
                y = F.conv2d(y, next(rest), stride=1 if place else stride, padding=kernel // 2)
            x = y + (F.conv2d(x, next(rest), stride=stride) if opening else x)
    x = norm_relu(x)
    y = F.linear(x.mean((2, 3)), next(rest), next(rest))
    assert next(rest, None) is None
    return y


@pytest.mark.parametrize("block", ["B(3,3)", "B(3,1)", "B(1,3)", "B(3,1,1)", "B(3,1,3)", "B(1,3,1)", "B(3)"])
def test_outputs_and_gradients_equal_those_of_a_plainly_written_twin(block: str) -> None:
    kernels = [int(kernel) for kernel in block[2:-1].split(",")]
    model = create_model("cifar_wide_resnet", depth=10 if block == "B(3)" else 16, width=2, block=block).double().train()
    parameters = list(model.parameters())
    x = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    found = with_gradients(model, x, parameters)
    expected = with_gradients(lambda x: twin(x, parameters, 2, kernels), x, parameters)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))


def test_dropout_stands_between_the_convolutions_after_the_relu_and_not_on_the_shortcut() -> None:
    model = create_model("wrn_16_4", dropout=0.3)
    assert sum(isinstance(module, nn.Dropout) for module in model.modules()) == 6
    for located in walk(model):
        kinds = [type(layer) for layer in located.unit.branch]
        assert kinds[-3:] == [nn.ReLU, nn.Dropout, nn.Conv2d]
        assert located.unit.branch.drop2.p == 0.3
        assert kinds.count(nn.Dropout) == 1
        assert not any(isinstance(module, nn.Dropout) for module in located.unit.shortcut.modules())


def test_a_unit_that_changes_the_shape_shares_the_norm_relu_before_it() -> None:
    model = create_model("wrn_16_4")
    for stage, length in zip(model.stages, (3, 3, 4)):
        assert len(stage) == length, "norm-ReLU, two units, and at the very end one more norm-ReLU"
        first, second = stage[1], stage[2]
        assert [type(layer) for layer in stage[0]] == [nn.BatchNorm2d, nn.ReLU]
        assert isinstance(first.shortcut, nn.Conv2d)
        assert first.shortcut.kernel_size == (1, 1)
        assert [*first.branch._modules] == ["conv1", "norm2", "act2", "conv2"]
        assert isinstance(second.shortcut, nn.Identity)
        assert [*second.branch._modules] == ["norm1", "act1", "conv1", "norm2", "act2", "conv2"]
        assert isinstance(first.post, nn.Identity)


def test_the_thin_network_needs_no_projection_where_the_width_stays() -> None:
    kinds = [type(located.unit.shortcut) for located in walk(on_meta("wrn_40_1"))]
    assert [index for index, kind in enumerate(kinds) if kind is nn.Conv2d] == [6, 12]


def test_the_removable_units_are_those_with_an_identity() -> None:
    assert [located.removable for located in walk(on_meta("wrn_16_4"))] == [False, True] * 3


@pytest.mark.parametrize("name", ["wrn_50_2", "wrn_34_1_5"])
def test_a_base_of_an_eighth_leaves_an_eighth_of_all_maps(name: str) -> None:
    whole, narrow = on_meta(name), on_meta(name, base=8)
    pairs = [
        (a.out_channels, b.out_channels)
        for a, b in zip(whole.modules(), narrow.modules(), strict=True)
        if isinstance(a, nn.Conv2d) and isinstance(b, nn.Conv2d)
    ]
    assert len(pairs) > 30
    assert all(a == 8 * b for a, b in pairs)


@pytest.mark.parametrize("name", ["cifar_wide_resnet", "imagenet_wide_resnet"])
@pytest.mark.parametrize("kind", ["group", "none"])
def test_without_batch_normalization_samples_do_not_touch_each_other_in_training(name: str, kind: str) -> None:
    size = {"depth": 10} if name.startswith("cifar") else {"depth": 18, "width": 0.25}
    model = create_model(name, normalization=kind, **size).double().train()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(model(x), torch.cat([model(one[None]) for one in x]))
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert all((layer.bias is not None) == (kind == "none") for layer in layers)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cifar_wide_resnet", {"depth": 20}, "6N + 4 layers, not 20; nearest: 16 and 22"),
        ("cifar_wide_resnet", {"depth": 4}, "nearest: 10 and 16"),
        ("cifar_wide_resnet", {"depth": 24, "block": "B(3,3,3)"}, "9N + 4"),
        ("wrn_16_4", {"block": "B(5,3)"}, "'B(3,1)'"),
        ("wrn_16_4", {"block": "basic"}, "'B(3,1)'"),
        ("wrn_16_4", {"width": 0}, "width"),
        ("wrn_16_4", {"width": 1.01}, "width"),
        ("wrn_16_4", {"dropout": 1.0}, "probability"),
        ("wrn_16_4", {"normalization": "layer"}, "'batch', 'group', 'none'"),
        ("wrn_50_2", {"width": 3}, "1, 2 or 4"),
        ("wrn_50_2", {"base": 0}, "such as 8 or 64"),
        ("wrn_50_2", {"stem": "tiny"}, "'imagenet', 'small'"),
        ("wrn_18_2", {"normalization": "layer"}, "'batch', 'group', 'none'"),
        ("imagenet_wide_resnet", {"depth": 51}, "18, 34, 50, 101, 152"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_can(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError) as refused:
        create_model(name, **options)
    assert words in str(refused.value)
