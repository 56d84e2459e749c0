"""Records of runs made up for rules, whose verdicts are then known."""

from __future__ import annotations

from typing import Any

from residua.claims import Claim, Record
from residua.papers import CATALOG


def made(arm: str, seed: int = 0, lesion: dict[str, Any] | None = None, **values: float) -> Record:
    """One run with these measures, and the result of the analysis of lesions."""
    return Record(arm, seed, values, {}, {"lesion": lesion} if lesion else {})


def seeds(arm: str, measure: str, values: list[float]) -> list[Record]:
    """One run a value."""
    return [made(arm, seed, **{measure: value}) for seed, value in enumerate(values)]


def claim_of(name: str) -> Claim:
    """The claim "paper/claim"."""
    key, _, found = name.partition("/")
    return next(claim for claim in CATALOG.get(key).claims if claim.id == found)
