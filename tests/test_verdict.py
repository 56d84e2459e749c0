"""Residual or skip connections: the answers of the text that draws the line, on flows by hand and on captured networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import test_vocabulary as written
import torch
from step_by_step import Builder
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FeaturePyramidNetwork

from residua.census import census
from residua.flow import Flow
from residua.graph import capture
from residua.models import create_model
from residua.verdict import Verdict, verdict


@dataclass(frozen=True)
class Described:
    """A skip, as far as the rule asks."""

    index: int
    kind: str
    way: str = "identity"
    span: int = 2


class Drawn(Builder):
    """A flow with its skips; `at` is the side of the map that a step gives, 0 for vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.skips: list[Described] = []

    def layers(self, x: int, *sides: int) -> int:
        for side in sides:
            x = self.add("layer", x, shape=shape(side))
        return x

    def skip(self, kind: str, way: str, bypass: int, branch: int, side: int, span: int = 2) -> int:
        self.skips.append(Described(self.num_choices, kind, way, span))
        return self.add("choice", bypass, branch, shape=shape(side))

    def verdict(self, x: int, **more: int) -> Verdict:
        return verdict(self.skips, Flow(tuple(self.steps), x), **more)


def shape(side: int) -> tuple[int, ...]:
    return (4, side, side) if side else (4,)


def resnet(projected: int = 1, units: int = 4, kind: str = "add", way: str = "identity", build: Drawn | None = None) -> Verdict:
    build = build or Drawn()
    x = build.layers(0, 16)
    for unit in range(units):
        side = 16 if unit < 2 else 8
        short = build.layers(x, side) if unit < projected else x
        x = build.skip(kind, "projection" if unit < projected else way, short, build.layers(x, side, side), side)
    return build.verdict(x)


@pytest.mark.parametrize("projected", [0, 1, 4])
def test_short_additions_in_series_are_residual_with_any_share_of_projections(projected: int) -> None:
    found = resnet(projected)
    assert found.answer == "residual connections"
    assert found.residual == (0, 1, 2, 3)
    assert "all in series" in found.reasons[0]


@pytest.mark.parametrize("way", ["pooled", "scaled", "dropped"])
def test_additions_to_a_signal_that_is_nearly_kept_are_residual(way: str) -> None:
    assert resnet(0, way=way).answer == "residual connections"


@pytest.mark.parametrize(
    ("kind", "way", "word"),
    [
        ("concatenate", "identity", "concatenation"), ("concatenate", "projection", "concatenation"), ("gate", "gated", "gate"),
        ("add", "gated", "gate"), ("index", "pooled", "indices"),
    ],
)  # fmt: skip
def test_concatenations_gates_and_indices_are_skip_connections(kind: str, way: str, word: str) -> None:
    found = resnet(0, kind=kind, way=way)
    assert found.answer == "skip connections"
    assert word in found.reasons[0]


def test_a_plain_network_and_towers_that_all_carry_weights_have_neither() -> None:
    build = Drawn()
    x = build.layers(0, 8)
    x = build.add("join", build.layers(x, 8), build.layers(x, 8, 8), shape=shape(8))
    assert build.verdict(x).answer == "neither"


def test_a_pooled_tower_of_a_reduction_counts_as_neither() -> None:
    """Inception-ResNet stays residual though its reductions concatenate a pooled map."""
    assert resnet(0, kind="concatenate", way="pooled").answer == "neither"
    build = Drawn()
    x = build.skip("concatenate", "pooled", 0, build.layers(0, 8), 8)
    x = build.skip("add", "identity", x, build.layers(x, 8, 8), 8)
    found = build.verdict(x)
    assert (found.answer, found.residual, found.towers) == ("residual connections", (1,), (0,))


