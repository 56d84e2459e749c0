"""Claims decided and items filled from records: what a reproduction says, as plain values. Layer 4."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

from residua.claims import Claim, Evidence, Item, NotAttempted, Outcome, Row
from residua.errors import RequestError
from residua.evidence import Record, not_attempted
from residua.papers import published
from residua.rules import ByBudget, settled_parts
from residua.selection import statement

__all__ = ["Known", "claim_entry", "item_entry", "outcome_of", "plain", "row_entry"]


@dataclass(frozen=True)
class Known:
    """What is known at one budget: the records, the images that the test errors of each arm stand on, the id of each record's run
    by (arm, seed), and why arms are left out."""

    budget: str
    records: Sequence[Record] = ()
    num_test: Mapping[str, int] = field(default_factory=dict)
    ids: Mapping[tuple[str, int], str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def evidence(self, arms: Iterable[str]) -> Evidence:
        """The records of these arms."""
        wanted = set(arms)
        counts = [count for arm, count in self.num_test.items() if arm in wanted and count]
        return Evidence([record for record in self.records if record.arm in wanted], self.budget, min(counts, default=0))

    def runs(self, arms: Iterable[str]) -> list[str]:
        """The ids of the runs of these arms."""
        wanted = set(arms)
        return [self.ids[record.arm, record.seed] for record in self.records if record.arm in wanted]


def outcome_of(claim: Claim, known: Known) -> Outcome:
    """What the rule decides on what is known, and whether that was computed in one precision; where it cannot, why its arms have
    not run, and which of its parts need no run and are settled."""
    outcome = _decided(claim, known)
    if outcome.verdict != "not attempted" or not (settled := settled_parts(claim.rule, known.budget)):
        return outcome
    return replace(outcome, why=_sentences([outcome.why, f"Settled: {_sentences(settled)}"]))


def _decided(claim: Claim, known: Known) -> Outcome:
    try:
        outcome = claim.decide(known.evidence(claim.arms))
    except Exception as error:  # one rule that fails must not take the report of hours of runs with it
        return Outcome("not attempted", f"The rule could not be applied ({type(error).__name__}: {error}).")
    if outcome.verdict != "not attempted":
        return replace(outcome, why=_sentences([outcome.why, *_precisions(claim, known)]))
    rule = claim.rule.at(known.budget) if isinstance(claim.rule, ByBudget) else claim.rule
    if isinstance(rule, NotAttempted):  # whatever has run
        return not_attempted(rule.reason)
    if known.budget == "smoke":
        return outcome
    there = {record.arm for record in known.records}
    without = [arm for arm in claim.arms if arm not in there]
    reasons = [f"{arm} has no run at this budget: {known.left_out[arm]}" for arm in without if arm in known.left_out]
    said = [] if reasons and len(reasons) == len(without) else [outcome.why]  # what else is missing could be run
    return Outcome("not attempted", _sentences([*said, *reasons]), outcome.numbers)


def _precisions(claim: Claim, known: Known) -> list[str]:
    """A sentence where runs that are held against one another were computed in different precisions."""
    found: dict[str, list[str]] = {}
    for record in known.records:
        if record.arm in claim.arms and record.plan:
            found.setdefault(record.plan.partition("-")[0], []).append(record.arm)
    if len(found) < 2:
        return []
    listed = "; ".join(f"{precision} {', '.join(sorted(set(arms)))}" for precision, arms in sorted(found.items()))
    return [f"The plans that were the fastest differ in precision: {listed}."]


def claim_entry(key: str, claim: Claim, known: Known, outcome: Outcome | None = None) -> dict[str, Any]:
    """A claim with its verdict and evidence, as plain values."""
    outcome = outcome if outcome is not None else outcome_of(claim, known)
    return {
        "paper": key, "id": claim.id, "statement": statement(key, claim), "verdict": outcome.verdict,
        "budget": "exact" if claim.exact else known.budget, "why": outcome.why, "rule": claim.rule.text,
        "evidence": {"runs": [] if claim.exact else known.runs(claim.arms), "numbers": plain(outcome.numbers)},
        "stands_in": claim.stands_in, "amended": claim.amended,
        "too_short": claim.too_short if outcome.verdict == "refuted" and known.budget == "small" else "",
        "about": _about(key, claim),
    }  # fmt: skip


def item_entry(key: str, item: Item, known: Known) -> dict[str, Any]:
    """A table or figure, as plain values: its rows with measured beside printed numbers, and its drawings."""
    evidence = known.evidence({*item.arms, *(row.arm for row in item.rows)})
    figures, trouble = [], ""
    try:
        drawn = item.draw(evidence) if item.draw is not None else []
        figures = [{"title": one.title, "svg": one.svg, "caption": one.caption, "wide": one.wide} for one in drawn]
    except Exception as error:  # a figure that cannot be drawn must not take hours of runs with it
        trouble = f"The figure could not be drawn ({type(error).__name__}: {error})."
    left_out = {arm: known.left_out[arm] for arm in item.arms if arm in known.left_out}
    return {
        "paper": key, "id": item.id, "title": item.title, "note": item.note, "trouble": trouble,
        "rows": [row_entry(key, row, evidence) for row in item.rows], "figures": figures, "claims": list(item.claims),
        "runs": known.runs(item.arms), "left_out": left_out,
    }  # fmt: skip


def row_entry(key: str, row: Row, evidence: Evidence) -> dict[str, Any]:
    """One row: what is printed, and what was measured with its spread over seeds (None where there is none)."""
    measure = row.measure_at(evidence.budget)
    values = evidence.values(row.arm, measure)
    entry: dict[str, Any] = {
        "label": row.label or row.arm, "arm": row.arm, "measure": measure, "measured": values,
        "mean": fmean(values) if values else None, "spread": stdev(values) if len(values) > 1 else None,
        "published": None, "unit": "", "verified": None, "source": "", "approximate": False,
    }  # fmt: skip
    if row.published:
        cell = published(key).cell(row.published)
        entry |= {"published": cell.value, "unit": cell.unit, "verified": cell.verified, "source": cell.source,
                  "approximate": cell.approximate}  # fmt: skip
    return entry


def plain(value: Any) -> Any:
    """The value as JSON takes it: lists for tuples, numbers for arrays of one, None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if not isinstance(value, (str, int, float, bool, type(None))):
        return plain(value.tolist()) if hasattr(value, "tolist") else str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _about(key: str, claim: Claim) -> str:
    """Of what kind the entry beside the printed numbers is: "claim", "discrepancy", or "text" for what has none of its own."""
    printed = published(key)
    if any(entry["id"] == claim.id for entry in printed.discrepancies):
        return "discrepancy"
    try:
        printed.statement(claim.id)
    except RequestError:
        return "text"
    return str(printed.claims[claim.id].get("origin", "claim"))


def _sentences(texts: Sequence[str]) -> str:
    return " ".join(text if text.endswith(".") else f"{text}." for text in texts)
