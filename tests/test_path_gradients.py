"""Gradients of single paths: their sum is the gradient, exactly; lengths in closed form; sampling within its error."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from residua.gates import BRANCH, watched
from residua.layers import sequence
from residua.models import create_model
from residua.network import Network
from residua.path_gradients import Pass, drawn, effective, every, norms, orders, products, sums_by_length
from residua.unit import Concat, Gate, Unit, switched_off


def network(seed: int = 0, name: str = "cifar_resnet", **options: object) -> Network:
    """Random weights in float64 with batch statistics that are not the initial ones, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create_model(name, num_classes=4, **options).double().train()
        for _ in range(3):
            model(torch.randn(8, 3, 8, 8, dtype=torch.float64))
        return model.eval()


def images(count: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64), torch.arange(count) % 4


def eight_units(kind: str) -> nn.Module:
    """8 units of the kind; those of `cifar_resnet` come as 3 n, so one of nine is cut to a plain unit."""
    if kind == "resnet":
        model = network(depth=20)
        stage: Any = model.stages[0]
        stage[1] = Unit(stage[1].branch, post=stage[1].post)
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(192, 12)]
        width = 12
        for place in range(8):
            if kind == "dense":
                layers.append(Unit(sequence(linear=nn.Linear(width, 3), act=nn.Tanh()), nn.Identity(), Concat()))
                width += 3
            else:
                merge = Gate(nn.Linear(12, 12)) if kind == "gated" else None
                shortcut: nn.Module = nn.Identity() if place % 3 else nn.Linear(12, 12)
                layers.append(Unit(sequence(act=nn.Tanh(), linear=nn.Linear(12, 12)), shortcut, merge, nn.ReLU()))
        return nn.Sequential(*layers, nn.Linear(width, 4)).double().eval()


@pytest.mark.parametrize("kind", ["resnet", "projected", "gated", "dense"])
def test_the_gradients_of_all_paths_of_8_units_add_up_to_the_gradient(kind: str) -> None:
    model = eight_units(kind)
    x, labels = images(2)
    with watched(model) as ways:
        assert len(ways.gated) == 8
        once = Pass(model, ways, x, labels)
        full = once.gradient()
        total, by_length = torch.zeros_like(full), torch.zeros(9, *full.shape, dtype=torch.float64)
        count = 0
        for taken in itertools.product((0.0, 1.0), repeat=8):
            paths = torch.tensor(taken, dtype=torch.float64)[:, None].expand(8, 2)
            part = once.gradient(ways.only(paths))
            total, count = total + part, count + 1
            by_length[int(sum(taken))] += part
        sums = sums_by_length(model, ways, x, labels)
    assert count == 2**8
    x.requires_grad_()
    (plain,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), labels, reduction="sum"), x)
    assert full.norm() > 1e-6
    torch.testing.assert_close(full, plain, rtol=0, atol=0)
    assert (total - full).norm() <= 1e-10 * full.norm()
    assert (sums - by_length).norm() <= 1e-10 * full.norm()
    assert (sums.sum(0) - full).norm() <= 1e-10 * full.norm()


