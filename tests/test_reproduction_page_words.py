"""The words, numbers and tables of a reproduction's page."""

from __future__ import annotations

import re
from typing import Any

import pytest

from residua import budgets
from residua.claims import Arm
from residua.evidence import BUDGETS
from residua.recipe import differences
from residua.reproduction_claims import interval
from residua.reproduction_tables import table
from residua.reproduction_words import FIELDS, UNSAID, because, column, departed, difference, facts, measure, rule, said
from residua.selection import shelf

FIELD = re.compile(r"\b(?:test|train|top5)_(?:error|loss)\b|\b\w+\.median_std\b")


# ------------------------------------------------------------------------------------------------------------ its tables


def row(arm: str, measured: list[float], place: str = "", measure: str = "test_error", **fields: Any) -> dict[str, Any]:
    mean = sum(measured) / len(measured) if measured else None
    return {
        "label": arm, "arm": arm, "measure": measure, "measured": measured, "mean": mean, "spread": 0.5 if measured[1:] else None,
        "published": 5.5 if place else None, "unit": "%", "verified": True, "source": "", "approximate": False, "place": place,
        **fields,
    }  # fmt: skip


def test_numbers_stand_in_the_rows_and_columns_of_the_paper() -> None:
    found = table([
        row("original-110", [6.0, 7.0], "table2/original/resnet110"), row("bn-110", [8.0, 9.0], "table2/bn-after/resnet110"),
        row("original-164", [5.0], "table2/original/resnet164"), row("original-110", [1.5], measure="train_error"),
    ])  # fmt: skip
    assert [head["text"] for head in found["columns"]] == ["110 layers, %", "164 layers, %", "training error, %"]
    assert [line["label"] for line in found["lines"]] == ["original", "bn-110"]
    cells = [cell for _, cell in found["lines"][0]["pairs"]]
    assert [cell["measured"] for cell in cells] == ["6.500 ± 0.50", "5.000", "1.500"]
    assert [cell["printed"] for cell in cells] == ["5.5", "5.5", "–"]
    assert cells[0]["seeds"] == "2 seeds: 6.000, 7.000"
    assert [cell for _, cell in found["lines"][1]["pairs"]][1:] == [None, None]


def test_a_number_that_is_not_printed_joins_the_column_of_its_measure() -> None:
    found = table([row("a", [9.0]), row("b", [8.0], "table6/b/error", published=0.00001, verified=False, approximate=True)])
    assert len(found["columns"]) == 1
    assert found["columns"][0]["measured"] == "test error"
    assert [line["pairs"][0][1]["printed"] for line in found["lines"]] == ["–", "0.00001"]
    assert found["lines"][1]["pairs"][0][1]["marks"] == "not verified, approximate"
    assert found["note"] == "One seed."


def test_runs_that_broke_off_are_counted_beside_the_seeds() -> None:
    found = table([row("a", [9.0, 8.0]), row("b", [])], {"a": 1, "b": 3})
    assert [line["pairs"][0][1]["seeds"] for line in found["lines"]] == ["2 seeds: 9.000, 8.000; 1 broke off", "3 broke off"]


def test_two_numbers_of_one_place_are_two_lines() -> None:
    found = table([row("a", [9.0], "t/x/error"), row("b", [], "t/x/error")])
    assert [line["label"] for line in found["lines"]] == ["a", "b"]
    assert found["lines"][1]["pairs"][0][1]["measured"] == "–"


# ------------------------------------------------------------------------------------------------------------- its words


def test_departures_are_said_in_words_with_the_arms_they_hold_for() -> None:
    run = {
        "arm": "plain20", "departs": "digits stand for MNIST", "broken_off": "",
        "departures": {"steps": [64000, None], "epochs": [None, 8.0], "data.source": ["cifar10", "digits"], "name": ["a", "b"]},
    }  # fmt: skip
    assert difference(run) == [
        "8 epochs of training instead of 64,000 updates", "data: digits instead of cifar10", "digits stand for MNIST",
    ]  # fmt: skip
    other = {**run, "arm": "plain56", "departures": {"steps": [64000, None], "epochs": [None, 8.0]}, "departs": ""}
    assert departed([run, other]) == [
        ("8 epochs of training instead of 64,000 updates", ""), ("data: digits instead of cifar10", "plain20"),
        ("digits stand for MNIST", "plain20"),
    ]  # fmt: skip


