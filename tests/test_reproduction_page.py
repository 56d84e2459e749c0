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
from reproductions import make_shelf, on_a_usual_machine

from residua import costing, reproduction_page
from residua.costing import Rates
from residua.evidence import VERDICTS
from residua.report import packaged
from residua.reproducing import reproduce
from residua.reproduction_claims import SIGNS, anchor
from residua.reproduction_words import number, revision
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
        on_a_usual_machine(patch)
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
    revisions = (revision(run["git"]) for run in document["runs"])  # cut short, and a number in them with them
    known.update(chain.from_iterable(map(NUMBER.findall, revisions)))
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
            assert (f"residua reproduce --verify {run}" in page) == (not run.startswith("both-"))
    assert set(SIGNS) == set(VERDICTS)
    assert len(set(SIGNS.values())) == 4


def test_each_run_names_the_sources_and_the_processor_it_was_made_with(document: dict[str, Any]) -> None:
    told = deepcopy(document)
    for run, git in zip(told["runs"], (f"{'0123456789ab' * 4}+changes", "c" * 40, None)):
        run.update(git=git, processor="A processor" if git else None)
    rows = re.findall(r'<tr id="run-.*?</tr>', reproduction_page.page(told))
    for row, said in zip(
        rows, ("sources 0123456789ab with uncommitted changes; A processor<", "sources cccccccccccc; A processor<")
    ):
        assert said in row
    assert "sources" not in rows[2]


def test_a_run_that_cannot_be_repeated_says_why_in_place_of_a_command(document: dict[str, Any]) -> None:
    (both,) = (run for run in document["runs"] if run["id"].startswith("both-s0"))
    assert both["verify"] == ""
    for name in ("residual", "plain"):
        assert f"{name}-s0-" in both["unrepeatable"]
    rows = re.findall(r'<tr id="run-.*?</tr>', reproduction_page.page(document))
    (row,) = (row for row in rows if f">{both['id']}<" in row)
    assert both["unrepeatable"] in row
    assert "--verify" not in row
    assert all(run["verify"] for run in document["runs"] if not run["id"].startswith("both-"))


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
        run.update(id=HOSTILE, arm=HOSTILE, departs=HOSTILE, broken_off=HOSTILE, verify=HOSTILE)
        run.update(git=HOSTILE, processor=HOSTILE, unrepeatable=HOSTILE)
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
