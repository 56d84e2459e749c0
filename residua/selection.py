"""What of the papers is named, and what that needs: items and claims, the arms and measurements behind them. Layer 4."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from residua.analysis import CATALOG as ANALYSES
from residua.claims import Arm, Claim, Ensemble, Item, Measurement, Paper, Probe
from residua.errors import RequestError, unknown
from residua.evaluation import PROTOCOLS, stated
from residua.papers import CATALOG, published

__all__ = ["Selection", "Shelf", "select", "shelf", "statement"]


@dataclass(frozen=True)
class Shelf:
    """All papers, with their arms and own measurements by name."""

    papers: dict[str, Paper]
    arms: dict[str, Arm | Ensemble | Probe]
    measurements: dict[str, Measurement]

    def arm(self, name: str) -> Arm | Ensemble | Probe:
        """The arm of that name; raises `RequestError` with the nearest ones."""
        if name not in self.arms:
            raise unknown("arm", name, self.arms)
        return self.arms[name]

    def known_measurement(self, name: str) -> None:
        """Raises `RequestError` for a measurement that there is not."""
        if name not in self.measurements and name not in ANALYSES and stated(name) is None:
            raise unknown("measurement", name, [*self.measurements, *ANALYSES.names(), *PROTOCOLS])

    def claim(self, address: str, paper: str = "") -> tuple[str, Claim]:
        """The claim "paper/claim", or the one called `address` of `paper`, with the key of its paper."""
        key, _, name = address.rpartition("/")
        key = key or paper
        if key not in self.papers:
            raise unknown("paper", key, self.papers)
        found = {claim.id: claim for claim in self.papers[key].claims}
        if name not in found:
            raise unknown(f"claim of {key}", name, found)
        return key, found[name]


@dataclass(frozen=True)
class Selection:
    """Items and claims, each with the key of its paper, in the papers' order; `names` as they were asked for."""

    names: tuple[str, ...]
    items: tuple[tuple[str, Item], ...]
    claims: tuple[tuple[str, Claim], ...]

    def needs(self, papers: Shelf) -> dict[str, tuple[str, ...]]:
        """The arms that are needed, with what is measured on each; the members of ensembles come before these."""
        found: dict[str, dict[str, None]] = {}

        def add(name: str, measurements: Iterable[str]) -> None:
            arm = papers.arm(name)
            if isinstance(arm, Ensemble):
                for member in arm.members:
                    add(member, ())
            found.setdefault(name, {}).update(dict.fromkeys(measurements if isinstance(arm, Arm) else ()))

        parts: list[Item | Claim] = [*(item for _, item in self.items), *(claim for _, claim in self.claims)]
        for part in parts:
            for name in part.arms:
                add(name, part.measurements)
        return {name: tuple(measurements) for name, measurements in found.items()}


@lru_cache(1)
def shelf() -> Shelf:
    """All papers of the catalogue; raises `AssertionError` where two of them call different things by one name."""
    papers: dict[str, Paper] = dict(CATALOG.items())
    arms: dict[str, Arm | Ensemble | Probe] = {}
    measurements: dict[str, Measurement] = {}
    for paper in papers.values():
        for arm in paper.arms:
            assert arms.setdefault(arm.name, arm) == arm, f"two arms are called {arm.name}"
        for measurement in paper.measurements:
            assert measurements.setdefault(measurement.name, measurement) == measurement, measurement.name
    return Shelf(papers, arms, measurements)


def select(names: Sequence[str], papers: Shelf | None = None) -> Selection:
    """The items and claims called "PAPER", "PAPER/ITEM" or "PAPER/CLAIM" (none: all), with the claims that stand beside an item.

    Raises `RequestError` with the nearest names for what there is not.
    """
    papers = papers if papers is not None else shelf()
    items: dict[tuple[str, str], Item] = {}
    claims: dict[tuple[str, str], Claim] = {}
    for name in names or papers.papers:
        key, _, part = name.strip("/").partition("/")
        key = key.replace("-", "_")
        if key not in papers.papers:
            raise _no_such(name, papers)
        paper = papers.papers[key]
        found_items = [item for item in paper.items if part in ("", item.id)]
        found_claims = [claim for claim in paper.claims if part in ("", claim.id)]
        if not found_items and not found_claims:
            raise unknown(
                f"item or claim of {key}", part, [*(item.id for item in paper.items), *(claim.id for claim in paper.claims)],
                f"`residua reproduce` lists all; `residua reproduce {key}` runs them.",
            )  # fmt: skip
        for item in found_items:
            items[key, item.id] = item
            for beside in item.claims:
                home, claim = papers.claim(beside, key)
                claims[home, claim.id] = claim
        claims.update({(key, claim.id): claim for claim in found_claims})
    return Selection(
        tuple(names),
        tuple((key, item) for (key, _), item in items.items()),
        tuple((key, claim) for (key, _), claim in claims.items()),
    )


def _no_such(name: str, papers: Shelf) -> RequestError:
    """The error for a name whose paper there is not; a lone item or claim may have been meant."""
    parts: list[tuple[str, Any]] = [(key, part) for key, paper in papers.papers.items() for part in (*paper.items, *paper.claims)]
    whole = [f"{key}/{part.id}" for key, part in parts if part.id == name]
    if whole:
        return RequestError(f"{name!r} is not the name of a paper. Did you mean {' or '.join(map(repr, whole))}?")
    return unknown("paper", name.partition("/")[0], papers.papers, "`residua reproduce` lists papers, items and claims.")


def statement(key: str, claim: Claim) -> str:
    """What a claim says: its own words, or those beside the paper's printed numbers."""
    return claim.statement or published(key).statement(claim.id)
