"""The matrix of runs that a selection needs: each addressed by what decides its result, so that none is paid for twice. Layer 4.

A run lies in `<out>/runs/<arm>-s<seed>-<address>`; the address is a hash of the resolved recipe, the fingerprint of the data and
the format of run directories. Its state is what its directory holds, so that a matrix can be killed at any place and continued:

    <run>/record.json            what the training has shown; there once it is over
    <run>/measured/<name>.json   what was measured on the finished network
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from residua import budgets, runs
from residua import recipe as recipes
from residua.claims import Arm, Ensemble, Probe
from residua.data import open_data
from residua.errors import RequestError, RunError
from residua.evidence import Record
from residua.recipe import Recipe
from residua.resolve import held_out, resolve

__all__ = ["Run", "Sources", "State", "Task", "address_of", "addressed", "execute", "read_json", "read_record"]

Run = tuple[int, str]  # the seed and address of a task, which several arms can share
State = Literal["done", "trained", "begun", "waiting"]
IGNORED = ("name", "checkpoints")  # fields of a recipe that bear on nothing that a run computes
DIGITS = 10  # of the address
LOCK_PAUSE = 1.0


class Sources:
    """Data sources by name, each opened once; what is kept of them resolves recipes."""

    def __init__(self, data_dir: str | Path | None = None) -> None:
        self.data_dir = Path(data_dir) if data_dir is not None else None
        self._opened: dict[tuple[str, int | None, int], Any] = {}

    def resolved(self, recipe: Recipe) -> tuple[Recipe, str, int]:
        """The resolved recipe, the fingerprint of its data, and the images that its test error stands on; raises `RequestError`
        where the data cannot be had."""
        key = (recipe.data.source, recipe.model.options.get("in_channels"), recipe.data.holdout)
        if key not in self._opened:
            try:
                dataset = open_data(key[0], data_dir=self.data_dir, channels=key[1], max_bad=recipe.data.max_bad)
                dataset = held_out(dataset, recipe)
                self._opened[key] = dataset, dataset.fingerprint()
            except RequestError as error:
                self._opened[key] = error
        found = self._opened[key]
        if isinstance(found, RequestError):
            raise found
        dataset, fingerprint = found
        return resolve(recipe, dataset)[0], fingerprint, len(dataset.splits[dataset.final])


@dataclass(frozen=True)
class Task:
    """One run of the matrix: what is trained (or computed, or combined), where, and what is measured on it.

    `recipe` is that of an `Arm`, resolved; None for a `Probe` or an `Ensemble`, whose `parts` are the tasks of its members.
    `num_test` is the number of images that its test error stands on, `versions` those of the papers' own measurements, by name.
    """

    arm: Arm | Ensemble | Probe
    seed: int
    budget: str
    address: str
    folder: Path
    recipe: Recipe | None = None
    measurements: tuple[str, ...] = ()
    parts: tuple[Task, ...] = field(default=())
    num_test: int = 0
    versions: Mapping[str, int] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The run's name: arm, seed, address."""
        return f"{self.arm.name}-s{self.seed}-{self.address}"

    @property
    def run(self) -> Run:
        """What is run, under whichever arm's name."""
        return self.seed, self.address

    @property
    def path(self) -> Path:
        """The run's directory: that of another arm with the same address where there is one."""
        own = self.folder / self.id
        if own.exists():
            return own
        return next(iter(sorted(self.folder.glob(f"*-s{self.seed}-{self.address}"))), own)

    @property
    def record(self) -> Path:
        """The file of what the training has shown."""
        return self.path / "record.json"

    def measured(self, name: str) -> Path:
        """The file of a measurement."""
        return self.path / "measured" / f"{name}.json"

    def state(self) -> State:
        """What the directory says."""
        if self.record.is_file():
            return "done" if all(self.has(name) for name in self.measurements) else "trained"
        return "begun" if runs.is_run(self.path) else "waiting"

    def has(self, name: str) -> bool:
        """Whether a measurement is there, or has no meaning for a training that broke off."""
        try:
            card = json.loads(self.measured(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return bool(read_json(self.record).get("broken_off"))
        same = card.get("version", 0) == self.versions.get(name, 0)
        return bool(same and card.get("allowance") == budgets.ALLOWANCE[self.budget])


def addressed(*parts: Any) -> str:
    """The address of plain values: the first digits of their hash."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:DIGITS]


def address_of(recipe: Recipe, fingerprint: str) -> str:
    """The address of a run: of its resolved recipe without what bears on nothing, its data, and the format of run directories.

    A field counts where it differs from its default, so that a new field of recipes leaves the addresses of old runs as they are.
    """
    fields = recipes.differences(Recipe(), recipe)
    values = {name: value for name, (_, value) in fields.items() if name.partition(".")[0] not in IGNORED}
    return addressed(values, fingerprint, runs.FORMAT)


def read_json(path: Path) -> dict[str, Any]:
    """The plain values of a file; none where it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_record(task: Task) -> Record | None:
    """What a run has shown, with its measurements; None while it is not over."""
    card = read_json(task.record)
    if not card:
        return None
    found = {name: read_json(task.measured(name)) for name in task.measurements}
    measured = card["measurements"] | {name: values["result"] for name, values in found.items() if values.get("result")}
    curves = {name: [(int(step), float(value)) for step, value in points] for name, points in card["curves"].items()}
    plan = card["manifest"].get("plan", "")
    return Record(task.arm.name, task.seed, card["values"], curves, measured, card["broken_off"], plan)


def execute(tasks: Sequence[Task], work: Callable[[Task], None]) -> dict[str, str]:
    """Brings every task to its end by `work`, one after another, and returns the reasons of those that failed, by id.

    This is the seam behind which runs are executed: whatever calls `work` once for each task that is not done, wherever, may take
    its place. A run that another process works at is left to it, and waited for at the end; what it leaves undone is then done
    here.
    """
    failed: dict[str, str] = {}
    waiting, patient = list(tasks), False
    while waiting:
        busy: list[Task] = []
        for task in waiting:
            if task.state() == "done":
                continue
            missing = {part.id for part in task.parts if not part.record.is_file()}
            if missing & {other.id for other in busy}:
                busy.append(task)
            if missing:  # what its parts lack is said of them
                continue
            with _claimed(task) as ours:
                if not ours:
                    busy.append(task)
                    continue
                if task.state() == "done":
                    continue
                try:
                    work(task)
                except Exception as error:  # whatever one run dies of, the others go on, and it is named at the end
                    if hasattr(error, "code"):  # a signal, after which a checkpoint was saved
                        raise
                    expected = isinstance(error, (RequestError, RunError))
                    failed[task.id] = str(error) if expected else f"{type(error).__name__}: {error}"
        if patient and len(busy) == len(waiting):
            time.sleep(LOCK_PAUSE)
        waiting, patient = busy, True
    return failed


@contextmanager
def _claimed(task: Task) -> Iterator[bool]:
    """Whether this process has the task to itself, by a file lock that ends with the process."""
    folder = task.folder.parent / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / f"s{task.seed}-{task.address}").open("a")
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror or error}.") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
