"""The DenseNets: the paper's counts, products of dimensions, torchvision's networks, and the memory-light mode."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
import torchvision
from graphs import captured
from peers import assert_equal_to_the_peer, in_float64
from torch import Tensor, nn

from residua.cost import num_parameters
from residua.errors import RequestError
from residua.models import CATALOG, create_model, densenet
from residua.network import Network
from residua.unit import Concat, switched_off, walk

NAMES = [name for name in densenet.__all__ if name.startswith("densenet")]

# Exact counts, and in millions as Table 2, section 4.4 or the authors' repository print them.
PARAMETERS = {
    "densenet_40_12": (1_019_722, 1.0),
    "densenet_100_12": (6_979_642, 7.0),
    "densenet_100_24": (27_249_082, 27.2),
    "densenet_bc_100_12": (769_162, 0.8),
    "densenet_bc_250_24": (15_324_406, 15.3),
    "densenet_bc_190_40": (25_624_430, 25.6),
    "densenet_bc_40_36": (1_542_682, 1.5),
    "densenet_bc_40_48": (2_733_130, 2.7),
    "densenet_bc_40_60": (4_261_690, 4.3),
    "densenet121": (7_978_856, None),
    "densenet169": (14_149_480, None),
    "densenet201": (20_013_928, 20.0),
    "densenet264": (33_337_704, None),
    "densenet161": (28_681_000, None),
}
TINY = {"depth": 16, "growth": 4, "bottleneck": True, "compression": 0.5}
FORMS = [TINY, {"depth": 13, "growth": 4}, {**TINY, "dropout": 0.2}, {**TINY, "normalization": "group"}]


def on_meta(name: str, **options: object) -> Network:
    with torch.device("meta"):
        return create_model(name, **options)


# -------------------------------------------------------------------------------------------------------------- facts


@pytest.mark.parametrize(("name", "counts"), PARAMETERS.items())
def test_the_parameters_are_the_papers(name: str, counts: tuple[int, float | None]) -> None:
    exact, printed = counts
    assert num_parameters(on_meta(name)) == exact
    assert printed is None or round(exact / 1e6, 1) == printed


@pytest.mark.parametrize("name", NAMES)
def test_the_declared_facts_follow_from_products_of_dimensions(name: str) -> None:
    entry = CATALOG.get(name)
    assert (entry.parameters, entry.multiply_adds) == closed_form(name)


def closed_form(name: str) -> tuple[int, int]:
    """(parameters, multiply-adds) from Table 1 and section 3."""
    blocks = {
        "121": (6, 12, 24, 16),
        "161": (6, 12, 36, 24),
        "169": (6, 12, 32, 32),
        "201": (6, 12, 48, 32),
        "264": (6, 12, 64, 48),
    }
    cifar = re.fullmatch(r"densenet_(bc_)?(\d+)_(\d+)", name)
    if cifar:
        bc, growth = bool(cifar[1]), int(cifar[3])
        units, side, classes = ((int(cifar[2]) - 4) // (6 if bc else 3),) * 3, 32, 10
        channels = 2 * growth if bc else 16
        weights = 3 * 3 * 3 * channels
        cost, scales = 32 * 32 * weights, 0
    else:
        bc, growth = True, 48 if name == "densenet161" else 32
        units, side, classes, channels = blocks[name.removeprefix("densenet")], 56, 1000, 2 * growth
        weights = 7 * 7 * 3 * channels
        cost, scales = 112 * 112 * weights, 2 * channels
    for block, count in enumerate(units):
        if block:
            narrowed = channels // 2 if bc else channels
            scales += 2 * channels
            weights += channels * narrowed
            cost += side * side * channels * narrowed
            channels, side = narrowed, side // 2
        # Unit i of the block reads channels + i growth maps.
        inputs = count * channels + growth * count * (count - 1) // 2
        sizes = inputs * 4 * growth + count * 9 * 4 * growth * growth if bc else 9 * inputs * growth
        weights += sizes
        cost += side * side * sizes
        scales += 2 * inputs + (2 * count * 4 * growth if bc else 0)
        channels += count * growth
    return weights + scales + 2 * channels + channels * classes + classes, cost + channels * classes


@pytest.mark.parametrize("name", NAMES)
def test_depth_counts_the_weight_layers(name: str) -> None:
    """The blocks that Table 1 prints for DenseNet-264 have one more: 1 + 2 (6 + 12 + 64 + 48) + 3 + 1 = 265."""
    weighted = [module for module in on_meta(name).modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert len(weighted) == CATALOG.get(name).depth + (name == "densenet264")


@pytest.mark.parametrize(("bottleneck", "compression", "stem"), [(False, 1, 16), (False, 0.5, 16), (True, 1, 16), (True, 0.5, 8)])
def test_bottleneck_and_compression_are_independent(bottleneck: bool, compression: float, stem: int) -> None:
    model = create_model("cifar_densenet", depth=16, growth=4, bottleneck=bottleneck, compression=compression)
    units = 2 if bottleneck else 4
    widths = [stem + 4 * units]
    for _ in range(2):
        widths.append(int(widths[-1] * compression) + 4 * units)
    assert model.feature_channels == tuple(widths)
    assert model.stem.conv.out_channels == stem
    assert all(hasattr(located.unit.branch, "conv2") == bottleneck for located in walk(model))
    maps = model.eval().features(torch.zeros(1, 3, 8, 8))
    assert [tuple(m.shape[1:]) for m in maps] == [(width, 8 >> i, 8 >> i) for i, width in enumerate(widths)]


def test_the_input_of_a_unit_begins_with_the_input_of_its_block_and_ends_with_the_unit_before() -> None:
    """x_l = [x_0, H_1, ..., H_{l-1}]: L (L + 1) / 2 connections in a block of L layers."""
    model = create_model("cifar_densenet", depth=19, growth=3).eval()
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    units = [located.unit for located in walk(model)][5:10]
    for unit in units:
        unit.branch.register_forward_pre_hook(lambda _m, i: inputs.append(i[0]))
        unit.branch.register_forward_hook(lambda _m, _i, o: outputs.append(o))
    model(torch.randn(1, 3, 8, 8))
    for place, x in enumerate(inputs):
        assert torch.equal(x, torch.cat([inputs[0], *outputs[:place]], dim=1))
    assert sum(1 + place for place in range(5)) == 5 * 6 / 2 == sum((x.shape[1] - inputs[0].shape[1]) // 3 + 1 for x in inputs)


def test_no_unit_of_a_dense_block_can_be_taken_out() -> None:
    for light in (False, True):
        located = list(walk(create_model("cifar_densenet", light=light, **TINY)))
        assert len(located) == 6
        assert all(isinstance(found.unit.merge, Concat) and not found.removable for found in located)


def test_dropout_follows_every_convolution_but_the_first() -> None:
    for model in (on_meta("densenet_bc_100_12", dropout=0.2), on_meta("densenet_40_12", dropout=0.2)):
        names = [type(module) for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Dropout))]
        assert names == [nn.Conv2d] + [nn.Conv2d, nn.Dropout] * ((len(names) - 1) // 2)
        assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.2}
    assert not any(isinstance(module, nn.Dropout) for module in on_meta("densenet121").modules())


# --------------------------------------------------------------------------------------------------------------- the peer


@pytest.mark.parametrize(
    ("depth", "training"),
    [(121, True), (121, False)]
    + [pytest.param(depth, True, marks=pytest.mark.slow) for depth in (169, 201, 161)]
    + [pytest.param(161, False, marks=pytest.mark.slow)],
)
def test_outputs_and_gradients_equal_torchvisions_with_the_same_weights(depth: int, training: bool) -> None:
    builder: Callable[..., nn.Module] = getattr(torchvision.models, f"densenet{depth}")
    with in_float64():
        ours, theirs = create_model(f"densenet{depth}"), builder(weights=None)
        x = torch.randn(2, 3, 70, 70)
    assert_equal_to_the_peer(ours, theirs, x, training)


# -------------------------------------------------------------------------------------------------------- memory-light mode


def pair(**options: object) -> tuple[Network, Network]:
    """The same network in both modes, with uneven scales and offsets."""
    with in_float64():
        ordinary, light = (create_model("cifar_densenet", light=mode, **options) for mode in (False, True))
        for tensor in ordinary.state_dict().values():
            if tensor.dim() == 1:
                tensor.uniform_(0.5, 1.5)
    light.load_state_dict(ordinary.state_dict())
    return ordinary, light


def one_step(model: Network, x: Tensor) -> tuple[Tensor, list[Tensor], dict[str, Tensor], list[int]]:
    """Output, gradients (the input's first), buffers, and how often the first normalisation and the convolutions of H ran."""
    runs = {"norm1": 0, "conv1": 0, "conv2": 0}
    for located in walk(model):
        for name in runs.keys() & dict(located.unit.branch.named_children()).keys():
            located.unit.branch.get_submodule(name).register_forward_hook(
                lambda _m, _i, _o, name=name: runs.update({name: runs[name] + 1})
            )
    x = x.clone().requires_grad_(True)
    torch.manual_seed(1)
    y = model.train()(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    gradients = [x.grad, *(parameter.grad for parameter in model.parameters())]
    assert all(gradient is not None for gradient in gradients)
    return y.detach(), gradients, {name: buffer.clone() for name, buffer in model.named_buffers()}, list(runs.values())


@pytest.mark.parametrize("every", [0, 1, 2])
@pytest.mark.parametrize("options", FORMS)
def test_the_light_mode_changes_neither_outputs_nor_gradients_nor_statistics(options: dict[str, object], every: int) -> None:
    ordinary, light = pair(**options)
    light.recompute_every = every
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    y, gradients, buffers, runs = one_step(ordinary, x)
    y2, gradients2, buffers2, runs2 = one_step(light, x)
    torch.testing.assert_close(y2, y, rtol=1e-12, atol=1e-12)
    for found, expected in zip(gradients2, gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10 * float(expected.abs().max()))
    assert buffers.keys() == buffers2.keys()
    assert all(torch.equal(buffers[name], buffers2[name]) for name in buffers), "statistics are updated once, not twice"
    units = len(list(walk(ordinary)))
    assert runs == [units, units, units if "bottleneck" in options else 0]
    if not every:
        assert runs2[0] == 2 * units, "the first normalisation runs again in the backward pass"
        assert runs2[2] == runs[2], "what follows the first convolution does not"


def test_both_modes_have_the_same_state_and_the_same_outputs_in_evaluation() -> None:
    ordinary, light = pair(**TINY)
    assert list(ordinary.state_dict()) == list(light.state_dict())
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for a, b in zip(ordinary.eval().features(x), light.eval().features(x)):
        assert torch.equal(a, b)
    with torch.no_grad():
        torch.testing.assert_close(light.train()(x), ordinary.train()(x), rtol=1e-12, atol=1e-12)


def test_in_evaluation_every_unit_of_the_light_mode_gives_one_map() -> None:
    ordinary, light = pair(**TINY)
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    maps: list[list[Tensor]] = [[], []]
    for model, kept in zip((ordinary.eval(), light.eval()), maps):
        for located in walk(model):
            located.unit.register_forward_hook(lambda _m, _i, out, kept=kept: kept.append(out))
        model(x)
    assert len(maps[0]) == 6
    assert all(torch.equal(a, b) for a, b in zip(*maps, strict=True))


def test_units_of_the_light_mode_can_be_switched_off() -> None:
    ordinary, light = pair(**TINY)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    outputs = []
    for model in (ordinary.eval(), light.eval()):
        with switched_off(list(walk(model))[3].unit):
            outputs.append(model(x))
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], ordinary(x))


