"""Networks whose output is known by construction: identity layers that deepen a plain net, and gates that are open or shut."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from residua.models import create_model
from residua.network import Network
from residua.unit import Unit, walk


def learnt(name: str) -> Network:
    """A network in evaluation mode whose batch statistics, scales and offsets are no longer those of the start."""
    network = create_model(name).double()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norms:
        module.momentum = 1.0
        nn.init.uniform_(module.weight, 0.5, 1.5)
        nn.init.normal_(module.bias, std=0.2)
    with torch.no_grad():
        network.train()(torch.randn(8, 3, 32, 32, dtype=torch.float64))
    return network.eval()


@torch.no_grad()
def make_identity(unit: Unit) -> None:
    """Layers that give back what they get: a kernel of one 1 in its centre, and a normalisation that does nothing.

    The ReLU inside and after the unit changes nothing, since what a plain net hands on is not negative.
    """
    for layer in unit.branch:
        if isinstance(layer, nn.Conv2d):
            nn.init.dirac_(layer.weight)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.weight.fill_(math.sqrt(1 + layer.eps))
            layer.bias.zero_()


def deepened(shallow: Network, name: str) -> Network:
    """The network `name` with the layers of `shallow` at the beginning of each stage and identity layers after them."""
    deep = create_model(name).double().eval()
    deep.stem.load_state_dict(shallow.stem.state_dict())
    deep.head.load_state_dict(shallow.head.state_dict())
    for before, after in zip(shallow.stages, deep.stages):
        for place, unit in enumerate(after):
            if place < len(before):
                unit.load_state_dict(before[place].state_dict())
            else:
                make_identity(unit)
    return deep


def test_plain_56_built_from_plain_20_with_identity_layers_gives_the_same_outputs() -> None:
    """he2015 section 1: a deeper net has "a solution by construction", so that it should not have a higher training error."""
    torch.manual_seed(0)
    shallow = learnt("plain20")
    deep = deepened(shallow, "plain56")
    layers = [sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in network.modules()) for network in (shallow, deep)]
    assert layers == [20, 56]
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        for found, expected in zip(deep.features(x), shallow.features(x)):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(deep(x), shallow(x), rtol=1e-12, atol=1e-12)
        spread = shallow(x).std(0).min()
    assert float(spread) > 1e-3, "outputs that are all alike would say nothing"


def test_the_solution_by_construction_needs_all_the_identity_layers() -> None:
    torch.manual_seed(0)
    shallow = learnt("plain20")
    deep = deepened(shallow, "plain56")
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        deep.stages[2][8].branch.conv2.weight[0, 0, 1, 1] = 2
        assert not torch.allclose(deep(x), shallow(x))


# ------------------------------------------------------------------------------------------------------------- highway units


def gated(name: str, bias: float) -> tuple[Unit, Tensor]:
    """A highway unit whose gates have `bias`, and an input for it."""
    torch.manual_seed(0)
    options = {"width": 6, "image_size": 4} if name == "highway_10" else {"widths": (6, 7, 8)}
    unit = next(walk(create_model(name, gate_bias=bias, **options).double())).unit
    shape = (5, 6) if name == "highway_10" else (2, 6, 3, 3)
    return unit, torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("name", ["highway_10", "highway_conv_19"])
def test_a_highway_unit_with_shut_gates_is_the_identity(name: str) -> None:
    """Equation 4 of "Training Very Deep Networks": y = x if T(x) = 0, and equation 5: its Jacobian is the identity's."""
    unit, x = gated(name, -math.inf)
    assert torch.equal(unit(x), x)
    one = x[:1]
    jacobian = torch.autograd.functional.jacobian(unit, one).reshape(one.numel(), one.numel())
    assert torch.equal(jacobian, torch.eye(one.numel(), dtype=torch.float64))


@pytest.mark.parametrize("name", ["highway_10", "highway_conv_19"])
def test_a_highway_unit_with_open_gates_is_the_plain_layer(name: str) -> None:
    """y = H(x) if T(x) = 1, with the Jacobian H'(x); H written out."""
    unit, x = gated(name, math.inf)
    weight, bias = unit.branch.layer.weight, unit.branch.layer.bias

    def plain(x: Tensor) -> Tensor:
        return torch.relu(x @ weight.T + bias if x.dim() == 2 else nn.functional.conv2d(x, weight, bias, padding=1))

    torch.testing.assert_close(unit(x), plain(x), rtol=1e-12, atol=1e-12)
    jacobians = [torch.autograd.functional.jacobian(function, x[:1]) for function in (unit, plain)]
    assert bool(jacobians[0].any())
    torch.testing.assert_close(*jacobians, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("bias", "opened"), [(-30.0, 0.0), (30.0, 1.0), (0.0, 0.5)])
def test_gates_without_weights_mix_layer_and_input_by_the_sigmoid_of_their_bias(bias: float, opened: float) -> None:
    unit, x = gated("highway_10", bias)
    nn.init.zeros_(unit.merge.transform.weight)
    expected = opened * unit.branch(x) + (1 - opened) * x
    torch.testing.assert_close(unit(x), expected, rtol=1e-12, atol=1e-12)
