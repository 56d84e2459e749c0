"""The figures of a reproduction in the form of the papers' own: thin training, bold test, one colour for one depth."""

from __future__ import annotations

import re
from typing import Any

import pytest

from residua import reproduction_page
from residua.claims import Evidence, Record
from residua.panels import COLOURS, Curve, panel
from residua.papers import _charts
from residua.papers import _he_figures as figures
from residua.selection import shelf

STROKE = re.compile(r'class="curve"[^>]*>\s*<path[^>]*style="([^"]*)"')
DEPTHS = {depth: number for number, depth in enumerate((20, 32, 44, 56, 110))}


def trained(arm: str, end: float = 30.0, length: int = 400) -> Record:
    steps = [length * part // 4 for part in range(1, 5)]
    curve = [(step, end + 40.0 * (1 - step / length)) for step in steps]
    loss = [(step, value / 20) for step, value in curve]
    return Record(arm, 0, {}, {"test_error": curve, "train_error": curve, "train_loss": loss, "test_loss": loss})


def strokes(svg: str) -> list[dict[str, str]]:
    """The style of each curve of a figure."""
    return [dict(part.split(": ", 1) for part in style.split("; ") if ": " in part) for style in STROKE.findall(svg)]


def item(name: str) -> Any:
    key, _, part = name.partition("/")
    return next(one for one in shelf().papers[key].items if one.id == part)


def test_training_is_thin_and_dashed_and_test_is_bold_in_the_colour_of_the_depth() -> None:
    arms = [f"{kind}{depth}" for kind in ("plain", "resnet") for depth in (20, 56, 110)]
    plain, residual, deep = item("he2015/fig6").draw(Evidence([trained(arm) for arm in arms]))
    for drawn, depths in ((plain, (20, 56)), (residual, (20, 56)), (deep, (110,))):
        found = strokes(drawn.svg)
        for place, depth in enumerate(depths):
            test, train = found[2 * place : 2 * place + 2]
            assert test["stroke"] == train["stroke"] == COLOURS[DEPTHS[depth]]
            assert float(test["stroke-width"]) == 2.2
            assert float(train["stroke-width"]) < 1
            assert "stroke-dasharray" in train
            assert "stroke-dasharray" not in test
    assert strokes(deep.svg)[2]["stroke"] != strokes(deep.svg)[0]["stroke"]


def test_networks_of_one_depth_in_one_panel_have_colours_of_their_own() -> None:
    assert figures.by_depth([["plain-20", "plain-56"], ["ResNet-20", "ResNet-56"], ["plain-56", "ResNet-56", "ResNet-110"]]) == [
        [0, 1], [0, 1], [1, 3, 2],
    ]  # fmt: skip
    assert figures.by_depth([["a", "b"]]) == [[0, 1]]


def test_figure_1_of_he2015_has_training_on_the_left_and_test_on_the_right() -> None:
    left, right = item("he2015/fig1").draw(Evidence([trained("plain20"), trained("plain56")]))
    assert (left.title, right.title) == ("Training error", "Test error")
    assert len(strokes(left.svg)) == len(strokes(right.svg)) == 2
    assert "training error (%)" in left.svg
    assert "test error (%)" in right.svg


def test_he2016_draws_training_loss_by_the_left_axis_and_test_error_by_the_right() -> None:
    (drawn,) = item("he2016/fig1").draw(Evidence([trained("resnet1001"), trained("preact_resnet1001")]))
    found = strokes(drawn.svg)
    assert ["stroke-dasharray" in stroke for stroke in found] == [True, True, False, False]
    assert [stroke["stroke"] for stroke in found] == [COLOURS[0], COLOURS[1]] * 2
    assert "training loss" in drawn.svg
    assert "test error (%)" in drawn.svg


@pytest.mark.parametrize(("length", "end", "printed"), [(64_000, 9.0, True), (2_000, 9.0, False), (64_000, 60.0, False)])
def test_errors_end_at_20_per_cent_only_where_trainings_are_those_of_the_paper(length: int, end: float, printed: bool) -> None:
    (drawn,) = figures.curves_of(("name", "Title", {"plain20": "plain-20"}))(Evidence([trained("plain20", end, length)]))
    ticks = [float(found) for found in re.findall(r">\s*(\d+(?:\.\d+)?)\s*</text>", drawn.svg.split('"matplotlib.axis"')[2])]
    assert (max(ticks) <= 20) == printed


def test_few_depths_are_each_named_on_the_axis() -> None:
    depths = (10, 20, 50, 100, 200)
    records = [Record(f"net{depth}", seed, {"test_error": 5.0 + seed}) for depth in depths for seed in range(2)]
    series = {"net": {depth: f"net{depth}" for depth in depths}}
    (drawn,) = _charts.by_size(Evidence(records), series, "test_error", "name", "Title", "layers", whole=True)
    for depth in depths:
        assert re.search(rf">\s*{depth}\s*</text>", drawn.svg)


def test_curves_on_both_axes_are_in_the_legend_once() -> None:
    drawn = panel(
        "name", "Title", [Curve([1, 2], [3, 4])], "x", "left", right=[Curve([1, 2], [30, 40], "net")], right_label="right"
    )
    assert drawn.count(">net</text>") == 1
    assert ">right</text>" in drawn


def test_one_drawing_in_two_places_keeps_ids_of_its_own() -> None:
    svg = '<svg><clipPath id="a-1"/><g clip-path="url(#a-1)"><use href="#a-1"/></g></svg>'
    one, other = (reproduction_page._own_ids(svg, f"f{place}-") for place in (0, 1))
    assert one == svg.replace("a-1", "f0-a-1")
    assert not set(re.findall(r'id="([^"]+)"', one)) & set(re.findall(r'id="([^"]+)"', other))
