"""What can be reproduced: papers, items and claims, what is known of each, and what each budget would cost here. Layer 5."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from residua import budgets, costing, keeping
from residua.claims import Arm, Claim, Ensemble, Item, NotAttempted
from residua.evidence import BUDGETS, VERDICTS
from residua.papers import published
from residua.results_page import best_known
from residua.selection import Shelf, shelf
from residua.wording import NOTHING, duration

__all__ = ["claims", "cost", "papers", "with_costs"]


def claims(out: Path, *, costs: bool = True, books: Shelf | None = None) -> list[dict[str, Any]]:
    """Every claim with what is known of it, from the runs in `out` and the results that come with the source tree."""
    books = books if books is not None else shelf()
    shipped = keeping.shipped()
    cards = [*keeping.own_cards(out), *keeping.kept_cards(shipped)]
    entries = list(best_known(cards, keeping.exact_outcomes(shipped), books).values())
    return with_costs(entries, books) if costs else entries


def with_costs(entries: Iterable[Mapping[str, Any]], books: Shelf | None = None) -> list[dict[str, Any]]:
    """The entries with the seconds that each budget would take on this machine (None: there is no such run)."""
    books = books if books is not None else shelf()
    return [
        {**entry, "cost": {budget: cost(books.claim(f"{entry['paper']}/{entry['id']}")[1], budget, books) for budget in BUDGETS}}
        for entry in entries
    ]


def papers(entries: Sequence[Mapping[str, Any]], books: Shelf | None = None) -> list[dict[str, Any]]:
    """A table for people: by paper its items and claims, with what is known and what small and full would take."""
    books = books if books is not None else shelf()
    rows = []
    for key, paper in books.papers.items():
        own = {entry["id"]: entry for entry in entries if entry["paper"] == key}
        counts = Counter(entry["verdict"] for entry in own.values())
        summary = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
        show = partial(_shown, books=books)
        listed = [{"name": f"{key}/{item.id}", "known": "", **show(item)} for item in paper.items]
        listed += [{"name": f"{key}/{claim.id}", "known": _known(own[claim.id]), **show(claim)} for claim in paper.claims]
        rows.append({"citation": published(key).citation, "summary": f"{len(own)} claims: {summary}", "rows": listed})
    return rows


def cost(part: Claim | Item, budget: str, books: Shelf) -> float | None:
    """The forecast seconds of all runs that a claim or an item needs; None where none of them has a form at the budget, or where
    a claim is not attempted at all. Arms without a form are left out."""
    arms: dict[str, None] = {}
    for name in part.arms:
        arm = books.arm(name)
        arms.update(dict.fromkeys((*(arm.members if isinstance(arm, Ensemble) else ()), name)))
    prices = []
    for name in arms:
        arm = books.arm(name)
        seeds = max(1, budgets.seeds_at(arm, budget))
        measured = len(part.measurements) if isinstance(arm, Arm) else 0
        prices.append(seeds * costing.seconds_of(arm, budget, measured))
    if not arms:
        return None if isinstance(part, Claim) and isinstance(part.rule, NotAttempted) else 0.0
    finite = [price for price in prices if math.isfinite(price)]
    return round(sum(finite), 1) if finite else None


def _shown(part: Claim | Item, *, books: Shelf) -> dict[str, str]:
    found = {budget: cost(part, budget, books) for budget in ("small", "full")}
    return {
        budget: NOTHING if seconds is None else "at once" if not seconds else duration(seconds)
        for budget, seconds in found.items()
    }


def _known(entry: Mapping[str, Any]) -> str:
    return entry["verdict"] if entry["verdict"] == "not attempted" else f"{entry['verdict']} ({entry['budget']})"
