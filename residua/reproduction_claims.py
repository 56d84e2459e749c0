"""The claims of a reproduction as its page shows them: verdict, rule, evidence in words, runs, departures. Layer 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from residua.reproduction_words import because, broken, compared, departed, facts, rule, said, unbounded
from residua.wording import counted, duration

__all__ = ["SIGNS", "anchor", "claim_view", "interval"]

SIGNS = {"shown": "✓", "refuted": "✗", "under-powered": "~", "not attempted": "–"}
"""A sign for each verdict, so that none is told by colour alone."""

ABOUT = {"discrepancy": "a mistake found in the paper or in texts about it", "text": "stated in the text only"}
WIDTH, HEIGHT, MARGIN = 220, 26, 8


def anchor(*parts: str) -> str:
    """The id of a place on the page."""
    return "-".join("".join(c if c.isalnum() or c in "_.-" else "-" for c in part) for part in parts)


def claim_view(entry: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the page says of a claim; `runs` are the document's by id."""
    own = [runs[name] for name in entry["evidence"]["runs"] if name in runs]
    numbers = entry["evidence"]["numbers"]
    return {
        **entry, "anchor": anchor("claim", entry["paper"], entry["id"]), "sign": SIGNS[entry["verdict"]],
        "kind": ABOUT.get(entry["about"], ""), "statement": said(entry["statement"]), "why": said(entry["why"]),
        "rule": rule(entry["rule"]), "broken": broken(own),
        "evidence": _evidence(numbers), "seeds": _seeds(own), "departed": departed(own), "because": because(entry["budget"]),
        "runs": [{"id": run["id"], "anchor": anchor("run", run["id"])} for run in own], "forecast": _forecast(entry["cost"]),
    }  # fmt: skip


def _seeds(runs: Sequence[Mapping[str, Any]]) -> str:
    """ "plain20 and plain56: 3 seeds each", by how many there are."""
    counts: dict[str, int] = {}
    for run in runs:
        counts[run["arm"]] = counts.get(run["arm"], 0) + 1
    groups: dict[int, list[str]] = {}
    for arm, count in counts.items():
        groups.setdefault(count, []).append(arm)
    return "; ".join(
        f"{', '.join(arms)}: {counted(count, 'seed')}{' each' if len(arms) > 1 else ''}" for count, arms in groups.items()
    )


def _evidence(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of the evidence: one, or one for each rule of several, with an interval where two sides are compared."""
    parts = numbers.get("parts")
    if isinstance(parts, list):
        return [
            {**one, "verdict": part["verdict"], "sign": SIGNS[part["verdict"]], "why": said(part["why"])}
            for part in parts
            for one in _evidence(part["numbers"]) or [{"facts": [], "interval": ""}]
        ]
    rows = facts(numbers)
    return [{"facts": rows, "interval": interval(numbers), "verdict": "", "sign": "", "why": ""}] if rows else []


def interval(numbers: Mapping[str, Any]) -> str:
    """The difference of two sides with its bounds on a line that holds 0, as SVG; "" where none is stated."""
    values = [numbers.get(name) for name in ("low", "estimate", "high")]
    if not compared(numbers) or not all(isinstance(value, (int, float)) for value in values):
        return ""
    low, estimate, high = (float(value) for value in values if value is not None)
    if unbounded(numbers):
        return ""
    reach = max(abs(low), abs(high), abs(estimate)) or 1.0

    def place(value: float) -> str:
        return f"{WIDTH / 2 + value / reach * (WIDTH / 2 - MARGIN):.1f}"

    words = next(text for name, text in facts(numbers) if name == "difference")
    middle = HEIGHT / 2
    return (
        f'<svg class="interval" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{escape(words)}">'
        f'<line class="axis" x1="0" x2="{WIDTH}" y1="{middle}" y2="{middle}"/>'
        f'<line class="zero" x1="{WIDTH / 2}" x2="{WIDTH / 2}" y1="1" y2="{HEIGHT - 1}"/>'
        f'<line class="reach" x1="{place(low)}" x2="{place(high)}" y1="{middle}" y2="{middle}"/>'
        f'<circle class="mean" cx="{place(estimate)}" cy="{middle}" r="4"/></svg>'
    )


def _forecast(cost: Mapping[str, float | None] | None) -> dict[str, str] | None:
    if cost is None:
        return None
    return {budget: duration(seconds) for budget, seconds in cost.items() if seconds} or None