def ladder(way: str, bypass_units: bool = False) -> Verdict:
    """16x16 down to 8x8 and 4x4 and back, added at every level: laterals of an FPN, or units of an hourglass."""
    build = Drawn()

    def beside(x: int, side: int) -> int:
        if bypass_units:
            return build.skip("add", "identity", x, build.layers(x, side, side), side)
        return build.layers(x, side)

    def level(x: int, side: int) -> int:
        if side == 4:
            return beside(x, side)
        bypass = beside(x, side)
        below = level(build.layers(x, side // 2), side // 2)
        return build.skip("add", way, bypass, build.add("join", below, shape=shape(side)), side, span=9)

    return build.verdict(level(build.layers(0, 16), 16))


def test_nested_additions_of_projected_maps_are_skip_connections_and_of_kept_signals_residual() -> None:
    """The hourglass against FPN and FCN."""
    assert ladder("projection").answer == "skip connections"
    hourglass = ladder("identity", bypass_units=True)
    assert hourglass.answer == "residual connections"
    assert "2 of them go past a coarser resolution" in hourglass.reasons[1]


def test_a_pyramid_on_a_residual_network_has_both() -> None:
    build = Drawn()
    x = build.layers(0, 8)
    for _ in range(2):
        x = build.skip("add", "identity", x, build.layers(x, 8, 8), 8)
    y = build.layers(x, 4)
    y = build.skip("add", "identity", y, build.layers(y, 4, 4), 4)
    top = build.add("join", build.layers(y, 4), shape=shape(8))
    found = build.verdict(build.skip("add", "projection", build.layers(x, 8), top, 8))
    assert (found.answer, found.residual, found.skip) == ("both", (0, 1, 2), (3,))


def test_a_gate_inside_the_branch_is_no_coarser_resolution_of_the_branch() -> None:
    """Squeeze-and-excitation beside a projected unit."""
    build = Drawn()
    x = build.layers(0, 8)
    branch = build.layers(x, 8, 8)
    branch = build.add("join", branch, build.layers(branch, 1, 1), shape=shape(8))
    x = build.skip("add", "projection", build.layers(x, 8), branch, 8)
    assert build.verdict(x).answer == "residual connections"


def test_what_could_not_be_decided_is_said() -> None:
    build = Drawn()
    found = build.verdict(build.layers(0, 8), num_unknown=2)
    assert found.answer == "neither"
    assert found.reasons[-1].startswith("2 merges could not be decided")


def of(model: nn.Module, *inputs: Tensor) -> Verdict:
    found = census(capture(model.float().eval(), inputs), proof=False)
    return verdict(found.skips, found.flow, len(found.unknown))


class Pyramid(nn.Module):
    """An FPN (Lin et al. 2017) on four plain layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 4), (4, 8), (8, 16), (16, 32)))
        self.pyramid = FeaturePyramidNetwork([4, 8, 16, 32], 6)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = {}
        for place, stage in enumerate(self.stages):
            x = maps[str(place)] = torch.relu(stage(x))
        return list(self.pyramid(maps).values())


class Stacked(nn.Module):
    """LSTM layers with additions round each but the first, as in GNMT (Wu et al. 2016, section 3.1)."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.LSTM(6, 6) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.layers[0](x)
        for layer in list(self.layers)[1:]:
            x = x + layer(x)[0]
        return x


IMAGE = torch.zeros(1, 3, 64, 64)
SMALL = torch.zeros(1, 3, 32, 32)
NETWORKS: dict[str, tuple[str, Callable[[], Verdict]]] = {
    "ResNet-20": ("residual connections", lambda: of(create_model("resnet20"), SMALL)),
    "ResNet-50": ("residual connections", lambda: of(create_model("resnet50"), IMAGE)),
    "ResNeXt": ("residual connections", lambda: of(create_model("resnext29_8x64d"), SMALL)),
    "Inception-ResNet": ("residual connections", lambda: of(create_model("inception_resnet_v2"), torch.zeros(1, 3, 96, 96))),
    "hourglass": ("residual connections", lambda: of(written.hourglass().model, torch.zeros(1, 4, 8, 8))),
    "GNMT": ("residual connections", lambda: of(Stacked(), torch.zeros(5, 1, 6))),
    "Transformer": (
        "residual connections",
        lambda: of(nn.Transformer(8, 2, 2, 2, 16, batch_first=True), torch.zeros(1, 5, 8), torch.zeros(1, 6, 8)),
    ),
    "DenseNet": ("skip connections", lambda: of(create_model("cifar_densenet", depth=16), SMALL)),
    "Highway": ("skip connections", lambda: of(create_model("highway_10"), torch.zeros(1, 1, 28, 28))),
    "U-Net": ("skip connections", lambda: of(written.unet().model, torch.zeros(1, 1, 44, 44))),
    "SegNet": ("skip connections", lambda: of(written.segnet().model, torch.zeros(1, 1, 8, 8))),
    "FPN": ("skip connections", lambda: of(Pyramid(), IMAGE)),
    "FCN": ("skip connections", lambda: of(written.fcn8s().model, torch.zeros(1, 1, 64, 64))),
    "FPN on ResNet-18": ("both", lambda: of(resnet_fpn_backbone(backbone_name="resnet18", weights=None), IMAGE)),
    "GoogLeNet": ("neither", lambda: of(create_model("googlenet"), IMAGE)),
    "VGG": ("neither", lambda: of(create_model("vgg11"), IMAGE)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_get_the_answer_of_the_text_that_draws_the_line(name: str) -> None:
    answer, judged = NETWORKS[name]
    found = judged()
    assert found.answer == answer, found.reasons
    assert all(reason.endswith(".") for reason in found.reasons)
