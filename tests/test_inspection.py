"""What is said of a network: the size of its input follows from the command, the options and the builder, in this order."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import residua
from residua import network_page
from residua.errors import RequestError
from residua.inspection import inspect_model
from residua.receptive import Receptive


@pytest.mark.parametrize(
    ("name", "options", "image_size", "shape"),
    [
        ("resnet20", {}, None, [3, 32, 32]),
        ("resnet20", {"in_channels": 1}, 48, [1, 48, 48]),
        ("cifar_resnet", {"depth": 8}, None, [3, 32, 32]),
        ("highway_10", {}, None, [1, 28, 28]),
        ("highway_10", {}, 12, [1, 12, 12]),
        ("highway_10", {"image_size": 9, "in_channels": 3}, None, [3, 9, 9]),
        ("highway", {"depth": 3}, None, [1, 28, 28]),
        ("highway_conv_19", {}, 40, [3, 40, 40]),
        ("residual_mlp", {"widths": [4]}, None, [3, 32, 32]),
    ],
)
def test_the_input_is_the_papers_unless_the_request_says_otherwise(
    name: str, options: dict[str, Any], image_size: int | None, shape: list[int]
) -> None:
    card = inspect_model(name, options, image_size)
    assert card["input_shape"] == shape
    assert card["layers"][-1]["output_shape"] == (1, 10)
    assert card["parameters"] == sum(layer["parameters"] for layer in card["layers"])


def test_a_named_network_is_told_with_all_that_is_known() -> None:
    found = residua.inspect("resnet50", image_size=64)
    assert Counter((skip.kind, skip.way) for skip in found.skips) == {("add", "identity"): 12, ("add", "projection"): 4}
    assert all(skip.proven and skip.span == 3 for skip in found.skips)
    assert not found.unknown
    assert found.num_paths == 2**16
    assert found.path_lengths is not None
    assert found.path_lengths["layers"].longest == 50
    assert found.path_lengths["units"].counts == {taken: math.comb(16, taken) for taken in range(17)}
    assert found.verdict.answer == "residual connections"
    assert found.how == "export"
    maps = {256: (16, 3), 512: (8, 4), 1024: (4, 6), 2048: (2, 3)}  # channels: side, units, at 64 pixels
    assert found.cost.skip_additions == sum(channels * side * side * units for channels, (side, units) in maps.items())
    assert isinstance(found.receptive, Receptive)
    assert found.receptive.longest == (427, 427)
    assert found.effective is not None
    assert 11 < found.effective.side <= 64


def test_the_paths_of_the_network_of_veit2016_are_those_of_its_figure() -> None:
    """54 modules: 0.45 % of the paths have a length of 5 to 17, and they are binomial."""
    found = residua.inspect("preact_resnet110")
    assert found.path_lengths is not None
    units = found.path_lengths["units"]
    assert found.num_paths == 2**54
    assert units.mean == 27
    assert 100 * units.share(5, 17) == pytest.approx(0.453667, abs=5e-7)


class Widened(nn.Module):
    """Its output has one value a channel, which a batch norm in training refuses for a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.norm(x + self.second(torch.relu(self.first(x))) + y)


def test_a_module_of_ones_own_is_taken_apart_with_its_inputs_and_left_as_it_was() -> None:
    model = Widened()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = residua.inspect(model, (torch.zeros(1, 4), torch.zeros(1, 4)))
    assert [(skip.kind, skip.way, skip.span, skip.proven) for skip in found.skips] == [("add", "identity", 2, True)]
    assert found.num_paths == 2
    assert found.cost.multiply_adds == 32
    assert found.cost.skip_additions == 4
    assert found.cost.kept_bytes is not None
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    json.dumps(found.to_dict(), allow_nan=False)


def test_costs_of_a_batch_are_said_to_be_those_of_a_batch(tmp_path: Path) -> None:
    path = tmp_path / "nets.py"
    path.write_text(
        "import torch\nfrom torch import nn\n"
        "def build(count: int = 1):\n"
        "    return nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.ReLU()), torch.zeros(count, 3, 8, 6)\n"
    )
    one, eight = (inspect_model(f"{path}:build", {"count": count}) for count in (1, 8))
    assert (one["batch"], eight["batch"]) == (1, 8)
    assert one["input_shape"] == eight["input_shape"] == [3, 8, 6]
    assert eight["multiply_adds"] == 8 * one["multiply_adds"] == 8 * 2 * 27 * 48
    assert network_page.network(one).endswith("2,592 multiply-adds for one input of 3x8x6")
    text = network_page.network(eight)
    assert text.endswith("20,736 multiply-adds for a batch of 8 inputs of 3x8x6")
    assert "for its backward pass, for a batch of 8 inputs of 3x8x6." in text


def test_inputs_that_a_network_does_not_take_are_answered_with_what_can_be_done() -> None:
    with pytest.raises(RequestError, match=r"does not run on the example inputs, of shape \(1, 3, 16, 16\).*--image-size"):
        residua.inspect("vgg16", image_size=16)


def test_a_module_is_asked_for_with_inputs_and_a_name_without() -> None:
    with pytest.raises(RequestError, match="example inputs"):
        residua.inspect(nn.Linear(2, 2))
    with pytest.raises(RequestError, match="is a name"):
        residua.inspect("resnet20", torch.zeros(1, 3, 32, 32))


def test_the_page_answers_first_and_folds_series() -> None:
    text = network_page.network(inspect_model("resnet50", {}, 64))
    assert text.startswith("resnet50 has residual connections.\n16 additions")
    assert "16 skips: 12 additions over the identity, 4 additions over a projection; all proven." in text
    assert "65,536 = 2^16 paths of 6 to 50 weight layers, 28.0 on average" in text
    assert "11 rows x 5" in text
    assert all(len(line) < 260 for line in text.splitlines())


def test_blocks_whose_channels_grow_are_told_once_with_their_ranges() -> None:
    text = network_page.network(inspect_model("torchvision:densenet121", {}, 32))
    lines = [line for line in text.splitlines() if line.startswith("features.denseblock3.denselayer1.")]
    assert len(lines) == 6
    assert lines[0].endswith("6 rows x 24")
    assert "1x256…992x2x2" in lines[0]
    assert "32,768…126,976" in lines[2]
    assert " after features.norm5: 2071x2071" in text


def test_what_repeats_is_folded_where_it_begins() -> None:
    def always(_place: int) -> bool:
        return True

    assert list(network_page.repeated("abababc", always, 3)) == [(0, 2, 3), (6, 1, 1)]
    assert list(network_page.repeated("aaaa", always, 3)) == [(0, 1, 4)]
    assert list(network_page.repeated("xababab", lambda place: place % 2 == 0, 2)) == [(0, 1, 1), (1, 1, 1), (2, 2, 2), (6, 1, 1)]
    for text in ("", "a", "abcabcab", "aabbaabb"):
        assert sum(period * times for _, period, times in network_page.repeated(text, always, 4)) == len(text)


def test_a_network_is_drawn() -> None:
    svg = residua.inspect("resnet20").svg()
    assert svg.startswith("<svg")
    assert svg.count('class="skip"') == 9
