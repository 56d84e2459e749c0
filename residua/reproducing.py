"""Reproducing papers: what is named, run at a budget, decided, and written down as a page and as plain values. Layer 5.

    <out>/runs/                one directory a run (`residua.matrix`); shared by all that names its arm, never made twice
    <out>/reproduction.json    claims with their verdicts, items with measured beside printed numbers
    <out>/reproduction.html    the same to be read: one self-contained file

The same command continues what was interrupted.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from residua import budgets, keeping, machine, matrix, planning, reproduction_page, runs
from residua.claims import Arm, Ensemble
from residua.deciding import Known, claim_entry, item_entry, outcome_of
from residua.errors import RequestError, RunError
from residua.evidence import Outcome
from residua.matrix import Sources, Task, read_record
from residua.planning import Planned
from residua.recipe import differences
from residua.record import Listener, Silent
from residua.reproduction_facts import completed
from residua.running import Settings, carry_out
from residua.scoring import chosen_device
from residua.selection import Shelf, select, shelf
from residua.version import __version__
from residua.wording import counted, duration

__all__ = ["OUT", "Reproduction", "Unwatched", "Watcher", "reproduce"]

OUT = Path("reproduction")


class Watcher(Listener, Protocol):
    """Who watches a reproduction: the listener of each training, which is also told which run begins."""

    def task(self, name: str, done: int, total: int, left: float) -> None:
        """The run called `name` begins: those that are done, all of them, and the forecast seconds to the end."""


class Unwatched(Silent):
    """A watcher that says nothing."""

    def task(self, name: str, done: int, total: int, left: float) -> None:
        """Says nothing."""


@dataclass(frozen=True)
class Reproduction:
    """What came out: `claims` and `items` as plain values (`residua.deciding`), the reasons of runs that failed by their id, and
    the page and the JSON file that hold the same."""

    document: dict[str, Any]
    page: Path

    @property
    def claims(self) -> list[dict[str, Any]]:
        """One entry a claim."""
        return list(self.document["claims"])

    @property
    def failed(self) -> dict[str, str]:
        """Why runs failed, by their id."""
        return dict(self.document["failed"])


def reproduce(
    names: Sequence[str] | str = (),
    *,
    budget: str = "small",
    minutes: float | None = None,
    seeds: int | None = None,
    out: str | Path = OUT,
    data_dir: str | Path | None = None,
    device: str | None = None,
    workers: int | None = None,
    keep: str | Path | None = None,
    watcher: Watcher | None = None,
    papers: Shelf | None = None,
) -> Reproduction:
    """Runs what is named ("he2015", "he2015/fig6", "he2016/table1", ...; nothing: everything) and all that it needs, and decides.

    `budget`: "smoke", "small" or "full" (`residua.budgets`). `minutes`: only the runs that are forecast to fit, those that decide
    most claims first. `seeds`: another number of seeds than the budget's. `keep`: a folder for the small JSON file that is kept
    of each run; what is kept there already, of another machine perhaps, is not made again unless its weights are asked for.
    `papers`: others than those of the catalogue.

    Raises `RequestError` for a wrong request before any work, and where no run that is needed can be made here.
    """
    start = time.perf_counter()
    budgets.check(budget)
    if minutes is not None and not 0 < minutes < 1e7:
        raise RequestError(f"minutes must be above 0, not {minutes}.")
    if seeds is not None and seeds < 1:
        raise RequestError(f"There must be at least one seed, not {seeds}.")
    watcher = watcher or Unwatched()
    papers = papers if papers is not None else shelf()
    selection = select([names] if isinstance(names, str) else names, papers)
    folder = Path(out)
    plan = planning.planned(selection, papers, budget, folder, Sources(data_dir), seeds)
    if plan.left_out and not plan.tasks and not any(claim.exact for _, claim in selection.claims) and not selection.items:
        raise RequestError(next(iter(plan.left_out.values())))
    runs.check_writable(folder)
    keeping.make_room(plan.all())
    if keep is not None:
        runs.check_writable(Path(keep), "--keep")
        restored = keeping.restore(plan.all(), Path(keep))
        if restored:
            watcher.note(f"{counted(restored, 'run')} kept in {keep} and not made again.")
    tasks = planning.ordered(plan) if minutes is None else planning.fitting(plan, 60 * minutes)
    watcher.note(_announced(plan, tasks, budget))
    settings = Settings(papers.measurements, Path(data_dir) if data_dir else None, device, workers, watcher)
    end = None if minutes is None else start + 60 * minutes
    failed = _executed(plan, tasks, settings, watcher, end, Path(keep) if keep is not None else None)
    known = _known(plan, failed, minutes)
    outcomes = {f"{key}/{claim.id}": outcome_of(claim, known) for key, claim in selection.claims}
    if keep is not None:
        keeping.keep(plan.all(), Path(keep))
        keeping.keep_exact({name: outcomes[name] for name in _exact(plan)}, Path(keep))
    places = [*(["--out", str(folder)] if folder != OUT else []), *(["--data-dir", str(data_dir)] if data_dir else [])]
    document = _document(plan, known, outcomes, failed, folder, seeds, places) | {
        "seconds": round(time.perf_counter() - start, 1)
    }
    return _written(completed(document, papers), folder)


def _executed(
    plan: Planned, tasks: Sequence[Task], settings: Settings, watcher: Watcher, end: float | None, keep: Path | None
) -> dict[str, str]:
    """Runs the tasks, and keeps each in the folder `keep` as it is over; with an `end`, those that would not be over by then are
    not begun. Forecasts are scaled by what the runs so far took."""
    forecast, spent = 0.0, 0.0

    def work(task: Task) -> None:
        nonlocal forecast, spent
        factor = spent / forecast if forecast else 1.0
        began = time.perf_counter()
        if end is not None and began + factor * plan.costs[task.id] > end:
            return
        done = sum(other.state() == "done" for other in tasks)
        watcher.task(task.id, done, len(tasks), factor * plan.cost(tasks))
        carry_out(task, settings)
        if keep is not None:
            keeping.keep([task], keep)
        forecast, spent = forecast + plan.costs[task.id], spent + time.perf_counter() - began

    return matrix.execute(tasks, work)


def _known(plan: Planned, failed: Mapping[str, str], minutes: float | None) -> Known:
    """What the runs that are over say."""
    found = [(task, record) for task in plan.all() if (record := read_record(task)) is not None]
    left_out = dict(plan.left_out)
    for task in plan.all():
        if task.id in failed:
            left_out[task.arm.name] = failed[task.id]
        elif any(not part.record.is_file() for part in task.parts):
            left_out[task.arm.name] = "the runs that it combines are not all there"
        elif minutes is not None and not task.record.is_file():
            forecast = duration(plan.costs[task.id])
            left_out[task.arm.name] = (
                f"its run did not fit into the time (forecast {forecast})"
                if task.run in plan.useful
                else "no claim could be settled with its run"
            )
    ids = {(task.arm.name, task.seed): task.id for task, _ in found}
    num_test = {task.arm.name: task.num_test for task, _ in found}
    return Known(plan.budget, [record for _, record in found], num_test, ids, left_out)


def _exact(plan: Planned) -> list[str]:
    return [f"{key}/{claim.id}" for key, claim in plan.selection.claims if claim.exact]


def _announced(plan: Planned, tasks: Sequence[Task], budget: str) -> str:
    todo = [task for task in tasks if task.state() != "done"]
    whole = len({task.run for task in tasks})  # several arms can share one
    there = whole - len({task.run for task in todo})
    claims, items = len(plan.selection.claims), len(plan.selection.items)
    text = f"{counted(claims, 'claim')} and {counted(items, 'item')} at the budget {budget}: {counted(whole, 'run')}"
    text += f", {there} of them there already" if there else ""
    text += f"; about {duration(plan.cost(todo))} (within a factor of two)." if todo else "."
    for reason, arms in _grouped(plan.left_out).items():
        text += f"\nLeft out: {', '.join(arms[:4])}{f' and {len(arms) - 4} more' if len(arms) > 4 else ''}: {reason}"
    return text


def _grouped(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(name)
    return groups


# ---------------------------------------------------------------------------------------------------------------- document


def _document(
    plan: Planned,
    known: Known,
    outcomes: Mapping[str, Outcome],
    failed: Mapping[str, str],
    folder: Path,
    seeds: int | None,
    places: Sequence[str],
) -> dict[str, Any]:
    selection = plan.selection

    def again(*names: str) -> str:
        """The command that repeats this."""
        options = ["--budget", plan.budget, *(["--seeds", str(seeds)] if seeds else []), *places]
        return shlex.join(["residua", "reproduce", *names, *options])

    claims = [
        claim_entry(key, claim, known, outcomes[f"{key}/{claim.id}"]) | {"again": again(f"{key}/{claim.id}")}
        for key, claim in selection.claims
    ]
    items = [item_entry(key, item, known) | {"again": again(f"{key}/{item.id}")} for key, item in selection.items]
    return {
        "version": __version__, "budget": plan.budget, "names": list(selection.names), "out": str(folder),
        "again": again(*selection.names), "claims": claims, "items": items,
        "runs": [_run_entry(task, places) for task in plan.all() if task.record.is_file()], "left_out": dict(known.left_out),
        "failed": dict(failed), "hardware": machine.hardware(chosen_device(None)), "versions": machine.versions(),
    }  # fmt: skip


def _run_entry(task: Task, places: Sequence[str]) -> dict[str, Any]:
    """One run: what it was, what it showed, how it departed from the protocol, from which sources and on which processor it was
    made (None where that is not known), and the command that repeats it, or why there is none."""
    card = keeping.card_of(task)
    members = ", ".join(part.id for part in task.parts)
    return {
        "id": task.id, "arm": task.arm.name, "seed": task.seed, "values": card["values"], "broken_off": card["broken_off"],
        "departures": departures(task), "departs": _departs(task), "left_out": card["left_out"],
        "git": card["manifest"].get("git"), "processor": card["manifest"].get("hardware", {}).get("processor"),
        "verify": "" if members else shlex.join(["residua", "reproduce", "--verify", task.id, *places]),
        "unrepeatable": f"it combines networks whose weights are not kept; repeat {members}" if members else "",
    }  # fmt: skip


def _departs(task: Task) -> str:
    """How a run departs from the paper beyond what the fields of recipes tell."""
    if isinstance(task.arm, Arm) and task.budget != "full":
        return task.arm.stand_in
    return task.arm.departs if isinstance(task.arm, (Arm, Ensemble)) else ""


def departures(task: Task) -> dict[str, list[Any]]:
    """The fields of the recipe that differ from the paper's protocol: [there, here]."""
    if not isinstance(task.arm, Arm):
        return {}
    here = budgets.recipe_at(task.arm, task.budget, task.seed)
    found = differences(replace(task.arm.recipe, seed=task.seed), here)
    return {name: [there, now] for name, (there, now) in found.items()}


def _written(document: dict[str, Any], folder: Path) -> Reproduction:
    page = folder / "reproduction.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
        runs.write_atomically(folder / "reproduction.json", text)
        runs.write_atomically(page, reproduction_page.page(document))
    except OSError as error:
        raise RunError(f"The reproduction cannot be written to {folder}: {error.strerror or error}.") from error
    return Reproduction(document, page)
