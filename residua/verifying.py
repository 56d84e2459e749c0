"""A kept run repeated, whole or its beginning, and held against what was kept, for anyone who doubts a number. Layer 5."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from residua import keeping, runs
from residua import recipe as recipes
from residua.comparing import binomial_error
from residua.errors import RequestError, RunError, unknown
from residua.reproducing import OUT, Unwatched, Watcher
from residua.step import NonFiniteLoss
from residua.training import train

__all__ = ["Verification", "verify"]

MINUTES = 5.0
TOLERANCE = 0.05  # relative, of the losses of the first updates: other threads and processors round otherwise, and it grows
FIRST = 10  # lines within which rounding cannot have grown much


@dataclass(frozen=True)
class Verification:
    """What a repetition showed. `updates` were made of `total`; `verdict` is "equal" (to the last digit), "agrees" (to rounding)
    or "differs"; `largest` is the largest relative difference of the losses of the first lines; errors are per cent, None where
    the run was not repeated to its end."""

    id: str
    updates: int
    total: int
    verdict: str
    why: str
    lines: int
    largest: float
    kept_error: float | None
    repeated_error: float | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return dict(vars(self))


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
) -> Verification:
    """Repeats the kept run called `identity`, as far as `minutes` go, with the kept recipe, plan and threads, and compares.

    The runs are those in `results` (by default those that come with the source tree) and in the folder `out`, under which the
    repetition is made. Raises `RequestError` for a run that is not kept, is no training, or whose data are others here.
    """
    if not minutes > 0:
        raise RequestError(f"minutes must be above 0, not {minutes}.")
    cards = {
        card["id"]: card
        for card in (*keeping.own_cards(Path(out)), *keeping.kept_cards(Path(results) if results else keeping.shipped()))
    }
    if identity not in cards:  # a run that two arms share is kept under the name of either
        address = identity[identity.rfind("-s") :]
        identity = next((name for name in cards if address and name.endswith(address)), identity)
    if identity not in cards:
        raise unknown("kept run", identity, cards, "docs/results.md lists them.")
    card = cards[identity]
    if card["recipe"] is None:
        raise RequestError(
            f"{identity} is no training: it was computed from others. Verify its parts: {', '.join(card['parts'])}."
        )
    watcher = watcher or Unwatched()
    recipe = recipes.replaced(recipes.from_dict(card["recipe"], identity), {"plan": card["manifest"]["plan"]}, identity)
    target = Path(out) / "verified" / identity
    stop = _Stopper(watcher, time.perf_counter() + 60 * minutes)
    threads = torch.get_num_threads()
    torch.set_num_threads(card["manifest"]["threads"])
    try:
        train(recipe=recipe, out=target, data_dir=data_dir, device=device, listener=stop)
    except _Enough:
        pass
    except RunError as error:
        if not isinstance(error.__cause__, NonFiniteLoss):
            raise
    finally:
        torch.set_num_threads(threads)
    run = runs.open_run(target)
    if run.manifest["data_fingerprint"] != card["manifest"]["data_fingerprint"]:
        raise RequestError(f"{recipe.data.source} holds other data here than {identity} was trained on: the fingerprints differ.")
    lines = [[line["step"], line["values"]["loss"], line["values"]["error"]] for line in run.metrics("train")]
    tests = run.metrics("test") if run.finished() else []
    final = tests[-1]["values"]["top1_error"] if tests else None
    return _compared(card, lines, run.manifest["total_steps"], final)


class _Stopper(Unwatched):
    """Ends a training when the time is up; tells another watcher what it hears."""

    def __init__(self, watcher: Watcher, end: float) -> None:
        self.watcher, self.end = watcher, end

    def note(self, text: str) -> None:
        """Passes a sentence on."""
        self.watcher.note(text)

    def measured(self, split: str, values: Mapping[str, float]) -> None:
        """Passes a measurement on."""
        self.watcher.measured(split, values)

    def progress(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """Passes progress on, and ends the training where the time is up."""
        self.watcher.progress(step, total, values)
        if time.perf_counter() > self.end and step < total:
            raise _Enough


def _compared(card: Mapping[str, Any], lines: Sequence[Sequence[float]], total: int, error: float | None) -> Verification:
    pairs = list(zip(card["opening"], lines))
    if not pairs:
        raise RunError(f"{card['id']} was not repeated far enough to compare anything: give it more minutes.")
    kept = card["values"].get("test_error") if error is not None else None
    largest = max(abs(ours[1] - theirs[1]) / max(abs(theirs[1]), 1e-3) for theirs, ours in pairs[:FIRST])
    exact = all(list(theirs) == list(ours) for theirs, ours in pairs) and kept == error
    close = largest <= TOLERANCE and (kept is None or error is None or abs(kept - error) <= _spread(kept, card["num_test"]))
    verdict = "equal" if exact else "agrees" if close and math.isfinite(largest) else "differs"
    first = f"The losses of the first {min(FIRST, len(pairs))} lines"
    why = {
        "equal": f"The first {len(pairs)} lines of losses are equal to the last digit.",
        "agrees": f"{first} agree within {100 * largest:.2g} %, as other rounding does.",
        "differs": f"{first} differ by up to {100 * largest:.2g} %.",
    }[verdict]
    if kept is not None and error is not None:
        why += f" The final test error is {error:.2f} %, and was {kept:.2f} %."
    return Verification(card["id"], int(lines[-1][0]), total, verdict, why, len(pairs), largest, kept, error)


def _spread(percent: float, count: int) -> float:
    """By how much two trainings that round otherwise may differ: some points, as seeds do, and the error of the test set."""
    return 2.0 + 2 * binomial_error(percent, count)
