"""The network of the recipe `speedrun` against its equations written out, and its whitening layer against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from residua.cost import multiply_adds
from residua.errors import RequestError
from residua.layers import Whitening
from residua.models import create_model
from residua.recipes import get_recipe
from residua.unit import switched_off, walk


def images(count: int = 6, side: int = 17) -> Tensor:
    """Images whose neighbouring pixels and channels go together, as real ones do."""
    noise = torch.randn(count, 3, side + 2, side + 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    smooth = F.avg_pool2d(noise, 3, 1)
    return smooth + 0.5 * smooth.flip(1)


def test_the_whitened_patches_are_white() -> None:
    layer = Whitening(3).double()
    x = images(40)
    layer.fit(x, eps=0.0)
    found = layer(x).permute(0, 2, 3, 1).reshape(-1, 24)
    torch.testing.assert_close(found[:, :12].T @ found[:, :12] / len(found), torch.eye(12, dtype=torch.float64))
    assert torch.equal(found[:, 12:], -found[:, :12])
    again = Whitening(3).double()
    again.fit(x, eps=0.0)
    assert torch.equal(again.weight, layer.weight)
    damped = Whitening(3).double()
    damped.fit(x, eps=0.1)
    variances = damped(x).permute(0, 2, 3, 1).reshape(-1, 24)[:, :12].square().mean(0)
    assert (variances < 1).all()


def test_only_the_bias_of_the_whitening_is_learned() -> None:
    network = create_model("speed_resnet")
    assert [name for name, _ in network.stem.named_parameters()] == ["whitening.bias"]
    assert "stem.whitening.weight" in network.state_dict()
    network.fit(images(8).float())
    assert network.fitted_layers()[0].weight.abs().max() > 1
    assert not create_model("resnet20").fitted_layers()


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("convolutions", [1, 2, 3])
def test_it_computes_its_equations(plain: bool, convolutions: int) -> None:
    options = {"widths": (4, 6), "units": (1, 2), "convolutions": convolutions, "num_classes": 5, "plain": plain}
    network = create_model("speed_resnet", **options).double().train()
    network.fit(images())
    state = dict(network.state_dict())
    x = images()

    def normed(y: Tensor, path: str) -> Tensor:
        return F.batch_norm(y, None, None, state[f"{path}.weight"], state[f"{path}.bias"], training=True)

    def convolved(y: Tensor, path: str) -> Tensor:
        return F.conv2d(y, state[f"{path}.weight"], padding=1)

    y = F.gelu(F.conv2d(x, state["stem.whitening.weight"], state["stem.whitening.bias"]))
    for stage, count in enumerate((1, 2)):
        path = f"stages.{stage}.0.branch"
        y = F.gelu(normed(F.max_pool2d(convolved(y, f"{path}.conv"), 2), f"{path}.norm"))
        for unit in range(1, count + 1):
            path, f = f"stages.{stage}.{unit}.branch", y
            for place in range(convolutions):
                number = place + 1 if convolutions > 1 else ""
                f = normed(convolved(F.gelu(f) if place else f, f"{path}.conv{number}"), f"{path}.norm{number}")
            y = F.gelu(f if plain else y + f)
    expected = y.amax((2, 3)) @ state["head.classifier.weight"].T
    torch.testing.assert_close(network(x), expected, rtol=1e-10, atol=1e-12)


def test_its_head_starts_near_zero() -> None:
    network = create_model("speed_resnet")
    weight = network.head.classifier.weight
    assert float(weight.detach().std()) == pytest.approx(1 / weight.shape[1], rel=0.05)


def test_its_units_can_be_switched_off_and_its_cost_is_small() -> None:
    network = create_model("speed_resnet")
    places = [place for place in walk(network) if place.unit.shortcut is not None]
    assert len(places) == 3
    assert all(place.removable for place in places)
    with switched_off(*[place.unit for place in places]):
        assert network.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    adds = 31**2 * 24 * 12 + 31**2 * 64 * 24 * 9 + 15**2 * (64**2 + 64 * 256) * 9
    adds += 7**2 * (256**2 + 256 * 384) * 9 + 3**2 * 384**2 * 9
    assert multiply_adds(network, (3, 32, 32)) == adds + 384 * 10


@pytest.mark.parametrize("side", [9, 20, 24, 28, 32])
def test_it_takes_every_size_that_leaves_a_position(side: int) -> None:
    assert create_model("speed_resnet")(torch.zeros(2, 3, side, side)).shape == (2, 10)


def test_the_recipe_for_a_lower_error_has_a_larger_network_and_leaves_others_alone() -> None:
    model = get_recipe("speedrun-96").model
    larger = multiply_adds(create_model(model.name, **model.options), (3, 32, 32))
    assert larger / multiply_adds(create_model("speed_resnet"), (3, 32, 32)) == pytest.approx(3.2, abs=0.1)
    assert get_recipe("speedrun-96", "resnet20").model.options == {}


def test_wrong_options_are_refused() -> None:
    for options in ({"widths": (4,)}, {"normalization": "none"}, {"widths": (0, 4, 4)}, {"convolutions": 0}):
        with pytest.raises(RequestError):
            create_model("speed_resnet", **options)


def test_the_head_can_be_replaced() -> None:
    network = create_model("speed_resnet")
    network.replace_head(3)
    assert isinstance(network.head.classifier, nn.Linear)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
