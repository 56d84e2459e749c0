"""What of the documentation follows from the code: tables of modules, recipes and their fields, plans, options of the command
line, and of families of networks and their facts, and the figures of units.

`.venv/bin/python tests/doc_tables.py` writes all of it anew; test_docs fails where it differs. The last column of a table of
fields, plans or options is written by hand and kept.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn
from typer.main import get_command

from residua import drawing, recipe
from residua.cli import app
from residua.models import CATALOG, create_model
from residua.network import Network
from residua.plan import PLANS, Plan
from residua.plan_card import _PARTS as PARTS
from residua.published import Published
from residua.recipes import CATALOG as RECIPES
from residua.unit import walk

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "residua"
NAMES = r"modules|recipes|plans|fields|options \w+|families|facts \w+|figure \S+ \S+"
BLOCK = re.compile(rf"<!-- begin (?P<name>{NAMES}) -->\n(?P<text>.*?)<!-- end (?P=name) -->", re.DOTALL)


# --------------------------------------------------------------------------------------------------------------- modules


def module_files() -> list[Path]:
    """The files of the package but for __init__ and __main__, and the folders that are catalogues."""
    files = [path for path in PACKAGE.iterdir() if path.suffix in (".py", ".c") and path.stem not in ("__init__", "__main__")]
    return sorted(files) + sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))


def docstring(path: Path) -> str:
    """What a file or a catalogue says of itself: its docstring, or the comment that a file in C begins with."""
    text = (path / "__init__.py" if path.is_dir() else path).read_text(encoding="utf-8")
    if path.suffix == ".c":
        return re.sub(r"^ ?\* ?", "", text.partition("/*")[2].partition("*/")[0].strip(), flags=re.MULTILINE)
    return ast.get_docstring(ast.parse(text)) or ""


def layer(path: Path) -> int:
    """The layer of a module, which its docstring states (0 where it states none). Of a catalogue its files may state it in place
    of its package, and where none does it is 2; a file in C is of the layer of the module of its name."""
    if path.is_dir():
        return next((found for file in sorted(path.glob("*.py")) if (found := layer(file))), 2)
    found = re.search(r"Layer (\d)", docstring(path.with_suffix(".py")))
    return int(found[1]) if found else 0


def summary(path: Path) -> str:
    """The first paragraph of a module's docstring, up to the mention of its layer."""
    text = " ".join(docstring(path).split("\n\n")[0].split())
    return re.sub(r"\s*Layer \d.*|:$", "", text).replace("|", "\\|")


def modules() -> Iterator[str]:
    """A row for each module, the lowest layer first."""
    yield "| layer | file | what it holds |"
    yield "|---|---|---|"
    for path in sorted(module_files(), key=lambda path: (layer(path), path.name)):
        yield f"| {layer(path)} | `{path.name}{'/' if path.is_dir() else ''}` | {summary(path)} |"


# --------------------------------------------------------------------------------------------------------------- recipes


def recipes() -> Iterator[str]:
    """A row for each recipe of the catalogue: what its docstring says first, and the fields that tell it from others."""
    yield "| recipe | what it trains | data | network | length | batch | optimiser |"
    yield "|---|---|---|---|---|---:|---|"
    for name, entry in RECIPES.items():
        found = entry()
        about = docstring(PACKAGE / "recipes" / f"{RECIPES.modules[name].rpartition('.')[2]}.py")
        paper = re.match(r"The recipes? of (.*?\d{4})", about)
        what = re.match(r".+?\.(?=\s|$)", " ".join((entry.__doc__ or "").split()))
        assert what, name
        said = f"{paper[1]}, {what[0][0].lower()}{what[0][1:]}" if paper else what[0]
        network = "by the data" if found.model.name == "auto" else f"`{found.model.name}`"
        row = [
            f"`{found.name}`",
            said,
            f"`{found.data.source}`",
            network,
            length(found),
            f"{found.batch_size:,}",
            found.optim.name,
        ]
        yield f"| {' | '.join(row)} |"


def length(found: recipe.Recipe) -> str:
    """The length of a recipe in words."""
    if found.steps is None and found.epochs is None:
        return "by the size of the data"
    return f"{found.steps:,} updates" if found.steps else f"{found.epochs:g} epochs"


def plan_words(plan: Plan) -> str:
    """What a plan does."""
    loops = [name for name in ("fused", "winograd", "exact") if getattr(plan, name)]
    names = [plan.precision, plan.memory_format, plan.compile, *loops]
    return "; ".join(PARTS[name] for name in names if name in PARTS)


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
    if kind == "array" and "prefixItems" in entry:
        return "(" + "; ".join(allowed(item) for item in entry["prefixItems"]) + ")"
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


# -------------------------------------------------------------------------------------------------------------- networks


def family(stem: str) -> dict[str, Published]:
    """The published networks of one file of the catalogue, in its order."""
    return {name: entry for name, entry in CATALOG.items() if entry_file(name) == stem and isinstance(entry, Published)}


def entry_file(name: str) -> str:
    """The file of the catalogue that holds an entry."""
    return CATALOG.modules[name].rpartition(".")[2]


@cache
def built(name: str) -> Network:
    """A published network without memory for its weights."""
    with torch.device("meta"):
        return create_model(name)


