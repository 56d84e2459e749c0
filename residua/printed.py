"""What a paper prints: citation, tables, claims and discrepancies, with their sources, from the TOML file beside it. Layer 3.

Each entry names the sources it was read in, and whether it was seen there (`verified`). The numbers are the papers'; all wording
is our own. Cells are addressed as "table/row/column".
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from residua.errors import RequestError, unknown

__all__ = ["Cell", "Printed", "published"]


@dataclass(frozen=True)
class Cell:
    """One printed number or text: its `value`, whether it was seen in the source named `source`, and its unit and table."""

    value: Any
    verified: bool
    source: str
    unit: str
    table: str
    approximate: bool = False


@dataclass(frozen=True)
class Printed:
    """The plain values of one TOML file."""

    key: str
    values: Mapping[str, Any]

    @property
    def citation(self) -> str:
        """Authors, title, venue, and where to find it."""
        paper = self.values["paper"]
        if not isinstance(paper, Mapping):
            return "; ".join(f"{entry['title']} ({entry['year']})" for entry in paper)
        authors = ", ".join(paper["authors"][:-1]) + (" and " if paper["authors"][1:] else "") + paper["authors"][-1]
        where = f", arXiv:{paper['arxiv']}" if "arxiv" in paper else ""
        return f"{authors}: {paper['title']}. {paper.get('venue', paper['year'])}{where}."

    @property
    def sources(self) -> dict[str, str]:
        """What each source is, by its key."""
        return {entry["key"]: f"{entry['what']} ({entry['seen_in']})" for entry in self.values.get("source", [])}

    @property
    def discrepancies(self) -> list[dict[str, Any]]:
        """Mistakes and contradictions found inside the paper, between papers, or in texts about it."""
        return list(self.values.get("discrepancy", []))

    @property
    def claims(self) -> dict[str, dict[str, Any]]:
        """The claims, and the discrepancies under their own ids, as they stand in the file."""
        return {entry["id"]: entry for kind in ("claim", "discrepancy") for entry in self.values.get(kind, [])}

    def statement(self, claim: str) -> str:
        """What a claim says; raises `RequestError` for an id that there is not."""
        if claim not in self.claims:
            raise unknown(f"claim of {self.key}", claim, self.claims)
        entry = self.claims[claim]
        return str(entry.get("statement") or entry["text"])

    def table(self, name: str) -> dict[str, Any]:
        """A table (or derived table) as it stands in the file."""
        tables = {entry["id"]: entry for kind in ("table", "derived") for entry in self.values.get(kind, [])}
        if name not in tables:
            raise unknown(f"table of {self.key}", name, tables)
        return tables[name]

    def cell(self, address: str) -> Cell:
        """The cell "table/row/column"; raises `RequestError` with the nearest name for what there is not."""
        name, _, rest = address.partition("/")
        row_name, _, column = rest.rpartition("/")
        table = self.table(name)
        rows = {entry["id"]: entry for entry in table["rows"]}
        if row_name not in rows:
            raise unknown(f"row of {self.key}/{name}", row_name or rest, rows)
        row = rows[row_name]
        if column not in row:
            raise RequestError(f"The row {name}/{row_name} of {self.key} has no {column!r}; it has {', '.join(sorted(row))}.")
        seen = bool(row.get("verified", table.get("verified", True))) and column not in table.get("unverified_columns", ())
        return Cell(
            row[column], seen, str(row.get("source", table.get("source", ""))), str(table.get("unit", "")), name,
            bool(row.get("approximate", table.get("approximate", False))),
        )  # fmt: skip


@cache
def published(key: str) -> Printed:
    """What the paper called `key` prints; raises `RequestError` if there is no such file."""
    folder = Path(__file__).parent / "papers"
    path = folder / f"{key}.toml"
    if not path.is_file():
        raise unknown("paper", key, sorted(item.stem for item in folder.glob("*.toml")))
    return Printed(key, tomllib.loads(path.read_text(encoding="utf-8")))
