"""Plans: they agree with one another, what fails is not chosen, and trying them leaves no trace."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

from residua import forecast, plan
from residua.batches import Share
from residua.data import open_data
from residua.dataset import Dataset
from residua.errors import RequestError
from residua.models import create_model
from residua.network import Network
from residua.plan import PLANS, Length, MakeStep, Plan, Trial, agrees, choose, compiled, measure
from residua.recipe import Recipe, replaced
from residua.resolve import normalization, resolve
from residua.unit import Unit

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_winograd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the processor; the tests of these loops are elsewhere."""
    monkeypatch.setattr(plan.convolving, "obstacle", lambda: "not in this test")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return open_data("digits")


@pytest.fixture(scope="module")
def recipe(digits: Dataset) -> Recipe:
    """With all that draws random numbers on."""
    changes = {
        "model.name": "cifar_resnet", "model.depth": 8, "model.dropout": 0.2, "model.stochastic_depth": 0.2, "batch_size": 16,
        "steps": 10, "augment.mixup": 0.2, "average.decay": 0.9,
    }  # fmt: skip
    return resolve(replaced(Recipe(), changes), digits)[0]


@pytest.fixture
def network(recipe: Recipe) -> Network:
    torch.manual_seed(0)
    return create_model(recipe.model.name, **recipe.model.options)


def trials(network: Network, recipe: Recipe, digits: Dataset) -> MakeStep:
    stats = normalization(digits.splits["train"], recipe, 1)
    return forecast.trial_factory(network, recipe, digits, stats, CPU, 0, Share())


def test_all_eager_plans_follow_the_same_losses(network: Network, recipe: Recipe, digits: Dataset) -> None:
    make_step = trials(network, recipe, digits)
    found = [measure(PLANS[name], make_step, 3) for name in ("fp32", "fp32-channels-last", "bf16", "exact", "fp32-fused")]
    assert all(trial.outcome == "measured" and len(trial.losses) == 4 for trial in found)
    assert found[1].losses == pytest.approx(found[0].losses, rel=1e-4)
    assert found[3].losses == pytest.approx(found[0].losses, rel=1e-4)
    assert found[4].losses == pytest.approx(found[0].losses, rel=1e-4)
    assert found[2].losses == pytest.approx(found[0].losses, rel=plan.LOSS_TOLERANCE)
    assert found[2].losses != found[0].losses, "bf16 should round"
    assert all(agrees(trial, found[0]) for trial in found)


