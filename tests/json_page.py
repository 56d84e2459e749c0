"""docs/json-output.md beside what the verbs write: field by field, type by type."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "json-output.md"
KINDS: dict[type, str] = {str: "text", bool: "boolean", int: "whole number", float: "number", type(None): "null"}


def documented(name: str) -> dict[str, set[str]]:
    """field -> the types that the page gives for a verb."""
    table = PAGE.read_text(encoding="utf-8").partition(f"<!-- json: {name} -->\n")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| [^|]+ \|$", table, re.MULTILINE)
    assert len(rows) == len(table.splitlines()) - 2 > 0, f"a row of the table of {name} cannot be read"
    return {field: set(types.split(" or ")) for field, types in rows}


def leaves(value: Any, fields: dict[str, set[str]], path: str = "") -> Iterator[tuple[str, str]]:
    """(field, type) of all that is in a document; an empty list is one of its own, and so is an empty object."""
    if isinstance(value, dict) and fields.get(path) == {"object"}:
        yield path, "object"
    elif isinstance(value, dict):
        free = any(field.startswith(f"{path}.*") for field in fields)
        for key, inner in value.items():
            yield from leaves(inner, fields, f"{path}.{'*' if free else key}".lstrip("."))
        if not value:
            yield path, "empty object"
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, fields, f"{path}[]")
        if not value:
            yield path, "empty list"
    else:
        yield path, KINDS[type(value)]


def assert_as_documented(name: str, *found: Any) -> None:
    """Every field of the documents is on the page with its type, and every one on the page is in a document."""
    fields = documented(name)
    seen: dict[str, set[str]] = {}
    for value in found:
        for field, kind in leaves(value, fields):
            seen.setdefault(field, set()).add(kind)
    absent = {field for field, kinds in seen.items() if kinds & {"empty list", "empty object", "null"}}
    for field, kinds in seen.items():
        given = set(fields.get(field, ()))
        given |= {"empty list"} if any(name.startswith(f"{field}[]") for name in fields) else set()
        given |= {"empty object"} if any(name.startswith(f"{field}.*") for name in fields) else set()
        given |= {"whole number"} if "number" in given else set()
        assert kinds <= given, f"{field} is {kinds}, documented as {given or 'nothing'}"
    for field, kinds in fields.items():
        inside = any(field.startswith((f"{outer}[]", f"{outer}.")) for outer in absent)
        assert field in seen or inside or kinds & {"list", "object"}, f"{field} is documented and not written"
