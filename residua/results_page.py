"""docs/results.md: what has been reproduced, generated from the kept results alone. Layer 5."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from residua import budgets, keeping
from residua.claims import Arm, Claim
from residua.deciding import Known, claim_entry, outcome_of, row_entry
from residua.evidence import VERDICTS, Outcome
from residua.papers import published
from residua.recipe import Recipe
from residua.reproduction_page import spread
from residua.reproduction_words import printed
from residua.selection import Shelf, select, shelf
from residua.wording import NOTHING, decimal

__all__ = ["best_known", "document"]

BEGINNING = """# Results

What has been run, claim by claim. This page is generated from the files in `results/` by `python scripts/results.py`, and a test
fails when the two differ; nothing in it was typed. `residua reproduce PAPER/CLAIM` repeats a line, and
`residua reproduce --verify RUN` a run or its beginning. Errors are per cent; the spread is the standard deviation over seeds,
whose number stands in brackets.

*shown* and *refuted* are decided by the rule that was written down before any run, but for those that are listed below;
*under-powered* means that these runs cannot decide; *not attempted* says why. At the budget *small*, trainings are shortened to
some epochs, and where a network or its data is too large for a small machine another stands in for it: shallower, narrower, or on
CIFAR-10 in place of ImageNet. What it is stands beside each verdict and number. A verdict there is about the direction of an
effect at that size and length, not about the paper's numbers. A training that broke off because its loss was not finite counts
with the errors of chance and the loss of equal probabilities.
"""

AMENDED = """Besides, where several comparisons make a claim, a refutation has been corrected for their number (Holm) since
22 November 2026, after a part of the runs; no verdict changed by it.
"""

PLANNED = """Every training that the budget *small* asks for, as the papers' files state it. Arms in one row share their runs.
`residua reproduce` lists how long they take on your machine, `residua reproduce --budget small` runs them all.
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
    runs = {card["id"].rpartition("-s")[2] for card in cards}  # several arms can share one
    parts = [BEGINNING, _counted(entries, counts) + f"; {len(runs)} runs are kept.\n", *_amended(entries)]
    for key, paper in papers.papers.items():
        own = [entries[f"{key}/{claim.id}"] for claim in paper.claims]
        parts.append(f"## {key}\n\n{published(key).citation}\n")
        parts.append(_table(["claim", "verdict", "budget", "why"], [
            [f"`{entry['id']}`: {entry['statement']}", _verdict(entry), entry["budget"], _why(entry, claim, papers)]
            for entry, claim in zip(own, paper.claims)
        ]))  # fmt: skip
        parts += _items(key, papers, cards)
    parts += ["## The runs at the budget small\n", PLANNED, _planned(papers), _spent(cards), "## Runs\n", *_sources(cards)]
    parts.append(
        _table(["run", "budget", "test error", "training error", "minutes", "plan, processor"], [_run(card) for card in cards])
    )
    return "\n".join(parts)


def _counted(entries: Mapping[str, Mapping[str, Any]], counts: Mapping[str, int]) -> str:
    """How many claims there are of each verdict, and how far the refuted ones are."""
    said = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS]
    if short := sum(bool(entry["too_short"]) for entry in entries.values()):
        place = VERDICTS.index("refuted")
        said[place] += f" ({short} of them at a length at which the effect need not show)"
    return ", ".join(said)


