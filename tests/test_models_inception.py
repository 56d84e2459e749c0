"""BN-Inception, Inception-v3 and Inception-v4: products of dimensions, torchvision and timm with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from peers import assert_equal_to_the_peer, in_float64
from products import Layer, Products, longest_path
from torch import nn
from torch.nn import functional as F

from residua.cost import multiply_adds, num_parameters
from residua.errors import RequestError
from residua.models import CATALOG, create_model
from residua.network import Network

# Ours, the peer's library and name, the options that make ours theirs.
PEERS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("inception_v3", "torchvision", "inception_v3", {"variant": "torchvision"}),
    ("inception_v3", "timm", "inception_v3", {"variant": "torchvision", "auxiliary": False}),
    ("inception_v4", "timm", "inception_v4", {}),
]


def on_meta(name: str, **options: object) -> Network:
    with torch.device("meta"):
        return create_model(name, **options)


def peer(library: str, name: str, **options: Any) -> nn.Module:
    if library == "timm":
        return pytest.importorskip("timm").create_model(name, **options)
    return torchvision.models.get_model(name, dropout=0.0, init_weights=False, **options)


# ------------------------------------------------------------------------------------------------ products of dimensions


def bn_inception() -> Products:
    """Figure 5 of Ioffe and Szegedy 2015: #1x1, #3x3 reduce, #3x3, double #3x3 reduce, double #3x3, pool proj."""
    sums = Products(3, 224)
    sums.weights(49, 1, 24, 112)  # the separable layer: 8 kernels for each of the three channels, then 1x1
    sums.channels, sums.side = 24, 112
    sums.chain((1, 64))
    sums.side = 56
    sums.chain((1, 64), (9, 192))
    sums.side = 28

    def module(one: int, reduce: int, three: int, first: int, double: int, pool: int) -> None:
        sums.module([(1, one)], [(1, reduce), (9, three)], [(1, first), (9, double), (9, double)], [(1, pool)])

    def reduction(reduce: int, three: int, first: int, double: int, after: int) -> None:
        sums.module([(1, reduce), (9, three, "/2")], [(1, first), (9, double), (9, double, "/2")], passed=True, after=after)

    module(64, 64, 64, 64, 96, 32)
    module(64, 64, 96, 64, 96, 64)
    reduction(128, 160, 64, 96, 14)
    module(224, 64, 96, 96, 128, 128)
    module(192, 96, 128, 96, 128, 128)
    module(160, 128, 160, 128, 160, 96)
    module(96, 128, 192, 160, 192, 96)
    reduction(128, 192, 192, 256, 7)
    module(352, 192, 320, 160, 224, 128)
    module(352, 192, 320, 192, 224, 128)
    sums.linear(1024, 1000)
    return sums


def inception_v3() -> Products:
    """Szegedy et al. 2015, as the authors released it."""
    sums = Products(3, 299)
    sums.chain((9, 32, "/2"), after=149)
    sums.side = 147
    sums.chain((9, 32), (9, 64))
    sums.side = 73
    sums.chain((1, 80))
    sums.side = 71
    sums.chain((9, 192))
    sums.side = 35
    for pool in (32, 64, 64):
        sums.module([(1, 64)], [(1, 48), (25, 64)], [(1, 64), (9, 96), (9, 96)], [(1, pool)])
    sums.module([(9, 384, "/2")], [(1, 64), (9, 96), (9, 96, "/2")], passed=True, after=17)
    for width in (128, 160, 160, 192):
        wide: list[Layer] = [(1, width), (7, width), (7, width), (7, width), (7, 192)]
        sums.module([(1, 192)], [(1, width), (7, width), (7, 192)], wide, [(1, 192)])
    assert (sums.channels, sums.side) == (768, 17)
    sums.module([(1, 192), (9, 320, "/2")], [(1, 192), (7, 192), (7, 192), (9, 192, "/2")], passed=True, after=8)
    for _ in range(2):
        # A layer of 384 maps with kernel 1x3 and one with 3x1, both on the same 384 maps.
        sums.module([(1, 320)], [(1, 384), (3, 768)], [(1, 448), (9, 384), (3, 768)], [(1, 192)])
    assert (sums.channels, sums.side) == (2048, 8)
    sums.linear(2048, 1000)
    sums.parameters += 768 * 128 + 2 * 128 + 25 * 128 * 768 + 2 * 768
    sums.linear(768, 1000, in_training=True)
    return sums


