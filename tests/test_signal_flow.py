"""Direct term, identities and similarity against closed forms and against networks of linear maps."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from residua.layers import Scale, sequence
from residua.models import create_model
from residua.network import Network
from residua.signal_flow import (
    batch_statistics,
    broken_identities,
    carried,
    gradient_terms,
    similarity,
    variances,
    without_shortcuts,
)
from residua.unit import Concat, Unit


class Times(nn.Module):
    """Multiplication by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def chain(*factors: float, shortcut: bool = True) -> nn.Module:
    return nn.Sequential(*(Unit(Times(factor), nn.Identity() if shortcut else None) for factor in factors))


def data(count: int = 6, width: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, width, generator=generator, dtype=torch.float64), torch.arange(count) % width


def built(name: str, **options: object) -> Network:
    """In float64, evaluation mode, with batch statistics that are not the initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(name, num_classes=4, **options).double().train()
        for _ in range(3):
            model(torch.randn(8, 3, 8, 8, dtype=torch.float64))
        return model.eval()


def pixels(count: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64), torch.arange(count) % 4


def test_the_direct_share_of_branches_that_multiply_is_one_over_the_product() -> None:
    """dE/dx_l = dE/dx_L prod (1 + c_i), of which 1 is direct."""
    factors = (0.5, -0.25, 2.0)
    terms = gradient_terms(chain(*factors), *data())
    for place in range(3):
        whole = math.prod(1 + factor for factor in factors[place:])
        assert terms.direct_share()[place] == pytest.approx(1 / whole)
        assert terms.sum_derivative()[place].tolist() == pytest.approx([whole - 1] * 6)
        longest = terms.longest[place] / terms.direct[place]
        assert longest.tolist() == pytest.approx([abs(math.prod(factors[place:]))] * 6)


def test_a_branch_that_takes_the_signal_away_has_the_derivative_minus_one() -> None:
    terms = gradient_terms(chain(0.5, -1.0), *data())
    assert terms.sum_derivative()[0].tolist() == pytest.approx([-1.0] * 6)
    assert terms.full[0].max() < 1e-12 < terms.direct[0].min()


def test_a_plain_network_has_no_direct_term_and_only_the_product_of_jacobians() -> None:
    terms = gradient_terms(chain(0.5, 3.0, shortcut=False), *data())
    assert terms.direct_share() == [0.0, 0.0]
    assert terms.sum_derivative().isnan().all()
    assert torch.equal(terms.full, terms.longest)


def test_a_plain_unit_cuts_the_direct_term_of_what_lies_before_it_alone() -> None:
    model = nn.Sequential(Unit(Times(0.5), nn.Identity()), Unit(Times(0.5)), Unit(Times(1.0), nn.Identity()))
    assert gradient_terms(model, *data()).direct_share() == pytest.approx([0.0, 0.0, 0.5])


def test_direct_term_and_weights_make_up_the_gradient_of_a_real_network() -> None:
    model = built("cifar_resnet", depth=14)
    x, labels = pixels()
    terms = gradient_terms(model, x, labels)
    inputs: list[Tensor] = []
    units = [unit for stage in model.stages for unit in stage]  # type: ignore[attr-defined]
    handles = [unit.register_forward_pre_hook(lambda _m, args: inputs.append(args[0])) for unit in units]
    loss = nn.functional.cross_entropy(model(x.requires_grad_()), labels, reduction="sum")
    expected = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in torch.autograd.grad(loss, inputs)])
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(terms.full, expected)


def test_identity_units_keep_both_identities_to_rounding() -> None:
    model = built("preact_cifar_resnet", depth=20)
    checks, chains = broken_identities(model, *pixels(2))
    exact = [check for check in checks if not check.why]
    assert len(exact) >= len(checks) - 3
    for check in exact:
        assert check.signal is not None
        assert check.gradient is not None
        assert check.signal < 1e-15
        assert check.gradient < 1e-14
    assert sum(item["last"] - item["first"] + 1 for item in chains) == len([c for c in checks if c.signal is not None])
    assert max(item["signal"] for item in chains) < 1e-14
    assert max(item["gradient"] for item in chains) < 1e-13


def test_a_rectifier_after_the_addition_breaks_both_identities_and_is_named() -> None:
    checks, _ = broken_identities(built("cifar_resnet", depth=14), *pixels(2))
    kept = [check for check in checks if check.signal is not None]
    assert kept
    for check in kept:
        assert "ReLU after the merge" in check.why
        assert check.signal is not None
        assert check.gradient is not None
        assert check.signal > 1e-3
        assert check.gradient > 1e-3


def test_a_scaled_shortcut_breaks_the_identities_by_what_it_scales() -> None:
    model = nn.Sequential(Unit(Times(0.25), Scale(0.5)), Unit(Times(1.0), nn.Identity()))
    checks, chains = broken_identities(model, *data())
    # y = 0.75 x: what is missing is 0.5 x; and the same for the gradient
    assert checks[0].signal == pytest.approx(0.5 / 0.75)
    assert checks[0].gradient == pytest.approx(0.5 / 0.75)
    assert checks[0].why == "shortcut Scale"
    assert checks[1].signal == pytest.approx(0, abs=1e-15)
    assert checks[1].why == ""
    # x_L = 1.5 x, of which x + F_1 + F_2 = x + 0.25 x + 0.75 x = 2 x
    assert chains == [{"first": 0, "last": 1, "signal": pytest.approx(0.5 / 1.5), "gradient": pytest.approx(0.5 / 1.5)}]


def test_concatenation_has_another_shape_and_is_not_added() -> None:
    model = nn.Sequential(Unit(nn.Linear(5, 2), nn.Identity(), Concat())).double()
    checks, chains = broken_identities(model, *data())
    assert checks[0].signal is None
    assert checks[0].why == "merge Concat, another shape"
    assert chains == []


def test_variances_are_those_of_the_signals() -> None:
    x, labels = data(1000)
    found = variances(chain(1.0, -0.5), x, labels)
    base = float(x.var(correction=0))
    assert found["signal"] == pytest.approx([base, 4 * base, base])
    assert found["branch"] == pytest.approx([base, base])
    assert found["gradient"][0] == pytest.approx(found["gradient"][2])
    assert found["gradient"][1] == pytest.approx(found["gradient"][2] / 4)


def test_similarity_ignores_rotation_and_scale_and_sees_nothing_in_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(200, 30, generator=generator, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(30, 30, generator=generator, dtype=torch.float64))
    assert similarity(a, 3 * a @ rotation) == pytest.approx(1)
    assert abs(similarity(a, torch.randn(200, 30, generator=generator, dtype=torch.float64)) or 1) < 0.05
    assert similarity(a, torch.ones_like(a)) is None


def test_similarity_is_not_told_where_the_estimate_has_no_value() -> None:
    a, _ = data(5)
    assert all(similarity(a[:count], a[:count]) is None for count in range(1, 4))
    assert similarity(a[:4], a[:4]) == pytest.approx(1)
    assert similarity(torch.full_like(a, math.nan), a) is None
    assert similarity(1e200 * a, a) is None


def test_the_unbiased_estimate_is_that_of_its_definition() -> None:
    """Song et al. 2012: the mean of k(i,j) (l(i,j) + l(q,r) - 2 l(i,q)) over all i, j, q, r that differ."""
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(6, 3, generator=generator, dtype=torch.float64) for _ in range(2))

    def hsic(k: Tensor, l: Tensor) -> float:
        terms = [
            float(k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]))
            for i in range(6) for j in range(6) for q in range(6) for r in range(6) if len({i, j, q, r}) == 4
        ]  # fmt: skip
        return sum(terms) / len(terms)

    k, l = a @ a.T, b @ b.T
    assert hsic(k, k) > 0
    assert hsic(l, l) > 0
    assert similarity(a, b) == pytest.approx(hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l)))


def test_what_the_shortcuts_carry_is_all_where_branches_are_parallel_and_none_in_a_plain_network() -> None:
    x, _ = data(50)
    assert carried(chain(0.5, 2.0), x, 0) == pytest.approx(1)
    assert carried(chain(0.5, 2.0, shortcut=False), x, 0) is None
    torch.manual_seed(0)
    model = nn.Sequential(*(Unit(sequence(linear=nn.Linear(5, 5)), nn.Identity()) for _ in range(2))).double()
    whole = model(x).detach()
    correlation = torch.corrcoef(torch.stack([(whole - whole.mean(0)).flatten(), (x - x.mean(0)).flatten()]))[0, 1]
    assert carried(model, x, 0) == pytest.approx(float(correlation) ** 2)
    assert carried(model, x, 1) != pytest.approx(float(correlation) ** 2)


def test_the_plain_twin_has_the_same_weights_and_another_answer() -> None:
    model = built("cifar_resnet", depth=8)
    twin = copy.deepcopy(model)
    assert without_shortcuts(twin) == 3
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    plain = built("cifar_resnet", depth=8, plain=True)
    plain.load_state_dict(model.state_dict())
    x, _ = pixels()
    assert torch.equal(twin(x), plain(x))
    assert not torch.equal(twin(x), model(x))
    assert without_shortcuts(plain) == 0


def test_batch_statistics_change_nothing_but_batch_normalisation() -> None:
    model = batch_statistics(built("cifar_resnet", depth=8, dropout=0.5))
    training = {type(module) for module in model.modules() if module.training}
    assert training == {nn.BatchNorm2d}
