"""Replays: the same to the bit as the computation, anew where anything changes, and not at all where they could be wrong."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import torch
from test_step import STATS, samples
from torch import Tensor, nn
from torch.nn import functional as F

from residua import convolving, winograd
from residua.batches import Order, Share, train_batches
from residua.infer import Prepared, prepared
from residua.models import create_model
from residua.plan import PLANS
from residua.recipe import Recipe, replaced
from residua.replay import Recurring, recorded
from residua.step import Step

CPU = torch.device("cpu")
own_loops = pytest.mark.skipif(
    convolving.obstacle() is not None, reason=f"the loops of our own do not run here: {convolving.obstacle()}"
)


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def of_all_kinds(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Views, copies, operations in place, of several results, into given tensors, and such as torch gives only one form."""
    y = torch.empty_like(x)
    torch.mul(x, 2.0, out=y)
    y[:, 1:] += x[:, :-1]
    y.relu_()
    halves = torch.stack((y, x.double().float())).chunk(2, dim=1)
    top, places = torch.cat(halves, dim=1)[0].topk(2, dim=0)
    convolved = F.conv2d(x[None, None], weight, padding=1)[0, 0]
    mean, running = torch.zeros(3), torch.ones(3)
    normalized = F.batch_norm(x.view(-1, 3), mean, running, training=True)
    return top, places, convolved.softmax(1), normalized, mean, (x @ x.t()).contiguous().t(), x.sum(), y.bool().any(1)


def test_a_replay_gives_what_the_computation_gives_for_what_lies_in_its_inputs_now() -> None:
    x, weight = values(6, 6), values(1, 1, 3, 3, seed=1)
    replay = recorded(lambda: of_all_kinds(x, weight))
    assert replay.obstacle is None
    for seed in (0, 2, 3):
        x.copy_(values(6, 6, seed=seed))
        weight.copy_(values(1, 1, 3, 3, seed=seed + 1))
        expected = of_all_kinds(x, weight)
        found = replay() if seed else replay.result
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)
            assert (ours.stride(), ours.dtype) == (theirs.stride(), theirs.dtype)


def test_gradients_are_replayed_and_statistics_move_on() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    twin = copy.deepcopy(network)
    x = values(5, 3, 8, 8)

    def gradients(of: nn.Module) -> list[Tensor]:
        of.zero_grad()
        of(x).square().sum().backward()
        return [parameter.grad for parameter in of.parameters() if parameter.grad is not None]

    replay = recorded(lambda: gradients(network))
    for seed in (0, 1, 2):
        x.copy_(values(5, 3, 8, 8, seed=seed))
        found = replay() if seed else replay.result
        if not seed:
            x.copy_(values(5, 3, 8, 8))
        for ours, theirs in zip(found, gradients(twin), strict=True):
            assert torch.equal(ours, theirs)
    for ours, theirs in zip(network.buffers(), twin.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_memory_is_used_again_by_what_comes_later() -> None:
    x = values(256, 256)

    def long() -> Tensor:
        y = x
        for _ in range(50):
            y = (y * 1.01).clone()
        return y

    replay = recorded(long)
    assert replay.nbytes <= 3 * x.nbytes
    assert torch.equal(replay(), long())


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: torch.rand_like(x), lambda x: F.dropout(x, 0.5), lambda x: x * x.sum().item(),
        lambda x: x[x > 0], lambda x: torch.nonzero(x), lambda x: x.clone().resize_(3), lambda x: x.to("meta"),
        lambda x: x if torch.equal(x, x) else -x,
    ],
)  # fmt: skip
def test_what_may_take_another_course_is_not_replayed(compute: Callable[[Tensor], Tensor]) -> None:
    x = values(4, 4)
    assert recorded(lambda: compute(x)).obstacle is not None
    network = Counted(compute)
    recurring = Recurring(network)
    for _ in range(4):
        recurring(network, x)
    assert network.calls == 4
    ((_, replay),) = recurring.known.values()  # type: ignore[misc]
    assert (replay.calls, replay.memory) == ([], [])


