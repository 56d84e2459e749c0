"""The page of a reproduction: one HTML file that holds all it shows, made from the plain values of reproduction.json. Layer 5."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from residua.evidence import VERDICTS
from residua.report import environment, packaged, printable
from residua.wording import NOTHING, decimal, duration

__all__ = ["page", "spread", "tally"]


def page(document: Mapping[str, Any]) -> str:
    """The HTML of a reproduction's document."""
    env = environment()
    env.filters["duration"] = duration
    env.filters["spread"] = spread
    env.filters["number"] = lambda value: decimal(value, 4) if isinstance(value, (int, float)) else value or NOTHING
    template = env.from_string(packaged("reproduction_template.html"))
    text = template.render(document=document, style=Markup(packaged("report_style.css")), tally=tally(document))
    return printable(text)


def tally(document: Mapping[str, Any]) -> list[tuple[str, int]]:
    """How many claims have each verdict."""
    counts = Counter(claim["verdict"] for claim in document["claims"])
    return [(verdict, counts[verdict]) for verdict in VERDICTS]


def spread(row: Mapping[str, Any]) -> str:
    """What was measured: "8.42 ± 0.11 (3)", with the number of seeds, or one number, or nothing."""
    if row["mean"] is None:
        return NOTHING
    if row["spread"] is None:
        return decimal(row["mean"], 4)
    return f"{decimal(row['mean'], 4)} ± {decimal(row['spread'], 2)} ({len(row['measured'])})"
