"""The tables of the documentation that follow from the code: modules, fields of a recipe, options of the command line.

`.venv/bin/python tests/doc_tables.py` writes them anew; test_docs fails where they differ. The last column of a table of fields
or options is written by hand and kept.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typer.main import get_command

from residua import recipe
from residua.cli import app

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "residua"
CATALOGUES = ("models", "data", "tasks", "recipes")
BLOCK = re.compile(r"<!-- begin (?P<name>modules|fields|options \w+) -->\n(?P<text>.*?)<!-- end (?P=name) -->", re.DOTALL)


# --------------------------------------------------------------------------------------------------------------- modules


def module_files() -> list[Path]:
    """The modules of the package but for __init__ and __main__, and the folders that are catalogues."""
    files = [path for path in PACKAGE.glob("*.py") if path.stem not in ("__init__", "__main__")]
    return sorted(files) + [PACKAGE / name for name in CATALOGUES]


def layer(path: Path) -> int:
    """The layer of a module, which its docstring states (0 where it states none); that of the catalogues is 2."""
    if path.is_dir():
        return 2
    found = re.search(r"Layer (\d)", ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")
    return int(found[1]) if found else 0


def summary(path: Path) -> str:
    """The first paragraph of a module's docstring, up to the mention of its layer."""
    file = path / "__init__.py" if path.is_dir() else path
    text = " ".join((ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split())
    return re.sub(r"\s*Layer \d.*", "", text).replace("|", "\\|")


def modules() -> Iterator[str]:
    """A row for each module, the lowest layer first."""
    yield "| layer | file | what it holds |"
    yield "|---|---|---|"
    for path in sorted(module_files(), key=lambda path: (layer(path), path.name)):
        if path.is_dir() and not summary(path):
            continue
        yield f"| {layer(path)} | `{path.name}{'/' if path.is_dir() else ''}` | {summary(path)} |"


# ---------------------------------------------------------------------------------------------------------------- fields


def fields() -> Iterator[tuple[str, str, str]]:
    """(dotted name, allowed values, default) of every field of a recipe."""
    schema = TypeAdapter(recipe.Recipe).json_schema()
    defaults = recipe.to_dict(recipe.Recipe())
    for name, found in schema["properties"].items():
        inner = schema["$defs"].get(name.capitalize(), {}) if isinstance(defaults[name], dict) else {}
        for part, entry in (inner.get("properties") or {"": found}).items():
            default = defaults[name][part] if part else defaults[name]
            yield f"{name}.{part}" if part else name, allowed(entry), shown(default)


def allowed(entry: dict[str, Any]) -> str:
    """The values of a JSON schema in words."""
    if "anyOf" in entry:
        return " or ".join(allowed(choice) for choice in entry["anyOf"])
    if "enum" in entry:
        return ", ".join(f"`{choice}`" for choice in entry["enum"])
    kind = entry.get("type")
    if kind in ("integer", "number"):
        noun = "a whole number" if kind == "integer" else "a number"
        words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
        bounds = [f"{word} {entry[key]:,g}" for key, word in words.items() if key in entry and abs(entry[key]) < 2**53]
        return f"{noun}{' ' if bounds else ''}{', '.join(bounds)}"
    if kind == "array":
        return f"a list; each {allowed(entry['items'])}"
    return {"boolean": "`true`, `false`", "null": "`none`", "string": "text", "object": "a table"}[str(kind)]


def shown(value: Any) -> str:
    """A default value as it is written after `--set`."""
    if value is None or isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value not in ([], {}) else "empty"


# --------------------------------------------------------------------------------------------------------------- options


def options(verb: str) -> Iterator[tuple[str, str, str]]:
    """(name as typed, "", default) of every argument and option of a verb, but for --help."""
    command = get_command(app).commands[verb]  # type: ignore[attr-defined]
    for parameter in command.params:
        if "--help" in parameter.opts:
            continue
        is_option = parameter.param_type_name == "option"
        names = ", ".join(sorted(parameter.opts, key=len, reverse=True)) if is_option else parameter.metavar or parameter.name
        required = "required" if parameter.required else shown(parameter.default)
        plain = parameter.default is None or parameter.default is False or "default" in str(parameter.default).lower()
        yield str(names), "", "" if plain and not parameter.required else required


def verbs() -> list[str]:
    """The verbs of the command line."""
    return list(get_command(app).commands)  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------------------------------- blocks


def kept(text: str) -> dict[str, str]:
    """Name -> last cell of the rows of a table."""
    rows = [re.split(r"\s*\|\s*", line.strip().strip("|")) for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip(" `"): row[-1].strip() for row in rows}


def block(name: str, text: str) -> str:
    """The text that belongs between the marks of block `name`, which now holds `text`."""
    if name == "modules":
        return "\n".join(modules()) + "\n"
    by_hand = kept(text)
    if name == "fields":
        rows = [f"| `{field}` | {values} | {default} | {by_hand.get(field, '')} |" for field, values, default in fields()]
        return "\n".join(["| field | values | default | meaning |", "|---|---|---|---|", *rows]) + "\n"
    verb = name.removeprefix("options ")
    rows = [f"| `{option}` | {default} | {by_hand.get(option, '')} |" for option, _, default in options(verb)]
    return "\n".join(["| argument or option | default | meaning |", "|---|---|---|", *rows]) + "\n"


def rewritten(text: str) -> str:
    """A page with all its blocks as the code says."""
    return BLOCK.sub(lambda m: f"<!-- begin {m['name']} -->\n{block(m['name'], m['text'])}<!-- end {m['name']} -->", text)


def main() -> None:
    """Writes the tables of all pages anew."""
    for path in sorted((ROOT / "docs").glob("*.md")):
        before = path.read_text(encoding="utf-8")
        after = rewritten(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            sys.stderr.write(f"{path.relative_to(ROOT)} rewritten\n")


if __name__ == "__main__":
    main()