class Counted(nn.Module):
    """Counts how often it is really computed."""

    def __init__(self, compute: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.compute, self.calls = compute, 0
        self.inner = nn.Sequential(nn.BatchNorm1d(4, affine=True))

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return self.compute(x)


def twice(network: Counted, recurring: Recurring, x: Tensor) -> int:
    """How often the network is computed in two calls."""
    before = network.calls
    for _ in range(2):
        assert torch.equal(recurring(network, x), network.compute(x))
    return network.calls - before


def test_a_computation_is_recorded_the_second_time_and_anew_when_anything_changes() -> None:
    network = Counted(lambda x: x * 3 + network.inner[0].weight)
    recurring, x = Recurring(network, kept=2), values(8, 4)
    assert (twice(network, recurring, x), twice(network, recurring, x)) == (2, 0)
    assert (twice(network, recurring, values(9, 4)), twice(network, recurring, values(8, 4, seed=5))) == (2, 0)
    assert twice(network, recurring, values(4, 8).t()) == 2, "another order in memory"
    assert twice(network, recurring, x) == 2, "two sizes are kept"
    layer = network.inner[0]

    def swap() -> None:
        network.inner[0] = copy.deepcopy(layer)

    changes: list[Callable[[], Any]] = [
        network.inner.eval, lambda: layer.weight.requires_grad_(False),
        lambda: setattr(layer.weight, "data", torch.ones(4)), lambda: setattr(layer, "weight", nn.Parameter(torch.ones(4))), swap,
    ]  # fmt: skip
    for change in changes:
        change()
        assert (twice(network, recurring, x), twice(network, recurring, x)) == (2, 0)
    network.inner[0].weight.data = torch.zeros(4)
    assert twice(network, recurring, x) == 2, "of what was put in its place, too"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert twice(network, recurring, x) == 2
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert twice(network, recurring, x) == 2
    finally:
        torch.set_num_threads(threads)


def test_hooks_and_whatever_watches_operations_see_them() -> None:
    network = Counted(lambda x: x * 3)
    recurring, x = Recurring(network), values(8, 4)
    assert (twice(network, recurring, x), twice(network, recurring, x)) == (2, 0)
    handle = network.inner.register_forward_hook(lambda *_: None)
    assert twice(network, recurring, x) == 2
    handle.remove()
    assert twice(network, recurring, x) == 0
    hooks: list[Callable[[], Any]] = [
        lambda: network.inner[0].weight.register_hook(lambda _gradient: None),
        lambda: network.inner[0].weight.register_post_accumulate_grad_hook(lambda _weight: None),
        lambda: nn.modules.module.register_module_forward_hook(lambda *_: None),
    ]
    for register in hooks:
        handle = register()
        assert twice(network, recurring, x) == 2
        handle.remove()
        assert twice(network, recurring, x) == 0
    for mode in (torch.device("cpu"), torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)):
        with mode:
            assert twice(network, recurring, x) == 2, "a mode of torch is at work"
    with warnings.catch_warnings(action="ignore"):  # it is deprecated
        traced = torch.jit.trace(lambda x: recurring(network, x), values(8, 4, seed=1), check_trace=False)
    assert torch.equal(traced(x), x * 3)


def test_a_computation_of_large_maps_gives_its_memory_back() -> None:
    network = Counted(lambda x: x * 3)
    recurring, x = Recurring(network), values(2048, 4, 64)
    for _ in range(3):
        assert torch.equal(recurring(network, x), x * 3)
    ((_, replay),) = recurring.known.values()  # type: ignore[misc]
    assert network.calls == 3
    assert replay.obstacle is not None
    assert replay.memory == []


