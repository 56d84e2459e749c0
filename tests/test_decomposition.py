"""The division of logits among units: the parts add up, and are what the papers' equations say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from residua.analysis import NotApplicable
from residua.decomposition import decomposed, margin
from residua.models import create_model
from residua.network import Network
from residua.subjects import places
from residua.unit import Unit, walk

FAMILIES = [
    ("resnet20", {}), ("cifar_resnet", {"depth": 8, "shortcut": "B"}), ("cifar_resnet", {"depth": 8, "shortcut": "C"}),
    ("wrn_16_4", {}), ("densenet_40_12", {}), ("preact_cifar_resnet", {"depth": 8}),
]  # fmt: skip


def images(count: int = 3, side: int = 16) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def trained(name: str, **options: object) -> Network:
    """Random weights, biases too, and batch statistics that are not the initial ones."""
    torch.manual_seed(0)
    model = create_model(name, **options)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 0.5, 0.3)
    model.train()
    with torch.no_grad():
        model(images(8))
    return model.eval()


@pytest.mark.parametrize(("name", "options"), FAMILIES)
def test_the_parts_add_up_to_the_logits_in_every_family(name: str, options: dict[str, object]) -> None:
    model = trained(name, **options)
    before = {path: tensor.clone() for path, tensor in model.state_dict().items()}
    found = decomposed(model, images(), places(model, images()))
    with torch.no_grad():
        expected = model.double()(images().double())
    scale = float(expected.abs().max())
    assert torch.allclose(found.sums, expected, rtol=0, atol=1e-10 * scale)
    assert float(found.error.abs().max()) <= 1e-11 * scale
    assert float(found.units.abs().max()) > 1e-3 * scale
    assert all(torch.equal(tensor.float(), before[path].float()) for path, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_parts_of_a_linear_direct_way_are_the_products_of_equation_4() -> None:
    """x_L = x_0 + sum F_l and a linear head: the part of a unit is the classifier's product with its branch."""
    torch.manual_seed(0)
    units = [Unit(nn.Sequential(nn.Linear(5, 5), nn.Tanh()), nn.Identity()) for _ in range(3)]
    model = nn.Sequential(nn.Linear(4, 5), *units, nn.Linear(5, 6)).double().eval()
    x = torch.randn(7, 4, dtype=torch.float64)
    found = decomposed(model, x, places(model, x))
    signal = model[0](x)
    start = signal
    with torch.no_grad():
        for number, unit in enumerate(units):
            branch = unit.branch(signal)
            assert torch.allclose(found.units[number], branch @ model[-1].weight.T, atol=1e-13)
            signal = signal + branch
        assert torch.allclose(found.start, start @ model[-1].weight.T, atol=1e-13)
        assert torch.allclose(found.constant, model[-1].bias.expand(7, 6), atol=1e-13)


def test_the_parts_after_relu_are_those_of_the_values_that_pass() -> None:
    """One unit with ReLU behind it: part = sum over the values that pass of weight times branch."""
    torch.manual_seed(0)
    model = nn.Sequential(Unit(nn.Linear(5, 5), nn.Identity(), post=nn.ReLU()), nn.Linear(5, 2)).double().eval()
    x = torch.randn(9, 5, dtype=torch.float64)
    found = decomposed(model, x, places(model, x))
    with torch.no_grad():
        branch = model[0].branch(x)
        passes = (x + branch > 0).double()
        assert torch.allclose(found.units[0], (passes * branch) @ model[1].weight.T, atol=1e-13)
        assert torch.allclose(found.start, (passes * x) @ model[1].weight.T, atol=1e-13)


def test_a_bend_on_the_direct_way_shows_in_the_error() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Unit(nn.Linear(5, 5), nn.Identity(), post=nn.Tanh()), nn.Linear(5, 2)).eval()
    x = torch.randn(9, 5)
    assert float(decomposed(model, x, places(model, x)).error.abs().max()) > 0.01


def test_a_plain_network_has_all_of_it_in_its_last_unit() -> None:
    model = trained("plain20")
    found = decomposed(model, images(), places(model, images()))
    assert not found.start.any()
    assert not found.units[:-1].any()
    assert torch.allclose(found.units[-1] + found.constant, found.sums)


def test_the_margin_is_the_largest_logit_minus_the_second() -> None:
    model = trained("resnet20")
    whole, single = (decomposed(model, images(), places(model, images()), *more) for more in ((), (margin,)))
    top = whole.logits.topk(2, dim=1)
    assert torch.allclose(single.sums[:, 0], top.values[:, 0] - top.values[:, 1])
    for part in ("start", "constant"):
        picked = getattr(whole, part).gather(1, top.indices)
        assert torch.allclose(getattr(single, part)[:, 0], picked[:, 0] - picked[:, 1])
    picked = whole.units.gather(2, top.indices.expand(len(whole.units), -1, -1))
    assert torch.allclose(single.units[..., 0], picked[..., 0] - picked[..., 1])


def test_a_unit_that_is_called_twice_cannot_be_given_a_part() -> None:
    unit = Unit(nn.Linear(5, 5), nn.Identity())
    model = nn.Sequential(unit, unit, nn.Linear(5, 2)).eval()
    assert len(list(walk(model))) == 1
    with pytest.raises(NotApplicable, match="called once"):
        decomposed(model, torch.randn(2, 5), places(model, torch.randn(2, 5)))
