"""The figures of docs/drawings.md. `.venv/bin/python tests/doc_drawings.py` draws them anew; a slow test compares them."""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision
from torch import nn

from residua.census import Census, census
from residua.draw import Portrait, network_svg, networks_svg
from residua.graph import capture
from residua.models import create_model
from residua.unravelled import unit_ways_svg, unravelled_svg

FIGURES = Path(__file__).parent.parent / "docs" / "figures"


def counted(model: nn.Module, side: int) -> Census:
    return census(capture(model.eval(), torch.zeros(1, 3, side, side)), proof=False)


def drawings() -> dict[str, str]:
    """The figures by the names of their files."""
    nets = {name: counted(create_model(name), 224) for name in ("vgg19", "plain34", "resnet34")}
    titles = {"vgg19": "VGG-19", "plain34": "34-layer plain", "resnet34": "34-layer residual"}
    deep, dense = counted(create_model("resnet1202"), 32), counted(torchvision.models.densenet121(weights=None), 224)
    small, inception = counted(create_model("resnet20"), 32), counted(create_model("inception_resnet_v2"), 299)
    return {
        "drawing-he2015-3.svg": networks_svg([Portrait(nets[n].flow, nets[n].skips, titles[n]) for n in nets], fold=False),
        "drawing-resnet1202.svg": network_svg(deep.flow, deep.skips, "ResNet-1202"),
        "drawing-densenet121.svg": network_svg(dense.flow, dense.skips, "DenseNet-121"),
        "drawing-inception_resnet_v2.svg": network_svg(inception.flow, inception.skips, "Inception-ResNet-v2"),
        "drawing-unit.svg": unit_ways_svg(small.flow, small.skips, 1, "One unit of a ResNet-20"),
        "drawing-unravelled.svg": unravelled_svg(small.flow, small.skips, units=3, title="Three units and their paths"),
    }


if __name__ == "__main__":
    for name, svg in drawings().items():
        (FIGURES / name).write_text(svg, encoding="utf-8")
