"""AlexNet in the paper's two-tower form, and its torchvision form against torchvision with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from peers import assert_equal_to_the_peer, in_float64
from torch import Tensor, nn
from torch.nn import functional as F

from residua.cost import layer_table, multiply_adds, num_parameters
from residua.errors import RequestError
from residua.models import CATALOG, create_model
from residua.network import Network

# Ours, torchvision's, the options that make ours theirs.
PEERS: list[tuple[str, str, dict[str, Any]]] = [("alexnet", "alexnet", {"variant": "torchvision"})]
# Section 3.5: maps, positions, and the inputs of one output (kernel x kernel x maps it sees) of each convolution.
CONVOLUTIONS = [
    (96, 55 * 55, 11 * 11 * 3),
    (256, 27 * 27, 5 * 5 * 48),
    (384, 13 * 13, 3 * 3 * 256),
    (384, 13 * 13, 3 * 3 * 192),
    (256, 13 * 13, 3 * 3 * 192),
]
FULLY_CONNECTED = [(4096, 6 * 6 * 256), (4096, 4096), (1000, 4096)]


def on_meta(name: str = "alexnet", **options: object) -> Network:
    with torch.device("meta"):
        return create_model(name, **options)


def test_the_declared_facts_follow_from_products_of_dimensions() -> None:
    layers = CONVOLUTIONS + [(width, 1, inputs) for width, inputs in FULLY_CONNECTED]
    parameters = sum(width * inputs + width for width, _, inputs in layers)
    cost = sum(width * positions * inputs for width, positions, inputs in layers)
    entry, network = CATALOG.get("alexnet"), on_meta()
    assert (entry.parameters, entry.multiply_adds, entry.depth) == (parameters, cost, len(layers))
    assert (num_parameters(network), multiply_adds(network, (3, 224, 224))) == (parameters, cost)


def test_the_sizes_are_the_60_million_parameters_and_650_thousand_neurons_of_the_abstract() -> None:
    """Section 3.5 gives the neurons of each layer: 253,440 (in figure 2; it has 290,400 at 55 x 55), 186,624, 64,896, 64,896,
    43,264, 4096, 4096, 1000."""
    assert round(CATALOG.get("alexnet").parameters / 1e6) == 61
    table = [row.output_shape for row in layer_table(on_meta(), (3, 224, 224)) if row.kind in ("Conv2d", "Linear")]
    neurons = [torch.Size(shape).numel() for shape in table]
    assert neurons == [290_400, 186_624, 64_896, 64_896, 43_264, 4096, 4096, 1000]
    assert sum(neurons) == pytest.approx(650_000, rel=0.02)


@pytest.mark.parametrize(("ours", "peer", "options"), PEERS)
def test_shapes_parameters_and_cost_are_torchvisions(ours: str, peer: str, options: dict[str, Any]) -> None:
    network = on_meta(ours, **options)
    with torch.device("meta"):
        theirs = torchvision.models.get_model(peer)
    assert [p.shape for p in network.parameters()] == [p.shape for p in theirs.parameters()]
    assert num_parameters(network) == 61_100_840
    assert multiply_adds(network, (3, 224, 224)) == multiply_adds(theirs, (3, 224, 224))
    order = [type(module) for module in network.head if not isinstance(module, (nn.AdaptiveAvgPool2d, nn.Flatten))]
    assert order == [type(module) for module in theirs.classifier]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("ours", "peer", "options"), PEERS)
def test_outputs_and_gradients_equal_torchvisions_with_the_same_weights(
    ours: str, peer: str, options: dict[str, Any], training: bool
) -> None:
    """With fully connected layers of 24 instead of 4096, which would prove no more. At 95 pixels both repeat the last map of
    2 x 2 to 6 x 6."""
    with in_float64():
        network = create_model(ours, dropout=0.0, num_classes=10, **options)
        theirs = torchvision.models.get_model(peer, dropout=0.0, num_classes=10)
        for head, (first, second, last) in ((network.head, ("linear1", "linear2", "classifier")), (theirs.classifier, "146")):
            setattr(head, first, nn.Linear(256 * 6 * 6, 24))
            setattr(head, second, nn.Linear(24, 24))
            setattr(head, last, nn.Linear(24, 10))
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)
    assert_equal_to_the_peer(network, theirs, torch.randn(3, 3, 95, 95, dtype=torch.float64), training)


def response_normalized(a: Tensor) -> Tensor:
    """Section 3.3: b_i = a_i / (2 + 1e-4 sum over the five maps around i of a_j^2)^0.75."""
    maps = a.shape[1]
    sums = torch.stack([a[:, max(0, i - 2) : i + 3].square().sum(1) for i in range(maps)], 1)
    return a / (2 + 1e-4 * sums) ** 0.75


def test_two_groups_are_the_two_towers_of_figure_2() -> None:
    """Written plainly: layers 2, 4 and 5 see the maps of their own half, layer 3 and the fully connected layers see both."""
    with in_float64():
        network = create_model("alexnet", num_classes=7).eval()
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)
    convs = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    x = 20 * torch.randn(2, 3, 224, 224, dtype=torch.float64)

    def halves(maps: list[Tensor], layer: nn.Conv2d) -> list[Tensor]:
        weights, biases = layer.weight.chunk(2), layer.bias.chunk(2)
        return [F.relu(F.conv2d(m, w, b, padding=layer.padding)) for m, w, b in zip(maps, weights, biases)]

    with torch.no_grad():
        first = F.max_pool2d(response_normalized(F.relu(F.conv2d(x, convs[0].weight, convs[0].bias, stride=4, padding=2))), 3, 2)
        second = torch.cat(halves(list(first.chunk(2, 1)), convs[1]), 1)
        second = F.max_pool2d(response_normalized(second), 3, 2)
        third = F.relu(F.conv2d(second, convs[2].weight, convs[2].bias, padding=1))
        towers = halves(halves(list(third.chunk(2, 1)), convs[3]), convs[4])
        last = F.max_pool2d(torch.cat(towers, 1), 3, 2).flatten(1)
        head = network.head
        expected = head.classifier(F.relu(head.linear2(F.relu(head.linear1(last)))))
        found = network(x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_weights_and_biases_start_as_in_section_5() -> None:
    network = create_model("alexnet")
    weighted = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert [module.bias.unique().tolist() for module in weighted] == [[0], [1], [0], [1], [1], [1], [1], [0]]
    assert all(float(module.weight.detach().std()) == pytest.approx(0.01, rel=0.02) for module in weighted)


def test_it_takes_images_of_63_pixels_and_no_smaller_ones() -> None:
    network = create_model("alexnet", num_classes=3, in_channels=1).eval()
    least = CATALOG.get("alexnet").least_side
    assert network(torch.zeros(1, 1, least, least)).shape == (1, 3)
    with pytest.raises(RuntimeError, match="too small"):
        network(torch.zeros(1, 1, least - 1, least - 1))


@pytest.mark.parametrize(
    ("options", "words"), [({"variant": "caffe"}, "'paper', 'torchvision'"), ({"dropout": -0.1}, "probability")]
)
def test_what_cannot_be_built_is_refused_with_what_can(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        create_model("alexnet", **options)
