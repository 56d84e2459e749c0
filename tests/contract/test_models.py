"""What every published network of the catalogue must do.

The facts are checked on all of them; what must compute runs on the smallest of each family at once and on all others with
`-m slow`.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from graphs import captured
from safetensors.torch import load, save
from torch import Tensor, nn

from residua.cost import multiply_adds, num_parameters
from residua.data import open_data
from residua.dataset import ArraySamples
from residua.models import CATALOG, create_model, list_models
from residua.network import Network
from residua.published import PAPERS, Published
from residua.unit import Add, BranchOnly, Concat, Gate, SampledAdd, Unit, switched_off, walk

NAMES = list_models()


def published(name: str) -> Published:
    entry = CATALOG.get(name)
    assert isinstance(entry, Published)
    return entry


def quick() -> set[str]:
    """The entries that are small enough to be run every time, and the cheapest one of each builder unless it is huge (VGG)."""
    families: dict[object, list[str]] = {}
    for name in sorted(NAMES, key=lambda name: published(name).multiply_adds):
        families.setdefault(published(name).builder, []).append(name)
    cheapest = {names[0] for names in families.values() if published(names[0]).parameters < 5e7}
    small = {n for n in NAMES if published(n).parameters < 2e6 and published(n).multiply_adds < 3e8 and published(n).depth < 120}
    return cheapest | small


QUICK = quick()
LARGE_SLOW = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def published_classes(name: str) -> int:
    return 10 if published(name).input_shape[-1] <= 32 else 1000


def precision(name: str) -> torch.dtype:
    """The deepest networks leave the range of float32 before their batch statistics are learnt."""
    return torch.float64 if published(name).depth > 100 else torch.float32


def small_side(name: str) -> int:
    """A few pixels, enough for 2 x 2 positions in the last map."""
    return max(published(name).least_side, 64 if published(name).input_shape[-1] > 32 else 8)


def small_input(name: str, count: int) -> Tensor:
    channels, side = published(name).input_shape[0], small_side(name)
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1)).to(precision(name))


def loss_of(outputs: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """The sum of the losses of all heads."""
    heads = outputs if isinstance(outputs, tuple) else (outputs,)
    return torch.stack([nn.functional.cross_entropy(logits, labels) for logits in heads]).sum()


@pytest.fixture(scope="module", params=LARGE_SLOW)
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


@pytest.mark.parametrize("more", [(0, 16), (5, 13)])
def test_output_and_features_have_the_declared_shapes(name: str, network: Network, more: tuple[int, int]) -> None:
    """Sizes that do not divide are rounded up; networks with a least size lose up to three positions at unpadded borders."""
    entry = published(name)
    fixed = entry.least_side == entry.input_shape[-1]
    side = entry.input_shape[1:] if fixed else tuple(max(32, entry.least_side) + extra for extra in more)
    x = torch.zeros(1, entry.input_shape[0], *side, dtype=precision(name))
    with torch.no_grad():
        maps = network.features(x)
        assert network.head(maps[-1]).shape == (1, published_classes(name))
    assert len(maps) == len(network.feature_channels) == len(network.feature_reductions) == len(network.stages)
    for found, channels, reduction in zip(maps, network.feature_channels, network.feature_reductions):
        assert found.shape[:2] == (1, channels)
        for positions, pixels in zip(found.shape[2:], side):
            expected = math.ceil(pixels / reduction)
            assert expected - 3 * (entry.least_side > 1) <= positions <= expected


@pytest.mark.parametrize("entry", NAMES)
def test_its_paper_is_known(entry: str) -> None:
    assert published(entry).paper in PAPERS


@pytest.mark.parametrize("entry", NAMES)
def test_the_declared_facts_are_those_of_the_network(entry: str) -> None:
    """Each family's own tests hold the same facts to the paper's figures and to products of dimensions."""
    with torch.device("meta"):
        model = create_model(entry)
    assert num_parameters(model) == published(entry).parameters
    assert multiply_adds(model, published(entry).input_shape) == published(entry).multiply_adds


# ------------------------------------------------------------------------------------------------------------- behaviour


def test_every_parameter_gets_a_gradient_within_two_steps(name: str, network: Network) -> None:
    model = copy.deepcopy(network).train()
    waiting = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    labels = torch.arange(4) % 5
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model(small_input(name, 4)), labels).backward()
        assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in model.parameters())
        waiting = {path: parameter for path, parameter in waiting.items() if not bool(parameter.grad.any())}
        if not waiting:
            break
        optimizer.step()
    assert not waiting, f"no gradient reaches {list(waiting)[:5]}"


@pytest.fixture(scope="module")
def photographs() -> tuple[Tensor, Tensor]:
    """8 images of CIFAR-10, [8, 3, 32, 32] of mean 0 and deviation 1, and their labels."""
    folder = os.environ.get("RESIDUA_DATA")
    if not folder:
        pytest.skip("CIFAR-10 is not at hand: RESIDUA_DATA names no folder")
    samples = open_data("cifar10", data_dir=folder, download=False).splits["train"]
    assert isinstance(samples, ArraySamples)
    images = samples.images[:8].float()
    return (images - images.mean()) / images.std(), samples.labels[:8]


def learning_side(name: str) -> int:
    entry = published(name)
    return entry.least_side if entry.least_side == entry.input_shape[-1] else max(32, small_side(name))


def learns_quickly(name: str) -> bool:
    """Whether eight steps on eight images take a few seconds at most."""
    entry = published(name)
    cost = entry.multiply_adds * learning_side(name) ** 2 / entry.input_shape[-1] ** 2
    return name in QUICK and cost < 3e8 and entry.depth <= 60


LEARNING = [name if learns_quickly(name) else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


@pytest.mark.parametrize("entry", LEARNING)
def test_steps_lower_the_loss_on_real_images(entry: str, photographs: tuple[Tensor, Tensor]) -> None:
    images, labels = photographs
    side = learning_side(entry)
    x = nn.functional.interpolate(images, size=(side, side), mode="bilinear").to(precision(entry))
    x = x if published(entry).input_shape[0] == 3 else x.mean(1, keepdim=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(entry).to(precision(entry)).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3 if published(entry).parameters < 5e7 else 1e-4)
        losses = []
        for _ in range(8):
            loss = loss_of(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert sum(losses[-3:]) / 3 < losses[0], losses


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
    if "plain" not in published(name).options():
        pytest.skip(f"the paper of {name} has no plain twin")
    is_plain = bool(published(name).arguments.get("plain"))
    twin = create_model(name, plain=not is_plain)
    plain, residual = (network, twin) if is_plain else (twin, network)
    joins = (".shortcut.", ".merge.")  # a gate is part of the merge
    assert shapes(plain) == {path: shape for path, shape in shapes(residual).items() if not any(join in path for join in joins)}
    units = [located.unit for located in walk(plain)]
    assert len(units) == len(list(walk(residual)))
    assert all(unit.shortcut is None and isinstance(unit.merge, BranchOnly) for unit in units)
    assert not any("shortcut" in path for path, _ in plain.named_modules())
    assert all(located.unit.shortcut is not None for located in walk(residual))


def off(unit: Unit, x: Tensor, extra: tuple[Tensor, ...] = ()) -> Tensor:
    """What DESIGN calls off, written out: the branch counts as zero and the shape stays."""
    zero = torch.zeros_like(unit.branch(x, *extra))
    if unit.shortcut is None:
        return unit.post(zero)
    h = unit.shortcut(x)
    if isinstance(unit.merge, Concat):
        return unit.post(torch.cat((h, zero), 1))
    if isinstance(unit.merge, Gate):
        return unit.post((1 - torch.sigmoid(unit.merge.transform(h))) * h)
    assert isinstance(unit.merge, (Add, SampledAdd)), (
        f"say here what {type(unit.merge).__name__} leaves of a unit without its branch"
    )
    return unit.post(h)


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
                assert torch.equal(found, off(unit, inputs[unit]))
                assert not torch.equal(found, normal), "a branch that adds nothing would prove nothing"
            with switched_off(*units):
                without = network(x)
            assert without.shape == before.shape
            assert torch.equal(without, network.head(through_shortcuts(network, x)))
        assert torch.equal(network(x), before)


def through_shortcuts(network: Network, x: Tensor) -> Tensor:
    """What reaches the head if every branch is zero."""
    x = network.stem(x)
    for stage in network.stages:
        for unit in stage if isinstance(stage, nn.Sequential) else [stage]:
            x = off(unit, x) if isinstance(unit, Unit) else unit(x)
    return x


# ------------------------------------------------------------------------------------------------------------ one graph


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("entry", [entry for entry in NAMES if not entry.endswith("1202")])
def test_every_published_network_is_captured_in_one_graph(entry: str, training: bool) -> None:
    with torch.device("meta"):
        model = create_model(entry).train(training)
        x = torch.empty(2, *published(entry).input_shape)
    y, graphs = captured(model, x)
    heads = y if isinstance(y, tuple) else (y,)
    assert [tuple(logits.shape) for logits in heads] == [(2, published_classes(entry))] * len(heads)
    assert graphs == 1
