"""Reproductions of a paper of small networks on the digits: shared runs, addresses, continuation after kill -9, what is kept."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from reproductions import arm, make_shelf, on_a_usual_machine

from residua import budgets, checkpoints, costing, keeping, machine, planning
from residua.claims import AllOf, Claim, Exact, Item, Lower, Measured, NotAttempted, Outcome, Row, Works
from residua.deciding import Known, outcome_of
from residua.errors import RequestError
from residua.evidence import Record
from residua.matrix import Sources, Task, address_of, execute, read_record
from residua.papers import published
from residua.recipe import Model, Recipe, differences, from_dict, replaced
from residua.reproducing import Unwatched, reproduce
from residua.results_page import best_known
from residua.rules import ByBudget
from residua.running import Settings, carry_out, thinned
from residua.selection import select, shelf, statement
from residua.training import Interrupted
from residua.verifying import verify

SHELF = make_shelf()


@pytest.fixture(autouse=True)
def known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates as of a usual machine, so that none are measured."""
    on_a_usual_machine(monkeypatch)


class Told(Unwatched):
    """Remembers which runs began."""

    def __init__(self) -> None:
        self.began: list[str] = []

    def task(self, name: str, done: int, total: int, left: float) -> None:
        self.began.append(name)


def run(out: Path, names: Any = (), **options: Any) -> tuple[Any, list[str]]:
    told = Told()
    return reproduce(names, out=out, papers=SHELF, watcher=told, **{"budget": "small", **options}), told.began


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reproduction of everything at small."""
    out = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        on_a_usual_machine(patch)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        result = reproduce(budget="small", out=out, papers=SHELF, keep=out / "kept")
    (out / "first.json").write_text((out / "reproduction.json").read_text())
    assert not result.failed
    return out


def document(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "first.json").read_text()))


def test_every_sort_of_claim_gets_its_verdict_and_its_evidence(finished: Path) -> None:
    claims = {entry["id"]: entry for entry in document(finished)["claims"]}
    found = {name: entry["verdict"] for name, entry in claims.items()}
    assert found["works"] == found["norms"] == found["halves"] == found["arithmetic"] == "shown"
    assert found["lower"] in ("shown", "refuted", "under-powered")
    assert found["long"] == found["imagenet"] == "not attempted"
    assert "it is long" in claims["long"]["why"]
    assert len(claims["lower"]["evidence"]["runs"]) == 4
    assert claims["arithmetic"]["budget"] == "exact"


def test_a_training_whose_loss_is_not_finite_counts_with_the_errors_and_losses_of_chance(tmp_path: Path) -> None:
    usual = arm("wild")
    wild = replace(usual, recipe=replaced(usual.recipe, {"optim.lr": 1e30}))
    recipe, fingerprint, num_test = Sources().resolved(budgets.recipe_at(wild, "small", 0))
    task = Task(wild, 0, "small", address_of(recipe, fingerprint), tmp_path, recipe, num_test=num_test)
    carry_out(task, Settings({}, None, None, None, Unwatched()))
    record = read_record(task)
    assert record is not None
    assert record.broken_off.startswith("Training broke off: the loss was ")
    assert record.values["train_error"] == record.values["test_error"] == record.values["best_test_error"] == 90.0
    assert record.values["train_loss"] == record.values["test_loss"] == pytest.approx(math.log(10))


def test_an_address_changes_with_every_field_that_bears_on_the_result_and_with_the_data() -> None:
    recipe = SHELF.arms["residual"].recipe  # type: ignore[union-attr]
    changes = ({"seed": 1}, {"optim.lr": 0.1 + 1e-9}, {"model.options.depth": 14}, {"augment.flip": True}, {"batch_size": 33})
    addresses = {address_of(replaced(recipe, change), data) for change in ({}, *changes) for data in ("a", "b")}
    assert len(addresses) == 2 * (1 + len(changes))
    assert address_of(replaced(recipe, {"name": "other"}), "a") == address_of(recipe, "a")


def test_the_defaults_that_addresses_rest_on_stand() -> None:
    """Only what differs from these is hashed. A new field may be added; a default that changes needs a new `runs.FORMAT`."""
    then = json.loads((Path(__file__).parent / "recipe_defaults.json").read_text(encoding="utf-8"))
    assert differences(from_dict(then), Recipe()) == {}


def test_items_hold_printed_beside_measured_numbers_with_their_spread(finished: Path) -> None:
    items = {entry["id"]: entry for entry in document(finished)["items"]}
    first, second = items["fig6"]["rows"]
    assert (first["published"], first["unit"], first["verified"]) == (8.75, "%", True)
    assert len(first["measured"]) == 2
    assert first["spread"] > 0
    assert second["published"] is None
    assert items["fig6"]["figures"][0]["title"] == "Curves"
    page = (finished / "reproduction.html").read_text()
    assert "he2015/fig6" in page
    assert "8.75" in page


def test_an_ensemble_is_that_of_its_members_of_the_same_seed(finished: Path) -> None:
    from residua.evaluation import evaluate

    runs = {entry["id"].rpartition("-")[0]: entry for entry in document(finished)["runs"]}
    paths = [finished / "runs" / runs[f"{name}-s1"]["id"] for name in ("residual", "plain")]
    assert runs["both-s1"]["values"]["test_error"] == evaluate(paths, save=False).top1_error


def test_nothing_that_is_there_is_run_again_and_items_share_runs(finished: Path) -> None:
    for names in ((), "he2015/fig6", ["he2015/lower", "he2015/combined"]):
        again, began = run(finished, names)
        assert began == []
        assert not again.failed


def test_another_measurement_of_a_run_costs_no_training(tmp_path: Path) -> None:
    run(tmp_path, "he2015/lower", seeds=1)
    before = {path: path.read_bytes() for path in tmp_path.glob("runs/*/record.json")}
    assert not list(tmp_path.glob("runs/*/measured"))
    result, began = run(tmp_path, "he2015/norms", seeds=1)
    assert [name.rpartition("-")[0] for name in began] == ["residual-s0"]
    assert result.claims[0]["verdict"] == "shown"
    assert {path: path.read_bytes() for path in tmp_path.glob("runs/*/record.json")} == before


def test_the_forecast_of_a_run_counts_what_is_left_of_it(tmp_path: Path) -> None:
    def forecast(name: str) -> float:
        plan = planning.planned(select([name], SHELF), SHELF, "small", tmp_path, Sources(), seeds=1)
        return plan.costs[plan.tasks["residual"][0].id]

    whole = forecast("he2015/lower")
    run(tmp_path, "he2015/lower", seeds=1)
    assert (forecast("he2015/lower"), forecast("he2015/norms")) == (0.0, 0.5 / 2)
    path = next(tmp_path.glob("runs/residual-*"))
    (path / "record.json").unlink()
    newest, before = checkpoints.available(path / "checkpoints")
    shutil.rmtree(newest)
    behind = int(before.name.removeprefix("step-")) / 24
    assert 0 < behind < 1
    assert forecast("he2015/lower") == pytest.approx((1 - behind) * (whole - 10.0) + 10.0)


def test_of_a_long_training_the_beginning_is_kept_closely() -> None:
    lines = [{"step": step, "values": {"loss": float(step)}} for step in range(32, 64_001, 32)]
    curve = thinned(lines, "loss")
    assert [step for step, _ in curve if step <= 1_000] == list(range(32, 1_000, 32))
    assert 200 <= len(curve) <= 235
    assert curve[-1] == [64_000, pytest.approx(64_000 - 32 * (len(lines) - 31 - 196 * 10 - 1) / 2, rel=1e-5)]
    short = [{"step": step, "values": {"loss": 1.0}} for step in range(1, 2_001)]
    assert [step for step, _ in thinned(short, "loss")] == list(range(10, 2_001, 10))


def test_why_a_claim_is_not_attempted_names_what_is_missing() -> None:
    """What could be run comes first; what the budget leaves out is told with its reason."""
    rule = Lower("plain", "residual")
    claim = Claim("x", rule, ("plain", "residual", "long"), statement="It is better.")
    known = Known("small", [Record("plain", 0, {"test_error": 5.0})], left_out={"long": "it is long"})
    assert outcome_of(claim, known).why.startswith("There is no test error of residual yet.")
    assert outcome_of(claim, known).why.endswith("long has no run at this budget: it is long.")
    known = Known("small", [], left_out={"plain": "it is plain", "residual": "it is too", "long": "it is long"})
    assert outcome_of(claim, known).why.count("has no run at this budget: it is") == 3
    assert "yet" not in outcome_of(claim, known).why


def test_a_rule_that_is_not_attempted_at_a_budget_says_why_whatever_has_run() -> None:
    rule = ByBudget(Lower("plain", "long"), NotAttempted("it is about the end"), "nothing ends")
    claim = Claim("x", rule, ("plain", "long"), statement="It is better.")
    for records in ([], [Record("plain", 0, {"test_error": 5.0})]):
        assert outcome_of(claim, Known("small", records, left_out={"long": "it is long"})).why == "it is about the end"
    assert outcome_of(claim, Known("full", left_out={"long": "it is long"})).why.endswith("it is long.")


def test_a_claim_that_is_not_attempted_says_which_of_its_parts_are_settled() -> None:
    exact = Exact("It is counted.", lambda: Outcome("shown", "1 of 2 is half"))
    claim = Claim("x", AllOf(exact, Lower("plain", "residual")), ("plain", "residual"), statement="It is better.")
    for known in (
        Known("small"),  # nothing has run
        Known("small", [Record("plain", 0, {"test_error": 5.0})]),
        Known("small", left_out={"plain": "it is plain", "residual": "it is too"}),
    ):
        outcome = outcome_of(claim, known)
        assert outcome.verdict == "not attempted"
        assert outcome.why.endswith(". Settled: 1 of 2 is half.")
    records = [Record(arm, 0, {"test_error": error}) for arm, error in (("plain", 5.0), ("residual", 50.0))]
    assert "Settled" not in outcome_of(claim, Known("small", records)).why


def test_runs_in_different_precisions_are_told() -> None:
    claim = Claim("x", Lower("plain", "residual", "train_error"), ("plain", "residual"), statement="It is better.")
    for plan, told in (("bf16-fused", "bf16 residual; fp32 plain"), ("fp32-channels-last", "")):
        records = [Record("plain", seed, {"train_error": 5.0 + seed}, plan="fp32-fused") for seed in range(2)]
        records += [Record("residual", seed, {"train_error": 50.0 + seed}, plan=plan) for seed in range(2)]
        outcome = outcome_of(claim, Known("small", records))
        assert outcome.verdict == "shown"
        assert (told in outcome.why) if told else ("precision" not in outcome.why)


def test_an_option_that_the_arm_does_not_name_is_another_networks() -> None:
    wanted = Recipe(model=Model(name="cifar_resnet", options={"depth": 8}))
    options = {"depth": 8, "num_classes": 10, "in_channels": 1}
    assert keeping.fits(wanted, replaced(wanted, {"model.options": options, "data.image_size": 8}))
    for more in ({"plain": True}, {"shortcut": "C"}, {"stochastic_depth": 0.5}):
        assert not keeping.fits(wanted, replaced(wanted, {"model.options": options | more}))


def test_a_measurement_that_is_defined_anew_is_made_anew_and_an_ensemble_speaks_for_its_own_members(tmp_path: Path) -> None:
    reproduce(["he2015/norms", "he2015/works"], budget="small", seeds=1, out=tmp_path, papers=SHELF, keep=tmp_path / "kept")
    cards = keeping.kept_cards(tmp_path / "kept")
    known = keeping.known_from(cards, SHELF, "small")
    assert {record.arm for record in known.records} == {"residual", "plain", "both"}
    assert known.evidence(["residual"]).measurement("residual", "norms")
    anew = replace(SHELF, measurements={"norms": replace(SHELF.measurements["norms"], version=2)})
    assert not keeping.known_from(cards, anew, "small").evidence(["residual"]).measurement("residual", "norms")
    told = Told()
    reproduce("he2015/norms", budget="small", seeds=1, out=tmp_path, papers=anew, watcher=told, keep=tmp_path / "kept")
    assert [name.partition("-")[0] for name in told.began] == ["residual"]
    assert (
        keeping.known_from(keeping.kept_cards(tmp_path / "kept"), anew, "small")
        .evidence(["residual"])
        .measurement("residual", "norms")
    )
    (both,) = (card for card in cards if card["arm"] == "both")
    others = [card for card in cards if card["arm"] != "plain"]
    assert {record.arm for record in keeping.known_from(others, SHELF, "small").records} == {"residual"}
    forged = both | {"parts": [part.rpartition("-")[0] + "-0000000000" for part in both["parts"]]}
    assert not keeping.speaks(forged, SHELF)


def test_kept_runs_are_not_made_again_elsewhere_but_where_their_weights_are_asked_for(finished: Path, tmp_path: Path) -> None:
    kept = shutil.copytree(finished / "kept", tmp_path / "kept")
    whole, began = run(tmp_path / "other", keep=kept)
    assert began == []
    assert not whole.failed
    first = {entry["id"]: entry for entry in document(finished)["claims"]}
    for entry in whole.claims:
        assert (entry["verdict"], entry["evidence"]) == (first[entry["id"]]["verdict"], first[entry["id"]]["evidence"])
    assert {path.name: path.read_bytes() for path in kept.glob("small/*")} == {
        path.name: path.read_bytes() for path in (finished / "kept").glob("small/*")
    }
    anew = replace(SHELF, measurements={"norms": replace(SHELF.measurements["norms"], version=2)})
    told = Told()
    reproduce(budget="small", out=tmp_path / "anew", papers=anew, watcher=told, keep=kept)
    assert {name.rpartition("-s")[0] for name in told.began} == {"residual"}
    for path in kept.glob("small/both-*"):
        path.unlink()
    _, began = run(tmp_path / "parts", "he2015/works", keep=kept)
    assert {name.rpartition("-s")[0] for name in began} == {"residual", "plain", "both"}


def test_a_run_that_was_put_back_is_made_where_its_weights_are_asked_for_later(finished: Path, tmp_path: Path) -> None:
    kept = shutil.copytree(finished / "kept", tmp_path / "kept")
    assert run(tmp_path, ["he2015/lower", "he2015/norms"], seeds=1, keep=kept)[1] == []
    anew = replace(SHELF, measurements={"norms": replace(SHELF.measurements["norms"], version=2)})
    told = Told()
    result = reproduce("he2015/norms", budget="small", seeds=1, out=tmp_path, papers=anew, watcher=told)
    assert [name.rpartition("-s")[0] for name in told.began] == ["residual"]
    assert not result.failed
    assert result.claims[0]["verdict"] == "shown"


def test_what_is_computed_is_kept_with_what_it_was_computed_on(finished: Path) -> None:
    for arm_name in ("halves", "both"):
        card = json.loads(next((finished / "kept" / "small").glob(f"{arm_name}-s0-*.json")).read_text())
        manifest = card["manifest"]
        assert manifest["hardware"]["processor"] == machine.processor()
        assert manifest["versions"] == machine.versions()
        assert manifest["git"] == machine.revision()
        assert manifest["threads"] == torch.get_num_threads()
        assert datetime.fromisoformat(manifest["created"]).tzinfo is not None


@pytest.mark.parametrize(("hardware", "again"), [({}, True), ({"processor": "another"}, True), (None, False)])
def test_kept_times_of_another_processor_or_of_an_unknown_one_are_taken_anew(
    tmp_path: Path, hardware: dict[str, str] | None, again: bool
) -> None:
    papers = make_shelf()
    clock = replace(papers.arms["halves"], timed=True)
    papers = replace(papers, arms={**papers.arms, "halves": clock})
    reproduce("he2015/halves", budget="small", seeds=1, out=tmp_path / "there", papers=papers, keep=tmp_path / "kept")
    (path,) = (tmp_path / "kept" / "small").glob("halves-*.json")
    card = json.loads(path.read_text())
    if hardware is not None:
        path.write_text(json.dumps(card | {"manifest": {"residua": "0.1.0", "hardware": hardware}}))
    for shelf_of, expected in ((SHELF, False), (papers, again)):
        told = Told()
        out = tmp_path / f"here-{expected}-{shelf_of is papers}"
        result = reproduce(
            "he2015/halves", budget="small", seeds=1, out=out, papers=shelf_of, watcher=told, keep=tmp_path / "kept"
        )
        assert bool(told.began) == expected
        assert result.claims[0]["verdict"] == "shown"
    if again:
        assert json.loads(path.read_text())["manifest"]["hardware"]["processor"] == machine.processor()


def test_each_run_is_kept_as_it_is_over(tmp_path: Path) -> None:
    class Once(Told):
        def task(self, name: str, done: int, total: int, left: float) -> None:
            super().task(name, done, total, left)
            if len(self.began) == 2:
                raise Interrupted(signal.SIGTERM, tmp_path)

    with pytest.raises(Interrupted):
        reproduce("he2015/lower", budget="small", out=tmp_path, papers=SHELF, watcher=Once(), keep=tmp_path / "kept")
    assert len(list((tmp_path / "kept").glob("small/*.json"))) == 1


def test_a_test_error_stands_on_the_images_of_its_own_arm() -> None:
    records = [Record(name, 0, {"test_error": 10.0}) for name in ("few", "many", "computed")]
    known = Known("small", records, {"few": 359, "many": 10_000, "computed": 0})
    for arms, count in ((["few"], 359), (["many"], 10_000), (["few", "many"], 359), (["many", "computed"], 10_000)):
        assert known.evidence(arms).num_test == count
    assert known.evidence(["computed"]).num_test == 0


def test_addresses_follow_what_decides_a_result(tmp_path: Path) -> None:
    one = arm("one")
    same = replace(one, name="same", recipe=replaced(one.recipe, {"name": "another", "checkpoints.seconds": 5}))
    other = replace(one, name="other", recipe=replaced(one.recipe, {"optim.lr": 0.06}))
    papers = make_shelf(one, same, other)
    found = {}
    for budget in ("smoke", "small", "full"):
        selection = replace(select([], papers), claims=(), items=(replace(SHELF.papers["he2015"].items[0], claims=()),))
        selection = replace(selection, items=(("he2015", replace(selection.items[0], arms=("one", "same", "other"))),))
        plan = planning.planned(selection, papers, budget, tmp_path, Sources(), seeds=2)
        found[budget] = {task.id.rpartition("-")[0]: task.address for task in plan.all()}
    assert found["small"]["one-s0"] == found["small"]["same-s0"]
    assert len(set(found["small"].values())) == 4  # two recipes, two seeds
    assert not set(found["small"].values()) & set(found["full"].values())


def test_smoke_makes_everything_and_decides_nothing(tmp_path: Path) -> None:
    result, _ = run(tmp_path, budget="smoke")
    assert not result.failed
    assert {entry["verdict"] for entry in result.claims if entry["budget"] == "smoke"} == {"not attempted"}
    assert all(row["measured"] for item in result.document["items"] for row in item["rows"])


def test_at_full_the_protocols_of_the_paper_are_measured_and_stand_in_its_rows(tmp_path: Path) -> None:
    """Below it neither they nor another address are asked for."""
    tested = arm(
        "tested", 2, protocols=("ten-crop", "dense@16"), stand_in="few for many", departs="digits, because they are here"
    )
    papers = make_shelf(tested)
    rows = (Row("tested", full="ten-crop.test_error"), Row("tested", "train_error", full="dense@16.test_error"))
    item = Item("table3", "Shortcuts", ("tested",), rows=rows)
    papers = replace(papers, papers={"he2015": replace(papers.papers["he2015"], items=(item,), claims=())})
    found = {}
    for budget in ("smoke", "full"):
        result = reproduce("he2015/table3", budget=budget, out=tmp_path, papers=papers)
        assert result.failed == {}
        found[budget] = result.document["items"][0]["rows"]
        assert result.document["runs"][0]["departs"] == (tested.departs if budget == "full" else tested.stand_in)
        (run,) = tmp_path.glob(f"runs/{result.document['runs'][0]['id']}")
        measured = {path.stem: json.loads(path.read_text())["result"] for path in run.glob("measured/*.json")}
        assert set(measured) == (set(tested.protocols) if budget == "full" else set())
    assert [row["measure"] for row in found["smoke"]] == ["test_error", "train_error"]
    assert [row["measure"] for row in found["full"]] == ["ten-crop.test_error", "dense@16.test_error"]
    assert measured["dense@16"]["scales"] == [16]
    assert [row["measured"] for row in found["full"]] == [[measured[name]["test_error"]] for name in tested.protocols]
    without = replace(tested, protocols=())
    for budget in ("small", "full"):
        plans = []
        for one in (tested, without):
            shelved = replace(papers, arms=papers.arms | {"tested": one})
            plans.append(planning.planned(select(["he2015/table3"], shelved), shelved, budget, tmp_path, Sources()))
        first, second = (plan.tasks["tested"] for plan in plans)
        assert [task.id for task in first] == [task.id for task in second]
        assert (first[0].measurements, second[0].measurements) == (tested.protocols if budget == "full" else (), ())


def test_in_a_given_time_the_claims_that_cost_least_come_first(tmp_path: Path) -> None:
    plan = planning.planned(select([], SHELF), SHELF, "small", tmp_path, Sources())
    plan.costs.update({task.id: 10.0 if task.arm.name == "plain" else 1.0 for task in plan.all()})
    names = [task.arm.name for task in planning.fitting(plan, 5.0)]
    assert names == ["residual", "residual", "halves", "halves"] or names == ["halves", "halves", "residual", "residual"]
    assert {task.id for task in planning.ordered(plan)} == {task.id for task in plan.all()}
    order = [task.id.rpartition("-")[0] for task in planning.ordered(plan)]
    assert order.index("both-s0") > max(order.index("residual-s0"), order.index("plain-s0"))


def test_claims_that_share_runs_come_before_one_that_costs_less_than_they_do_together(tmp_path: Path) -> None:
    """Four claims on a and b (5 each, and 1 for what one of them needs besides) cost 2.75 each, one on c costs 4."""
    papers = make_shelf(*(arm(name, steps, small_seeds=1) for steps, name in enumerate("abcd", 20)))
    needs = {"c": "c", "ab": "ab", "ba": "ba", "a": "a", "abd": "abd", "lacking": ("a", "long")}
    decided = Measured("Only its place counts.", lambda _: Outcome("shown", "It is so."))
    claims = tuple(Claim(name, decided, tuple(arms)) for name, arms in needs.items())
    paper = replace(papers.papers["he2015"], claims=claims, items=())
    papers = replace(papers, papers={"he2015": paper})
    plan = planning.planned(select([], papers), papers, "small", tmp_path, Sources())
    prices = {"a": 5.0, "b": 5.0, "c": 4.0, "d": 1.0}
    plan.costs.update({task.id: prices[task.arm.name] for task in plan.all()})
    assert [task.arm.name for task in planning.ordered(plan)] == ["a", "b", "d", "c"]
    assert [task.arm.name for task in planning.fitting(plan, 10.5)] == ["a", "b"]
    assert [task.arm.name for task in planning.fitting(plan, 9.5)] == ["c", "a"]
    assert planning.fitting(plan, 3.9) == []


def test_runs_that_settle_no_claim_are_not_chosen_for_the_time_there_is(tmp_path: Path) -> None:
    papers = make_shelf(arm("cheap", 20, small_seeds=1), arm("dear", 21, small_seeds=1))
    claims = (
        Claim("unsettled", Lower("cheap", "long"), ("cheap", "long"), statement="It is so."),
        Claim("settled", Works("dear", 95.0), ("dear",), statement="It is so."),
    )
    papers = replace(papers, papers={"he2015": replace(papers.papers["he2015"], claims=claims, items=())})
    plan = planning.planned(select([], papers), papers, "small", tmp_path, Sources())
    plan.costs.update({task.id: {"cheap": 1.0, "dear": 5.0}[task.arm.name] for task in plan.all()})
    assert [task.arm.name for task in planning.ordered(plan)] == ["dear", "cheap"]
    assert [task.arm.name for task in planning.fitting(plan, 100.0)] == ["dear"]
    smoke = planning.planned(select([], papers), papers, "smoke", tmp_path, Sources())
    assert {task.arm.name for task in planning.fitting(smoke, 1e9)} == {"cheap", "dear", "long"}
    found = reproduce(["he2015/unsettled"], minutes=5, out=tmp_path, papers=papers)
    assert "no claim could be settled with its run" in found.claims[0]["why"]
    assert not list((tmp_path / "runs").glob("*"))


def test_a_loss_that_is_not_finite_is_a_result(tmp_path: Path) -> None:
    papers = make_shelf(arm("bursting", small={"steps": 30, "optim.lr": 1e18, "schedule.warmup": 0.0}))
    paper = papers.papers["he2015"]
    claim = replace(paper.claims[0], id="bursts", rule=type(paper.claims[1].rule)(), arms=("bursting",))
    from residua.claims import Fails

    claim = replace(claim, rule=Fails("bursting", 85.0), measurements=("norms",))
    papers = replace(papers, papers={"he2015": replace(paper, claims=(*paper.claims, claim))})
    result = reproduce("he2015/bursts", budget="small", seeds=1, out=tmp_path, papers=papers)
    assert result.claims[0]["verdict"] == "shown"
    assert "not finite" in result.claims[0]["why"] or "the loss was" in result.claims[0]["why"]
    told = Told()
    reproduce("he2015/bursts", budget="small", seeds=1, out=tmp_path, papers=papers, watcher=told)
    assert told.began == []


def test_one_run_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    plan = planning.planned(select(["he2015/lower"], SHELF), SHELF, "small", tmp_path, Sources(), seeds=1)
    worked = []

    def work(task: Any) -> None:
        worked.append(task.arm.name)
        if task.arm.name == "residual":
            raise RequestError("no memory")

    failed = execute(plan.all(), work)
    assert worked == ["residual", "plain"]
    assert list(failed.values()) == ["no memory"]


@pytest.mark.slow
def test_two_commands_share_the_work(tmp_path: Path) -> None:
    processes = [started(tmp_path / "out", tmp_path) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    began = [name for text, _ in said for name in text.split()]
    assert len(began) == len(set(began)) == len(list((tmp_path / "out" / "runs").glob("*/record.json")))


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from residua import budgets, costing
from residua.costing import Rates
costing.rates = lambda: Rates(3e-11, 1.5e-9, 1e-4)
budgets.ALLOWANCE.update(small=0.5)
from reproductions import make_shelf
from residua.reproducing import Unwatched, reproduce
class Told(Unwatched):
    def task(self, name, done, total, left): print(name, flush=True)
result = reproduce("he2015/works", budget="small", out={out!r}, papers=make_shelf(), watcher=Told())
sys.exit(1 if result.failed else 0)
"""


