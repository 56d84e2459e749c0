"""What claims and items cost on this machine at each budget: the runs that they need, each counted once. Layer 4."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from residua import budgets, costing
from residua.claims import Arm, Claim, Ensemble, Item, NotAttempted
from residua.evidence import Record
from residua.matrix import address_of, addressed
from residua.selection import Shelf
from residua.supposing import obstacle

__all__ = ["Prices"]


@dataclass(frozen=True)
class Prices:
    """The prices of what stands on a shelf. Arms of one recipe are one run, whatever they are called; what has been asked once is
    remembered."""

    books: Shelf
    _runs: dict[tuple[str, str], str] = field(default_factory=dict, repr=False)
    _obstacles: dict[tuple[int, str], str] = field(default_factory=dict, repr=False)

    def cost(self, part: Claim | Item, budget: str) -> float | None:
        """The forecast seconds of all runs that a claim or an item needs; None where none of them has a form at the budget, and
        where none could settle the claim. Of one that is never attempted the runs at full are counted, if it names any. Arms
        without a form are left out."""
        never = isinstance(part, Claim) and isinstance(part.rule, NotAttempted)
        if not part.arms:
            return None if never else 0.0
        if isinstance(part, Claim) and not (never and budget == "full") and self.obstacle(part, budget):
            return None
        prices = []
        for name, seeds in self.runs(part, budget).values():
            arm = self.books.arm(name)
            measured = len(part.measurements) if isinstance(arm, Arm) else 0
            prices.append(seeds * costing.seconds_of(arm, budget, measured))
        return round(sum(prices), 1) if prices else None

    def obstacle(self, claim: Claim, budget: str) -> str:
        """Why no runs at a budget could settle a claim; "" where some could."""
        key = (id(claim), budget)
        if key not in self._obstacles:
            left_out = {name: reason for name in claim.arms if (reason := self._without(name, budget))}
            seeds = {name: self._seeds(name, budget) for name in claim.arms if name not in left_out}
            self._obstacles[key] = obstacle(claim, budget, seeds, left_out)
        return self._obstacles[key]

    def runs(self, part: Claim | Item, budget: str) -> dict[str, tuple[str, int]]:
        """The runs that a part needs by what tells them apart: the name of an arm that they are of, and how many seeds."""
        found: dict[str, tuple[str, int]] = {}
        for name in part.arms:
            arm = self.books.arm(name)
            for one in (*(arm.members if isinstance(arm, Ensemble) else ()), name):
                if run := self._run(one, budget):
                    found[run] = (one, max(self._seeds(one, budget), found.get(run, ("", 0))[1]))
        return found

    def there(self, records: Iterable[Record], budget: str) -> set[tuple[str, int]]:
        """The runs and seeds of records, which may stand under any of their arms' names."""
        return {(self._run(record.arm, budget), record.seed) for record in records if record.arm in self.books.arms}

    def _run(self, name: str, budget: str) -> str:
        """What tells the runs of an arm from those of others, whatever their seed; "" where it has none."""
        if (name, budget) not in self._runs:
            self._runs[name, budget] = "" if self._without(name, budget) else self._addressed(name, budget)
        return self._runs[name, budget]

    def _addressed(self, name: str, budget: str) -> str:
        arm = self.books.arm(name)
        if isinstance(arm, Arm):
            return address_of(budgets.recipe_at(arm, budget, 0), "")
        if isinstance(arm, Ensemble):
            return addressed("ensemble", arm.protocol, [self._run(member, budget) for member in arm.members])
        return addressed("probe", name)

    def _without(self, name: str, budget: str) -> str:
        """Why an arm has no run; "" where it has."""
        arm = self.books.arm(name)
        members = arm.members if isinstance(arm, Ensemble) else ()
        without = [member for member in members if budgets.unavailable(self.books.arm(member), budget)]
        return f"it combines {', '.join(without)}, which is left out" if without else budgets.unavailable(arm, budget)

    def _seeds(self, name: str, budget: str) -> int:
        arm = self.books.arm(name)
        if isinstance(arm, Ensemble):
            return min(budgets.seeds_at(self.books.arm(member), budget) for member in arm.members)
        return budgets.seeds_at(arm, budget)
