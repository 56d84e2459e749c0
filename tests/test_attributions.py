"""Grad-CAM against its formula, integrated gradients against closed forms; in-place and shared ReLUs; every family."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from residua.attributions import grad_cam, integrated_gradients, last_map
from residua.models import CATALOG, create_model
from residua.published import Published

NETWORKS = [*(name for name, entry in CATALOG.items() if isinstance(entry, Published)), "residual_mlp"]
BEYOND_FLOAT32 = "plain1202"  # through 1,200 layers without shortcuts gradients leave the range of float32


class Hostile(nn.Module):
    """One ReLU used everywhere, in place, and at the end a function that changes the last map in place."""

    def __init__(self, inplace: bool, shared: bool = True) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if place == 0 else 6, 6, 3, padding=1) for place in range(3))
        self.acts = nn.ModuleList([nn.ReLU(inplace)] * 2 if shared else [nn.ReLU(inplace), nn.ReLU(inplace)])
        self.inplace = inplace
        self.classifier = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.acts[1](self.convs[1](self.acts[0](self.convs[0](x))))
        x = self.convs[2](x)
        x = torch.relu_(x) if self.inplace else torch.relu(x)
        return self.classifier(x.mean((2, 3)))


def hostile(**options: bool) -> Hostile:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Hostile(**options).double().eval()


def pixels(count: int, channels: int = 3, side: int = 8) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_grad_cam_is_the_weighted_sum_of_the_last_map() -> None:
    torch.manual_seed(0)
    act = nn.ReLU()
    layers = (nn.Conv2d(3, 6, 3, padding=1), act, nn.Conv2d(6, 6, 3, padding=1), act)
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).double()
    x, targets = pixels(3), torch.tensor([2, 0, 3])
    place = last_map(model, x[:1])
    assert place is not None
    assert (place.path, place.call, place.shape) == ("1", 1, (6, 8, 8)), "the second use of the shared ReLU"
    found = grad_cam(model, x, targets, place)
    maps = model[:4](x)
    weights = model[6].weight[targets] / 64  # type: ignore[index]
    expected = (weights[:, :, None, None] * maps).sum(1).relu()
    assert expected.amax((1, 2)).min() > 0
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shared", [False, True])
def test_what_is_done_in_place_or_by_a_shared_module_does_not_matter(shared: bool) -> None:
    plain, x, targets = hostile(inplace=False, shared=False), pixels(2), torch.tensor([1, 2])
    other = hostile(inplace=True, shared=shared)
    results = []
    for model in (plain, other):
        place = last_map(model, x[:1])
        assert place is not None
        assert place.path == "convs.2"
        results.append((grad_cam(model, x, targets, place), integrated_gradients(model, x, targets, 50).values))
    torch.testing.assert_close(results[0], results[1])
    assert not any(module._forward_hooks or module._backward_hooks for module in other.modules())


def test_integrated_gradients_of_a_linear_score_are_weight_times_pixel() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4)).double()
    x, targets = pixels(5, 3, 4), torch.tensor([0, 1, 2, 3, 0])
    found = integrated_gradients(model, x, targets, 3)
    weight = model[1].weight
    assert isinstance(weight, Tensor)
    torch.testing.assert_close(found.values.flatten(1), weight[targets] * x.flatten(1))
    assert found.error() < 1e-6


def test_integrated_gradients_of_a_cube_are_exact_with_two_points() -> None:
    class Cube(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x**3).flatten(1)[:, :2]

    x = pixels(2, 1, 2)
    found = integrated_gradients(Cube(), x, torch.tensor([0, 1]), 2)
    assert found.error() < 1e-6  # captum's points and weights are float32
    assert integrated_gradients(Cube(), x, torch.tensor([0, 1]), 1).error() > 0.1
    torch.testing.assert_close(found.change, torch.stack((x[0, 0, 0, 0] ** 3, x[1, 0, 0, 1] ** 3)))


def test_a_network_of_vectors_has_no_map() -> None:
    assert last_map(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double(), pixels(1, 3, 2)) is None


def check(name: str) -> None:
    """Attributes two images of the smallest size that the network takes (at least 32 pixels for those of large images)."""
    entry = CATALOG.get(name)
    channels, height, least = (*entry.input_shape[:2], entry.least_side) if isinstance(entry, Published) else (3, 32, 32)
    side = height if least == height else max(least, min(32, height))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(name)
    x = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))
    if name == BEYOND_FLOAT32:
        model, x = model.double(), x.double()
    for module in model.modules():  # untrained statistics would let the signal of a thousand layers overflow
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.cat((x, x.flip(-1))))
    model.eval()
    targets = torch.tensor([0, 1])
    state = {key: value.clone() for key, value in model.state_dict().items()}
    place = last_map(model, x[:1])
    if place is not None:
        cam = grad_cam(model, x, targets, place)
        assert cam.shape == (2, side, side)
        assert cam.isfinite().all()
        assert cam.min() >= 0
    found = integrated_gradients(model, x, targets, 8, batch=2)
    assert found.values.shape == x.shape
    assert found.values.isfinite().all()
    assert found.values.any()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["resnet20", "plain20", "densenet_40_12", "resnext29_8x64d", "googlenet", "residual_mlp"])
def test_small_networks_of_the_catalogue_are_attributed(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_the_catalogue_is_attributed(name: str) -> None:
    check(name)
