"""The results that are kept and the page made from them; the listing; the verb."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from json_page import assert_as_documented
from reproductions import make_shelf
from typer.testing import CliRunner

from residua import costing, keeping, listing, reproducing
from residua.cli import app
from residua.costing import Rates
from residua.results_page import document
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
    (paper,) = listing.papers(list(entries.values()), SHELF)
    assert {row["name"] for row in paper["rows"]} >= {"he2015/fig6", "he2015/works"}


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
        "too_short", "about", "again", "cost",
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
