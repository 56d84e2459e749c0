"""A catalogue: a package folder in which every file's `__all__` lists entries, found by name on request. Layer 0.

Nothing registers itself and nothing is imported before it is asked for: names are read from the source text (the literal
`__all__` of each file), and only the one file that holds a requested name is imported. Adding an entry means adding a file.
A hyphen and an underscore in a name mean the same (`fashion-mnist`, `fashion_mnist`).
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from residua.errors import unknown

__all__ = ["Catalog"]


@dataclass(frozen=True)
class Catalog:
    """The entries of package `package` (a dotted name such as `residua.models`); `kind` is the word used in errors."""

    package: str
    kind: str
    advice: str = ""

    @cached_property
    def modules(self) -> dict[str, str]:
        """Entry name -> dotted name of the module that defines it."""
        folder = Path(__file__).parent.joinpath(*self.package.split(".")[1:])
        found: dict[str, str] = {}
        for path in sorted(folder.glob("[!_]*.py")):
            for name in literal_all(path):
                if name in found:
                    raise AssertionError(f"{self.package}: {name} is defined in {found[name]} and in {path.stem}")
                found[name] = f"{self.package}.{path.stem}"
        return found

    def names(self) -> list[str]:
        """All entry names in the order of the files and of their `__all__`."""
        return list(self.modules)

    def __contains__(self, name: str) -> bool:
        return name.replace("-", "_") in self.modules

    def get(self, name: str) -> Any:
        """The entry called `name`; raises `RequestError` with the nearest names if there is none."""
        key = name.replace("-", "_")
        if key not in self.modules:
            raise unknown(self.kind, name, self.modules, self.advice)
        return getattr(importlib.import_module(self.modules[key]), key)

    def items(self) -> Iterator[tuple[str, Any]]:
        """All (name, entry) pairs; imports every file of the catalogue."""
        for name in self.modules:
            yield name, self.get(name)


def literal_all(path: Path) -> list[str]:
    """The strings of the literal `__all__` in a Python file, without importing it; empty if it has none."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return []
