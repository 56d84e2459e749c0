"""From what is named to the runs that are made: their tasks, what they cost, and in which order they decide most. Layer 4."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from residua import budgets, costing, machine, runs
from residua.claims import Arm, Claim, Ensemble, Item, Probe
from residua.errors import RequestError
from residua.matrix import Run, Sources, Task, address_of, addressed, read_json
from residua.scoring import chosen_device
from residua.selection import Selection, Shelf
from residua.supposing import obstacle

__all__ = ["Planned", "fitting", "ordered", "planned"]


@dataclass(frozen=True)
class Planned:
    """The tasks of a selection by the name of their arm, in the order of their seeds; `left_out` says why an arm has none."""

    selection: Selection
    budget: str
    tasks: dict[str, list[Task]]
    left_out: dict[str, str]

    @cached_property
    def costs(self) -> dict[str, float]:
        """The forecast seconds of each task by its id, as things stand when this is first asked."""
        return {
            task.id: costing.seconds_of(task.arm, self.budget, _missing(task), _pace(task), _behind(task)) for task in self.all()
        }

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

    @cached_property
    def settling(self) -> list[Claim]:
        """The claims that some runs of this plan could settle."""
        seeds = {name: len(tasks) for name, tasks in self.tasks.items()}
        return [claim for _, claim in self.selection.claims if not obstacle(claim, self.budget, seeds, self.left_out)]

    @cached_property
    def useful(self) -> set[Run]:
        """The runs on which a claim that could be settled, or an item, stands."""
        parts: list[Claim | Item] = [*self.settling, *(item for _, item in self.selection.items)]
        return {task.run for part in parts for task in self.of(part)}

    def cost(self, tasks: Iterable[Task]) -> float:
        """The forecast seconds of those that are not done; what several arms share is paid for once."""
        return sum({task.run: self.costs[task.id] for task in tasks if task.state() != "done"}.values())


def planned(selection: Selection, papers: Shelf, budget: str, out: Path, sources: Sources, seeds: int | None = None) -> Planned:
    """The tasks that a selection needs at a budget; arms that have none are named with the reason.

    Raises `RequestError` for a measurement or an arm that there is not.
    """
    tasks: dict[str, list[Task]] = {}
    left_out: dict[str, str] = {}
    for name, named in selection.needs(papers).items():
        arm = papers.arm(name)
        measurements = budgets.measured_at(arm, budget, named)
        for measurement in measurements:
            papers.known_measurement(measurement)
        if reason := budgets.unavailable(arm, budget):
            left_out[name] = reason
            continue
        try:
            versions = {one: papers.measurements[one].version for one in measurements if one in papers.measurements}
            tasks[name] = _tasks(arm, measurements, versions, budget, out / "runs", sources, seeds, tasks)
        except RequestError as error:
            left_out[name] = str(error)
    return Planned(selection, budget, tasks, left_out)


def ordered(plan: Planned) -> list[Task]:
    """All tasks in the order in which most claims are decided soonest: again and again the claim, or the two claims, whose
    missing runs cost least for each claim that is decided with them (claims that share runs cost little together); then the
    claims that lack an arm at this budget, then the items in the same way, then the rest, with the claims that no run at this
    budget could settle. Members of an ensemble come before it.
    """
    return _chosen(plan, math.inf)


def fitting(plan: Planned, seconds: float) -> list[Task]:
    """The tasks in that order, as far as whole claims (then items) fit into `seconds`."""
    return _chosen(plan, seconds)


def _chosen(plan: Planned, seconds: float) -> list[Task]:
    lacking = [claim for claim in plan.settling if plan.left_out.keys() & set(claim.arms)]
    whole = [claim for claim in plan.settling if claim not in lacking]
    costs: dict[Run, float] = {}
    for task in plan.all():
        costs[task.run] = max(costs.get(task.run, 0.0), plan.costs[task.id] if task.state() != "done" else 0.0)
    chosen: dict[str, Task] = {}
    for parts in (whole, lacking, [item for _, item in plan.selection.items]):
        needed = [tasks for part in parts if (tasks := plan.of(part))]
        for number in _densest([{task.run for task in tasks} for tasks in needed], costs, seconds):
            for task in needed[number]:
                chosen[task.id] = task
                seconds -= costs[task.run]
                costs[task.run] = 0.0
    if math.isinf(seconds):
        chosen.update({task.id: task for task in plan.all() if task.id not in chosen})
    return list(chosen.values())


def _densest(parts: Sequence[set[Run]], costs: Mapping[Run, float], seconds: float) -> list[int]:
    """The numbers of the parts in the order that brings most of them to their end soonest, as far as they fit."""
    runs = sorted({run for part in parts for run in part if costs[run]})
    price = torch.tensor([costs[run] for run in runs], dtype=torch.float64)
    missing = torch.tensor([[run in part for run in runs] for part in parts], dtype=torch.float64).view(len(parts), len(runs))
    waiting = torch.arange(len(parts))
    found: list[int] = []
    while len(waiting):
        own = missing[waiting]
        unions = torch.maximum(own[:, None], own[None]).flatten(0, 1)
        together, freed = unions @ price, (1 - unions) @ own.T == 0
        rates = torch.where(together <= seconds, together / freed.sum(1), math.inf)
        best = int(rates.argmin())
        if math.isinf(rates[best]):
            break
        now = waiting[freed[best]]
        found += now[(missing[now] @ price).argsort(stable=True)].tolist()
        seconds -= float(together[best])
        missing *= 1 - unions[best]
        waiting = waiting[~freed[best]]
    return found


def _tasks(
    arm: Arm | Ensemble | Probe,
    measurements: tuple[str, ...],
    versions: Mapping[str, int],
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
        address = address_of(recipe, fingerprint)
        tasks.append(Task(arm, seed, budget, address, folder, recipe, measurements, num_test=num_test, versions=versions))
    return tasks


def _missing(task: Task) -> int:
    """Measurements that are not there yet."""
    return sum(not task.has(name) for name in task.measurements) if task.record.is_file() else len(task.measurements)


def _behind(task: Task) -> float:
    """The share of its training that is over."""
    if task.record.is_file():
        return 1.0
    return runs.open_run(task.path).trained if runs.is_run(task.path) else 0.0


def _pace(task: Task) -> float | None:
    """Seconds an image in a run of this arm on such a machine that is over: any seed's."""
    for path in sorted(task.folder.glob(f"{task.arm.name}-s*-*/record.json")) if isinstance(task.arm, Arm) else ():
        card = read_json(path)
        here = card.get("manifest", {}).get("hardware") == machine.hardware(chosen_device(None))
        if here and card.get("budget") == task.budget and "seconds_per_image" in card["values"]:
            return float(card["values"]["seconds_per_image"])
    return None
