"""Captured layers in the words of the papers' figures."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from residua.layer_words import layer_words, resolution_words

IMAGE, SIGNAL, TOKENS = (3, 32, 32), (3, 32), (7, 12)


def nodes(module: nn.Module, shape: tuple[int, ...], decompose: bool) -> list[fx.Node]:
    program = torch.export.export(module.eval(), (torch.zeros(2, *shape),))
    graph = (program.run_decompositions() if decompose else program).graph
    return [node for node in graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("decompose", [False, True])
@pytest.mark.parametrize(
    ("layer", "shape", "words"),
    [
        (nn.Conv2d(3, 64, 7, 2, 3), IMAGE, "7×7 conv, 64, /2"),
        (nn.Conv2d(3, 8, (1, 7), padding=(0, 3)), IMAGE, "1×7 conv, 8"),
        (nn.Conv2d(3, 6, 3, groups=3), IMAGE, "3×3 conv, 6, 3 groups"),
        (nn.Conv2d(3, 3, 3, (2, 1), groups=3), IMAGE, "3×3 conv, 3, depthwise, /2×1"),
        (nn.Conv1d(3, 4, 5), SIGNAL, "5 conv, 4"),
        (nn.ConvTranspose2d(3, 6, 2, 2), IMAGE, "2×2 up-conv, 6, ×2"),
        (nn.Linear(12, 5), TOKENS, "fc, 5"),
    ],
)
def test_kernel_channels_groups_and_stride(layer: nn.Module, shape: tuple[int, ...], words: str, decompose: bool) -> None:
    assert words in [layer_words(node) for node in nodes(layer, shape, decompose)]


@pytest.mark.parametrize(
    ("layer", "shape", "words"),
    [
        (nn.MaxPool2d(3, 2, 1), IMAGE, "max pool, /2"),
        (nn.MaxPool2d(3, 1, 1), IMAGE, "max pool, /1"),
        (nn.AvgPool2d(2), IMAGE, "avg pool, /2"),
        (nn.AvgPool1d(4), SIGNAL, "avg pool, /4"),
        (nn.AdaptiveAvgPool2d(1), IMAGE, "avg pool"),
        (nn.Upsample(scale_factor=2), IMAGE, "upsample, ×2"),
    ],
)
def test_what_changes_the_resolution(layer: nn.Module, shape: tuple[int, ...], words: str) -> None:
    assert [found for node in nodes(layer, shape, False) if (found := resolution_words(node))] == [words]


def test_what_leaves_the_resolution_alone_says_nothing() -> None:
    module = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(32), nn.Dropout())
    assert not any(resolution_words(node) for node in nodes(module, IMAGE, False))
