"""What every published network of the catalogue must do.

The facts are checked on all of them; what must compute runs on the smaller ones at once and on the large ones (101 and 152
layers of bottlenecks, 1202 layers) with `-m slow`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from residua.cost import multiply_adds, num_parameters
from residua.models import CATALOG, create_model, list_models
from residua.models.resnet import resnet
from residua.network import Network
from residua.published import Published
from residua.unit import Add, BranchOnly, SampledAdd, Unit, switched_off, walk

NAMES = list_models()
LARGE = {"resnet101", "resnet152", "resnet1202", "plain101", "plain152", "plain1202"}
WITH_LARGE_SLOW = [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in NAMES]
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def published(name: str) -> Published:
    entry = CATALOG.get(name)
    assert isinstance(entry, Published)
    return entry


def published_classes(name: str) -> int:
    return 1000 if published(name).input_shape[-1] == 224 else 10


def precision(name: str) -> torch.dtype:
    """The deepest networks leave the range of float32 before their batch statistics are learnt."""
    return torch.float64 if published(name).depth > 100 else torch.float32


def small_input(name: str, count: int) -> Tensor:
    """A few pixels that leave 2 x 2 positions in the last map."""
    channels, height, _ = published(name).input_shape
    side = 64 if height == 224 else 8
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1)).to(precision(name))


@pytest.fixture(scope="module", params=WITH_LARGE_SLOW)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def network(name: str) -> Network:
    """The network in evaluation mode, its batch statistics those of one batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = create_model(name).to(precision(name)).train()
    norms = [module for module in built.modules() if isinstance(module, BATCH_NORMS)]
    for module in norms:
        module.momentum = 1.0
    with torch.no_grad():
        built(small_input(name, 4))
    for module in norms:
        module.momentum = 0.1
    return built.eval()


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {path: tuple(tensor.shape) for path, tensor in model.state_dict().items()}


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Fails if the block leaves hooks, buffers or weights other than they were."""
    before = {path: tensor.clone() for path, tensor in model.state_dict().items()}
    yield
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[path], tensor) for path, tensor in before.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# ------------------------------------------------------------------------------------------------------ shapes and facts


@pytest.mark.parametrize("side", [(32, 48), (37, 45)])
def test_output_and_features_have_the_declared_shapes(name: str, network: Network, side: tuple[int, int]) -> None:
    x = torch.zeros(1, published(name).input_shape[0], *side, dtype=precision(name))
    with torch.no_grad():
        maps = network.features(x)
        assert network.head(maps[-1]).shape == (1, published_classes(name))
    assert len(maps) == len(network.feature_channels) == len(network.feature_reductions) == len(network.stages)
    for found, channels, reduction in zip(maps, network.feature_channels, network.feature_reductions):
        assert found.shape == (1, channels, math.ceil(side[0] / reduction), math.ceil(side[1] / reduction))


def test_parameters_are_the_declared_ones_exactly(name: str, network: Network) -> None:
    assert num_parameters(network) == published(name).parameters == closed_form(name)[0]


@pytest.mark.parametrize("entry", NAMES)
def test_the_declared_facts_follow_from_products_of_dimensions(entry: str) -> None:
    assert (published(entry).parameters, published(entry).multiply_adds) == closed_form(entry)


def test_multiply_adds_counted_layer_by_layer_are_the_declared_ones(name: str, network: Network) -> None:
    assert multiply_adds(network, published(name).input_shape) == published(name).multiply_adds


def test_depth_counts_the_weight_layers_outside_shortcuts(name: str, network: Network) -> None:
    weighted = [path for path, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert sum("shortcut" not in path for path in weighted) == published(name).depth


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


# ------------------------------------------------------------------------------------------------------------- behaviour


def test_every_parameter_gets_a_gradient_within_two_steps(name: str, network: Network) -> None:
    model = copy.deepcopy(network).train()
    waiting = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    labels = torch.arange(4) % 5
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(small_input(name, 4)), labels).backward()
        assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in model.parameters())
        waiting = {path: parameter for path, parameter in waiting.items() if not bool(parameter.grad.any())}
        if not waiting:
            break
        optimizer.step()
    assert not waiting, f"no gradient reaches {list(waiting)[:5]}"


def test_a_batch_equals_its_single_samples_in_evaluation(name: str, network: Network) -> None:
    """In float64: plain networks multiply rounding errors by some 1.2 a layer."""
    model = network if precision(name) == torch.float64 else copy.deepcopy(network).double()
    x = small_input(name, 3).double()
    with torch.no_grad():
        together, alone = model(x), torch.cat([model(sample[None]) for sample in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9 * float(together.abs().max()))
    assert not torch.allclose(alone[0], alone[1]), "the samples should differ, or the comparison says nothing"


def test_saving_and_loading_gives_equal_outputs(name: str, network: Network) -> None:
    written = save({path: tensor.contiguous() for path, tensor in network.state_dict().items()})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        other = create_model(name).to(precision(name)).eval()
    other.load_state_dict(load(written))
    x = small_input(name, 1)
    with torch.no_grad():
        assert torch.equal(other(x), network(x))


def test_the_plain_twin_has_the_parameters_of_the_branches_and_no_shortcut(name: str, network: Network) -> None:
    is_plain = name.startswith("plain")
    twin = create_model(name.replace("plain", "resnet"), plain=not is_plain)
    plain, residual = (network, twin) if is_plain else (twin, network)
    assert shapes(plain) == {path: shape for path, shape in shapes(residual).items() if ".shortcut." not in path}
    units = [located.unit for located in walk(plain)]
    assert len(units) == len(list(walk(residual)))
    assert all(unit.shortcut is None and isinstance(unit.merge, BranchOnly) for unit in units)
    assert not any("shortcut" in path for path, _ in plain.named_modules())
    assert all(located.unit.shortcut is not None for located in walk(residual))


def test_a_unit_that_is_switched_off_is_its_shortcut_and_the_network_stays_as_it_was(name: str, network: Network) -> None:
    inputs: dict[Unit, Tensor] = {}
    units = [located.unit for located in walk(network)]
    handles = [unit.register_forward_pre_hook(lambda unit, args: inputs.update({unit: args[0]})) for unit in units]
    x = small_input(name, 2)
    with torch.no_grad():
        before = network(x)
        for handle in handles:
            handle.remove()
        with unchanged(network):
            for unit in units:
                normal = unit(inputs[unit])
                with switched_off(unit):
                    found = unit(inputs[unit])
                if isinstance(unit.merge, BranchOnly):
                    expected = unit.post(torch.zeros_like(found))
                else:
                    assert isinstance(unit.merge, (Add, SampledAdd))
                    expected = unit.post(unit.shortcut(inputs[unit]))
                assert torch.equal(found, expected)
                assert not torch.equal(found, normal), "a branch that adds nothing would prove nothing"
            with switched_off(*units):
                off = network(x)
            assert off.shape == before.shape
            expected = network.head(through_shortcuts(network, x))
            assert torch.equal(off, expected)
        assert torch.equal(network(x), before)


def through_shortcuts(network: Network, x: Tensor) -> Tensor:
    """What reaches the head if every branch is zero."""
    x = network.stem(x)
    for stage in network.stages:
        for unit in stage:
            if unit.shortcut is None:
                x = torch.zeros_like(unit.branch(x))
            else:
                x = unit.shortcut(x)
            x = unit.post(x)
    return x


# ------------------------------------------------------------------------------------------------------------ one graph


def captured(model: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """The output, and the number of graphs; raises at the first break."""
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    y = torch.compile(model, fullgraph=True, dynamic=False, backend=keep)(x)
    torch._dynamo.reset()
    return y, len(graphs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("kind", "shortcut", "stem", "extra"),
    [
        ("basic", "A", "small", {}),
        ("basic", "plain", "small", {}),
        ("basic", "B", "imagenet", {}),
        ("3x3", "B", "imagenet", {}),
        ("3x3", "plain", "imagenet", {}),
        ("1x1", "C", "small", {"dropout": 0.5, "stochastic_depth": 0.5}),
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


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("entry", [entry for entry in NAMES if not entry.endswith("1202")])
def test_every_published_network_is_captured_in_one_graph(entry: str, training: bool) -> None:
    with torch.device("meta"):
        model = create_model(entry).train(training)
        x = torch.empty(2, *published(entry).input_shape)
    y, graphs = captured(model, x)
    assert (tuple(y.shape), graphs) == ((2, published_classes(entry)), 1)
