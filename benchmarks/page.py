"""docs/performance.md, from the results in benchmarks/results and the notes beside them.

    python benchmarks/page.py            writes the page
    python benchmarks/page.py --check    says whether it is as the results and the notes have it (exit code 1 if not)

`results/NAME.json` is what a script wrote with `--json` (the form is in form.py). `results/PART.md` are the notes, by hand:
what was measured, what bounds it, what was tried and did not help. A line `[[NAME]]` in them becomes the table of that
result, with its ceiling, date, machine, versions and command, none of which is typed by hand. In a line
`{{NAME: column=value, ...: column}}` becomes one number of it. `ORDER` has the parts of the page.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
ORDER = ("introduction", "targets", "training", "accuracy", "data", "inference", "memory", "tried")
PLACE = re.compile(r"^\[\[([\w-]+)\]\]$", re.MULTILINE)
CELL = re.compile(r"\{\{([\w-]+): ([^:{}]+): ([^:{}]+)\}\}")


def page() -> str:
    """The whole page."""
    parts = [(RESULTS / f"{part}.md").read_text(encoding="utf-8").strip() for part in ORDER]
    text = CELL.sub(lambda found: cell(load(found[1]), found[2], found[3]), "\n\n".join(parts))
    return PLACE.sub(lambda place: shown(load(place[1])), text) + "\n"


def cell(form: Mapping[str, Any], where: str, column: str) -> str:
    """One number: of the row in which each `column=value` of `where` holds. Raises `KeyError` unless there is exactly one."""
    wanted = [pair.split("=", 1) for pair in re.split(r", (?=\w+=)", where)]
    rows = [row for row in form["rows"] if all(str(row.get(name)) == value for name, value in wanted)]
    if len(rows) != 1 or column not in rows[0]:
        raise KeyError(f"{form['name']}: {len(rows)} rows where {where}, and {column!r} of it is asked for")
    return number(rows[0][column])


def load(name: str) -> dict[str, Any]:
    """The result of that name."""
    form: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return form


def shown(form: Mapping[str, Any]) -> str:
    """A result as Markdown: its rows, its ceiling and notes, and where it comes from."""
    said = [f"{what} {number(value)}" for what, value in form["ceiling"].items()]
    lines = [table(form["rows"]), "", f"`{form['command']}`, {form['date']}, {machine(form)}"]
    if said:
        lines += ["", "Ceilings: " + "; ".join(said) + "."]
    if form["notes"]:
        lines += ["", " ".join(form["notes"])]
    return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a table; columns of numbers are set flush right."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    numeric = [all(not isinstance(row.get(column), str) for row in rows) for column in columns]
    lines = [columns, ["---:" if right else "---" for right in numeric]]
    lines += [[number(row.get(column)) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: Any) -> str:
    """A value as it is read: thousands apart, three digits where it is small, nothing for what is missing."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}".rstrip(".")
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def machine(form: Mapping[str, Any]) -> str:
    """The machine and the versions in a sentence."""
    card, versions = form["machine"], form["versions"]
    processor = f"{card['cores']} cores of {card['processor']} ({card['cpu_capability']}), {card['threads']} threads"
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "torchvision", "timm", "onnxruntime") if name in versions)
    return f"{card.get('gpu') or processor}, {card['memory_gib']:g} GiB; {named}."


def main() -> None:
    """Writes the page or checks it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit("docs/performance.md is not what benchmarks/page.py makes of benchmarks/results: run it.")


if __name__ == "__main__":
    main()
