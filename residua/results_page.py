"""docs/results.md: what has been reproduced, generated from the kept results alone. Layer 5."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from residua import keeping
from residua.claims import Claim
from residua.deciding import Known, claim_entry, outcome_of, row_entry
from residua.evidence import VERDICTS, Outcome
from residua.papers import published
from residua.reproduction_page import spread
from residua.selection import Shelf, shelf
from residua.wording import NOTHING, decimal

__all__ = ["best_known", "document"]

BEGINNING = """# Results

What has been run, claim by claim. This page is generated from the files in `results/` by `python scripts/results.py`, and a test
fails when the two differ; nothing in it was typed. `residua reproduce PAPER/CLAIM` repeats a line, and
`residua reproduce --verify RUN` a run or its beginning. Errors are per cent; the spread is the standard deviation over seeds,
whose number stands in brackets.

*shown* and *refuted* are decided by the rule that was written down before any run; *under-powered* means that these runs cannot
decide; *not attempted* says why. At the budget *small*, trainings are shortened to some epochs: a verdict there is about the
direction of an effect at that length, not about the paper's numbers.
"""


def best_known(
    cards: list[dict[str, Any]], exact: Mapping[str, Outcome], papers: Shelf | None = None
) -> dict[str, dict[str, Any]]:
    """The entry of each claim by "paper/claim", at the highest budget that decides it (then at the highest that has evidence)."""
    papers = papers if papers is not None else shelf()
    budgets = [keeping.known_from(cards, papers, budget) for budget in ("full", "small")]
    return {
        f"{key}/{claim.id}": _entry(key, claim, budgets, exact) for key, paper in papers.papers.items() for claim in paper.claims
    }


def _entry(key: str, claim: Claim, budgets: list[Known], exact: Mapping[str, Outcome]) -> dict[str, Any]:
    if claim.exact:
        unknown = Outcome(
            "not attempted", f"Structure or arithmetic settles it, without a run: residua reproduce {key}/{claim.id}"
        )
        return claim_entry(key, claim, budgets[-1], exact.get(f"{key}/{claim.id}", unknown))
    found = [(known, outcome_of(claim, known)) for known in budgets]
    decided = [pair for pair in found if pair[1].verdict in ("shown", "refuted")]
    attempted = [pair for pair in found if pair[1].verdict != "not attempted"]
    known, outcome = (decided or attempted or found[-1:])[0]
    return claim_entry(key, claim, known, outcome)


def document(folder: Path, papers: Shelf | None = None) -> str:
    """The page as Markdown, from the results that are kept in `folder`."""
    papers = papers if papers is not None else shelf()
    cards = keeping.kept_cards(folder)
    entries = best_known(cards, keeping.exact_outcomes(folder), papers)
    counts = Counter(entry["verdict"] for entry in entries.values())
    parts = [BEGINNING, ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS) + f"; {len(cards)} runs are kept.\n"]
    for key, paper in papers.papers.items():
        own = [entries[f"{key}/{claim.id}"] for claim in paper.claims]
        parts.append(f"## {key}\n\n{published(key).citation}\n")
        parts.append(_table(["claim", "verdict", "budget", "why"], [
            [f"`{entry['id']}`: {entry['statement']}", entry["verdict"], entry["budget"], entry["why"]] for entry in own
        ]))  # fmt: skip
        parts += _items(key, papers, cards)
    parts.append("## Runs\n")
    parts.append(
        _table(["run", "budget", "test error", "training error", "minutes", "plan, processor"], [_run(card) for card in cards])
    )
    return "\n".join(parts)


def _items(key: str, papers: Shelf, cards: list[dict[str, Any]]) -> list[str]:
    """The tables of a paper of which anything has been measured, at each budget."""
    parts = []
    for budget in ("full", "small"):
        known = keeping.known_from(cards, papers, budget)
        for item in papers.papers[key].items:
            rows = [row_entry(key, row, known.evidence([row.arm])) for row in item.rows]
            measured = [row for row in rows if row["mean"] is not None]
            if measured:
                parts.append(f"### {key}/{item.id}: {item.title}, {budget}\n")
                parts.append(_table(["row", "measure", "paper", "measured"], [
                    [row["label"], row["measure"], _number(row["published"]), spread(row)] for row in measured
                ]))  # fmt: skip
    return parts


def _run(card: Mapping[str, Any]) -> list[str]:
    values, manifest = card["values"], card["manifest"]
    seconds = values.get("training_seconds")
    where = f"{manifest['plan']}, {manifest['hardware']['processor']}" if "hardware" in manifest else ""
    return [
        f"`{card['id']}`", card["budget"], _number(values.get("test_error")), _number(values.get("train_error")),
        _number(seconds / 60 if seconds else None), card["broken_off"] or where,
    ]  # fmt: skip


def _number(value: Any) -> str:
    return decimal(value, 4) if isinstance(value, (int, float)) else str(value) if value is not None else NOTHING


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return (
        "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines) + "\n"
    )
