"""What can be reproduced: papers, items and claims, what is known of each, and what each budget would cost here. Layer 5."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from residua import keeping
from residua.claims import Claim, Item
from residua.evidence import BUDGETS, VERDICTS
from residua.papers import published
from residua.prices import Prices
from residua.results_page import best_known
from residua.selection import Shelf, shelf
from residua.wording import NOTHING, duration

__all__ = ["claims", "papers", "with_costs"]

DECIDING = ("small", "full")


def claims(out: Path, *, costs: bool = True, books: Shelf | None = None) -> list[dict[str, Any]]:
    """Every claim with what is known of it, from the runs in `out` and the results that come with the source tree."""
    books = books if books is not None else shelf()
    entries = list(best_known(_cards(out), keeping.exact_outcomes(keeping.shipped()), books).values())
    return with_costs(entries, books) if costs else entries


def with_costs(entries: Iterable[Mapping[str, Any]], books: Shelf | None = None) -> list[dict[str, Any]]:
    """The entries with the seconds that each budget would take on this machine (None: there is no such run, or none could settle
    the claim), and why no run at small or full could (None: some could)."""
    books = books if books is not None else shelf()
    prices, found = Prices(books), []
    for entry in entries:
        claim = books.claim(f"{entry['paper']}/{entry['id']}")[1]
        costs = {budget: prices.cost(claim, budget) for budget in BUDGETS}
        found.append({
            **entry, "cost": costs, "cannot_decide": {budget: prices.obstacle(claim, budget) or None for budget in DECIDING},
        })  # fmt: skip
    return found


def papers(entries: Sequence[Mapping[str, Any]], out: Path, books: Shelf | None = None) -> list[dict[str, Any]]:
    """A table for people: by paper its items and claims, with what is known and what each budget would take."""
    books = books if books is not None else shelf()
    prices, cards = Prices(books), _cards(out)
    there = {budget: prices.there(keeping.known_from(cards, books, budget).records, budget) for budget in DECIDING}
    rows = []
    for key, paper in books.papers.items():
        own = {entry["id"]: entry for entry in entries if entry["paper"] == key}
        counts = Counter(entry["verdict"] for entry in own.values())
        summary = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
        listed = [
            {"name": f"{key}/{item.id}", "known": _made(item, prices, there), **_shown(item, prices)} for item in paper.items
        ]
        listed += [
            {"name": f"{key}/{claim.id}", "known": _known(own[claim.id]), **_shown(claim, prices)} for claim in paper.claims
        ]
        rows.append({"citation": published(key).citation, "summary": f"{len(own)} claims: {summary}", "rows": listed})
    return rows


def _cards(out: Path) -> list[dict[str, Any]]:
    """The runs in `out` and those that come with the source tree."""
    return [*keeping.own_cards(out), *keeping.kept_cards(keeping.shipped())]


def _shown(part: Claim | Item, prices: Prices) -> dict[str, str]:
    found = {budget: prices.cost(part, budget) for budget in BUDGETS}
    return {
        budget: NOTHING if seconds is None else "at once" if not seconds else duration(seconds)
        for budget, seconds in found.items()
    }


def _known(entry: Mapping[str, Any]) -> str:
    return entry["verdict"] if entry["verdict"] == "not attempted" else f"{entry['verdict']} ({entry['budget']})"


def _made(item: Item, prices: Prices, there: Mapping[str, set[tuple[str, int]]]) -> str:
    """How many of an item's runs are there, at each budget that has any; else at the least one that it has a form at."""
    if not item.arms:
        return "needs no run"
    counts = {}
    for budget, made in there.items():
        wanted = [(run, seed) for run, (_, seeds) in prices.runs(item, budget).items() for seed in range(seeds)]
        if wanted:
            counts[budget] = (sum(run in made for run in wanted), len(wanted))
    told = {budget: count for budget, count in counts.items() if count[0]} or dict(list(counts.items())[:1])
    said = [f"{have} of {whole} ({budget})" for budget, (have, whole) in told.items()]
    return ", ".join(said).replace(" (", " runs (", 1)
