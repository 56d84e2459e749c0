"""Results that are kept: one small JSON a run (recipe, manifest, metrics, measurements; no weights), and what they say. Layer 4.

    results/<budget>/<run>.json    what `residua reproduce --keep` writes: `record.json` of the run with its measurements
    results/exact.json             what structure and arithmetic have settled, by claim

A kept run speaks for its arm as long as the arm's recipe is the one it was made with.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from residua import budgets, machine, runs
from residua import recipe as recipes
from residua.claims import Arm, Ensemble, Outcome, Probe
from residua.deciding import Known, plain
from residua.errors import RunError
from residua.evidence import BUDGETS, Record
from residua.matrix import Run, Task, addressed, read_json
from residua.recipe import Recipe
from residua.resolve import IMPLIED
from residua.runs import write_atomically
from residua.selection import Shelf

__all__ = [
    "card_of", "exact_outcomes", "keep", "keep_exact", "kept_cards", "known_from", "make_room", "own_cards", "restore", "shipped",
]  # fmt: skip


KEPT = {"result": "measurements", "left_out": "left_out"}  # what the file of a measurement says, and where a card has it


def shipped() -> Path | None:
    """The results that come with the source tree, if this is one."""
    folder = Path(__file__).resolve().parent.parent / "results"
    return folder if folder.is_dir() else None


def card_of(task: Task) -> dict[str, Any]:
    """What is kept of a run that is over: its record, and its measurements with the versions of those that a paper defines."""
    card = read_json(task.record)
    found = {name: read_json(task.measured(name)) for name in task.measurements}
    measured = {name: values["result"] for name, values in found.items() if values.get("result")}
    left_out = {name: values["left_out"] for name, values in found.items() if values.get("left_out")}
    own = {"id": task.id, "arm": task.arm.name}  # the run may have been made for another arm of the same recipe
    versions = {name: values["version"] for name, values in found.items() if values.get("version")}
    return card | own | {"measurements": card["measurements"] | measured, "left_out": left_out, "versions": versions}


def keep(tasks: Iterable[Task], folder: Path) -> list[Path]:
    """Writes the runs that are over to `folder`, with what was measured on them earlier; returns the files."""
    written = []
    for task in tasks:
        if not task.record.is_file():
            continue
        path = folder / task.budget / f"{task.id}.json"
        card = card_of(task)
        with _alone(path.parent):
            earlier = read_json(path)
            if earlier.get("values") == card["values"]:  # the same training: what else was measured on it holds
                card |= {name: earlier.get(name, {}) | card[name] for name in ("measurements", "versions")}
            _write(path, card)
        written.append(path)
    return written


def make_room(tasks: Sequence[Task]) -> None:
    """Removes what `restore` put back of runs of which something is asked now that needs weights, so that they are made here."""
    unsettled = {task.run for task in tasks if task.state() != "done"}
    unsettled |= {part.run for task in tasks if task.run in unsettled for part in task.parts}
    for task in tasks:
        if task.run in unsettled and task.recipe is not None and task.record.is_file() and not runs.is_run(task.path):
            shutil.rmtree(task.path)


def restore(tasks: Sequence[Task], folder: Path) -> int:
    """Puts the runs that were made elsewhere and kept in `folder` into their directories, without weights; returns how many.

    Only those of which nothing is asked any more that needs weights: a measurement under any of their arms' names, or an ensemble
    that is not kept. Times that were taken on another processor, or on one that is not known, are left where they are: they say
    nothing of this machine. What has begun in its directory is left as it is.
    """
    cards = _by_run(tasks, folder)
    unsettled = {task.run for task in tasks if not _settled(task, cards.get(task.run))}
    unsettled |= {part.run for task in tasks if task.run in unsettled for part in task.parts}
    waiting = {task.run: task for task in reversed(tasks) if task.run not in unsettled and task.state() == "waiting"}
    for run, task in waiting.items():
        card = cards[run]
        asked = {name: other for other in tasks if other.run == run for name in other.measurements}
        for name, other in asked.items():
            if kept := {one: card[few][name] for one, few in KEPT.items() if name in card[few]}:
                about = {"name": name, "allowance": budgets.ALLOWANCE[task.budget], "version": other.versions.get(name, 0)}
                _write(task.measured(name), about | kept)
        own = {name: value for name, value in card["measurements"].items() if name not in asked}
        _write(
            task.record,
            {name: value for name, value in card.items() if name not in ("left_out", "versions")} | {"measurements": own},
        )
    return len(waiting)


def _by_run(tasks: Sequence[Task], folder: Path) -> dict[Run, dict[str, Any]]:
    """The kept cards of tasks; one training can be kept under several arms' names, with what was measured for each."""
    cards: dict[Run, dict[str, Any]] = {}
    for task in tasks:
        if card := read_json(folder / task.budget / f"{task.id}.json"):
            other = cards.get(task.run, {})
            cards[task.run] = card | {name: other.get(name, {}) | card.get(name, {}) for name in (*KEPT.values(), "versions")}
    return cards


def _settled(task: Task, card: Mapping[str, Any] | None) -> bool:
    """Whether a kept run shows all that is asked of a task."""
    if card is None or (isinstance(task.arm, Probe) and task.arm.timed and not _taken_here(card)):
        return False
    there = card["measurements"].keys() | card["left_out"].keys()
    versions = {name: card["versions"].get(name, 1) == version for name, version in task.versions.items()}
    return all(name in there and versions.get(name, True) for name in task.measurements) or bool(card["broken_off"])


