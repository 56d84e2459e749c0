"""Inception-ResNet v1 and v2: products of dimensions, timm with the same weights, residual scaling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peers import assert_equal_to_the_peer, in_float64
from products import Layer, Products, longest_path
from test_models_inception import stem_v4
from torch import nn
from torch.nn import functional as F

from residua.cost import multiply_adds, num_parameters
from residua.errors import RequestError
from residua.layers import Scale
from residua.models import CATALOG, create_model
from residua.network import Network
from residua.unit import walk

# Ours, timm's, the options that make ours theirs.
PEERS: list[tuple[str, str, dict[str, Any]]] = [
    ("inception_resnet_v2", "inception_resnet_v2", {"variant": "tensorflow"}),
]


def on_meta(name: str, **options: object) -> Network:
    with torch.device("meta"):
        return create_model(name, **options)


def inception_resnet_v1() -> Products:
    """Figures 10 to 15 of Szegedy et al. 2016, and its Table 1 for the first reduction."""
    sums = Products(3, 299)
    sums.chain((9, 32, "/2"), after=149)
    sums.side = 147
    sums.chain((9, 32), (9, 64))
    sums.side = 73
    sums.chain((1, 80))
    sums.side = 71
    sums.chain((9, 192))
    sums.chain((9, 256, "/2"), after=35)
    for _ in range(5):
        sums.unit([(1, 32)], [(1, 32), (9, 32)], [(1, 32), (9, 32), (9, 32)])
    sums.module([(9, 384, "/2")], [(1, 192), (9, 192), (9, 256, "/2")], passed=True, after=17)
    for _ in range(10):
        sums.unit([(1, 128)], [(1, 128), (7, 128), (7, 128)])
    long: list[Layer] = [(1, 256), (9, 256), (9, 256, "/2")]
    sums.module([(1, 256), (9, 384, "/2")], [(1, 256), (9, 256, "/2")], long, passed=True, after=8)
    for _ in range(5):
        sums.unit([(1, 192)], [(1, 192), (3, 192), (3, 192)])
    assert (sums.channels, sums.side) == (1792, 8)
    sums.linear(1792, 1000)
    return sums


def inception_resnet_v2() -> Products:
    """Figures 3 and 15 to 19 of Szegedy et al. 2016, and its Table 1 for the first reduction."""
    sums = Products(3, 299)
    stem_v4(sums)
    for _ in range(5):
        sums.unit([(1, 32)], [(1, 32), (9, 32)], [(1, 32), (9, 48), (9, 64)])
    sums.module([(9, 384, "/2")], [(1, 256), (9, 256), (9, 384, "/2")], passed=True, after=17)
    assert sums.channels == 1152
    for _ in range(10):
        sums.unit([(1, 192)], [(1, 128), (7, 160), (7, 192)])
    long: list[Layer] = [(1, 256), (9, 288), (9, 320, "/2")]
    sums.module([(1, 256), (9, 384, "/2")], [(1, 256), (9, 288, "/2")], long, passed=True, after=8)
    assert (sums.channels, sums.side) == (2144, 8)
    for _ in range(5):
        sums.unit([(1, 192)], [(1, 192), (3, 224), (3, 256)])
    sums.linear(2144, 1000)
    return sums


@pytest.mark.parametrize("closed_form", [inception_resnet_v1, inception_resnet_v2], ids=lambda form: form.__name__)
def test_the_declared_facts_follow_from_products_of_dimensions(closed_form: Any) -> None:
    entry, network = CATALOG.get(closed_form.__name__), on_meta(closed_form.__name__)
    assert (entry.parameters, entry.multiply_adds) == closed_form().sums
    assert (num_parameters(network), multiply_adds(network, entry.input_shape)) == closed_form().sums
    assert longest_path(network) == entry.depth
    assert len(list(walk(network))) == 20


def test_grids_are_those_of_figure_15() -> None:
    for name, widths in (("inception_resnet_v1", (256, 896, 1792)), ("inception_resnet_v2", (384, 1152, 2144))):
        maps = on_meta(name).eval().features(torch.empty(1, 3, 299, 299, device="meta"))
        assert [tuple(found.shape[1:]) for found in maps] == [(w, s, s) for w, s in zip(widths, (35, 17, 8))]


@pytest.mark.parametrize(("ours", "peer", "options"), PEERS)
def test_parameters_and_cost_are_timms(ours: str, peer: str, options: dict[str, Any]) -> None:
    network = on_meta(ours, **options)
    with torch.device("meta"):
        theirs = pytest.importorskip("timm").create_model(peer)
    assert num_parameters(network) == num_parameters(theirs)
    assert round(num_parameters(network) / 1e6, 1) == 55.8
    assert multiply_adds(network, (3, 299, 299)) == multiply_adds(theirs, (3, 299, 299))


@pytest.mark.parametrize("training", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.parametrize(("ours", "peer", "options"), PEERS)
def test_outputs_losses_and_gradients_equal_timms_with_the_same_weights(
    ours: str, peer: str, options: dict[str, Any], training: bool
) -> None:
    """107 pixels end in 2 x 2 positions."""
    with in_float64():
        network = create_model(ours, dropout=0.0, num_classes=10, **options)
        theirs = pytest.importorskip("timm").create_model(peer, num_classes=10)
    assert_equal_to_the_peer(network, theirs, torch.randn(3, 3, 107, 107, dtype=torch.float64), training)


@pytest.mark.parametrize("name", ["inception_resnet_v1", "inception_resnet_v2"])
def test_with_a_scale_of_zero_each_unit_is_the_activation_of_its_shortcut(name: str) -> None:
    network = create_model(name, scale=0).eval()
    inputs: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
    for located in walk(network):
        located.unit.register_forward_hook(lambda unit, args, y: inputs.update({unit: (args[0], y)}))
    with torch.no_grad():
        network(torch.randn(2, 3, 107, 107))
    assert len(inputs) == 20
    for x, y in inputs.values():
        assert torch.equal(y, F.relu(x))
        assert bool(x.any())


def test_a_unit_is_x_plus_s_times_the_expansion_of_its_towers() -> None:
    with in_float64():
        network = create_model("inception_resnet_v2", scale=[0.3, 0.2, 0.1], normalization="none").eval()
    for stage, scale in zip(network.stages, (0.3, 0.2, 0.1)):
        unit = stage[-1]
        convs = [module for module in unit.modules() if isinstance(module, nn.Conv2d)]
        x = torch.randn(2, convs[0].in_channels, 5, 5, dtype=torch.float64)
        signals, towers = [x], []
        for layer in convs[:-1]:
            if layer.in_channels == x.shape[1]:
                towers.append(signals[-1])
                signals.append(x)
            pad = tuple(side // 2 for side in layer.kernel_size)
            signals.append(F.relu(F.conv2d(signals[-1], layer.weight, layer.bias, padding=pad)))
        joined = torch.cat([*towers[1:], signals[-1]], 1)
        expansion = F.conv2d(joined, convs[-1].weight, convs[-1].bias)
        torch.testing.assert_close(unit(x), F.relu(x + scale * expansion), rtol=1e-12, atol=1e-12)


def test_one_number_scales_all_stages_and_the_default_is_that_of_the_release() -> None:
    def factors(**options: object) -> list[float]:
        network = create_model("inception_resnet_v1", **options)
        return [round(float(m.weight), 6) for m in network.modules() if isinstance(m, Scale)]

    assert factors() == [0.17] * 5 + [0.1] * 10 + [0.2] * 5
    assert factors(scale=0.3) == [0.3] * 20


def test_the_last_unit_of_the_release_has_neither_scaling_nor_activation() -> None:
    network = on_meta("inception_resnet_v2", variant="tensorflow")
    units = [located.unit for located in walk(network)]
    assert len(units) == 40
    bare = [unit for unit in units if isinstance(unit.post, nn.Identity)]
    assert bare == [units[-1]]
    assert not any(isinstance(module, Scale) for module in bare[0].modules())


def test_the_expansion_has_no_normalisation() -> None:
    for located in walk(on_meta("inception_resnet_v1")):
        assert isinstance(located.unit.branch.expand, nn.Conv2d)
        assert located.unit.branch.expand.bias is not None


def test_a_wide_signal_grows_from_unit_to_unit_without_scaling_and_hardly_with_it() -> None:
    """Section 3.3: without scaling the sums grow; here the variance over the 10 units of the second stage at the start."""

    def growth(scale: float) -> float:
        torch.manual_seed(0)
        network = create_model("inception_resnet_v1", scale=scale).train()
        x = torch.randn(4, 896, 5, 5).relu()
        with torch.no_grad():
            return float(network.stages[1][1:](x).var() / x.var())

    assert growth(0.1) < 1.5
    assert growth(1.0) > 5


@pytest.mark.parametrize("name", ["inception_resnet_v1", "inception_resnet_v2"])
def test_the_stem_for_small_images_has_the_same_weights_and_keeps_the_size(name: str) -> None:
    large, small = on_meta(name), on_meta(name, stem="small").eval()
    assert [p.shape for p in small.parameters()] == [p.shape for p in large.parameters()]
    maps = small.features(torch.empty(1, 3, 32, 32, device="meta"))
    assert [found.shape[-1] for found in maps] == [32, 15, 7]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("inception_resnet", {"version": "v3"}, "'v1' with 'paper', 'v2' with 'paper', 'v2' with 'tensorflow'"),
        ("inception_resnet_v1", {"variant": "tensorflow"}, "'v2' with 'tensorflow'"),
        ("inception_resnet_v2", {"scale": [0.1, 0.2]}, "three stages"),
        ("inception_resnet_v2", {"stem": "large"}, "'imagenet', 'small'"),
        ("inception_resnet_v2", {"normalization": "layer"}, "'batch', 'group', 'none'"),
        ("inception_resnet_v2", {"dropout": -1}, "probability"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_can(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        create_model(name, **options)


@pytest.mark.parametrize("name", ["inception_resnet_v1", "inception_resnet_v2", "inception_v3", "inception_v4"])
def test_a_narrower_network_has_its_share_of_the_maps(name: str) -> None:
    """Every width of the figures is a multiple of 16, so that half of the width halves all maps exactly."""
    with torch.device("meta"):
        whole, half = (create_model(name, width=width, num_classes=10) for width in (1, 0.5))
    pairs = [
        (a.out_channels, b.out_channels)
        for a, b in zip(whole.modules(), half.modules())
        if isinstance(a, nn.Conv2d) and isinstance(b, nn.Conv2d)
    ]
    assert len(pairs) > 60
    assert all(a == 2 * b for a, b in pairs)
    with pytest.raises(RequestError, match="width is a factor"):
        create_model(name, width=0)