def test_trying_plans_leaves_weights_buffers_and_generators_untouched(network: Network, recipe: Recipe, digits: Dataset) -> None:
    before = copy.deepcopy(network.state_dict())
    state, mode = torch.random.get_rng_state(), network.training
    chosen, _, _ = choose(trials(network, recipe, digits), network, CPU, Length(steps=10), steps=2, limit=0.5)
    forecast.needs(network, recipe, chosen, Share(), CPU, 1.0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert network.training == mode
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def steps_of(outcomes: dict[str, Callable[[int], float]], prepared: list[str]) -> MakeStep:
    def make_step(candidate: Plan, *, rounded: bool = False) -> Callable[[int], float]:
        name = candidate.name + ", rounded" * rounded
        prepared.append(name)
        return outcomes[name]

    return make_step


def slow(seconds: float, loss: float = 1.0) -> Callable[[int], float]:
    def step(number: int) -> float:
        time.sleep(seconds)
        return loss / (1 + number)

    return step


def raising(at: int) -> Callable[[int], float]:
    def step(number: int) -> float:
        if number >= at:
            raise RuntimeError("this backend cannot\nand more")
        return 1 / (1 + number)

    return step


def test_the_fastest_plan_whose_losses_agree_is_chosen(network: Network) -> None:
    asked: list[str] = []
    outcomes = {
        "fp32": slow(0.03),
        "bf16": slow(0.0, loss=1.2),
        "fp32, rounded": slow(0.0, loss=1.001),
        "fp32-channels-last": slow(0.01),
        "fp32-fused": slow(0.02),
    }
    chosen, found, note = choose(steps_of(outcomes, asked), network, CPU, Length(steps=100), steps=3)
    assert (chosen.name, note, asked) == ("fp32-channels-last", "", list(outcomes))
    rejected = "rejected: its losses differ from those in fp32"
    assert [trial.outcome for trial in found] == ["measured", rejected, "measured", "measured"]


def test_the_fused_loops_are_tried_in_the_faster_precision(network: Network) -> None:
    asked: list[str] = []
    outcomes = {"fp32": slow(0.03), "bf16": slow(0.02), "bf16-fused": slow(0.01)}
    chosen, _, note = choose(steps_of(outcomes, asked), network, CPU, Length(steps=100), steps=3)
    assert (chosen.name, note, asked) == ("bf16-fused", "", list(outcomes))


def test_convolutions_with_fewer_multiplications_are_tried_in_bf16(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.convolving, "obstacle", lambda: None)
    asked: list[str] = []
    outcomes = {"fp32": slow(0.03), "bf16": slow(0.02), "bf16-fused": slow(0.02), "bf16-winograd": slow(0.01)}
    chosen, _, note = choose(steps_of(outcomes, asked), network, CPU, Length(steps=100), steps=3)
    assert (chosen.name, note, asked) == ("bf16-winograd", "", list(outcomes))
    outcomes = {"fp32": slow(0.01), "bf16": slow(0.02), "fp32-channels-last": slow(0.02), "fp32-fused": slow(0.02)}
    choose(steps_of(outcomes, asked := []), network, CPU, Length(steps=100), steps=3)
    assert "bf16-winograd" not in asked
    outcomes = {"fp32": slow(0.03), "bf16": slow(0.02), "bf16-fused": slow(0.01)}
    narrow = create_model("cifar_resnet", depth=8, width=0.125)
    choose(steps_of(outcomes, asked := []), narrow, CPU, Length(steps=100), steps=3)
    assert asked == list(outcomes)


def test_without_the_fused_loops_a_note_says_why(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.kernels, "obstacle", lambda: "there is no C compiler")
    outcomes = {"fp32": slow(0.02), "bf16": slow(0.01)}
    chosen, _, note = choose(steps_of(outcomes, []), network, CPU, Length(steps=100), steps=2)
    assert (chosen.name, note) == ("bf16", "the fused loops are left out: there is no C compiler")


def test_what_was_measured_before_is_not_measured_again(network: Network) -> None:
    asked: list[str] = []
    known = [Trial(name, pace, 0.1, (1.0, 0.9), "measured") for name, pace in (("fp32", 2), ("bf16", 0.01), ("bf16-fused", 0.02))]
    chosen, found, _ = choose(steps_of({}, asked), network, CPU, Length(steps=100), steps=2, known=known)
    assert (chosen.name, asked, found) == ("bf16", [], known)


@pytest.mark.parametrize(("loss", "outcome"), [(1.0, "measured"), (3.0, "rejected: its losses differ from those in fp32")])
def test_a_plan_is_judged_by_the_losses_of_this_run_and_not_by_remembered_ones(
    network: Network, loss: float, outcome: str
) -> None:
    """The run that is remembered had losses of 3, 1.5, ... (another seed or rate), this one has 1, 0.5, ..."""
    asked: list[str] = []
    known = [Trial("fp32", 0.05, 0.1, (3.0, 1.5, 1.0), "measured"), Trial("bf16", 0.03, 0.1, (3.0, 1.5, 1.0), "measured")]
    outcomes = {"fp32": slow(0.04), "fp32, rounded": slow(0.04), "bf16-fused": slow(0.01, loss)}
    chosen, found, _ = choose(steps_of(outcomes, asked), network, CPU, Length(steps=100), steps=2, known=known)
    assert asked == ["fp32", "bf16-fused", *["fp32, rounded"] * (loss != 1.0)]
    assert [(trial.name, trial.outcome) for trial in found] == [
        ("fp32", "measured"), ("bf16", "measured"), ("bf16-fused", outcome),
    ]  # fmt: skip
    assert found[0].losses[0] == 1.0
    assert chosen.name == ("bf16-fused" if outcome == "measured" else "bf16")


@pytest.mark.parametrize("at", [0, 2])
def test_a_plan_that_raises_is_reported_as_failed_and_not_chosen(network: Network, at: int) -> None:
    outcomes = {"fp32": slow(0.01), "fp32-channels-last": slow(0.02), "bf16": raising(at), "fp32-fused": slow(0.02)}
    chosen, found, _ = choose(steps_of(outcomes, []), network, CPU, Length(steps=100), steps=4)
    assert chosen.name == "fp32"
    assert found[1].outcome == "failed: RuntimeError: this backend cannot"
    assert math.isinf(found[1].seconds_per_step)


@pytest.mark.parametrize(
    ("losses", "theirs", "rounded", "agree"),
    [
        ((2.31, 2.25), (2.30, 2.20), None, True),
        ((2.31, 2.05), (2.30, 2.20), None, False),
        ((2.31, 2.05), (2.30, 2.20), (2.30, 2.209), False),
        ((6.43, 6.70, 13.5, 14.6, 14.0), (6.42, 6.74, 13.3, 15.1, 12.8), (6.43, 6.76, 13.4, 15.2, 13.3), True),
        ((2.50, 2.57, 2.49, 2.41, 2.40), (2.51, 2.70, 2.66, 2.49, 2.47), (2.51, 2.51, 2.54, 2.34, 2.42), True),
        ((2.31, 2.30), (2.30, 10.87), (2.30, 8.0), False),
        ((2.31, 25.0), (2.30, 10.87), (2.30, 8.0), False),
        ((2.60, 10.87), (2.30, 10.87), (2.30, 8.0), False),
        ((2.31, math.nan), (2.30, 10.87), (2.30, 8.0), False),
        ((2.31, 6.94, 2.30), (2.30, 10.87, 2.80), (2.30, math.nan, 2.80), True),
        ((), (2.30,), None, False),
    ],
)
def test_losses_agree_closely_until_rounding_decides_them(
    losses: tuple[float, ...], theirs: tuple[float, ...], rounded: tuple[float, ...] | None, agree: bool
) -> None:
    """The fourth is what a ResNet-56 in bf16 and in fp32 comes to in its first updates at a rate of 0.1, the fifth one of 110
    layers with dropout on its shortcuts: in fp32 its losses do not agree to 5 % with those in another memory format either."""
    trial, reference = Trial("bf16", 1.0, 1.0, losses, "measured"), Trial("fp32", 1.0, 1.0, theirs, "measured")
    assert agrees(trial, reference, rounded and Trial("fp32", 1.0, 1.0, rounded, "measured")) == agree


def test_the_reference_is_begun_from_rounded_weights_of_a_copy(network: Network, recipe: Recipe, digits: Dataset) -> None:
    before = copy.deepcopy(network.state_dict())
    make_step = trials(network, recipe, digits)
    plain, rounded = (make_step(PLANS["fp32"], rounded=which)(0) for which in (False, True))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.bfloat16())
    assert rounded == trials(network, recipe, digits)(PLANS["fp32"])(0) != plain
    assert rounded == pytest.approx(plain, rel=plan.SENSITIVE)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_loss_that_is_not_finite_never_agrees(network: Network) -> None:
    lost = {
        "fp32-channels-last": slow(0.0, loss=math.nan),
        "bf16": slow(0.0, loss=math.inf),
        "fp32-fused": slow(0.0, loss=math.nan),
    }
    outcomes = {"fp32": slow(0.02), "fp32, rounded": slow(0.02), **lost}
    chosen, _, _ = choose(steps_of(outcomes, []), network, CPU, Length(steps=100), steps=2)
    assert chosen.name == "fp32"


