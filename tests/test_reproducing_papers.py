"""Items of the papers' own shelf at the budget smoke, from the command to the page: that what the catalogue names can be run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reproductions import on_a_usual_machine
from typer.testing import CliRunner

from residua import budgets
from residua.claims import Arm, Probe
from residua.cli import app
from residua.reproducing import reproduce
from residua.selection import shelf


@pytest.fixture(autouse=True)
def known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_usual_machine(monkeypatch)


def test_every_arm_of_every_paper_has_a_form_at_smoke() -> None:
    assert {name: reason for name, arm in shelf().arms.items() if (reason := budgets.unavailable(arm, "smoke"))} == {}


def test_a_figure_of_a_paper_is_made_from_its_two_arms_and_decides_nothing(tmp_path: Path) -> None:
    found = reproduce("wrn/fig2", budget="smoke", out=tmp_path)
    assert found.failed == {}
    assert found.document["left_out"] == {}
    assert {run["arm"] for run in found.document["runs"]} == {"wrn_40_1", "wrn_40_4"}
    assert [(claim["id"], claim["verdict"]) for claim in found.claims] == [("loss_rises_after_first_drop", "not attempted")]
    (item,) = found.document["items"]
    assert item["trouble"] == ""
    assert {figure["title"] for figure in item["figures"]} == {"Thin and wide", "Loss of WRN-40-4"}
    page = found.page.read_text(encoding="utf-8")
    assert "WRN-40-4" in page
    assert page.count("<svg") >= 2


def test_at_full_every_row_has_a_measurement_that_its_arm_is_tested_by() -> None:
    """The protocols of tables 2 to 4 of he2015 and of table 3 of VGG are asked for at full only."""
    books = shelf()
    tested = {name: arm.protocols for name, arm in books.arms.items() if isinstance(arm, Arm) and arm.protocols}
    for depth in (50, 101, 152):
        assert tested[f"imagenet-resnet{depth}"] == ("ten-crop", "dense")
    assert (tested["vgg16"], tested["vgg16-jitter"]) == (("dense@256",), ("dense@384",))
    for name, protocols in tested.items():
        arm = books.arm(name)
        assert budgets.measured_at(arm, "full", ("dense",)) == tuple(dict.fromkeys(("dense", *protocols)))
        assert budgets.measured_at(arm, "small", ()) == budgets.measured_at(arm, "smoke", ()) == ()
    rows = [row for paper in books.papers.values() for item in paper.items for row in item.rows if row.full]
    assert {row.arm for row in rows} >= tested.keys() - {"imagenet-plain34-20"}
    for row in rows:
        assert row.full.partition(".")[0] in tested[row.arm]
        assert row.measure_at("small") == row.measure != row.measure_at("full") == row.full


def test_where_full_departs_from_a_paper_the_reason_is_said() -> None:
    """Training that nobody can repeat, data that are too large, what no recipe and no protocol here does."""
    said = {name: arm.departs for name, arm in shelf().arms.items() if not isinstance(arm, Probe)}
    for name in (
        "imagenet-resnet152", "he2015-ensemble", "imagenet2016-preact_resnet200", "wrn_40_4", "wrn_28_10-cifar100", "wrn_40_2-l3",
        "wrn_28_2-B(3,3)", "preact110", "vgg16", "vgg19-jitter",
    ):  # fmt: skip
        assert " because " in said[name], name
    for name, text in said.items():
        assert not text or (text[0].islower() and not text.endswith(".")), name  # a phrase among others of a list


@pytest.mark.slow
def test_two_tables_of_the_papers_go_from_the_command_to_their_page(tmp_path: Path) -> None:
    options = ["--budget", "smoke", "--out", str(tmp_path), "--json"]
    result = CliRunner().invoke(app, ["reproduce", "wrn/table8", "he2015/table2", *options])
    assert result.exit_code == 0, result.stderr
    document = json.loads((tmp_path / "reproduction.json").read_text(encoding="utf-8"))
    assert document["failed"] == document["left_out"] == {}
    items = {f"{item['paper']}/{item['id']}": item for item in document["items"]}
    assert {name: len(item["rows"]) for name, item in items.items()} == {"wrn/table8": 8, "he2015/table2": 4}
    for name, item in items.items():
        for row in item["rows"]:
            assert row["published"] is not None, name
            assert row["measured"], (name, row)
    verdicts = {claim["id"]: claim["verdict"] for claim in json.loads(result.stdout)}
    assert verdicts["wide50_size"] == "shown"
    assert verdicts["wide50_beats_152"] == verdicts["wrn50_2_top5"] == verdicts["degradation_imagenet"] == "not attempted"
    page = (tmp_path / "reproduction.html").read_text(encoding="utf-8")
    for printed in ("21.9", "28.54", "resnet152-fair", "imagenet-plain34"):
        assert printed in page