def kept(model: Network, x: Tensor) -> int:
    """The bytes that a training step keeps for its backward pass, storages counted once."""
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = model.train()(x)
    assert y.requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize(("bottleneck", "step"), [(False, 3), (True, 6)])
def test_the_light_mode_keeps_bytes_in_proportion_to_the_length_of_the_blocks(bottleneck: bool, step: int) -> None:
    """The ordinary mode's grow with its square: unit i keeps its input of k0 + i k maps and what the first norm-ReLU gives."""
    x = torch.randn(4, 3, 16, 16)

    def growing(light: bool) -> list[int]:
        lengths = (8, 16, 24)
        networks = [
            create_model("cifar_densenet", depth=4 + step * n, growth=8, bottleneck=bottleneck, light=light) for n in lengths
        ]
        # The weights are kept too, and they are quadratic in both modes.
        return [kept(network, x) - 4 * num_parameters(network) for network in networks]

    ordinary, light = growing(False), growing(True)
    assert light[1] < 0.6 * ordinary[1]
    assert light[2] < 0.5 * ordinary[2]
    assert ordinary[2] - ordinary[1] > 1.4 * (ordinary[1] - ordinary[0])
    assert light[2] - light[1] < 1.15 * (light[1] - light[0])


@pytest.mark.parametrize("light", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_both_modes_are_captured_in_one_graph_that_computes_the_same(light: bool, training: bool) -> None:
    model = create_model("cifar_densenet", light=light, **TINY).train(training)
    twin, x = copy.deepcopy(model), torch.randn(4, 3, 8, 8)
    y, graphs = captured(model, x)
    assert graphs == 1
    torch.testing.assert_close(y, twin(x), rtol=1e-6, atol=1e-6)
    for own, other in zip(model.state_dict().values(), twin.state_dict().values()):
        torch.testing.assert_close(own, other)


# ---------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("kind", ["group", "none"])
def test_without_batch_normalization_samples_do_not_touch_each_other_in_training(kind: str) -> None:
    for light in (False, True):
        model = create_model("cifar_densenet", normalization=kind, light=light, **TINY).double().train()
        x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
        torch.testing.assert_close(model(x), torch.cat([model(one[None]) for one in x]))


@pytest.mark.parametrize("name", ["densenet121", "densenet_bc_100_12"])
def test_the_least_side_leaves_one_position(name: str) -> None:
    least = CATALOG.get(name).least_side
    model = on_meta(name).eval()
    assert model.features(torch.zeros(1, 3, least, least, device="meta"))[-1].shape[2:] == (1, 1)
    with pytest.raises(RuntimeError, match="too small"):
        model(torch.zeros(1, 3, least - 1, least - 1, device="meta"))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cifar_densenet", {"depth": 41}, "3n + 4 layers, not 41; nearest: 40 and 43"),
        ("cifar_densenet", {"depth": 43, "bottleneck": True}, "6n + 4 layers, not 43; nearest: 40 and 46"),
        ("cifar_densenet", {"depth": 4}, "nearest: 7 and 10"),
        ("imagenet_densenet", {"depth": 100}, "121, 169, 201, 264, 161"),
        ("densenet_40_12", {"growth": 0}, "growth"),
        ("densenet_40_12", {"compression": 0.0}, "compression"),
        ("densenet_40_12", {"compression": 1.5}, "compression"),
        ("densenet_40_12", {"compression": 0.001}, "compression"),
        ("densenet121", {"dropout": 1.0}, "probability"),
        ("densenet121", {"stem": "tiny"}, "'imagenet', 'small'"),
        ("densenet121", {"normalization": "layer"}, "'batch', 'group', 'none'"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_can(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError) as refused:
        create_model(name, **options)
    assert words in str(refused.value)