def test_compiling_is_tried_only_for_runs_of_more_than_ten_minutes(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "compile_obstacle", lambda *_: None)
    outcomes = {name: slow(0.01) for name in plan.PLANS}
    for length, compiles in (
        (Length(steps=100), 0),
        (Length(steps=10**6), 1),
        (Length(seconds=599), 0),
        (Length(seconds=601), 1),
    ):
        asked: list[str] = []
        choose(steps_of(outcomes, asked), network, CPU, length, steps=2, limit=0.05)
        assert sum("compile" in name for name in asked) == compiles


def test_compiling_is_left_out_of_runs_of_several_processes_with_its_reason(network: Network) -> None:
    asked: list[str] = []
    outcomes = {name: slow(0.01) for name in plan.PLANS}
    _, _, note = choose(steps_of(outcomes, asked), network, CPU, Length(steps=10**6), steps=2, limit=0.05, world=2)
    assert not any("compile" in name for name in asked)
    assert note == "compiling is skipped: it is for runs of one process"


@pytest.mark.parametrize(("name", "instead"), [("fp32-compile", "fp32-channels-last"), ("bf16-compile-stages", "bf16")])
def test_a_plan_that_compiles_is_refused_for_several_processes(name: str, instead: str) -> None:
    plan.check(PLANS[name], CPU)
    plan.check(PLANS[instead], CPU, 2)
    with pytest.raises(RequestError, match=f"'{name}' compiles .* this one has 2. Choose --plan {instead} or auto"):
        plan.check(PLANS[name], CPU, 2)


def test_a_slow_start_counts_only_in_a_short_run() -> None:
    quick = Trial("fp32", 0.02, 0.0, (1.0,), "measured")
    late = Trial("fp32-compile", 0.01, 50.0, (1.0,), "measured")
    for length, best in (
        (Length(steps=100), quick),
        (Length(steps=100_000), late),
        (Length(seconds=60), quick),
        (Length(seconds=600), late),
    ):
        assert min((quick, late), key=length.cost) is best


