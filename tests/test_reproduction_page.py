"""The page of a reproduction: it shows the document and nothing else, in words, for any text, in light and dark."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from reproductions import make_shelf

from residua import budgets, costing, reproduction_page
from residua.claims import Arm
from residua.costing import Rates
from residua.evidence import VERDICTS
from residua.recipe import differences
from residua.report import packaged
from residua.reproducing import departures, reproduce
from residua.reproduction_claims import SIGNS, anchor, interval
from residua.reproduction_tables import table
from residua.reproduction_words import FIELDS, UNSAID, column, departed, difference, facts, measure, number, rule, said
from residua.selection import shelf
from residua.wording import decimal, duration

SHELF = make_shelf()
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
FIELD = re.compile(r"\b(?:test|train|top5)_(?:error|loss)\b|\b\w+\.median_std\b|\bNone\b|\bTrue\b|\{'")


class Read(HTMLParser):
    """The elements of a page, and its text outside drawings and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._inside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("svg", "style", "code"):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A reproduction with every sort of claim, from runs."""
    out = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costing, "rates", lambda: Rates(3e-11, 1.5e-9, 1e-4))
        patch.setattr(budgets, "ALLOWANCE", {"smoke": 0.5, "small": 0.5, "full": 0.5})
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        result = reproduce(budget="small", out=out, papers=SHELF)
    assert not result.failed
    written = json.loads((out / "reproduction.json").read_text(encoding="utf-8"))
    assert (out / "reproduction.html").read_text(encoding="utf-8") == reproduction_page.page(written)
    return dict(written)


def leaves(thing: Any) -> list[Any]:
    if isinstance(thing, dict):
        return [*thing, *chain.from_iterable(map(leaves, thing.values()))]
    return list(chain.from_iterable(map(leaves, thing))) if isinstance(thing, list) else [thing]


def test_every_number_on_the_page_stands_in_the_document(document: dict[str, Any]) -> None:
    known: set[str] = set()
    for leaf in leaves(document):
        if isinstance(leaf, (int, float)):
            size = abs(leaf)
            forms = [number(size), duration(size), str(leaf), *(decimal(size, digits) for digits in (2, 3, 4))]
            known.update(chain.from_iterable(map(NUMBER.findall, forms)))
        elif isinstance(leaf, str):
            known.update(NUMBER.findall(leaf))
    counts = [len(document[name]) for name in ("claims", "items", "runs")] + [
        count for _, count in reproduction_page.tally(document)
    ]
    known.update(map(str, range(max(counts) + 1)))
    spent = sum(run["values"].get("training_seconds", 0) for run in document["runs"])
    known.update(NUMBER.findall(duration(spent)))
    known.update({"95"})  # the level of the bounds, which the rules name
    page = Read(reproduction_page.page(document)).text
    assert set(NUMBER.findall(page)) <= known


def test_a_number_that_changes_in_the_document_changes_on_the_page(document: dict[str, Any]) -> None:
    changed = deepcopy(document)
    changed["items"][0]["rows"][0]["mean"] = 12.345678
    changed["claims"][0]["why"] = "The difference is 98.7654."
    page = Read(reproduction_page.page(changed)).text
    assert "12.35" in page
    assert "98.7654" in page
    assert "12.35" not in Read(reproduction_page.page(document)).text


def test_each_claim_has_its_verdict_in_word_and_sign_with_rule_evidence_and_repetition(document: dict[str, Any]) -> None:
    page = reproduction_page.page(document)
    cards = {
        found[1]: found[0] for found in re.finditer(r'<article class="claim [a-z-]+" id="([^"]+)">.*?</article>', page, re.S)
    }
    assert len(cards) == len(document["claims"])
    for claim in document["claims"]:
        card = cards[anchor("claim", claim["paper"], claim["id"])]
        text = " ".join(Read(card).text.split())
        assert f"{SIGNS[claim['verdict']]} {claim['verdict']}" in text
        assert claim["statement"] in text
        assert claim["why"] in text
        assert claim["again"] in card
        assert claim["rule"].split(". ")[0] in text
        for run in claim["evidence"]["runs"]:
            assert f'href="#{anchor("run", run)}"' in card
            assert f'id="{anchor("run", run)}"' in page
            assert f"residua reproduce --verify {run}" in page
    assert set(SIGNS) == set(VERDICTS)
    assert len(set(SIGNS.values())) == 4


def test_what_is_not_attempted_says_why_and_what_it_would_cost(document: dict[str, Any]) -> None:
    costs = {claim["id"]: claim["cost"] for claim in document["claims"]}
    assert costs["works"] is None
    assert costs["imagenet"] == {"small": None, "full": None}
    assert costs["long"]["small"] is None
    assert costs["long"]["full"] > 0
    page = Read(reproduction_page.page(document)).text
    assert f"Forecast here: {duration(costs['long']['full'])} at full." in page
    assert "it is long" in page


def test_the_head_says_what_was_asked_when_and_with_what(document: dict[str, Any]) -> None:
    page = Read(reproduction_page.page({**document, "made": "2026-03-01T09:05:00+00:00"})).text
    for text in ("1 March 2026, 09:05 UTC", "everything", document["hardware"]["processor"], document["versions"]["torch"]):
        assert text in page
    assert "Deep Residual Learning for Image Recognition" in page
    for verdict, count in reproduction_page.tally(document):
        assert f"{count} {verdict}" in page


def test_the_page_loads_nothing_and_its_links_lead_somewhere(document: dict[str, Any]) -> None:
    page = reproduction_page.page(document)
    read = Read(page)
    assert "default-src 'none'" in page
    assert not {tag for tag, _ in read.elements} & {"script", "link", "img", "iframe", "object", "use", "image"}
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [str(attributes["href"]) for attributes in read.named("a")]
    assert {target[1:] for target in targets if target.startswith("#")} <= set(ids)
    assert {target for target in targets if not target.startswith("#")} == {"https://arxiv.org/abs/1512.03385"}
    assert not re.search(r"@import|url\((?!#)", page)


def test_no_field_name_and_no_value_of_python_stands_in_the_text(document: dict[str, Any]) -> None:
    assert not FIELD.findall(Read(reproduction_page.page(document)).text)


HOSTILE = '</style></title><script>alert(1)</script><img src=x onerror="alert(1)">\u202e"\'&\x00'


def test_hostile_texts_are_shown_and_never_obeyed(document: dict[str, Any]) -> None:
    evil = deepcopy(document)
    evil["names"] = [HOSTILE]
    evil["failed"] = {HOSTILE: HOSTILE}
    evil["papers"] = {key: {**card, "title": HOSTILE, "citation": HOSTILE} for key, card in evil["papers"].items()}
    for claim in evil["claims"]:
        claim.update(dict.fromkeys(("id", "statement", "why", "rule", "again", "stands_in"), HOSTILE))
        claim["evidence"]["numbers"] = {HOSTILE: HOSTILE, "rows": [{HOSTILE: 1}]}
    for item in evil["items"]:
        item.update(dict.fromkeys(("id", "title", "note", "trouble", "again"), HOSTILE), left_out={HOSTILE: HOSTILE})
        for row in item["rows"]:
            row.update(label=HOSTILE, arm=HOSTILE, published=HOSTILE)
        for figure in item["figures"]:
            figure.update(title=HOSTILE, caption=HOSTILE)
    for run in evil["runs"]:
        run.update(id=HOSTILE, arm=HOSTILE, stand_in=HOSTILE, broken_off=HOSTILE, verify=HOSTILE)
        run["departures"] = {HOSTILE: [HOSTILE, HOSTILE]}
    page = reproduction_page.page(evil)
    read = Read(page)
    assert not {tag for tag, _ in read.elements} & {"script", "img"}
    assert not [name for _, attributes in read.elements for name in attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in read.text
    assert not set("\x00\u202e") & set(page)


def test_a_reproduction_of_nothing_has_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costing, "rates", lambda: Rates(3e-11, 1.5e-9, 1e-4))
    result = reproduce("he2015/imagenet", budget="small", out=tmp_path, papers=SHELF)
    page = Read(result.page.read_text(encoding="utf-8")).text
    assert "1 not attempted" in page
    assert "it needs ImageNet" in page
    nothing = {**result.document, "claims": [], "items": [], "papers": {}}
    assert "Nothing was asked for" in Read(reproduction_page.page(nothing)).text


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
        "arm": "plain20", "stand_in": "digits stand for MNIST", "broken_off": "",
        "departures": {"steps": [64000, None], "epochs": [None, 8.0], "data.source": ["cifar10", "digits"], "name": ["a", "b"]},
    }  # fmt: skip
    assert difference(run) == [
        "8 epochs of training instead of 64,000 updates", "data: digits instead of cifar10", "digits stand for MNIST",
    ]  # fmt: skip
    other = {**run, "arm": "plain56", "departures": {"steps": [64000, None], "epochs": [None, 8.0]}, "stand_in": ""}
    assert departed([run, other]) == [
        ("8 epochs of training instead of 64,000 updates", ""), ("data: digits instead of cifar10", "plain20"),
        ("digits stand for MNIST", "plain20"),
    ]  # fmt: skip


def test_every_departure_measure_and_column_of_the_papers_has_words() -> None:
    books = shelf()
    for arm in books.arms.values():
        for budget in ("smoke", "small"):
            if isinstance(arm, Arm) and not budgets.unavailable(arm, budget):
                fields = set(differences(arm.recipe, budgets.recipe_at(arm, budget, arm.recipe.seed)))
                assert {name for name in fields if not name.startswith("model.options.")} <= {*FIELDS, *UNSAID}, arm.name
    rows = [row for paper in books.papers.values() for item in paper.items for row in item.rows]
    for text in (*(measure(row.measure) for row in rows), *(column(row.published.rpartition("/")[2]) for row in rows)):
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
        ("values", "8, 9 against 12.50"), ("difference", "+4.00 (95 % bounds −1.00 and +9.00, p = 0.030)"),
    ]  # fmt: skip
    nested = {"measure": "test_error", "parts_of": {"a": [1, [2, 3]], "b": None}, "rows": [{"depth": 20, "ok": True}], "e": 1e-16}
    assert facts(nested) == [
        ("measure", "test error"), ("parts of: a", "1, 2, 3"), ("parts of: b", "–"), ("rows, 1", "depth 20; ok yes"),
        ("e", "1e-16"),
    ]  # fmt: skip
    assert facts({"many": list(range(30))})[0][1].endswith("and 14 more")


@pytest.mark.parametrize(("low", "estimate", "high"), [(1.0, 2.0, 3.0), (-4.0, -1.0, 2.0), (0.0, 0.0, 0.0)])
def test_an_interval_is_drawn_to_scale_round_zero(low: float, estimate: float, high: float) -> None:
    drawn = interval({"left": [1.0], "right": [2.0], "low": low, "estimate": estimate, "high": high, "p": None})
    zero, (left, right) = float(attribute(drawn, "zero", "x1")), (float(attribute(drawn, "reach", x)) for x in ("x1", "x2"))
    mean = float(attribute(drawn, "mean", "cx"))
    assert 0 <= left <= mean <= right <= 220
    assert (left > zero, right > zero) == (low > 0, high > 0)
    if high > low:
        assert (mean - left) / (right - left) == pytest.approx((estimate - low) / (high - low), abs=1e-3)
    assert interval({"left": [1.0], "right": [2.0], "low": None, "estimate": 1.0, "high": None}) == ""


def attribute(svg: str, kind: str, name: str) -> str:
    return next(found for found in re.findall(r"<[^>]+>", svg) if f'class="{kind}"' in found).split(f'{name}="')[1].split('"')[0]


def test_verdicts_can_be_read_in_light_and_dark() -> None:
    style = packaged("report_style.css") + packaged("reproduction_style.css")
    light: dict[str, str] = {}
    dark: dict[str, str] = {}
    for block in re.finditer(r"(@media \([^)]*\) \{\s*)?:root \{([^}]*)\}", style):
        if "@media print" not in style[: block.start()].rsplit("}", 2)[-1]:
            (dark if block[1] else light).update(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block[2]))
    for colours in (light, {**light, **dark}):
        for tone in ("shown", "refuted", "powered", "waiting", "soft", "accent"):
            assert contrast(colours[tone], colours["page"]) >= 4.5, tone


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2."""
    lights = []
    for colour in (one, other):
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        lights.append(0.2126 * red + 0.7152 * green + 0.0722 * blue)
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_the_departures_of_a_run_are_those_of_its_recipe(document: dict[str, Any]) -> None:
    run = next(run for run in document["runs"] if run["arm"] == "residual")
    assert run["departures"] == {"steps": [240, 24]}
    assert departures.__doc__