def test_a_path_is_the_gradient_of_a_network_that_holds_only_that_path() -> None:
    """Where nothing is nonlinear the backward pass over a path is that of the network with all other ways cut in the forward."""
    torch.manual_seed(0)
    units = [Unit(nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)) for _ in range(3)]
    model = nn.Sequential(*units).double()
    x, labels = torch.randn(2, 5, dtype=torch.float64), torch.tensor([0, 3])
    with watched(model) as ways:
        once = Pass(model, ways, x, labels)
        for taken in itertools.product((0.0, 1.0), repeat=3):
            found = once.gradient(ways.only(torch.tensor(taken)[:, None].expand(3, 2)))
            expected = once.upstream
            for unit, branch in reversed(list(zip(units, taken))):
                matrix = unit.branch.weight if branch else unit.shortcut.weight  # type: ignore[union-attr]
                expected = expected @ matrix  # type: ignore[operator]
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("factor", [0.25, 1.0, 3.0])
def test_branches_that_multiply_by_a_constant_give_norms_in_powers_of_it(factor: float) -> None:
    class Times(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return factor * x

    model = nn.Sequential(*(Unit(Times(), nn.Identity()) for _ in range(6)))
    x, labels = torch.randn(4, 5, dtype=torch.float64), torch.arange(4)
    generator = torch.Generator().manual_seed(0)
    with watched(model) as ways:
        once = Pass(model, ways, x, labels)
        base = norms(once, torch.zeros(6, 4))
        means = []
        for length in range(7):
            found = norms(once, drawn(orders(6, 4, generator), length))
            torch.testing.assert_close(found, base * factor**length)
            means.append(float(found.mean()))
    shares = products(6, range(7), means)
    p = factor / (1 + factor)
    assert shares == pytest.approx([math.comb(6, k) * p**k * (1 - p) ** (6 - k) for k in range(7)])


def test_sampled_norms_agree_with_all_paths_within_their_error() -> None:
    model = eight_units("resnet")
    x, labels = images(1)
    generator = torch.Generator().manual_seed(5)
    with watched(model) as ways:
        scores = []
        for length in range(1, 8):
            exact_paths = every(8, length)
            count = exact_paths.shape[1]
            exact = norms(Pass(model, ways, x.expand(count, -1, -1, -1), labels.expand(count)), exact_paths)
            repeated = Pass(model, ways, x.expand(200, -1, -1, -1), labels.expand(200))
            sampled = norms(repeated, drawn(orders(8, 200, generator), length))
            assert exact.std() > 0.01 * exact.mean()
            scores.append(float((sampled.mean() - exact.mean()) / (sampled.std() / math.sqrt(200))))
    assert max(map(abs, scores)) < 4
    assert max(map(abs, scores)) > 0.1, "the samples are not all paths"


def test_draws_are_paths_of_the_length_and_reach_all_of_them_evenly() -> None:
    generator = torch.Generator().manual_seed(0)
    paths = drawn(orders(5, 10_000, generator), 2)
    assert (paths.sum(0) == 2).all()
    found, counts = paths.T.unique(dim=0, return_counts=True)
    assert len(found) == math.comb(5, 2)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 30  # chi-square with 9 degrees of freedom
    assert drawn(orders(5, 7, generator), 0).sum() == 0
    assert (drawn(orders(5, 7, generator), 5) == 1).all()
    assert every(5, 2).shape == (5, 10)
    assert len(every(5, 2).T.unique(dim=0)) == 10


def test_gates_leave_the_forward_pass_and_the_model_as_they_are() -> None:
    model = network(depth=8)
    x, labels = images()
    before = model(x)
    with watched(model) as ways:
        assert torch.equal(model(x), before)
        assert [seen.y is not None for seen in ways.seen] == [True] * 3
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    with watched(model) as ways:
        once = Pass(model, ways, x, labels)
        bypass = torch.ones(3, 2, dtype=torch.float64)
        bypass[2, BRANCH] = 0
        cut = once.gradient(bypass)
    assert not torch.equal(cut, once.gradient())
    with switched_off(*[unit for _, unit in ways.units]):
        assert not torch.equal(model(x), before)


def test_a_plain_network_is_one_path() -> None:
    model = network(name="cifar_resnet", depth=8, plain=True)
    x, labels = images()
    with watched(model) as ways:
        assert not ways.gated
        sums = sums_by_length(model, ways, x, labels)
        full = Pass(model, ways, x, labels).gradient()
    assert sums.shape == (1, *x.shape)
    torch.testing.assert_close(sums[0], full)


def test_the_54_unit_network_of_the_paper_has_its_effective_share() -> None:
    """veit2016 section 5: lengths 5 to 17 of 54 units are 0.45 % of all paths."""
    shares = [1.0 if 5 <= length <= 17 else 0.0 for length in range(55)]
    shares = [share / sum(shares) for share in shares]
    low, high, share = effective(54, range(55), shares, 1.0)
    assert (low, high) == (5, 17)
    assert 100 * share == pytest.approx(0.453667, abs=1e-6)
    assert effective(54, range(55), [math.comb(54, k) / 2**54 for k in range(55)])[:2] == (20, 34)


def test_the_effective_lengths_are_the_fewest_neighbours_that_carry_the_share() -> None:
    assert effective(3, range(4), [0.5, 0.3, 0.15, 0.05], 0.8) == (0, 1, 4 / 8)
    assert effective(3, range(4), [0.05, 0.9, 0.05, 0.0], 0.95) == (0, 1, 4 / 8)
    assert effective(3, range(4), [0.04, 0.9, 0.06, 0.0], 0.94) == (1, 2, 6 / 8)
    assert effective(3, range(4), [0.0, 0.0, 0.0, 1.0]) == (3, 3, 1 / 8)
    assert products(3, range(4), [0.0, 0.0, 0.0, 0.0]) == [0, 0, 0, 0]