def test_where_memory_is_short_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    available = psutil.virtual_memory()._replace(available=10 * 2**10)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: available)
    network = Counted(lambda x: sum((x * factor for factor in range(9)), x))
    recurring, x = Recurring(network), values(8, 64)
    for _ in range(4):
        assert torch.equal(recurring(network, x), network.compute(x))
    assert network.calls == 4
    ((_, replay),) = recurring.known.values()  # type: ignore[misc]
    assert replay.memory == []


def test_a_computation_that_would_be_copied_is_not_replayed() -> None:
    network = Counted(lambda x: x.cumprod(0).cummax(0).values)
    recurring, x = Recurring(network), values(300, 64)
    for _ in range(3):
        assert torch.equal(recurring(network, x), network.compute(x))
    assert network.calls == 3


def test_while_another_thread_replays_it_is_computed_as_ever() -> None:
    network = Counted(lambda x: x * 3)
    recurring, x = Recurring(network), values(8, 4)
    assert (twice(network, recurring, x), twice(network, recurring, x)) == (2, 0)
    with recurring.lock:
        assert twice(network, recurring, x) == 2
    assert twice(network, recurring, x) == 0


def test_a_copy_records_for_itself() -> None:
    recurring = Recurring(Counted(lambda x: x))
    assert copy.deepcopy(recurring) is None
    assert pickle.loads(pickle.dumps(recurring)) is None


def steps(model: str, replayed: bool, **options: Any) -> tuple[Step, list[float]]:
    torch.manual_seed(0)
    network = create_model(model, num_classes=4, **options)
    recipe = replaced(
        Recipe(),
        {
            "data.image_size": 8, "augment.crop": "pad", "augment.pad": 1, "batch_size": 22, "average.decay": 0.9,
            "optim.lr": 0.05, "optim.name": "muon", "optim.stem_until": 0.6,
        },
    )  # fmt: skip
    step = Step(network, recipe, PLANS["bf16-winograd"], STATS, 8, device=CPU)
    if not replayed:
        step.recurring = None
    data = samples()
    order = Order(data.labels, recipe.batch_size, recipe.seed)
    losses = [step(batch).loss for batch in train_batches(data, order, recipe.augment, 8, 0, 8, Share(), 0)]
    return step, losses


@own_loops
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("cifar_resnet", {"depth": 8}), ("cifar_resnet", {"depth": 8, "shortcut": "B"}), ("preact_resnet164", {}),
        ("densenet_40_12", {}), ("wrn_16_4", {}), ("resnet18", {}),
    ],
)  # fmt: skip
def test_training_is_the_same_to_the_bit(model: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recurring, "COPIED", 2**30)
    ours, losses = steps(model, True, **options)
    theirs, expected = steps(model, False, **options)
    assert ours.recurring is not None
    assert any(entry is not None and entry[1].calls for entry in ours.recurring.known.values()), "some were replayed"
    assert losses == expected
    for kind, tensors in ours.tensors().items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, theirs.tensors()[kind][name]), (kind, name)


@pytest.mark.skipif(not winograd.preferred(), reason="the loops of our own are not used here")
@pytest.mark.parametrize("model", ["resnet20", "preact_resnet110", "densenet_40_12", "resnet50", "wrn_16_4"])
def test_inference_is_the_same_to_the_bit_and_handed_out_for_good(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recurring, "COPIED", 2**30)
    torch.manual_seed(0)
    network = prepared(create_model(model).eval(), "bf16")
    assert isinstance(network, Prepared)
    given, found = [], []
    for seed in range(9):
        given.append(values(1 + seed % 2, 3, 32, 32, seed=seed))
        with torch.inference_mode(seed % 3 == 0):
            found.append(network(given[-1]))
    assert network.recurring is not None
    assert all(entry is not None and entry[1].calls for entry in network.recurring.known.values())
    with torch.no_grad():
        for x, logits in zip(given, found, strict=True):
            assert torch.equal(logits, network._logits(x))