def test_every_budget_says_why_its_runs_differ_in_one_sentence() -> None:
    sentences = [because(budget) for budget in BUDGETS]
    assert len(set(sentences)) == len(BUDGETS)
    for budget, sentence in zip(BUDGETS, sentences):
        assert sentence.startswith(f"The budget {budget} ")
        assert sentence.count(".") == 1
    assert because("exact") == ""


def test_every_departure_measure_and_column_of_the_papers_has_words() -> None:
    books = shelf()
    for arm in books.arms.values():
        for budget in ("smoke", "small"):
            if isinstance(arm, Arm) and not budgets.unavailable(arm, budget):
                fields = set(differences(arm.recipe, budgets.recipe_at(arm, budget, arm.recipe.seed)))
                assert {name for name in fields if not name.startswith("model.options.")} <= {*FIELDS, *UNSAID}, arm.name
    for claim in (claim for paper in books.papers.values() for claim in paper.claims):
        assert not FIELD.search(claim.rule.text), claim.id
    rows = [row for paper in books.papers.values() for item in paper.items for row in item.rows]
    measures = (measure(row.measure_at(budget)) for row in rows for budget in ("small", "full"))
    for text in (*measures, *(column(row.published.rpartition("/")[2]) for row in rows)):
        assert "_" not in text
        assert "." not in text
    for paper in books.papers.values():
        for claim in paper.claims:
            assert not FIELD.findall(said(claim.rule.text)), claim.id


def test_a_rule_of_several_is_listed_part_by_part() -> None:
    small = "At the small one (it is short): All of these. (1) plain20 fails. (2) The test_error is low."
    text = f"At the full budget: It fails. {small}"
    first, second = rule(text)
    assert first == {"lead": "At the full budget: It fails.", "parts": []}
    assert second["lead"] == "At the small one (it is short): All of these."
    assert second["parts"] == ["plain20 fails.", "The test error is low."]
    assert (
        said("54 paths, binomial: True; tested: False. True plain nets.")
        == "54 paths, binomial: yes; tested: no. True plain nets."
    )


def test_numbers_of_evidence_are_said_whatever_their_form() -> None:
    compared = {"left": [8.0, 9.0], "right": [12.5], "estimate": 4.0, "low": -1.0, "high": 9.0, "p": 0.03}
    assert facts(compared) == [
        ("values", "8, 9 against 12.50"), ("difference", "+4.00 (95 % one-sided bounds −1.00 and +9.00, p = 0.030)"),
    ]  # fmt: skip
    nested = {"measure": "test_error", "parts_of": {"a": [1, [2, 3]], "b": None}, "rows": [{"depth": 20, "ok": True}], "e": 1e-16}
    assert facts(nested) == [
        ("measure", "test error"), ("parts of: a", "1, 2, 3"), ("parts of: b", "–"), ("rows, 1", "depth 20; ok yes"),
        ("e", "1e-16"),
    ]  # fmt: skip
    assert facts({"many": list(range(30))})[0][1].endswith("and 14 more")


def test_one_seed_without_a_bound_is_said_and_not_drawn_as_an_interval() -> None:
    numbers = {"left": [8.0, 9.0], "right": [12.5], "estimate": 4.0, "low": 4.0, "high": 4.0, "p": None}
    assert facts(numbers)[1] == ("difference", "+4.00 (one seed on a side: its spread is not known)")
    assert interval(numbers) == ""


@pytest.mark.parametrize(("low", "estimate", "high"), [(1.0, 2.0, 3.0), (-4.0, -1.0, 2.0), (0.0, 0.0, 0.0)])
def test_an_interval_is_drawn_to_scale_round_zero(low: float, estimate: float, high: float) -> None:
    drawn = interval({"left": [1.0, 1.5], "right": [2.0, 2.5], "low": low, "estimate": estimate, "high": high, "p": None})
    zero, (left, right) = float(attribute(drawn, "zero", "x1")), (float(attribute(drawn, "reach", x)) for x in ("x1", "x2"))
    mean = float(attribute(drawn, "mean", "cx"))
    assert 0 <= left <= mean <= right <= 220
    assert (left > zero, right > zero) == (low > 0, high > 0)
    if high > low:
        assert (mean - left) / (right - left) == pytest.approx((estimate - low) / (high - low), abs=1e-3)
    assert interval({"left": [1.0], "right": [2.0], "low": None, "estimate": 1.0, "high": None}) == ""


def attribute(svg: str, kind: str, name: str) -> str:
    return next(found for found in re.findall(r"<[^>]+>", svg) if f'class="{kind}"' in found).split(f'{name}="')[1].split('"')[0]
