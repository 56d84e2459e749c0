"""Recomputation in fused networks: the same to the bit, in less memory, each map made once."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from residua import kernels, plan, sparing, winograd
from residua.batches import Batch
from residua.kernels import fused
from residua.models import create_model
from residua.network import Network
from residua.recipe import Recipe, replaced
from residua.sparing import SparingStage
from residua.step import Step

pytestmark = pytest.mark.skipif(kernels.obstacle() is not None, reason=str(kernels.obstacle()))

winograd_here = pytest.mark.skipif(winograd.obstacle() is not None, reason=str(winograd.obstacle()))
PLAN = plan.PLANS["bf16-fused"]
NETWORKS: dict[str, dict[str, Any]] = {
    "cifar_resnet": {"depth": 32},
    "imagenet_resnet": {"depth": 50, "num_classes": 10, "stem": "small"},
    "cifar_wide_resnet": {"depth": 10, "width": 1, "dropout": 0.3},
}
CHOICES = [(1, None), (2, None), (3, 1), (2, 2), (50, 1)]


def made(name: str, every: int = 0, stages: int | None = None, **options: Any) -> Network:
    torch.manual_seed(0)
    network = create_model(name, **NETWORKS.get(name, {}), **options).train()
    network.recompute_every, network.recompute_stages = every, stages
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def images(count: int = 4, side: int = 16, seed: int = 1) -> Tensor:
    x = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last)


def gradients(network: Network, batches: list[Tensor], precision: str = "bf16") -> list[Tensor]:
    """Gradients and buffers after all forward passes and then one backward pass."""
    twin = plan.compiled(network, plan.PLANS["bf16-winograd"] if precision == "winograd" else PLAN)
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32"):
        logits = [twin(batch) for batch in batches]
    torch.stack([one.float().logsumexp(1).sum() for one in logits]).sum().backward()
    return [*(p.grad for p in network.parameters() if p.grad is not None), *network.buffers()]


@pytest.mark.parametrize("precision", ["fp32", "bf16", pytest.param("winograd", marks=winograd_here)])
@pytest.mark.parametrize(("every", "stages"), CHOICES)
@pytest.mark.parametrize("name", ["cifar_resnet", "imagenet_resnet"])
def test_gradients_and_statistics_are_the_same_to_the_bit(name: str, every: int, stages: int | None, precision: str) -> None:
    kept = gradients(made(name), [images()], precision)
    again = gradients(made(name, every, stages), [images()], precision)
    assert len(kept) == len(again)
    assert all(torch.equal(one, other) for one, other in zip(kept, again))


def test_networks_whose_units_are_not_fused_recompute_as_before() -> None:
    network = made("cifar_wide_resnet", 1)
    twin = plan.compiled(network, PLAN)
    assert isinstance(twin, nn.Module)
    assert not any(isinstance(module, SparingStage) for module in twin.modules())
    for one, other in zip(gradients(made("cifar_wide_resnet"), [images()]), gradients(network, [images()])):
        torch.testing.assert_close(one, other)


def test_forward_passes_may_be_many_before_the_backward_pass() -> None:
    batches = [images(seed=1), images(2, seed=2), images(seed=3)]
    for one, other in zip(gradients(made("cifar_resnet"), batches), gradients(made("cifar_resnet", 2), batches)):
        assert torch.equal(one, other)


def kept(network: Network, count: int, side: int) -> int:
    return plan.activation_bytes(network, images(count, side), PLAN) * count


def test_what_is_kept_is_what_the_closed_form_says() -> None:
    """A unit of width C at side S keeps its maps of N C S S values of 2 bytes: 4; in a stage that is spared 1 for every
    k units and for the last; in the others the 2 results of convolutions, too. Besides maps only statistics are kept."""
    count, side, units = 4, 32, 5
    maps = [count * 16 * 2**stage * (side // 2**stage) ** 2 * 2 for stage in range(3)]
    whole = kept(made("cifar_resnet"), count, side)
    for every, stages in ((2, 1), (3, 2), (4, 3), (1, 1), (9, 3)):
        found = whole - kept(made("cifar_resnet", every, stages), count, side)
        saved = sum((4 if stage < stages else 2) * units * one - -(-units // every) * one for stage, one in enumerate(maps))
        assert found == pytest.approx(saved, rel=0.01), (every, stages)


@pytest.mark.parametrize(("every", "stages"), CHOICES)
def test_what_is_not_kept_is_freed(every: int, stages: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[tuple[weakref.ref[Tensor], sparing.Kept]] = []
    learn = sparing._Sparing.learn

    def noted(self: sparing._Sparing, tensor: Tensor, kept: sparing.Kept) -> None:
        learned.append((weakref.ref(tensor), kept))
        learn(self, tensor, kept)

    monkeypatch.setattr(sparing._Sparing, "learn", noted)
    with torch.autocast("cpu", torch.bfloat16):
        loss = plan.compiled(made("cifar_resnet", every, stages), PLAN)(images()).float().sum()
    spared = [reference for reference, kept in learned if kept.value is None]
    assert len(spared) >= 15
    assert [reference for reference in spared if reference() is not None] == []
    loss.backward()


def test_each_map_is_made_once_and_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    convolutions: list[tuple[int, ...]] = []
    norms: list[tuple[int, ...]] = []
    twin = plan.compiled(made("cifar_resnet", 2, 1), PLAN)
    with torch.autocast("cpu", torch.bfloat16):
        loss = twin(images()).float().sum()
    plain, normalized = torch.conv2d, kernels._normalized

    def counted(counter: list[tuple[int, ...]], function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any, **options: Any) -> Tensor:
            counter.append(tuple(args[0].shape))
            return function(*args, **options)

        return call

    monkeypatch.setattr(torch, "conv2d", counted(convolutions, plain))
    monkeypatch.setattr(kernels, "_normalized", counted(norms, normalized))
    loss.backward()
    assert len(convolutions) == 2 * 5, "the two convolutions of each of the first stage's five units"
    first = [shape for shape in norms if shape[1] == 16]
    assert len(first) == 5 + 2, "what stands between the convolutions, and the outputs of units 1 and 3 (2, 4 and 5 are kept)"
    assert len(norms) == 3 * len(first), "in the other stages the same, from the results of convolutions that were kept"


def test_a_map_that_was_written_to_is_kept() -> None:
    class Chain(nn.Sequential):
        pass

    torch.manual_seed(0)
    layers = Chain(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3))
    x = images(2, 8)
    layers(x).square().sum().backward()
    expected = [p.grad.clone() for p in layers.parameters() if p.grad is not None]
    layers.zero_grad()
    SparingStage(layers, 1, convolutions=True)(x).square().sum().backward()
    for one, other in zip(expected, (p.grad for p in layers.parameters())):
        assert other is not None
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("every", [0, 2])
def test_a_graph_that_is_only_counted_is_freed(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network, results = made("cifar_resnet", every), []
    normalized = kernels._normalized

    def noted(*args: Any, **options: Any) -> Tensor:
        y = normalized(*args, **options)
        results.append(weakref.ref(y))
        return y

    monkeypatch.setattr(kernels, "_normalized", noted)
    plan.activation_bytes(network, images(2), PLAN)
    assert len(results) > 30
    assert [one for one in results if one() is not None] == []


def test_nothing_is_spared_in_evaluation_and_nothing_stays_behind() -> None:
    twin = plan.compiled(made("cifar_resnet", 2), PLAN)
    assert isinstance(twin, nn.Module)
    with torch.no_grad():
        expected = fused(made("cifar_resnet").eval())(images())
        torch.testing.assert_close(twin.eval()(images()), expected, rtol=0, atol=0)
    assert sparing.current() is None


def test_updates_are_the_same_to_the_bit() -> None:
    """With gradients that keep their places, too."""
    recipe = replaced(Recipe(), {"model.name": "resnet20", "batch_size": 8, "steps": 3, "optim.head_first": 0.4})
    stats = {"mean": torch.full((1, 1, 1), 100.0), "std": torch.full((1, 1, 1), 50.0)}
    found = []
    for every in (0, 2):
        network = made("resnet20", every, None, num_classes=10)
        step = Step(network, recipe, PLAN, stats, 3, device=torch.device("cpu"))
        for number in range(3):
            draws = torch.arange(8) + 8 * number
            pixels = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
            step(Batch(number, 0, pixels, draws % 10, draws, torch.ones(8, dtype=torch.bool)))
        found.append(step.tensors()["model"])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
