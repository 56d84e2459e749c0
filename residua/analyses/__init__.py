"""The catalogue of analyses: one analysis a file, found by name through `residua.analysis.CATALOG`. Layer 3.

An entry is an `Analysis`: it measures one subject within a budget, draws one or several side by side, and says in two
sentences how to read that. docs/add-an-analysis.md says what an entry owes.
"""

from __future__ import annotations

__all__: list[str] = []