def stem_v4(sums: Products) -> None:
    """Figure 3 of Szegedy et al. 2016."""
    sums.chain((9, 32, "/2"), after=149)
    sums.side = 147
    sums.chain((9, 32), (9, 64))
    sums.module([(9, 96, "/2")], passed=True, after=73)
    # The last layer of each tower is without padding: 73 to 71.
    sums.weights(9, 64, 96, 71)
    sums.weights(9, 64, 96, 71)
    sums.parameters += 4 * 96
    sums.module([(1, 64)], [(1, 64), (7, 64), (7, 64)])
    sums.channels, sums.side = 192, 71
    sums.module([(9, 192, "/2")], passed=True, after=35)


def inception_v4() -> Products:
    """Figures 3 to 9 of Szegedy et al. 2016."""
    sums = Products(3, 299)
    stem_v4(sums)
    for _ in range(4):
        sums.module([(1, 96)], [(1, 96)], [(1, 64), (9, 96)], [(1, 64), (9, 96), (9, 96)])
    sums.module([(9, 384, "/2")], [(1, 192), (9, 224), (9, 256, "/2")], passed=True, after=17)
    for _ in range(7):
        wide: list[Layer] = [(1, 192), (7, 192), (7, 224), (7, 224), (7, 256)]
        sums.module([(1, 384)], [(1, 192), (7, 224), (7, 256)], wide, [(1, 128)])
    assert (sums.channels, sums.side) == (1024, 17)
    sums.module([(1, 192), (9, 192, "/2")], [(1, 256), (7, 256), (7, 320), (9, 320, "/2")], passed=True, after=8)
    for _ in range(3):
        sums.module([(1, 256)], [(1, 384), (3, 512)], [(1, 384), (3, 448), (3, 512), (3, 512)], [(1, 256)])
    assert (sums.channels, sums.side) == (1536, 8)
    sums.linear(1536, 1000)
    return sums


@pytest.mark.parametrize("closed_form", [bn_inception, inception_v3, inception_v4], ids=lambda form: form.__name__)
def test_the_declared_facts_follow_from_products_of_dimensions(closed_form: Any) -> None:
    entry, network = CATALOG.get(closed_form.__name__), on_meta(closed_form.__name__)
    assert (entry.parameters, entry.multiply_adds) == closed_form().sums
    assert (num_parameters(network), multiply_adds(network, entry.input_shape)) == closed_form().sums


@pytest.mark.parametrize("name", ["bn_inception", "inception_v3", "inception_v4"])
def test_depth_counts_the_longest_path_with_a_separable_layer_as_one(name: str) -> None:
    network = on_meta(name)
    separable = hasattr(network.stem, "first") and hasattr(network.stem.first, "depthwise")
    assert longest_path(network) - separable == CATALOG.get(name).depth


def test_the_counts_that_are_known() -> None:
    """25 million parameters at most and 5 billion multiply-adds in the abstract of Szegedy et al. 2015 (without the auxiliary
    head); 42.7 million for Inception-v4. BN-Inception is said to have 13.6 million (Ioffe and Szegedy 2015, section 4.2),
    which figure 5 does not give."""
    assert num_parameters(on_meta("inception_v3", auxiliary=False)) == 23_834_568
    assert CATALOG.get("inception_v3").parameters == 27_161_264
    assert multiply_adds(on_meta("inception_v3"), (3, 299, 299)) / 1e9 == pytest.approx(5, rel=0.15)
    assert round(CATALOG.get("inception_v4").parameters / 1e6, 1) == 42.7
    assert round(CATALOG.get("bn_inception").parameters / 1e6, 1) == 11.2


# ------------------------------------------------------------------------------------------------------------- the peers


@pytest.mark.parametrize(("ours", "library", "name", "options"), PEERS)
def test_parameters_and_cost_are_the_peers(ours: str, library: str, name: str, options: dict[str, Any]) -> None:
    network = on_meta(ours, **options)
    with torch.device("meta"):
        theirs = peer(library, name)
    assert num_parameters(network) == num_parameters(theirs)
    assert multiply_adds(network, (3, 299, 299)) == multiply_adds(theirs, (3, 299, 299))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("ours", "library", "name", "options"),
    [
        ("inception_v3", "torchvision", "inception_v3", {"variant": "torchvision", "auxiliary": False}),
        pytest.param(*PEERS[1], marks=pytest.mark.slow),
        pytest.param(*PEERS[2], marks=pytest.mark.slow),
    ],
)
def test_outputs_losses_and_gradients_equal_the_peers_with_the_same_weights(
    ours: str, library: str, name: str, options: dict[str, Any], training: bool
) -> None:
    """107 pixels end in 2 x 2 positions."""
    with in_float64():
        network = create_model(ours, dropout=0.0, num_classes=10, **options)
        without = {"aux_logits": False} if library == "torchvision" else {}
        theirs = peer(library, name, num_classes=10, **without)
    assert_equal_to_the_peer(network, theirs, torch.randn(3, 3, 107, 107, dtype=torch.float64), training)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_the_auxiliary_head_of_inception_v3_equals_torchvisions(training: bool) -> None:
    """At 299 pixels, the only size for which torchvision's has one position behind its 5x5 layer and no error."""
    with in_float64():
        network = create_model("inception_v3", variant="torchvision", dropout=0.0, num_classes=10)
        theirs = peer("torchvision", "inception_v3", num_classes=10)
    x = torch.randn(4, 3, 299, 299, dtype=torch.float64)
    assert_equal_to_the_peer(network, theirs, x, training, order=lambda name: name.startswith("AuxLogits"))