def started(out: Path, cache: Path) -> subprocess.Popen[str]:
    script = SCRIPT.format(tests=str(Path(__file__).parent), out=str(out))
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def test_a_matrix_that_is_killed_goes_on_and_ends_alike(finished: Path, tmp_path: Path) -> None:
    out, kills = tmp_path / "out", 0
    for stage in ("runs/*/manifest.json", "runs/*/record.json"):
        process = started(out, tmp_path)
        end = time.monotonic() + 60
        while process.poll() is None and not list(out.glob(stage)) and time.monotonic() < end:
            time.sleep(0.01)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    made = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/record.json")}
    process = started(out, tmp_path)
    assert process.communicate(timeout=120) is not None
    assert process.returncode == 0
    assert kills >= 1
    assert {path: path.stat().st_mtime_ns for path in made} == made
    for path in out.glob("runs/*/record.json"):
        ours, theirs = (
            json.loads(path.read_text()),
            json.loads((finished / "runs" / path.parent.name / "record.json").read_text()),
        )
        assert ours["values"]["test_error"] == theirs["values"]["test_error"]
        assert ours["curves"] == theirs["curves"]


def test_what_is_kept_tells_the_same_and_speaks_as_long_as_the_arm_is_the_same(finished: Path) -> None:
    kept = finished / "kept"
    exact = keeping.exact_outcomes(kept)
    entries = best_known(keeping.kept_cards(kept), exact, SHELF)
    own = {f"{entry['paper']}/{entry['id']}": entry["verdict"] for entry in document(finished)["claims"]}
    assert {name: entry["verdict"] for name, entry in entries.items()} == own
    changed = make_shelf()
    residual = replace(changed.arms["residual"], small={"steps": 25})
    changed = replace(changed, arms={**changed.arms, "residual": residual})
    after = best_known(keeping.kept_cards(kept), exact, changed)
    assert after["he2015/norms"]["verdict"] == "not attempted"
    assert str(finished) not in "".join(path.read_text() for path in kept.rglob("*.json"))


