"""The tables of a reproduction: the paper's rows and columns, the printed number beside the measured one. Layer 5."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from residua.reproduction_words import column, measure, printed
from residua.wording import NOTHING, counted, decimal

__all__ = ["spread", "table"]

SEEDS = 5  # so many are listed one by one
_UNIT = re.compile(r", (?:1e9|millions)$")  # of a label; the heading of the column says it


def table(rows: Sequence[Mapping[str, Any]], broken: Mapping[str, int] = MappingProxyType({})) -> dict[str, Any]:
    """The table of an item's rows: `columns` (heading, what was measured, whether anything is printed there), `lines` (label,
    and `pairs` of each column with its cell, None where there is none), and a `note` where every number is that of one seed.
    `broken` counts the runs of an arm that broke off.

    Rows that stand in one line of the paper's table stand in one line here, under its columns; a number of the same arm that is
    not printed joins its line.
    """
    columns: dict[str, dict[str, Any]] = {}
    printed = {row["measure"]: _column(row) for row in reversed(rows) if row["place"]}
    lines: dict[str, dict[str, Any]] = {}
    homes: dict[str, str] = {}
    for row in rows:
        name = _column(row) or printed.get(row["measure"], row["measure"])
        line = row["place"].rpartition("/")[0] or homes.get(row["arm"], row["arm"])
        while name in lines.get(line, {"cells": {}})["cells"]:
            line += " "  # a second number of the same place is a line of its own
        homes.setdefault(row["arm"], line)
        head = columns.setdefault(name, {"printed": False, "unit": "", "measures": {}, "place": False})
        head["place"] |= bool(row["place"])
        head["printed"] |= row["published"] is not None
        head["unit"] = head["unit"] or row["unit"]
        head["measures"][row["measure"]] = None
        lines.setdefault(line, {"rows": [], "cells": {}})
        lines[line]["rows"].append(row)
        lines[line]["cells"][name] = row
    measured = [row["measured"] for row in rows if row["measured"]]
    single = len(measured) > 1 and all(len(values) == 1 for values in measured)
    headings = {name: _heading(name, head) for name, head in columns.items()}
    return {
        "columns": list(headings.values()),
        "note": "One seed." if single else "",
        "lines": [
            {
                "label": _label(line, found["rows"]),
                "pairs": [(heading, _cell(found["cells"].get(name), single, broken)) for name, heading in headings.items()],
            }
            for line, found in lines.items()
        ],
    }


def spread(row: Mapping[str, Any]) -> str:
    """What was measured: "8.42 ± 0.11 (3)", with the number of seeds, or one number, or nothing."""
    if row["mean"] is None:
        return NOTHING
    if row["spread"] is None:
        return decimal(row["mean"], 4)
    return f"{decimal(row['mean'], 4)} ± {decimal(row['spread'], 2)} ({len(row['measured'])})"


def _column(row: Mapping[str, Any]) -> str:
    """The paper's column of a row; "" where nothing is printed."""
    return str(row["place"].rpartition("/")[2])


def _heading(name: str, head: Mapping[str, Any]) -> dict[str, Any]:
    words = list(dict.fromkeys(map(measure, head["measures"])))
    percent = ", %" if any(one.endswith("_error") for one in head["measures"]) and not head["place"] else ""
    text = column(name) if head["place"] else words[0] + percent
    return {"text": text, "measured": "; ".join(words) if head["place"] else "", "printed": head["printed"]}


def _label(line: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """What the cells of a line are called in common: their label, their arm, or the paper's row."""
    for names in ({_UNIT.sub("", row["label"]) for row in rows}, {row["arm"] for row in rows}):
        if len(names) == 1:
            return str(names.pop())
    return line.strip().rpartition("/")[2]


def _cell(row: Mapping[str, Any] | None, single: bool, broken: Mapping[str, int]) -> dict[str, Any] | None:
    if row is None:
        return None
    measured = row["measured"]
    seeds = counted(len(measured), "seed") if measured and not single else ""
    if 1 < len(measured) <= SEEDS:
        seeds += ": " + ", ".join(decimal(value, 4) for value in measured)
    if row["arm"] in broken:
        seeds = "; ".join(filter(None, (seeds, f"{broken[row['arm']]} broke off")))
    marks = [mark for mark, holds in (("not verified", row["verified"] is False), ("approximate", row["approximate"])) if holds]
    bounds = "" if row["spread"] is None else f" ± {decimal(row['spread'], 2)}"
    return {
        "printed": NOTHING if row["published"] is None else printed(row["published"]), "marks": ", ".join(marks),
        "measured": decimal(row["mean"], 4) + bounds if measured else NOTHING, "seeds": seeds,
    }  # fmt: skip
