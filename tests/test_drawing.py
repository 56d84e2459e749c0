"""Figures of units: well-formed SVG that names every layer, shows the shortcut, and keeps its marks inside its frame."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from residua.drawing import figure, unit_svg
from residua.layers import sequence
from residua.models import create_model
from residua.unit import Concat, Unit, walk


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_a_figure_names_the_layers_in_their_order_then_the_shortcut_and_the_merge() -> None:
    units = [found.unit for found in walk(create_model("resnet20"))]
    assert texts(unit_svg(units[3], "a < b")) == [
        "a < b", "3\u00d73 conv, 32, /2", "batch norm", "ReLU", "3\u00d73 conv, 32", "batch norm",
        "zero-pad +16, /2", "+", "ReLU",
    ]  # fmt: skip


def test_a_plain_unit_has_neither_circle_nor_shortcut() -> None:
    plain = next(walk(create_model("plain20"))).unit
    assert "<circle" not in unit_svg(plain)
    assert "+" not in texts(unit_svg(plain))
    assert "<circle" in unit_svg(next(walk(create_model("resnet20"))).unit)


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "inception_resnet_v1", "highway_10", "wrn_16_4"])
def test_nothing_is_drawn_outside_the_frame(name: str) -> None:
    for found in list(walk(create_model(name)))[:6]:
        drawn = figure(found.unit)
        for x, width in re.findall(r'translate\(([\d.-]+) [\d.-]+\)"><rect width="([\d.]+)"', "".join(drawn.marks)):
            assert float(x) >= 0
            assert float(x) + float(width) <= drawn.width + 1e-6


def test_nested_units_are_drawn_inside_the_branch_of_the_outer_one() -> None:
    inner = Unit(nn.Conv2d(4, 4, 3, padding=1), nn.Identity())
    outer = Unit(sequence(down=nn.MaxPool2d(2), inner=inner, up=nn.Upsample(scale_factor=2)), nn.Identity(), Concat())
    assert outer(torch.zeros(1, 4, 8, 8)).shape == (1, 8, 8, 8)
    assert texts(unit_svg(outer)) == ["MaxPool2d", "3\u00d73 conv, 4", "+", "Upsample", "[ ]"]
