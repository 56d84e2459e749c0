"""A unit with both its ways, and units unravelled: the equations, the number of paths, the refusals."""

from __future__ import annotations

import re
from math import comb

import pytest
from flows import Sketch, cifar_resnet, imagenet_net, transformer, unet, vgg19
from test_draw import boxes, overlap, placed, texts

from residua.errors import RequestError
from residua.unravelled import unit_ways_svg, unravelled_svg


@pytest.mark.parametrize("units", [1, 2, 3, 5])
def test_n_units_have_2_to_the_n_paths_and_the_last_unit_is_drawn_once(units: int) -> None:
    net = cifar_resnet(3)
    svg = unravelled_svg(net.flow(), net.skips, units=units, title="x")
    rows = [element for element, _, _ in placed(svg) if element.get("class") == "path"]
    assert len(rows) == 2**units
    found = texts(svg)
    assert [len(found[f"f{unit}"]) for unit in range(2, units + 1)] == [
        1 + 2 ** (units - unit) + 1 for unit in range(2, units + 1)
    ]
    assert len(boxes(svg, "branch")) == units + 2**units - 1, "the series, and 2^(n - i) copies of unit i"
    counts = ", ".join(str(comb(units, length)) for length in range(units + 1))
    assert any(content.endswith(f"units: {counts}") for content in found)


def test_the_units_on_each_path_are_all_subsets() -> None:
    net = cifar_resnet(3)
    svg = unravelled_svg(net.flow(), net.skips, units=3)
    names = [(e[0].text or "") for e, _, _ in placed(svg) if e.get("class") == "path"]
    assert sorted(names) == sorted(["none", "f1", "f2", "f3", "f1 f2", "f1 f3", "f2 f3", "f1 f2 f3"])


def test_nothing_in_the_unravelled_view_overlaps_or_leaves_the_frame() -> None:
    net = imagenet_net((2, 2, 2, 2), skips=True)
    svg = unravelled_svg(net.flow(), net.skips, units=4, title="Four units of a ResNet-18 and their sixteen paths")
    nodes = boxes(svg, "branch", "merge")
    assert not [(a, b) for i, a in enumerate(nodes) for b in nodes[i + 1 :] if overlap(a, b)]
    words = [box for all_ in texts(svg).values() for box in all_]
    assert not [(a, b) for i, a in enumerate(words) for b in words[i + 1 :] if overlap(a, b)]
    width = float(re.search(r'width="([\d.]+)"', svg)[1])  # type: ignore[index]
    assert all(box[0] >= 0 and box[2] <= width for box in words)


def test_what_is_no_series_of_units_is_refused_with_the_reason() -> None:
    net = unet(3)
    with pytest.raises(RequestError, match="Only 1 units follow one another"):
        unravelled_svg(net.flow(), net.skips, units=2)
    with pytest.raises(RequestError, match="no skip 0"):
        unravelled_svg(vgg19().flow(), [], units=2)
    with pytest.raises(RequestError, match="One to 5"):
        unravelled_svg(cifar_resnet(3).flow(), cifar_resnet(3).skips, units=6)
    with pytest.raises(RequestError, match="Only 2 units"):
        unravelled_svg(cifar_resnet(3).flow(), cifar_resnet(3).skips, first=7, units=3)


def test_a_unit_is_drawn_with_its_forward_and_its_backward_way() -> None:
    net = transformer(2)
    svg = unit_ways_svg(net.flow(), net.skips, 1, "the perceptron of the first block")
    found = texts(svg)
    assert [len(found[words]) for words in ("forward", "backward", "fc, 3072", "fc, 768", "x 197×768")] == [1, 1, 2, 2, 2]
    assert "y = x + F(x)" in found
    assert "∂E/∂x = ∂E/∂y · 1 + ∂E/∂y · ∂F/∂x" in found
    words = [box for all_ in found.values() for box in all_]
    assert not [(a, b) for i, a in enumerate(words) for b in words[i + 1 :] if overlap(a, b)]


@pytest.mark.parametrize(
    ("kind", "way", "forward", "backward"),
    [
        ("add", "projection", "y = W x + F(x)", "∂E/∂x = ∂E/∂y · W + ∂E/∂y · ∂F/∂x"),
        ("gate", "gated", "y = T F(x) + (1 − T) x", "∂E/∂x = ∂E/∂y (1 − T)"),
        ("concatenate", "identity", "y = [x, F(x)]", "∂E/∂x = ∂E/∂y₁ · 1 + ∂E/∂y₂ · ∂F/∂x"),
        ("index", "pooled", "y = F(x) at the positions p(x)", "∂E/∂x = ∂E/∂y · ∂F/∂x"),
    ],
)
def test_the_equations_are_those_of_the_merge(kind: str, way: str, forward: str, backward: str) -> None:
    net = Sketch()
    x = net.layer(net.source(4, 8, 8), "3×3 conv, 4", 4, 8, 8)
    net.merge(x, net.layer(x, "3×3 conv, 4", 4, 8, 8), kind, way)
    found = texts(unit_ways_svg(net.flow(), net.skips, 0))
    assert forward in found
    assert backward in found


def test_a_skip_that_is_not_there_is_refused() -> None:
    net = cifar_resnet(1)
    with pytest.raises(RequestError, match="no skip 9"):
        unit_ways_svg(net.flow(), net.skips, 9)