def test_the_auxiliary_head_on_17_x_17_maps_is_torchvisions() -> None:
    with in_float64():
        (auxiliary,) = create_model("inception_v3", num_classes=10).auxiliaries
        theirs = torchvision.models.inception.InceptionAux(768, 10)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), auxiliary.head.state_dict().values())))
    x = torch.randn(3, 768, 17, 17, dtype=torch.float64)
    torch.testing.assert_close(auxiliary(x), theirs(x), rtol=1e-9, atol=1e-9)
    assert (auxiliary.stage, auxiliary.unit, auxiliary.weight) == (1, 4, 0.4)


# ----------------------------------------------------------------------------------------------------------- what varies


def test_an_average_at_the_border_counts_the_padding_in_torchvisions_form_only() -> None:
    pools = {
        variant: next(m for m in on_meta("inception_v3", variant=variant).stages.modules() if isinstance(m, nn.AvgPool2d))
        for variant in ("paper", "torchvision")
    }
    ones = torch.ones(1, 1, 3, 3)
    assert torch.equal(pools["paper"](ones), ones)
    assert float(pools["torchvision"](ones)[0, 0, 0, 0]) == pytest.approx(4 / 9)


def test_the_separable_layer_of_bn_inception_has_eight_kernels_a_channel() -> None:
    with in_float64():
        first = create_model("bn_inception").stem.first
    x = torch.randn(2, 3, 15, 15, dtype=torch.float64)
    maps = [F.conv2d(x[:, c : c + 1], first.depthwise.weight[8 * c : 8 * c + 8], stride=2, padding=3) for c in range(3)]
    expected = torch.einsum("oc,nchw->nohw", first.pointwise.weight[:, :, 0, 0], torch.cat(maps, 1))
    torch.testing.assert_close(first.pointwise(first.depthwise(x)), expected)
    plain, separable = on_meta("bn_inception", first="plain"), on_meta("bn_inception")
    assert num_parameters(plain) - num_parameters(separable) == 49 * 3 * 64 - (49 * 24 + 24 * 64)


@pytest.mark.parametrize("name", ["inception_v3", "inception_v4"])
def test_images_have_at_least_75_pixels(name: str) -> None:
    network = create_model(name, num_classes=3, in_channels=1).eval()
    least = CATALOG.get(name).least_side
    assert network(torch.zeros(1, 1, least, least)).shape == (1, 3)
    with pytest.raises(RuntimeError, match=r"too small|Kernel size"):
        network(torch.zeros(1, 1, least - 1, least - 1))


@pytest.mark.parametrize("name", ["bn_inception", "inception_v3", "inception_v4"])
def test_the_stem_for_small_images_has_the_same_weights_and_keeps_the_size(name: str) -> None:
    large, small = on_meta(name), create_model(name, stem="small", num_classes=10).eval()
    shapes = [[p.shape for p in network.stem.parameters()] for network in (large, small)]
    assert shapes[0] == shapes[1]
    with torch.no_grad():
        maps = small.features(torch.randn(1, 3, 32, 32))
    assert maps[0].shape[-2:] == (32, 32)
    assert small.feature_reductions == (1, 2, 4)
    assert small.feature_channels == large.feature_channels
    assert small(torch.zeros(1, 3, 15, 15)).shape == (1, 10)


def test_the_auxiliary_head_takes_the_smallest_images_too() -> None:
    network = create_model("inception_v3", num_classes=3, normalization="group").train()
    assert [tuple(y.shape) for y in network(torch.zeros(2, 3, 75, 75))] == [(2, 3)] * 2


@pytest.mark.parametrize("name", ["bn_inception", "inception_v3", "inception_v4"])
def test_normalisations_have_an_eps_of_a_thousandth(name: str) -> None:
    norms = [m for m in on_meta(name).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {module.eps for module in norms} == {1e-3}


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("inception_v3", {"variant": "timm"}, "'paper', 'torchvision'"),
        ("bn_inception", {"first": "small"}, "'separable', 'plain'"),
        ("inception_v4", {"stem": "large"}, "'imagenet', 'small'"),
        ("inception_v4", {"normalization": "layer"}, "'batch', 'group', 'none'"),
        ("inception_v4", {"dropout": 2}, "probability"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_can(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        create_model(name, **options)
