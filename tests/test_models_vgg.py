"""VGG against torchvision with the same weights, and against Table 1 and Table 2 of the paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from peers import assert_equal_to_the_peer, in_float64
from torch import nn

from residua.cost import multiply_adds, num_parameters
from residua.errors import RequestError
from residua.layers import he_normal_
from residua.models import CATALOG, create_model, list_models
from residua.network import Network

# Ours, torchvision's, the options that make ours theirs: none.
PEERS: list[tuple[str, str, dict[str, Any]]] = [
    ("vgg11", "vgg11", {}),
    ("vgg13", "vgg13", {}),
    ("vgg16", "vgg16", {}),
    ("vgg19", "vgg19", {}),
    ("vgg11_bn", "vgg11_bn", {}),
    ("vgg13_bn", "vgg13_bn", {}),
    ("vgg16_bn", "vgg16_bn", {}),
    ("vgg19_bn", "vgg19_bn", {}),
]
# Table 2 of the paper in millions, and the exact counts that follow from Table 1.
TABLE_2 = {"vgg11": 133, "vgg11_lrn": 133, "vgg13": 133, "vgg16_c": 134, "vgg16": 138, "vgg19": 144}
EXACT = {"vgg11": 132863336, "vgg13": 133047848, "vgg16_c": 133638952, "vgg16": 138357544, "vgg19": 143667240}
# Table 1: (kernel, channels) of each layer, "M" a pooling.
GROUPS = {
    "vgg11": "3-64 M 3-128 M 3-256 3-256 M 3-512 3-512 M 3-512 3-512 M",
    "vgg13": "3-64 3-64 M 3-128 3-128 M 3-256 3-256 M 3-512 3-512 M 3-512 3-512 M",
    "vgg16_c": "3-64 3-64 M 3-128 3-128 M 3-256 3-256 1-256 M 3-512 3-512 1-512 M 3-512 3-512 1-512 M",
    "vgg16": "3-64 3-64 M 3-128 3-128 M 3-256 3-256 3-256 M 3-512 3-512 3-512 M 3-512 3-512 3-512 M",
    "vgg19": "3-64 3-64 M 3-128 3-128 M 3-256 3-256 3-256 3-256 M 3-512 3-512 3-512 3-512 M 3-512 3-512 3-512 3-512 M",
}


def on_meta(name: str, **options: object) -> Network:
    with torch.device("meta"):
        return create_model(name, **options)


def closed_form(name: str) -> tuple[int, int]:
    """(parameters, multiply-adds) as sums of products of dimensions."""
    scales = 2 if name.endswith("_bn") else 0
    channels, side, parameters, cost = 3, 224, 0, 0
    for word in GROUPS[name.removesuffix("_bn").removesuffix("_lrn")].split():
        if word == "M":
            side //= 2
            continue
        kernel, width = map(int, word.split("-"))
        parameters += kernel * kernel * channels * width + width + scales * width
        cost += side * side * kernel * kernel * channels * width
        channels = width
    assert (channels, side) == (512, 7)
    for inputs, outputs in ((512 * 7 * 7, 4096), (4096, 4096), (4096, 1000)):
        parameters += inputs * outputs + outputs
        cost += inputs * outputs
    return parameters, cost


@pytest.mark.parametrize("name", list_models("vgg*"))
def test_the_declared_facts_follow_from_products_of_dimensions(name: str) -> None:
    entry = CATALOG.get(name)
    assert (entry.parameters, entry.multiply_adds) == closed_form(name)
    network = on_meta(name)
    assert (num_parameters(network), multiply_adds(network, (3, 224, 224))) == closed_form(name)
    assert entry.depth == sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in network.modules())


@pytest.mark.parametrize(("name", "millions"), TABLE_2.items())
def test_the_networks_have_the_parameters_of_table_2(name: str, millions: int) -> None:
    entry = CATALOG.get(name)
    assert round(entry.parameters / 1e6) == millions
    assert entry.parameters == EXACT.get(name, entry.parameters)


@pytest.mark.parametrize(("ours", "peer", "options"), PEERS)
def test_shapes_parameters_and_cost_are_torchvisions(ours: str, peer: str, options: dict[str, Any]) -> None:
    network = on_meta(ours, **options)
    with torch.device("meta"):
        theirs = torchvision.models.get_model(peer)
    assert [p.shape for p in network.parameters()] == [p.shape for p in theirs.parameters()]
    assert multiply_adds(network, (3, 224, 224)) == multiply_adds(theirs, (3, 224, 224))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("ours", "peer", "options"), [row if row[0] == "vgg11_bn" else pytest.param(*row, marks=pytest.mark.slow) for row in PEERS]
)
def test_outputs_and_gradients_equal_torchvisions_with_the_same_weights(
    ours: str, peer: str, options: dict[str, Any], training: bool
) -> None:
    """With fully connected layers of 24 instead of 4096, which would take gigabytes and prove no more. At 64 pixels both repeat
    the last map of 2 x 2 to 7 x 7."""
    with in_float64():
        with torch.device("meta"):
            network = create_model(ours, dropout=0.0, num_classes=10, **options)
            theirs = torchvision.models.get_model(peer, dropout=0.0, num_classes=10, init_weights=False)
        for head, (first, second, last) in ((network.head, ("linear1", "linear2", "classifier")), (theirs.classifier, "036")):
            setattr(head, first, nn.Linear(512 * 7 * 7, 24))
            setattr(head, second, nn.Linear(24, 24))
            setattr(head, last, nn.Linear(24, 10))
        fill(network)
        theirs.to_empty(device="cpu")
    assert_equal_to_the_peer(network, theirs, torch.randn(2, 3, 64, 64, dtype=torch.float64), training)


def fill(network: Network) -> None:
    """Draws the weights of a network that was built on the meta device."""
    network.to_empty(device="cpu")
    he_normal_(network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()


def test_the_three_3x3_layers_of_section_2_3_have_81_percent_fewer_weights_than_one_7x7() -> None:
    group = on_meta("vgg16").stages[1]
    weights = sum(p.numel() for p in group.parameters() if p.ndim == 4)
    assert weights - 128 * 9 * 256 == 2 * 9 * 256 * 256
    assert round(100 * (49 / 27 - 1)) == 81


def test_local_response_normalisation_is_that_of_krizhevsky() -> None:
    """b_i = a_i / (2 + 1e-4 sum of a_j^2 over the five maps around i)^0.75 (Krizhevsky et al. 2012, section 3.3)."""
    (layer,) = [m for m in on_meta("vgg11_lrn").modules() if isinstance(m, nn.LocalResponseNorm)]
    a = 30 * torch.randn(1, 9, 2, 2, dtype=torch.float64)
    sums = torch.stack([a[:, max(0, i - 2) : i + 3].square().sum(1) for i in range(9)], 1)
    torch.testing.assert_close(layer(a), a / (2 + 1e-4 * sums) ** 0.75)


def test_the_linear_head_makes_a_network_for_images_of_32_pixels() -> None:
    network = create_model("vgg16_bn", head="linear", num_classes=10)
    assert num_parameters(network) == 14_714_688 + 2 * 4_224 + 512 * 10 + 10
    assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    network.replace_head(7)
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"configuration": "F"}, "'A', 'A-LRN', 'B', 'C', 'D', 'E'"),
        ({"configuration": "A", "head": "conv"}, "'fully-connected', 'linear'"),
        ({"configuration": "A", "normalization": "lrn"}, "'none', 'batch', 'group'"),
        ({"configuration": "A", "dropout": 1.0}, "probability"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_can(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        create_model("vgg", **options)


def test_a_narrower_network_has_its_share_of_the_channels() -> None:
    with torch.device("meta"):
        model = create_model("vgg16", width=0.25, head="linear", num_classes=10)
    widths = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert widths == [16, 16, 32, 32, 64, 64, 64, *[128] * 6]
    assert model.feature_channels == (32, 64, 128, 128)
    with pytest.raises(RequestError, match="whole number of channels"):
        create_model("vgg16", width=0.3)
