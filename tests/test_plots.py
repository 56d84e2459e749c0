"""Plots show the data they were given, as inline SVG that is well-formed and carries no reference."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from report_runs import HOSTILE

from residua import plots
from residua.panels import Curve, panel
from residua.plots import Line


def parsed(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg"
    return root


def of_class(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [e for e in root.iter() if e.get("class") == name]


def texts(root: ElementTree.Element) -> list[str]:
    return ["".join(e.itertext()) for e in root.iter("text")]


def num_points(curve: ElementTree.Element) -> int:
    return len(re.findall("[ML]", str(next(curve.iter("path")).get("d"))))


def test_short_curves_are_not_thinned() -> None:
    assert plots.thinned([1, 2, 3], [4, 5, 6], most=3) == ([1, 2, 3], [4, 5, 6])


def test_long_curves_become_means_of_equal_buckets() -> None:
    x, y = plots.thinned(list(range(10_000)), [2.0 * i for i in range(10_000)])
    assert len(x) == 1000
    assert (x[0], y[0], x[-1], y[-1]) == (4.5, 9.0, 9994.5, 19989.0)


def test_points_that_are_not_finite_are_left_out() -> None:
    assert plots.thinned([1, 2, 3, 4], [math.nan, 5, math.inf, 7]) == ([2, 4], [5, 7])
    assert plots.thinned([], []) == ([], [])


def test_curves_show_both_lines_bold_and_thin_with_labels_and_axes() -> None:
    svg = plots.curves(
        "error", "Error", [Line("training", [0, 1, 2], [9, 6, 5], bold=False), Line("test", [1, 2], [8, 4])], "epoch", "error (%)"
    )
    root = parsed(svg)
    thin, bold = of_class(root, "curve")
    assert (num_points(thin), num_points(bold)) == (3, 2)
    widths = [float(re.search(r"stroke-width: ([\d.]+)", str(next(c.iter("path")).get("style")))[1]) for c in (thin, bold)]  # type: ignore[index]
    assert widths[0] < 1 < widths[1]
    assert {"training", "test", "epoch", "error (%)"} <= set(texts(root))
    assert root.get("aria-label") == "Error"


def test_curves_over_a_wide_range_get_a_logarithmic_axis_and_curves_with_zero_do_not() -> None:
    x = list(range(1, 101))
    falling = [90 * math.exp(-i / 20) for i in x]
    assert {"1", "5", "50"} <= set(texts(parsed(plots.curves("a", "", [Line("", x, falling)], "epoch", "error (%)"))))
    assert "5" not in texts(parsed(plots.curves("a", "", [Line("", x, [*falling[:-1], 0.0])], "epoch", "error (%)")))


@pytest.mark.parametrize("y", [[], [math.nan], [0.0], [1e-30, 1e30], [-3.0, 2.0], [5.0] * 3])
def test_curves_of_odd_values_are_drawn(y: list[float]) -> None:
    for log in (None, True):
        parsed(plots.curves("odd", "Odd", [Line("a", list(range(len(y))), y)], "epoch", "loss", log=log))


def test_class_counts_have_a_bar_for_each_class_and_split_of_proportional_length() -> None:
    root = parsed(plots.class_counts("counts", "Counts", ["ant", "bee", "cat"], {"train": [10, 20, 0], "test": [1, 2, 3]}))
    bars = of_class(root, "bar")
    assert len(bars) == 6
    lengths = []
    for bar in bars[:3]:
        xs = [float(x) for x in re.findall(r"[ML] ([\d.]+)", str(next(bar.iter("path")).get("d")))]
        lengths.append(max(xs) - min(xs))
    assert lengths[1] == pytest.approx(2 * lengths[0], rel=1e-3)
    assert lengths[2] == 0
    assert {"ant", "bee", "cat", "train (30)", "test (6)", "20"} <= set(texts(root))


def test_a_confusion_matrix_has_a_cell_and_a_number_for_each_count_above_zero() -> None:
    root = parsed(plots.confusion("confusion", "Confusion", ["ant", "bee", "cat"], [[48, 2, 0], [0, 50, 0], [3, 0, 1047]]))
    assert len(of_class(root, "cell")) == 5
    assert sorted(t for t in texts(root) if t.isdigit()) == ["1047", "2", "3", "48", "50"]
    assert {"label", "predicted"} <= set(texts(root))


def test_right_and_wrong_cells_differ_in_colour_and_a_label_without_images_is_an_empty_row() -> None:
    root = parsed(plots.confusion("confusion", "Confusion", ["a", "b"], [[9, 1], [0, 0]]))
    styles = [str(next(cell.iter("path")).get("style")) for cell in of_class(root, "cell")]
    assert [plots.BLUE in styles[0], plots.ORANGE in styles[1], len(styles)] == [True, True, 2]


def test_a_reliability_diagram_has_a_bar_for_each_bin_with_images() -> None:
    bins = [
        {"low": 0.0, "high": 0.5, "count": 0, "confidence": None, "accuracy": None},
        {"low": 0.5, "high": 0.75, "count": 10, "confidence": 0.7, "accuracy": 0.6},
        {"low": 0.75, "high": 1.0, "count": 30, "confidence": 0.9, "accuracy": 0.95},
    ]
    root = parsed(plots.reliability("calibration", "Reliability", bins))
    assert (len(of_class(root, "bar")), len(of_class(root, "share"))) == (2, 2)
    assert {"accuracy", "confidence of the prediction", "images"} <= set(texts(root))
    parsed(plots.reliability("calibration", "Reliability", bins[:1]))


def test_hostile_names_are_texts_and_nothing_else() -> None:
    matrix = [[5 if i == j else 1 for j in range(len(HOSTILE))] for i in range(len(HOSTILE))]
    counts = {"train": [3] * len(HOSTILE)}
    for svg in (plots.confusion("c", "C", HOSTILE, matrix), plots.class_counts("n", "N", HOSTILE, counts)):
        root = parsed(svg)
        assert {e.tag for e in root.iter()} <= {"svg", "g", "defs", "path", "clipPath", "rect", "text", "use", "tspan"}
        found = texts(root)
        assert "$\\frac{a" in found
        assert "קלב נובח" in found
        assert "🦊 fox" in found
        assert any(t.startswith("<script>") for t in found)
        assert any(t.startswith("xxx") and t.endswith("…") for t in found)
        assert not any("\u202e" in t or "\x00" in t for t in found)


def test_ids_begin_with_the_plots_name_and_every_reference_is_met() -> None:
    svg = plots.curves("loss", "Loss", [Line("a", [1, 2], [3, 4])], "epoch", "loss")
    root = parsed(svg)
    ids = [str(e.get("id")) for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    assert all(i.startswith("loss-") for i in ids)
    used = re.findall(r'(?:href="|url\()#([^")]+)', svg)
    assert used
    assert set(used) == set(ids)
    assert "http" not in svg
    assert "<style" not in svg


def test_ink_is_the_pages_and_nothing_lies_behind_a_plot() -> None:
    svg = plots.curves("loss", "Loss", [Line("a", [1, 2], [3, 4])], "epoch", "loss")
    assert "currentColor" in svg
    assert plots.INK not in svg
    assert "#000000" not in svg
    assert "fill: #ffffff" not in svg
    assert "font-family" not in svg


def test_the_same_data_gives_the_same_text() -> None:
    once, again = (plots.curves("loss", "Loss", [Line("a", [1, 2], [3, 4])], "epoch", "loss") for _ in range(2))
    assert once == again


@pytest.mark.parametrize(
    ("text", "short"),
    [("cat", "cat"), ("a  b\n\tc", "a b c"), ("", "(empty)"), ("\x00", "(empty)"), ("abcdefghijk", "abcdefghi…"),
     ("日本語日本語", "日本語日…"), ("a\u202eb", "a\N{REPLACEMENT CHARACTER}b")],
)  # fmt: skip
def test_names_are_shortened_to_columns(text: str, short: str) -> None:
    assert plots.shortened(text, 10) == short
    assert plots.columns(plots.shortened(text, 10)) <= 10


@pytest.mark.parametrize(
    ("values", "numbers"), [((0.3, 2.4), {"0.5", "1", "2"}), ((3.0, 5.5), {"4", "5"}), ((1e-3, 5.0), {"0.01", "1"})]
)
def test_a_logarithmic_axis_has_plain_numbers_however_little_it_spans(values: tuple[float, float], numbers: set[str]) -> None:
    svg = panel("log", "Log", [Curve((1, 2), values, "net")], "x", "y", log=True)
    found = {text.strip() for text in texts(parsed(svg))}
    assert numbers <= found
    assert not any("math" in text for text in found)
