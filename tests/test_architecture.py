"""What may know what: every file imports its own layer or lower ones, without cycles."""

from __future__ import annotations

import ast
import graphlib
import re
from functools import cache
from pathlib import Path

import pytest

import residua

ROOT = Path(residua.__file__).parent
FILES = {
    ".".join(("residua", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
CATALOGUES = {"models": 2, "data": 2, "tasks": 2, "recipes": 2, "papers": 4, "analyses": 3}
# The package itself names what it exports and loads it on use; `python -m residua` starts the command line.
ENTRANCES = ("residua", "residua.__main__")
MODULES = [name for name in FILES if name not in ENTRANCES]


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def stated_layer(name: str) -> int | None:
    """The layer in the docstring; the open folders are of one layer throughout."""
    found = re.search(r"\bLayer (\d)\b", ast.get_docstring(tree(name)) or "")
    if found:
        return int(found[1])
    return CATALOGUES.get(name.split(".")[1])


def imported(name: str) -> set[str]:
    """The modules of ours that a file imports anywhere, type checking and functions included."""
    found: set[str] = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} imports relatively"
            base = node.module or ""
            names = {f"{base}.{alias.name}" for alias in node.names}
            submodules = names & FILES.keys()
            found.update(submodules)
            if base in FILES and (names - submodules) and base != "residua":
                found.add(base)
    return {module for module in found if module in FILES and module != name}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_states_its_layer(name: str) -> None:
    assert stated_layer(name) is not None, f"the docstring of {name} does not say 'Layer N'"


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[1] in CATALOGUES])
def test_each_catalogue_is_of_one_layer(name: str) -> None:
    assert stated_layer(name) == CATALOGUES[name.split(".")[1]]


@pytest.mark.parametrize("name", MODULES)
def test_a_file_imports_its_own_layer_or_lower_ones(name: str) -> None:
    own = stated_layer(name)
    above = {module: stated_layer(module) for module in imported(name) if (stated_layer(module) or 0) > (own or 0)}
    assert not above, f"{name} of layer {own} imports {above}"


def test_there_are_no_cycles() -> None:
    order = list(graphlib.TopologicalSorter({name: imported(name) for name in MODULES}).static_order())
    assert set(order) == set(MODULES)


def test_the_lowest_layer_needs_no_library_but_torch_and_the_recipes_parser() -> None:
    allowed = {"torch", "pydantic", "tomli_w", "residua", "__future__"}
    for name in MODULES:
        if stated_layer(name) == 0:
            roots = {
                (alias.name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
                for node in ast.walk(tree(name))
                if isinstance(node, (ast.Import, ast.ImportFrom))
                for alias in node.names
            }
            third_party = {root for root in roots if root not in __import__("sys").stdlib_module_names}
            assert third_party <= allowed, name


def test_only_the_command_line_prints() -> None:
    for name in MODULES:
        calls = [node for node in ast.walk(tree(name)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        assert name == "residua.cli" or not any(call.func.id == "print" for call in calls), name  # type: ignore[union-attr]


def test_every_module_has_a_docstring_and_none_is_a_drawer() -> None:
    for name in MODULES:
        empty = not tree(name).body
        assert empty or ast.get_docstring(tree(name)), name
        assert name.split(".")[-1] not in ("utils", "helpers", "misc", "common", "base")


def test_the_skip_connection_is_written_in_one_place() -> None:
    """No forward of the networks adds: what adds is the merge of a unit."""
    for name in MODULES:
        if name.split(".")[1] in ("models", "branches", "network"):
            for function in [
                node for node in ast.walk(tree(name)) if isinstance(node, ast.FunctionDef) and node.name == "forward"
            ]:
                assert not [n for n in ast.walk(function) if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Add)], name
