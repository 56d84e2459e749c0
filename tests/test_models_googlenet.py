"""GoogLeNet in the paper's form, and its torchvision form against torchvision with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from peers import assert_equal_to_the_peer, in_float64
from products import Products, longest_path
from torch import nn
from torch.nn import functional as F

from residua.cost import multiply_adds, num_parameters
from residua.errors import RequestError
from residua.models import CATALOG, create_model
from residua.network import Network

# Ours, torchvision's, the options that make ours theirs.
PEERS: list[tuple[str, str, dict[str, Any]]] = [("googlenet", "googlenet", {"variant": "torchvision"})]
# Table 1: side, then #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj, and the output maps.
TABLE_1 = {
    "3a": (28, 64, 96, 128, 16, 32, 32, 256),
    "3b": (28, 128, 128, 192, 32, 96, 64, 480),
    "4a": (14, 192, 96, 208, 16, 48, 64, 512),
    "4b": (14, 160, 112, 224, 24, 64, 64, 512),
    "4c": (14, 128, 128, 256, 24, 64, 64, 512),
    "4d": (14, 112, 144, 288, 32, 64, 64, 528),
    "4e": (14, 256, 160, 320, 32, 128, 128, 832),
    "5a": (7, 256, 160, 320, 32, 128, 128, 832),
    "5b": (7, 384, 192, 384, 48, 128, 128, 1024),
}


def on_meta(name: str = "googlenet", **options: object) -> Network:
    with torch.device("meta"):
        return create_model(name, **options)


def closed_form(*, auxiliary: bool) -> tuple[int, int]:
    sums = Products(3, 224, normalized=False)
    sums.chain((49, 64, "/2"), after=112)
    sums.side = 56
    sums.chain((1, 64), (9, 192))
    for side, one, reduce3, three, reduce5, five, pool, output in TABLE_1.values():
        sums.side = side
        sums.module([(1, one)], [(1, reduce3), (9, three)], [(1, reduce5), (25, five)], [(1, pool)])
        assert sums.channels == output
    sums.linear(1024, 1000)
    for channels in (512, 528) if auxiliary else ():
        sums.parameters += channels * 128 + 128
        sums.linear(4 * 4 * 128, 1024, in_training=True)
        sums.linear(1024, 1000, in_training=True)
    return sums.sums


def test_the_declared_facts_follow_from_products_of_dimensions() -> None:
    entry, network = CATALOG.get("googlenet"), on_meta()
    assert (entry.parameters, entry.multiply_adds) == closed_form(auxiliary=True)
    assert (num_parameters(network), multiply_adds(network, (3, 224, 224))) == closed_form(auxiliary=True)
    without = on_meta(auxiliary=False)
    assert (num_parameters(without), multiply_adds(without, (3, 224, 224))) == closed_form(auxiliary=False)


def test_it_has_22_layers_a_budget_of_15e8_multiply_adds_and_a_twelfth_of_the_parameters_of_alexnet() -> None:
    """The abstract's "12 times fewer" is rounded up: without its auxiliary heads it has 8.7 times fewer."""
    network = on_meta(auxiliary=False)
    assert longest_path(network) == CATALOG.get("googlenet").depth == 22
    assert multiply_adds(network, (3, 224, 224)) == pytest.approx(1.5e9, rel=0.06)
    assert CATALOG.get("alexnet").parameters / num_parameters(network) == pytest.approx(8.7, abs=0.05)


@pytest.mark.parametrize(("ours", "peer", "options"), PEERS)
def test_shapes_parameters_and_cost_are_torchvisions(ours: str, peer: str, options: dict[str, Any]) -> None:
    network, without = on_meta(ours, **options), on_meta(ours, auxiliary=False, **options)
    with torch.device("meta"):
        theirs = torchvision.models.get_model(peer, init_weights=False)
    assert num_parameters(network) == num_parameters(theirs)
    assert num_parameters(without) == 6_624_904
    assert multiply_adds(network, (3, 224, 224)) == multiply_adds(theirs, (3, 224, 224))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("ours", "peer", "options"), PEERS)
