"""Drawings of networks: every skip has its arc, nothing overlaps or is cut, series are folded and counted right."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from xml.etree import ElementTree

import matplotlib
import pytest
from doc_drawings import FIGURES, drawings
from flows import Sketch, cifar_resnet, densenet, googlenet, hourglass, imagenet_net, transformer, unet, vgg19
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.ft2font import FT2Font

from residua.draw import Portrait, network_svg, networks_svg
from residua.errors import RequestError
from residua.flow import Flow
from residua.folding import dominators
from residua.scheme import scheme
from residua.svg import shortened, text_width

SVG = "{http://www.w3.org/2000/svg}"
NETWORKS = {
    "resnet18": imagenet_net((2, 2, 2, 2), skips=True),
    "resnet34 option A": imagenet_net((3, 4, 6, 3), skips=True, projections=False),
    "plain34": imagenet_net((3, 4, 6, 3), skips=False),
    "vgg19": vgg19(),
    "resnet1202": cifar_resnet(200),
    "densenet121": densenet((6, 12, 24, 16), 32),
    "unet": unet(4),
    "hourglass": hourglass(4),
    "googlenet": googlenet(9),
    "vit": transformer(12),
}
FONT = FT2Font(matplotlib.get_data_path() + "/fonts/ttf/DejaVuSans.ttf")

Box = tuple[float, float, float, float]  # left, upper, right, lower edge


def placed(svg: str) -> Iterator[tuple[ElementTree.Element, float, float]]:
    """Every element with the sum of the translations that it stands in."""

    def inside(element: ElementTree.Element, x: float, y: float) -> Iterator[tuple[ElementTree.Element, float, float]]:
        moved = re.match(r"translate\(([\d.-]+) ([\d.-]+)\)", element.get("transform", ""))
        if moved:
            x, y = x + float(moved[1]), y + float(moved[2])
        yield element, x, y
        for child in element:
            yield from inside(child, x, y)

    return inside(ElementTree.fromstring(svg), 0.0, 0.0)


def real_width(content: str, size: float) -> float:
    """The width of a text in DejaVu Sans, the widest of the common fonts."""
    FONT.set_size(100, 72)
    return size / 100 * sum(FONT.load_char(ord(c)).linearHoriAdvance / 65536 for c in content)


def texts(svg: str) -> dict[str, list[Box]]:
    found: dict[str, list[Box]] = {}
    for element, x, y in placed(svg):
        if element.tag == f"{SVG}text":
            content, size = element.text or "", float(element.get("font-size", "11"))
            width = real_width(content, size)
            left = (
                x
                + float(element.get("x", "0"))
                - {"start": 0.0, "middle": 0.5, "end": 1.0}[element.get("text-anchor", "start")] * width
            )
            base = y + float(element.get("y", "0"))
            found.setdefault(content, []).append((left, base - 0.76 * size, left + width, base + 0.2 * size))
    return found


def boxes(svg: str, *kinds: str) -> list[Box]:
    found = []
    for element, x, y in placed(svg):
        if element.get("class") in kinds and element.tag == f"{SVG}rect":
            left, top = x + float(element.get("x", "0")), y + float(element.get("y", "0"))
            found.append((left, top, left + float(element.get("width", "0")), top + float(element.get("height", "0"))))
        elif element.get("class") in kinds and element.tag == f"{SVG}circle":
            cx, cy, r = (float(element.get(name, "0")) for name in ("cx", "cy", "r"))
            found.append((x + cx - r, y + cy - r, x + cx + r, y + cy + r))
    return found


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def skips_drawn(svg: str) -> Counter[int]:
    return Counter(int(index) for e, _, _ in placed(svg) if e.get("class") == "skip" for index in e.get("data-skips", "").split())


def check(svg: str, num_skips: int) -> None:
    """Every skip has one arc; nodes are apart; texts are apart, in the frame, and in their boxes."""
    assert skips_drawn(svg) == Counter(range(num_skips))
    root = ElementTree.fromstring(svg)
    frame = (0.0, 0.0, float(root.get("width", "0")), float(root.get("height", "0")))
    nodes = sorted(boxes(svg, "layer", "other", "join", "merge"), key=lambda box: box[1])
    assert not [(a, b) for a, b in _near(nodes) if overlap(a, b)]
    words = sorted(((box, content) for content, all_ in texts(svg).items() for box in all_), key=lambda pair: pair[0][1])
    for box, content in words:
        assert frame[0] <= box[0] and box[2] <= frame[2] and frame[1] <= box[1] and box[3] <= frame[3], content  # noqa: PT018
    assert not [(a, b) for (a, b) in _near([box for box, _ in words]) if overlap(a, b)]
    for box, content in words:
        for node in nodes:
            if overlap(box, node):
                assert node[0] <= box[0] and box[2] <= node[2], f"{content!r} does not fit its box"  # noqa: PT018


def _near(sorted_boxes: list[Box]) -> Iterator[tuple[Box, Box]]:
    """Pairs of boxes that share a height."""
    for index, box in enumerate(sorted_boxes):
        for other in sorted_boxes[index + 1 :]:
            if other[1] >= box[3]:
                break
            yield box, other


@pytest.mark.parametrize("fold", [None, True, False])
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "resnet1202"])
def test_every_skip_has_its_arc_and_nothing_overlaps_or_is_cut(name: str, fold: bool | None) -> None:
    net = NETWORKS[name]
    check(network_svg(net.flow(), net.skips, name, fold=fold), len(net.skips))


def test_a_network_of_1202_layers_is_folded_into_its_stages_and_unfolded_on_request() -> None:
    net = NETWORKS["resnet1202"]
    svg = network_svg(net.flow(), net.skips, "ResNet-1202")
    check(svg, 600)
    assert [content for content in texts(svg) if content.startswith("×")] == ["×200", "×199"]
    assert len(texts(svg)["×199"]) == 2
    assert len(boxes(svg, "layer")) == 2 * 5 + 2
    unfolded = network_svg(net.flow(), net.skips, fold=False)
    assert len(boxes(unfolded, "layer")) == 1202
    assert skips_drawn(unfolded) == Counter(range(600))


def test_a_densenet_is_folded_into_its_four_blocks_and_its_poolings_lie_before_them() -> None:
    net = NETWORKS["densenet121"]
    svg = network_svg(net.flow(), net.skips)
    assert [content for content in texts(svg) if content.startswith("×")] == ["×6", "×12", "×24", "×16"]
    assert sum(skips_drawn(svg).values()) == 58


def test_blocks_that_take_turns_are_folded_together_and_series_inside_a_series_too() -> None:
    assert "×12" in texts(network_svg(transformer(12).flow(), transformer(12).skips, fold=True))
    net = Sketch()
    x = net.source(8, 16, 16)
    for _ in range(5):
        f = x
        for _ in range(3):
            f = net.layer(f, "3×3 conv, 8", 8, 16, 16)
        x = net.merge(x, f)
    svg = network_svg(net.flow(), net.skips, fold=True)
    assert {"×5", "×3"} <= texts(svg).keys()
    assert len(boxes(svg, "layer")) == 1
    check(svg, 5)


def test_blocks_of_other_widths_kinds_or_ways_are_not_folded() -> None:
    net = Sketch()
    x = net.source(8, 16, 16)
    for words, kind, way in (("3×3 conv, 8", "add", "identity"), ("5×5 conv, 8", "add", "identity"),
                             ("5×5 conv, 8", "gate", "gated"), ("5×5 conv, 8", "gate", "scaled")):  # fmt: skip
        x = net.merge(x, net.layer(x, words, 8, 16, 16), kind, way)
    svg = network_svg(net.flow(), net.skips, fold=True)
    assert not [content for content in texts(svg) if content.startswith("×")]
    assert len(boxes(svg, "layer")) == 4


def dashes(svg: str) -> list[tuple[str, str]]:
    return [(e.get("stroke", ""), e.get("stroke-dasharray", "")) for e, _, _ in placed(svg) if e.get("class") == "skip"]


def test_shortcuts_that_change_dimensions_are_dotted_and_those_behind_a_shared_pooling_are_not() -> None:
    for projections in (True, False):
        net = imagenet_net((2, 2, 2, 2), skips=True, projections=projections)
        dotted = [bool(dash) for _, dash in dashes(network_svg(net.flow(), net.skips))]
        assert dotted.count(True) == 3
        assert len(dotted) == 8
    svg = network_svg(net.flow(), net.skips)
    assert len(boxes(svg, "other")) == 2, "one max pooling for layer and skip, one average pooling"


def test_kinds_have_colours_of_their_own_and_stand_in_the_legend() -> None:
    net = Sketch()
    x = net.source(8, 16, 16)
    for kind, way in (("add", "identity"), ("concatenate", "pooled"), ("gate", "gated"), ("index", "dropped"), ("add", "scaled")):
        x = net.merge(x, net.layer(x, "3×3 conv, 8", 8, 16, 16), kind, way)
    svg = network_svg(net.flow(), net.skips)
    check(svg, 5)
    assert len({colour for colour, _ in dashes(svg)}) == 4
    assert len({dash for _, dash in dashes(svg)}) == 5
    assert {"addition", "concatenation", "gate", "pooling indices", "identity", "pooled", "gated", "dropped", "scaled"} <= texts(
        svg
    ).keys()
    assert "projection, or change of dimensions" not in texts(svg)


def test_figure_3_of_he2015_has_maps_of_one_size_at_one_height() -> None:
    nets = (vgg19(), imagenet_net((3, 4, 6, 3), skips=False), imagenet_net((3, 4, 6, 3), skips=True, projections=False))
    titles = ("VGG-19", "34-layer plain", "34-layer residual")
    svg = networks_svg([Portrait(net.flow(), net.skips, title) for net, title in zip(nets, titles)], fold=False)
    check(svg, 16)
    found = texts(svg)
    for words, count in (("3×3 conv, 128, /2", 2), ("3×3 conv, 512, /2", 2), ("7×7 conv, 64, /2", 2), ("avg pool", 2)):
        assert len(found[words]) == count
        assert len({box[1] for box in found[words]}) == 1, f"{words} at one height"
    assert {size: len(found[size]) for size in ("224×224", "112×112", "56×56", "28×28", "14×14", "7×7", "1")} == dict.fromkeys(
        ("224×224", "112×112", "56×56", "28×28", "14×14", "7×7", "1"), 1
    )
    assert [len(found[words]) for words in ("fc, 4096", "fc, 1000", "3×3 conv, 64")] == [2, 3, 2 + 6 + 6]
    assert [bool(dash) for _, dash in dashes(svg)].count(True) == 3


def test_networks_whose_sizes_do_not_agree_stand_side_by_side_each_with_its_own() -> None:
    svg = networks_svg([Portrait(net.flow(), net.skips) for net in (unet(2), hourglass(2))])
    assert len(texts(svg)["256×256"]) == 3
    with pytest.raises(RequestError, match="One to 3 networks"):
        networks_svg([])


def test_a_flow_without_its_skips_is_refused() -> None:
    with pytest.raises(RequestError, match="only 2 skips"):
        network_svg(unet(4).flow(), unet(4).skips[:2])


def test_dead_ends_and_second_inputs_are_drawn_too() -> None:
    net = Sketch()
    x = net.layer(net.source(4, 8, 8), "3×3 conv, 4", 4, 8, 8)
    for _ in range(3):
        net.layer(x, "1×1 conv, 99", 4, 8, 8)
        x = net.layer(x, "3×3 conv, 4", 4, 8, 8)
    late = net.source(4, 8, 8)
    net.join((x, late), "add", 4, 8, 8)
    svg = network_svg(net.flow(), net.skips)
    check(svg, 0)
    assert len(texts(svg)["1×1 conv, 99"]) == 3
    assert len(texts(svg)["image 4×8×8"]) == 2


def test_long_module_paths_keep_both_ends() -> None:
    assert shortened("features.denseblock4.denselayer16.conv2", 20) == "features.…ayer16.conv2"[:9] + "…" + "er16.conv2"
    assert shortened("conv1", 20) == "conv1"


@st.composite
def sketches(draw: st.DrawFn) -> Sketch:
    """Random acyclic networks: layers, joins and skips between any places, not only series-parallel ones."""
    net = Sketch()
    net.source(4, 8, 8)
    for _ in range(draw(st.integers(1, 14))):
        last = len(net.steps) - 1
        near = st.integers(max(0, last - 5), last)
        action = draw(st.sampled_from(("layer", "layer", "merge", "join")))
        if action == "layer" or last < 2:
            net.layer(draw(near), "3×3 conv, 4", 4, 8, 8)
        elif action == "merge":
            a, b = sorted((draw(near), last))
            if a != b:
                net.merge(a, b, draw(st.sampled_from(("add", "concatenate"))))
        else:
            net.join(tuple(dict.fromkeys((draw(near), draw(near), last))), "add", 4, 8, 8)
    return net


@settings(max_examples=150, deadline=None)
@given(sketches(), st.booleans())
def test_any_acyclic_network_is_drawn_without_overlaps(net: Sketch, fold: bool) -> None:
    check(network_svg(Flow(tuple(net.steps), len(net.steps) - 1), net.skips, fold=fold), len(net.skips))


@settings(max_examples=100, deadline=None)
@given(sketches())
def test_dominators_are_those_of_the_definition(net: Sketch) -> None:
    """A node dominates another one if no way from a source to the other avoids it; the immediate one is the last of them."""
    inputs = [step.inputs for step in net.steps]
    for number, found in enumerate(dominators(inputs)):
        dominating = [d for d in range(number) if not _reachable(inputs, number, d)]
        assert found == max(dominating, default=-1)


def _reachable(inputs: list[tuple[int, ...]], number: int, without: int) -> bool:
    pending, seen = [number], set()
    while pending:
        here = pending.pop()
        if here != without and here not in seen:
            seen.add(here)
            if not inputs[here]:
                return True
            pending += inputs[here]
    return False


def test_texts_are_never_wider_than_measured() -> None:
    characters = "".join(chr(code) for code in range(32, 127)) + "×…∂ΣΔ−–éü√→½"
    assert not [c for c in characters if real_width(c, 100) > text_width(c, 100) + 1e-9]


def test_maps_with_channels_last_have_the_same_size_as_before_and_their_skip_changes_no_dimensions() -> None:
    net = Sketch()
    x = net.layer(net.source(3, 224, 224), "4×4 conv, 96, /4", 96, 56, 56)
    f = net.layer(net.layer(x, "fc, 288", 49, 288), "fc, 96", 3136)
    net.layer(f, "fc, 96", 56, 56, 96)
    x = net.merge(x, len(net.steps) - 1)
    x = net.merge(x, net.layer(net.layer(x, "fc, 384", 56, 56, 384), "fc, 96", 56, 56, 96))
    net.layer(x, "fc, 1000", 1000)
    svg = network_svg(net.flow(), net.skips)
    check(svg, 2)
    assert [len(texts(svg)[size]) for size in ("224×224", "56×56", "1")] == [1, 1, 1]
    assert [dash for _, dash in dashes(svg)] == ["", ""]


def test_a_cropped_map_as_small_as_the_pooled_one_begins_before_the_pooling() -> None:
    net = Sketch()
    x = net.layer(net.source(1, 18, 18), "3×3 conv, 4", 4, 16, 16)
    net.merge(x, net.layer(x, "3×3 conv, 4", 4, 8, 8, before=("max pool, /2",)), "concatenate")
    nodes = scheme(net.flow(), net.skips).nodes
    assert [nodes[source].text for source in nodes[-1].inputs] == ["3×3 conv, 4", "3×3 conv, 4"]
    assert nodes[nodes[-1].inputs[0]].inputs == [0], "the bypass begins at the first layer"


@pytest.mark.slow
def test_the_figures_of_the_documentation_are_drawn_by_this_code() -> None:
    for name, svg in drawings().items():
        assert (FIGURES / name).read_text(encoding="utf-8") == svg, f"{name} is old: run tests/doc_drawings.py"
