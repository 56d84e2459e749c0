"""The results that are kept and the page made from them; the listing; the verb."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import reproductions
from json_page import assert_as_documented
from reproductions import make_shelf
from typer.testing import CliRunner

from residua import costing, keeping, listing, reproducing, tables
from residua.claims import AllOf, Claim, Item, Lower, NotAttempted, Row, Works
from residua.cli import app
from residua.costing import Rates
from residua.prices import Prices
from residua.results_page import document
from residua.rules import ByBudget
from residua.selection import select, shelf

ROOT = Path(__file__).parents[1]
SHELF = make_shelf()


@pytest.fixture(autouse=True)
def known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costing, "rates", lambda: Rates(3e-11, 1.5e-9, 1e-4))


def test_the_page_of_results_is_what_the_kept_results_say() -> None:
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == document(ROOT / "results"), "python scripts/results.py"


def test_kept_results_hold_no_weights_and_no_path_of_a_machine() -> None:
    for path in (ROOT / "results").rglob("*.json"):
        assert path.stat().st_size < 300_000, path
        text = path.read_text(encoding="utf-8")
        assert '"/' not in text, path


def test_the_processor_that_took_times_is_told_where_it_is_known(tmp_path: Path) -> None:
    card = next(card for card in keeping.kept_cards(ROOT / "results") if card["arm"] == "wrn-times")
    card["manifest"]["hardware"] = {"processor": "a processor"}
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "times.json").write_text(json.dumps(card), encoding="utf-8")
    assert "| a processor |" in document(tmp_path)


def test_runs_from_sources_with_uncommitted_changes_are_counted_and_named(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    cards = [card for card in keeping.kept_cards(ROOT / "results") if card["recipe"]][:3]
    for card, revision in zip(cards, ("a" * 40, "b" * 40 + "+changes", None), strict=True):
        card["manifest"]["git"] = revision
        (tmp_path / "small" / f"{card['id']}.json").write_text(json.dumps(card), encoding="utf-8")
    said = f"(2 of 3). Of these, made from sources with uncommitted changes: 1 (`{cards[1]['id']}`)."
    assert said in document(tmp_path)
    (tmp_path / "small" / f"{cards[1]['id']}.json").unlink()
    assert "uncommitted" not in document(tmp_path)


def test_every_kept_run_is_one_of_an_arm_as_it_is_now() -> None:
    papers = shelf()
    for card in keeping.kept_cards(ROOT / "results"):
        assert keeping.speaks(card, papers), card["id"]


def test_the_listing_knows_every_claim_with_its_cost(tmp_path: Path) -> None:
    entries = {entry["id"]: entry for entry in listing.claims(tmp_path, books=SHELF)}
    assert set(entries) == {claim.id for claim in SHELF.papers["he2015"].claims}
    assert entries["arithmetic"]["cost"] == {"smoke": 0.0, "small": 0.0, "full": 0.0}
    assert entries["long"]["cost"]["small"] is None
    assert entries["long"]["cost"]["full"] > entries["long"]["cost"]["smoke"] > 0
    assert entries["works"]["cost"]["small"] > 0
    assert entries["imagenet"]["cost"]["full"] is None
    (paper,) = listing.papers(list(entries.values()), tmp_path, SHELF)
    rows = {row["name"]: row for row in paper["rows"]}
    assert rows["he2015/arithmetic"]["smoke"] == "at once"
    assert rows["he2015/works"]["smoke"].endswith("\N{NO-BREAK SPACE}s")
    assert rows["he2015/long"]["small"] == "–"


def test_the_listing_keeps_its_columns_apart_whatever_the_names() -> None:
    row = {"known": "14 of 14 runs (small), 1 of 33 (full)", "smoke": "1 s", "small": "1234 d 12 h 30 min", "full": "–"}
    papers = [
        {"citation": "A paper.", "summary": "2 claims", "rows": [{"name": name, **row} for name in ("a/b", "a/" + 60 * "c")]}
    ]
    head, *_, short, long, _, note, dash, _ = tables.papers(papers).splitlines()
    for line in (short, long):
        assert line.split("  ")[-1].strip() == "–"
        assert f"  {row['known']}  " in line
        assert f"  {row['small']}  " in line
        assert len(line) == len(head)
    assert long.startswith(f"  a/{60 * 'c'}  14 of 14")
    assert head.split() == ["paper/item", "or", "claim", "known", "smoke", "small", "full"]
    assert "factor of two" in note
    assert "–" in dash


def test_an_item_tells_how_many_of_its_runs_are_there(tmp_path: Path) -> None:
    def known() -> dict[str, str]:
        (paper,) = listing.papers(listing.claims(tmp_path, costs=False, books=SHELF), tmp_path, SHELF)
        return {row["name"].partition("/")[2]: row["known"] for row in paper["rows"]}

    assert known()["fig6"] == "0 of 4 runs (small)"
    assert known()["arithmetic"] == "not attempted"
    reproducing.reproduce("he2015/works", budget="small", seeds=1, out=tmp_path, papers=SHELF)
    assert known()["fig6"] == "2 of 4 runs (small)"
    assert known()["combined"] == "3 of 6 runs (small)"
    for card in (tmp_path / "runs").glob("*/record.json"):
        card.unlink()
    assert known()["combined"] == "0 of 6 runs (small)"


def test_an_arm_of_another_name_and_the_same_recipe_is_paid_for_once() -> None:
    twin = replace(reproductions.arm("twin"), small_seeds=3)  # of the same recipe as the arm "residual", with two seeds
    books = make_shelf(twin)
    prices = Prices(books)
    item = books.papers["he2015"].items[0]
    both = replace(item, arms=("residual", "plain", "twin"), measurements=())
    apart = [prices.cost(replace(both, arms=(name,)), "small") or 0.0 for name in ("twin", "plain")]
    assert prices.cost(both, "small") == pytest.approx(sum(apart), abs=0.2)
    assert sorted(seeds for _, seeds in prices.runs(both, "small").values()) == [2, 3]
    assert len(prices.runs(replace(both, arms=("residual", "twin", "both")), "small")) == 3  # with the ensemble and its members


def test_a_claim_that_a_budget_cannot_settle_has_no_cost_there_but_the_reason() -> None:
    rule = ByBudget(Works("residual", 95.0), NotAttempted("it takes a long time"), "it is short")
    lacking, partly = AllOf(Works("long", 95.0), Lower("plain", "long")), AllOf(Works("plain", 95.0), Works("long", 95.0))
    claims = tuple(
        Claim(name, rule, arms, statement="It is so.")
        for name, rule, arms in (
            ("by_budget", rule, ("residual",)), ("lacking", lacking, ("plain", "long")), ("partly", partly, ("plain", "long")),
            ("never", NotAttempted("it needs more"), ("residual",)), ("works", Works("plain", 95.0), ("plain",)),
            ("measured", SHELF.claim("he2015/norms")[1].rule, ("residual",)),
        )
    )  # fmt: skip
    paper = replace(SHELF.papers["he2015"], claims=claims)
    books = replace(SHELF, papers={"he2015": paper})
    entries = {entry["id"]: entry for entry in listing.claims(Path("nowhere"), books=books)}
    for name, reason in (("by_budget", "it takes a long time"), ("lacking", "it is long"), ("never", "it needs more")):
        assert entries[name]["cost"]["small"] is None
        assert reason in entries[name]["cannot_decide"]["small"]
        assert entries[name]["cost"]["smoke"] > 0
    for name in ("partly", "works", "measured"):  # a rule of several parts can be refuted by one
        assert entries[name]["cost"]["small"] > 0
        assert entries[name]["cannot_decide"] == {"small": None, "full": None}
    assert entries["by_budget"]["cannot_decide"]["full"] is None
    assert entries["never"]["cost"]["full"] > 0  # what its runs would take
    assert entries["never"]["cannot_decide"]["full"] == "it needs more"


def test_the_papers_say_themselves_what_small_cannot_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costing, "counts", lambda _: costing.Counts(4e7, 7e5, 80))
    prices = Prices(shelf())
    claims = {f"{key}/{claim.id}": claim for key, claim in select([]).claims}
    for name in ("he2015/best_vs_mean_110", "he2015/r1202_overfits", "he2015/r110_beats_thin_rivals",
                 "inception_resnet/final_accuracy_depends_on_size"):  # fmt: skip
        assert prices.obstacle(claims[name], "small")
        assert not prices.obstacle(claims[name], "full")
        assert prices.cost(claims[name], "small") is None
    for name in ("he2016/gate_bias_critical", "veit2016/delete_one_resnet", "wrn/width_helps", "he2015/small_responses"):
        assert not prices.obstacle(claims[name], "small")


def test_what_is_not_attempted_is_printed_with_what_it_would_cost(tmp_path: Path) -> None:
    paper = replace(SHELF.papers["he2015"], items=(Item("few", "Few", ("long",), rows=(Row("long", label=50 * "x"),)),))
    books = replace(SHELF, papers={"he2015": paper})
    found = reproducing.reproduce(["he2015/long", "he2015/arithmetic", "he2015/few"], out=tmp_path, papers=books)
    lines = tables.reproduction(found.document).splitlines()
    assert lines[0].startswith("not attempted  he2015/long: long has no run at this budget: it is long.")
    assert lines[1].strip().startswith("Forecast here: ")
    assert lines[1].endswith(" at full.")
    assert "small" not in lines[1]
    assert lines[2].startswith("shown ")
    assert "  Left out: long: it is long" in lines
    assert any(line.startswith(f"  {50 * 'x'}, test_error  ") for line in lines)


def test_the_verb_lists_every_claim_of_every_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costing, "counts", lambda _: costing.Counts(4e7, 7e5, 80))
    result = CliRunner().invoke(app, ["reproduce", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.stderr
    for key, claim in select([]).claims:
        assert f"{key}/{claim.id}" in result.stdout
    listed = CliRunner().invoke(app, ["reproduce", "--out", str(tmp_path), "--json"])
    own = {"again": "only where a claim was asked for by name"}
    assert_as_documented("reproduce", [{**own, **entry} for entry in json.loads(listed.stdout)])


def test_the_verb_runs_an_item_and_writes_its_claims_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproducing, "shelf", lambda: SHELF)
    monkeypatch.setattr(listing, "shelf", lambda: SHELF)
    options = ["--budget", "smoke", "--out", str(tmp_path), "--keep", str(tmp_path / "kept")]
    result = CliRunner().invoke(app, ["reproduce", "he2015/fig6", "he2015/arithmetic", *options, "--json"])
    assert result.exit_code == 0, result.stderr
    assert_as_documented("reproduce", json.loads(result.stdout))
    found = {entry["id"]: entry for entry in json.loads(result.stdout)}
    assert {name: entry["verdict"] for name, entry in found.items()} == {"lower": "not attempted", "arithmetic": "shown"}
    assert found["lower"]["budget"] == "smoke"
    assert set(found["lower"]) == {
        "paper", "id", "statement", "verdict", "budget", "why", "rule", "evidence", "stands_in", "amended",
        "too_short", "about", "again", "cost", "cannot_decide",
    }  # fmt: skip
    assert "done]" in result.stderr
    text = CliRunner().invoke(app, ["reproduce", "he2015/fig6", *options]).stdout
    assert "8.75" in text
    run = next((tmp_path / "kept" / "smoke").glob("plain-s0-*.json")).stem
    repeated = CliRunner().invoke(app, ["reproduce", "--verify", run, "--out", str(tmp_path), "--json"])
    assert_as_documented("reproduce --verify", json.loads(repeated.stdout))
    assert json.loads(repeated.stdout)["verdict"] == "equal"


def test_a_misspelt_name_is_told_with_the_nearest() -> None:
    result = CliRunner().invoke(app, ["reproduce", "he2015/figg6"])
    assert result.exit_code == 2
    assert "fig6" in result.stderr