def test_a_kept_run_is_repeated_to_the_last_digit_and_a_forged_one_is_found_out(finished: Path, tmp_path: Path) -> None:
    kept = next((finished / "kept" / "small").glob("residual-s0-*.json"))
    found = verify(kept.stem, results=finished / "kept", out=tmp_path)
    assert found.verdict == "equal"
    assert found.updates == found.total == 24
    card = json.loads(kept.read_text())
    card["opening"][3][1] *= 1.2
    forged = tmp_path / "forged" / "small" / kept.name
    forged.parent.mkdir(parents=True)
    forged.write_text(json.dumps(card))
    assert verify(kept.stem, results=tmp_path / "forged", out=tmp_path / "again").verdict == "differs"


def test_wrong_requests_are_told_before_any_work(tmp_path: Path) -> None:
    for names, options, words in (
        ("he2016", {}, "he2015"), ("he2015/fig7", {}, "fig6"), ("fig6", {}, "he2015/fig6"), ((), {"budget": "tiny"}, "smoke"),
        ((), {"minutes": 0}, "above 0"), ((), {"seeds": 0}, "at least one"),
    ):  # fmt: skip
        with pytest.raises(RequestError, match=words):
            reproduce(names, out=tmp_path, papers=SHELF, **options)
    with pytest.raises(RequestError, match="kept run"):
        verify("nothing", results=tmp_path, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_written_are_told_before_any_work(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for option, places in (("--out", {"out": file}), ("--keep", {"out": tmp_path / "out", "keep": file / "kept"})):
        with pytest.raises(RequestError, match=f"{option} .*file.* cannot be written"):
            reproduce("he2015/fig6", papers=SHELF, budget="smoke", **places)


def test_rates_are_measured_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    costing.rates.cache_clear()
    found = costing.rates()
    assert 1e-13 < found.multiply_add + found.value < 1e-5
    assert found.layer > 0
    costing.rates.cache_clear()
    assert costing.rates() == found


def test_every_paper_names_only_what_there_is() -> None:
    papers = shelf()
    for key, paper in papers.papers.items():
        for claim in paper.claims:
            assert statement(key, claim)
        for row in (row for item in paper.items for row in item.rows):
            papers.arm(row.arm)
            assert not row.published or published(key).cell(row.published)
    for name, measurements in select([], papers).needs(papers).items():
        papers.arm(name)
        for measurement in measurements:
            papers.known_measurement(measurement)