def facts(stem: str) -> Iterator[str]:
    """A row for each published network of a family."""
    yield "| name | depth | parameters | multiply-adds | input | source |"
    yield "|---|---:|---:|---:|---|---|"
    for name, entry in family(stem).items():
        size = " x ".join(map(str, entry.input_shape))
        numbers = f"{entry.depth:,} | {entry.parameters:,} | {entry.multiply_adds:,}"
        yield f"| `{name}` | {numbers} | {size} | {entry.paper}, {entry.table} |"


def families() -> Iterator[str]:
    """A row for each kind of unit in the catalogue: what its parts are, read off the smallest network of its builder."""
    yield "| family | builder, in its smallest published form | shortcut h | merge | post f |"
    yield "|---|---|---|---|---|"
    for stem in dict.fromkeys(map(entry_file, CATALOG.names())):
        smallest: dict[Any, str] = {}
        for name, entry in sorted(family(stem).items(), key=lambda item: item[1].multiply_adds):
            smallest.setdefault((entry.builder, bool(entry.arguments.get("plain"))), name)
        for (builder, _), name in smallest.items():
            units = [found.unit for found in walk(built(name))]
            shortcuts = ["none" if unit.shortcut is None else part_name(unit.shortcut) for unit in units]
            parts = (shortcuts, [type(unit.merge).__name__ for unit in units], [part_name(unit.post) for unit in units])
            cells = [", ".join(dict.fromkeys(part)) or "no units" for part in parts]
            page = f"[{stem}](families/{stem}.md)"
            yield f"| {page} | `{builder.__name__}`, `{name}` | {' | '.join(cells)} |"


def part_name(module: nn.Module) -> str:
    """A part of a unit in a word or two."""
    if isinstance(module, nn.Identity):
        return "identity"
    if isinstance(module, nn.Sequential):
        return " + ".join(part_name(child) for child in module if not isinstance(child, nn.Identity))
    return drawing.label(module)[0].split(",")[0].partition(" +")[0]


def figure(name: str, path: str) -> str:
    """The figure of a unit of a network as SVG."""
    with torch.random.fork_rng(devices=[]):
        unit = create_model(name).get_submodule(path)
    return drawing.unit_svg(unit, f"{name}, {path}")


def figure_file(name: str, path: str) -> Path:
    """Where the figure of a unit is kept."""
    return ROOT / "docs" / "figures" / f"{name}-{path.replace('.', '-')}.svg"


# ---------------------------------------------------------------------------------------------------------------- blocks


def kept(text: str) -> dict[str, str]:
    """Name -> last cell of the rows of a table."""
    rows = [re.split(r"\s*\|\s*", line.strip().strip("|")) for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip(" `"): row[-1].strip() for row in rows}


def block(name: str, text: str) -> str:
    """The text that belongs between the marks of block `name`, which now holds `text`."""
    if name == "modules":
        return "\n".join(modules()) + "\n"
    if name == "recipes":
        return "\n".join(recipes()) + "\n"
    if name == "families":
        return "\n".join(families()) + "\n"
    if name.startswith("facts "):
        return "\n".join(facts(name.removeprefix("facts "))) + "\n"
    if name.startswith("figure "):
        _, network, path = name.split()
        return f"![The unit {path} of {network}](../figures/{figure_file(network, path).name})\n"
    by_hand = kept(text)
    if name == "fields":
        rows = [f"| `{field}` | {values} | {default} | {by_hand.get(field, '')} |" for field, values, default in fields()]
        return "\n".join(["| field | values | default | meaning |", "|---|---|---|---|", *rows]) + "\n"
    if name == "plans":
        rows = [f"| `{plan.name}` | {plan_words(plan)} | {by_hand.get(plan.name, '')} |" for plan in PLANS.values()]
        return "\n".join(["| plan | how it computes | when it is tried |", "|---|---|---|", *rows]) + "\n"
    verb = name.removeprefix("options ")
    rows = [f"| `{option}` | {default} | {by_hand.get(option, '')} |" for option, _, default in options(verb)]
    return "\n".join(["| argument or option | default | meaning |", "|---|---|---|", *rows]) + "\n"


def rewritten(text: str) -> str:
    """A page with all its blocks as the code says."""
    return BLOCK.sub(lambda m: f"<!-- begin {m['name']} -->\n{block(m['name'], m['text'])}<!-- end {m['name']} -->", text)


def figures(text: str) -> Iterator[tuple[str, str]]:
    """(network, path) of each figure of a page."""
    for found in BLOCK.finditer(text):
        if found["name"].startswith("figure "):
            _, network, path = found["name"].split()
            yield network, path


def main() -> None:
    """Writes the tables and figures of all pages anew."""
    for path in sorted((ROOT / "docs").rglob("*.md")):
        for network, unit in figures(path.read_text(encoding="utf-8")):
            figure_file(network, unit).parent.mkdir(exist_ok=True)
            figure_file(network, unit).write_text(figure(network, unit), encoding="utf-8")
        before = path.read_text(encoding="utf-8")
        after = rewritten(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            sys.stderr.write(f"{path.relative_to(ROOT)} rewritten\n")


if __name__ == "__main__":
    main()