def _amended(entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The claims whose rule is not the one that was written down before the first of their runs."""
    changed = {name: entry["amended"] for name, entry in entries.items() if entry["amended"]}
    if not changed:
        return []
    lines = [f"- `{name}` ({_verdict(entries[name])}): {text}" for name, text in changed.items()]
    return ["## Rules that were changed after runs\n", AMENDED, "\n".join(lines) + "\n"]


def _verdict(entry: Mapping[str, Any]) -> str:
    return f"{entry['verdict']} at this length" if entry["too_short"] else str(entry["verdict"])


def _why(entry: Mapping[str, Any], claim: Claim, papers: Shelf) -> str:
    """What decided, and on what it was decided in place of what is claimed."""
    said = [entry["why"]]
    if entry["verdict"] != "not attempted" and entry["budget"] == "small":
        arms = [papers.arm(name) for name in claim.arms]
        stands = [arm.stand_in for arm in arms if isinstance(arm, Arm) and arm.stand_in and not budgets.unavailable(arm, "small")]
        stands += [entry["stands_in"], entry["too_short"]]
        said += [f"*{text[:1].upper()}{text[1:].rstrip('.')}.*" for text in dict.fromkeys(stands) if text]
    return " ".join(said)


def _form(name: str, papers: Shelf, budget: str) -> str:
    """How a row's arm is trained at a budget below full, in some words."""
    arm = papers.arm(name)
    if not isinstance(arm, Arm) or budget == "full":
        return ""
    recipe = budgets.recipe_at(arm, budget, 0)
    return "; ".join(text for text in (_length(recipe), arm.stand_in) if text)


def _length(recipe: Recipe) -> str:
    return f"{recipe.steps:,} updates" if recipe.steps is not None else f"{recipe.epochs:g} epochs"


def _spent(cards: list[dict[str, Any]]) -> str:
    """How long the kept trainings of the small budget took."""
    runs = {card["id"].rpartition("-s")[2]: card for card in cards if card["budget"] == "small"}
    taken = [
        card["values"].get("training_seconds", 0.0) * card["manifest"].get("threads", 1)
        for card in runs.values()
        if card["values"].get("training_seconds")
    ]
    return f"The {len(taken)} of them that are kept took {sum(taken) / 3600:.1f} hours of one processor core.\n"


def _planned(papers: Shelf) -> str:
    """The arms that are trained at small, those with one recipe in one row."""
    groups: dict[str, list[Arm]] = {}
    for name in select([], papers).needs(papers):
        arm = papers.arm(name)
        if isinstance(arm, Arm) and not budgets.unavailable(arm, "small"):
            recipe = replace(budgets.recipe_at(arm, "small", 0), name="")
            groups.setdefault(repr(recipe), []).append(arm)
    rows = []
    for arms in groups.values():
        recipe, seeds = budgets.recipe_at(arms[0], "small", 0), max(budgets.seeds_at(arm, "small") for arm in arms)
        names = ", ".join(f"`{arm.name}`" for arm in arms)
        stands = "; ".join(
            dict.fromkeys(f"{arm.name}: {arm.stand_in}" if len(arms) > 1 else arm.stand_in for arm in arms if arm.stand_in)
        )
        rows.append([names, recipe.data.source, f"{_length(recipe)} of {recipe.batch_size}", str(seeds), stands])
    return _table(["arms", "data", "length", "seeds", "what stands in"], rows)


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
                if item.note:
                    parts.append(f"{item.note}\n")
                parts.append(_table(["row", "measure", "paper", "measured", "trained"], [
                    [row["label"], row["measure"], _printed(row["published"]), spread(row), _form(row["arm"], papers, budget)]
                    for row in measured
                ]))  # fmt: skip
    return parts


def _sources(cards: list[dict[str, Any]]) -> list[str]:
    """Which runs were made from sources that no git revision holds, in a sentence."""
    known = {card["id"]: card["manifest"]["git"] for card in cards if card["manifest"].get("git")}
    changed = [f"`{name}`" for name, revision in known.items() if "+" in revision]
    if not changed:
        return []
    return [
        "Each file in `results/` names the git revision of the sources that its run was made from, where that is known "
        f"({len(known)} of {len(cards)}). Of these, made from sources with uncommitted changes: {len(changed)} "
        f"({', '.join(changed)}).\n"
    ]


def _run(card: Mapping[str, Any]) -> list[str]:
    values, manifest = card["values"], card["manifest"]
    seconds = values.get("training_seconds")
    where = ", ".join(filter(None, (manifest.get("plan"), manifest.get("hardware", {}).get("processor"))))
    return [
        f"`{card['id']}`", card["budget"], _number(values.get("test_error")), _number(values.get("train_error")),
        _number(seconds / 60 if seconds else None), card["broken_off"] or where,
    ]  # fmt: skip


def _printed(value: Any) -> str:
    return NOTHING if value is None else printed(value)


def _number(value: Any) -> str:
    return decimal(value, 4) if isinstance(value, (int, float)) else str(value) if value is not None else NOTHING


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return (
        "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines) + "\n"
    )
