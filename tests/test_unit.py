"""The unit's one line, its merges, the walk, and branches that are switched off."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from residua import keyed
from residua.models import create_model
from residua.shortcuts import PoolingIndices
from residua.unit import Add, BranchOnly, Concat, Gate, SampledAdd, Unit, Unpool, draw_depth, switched_off, walk


class Times(nn.Module):
    """Multiplies by a number, and adds what else it is given."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor, *extra: Tensor) -> Tensor:
        return self.factor * x + sum(extra)


X = torch.tensor([[-2.0, 1.0, 3.0]])


def test_a_unit_is_post_of_merge_of_shortcut_and_branch() -> None:
    unit = Unit(Times(3), Times(10), post=nn.ReLU())
    assert torch.equal(unit(X), torch.relu(10 * X + 3 * X))


def test_a_unit_without_shortcut_is_its_branch_alone_and_has_no_shortcut_module() -> None:
    unit = Unit(Times(3))
    assert isinstance(unit.merge, BranchOnly)
    assert torch.equal(unit(X), 3 * X)
    assert [name for name, _ in unit.named_children()] == ["branch", "merge", "post"]


def test_further_inputs_go_to_the_branch_only() -> None:
    assert torch.equal(Unit(Times(3), nn.Identity())(X, torch.ones(3)), X + 3 * X + 1)


def test_concatenation_joins_the_channels() -> None:
    assert torch.equal(Unit(Times(3), nn.Identity(), Concat())(X), torch.cat((X, 3 * X), dim=1))


def test_a_gate_weighs_branch_and_shortcut() -> None:
    t = torch.sigmoid(0.5 * X)
    torch.testing.assert_close(Unit(Times(3), nn.Identity(), Gate(Times(0.5)))(X), t * 3 * X + (1 - t) * X)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_unpooling_puts_each_value_where_the_largest_of_its_window_stood(dims: int) -> None:
    pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1](2)
    x = torch.randn(2, 3, *(4, 6, 2)[:dims])
    unit = Unit(nn.Sequential(pool, Times(-2)), PoolingIndices(2), Unpool(2), Times(4))
    y = unit(x)
    assert y.shape == x.shape
    stands = y != 0
    assert torch.equal(y[stands], -8 * x[stands])
    assert int(stands.sum()) == x.numel() // 2**dims
    torch.testing.assert_close(pool(torch.where(stands, x, -torch.inf)), pool(x), rtol=0, atol=0)
    with switched_off(unit):
        assert torch.equal(unit(x), torch.zeros_like(x))
    assert not next(walk(unit)).removable


def test_pooling_indices_of_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sizes that it divides, not \(4, 5\)"):
        PoolingIndices(2)(torch.zeros(1, 1, 4, 5))


def test_a_sampled_addition_takes_all_or_nothing_in_training_and_the_expectation_in_evaluation() -> None:
    unit = Unit(Times(3), nn.Identity(), SampledAdd(0.25)).train()
    for kept in (0.0, 1.0):
        unit.merge.keep.fill_(kept)
        assert torch.equal(unit(X), X + kept * 3 * X)
    torch.testing.assert_close(unit.eval()(X), X + 0.75 * 3 * X)
    assert not unit.state_dict()


def test_the_draw_of_depth_is_a_function_of_its_keys_with_the_stated_probability() -> None:
    merges = [SampledAdd(0.3) for _ in range(4)]
    kept = []
    for step in range(2_000):
        draw_depth(merges, 7, step)
        kept.append([float(merge.keep) for merge in merges])
    shares = torch.tensor(kept).mean(0)
    assert bool(((shares - 0.7).abs() < 4 * (0.21 / 2_000) ** 0.5).all())
    draw_depth(merges, 7, 11)
    assert [float(merge.keep) for merge in merges] == kept[11]
    assert kept[11] == [float(keyed.uniform(7, 11, "depth", index) >= 0.3) for index in range(4)]
    assert len({tuple(row) for row in kept}) == 16, "the units are drawn independently"


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        (Unit(Times(3), Times(10), post=nn.ReLU()), torch.relu(10 * X)),
        (Unit(Times(3), nn.Identity(), Concat()), torch.cat((X, 0 * X), dim=1)),
        (Unit(Times(3), nn.Identity(), Gate(Times(0.5))), (1 - torch.sigmoid(0.5 * X)) * X),
        (Unit(Times(3), nn.Identity(), SampledAdd(0.25)).eval(), X),
        (Unit(Times(3), post=Times(2)), 0 * X),
    ],
    ids=["add", "concat", "gate", "sampled", "plain"],
)
def test_a_branch_that_is_off_counts_as_zero_and_comes_back(unit: Unit, expected: Tensor) -> None:
    before = unit(X)
    with switched_off(unit):
        torch.testing.assert_close(unit(X), expected)
    assert torch.equal(unit(X), before)


def test_a_unit_is_back_on_after_an_error() -> None:
    unit = Unit(Times(3), nn.Identity())
    with pytest.raises(ZeroDivisionError), switched_off(unit):
        raise ZeroDivisionError
    assert torch.equal(unit(X), 4 * X)
    assert not unit.branch._forward_hooks


def test_the_walk_yields_outer_units_before_inner_ones_with_their_depth() -> None:
    inner = Unit(nn.Linear(3, 3), nn.Identity())
    outer = Unit(nn.Sequential(nn.Linear(3, 3), inner, nn.Linear(3, 3)), nn.Identity())
    model = nn.Sequential(outer, Unit(nn.Linear(3, 3), nn.Identity()))
    found = [(u.index, u.path, u.depth) for u in walk(model)]
    assert found == [(0, "0", 0), (1, "0.branch.1", 1), (2, "1", 0)]
    assert [u.depth for u in walk(outer)] == [0, 1], "the model itself may be a unit"


def test_names_that_begin_alike_are_not_taken_for_nesting() -> None:
    model = nn.ModuleDict({"a": Unit(nn.Linear(3, 3), nn.Identity()), "ab": Unit(nn.Linear(3, 3), nn.Identity())})
    assert [u.depth for u in walk(model)] == [0, 0]


def test_units_are_removable_where_their_input_could_stand_for_their_output() -> None:
    assert [u.removable for u in walk(create_model("resnet20"))] == [True] * 3 + [False, True, True] * 2
    assert [u.removable for u in walk(create_model("plain20"))] == [True] * 3 + [False, True, True] * 2
    assert not any(u.removable for u in walk(create_model("cifar_resnet", depth=14, shortcut="C")))
    assert not next(walk(Unit(Times(3), nn.Identity(), Concat()))).removable
    assert not next(walk(Unit(Times(3)))).removable, "nothing is known of its shape"
    assert next(walk(Unit(Times(3), nn.Identity(), Add()))).removable
