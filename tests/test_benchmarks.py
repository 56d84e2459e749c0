"""The results of benchmarks have one form, and docs/performance.md is made of them and of the notes beside them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
RESULTS = sorted((FOLDER / "results").glob("*.json"))


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


page, form = script("page"), script("form")


def test_the_page_is_what_the_results_and_the_notes_make() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page(), "run python benchmarks/page.py"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_has_the_one_form(path: Path) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    assert set(form.FIELDS) <= set(found) <= {*form.FIELDS, "raw"}
    assert found["name"] == path.stem
    assert found["rows"]
    assert found["command"].startswith("python benchmarks/")
    assert "torch" in found["versions"]
    assert path.stat().st_size < 30_000
    for text in (found["command"], *found["notes"]):
        assert not any(word.startswith("/") for word in text.split()), "a path of one machine"


def test_every_result_is_shown_and_every_note_is_part_of_the_page() -> None:
    notes = {part: (FOLDER / "results" / f"{part}.md").read_text(encoding="utf-8") for part in page.ORDER}
    shown = {name for text in notes.values() for name in page.PLACE.findall(text)}
    assert shown == {path.stem for path in RESULTS}
    assert {path.stem for path in (FOLDER / "results").glob("*.md")} == set(notes)


def test_a_number_in_a_line_is_that_of_one_row_and_nothing_else() -> None:
    form = {"name": "some", "rows": [{"way": "ours, SGD", "n": 1, "ratio": 2.345}, {"way": "ours", "n": 1, "ratio": 0.5}]}
    assert page.cell(form, "way=ours, SGD, n=1", "ratio") == "2.35"
    for where, column in (("n=1", "ratio"), ("way=theirs", "ratio"), ("way=ours", "ratios")):
        with pytest.raises(KeyError, match="rows where"):
            page.cell(form, where, column)


def test_a_changed_figure_changes_the_page() -> None:
    found = page.load(RESULTS[0].stem)
    before = page.shown(found)
    column = next(name for name, value in found["rows"][0].items() if isinstance(value, float))
    found["rows"][0][column] = 987654.0
    assert page.shown(found) != before
    assert "987,654" in page.shown(found)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234.5, "1,234"),
        (12.345, "12.3"),
        (0.12345, "0.123"),
        (2.0, "2.00"),
        (99.96, "100"),
        (None, ""),
        (1234, "1,234"),
        ("a", "a"),
    ],
)
def test_numbers_are_shown_with_three_digits(value: object, text: str) -> None:
    assert page.number(value) == text


def test_a_table_has_every_column_of_its_rows_and_nothing_where_one_is_missing() -> None:
    assert page.table([{"way": "a", "x": 1.0}, {"way": "b", "y": None, "x": 2.5}]).splitlines() == [
        "| way | x | y |", "| --- | ---: | ---: |", "| a | 1.00 |  |", "| b | 2.50 |  |",
    ]  # fmt: skip


def test_paths_of_the_machine_stay_out_of_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = str(FOLDER / "results" / "x.json")
    words = [str(FOLDER / "memory.py"), "--images", "/data/cats", "--json", inside, "--data-dir", "/elsewhere", "--rounds", "3"]
    monkeypatch.setattr(sys, "argv", words)
    said = "python benchmarks/memory.py --images $IMAGES --json benchmarks/results/x.json --data-dir $DATA_DIR --rounds 3"
    assert form.command() == said


def test_results_are_rounded_to_four_digits_and_hold_no_nan() -> None:
    found = form.rounded({"a": [1.23456, float("nan"), 3], "b": {"c": 123456.0}, "d": "text"})
    assert found == {"a": [1.235, None, 3], "b": {"c": 123500.0}, "d": "text"}


def test_a_written_result_can_be_shown(tmp_path: Path) -> None:
    ratios = [2.0, 1.5, 3.0]
    rows = [{"way": "ours", "images/s": 100.0, **form.spread(ratios, "against theirs")}]
    form.write(tmp_path / "x.json", form.result("x", rows, ceiling={"decoding, images/s": 250.0}, notes=["Said."]))
    text = page.shown(json.loads((tmp_path / "x.json").read_text()))
    assert "| ours | 100 | 2.00 | 1.50 | 3.00 |" in text
    assert "decoding, images/s 250" in text
    assert "Said." in text
