"""The weight layers of a module: found in the order of their calls, with the normalisation that reads them; their responses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from residua.models import create_model
from residua.weight_layers import removed, responses_seen, weight_layers


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_a_residual_network_has_its_layers_each_with_its_normalisation() -> None:
    found = weight_layers(create_model("resnet20").eval(), images())
    assert len(found) == 20
    assert [layer.norm_path for layer in found[:3]] == ["stem.norm", "stages.0.0.branch.norm1", "stages.0.0.branch.norm2"]
    assert found[-1].path == "head.classifier"
    assert found[-1].norm is None
    assert [layer.path for layer in found if not layer.keeps_shape] == [
        "stem.conv", "stages.1.0.branch.conv1", "stages.2.0.branch.conv1", "head.classifier",
    ]  # fmt: skip


def test_the_last_layer_of_a_preactivation_branch_is_not_normalised_before_the_addition() -> None:
    found = {layer.path: layer.norm_path for layer in weight_layers(create_model("preact_resnet110").eval(), images())}
    assert found["stages.0.1.branch.conv1"] == "stages.0.1.branch.norm2"
    assert found["stages.0.1.branch.conv2"] is None


class Shared(nn.Module):
    """One layer and one normalisation called twice, ReLU in place, and a layer whose output two modules read."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.act = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.layer(self.act(self.norm(self.layer(x))))))


def test_a_layer_that_is_called_twice_responds_twice_and_what_is_done_in_place_does_not_count() -> None:
    torch.manual_seed(0)
    model, x = Shared().eval(), images()
    nn.init.normal_(model.norm.bias)
    layers = weight_layers(model, x)
    assert [(layer.path, layer.call, layer.norm_call) for layer in layers] == [("layer", 0, 0), ("layer", 1, 1)]
    seen: dict[int, Tensor] = {}
    with torch.inference_mode():
        with responses_seen(dict(enumerate(layers)), lambda number, response: seen.update({number: response.clone()})):
            model(x)
        first = model.norm(model.layer(x))
        second = model.norm(model.layer(first.relu()))
    assert torch.equal(seen[0], first)
    assert torch.equal(seen[1], second)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_removed_layer_hands_on_its_input() -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(first, nn.BatchNorm2d(3), nn.ReLU(), second, nn.BatchNorm2d(3), nn.ReLU()).eval()
    with torch.inference_mode():
        layers = weight_layers(model, images())
        with removed(layers[1]):
            found = model(images())
        assert torch.equal(found, model[:3](images()))
        assert torch.equal(model(images()), model[3:](model[:3](images())))