def test_without_a_compiler_compiling_is_skipped_with_one_line(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    assert "no C++ compiler" in str(plan.compile_obstacle(network, CPU))
    deep = nn.Sequential(*(Unit(nn.Identity()) for _ in range(121)))
    assert "more than 120 units" in str(plan.compile_obstacle(deep, CPU))  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"'bf16-compile' cannot be used here: there is no C\+\+ compiler"):
        plan.check(plan.PLANS["bf16-compile"], CPU)
    plan.check(plan.PLANS["bf16"], CPU)


def test_a_plan_that_does_not_exist_is_refused_with_those_that_do() -> None:
    assert plan.named("bf16") is PLANS["bf16"]
    with pytest.raises(RequestError, match=r"no plan called 'fp16'.*'fp32'|no plan called 'fp16'.*Valid: auto, fp32"):
        plan.named("fp16")


def test_compiled_stages_share_the_weights_and_compute_the_same(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def eager(module: nn.Module, **options: object) -> Callable[..., torch.Tensor]:
        assert options["fullgraph"] is True
        return module.forward

    monkeypatch.setattr(torch, "compile", eager)
    x = torch.randn(2, 1, 8, 8)
    network.eval()
    expected = network(x)
    for name in ("fp32", "fp32-compile", "bf16-compile-stages"):
        assert torch.equal(compiled(network, PLANS[name])(x), expected)


def test_channels_last_is_a_layout_and_not_another_tensor() -> None:
    x = torch.randn(2, 3, 4, 4)
    placed = PLANS["fp32-channels-last"].placed(x)
    assert torch.equal(placed, x)
    assert placed.is_contiguous(memory_format=torch.channels_last)
    assert PLANS["fp32"].placed(x) is x


def test_what_the_backward_pass_keeps_is_counted_per_image() -> None:
    """A chain of a linear layer and a ReLU keeps its input and the ReLU's output."""

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(10, 30)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.layer(x))

    chain = Chain()
    assert plan.activation_bytes(chain, torch.zeros(4, 10), PLANS["fp32"]) == 4 * (10 + 30)  # type: ignore[arg-type]


def test_a_forecast_counts_weights_gradients_momentum_average_and_activations(network: Network, recipe: Recipe) -> None:
    found = forecast.needs(network, recipe, PLANS["fp32"], Share(), CPU, 12.34)
    weights = sum(p.numel() for p in network.parameters())
    kept = plan.activation_bytes(copy.deepcopy(network), torch.zeros(2, 1, 8, 8), PLANS["fp32"])
    assert found == {"seconds": 12.3, "memory_mib": round((4 * 4 * weights + 16 * kept) / 2**20)}


@pytest.mark.parametrize(
    ("largest", "sparing", "expected", "calls"),
    [
        (2**40, False, 2**30, [(-3, 2**30), (-1, 2**31 - 1)]),
        (2**25, False, 2**25, [(-3, 2**30), (-3, 2**25), (-1, 2**31 - 1)]),
        (0, False, 0, [(-3, 2**30), (-3, 2**25)]),
        (2**25, True, 2**18, [(-3, 2**18), (-1, 2**18)]),
        (0, True, 0, [(-3, 2**18)]),
    ],
    ids=["newer glibc", "older glibc", "refuses all", "sparing", "refuses all, sparing"],
)
def test_large_buffers_come_from_the_heap_as_far_as_the_c_library_lets_them(
    monkeypatch: pytest.MonkeyPatch, largest: int, sparing: bool, expected: int, calls: list[tuple[int, int]]
) -> None:
    """glibc's mallopt returns 1, or 0 for a threshold of mapping (-3) that it refuses; that of trimming (-1) it always takes."""
    made: list[tuple[int, int]] = []

    class Library:
        @staticmethod
        def mallopt(parameter: int, value: int) -> int:
            made.append((parameter, value))
            return int(parameter == -1 or value <= largest)

    monkeypatch.setattr(plan.ctypes, "CDLL", lambda _: Library)
    assert plan.set_allocator(sparing) == plan.apply(PLANS["fp32"], torch.get_num_threads(), CPU, sparing=sparing) == expected
    assert made == calls + calls


def test_without_the_c_librarys_thresholds_the_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.ctypes, "CDLL", lambda _: object())
    assert plan.set_allocator(False) == 0


def test_the_exact_plan_runs_in_one_thread() -> None:
    threads = torch.get_num_threads()
    try:
        plan.apply(PLANS["exact"], 2, CPU)
        assert torch.get_num_threads() == 1
        plan.apply(PLANS["fp32"], 2, CPU)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
