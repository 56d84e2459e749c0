"""A kept run repeated, whole or its beginning, and held against what was kept, for anyone who doubts a number. Layer 5."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from residua import keeping, runs
from residua import recipe as recipes
from residua.comparing import binomial_error
from residua.data import open_data
from residua.dataset import ArraySamples
from residua.errors import RequestError, RunError, unknown
from residua.remeasuring import TOLERANCE, Held, Verdict, computed_again, measured_again, not_compared
from residua.reproducing import OUT, Unwatched, Watcher
from residua.resolve import held_out
from residua.rules import named
from residua.running import Settings
from residua.selection import Shelf, shelf
from residua.step import NonFiniteLoss
from residua.training import train

__all__ = ["Verification", "verify"]

MINUTES = 5.0
FIRST = 10  # lines within which rounding cannot have grown much
CLOSELY, CLOSE, IMAGES = 3, 0.01, 2.0  # updates in which it has not grown yet: the tolerance there, and images that may turn


@dataclass(frozen=True)
class Verification:
    """What a repetition showed. `updates` were made of `total`; `verdict` is "equal" (to the last digit), "agrees" (to rounding),
    "differs", or of times "not compared"; `largest` is the largest relative difference of the losses of the first lines; errors
    are per cent, None where the run was not repeated to its end. `measurements` says of each that was kept what it showed when it
    was made anew. What was computed and not trained has no updates; its `lines` are numbers."""

    id: str
    updates: int
    total: int
    verdict: Verdict
    why: str
    lines: int
    largest: float
    kept_error: float | None
    repeated_error: float | None
    measurements: Mapping[str, Held] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return vars(self) | {"measurements": {name: held.to_dict() for name, held in self.measurements.items()}}


class _Enough(Exception):
    """The beginning that was asked for is made."""


def verify(
    identity: str,
    *,
    minutes: float = MINUTES,
    results: str | Path | None = None,
    out: str | Path = OUT,
    data_dir: str | Path | None = None,
    device: str | None = None,
    watcher: Watcher | None = None,
    papers: Shelf | None = None,
) -> Verification:
    """Repeats the kept run called `identity`, as far as `minutes` go, with the kept recipe, plan and threads, and compares.

    The runs are those in `results` (by default those that come with the source tree) and in the folder `out`, under which the
    repetition is made. A run that comes to its end is measured anew as it was; what was computed and not trained is computed
    anew. `papers`: others than those of the catalogue.

    Raises `RequestError`, before any long work, for a run that is not kept or cannot be repeated, and for other data.
    """
    if not minutes > 0:
        raise RequestError(f"minutes must be above 0, not {minutes}.")
    cards = {
        card["id"]: card
        for card in (*keeping.own_cards(Path(out)), *keeping.kept_cards(Path(results) if results else keeping.shipped()))
    }
    if identity not in cards:  # a run that two arms share is kept under the name of either
        _, mark, address = identity.rpartition("-s")
        identity = next((name for name in cards if mark and name.endswith(f"-s{address}")), identity)
    if identity not in cards:
        raise unknown("kept run", identity, cards, "docs/results.md lists them.")
    card = cards[identity]
    if card["recipe"] is None:
        return _computed(card, papers or shelf())
    watcher = watcher or Unwatched()
    recipe = recipes.replaced(recipes.from_dict(card["recipe"], identity), {"plan": card["manifest"]["plan"]}, identity)
    target = Path(out) / "verified" / identity
    _check_data(card, recipe, data_dir)
    broken = False

    def begun() -> None:
        """Files that training holds in memory have another fingerprint than as files, so that theirs is known only now."""
        _check_fingerprint(card, runs.open_run(target).manifest["data_fingerprint"])

    stop = _Stopper(watcher, time.perf_counter() + 60 * minutes, begun)
    with _threads(card):
        try:
            train(recipe=recipe, out=target, data_dir=data_dir, device=device, listener=stop)
        except _Enough:
            pass
        except RunError as error:
            if not isinstance(error.__cause__, NonFiniteLoss):
                raise
            broken = True
        begun()
        run = runs.open_run(target)
        found = _compared(card, _Repeated.of(run, broken))
        if not run.finished() or broken or found.verdict == "differs":
            reason = "The repetition differs." if found.verdict == "differs" else "The run was not repeated to its end."
            return _with(found, not_compared(card, reason))
        settings = Settings({}, Path(data_dir) if data_dir else None, device, None, watcher)
        books = papers or shelf()
        settings = replace(settings, measurements=books.measurements)
        return _with(found, measured_again(card, target, found.verdict == "equal", books, settings))


def _computed(card: Mapping[str, Any], papers: Shelf) -> Verification:
    """What was not trained, computed anew."""
    if card["parts"]:
        raise RequestError(
            f"{card['id']} is no training: it combines networks whose weights are not kept. Verify its parts: "
            f"{', '.join(card['parts'])}."
        )
    with _threads(card):
        held, count = computed_again(card, papers)
    return Verification(card["id"], 0, 0, held.verdict, held.why, count, held.largest or 0.0, None, None)


@contextmanager
def _threads(card: Mapping[str, Any]) -> Iterator[None]:
    """As many threads within the block as the kept run had, where that is known."""
    threads = torch.get_num_threads()
    torch.set_num_threads(card["manifest"].get("threads", threads))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check_data(card: Mapping[str, Any], recipe: recipes.Recipe, data_dir: str | Path | None) -> None:
    """Raises `RequestError` where the data, if they come as arrays, are others than those of the kept run."""
    channels = recipe.model.options.get("in_channels")
    dataset = open_data(recipe.data.source, data_dir=data_dir, channels=channels, max_bad=recipe.data.max_bad)
    if all(isinstance(samples, ArraySamples) for samples in dataset.splits.values()):
        _check_fingerprint(card, held_out(dataset, recipe).fingerprint())


def _check_fingerprint(card: Mapping[str, Any], fingerprint: str) -> None:
    if fingerprint != card["manifest"]["data_fingerprint"]:
        source = card["recipe"]["data"]["source"]
        raise RequestError(f"{source} holds other data here than {card['id']} was trained on: the fingerprints differ.")


def _with(found: Verification, measurements: Mapping[str, Held]) -> Verification:
    """With what the measurements showed, and in the sentences what a reader should know of them."""
    groups: dict[str, list[str]] = {}
    for name, held in measurements.items():
        groups.setdefault(held.verdict, []).append(name)
    said = []
    if same := [*groups.get("equal", ()), *groups.get("agrees", ())]:
        said.append(f"Measured anew and in agreement: {', '.join(same)}.")
    for reason in dict.fromkeys(held.why for held in measurements.values() if held.verdict == "not compared"):
        names = ", ".join(name for name, held in measurements.items() if held.why == reason)
        said.append(f"Not compared: {names}. {reason}")
    said += [f"{name} differs. {held.why}" for name, held in measurements.items() if held.verdict == "differs"]
    verdict: Verdict = "differs" if "differs" in groups else found.verdict
    return replace(found, verdict=verdict, why=" ".join([found.why, *said]), measurements=measurements)


@dataclass(frozen=True)
class _Repeated:
    """What a repetition has shown: (update, loss, error in per cent) of its lines; the errors of a run that came to its end, as
    `residua.evidence.Record` has them; whether its loss became other than finite."""

    lines: list[list[float]]
    total: int
    errors: dict[str, float]
    broken: bool

    @classmethod
    def of(cls, run: runs.Run, broken: bool) -> _Repeated:
        metrics = run.metrics("train")
        lines = [[line["step"], line["values"]["loss"], line["values"]["error"]] for line in metrics]
        total, tests = run.manifest["total_steps"], run.metrics("test") if run.finished() else []
        errors = {}
        if tests:
            last = [error for step, _, error in lines if step > total - run.manifest["steps_per_epoch"]]
            errors = {"test_error": tests[-1]["values"]["top1_error"], "train_error": fmean(last)}
        return cls(lines, total, errors, broken)


class _Stopper(Unwatched):
    """Ends a training when the time is up; calls `begun` after its first update; tells another watcher what it hears."""

    def __init__(self, watcher: Watcher, end: float, begun: Callable[[], None]) -> None:
        self.watcher, self.end, self.begun = watcher, end, begun
        self.first = True

    def note(self, text: str) -> None:
        """Passes a sentence on."""
        self.watcher.note(text)

    def measured(self, split: str, values: Mapping[str, float]) -> None:
        """Passes a measurement on."""
        self.watcher.measured(split, values)

    def progress(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """Passes progress on, and ends the training where the time is up."""
        self.watcher.progress(step, total, values)
        if self.first:
            self.begun()
        self.first = False
        if time.perf_counter() > self.end and step < total:
            raise _Enough


def _compared(card: Mapping[str, Any], repeated: _Repeated) -> Verification:
    pairs = list(zip(card["opening"], repeated.lines))
    if not pairs:
        raise RunError(f"{card['id']} was not repeated far enough to compare anything: give it more minutes.")
    kept = {name: card["values"][name] for name in repeated.errors if name in card["values"]}
    largest = max((_apart(*pair) for pair in pairs[:FIRST]), key=lambda one: one if math.isfinite(one) else math.inf)
    exact = all(list(theirs) == list(ours) for theirs, ours in pairs) and kept == repeated.errors
    trouble = _trouble(card, repeated, pairs, kept)
    verdict: Verdict = "differs" if trouble else "equal" if exact else "agrees"
    first = f"The losses of the first {min(FIRST, len(pairs))} lines"
    why = (
        trouble
        or {
            "equal": f"The first {len(pairs)} lines of losses are equal to the last digit.",
            "agrees": f"{first} agree within {100 * largest:.2g} %, as other rounding does.",
        }[verdict]
    )
    if verdict == "agrees" and pairs[0][0][0] > CLOSELY:
        why += f" They are means of {pairs[0][0][0]:.0f} updates, in which other seeds look much the same."
    if "test_error" in kept:
        why += f" The final test error is {repeated.errors['test_error']:.2f} %, and was {kept['test_error']:.2f} %."
    largest = largest if math.isfinite(largest) else 0.0
    updates, both = int(repeated.lines[-1][0]), (kept.get("test_error"), repeated.errors.get("test_error"))
    return Verification(card["id"], updates, repeated.total, verdict, why, len(pairs), largest, *both)


def _apart(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """By which part of the kept loss that of the repetition differs from it."""
    return abs(ours[1] - theirs[1]) / max(abs(theirs[1]), 1e-3)


def _trouble(
    card: Mapping[str, Any],
    repeated: _Repeated,
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]],
    kept: Mapping[str, float],
) -> str:
    """What a repetition and the kept run differ in by more than rounding, in a sentence; "" for nothing."""
    if repeated.broken and not card["broken_off"]:
        return "The repetition broke off, which the kept run did not."
    if repeated.errors and card["broken_off"]:
        return f"The repetition came to its end, and the kept run did not. {card['broken_off']}"
    images = IMAGES * 100 / card["recipe"]["batch_size"]
    for place, (theirs, ours) in enumerate(pairs):
        if theirs[0] != ours[0] or not all(map(math.isfinite, (*theirs, *ours))):
            return f"Line {place + 1} cannot be compared: {list(theirs)} was kept, {list(ours)} is here."
        apart = _apart(theirs, ours)
        if place < FIRST and apart > TOLERANCE:
            return f"The losses of the first {min(FIRST, len(pairs))} lines differ by up to {100 * apart:.2g} %."
        if ours[0] <= CLOSELY and (apart > CLOSE or abs(ours[2] - theirs[2]) > images):
            return (
                f"At update {ours[0]:.0f} the loss is {ours[1]:.4g} and was {theirs[1]:.4g}, the error {ours[2]:.1f} % and was "
                f"{theirs[2]:.1f} %: more than rounding."
            )
    for name, value in kept.items():
        if abs(repeated.errors[name] - value) > _spread(value, card["num_test"]):
            return f"The final {named(name)} is {repeated.errors[name]:.2f} %, and was {value:.2f} %: more than seeds differ."
    return ""


def _spread(percent: float, count: int) -> float:
    """By how much two trainings that round otherwise may differ: some points, as seeds do, and the error of the test set."""
    return 2.0 + 2 * binomial_error(percent, count)
