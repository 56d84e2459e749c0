"""Schedules by closed form, optimisers against torch's, averaging by formula."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn

from residua.models import create_model
from residua.network import Network
from residua.optim import (
    Averaged,
    Muon,
    build_optimizer,
    learning_rate_factor,
    load_optimizer,
    optimizer_tensors,
    orthogonalized,
    parameter_groups,
    set_learning_rate,
)
from residua.recipe import Average, Optim, Schedule


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return create_model("cifar_resnet", depth=8, shortcut="B", normalization="group").double()


def give_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


# -------------------------------------------------------------------------------------------------------------- schedules


def test_the_rate_drops_at_the_step_and_not_before() -> None:
    schedule = Schedule(shape="steps", drops=(0.5, 0.75), drop_factor=0.1)
    expected = {0: 1, 31_999: 1, 32_000: 0.1, 47_999: 0.1, 48_000: 0.01, 63_999: 0.01}
    for step, factor in expected.items():
        assert learning_rate_factor(schedule, step / 64_000) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("total", [10, 999, 64_000])
def test_cosine_and_linear_fall_to_their_end(total: int) -> None:
    for step in range(0, total + 1, max(1, total // 10)):
        done = step / total
        cosine = 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2
        assert learning_rate_factor(Schedule(shape="cosine", final=0.1), done) == pytest.approx(cosine)
        assert learning_rate_factor(Schedule(shape="linear", final=0.1), done) == pytest.approx(1 - 0.9 * done)
        assert learning_rate_factor(Schedule(shape="constant"), done) == 1


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant", "steps"])
def test_a_warm_up_rises_linearly_and_ends_at_the_full_rate(shape: str) -> None:
    schedule = Schedule(shape=shape, warmup=0.2, warmup_factor=0.05)
    for progress in (0.0, 0.05, 0.1, 0.199):
        assert learning_rate_factor(schedule, progress) == pytest.approx(0.05 + 0.95 * progress / 0.2)
    assert learning_rate_factor(schedule, 0.2) == pytest.approx(1)


def test_after_a_warm_up_the_fall_takes_what_is_left() -> None:
    assert learning_rate_factor(Schedule(shape="linear", warmup=0.2), 0.6) == pytest.approx(0.5)
    assert learning_rate_factor(Schedule(shape="cosine", warmup=0.2), 0.6) == pytest.approx(0.5)


def test_a_constant_warm_up_jumps_and_leaves_the_drops_where_they_are() -> None:
    schedule = Schedule(shape="steps", drops=(0.5,), warmup=400 / 64_000, warmup_factor=0.1, warmup_shape="constant")
    factors = [learning_rate_factor(schedule, step / 64_000) for step in (0, 399, 400, 31_999, 32_000)]
    assert factors == pytest.approx([0.1, 0.1, 1, 1, 0.1])


@given(
    st.sampled_from(["cosine", "linear"]), st.floats(0, 0.99), st.floats(0, 1), st.lists(st.floats(0, 1), min_size=2, max_size=9)
)
def test_after_the_warm_up_the_rate_never_rises_and_stays_in_its_range(
    shape: str, warmup: float, final: float, places: list[float]
) -> None:
    schedule = Schedule(shape=shape, warmup=warmup, final=final)
    after = sorted(place for place in places if place >= warmup)
    factors = [learning_rate_factor(schedule, place) for place in after]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(factors))
    assert all(final - 1e-12 <= factor <= 1 + 1e-12 for factor in factors)


# ----------------------------------------------------------------------------------------------------------------- groups


def test_biases_and_normalizations_are_not_decayed_unless_all_is() -> None:
    model = network()
    norms_and_biases = {id(p) for m in model.modules() if isinstance(m, nn.GroupNorm) for p in m.parameters()}
    norms_and_biases.add(id(model.head.classifier.bias))
    some = build_optimizer(model, Optim(weight_decay=0.01, decay_all=False))
    decay = {id(p): group["weight_decay"] for group in some.param_groups for p in group["params"]}
    assert decay == {id(p): 0.0 if id(p) in norms_and_biases else 0.01 for p in model.parameters()}
    every = build_optimizer(model, Optim(weight_decay=0.01, decay_all=True))
    assert {group["weight_decay"] for group in every.param_groups} == {0.01}


def test_the_rate_decays_with_the_distance_from_the_head_and_follows_the_schedule() -> None:
    model = network()
    optimizer = build_optimizer(model, Optim(lr=0.5, layer_decay=0.8))
    set_learning_rate(optimizer, 0.25)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    order = list(model.depth_order())
    assert len(order) == 5
    for index, group in enumerate(order):
        assert [rates[id(p)] for p in group] == pytest.approx([0.25 * 0.5 * 0.8 ** (4 - index)] * len(group))
    set_learning_rate(optimizer, 1.0)
    assert max(group["lr"] for group in optimizer.param_groups) == 0.5


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon", "rmsprop"])
@pytest.mark.parametrize("decay_all", [True, False])
def test_every_parameter_is_updated_once(name: str, decay_all: bool) -> None:
    model = network()
    optimizer = build_optimizer(model, Optim(name=name, decay_all=decay_all))
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    give_gradients(model, 0)
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters()))


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_the_papers_update(nesterov: bool) -> None:
    """v = m v + g + d w;  w = w - lr v  (Nesterov: w = w - lr (g + d w + m v)), here in plain arithmetic."""
    model = network()
    optim = Optim(lr=0.3, momentum=0.8, nesterov=nesterov, weight_decay=0.02)
    optimizer = build_optimizer(model, optim)
    weights = [p.detach().clone() for p in model.parameters()]
    velocity = [torch.zeros_like(w) for w in weights]
    for step, factor in enumerate((1.0, 0.5, 0.1)):
        give_gradients(model, step)
        for index, parameter in enumerate(model.parameters()):
            slope = parameter.grad + 0.02 * weights[index]
            velocity[index] = 0.8 * velocity[index] + slope
            weights[index] = weights[index] - factor * 0.3 * (slope + 0.8 * velocity[index] if nesterov else velocity[index])
        set_learning_rate(optimizer, factor)
        optimizer.step()
    for found, expected in zip(model.parameters(), weights):
        torch.testing.assert_close(found.detach(), expected, rtol=1e-12, atol=1e-12)


def test_sgd_equals_torchs_over_all_parameters() -> None:
    ours, theirs = network(), network()
    own = build_optimizer(ours, Optim(lr=0.1, momentum=0.9, weight_decay=1e-4, layer_decay=1.0))
    other = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for step in range(4):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        own.step()
        other.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))


# ------------------------------------------------------------------------------------------------------------------- muon


@pytest.mark.parametrize("shape", [(16, 144), (64, 64), (200, 30), (1, 9), (9, 1)])
def test_orthogonalized_matrices_have_singular_values_near_one_and_the_same_directions(shape: tuple[int, int]) -> None:
    both = torch.randn((2, *shape), generator=torch.Generator().manual_seed(0))
    matrix, found = both[1], orthogonalized(both)[1]
    torch.testing.assert_close(found, orthogonalized(both[1:])[0])
    values = torch.linalg.svdvals(found)
    assert float(values.max()) <= 1.3
    if shape[0] != shape[1]:  # a square random matrix has a singular value near zero, which five steps cannot lift
        assert float(values.min()) >= 0.6
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    core = u.T @ found @ vh.T
    torch.testing.assert_close(core, torch.diag(core.diagonal()), atol=1e-3, rtol=0)
    assert float(core.diagonal().min()) > 0


@pytest.mark.parametrize(("rows", "columns"), [(256, 300), (300, 259), (513, 600), (700, 515)])
def test_symmetric_halves_give_the_iteration_as_it_is_written(rows: int, columns: int) -> None:
    both = torch.randn((2, rows, columns), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = []
    for matrix in both:
        x = matrix / (torch.linalg.matrix_norm(matrix) + 1e-7)
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
        expected.append(x)
    torch.testing.assert_close(orthogonalized(both), torch.stack(expected), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("shape", [(256, 64, 3, 3), (300, 260, 1, 1), (520, 256, 1, 1), (256, 60, 5, 1)])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_wide_weights_are_updated_in_place_in_either_order_of_memory(shape: tuple[int, ...], order: torch.memory_format) -> None:
    weight = nn.Parameter(torch.randn(shape, dtype=torch.float64).contiguous(memory_format=order))
    start = weight.detach().clone()
    optimizer = Muon([{"params": [weight], "lr": 0.1, "base_lr": 0.1, "weight_decay": 0.5}], momentum=0.9)
    weight.grad = torch.randn(shape, dtype=torch.float64)
    direction = orthogonalized((0.1 * weight.grad + 0.9 * 0.1 * weight.grad).flatten(1)[None])[0].view(shape)
    optimizer.step()
    size = 0.1 * 0.2 * max(shape[0], math.prod(shape[1:])) ** 0.5
    torch.testing.assert_close(weight.detach(), start * 0.95 - size * direction)


def test_a_direction_of_nothing_is_nothing() -> None:
    assert not orthogonalized(torch.zeros(1, 300, 400)).any()


def test_muon_turns_the_momentum_of_a_convolution_into_an_orthogonal_step_of_the_stated_size() -> None:
    weight = nn.Parameter(torch.randn(8, 3, 3, 3))
    start = weight.detach().clone()
    optimizer = Muon([{"params": [weight], "lr": 0.1, "base_lr": 0.1, "weight_decay": 0.5}], momentum=0.9)
    weight.grad = torch.randn(8, 3, 3, 3)
    buffer = 0.1 * weight.grad
    direction = orthogonalized((0.1 * weight.grad + 0.9 * buffer).flatten(1)[None]).view_as(weight)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), start * (1 - 0.1 * 0.5) - 0.1 * 0.2 * math.sqrt(27) * direction)
    update = (start * 0.95 - weight.detach()) / 0.1
    assert float(update.square().mean().sqrt()) == pytest.approx(0.2, rel=0.3)


def test_muon_gives_convolutions_of_one_shape_what_each_would_get_alone() -> None:
    weights = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((4, 3, 3, 3), (6, 4, 1, 1), (4, 3, 3, 3))]
    alone = [nn.Parameter(weight.detach().clone()) for weight in weights]
    settings = {"lr": 0.1, "base_lr": 0.1, "weight_decay": 0.5}
    together = Muon([{"params": weights, **settings}])
    single = [Muon([{"params": [weight], **settings}]) for weight in alone]
    for _ in range(3):
        for weight, twin in zip(weights, alone):
            weight.grad = torch.randn_like(weight)
            twin.grad = weight.grad.clone()
        together.step()
        for optimizer in single:
            optimizer.step()
    for weight, twin in zip(weights, alone):
        torch.testing.assert_close(weight, twin, rtol=1e-10, atol=1e-12)


def test_muon_can_turn_weights_and_keep_their_norm() -> None:
    weights = [nn.Parameter(scale * torch.randn(8, 3, 3, 3, dtype=torch.float64)) for scale in (0.5, 2.0)]
    norms = [float(weight.detach().norm()) for weight in weights]
    optimizer = Muon([{"params": weights, "lr": 0.1, "base_lr": 0.1, "weight_decay": 0.5}], keep_norm=True)
    for _ in range(3):
        before = [weight.detach().clone() for weight in weights]
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        optimizer.step()
        for weight, old, norm in zip(weights, before, norms):
            update = weight.detach() - old * (norm / old.norm())
            assert float(update.norm()) == pytest.approx(0.1 * norm)
            assert float(torch.linalg.svdvals(update.flatten(1)).std() / update.norm()) < 0.1, "not one deviation"


def test_a_weight_without_a_gradient_is_not_turned() -> None:
    weight = nn.Parameter(torch.randn(4, 2, 3, 3))
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    Muon([{"params": [weight], "lr": 0.1, "base_lr": 0.1, "weight_decay": 0.0}], keep_norm=True).step()
    torch.testing.assert_close(weight.detach(), before)


def test_scales_offsets_the_head_and_the_stem_learn_at_rates_of_their_own_and_decay_alike() -> None:
    model = create_model("speed_resnet", widths=[16, 16, 16])
    factors = {"bias_factor": 8.0, "scale_factor": 2.0, "head_factor": 0.5, "stem_factor": 0.25}
    groups = parameter_groups(model, Optim(name="sgd", lr=0.1, weight_decay=0.03, **factors))
    found = {id(parameter): group for group in groups for parameter in group["params"]}
    assert len(found) == len(list(model.parameters())) == sum(len(group["params"]) for group in groups)
    expected = {"stem.whitening.bias": 8.0 * 0.25, "head.classifier.weight": 0.5}
    for name, parameter in model.named_parameters():
        of_norm = 2.0 if name.endswith("weight") else 8.0
        factor = expected.get(name, of_norm if "norm" in name else 1.0)
        group = found[id(parameter)]
        assert group["base_lr"] == pytest.approx(0.1 * factor), name
        assert group["base_lr"] * group["weight_decay"] == pytest.approx(0.1 * 0.03), name
    assert expected.keys() < dict(model.named_parameters()).keys()


def test_scales_follow_the_offsets_unless_they_have_a_factor_and_stay_with_a_factor_of_zero() -> None:
    model = network()
    alike = parameter_groups(model, Optim(name="sgd", lr=0.1, bias_factor=8.0, decay_all=False))
    assert {group["base_lr"]: group["weight_decay"] for group in alike} == pytest.approx({0.1: 1e-4, 0.8: 0.0})
    optimizer = build_optimizer(model, Optim(name="sgd", lr=0.1, scale_factor=0.0, weight_decay=0.1))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    give_gradients(model, 0)
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (parameter.ndim == 1 and name.endswith("weight")), name


def test_muon_leaves_the_classifier_and_the_normalizations_to_nesterov_momentum() -> None:
    ours, theirs = network(), network()
    own = build_optimizer(ours, Optim(name="muon", lr=0.1, momentum=0.9, weight_decay=0.01))
    other = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    for step in range(3):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        own.step()
        other.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters()):
        if a.ndim < 3:
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=name)
        else:
            assert not torch.allclose(a, b)


# -------------------------------------------------------------------------------------------------- averaging and storing


@pytest.mark.parametrize("rise", [0.0, 3.0])
def test_the_average_follows_its_formula_over_weights_and_buffers(rise: float) -> None:
    model = create_model("cifar_resnet", depth=8).double()
    average = Averaged(model, Average(decay=0.5, rise=rise))
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for step in range(12):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.copy_(tensor + 1 + step)
        decay = min(0.5 * ((step + 1) / 12) ** rise, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor if tensor.is_floating_point() else tensor.clone()
        average.update(step, 12)
    for name, tensor in average.tensors.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-12)
    assert all(not tensor.requires_grad for tensor in average.tensors.values())


def test_a_look_ahead_brings_the_weights_back_to_their_average_every_k_updates_and_at_the_end() -> None:
    """Zhang et al. 2019, algorithm 1: slow <- slow + alpha (fast - slow), then fast <- slow. Here fast gains 1 an update."""
    layer = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(layer.weight)
    average = Averaged(layer, Average(decay=0.5, every=5, lookahead=True))
    slow, fast = 0.0, 0.0
    for step in range(12):
        with torch.no_grad():
            layer.weight += 1
        fast += 1
        if step in (4, 9, 11):
            slow = slow + (1 - min(0.5, (1 + step) / (10 + step))) * (fast - slow)
            fast = slow
        average.update(step, 12)
        assert layer.weight.item() == pytest.approx(fast), step
        assert average.tensors["weight"].item() == pytest.approx(slow), step


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon", "rmsprop"])
def test_an_optimizer_that_was_stored_makes_the_identical_next_step(name: str) -> None:
    model = network()
    recipe = Optim(name=name, lr=0.01, decay_all=False)
    optimizer = build_optimizer(model, recipe)
    for step in range(3):
        give_gradients(model, step)
        optimizer.step()
    stored = save(optimizer_tensors(optimizer))
    twin = network(seed=9)
    twin.load_state_dict(model.state_dict())
    other = build_optimizer(twin, recipe)
    load_optimizer(other, load(stored))
    for step in (3, 4):
        for each, its in ((model, optimizer), (twin, other)):
            give_gradients(each, step)
            set_learning_rate(its, 0.5)
            its.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters()))


def test_an_optimizer_that_has_not_stepped_stores_nothing() -> None:
    optimizer = build_optimizer(network(), Optim())
    assert optimizer_tensors(optimizer) == {}
    load_optimizer(optimizer, {})
