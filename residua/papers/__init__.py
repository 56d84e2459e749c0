"""The catalogue of papers: one paper a file, `KEY.py` with its printed numbers in `KEY.toml`. Layer 4.

An entry is a `Paper` (`residua.claims`): arms, items and claims, each claim with the rule that decides it. docs/add-a-paper.md
says what an entry owes.
"""

from __future__ import annotations

from residua.catalog import Catalog
from residua.printed import published

__all__ = ["CATALOG", "published"]

CATALOG = Catalog("residua.papers", "paper", "`residua reproduce` lists them.")
