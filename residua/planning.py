"""From what is named to the runs that are made: their tasks, what they cost, and in which order they decide most. Layer 4."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from residua import budgets, costing
from residua.claims import Arm, Claim, Ensemble, Item, Probe
from residua.errors import RequestError
from residua.matrix import Sources, Task, address_of, addressed, read_json
from residua.selection import Selection, Shelf

__all__ = ["Planned", "fitting", "ordered", "planned"]


@dataclass(frozen=True)
class Planned:
    """The tasks of a selection by the name of their arm, in the order of their seeds; `left_out` says why an arm has none."""

    selection: Selection
    budget: str
    tasks: dict[str, list[Task]]
    left_out: dict[str, str]
    costs: dict[str, float] = field(default_factory=dict)

    def all(self) -> list[Task]:
        """Every task once, members of ensembles before these."""
        return [task for tasks in self.tasks.values() for task in tasks]

    def of(self, part: Claim | Item) -> list[Task]:
        """The tasks that a claim or an item needs, with those of its ensembles' members."""
        found: dict[str, Task] = {}
        for name in part.arms:
            for task in self.tasks.get(name, ()):
                found.update({one.id: one for one in (*task.parts, task)})
        return list(found.values())

    def cost(self, tasks: Iterable[Task]) -> float:
        """The forecast seconds of those that are not done; what several arms share is paid for once."""
        return sum({(task.seed, task.address): self.costs[task.id] for task in tasks if task.state() != "done"}.values())


def planned(selection: Selection, papers: Shelf, budget: str, out: Path, sources: Sources, seeds: int | None = None) -> Planned:
    """The tasks that a selection needs at a budget; arms that have none are named with the reason.

    Raises `RequestError` for a measurement or an arm that there is not.
    """
    tasks: dict[str, list[Task]] = {}
    left_out: dict[str, str] = {}
    costs: dict[str, float] = {}
    for name, measurements in selection.needs(papers).items():
        for measurement in measurements:
            papers.known_measurement(measurement)
        arm = papers.arm(name)
        if reason := budgets.unavailable(arm, budget):
            left_out[name] = reason
            continue
        try:
            made = _tasks(arm, measurements, budget, out / "runs", sources, seeds, tasks)
            costs.update({task.id: costing.seconds_of(arm, budget, _missing(task), _pace(task)) for task in made})
            tasks[name] = made
        except RequestError as error:
            left_out[name] = str(error)
    return Planned(selection, budget, tasks, left_out, costs)


def ordered(plan: Planned) -> list[Task]:
    """All tasks in the order in which most claims are decided soonest: again and again the claim whose missing runs cost least,
    then the items in the same way, then the rest. Members of an ensemble come before it."""
    return _greedy(plan, [*(claim for _, claim in plan.selection.claims)], math.inf)


def fitting(plan: Planned, seconds: float) -> list[Task]:
    """The tasks in that order, as far as whole claims (then items) fit into `seconds`."""
    return _greedy(plan, [*(claim for _, claim in plan.selection.claims)], seconds)


def _greedy(plan: Planned, claims: Sequence[Claim], seconds: float) -> list[Task]:
    chosen: dict[str, Task] = {}
    left = seconds
    paid: set[tuple[int, str]] = set()
    needs = {task.id: plan.costs[task.id] if task.state() != "done" else 0.0 for task in plan.all()}

    def price(part: Sequence[Task]) -> float:
        return sum({one: needs[task.id] for task in part if (one := (task.seed, task.address)) not in paid}.values())

    for parts in ([plan.of(claim) for claim in claims], [plan.of(item) for _, item in plan.selection.items]):
        waiting = [part for part in parts if part]
        while waiting:
            prices = [price(part) for part in waiting]
            cheapest = min(range(len(waiting)), key=prices.__getitem__)
            if prices[cheapest] > left:
                break
            left -= prices[cheapest]
            added = waiting.pop(cheapest)
            chosen.update({task.id: task for task in added})
            paid.update((task.seed, task.address) for task in added)
    if math.isinf(seconds):
        chosen.update({task.id: task for task in plan.all() if task.id not in chosen})
    return list(chosen.values())


def _tasks(
    arm: Arm | Ensemble | Probe,
    measurements: tuple[str, ...],
    budget: str,
    folder: Path,
    sources: Sources,
    seeds: int | None,
    found: dict[str, list[Task]],
) -> list[Task]:
    if isinstance(arm, Ensemble):
        without = [member for member in arm.members if member not in found]
        if without:
            raise RequestError(f"It combines {', '.join(without)}, which is left out.")
        groups = list(zip(*(found[member] for member in arm.members)))
        return [
            Task(arm, seed, budget, addressed("ensemble", arm.protocol, [part.address for part in parts]), folder,
                 parts=tuple(parts), num_test=parts[0].num_test)
            for seed, parts in enumerate(groups)
        ]  # fmt: skip
    count = budgets.seeds_at(arm, budget, seeds)
    if isinstance(arm, Probe):
        return [Task(arm, seed, budget, addressed("probe", arm.name, arm.version, seed, budget), folder) for seed in range(count)]
    tasks: list[Task] = []
    for seed in range(count):
        recipe, fingerprint, num_test = sources.resolved(budgets.recipe_at(arm, budget, seed))
        task = Task(arm, seed, budget, address_of(recipe, fingerprint), folder, recipe, measurements, num_test=num_test)
        tasks.append(task)
    return tasks


def _missing(task: Task) -> int:
    """Measurements that are not there yet."""
    return sum(not task.has(name) for name in task.measurements) if task.record.is_file() else len(task.measurements)


def _pace(task: Task) -> float | None:
    """Seconds an image in a run of this arm that is over: any seed's."""
    for path in sorted(task.folder.glob(f"{task.arm.name}-s*-*/record.json")) if isinstance(task.arm, Arm) else ():
        card = read_json(path)
        if card.get("budget") == task.budget and "seconds_per_image" in card["values"]:
            return float(card["values"]["seconds_per_image"])
    return None
