"""What a reproduction says beyond its verdicts: its date, its papers, and what is left undone would cost. Layer 5."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from residua.claims import NotAttempted
from residua.papers import published
from residua.prices import Prices
from residua.selection import Shelf

__all__ = ["completed", "paper_card"]

FORECAST = ("small", "full")


def completed(document: Mapping[str, Any], papers: Shelf) -> dict[str, Any]:
    """The document with `made` (UTC, ISO 8601), `papers` (title, citation and link by key), the forecast `cost` of every claim
    that is not attempted (seconds by budget on this machine, None where there is no such run or none could settle it; None for
    claims that are), and the `place` of every row among the printed numbers ("table/row/column"; "" where nothing is printed)."""
    prices = Prices(papers)
    claims = [{**entry, "cost": _forecast(entry, prices)} for entry in document["claims"]]
    items = [{**entry, "rows": _placed(entry, papers)} for entry in document["items"]]
    keys = dict.fromkeys(entry["paper"] for entry in (*items, *claims))
    made = datetime.now(UTC).isoformat(timespec="seconds")
    cards = {key: paper_card(key) for key in papers.papers if key in keys}
    cards = dict(sorted(cards.items(), key=lambda entry: entry[1]["year"] or math.inf))
    return {**document, "made": made, "papers": cards, "claims": claims, "items": items}


def paper_card(key: str) -> dict[str, Any]:
    """Title, citation, year and link ("" where none is known) of a paper; of a file that holds several, their titles together,
    without year and link."""
    printed = published(key)
    card = printed.values["paper"]
    if not isinstance(card, Mapping):
        titles = "; ".join(entry["title"] for entry in card)
        return {"title": titles, "citation": printed.citation, "link": "", "year": None}
    link = _arxiv(card["arxiv"]) if "arxiv" in card else ""
    return {"title": card["title"], "citation": printed.citation, "link": link, "year": card["year"]}


def _arxiv(number: str) -> str:
    return f"https://arxiv.org/abs/{number}"


def _forecast(entry: Mapping[str, Any], prices: Prices) -> dict[str, float | None] | None:
    """At the smoke budget nothing is decided, so that only claims that never are count as left undone."""
    claim = prices.books.claim(f"{entry['paper']}/{entry['id']}")[1]
    if entry["verdict"] != "not attempted" or (entry["budget"] == "smoke" and not isinstance(claim.rule, NotAttempted)):
        return None
    return {budget: prices.cost(claim, budget) for budget in FORECAST}


def _placed(entry: Mapping[str, Any], papers: Shelf) -> list[dict[str, Any]]:
    item = next(item for item in papers.papers[entry["paper"]].items if item.id == entry["id"])
    return [{**row, "place": source.published} for row, source in zip(entry["rows"], item.rows, strict=True)]