def test_outputs_losses_and_gradients_equal_torchvisions_with_the_same_weights(
    ours: str, peer: str, options: dict[str, Any], training: bool
) -> None:
    """All three heads; torchvision gives the second auxiliary head first."""
    with in_float64():
        network = create_model(ours, dropout=0.0, num_classes=10, **options)
        theirs = torchvision.models.get_model(peer, dropout=0.0, dropout_aux=0.0, num_classes=10, init_weights=False)
    x = torch.randn(3, 3, 96, 96, dtype=torch.float64)
    assert_equal_to_the_peer(network, theirs, x, training, order=lambda name: name.startswith("aux"), reverse_auxiliary=True)


def test_a_module_is_its_four_towers_written_plainly() -> None:
    with in_float64():
        network = create_model("googlenet")
    module = network.stages[0][0]
    x = torch.randn(2, 192, 9, 9, dtype=torch.float64)
    convs = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]

    def act(place: int, signal: torch.Tensor) -> torch.Tensor:
        layer = convs[place]
        return F.relu(F.conv2d(signal, layer.weight, layer.bias, padding=layer.kernel_size[0] // 2))

    towers = [act(0, x), act(2, act(1, x)), act(4, act(3, x)), act(5, F.max_pool2d(x, 3, 1, 1))]
    assert [layer.kernel_size[0] for layer in convs] == [1, 1, 3, 1, 5, 1]
    torch.testing.assert_close(module(x), torch.cat(towers, 1))


def test_the_auxiliary_heads_stand_on_4a_and_4d_and_count_with_a_factor_of_three_tenths() -> None:
    network = create_model("googlenet", num_classes=10, dropout=0.0).train()
    assert [auxiliary.weight for auxiliary in network.auxiliaries] == [0.3, 0.3]
    seen: dict[str, torch.Tensor] = {}
    for name, place in (("4a", 1), ("4d", 4)):
        network.stages[1][place].register_forward_hook(lambda _m, _i, y, name=name: seen.update({name: y}))
    outputs = network(torch.randn(2, 3, 224, 224))
    assert [tuple(y.shape) for y in outputs] == [(2, 10)] * 3
    assert [tuple(seen[name].shape[1:]) for name in ("4a", "4d")] == [(512, 14, 14), (528, 14, 14)]
    for auxiliary, name, y in zip(network.auxiliaries, seen, outputs[1:]):
        head = auxiliary.head
        pooled = F.avg_pool2d(seen[name], 5, 3)
        assert pooled.shape[-2:] == (4, 4)
        hidden = F.relu(head.linear1(head.conv(pooled).flatten(1)))
        torch.testing.assert_close(y, head.classifier(hidden))


def test_it_takes_images_of_31_pixels() -> None:
    network = create_model("googlenet", num_classes=3, in_channels=1)
    least = CATALOG.get("googlenet").least_side
    assert [tuple(y.shape) for y in network.train()(torch.zeros(2, 1, least, least))] == [(2, 3)] * 3
    with pytest.raises(RuntimeError, match="too small"):
        network(torch.zeros(2, 1, least - 1, least - 1))


def test_the_stem_for_small_images_has_the_same_weights_and_keeps_the_size() -> None:
    large, small = on_meta(), create_model("googlenet", stem="small").train()
    assert [p.shape for p in small.parameters()] == [p.shape for p in large.parameters()]
    maps = small.features(torch.zeros(2, 3, 32, 32))
    assert [found.shape[-1] for found in maps] == [32, 16, 8]
    assert [tuple(y.shape) for y in small(torch.zeros(2, 3, 8, 8))] == [(2, 1000)] * 3


def test_a_new_head_replaces_all_three_classifiers() -> None:
    network = create_model("googlenet").train()
    network.replace_head(4)
    assert [tuple(y.shape) for y in network(torch.zeros(2, 3, 64, 64))] == [(2, 4)] * 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"variant": "caffe"}, "'paper', 'torchvision'"),
        ({"stem": "tiny"}, "'imagenet', 'small'"),
        ({"normalization": "lrn"}, "'none', 'batch', 'group'"),
        ({"dropout": 1}, "probability"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_can(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        create_model("googlenet", **options)