def _taken_here(card: Mapping[str, Any]) -> bool:
    return bool(card["manifest"].get("hardware", {}).get("processor") == machine.processor())


def keep_exact(outcomes: Mapping[str, Outcome], folder: Path) -> Path:
    """Adds what was settled without runs, by "paper/claim"."""
    path = folder / "exact.json"
    entries = {
        name: {"verdict": outcome.verdict, "why": outcome.why, "numbers": plain(outcome.numbers)}
        for name, outcome in outcomes.items()
    }
    with _alone(folder):
        _write(path, dict(sorted((read_json(path) | entries).items())))
    return path


def exact_outcomes(folder: Path | None) -> dict[str, Outcome]:
    """What was settled without runs, by "paper/claim"."""
    entries = read_json(folder / "exact.json") if folder else {}
    return {name: Outcome(entry["verdict"], entry["why"], entry["numbers"]) for name, entry in entries.items()}


def kept_cards(folder: Path | None) -> list[dict[str, Any]]:
    """All runs that are kept in a folder, in the order of their names."""
    if folder is None:
        return []
    return [card for budget in BUDGETS for path in sorted((folder / budget).glob("*.json")) if (card := read_json(path))]


def own_cards(out: Path) -> list[dict[str, Any]]:
    """All runs that are over in the folder of a reproduction."""
    cards = []
    for path in sorted((out / "runs").glob("*/record.json")):
        card = read_json(path)
        files = sorted((path.parent / "measured").glob("*.json"))
        measured = {file.stem: values["result"] for file in files if (values := read_json(file)).get("result")}
        versions = {file.stem: version for file in files if (version := read_json(file).get("version"))}
        if card:
            cards.append(card | {"measurements": card["measurements"] | measured, "versions": versions})
    return cards


def known_from(cards: Iterable[Mapping[str, Any]], papers: Shelf, budget: str) -> Known:
    """What kept runs say at one budget; those of arms that have changed since, or are gone, say nothing, nor do measurements that
    a paper has defined anew."""
    records: dict[tuple[str, int], Record] = {}
    ids: dict[tuple[str, int], str] = {}
    num_test: dict[str, int] = {}
    speaking = [card for card in cards if card["budget"] == budget and speaks(card, papers)]
    trained = {card["id"].rpartition("-s")[2] for card in speaking}  # seed and address, under whichever arm's name
    for card in speaking:
        key = (card["arm"], card["seed"])
        if key in records or not {part.rpartition("-s")[2] for part in card["parts"]} <= trained:
            continue
        curves = {name: [(int(step), float(value)) for step, value in points] for name, points in card["curves"].items()}
        measured = {name: value for name, value in card["measurements"].items() if _current(name, card, papers)}
        records[key] = Record(*key, card["values"], curves, measured, card["broken_off"], card["manifest"].get("plan", ""))
        ids[key], num_test[card["arm"]] = card["id"], card["num_test"]
    left_out = {name: reason for name, arm in papers.arms.items() if (reason := budgets.unavailable(arm, budget))}
    return Known(budget, list(records.values()), num_test, ids, left_out)


def speaks(card: Mapping[str, Any], papers: Shelf) -> bool:
    """Whether a kept run is one of an arm as it is now."""
    arm = papers.arms.get(card["arm"])
    if isinstance(arm, Arm):
        if card["recipe"] is None or budgets.unavailable(arm, card["budget"]):
            return False
        return fits(budgets.recipe_at(arm, card["budget"], card["seed"]), _recipe(json.dumps(card["recipe"])))
    if isinstance(arm, Probe):
        return bool(card["address"] == addressed("probe", arm.name, arm.version, card["seed"], card["budget"]))
    if not isinstance(arm, Ensemble) or [part.rpartition("-s")[0] for part in card["parts"]] != list(arm.members):
        return False
    return bool(card["address"] == addressed("ensemble", arm.protocol, [part.rpartition("-")[2] for part in card["parts"]]))


def _current(name: str, card: Mapping[str, Any], papers: Shelf) -> bool:
    """Whether a measurement is that of this version; those that were kept before versions were are of the first."""
    own = papers.measurements.get(name)
    return own is None or own.version == card.get("versions", {}).get(name, 1)


@cache
def _recipe(text: str) -> Recipe:
    return recipes.from_dict(json.loads(text), "a kept recipe")


def fits(wanted: Recipe, resolved: Recipe) -> bool:
    """Whether a resolved recipe is one that `wanted` leads to: equal but for the fields that it leaves to the data."""
    for name, (asked, _) in recipes.differences(wanted, resolved).items():
        left_open = asked is None or (name in ("augment.crop", "model.name") and asked == "auto")
        if name.startswith("model.options."):  # an option that the arm does not name is another network's, but for the data's own
            left_open = asked is None and name.removeprefix("model.options.") in IMPLIED
        if not left_open and not name.startswith("checkpoints.") and name != "name":
            return False
    return True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other processes from the files of a folder, which are read, added to and written, until the end."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror or error}.") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write(path: Path, card: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}" for name, value in card.items())
        write_atomically(path, "{\n" + ",\n".join(lines) + "\n}\n")  # a line a field: curves have hundreds of points
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}.") from error
