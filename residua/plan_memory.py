"""What trying plans showed, remembered between runs by model, shape, machine and versions. Layer 3.

Kept are plans whose losses agreed with those in fp32 in the run that tried them; one that was rejected is tried anew by the next
run, whose losses are others. One JSON file a key in the folder `residua/plans` of the user's cache. A damaged or foreign file
counts as none, and a folder that cannot be written is left alone: then plans are measured anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from residua import convolving, kernels, machine
from residua.plan import PLANS, Trial
from residua.recipe import Recipe
from residua.version import __version__

__all__ = ["forget", "key", "place", "recall", "remember"]


def key(
    recipe: Recipe, device: torch.device, threads: int, world: int, num_classes: int, recompute: Sequence[int | None] = (0, None)
) -> dict[str, Any]:
    """All that bears on how fast plans are beside one another, as plain values. `recompute`: the network's `recompute_every` and
    `recompute_stages`."""
    return {
        "model": recipe.model.name,
        "options": dict(recipe.model.options),
        "classes": num_classes,
        "image_size": recipe.data.image_size,
        "batch_size": recipe.batch_size,
        "micro_batch": recipe.micro_batch,
        "optimizer": recipe.optim.name,
        "average": bool(recipe.average.decay),
        "augment": asdict(recipe.augment),
        "recompute": list(recompute),
        "threads": threads,
        "processes": world,
        "hardware": machine.hardware(device),
        "fused_loops": [kernels.obstacle(), convolving.obstacle()],
        "torch": torch.__version__,
        "residua": __version__,
        "source": _source(),
    }


_SOURCES = (
    "plan.py",
    "native.py",
    "kernels.py",
    "kernels.c",
    "convolving.py",
    "pointwise.py",
    "pointwise.c",
    "winograd.py",
    "winograd.c",
    "columns.py",
    "strided.py",
    "strided.c",
    "stems.py",
    "stems.c",
    "loops.h",
    "taps.h",
    "orthogonal.py",
    "orthogonal.c",
    "step.py",
    "optim.py",
)


def _source() -> str:
    """A digest of the code that plans run, so that its developers never see yesterday's figures."""
    files = [Path(__file__).with_name(name) for name in _SOURCES]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def place(about: dict[str, Any]) -> Path:
    """The file in which the trials of this key are remembered."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:20]
    return machine.cache_folder() / "plans" / f"{digest}.json"


def recall(about: dict[str, Any]) -> list[Trial]:
    """The trials remembered for this key; none if there are none."""
    try:
        rows = json.loads(place(about).read_text(encoding="utf-8"))["trials"]
        trials = [Trial(**{**row, "losses": tuple(row["losses"])}) for row in rows]
    except (OSError, ValueError, TypeError, KeyError):
        return []
    return [trial for trial in trials if trial.name in PLANS and trial.outcome == "measured"]


def remember(about: dict[str, Any], trials: Sequence[Trial]) -> None:
    """Keeps those trials that measured something and were not rejected, beside the ones remembered before."""
    kept = {trial.name: trial for trial in (*recall(about), *trials) if _sound(trial)}
    rows = [asdict(trial) for trial in kept.values()]
    path = place(about)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError, ValueError):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps({"key": about, "trials": rows}, indent=1, default=str, allow_nan=False), encoding="utf-8")
        aside.replace(path)


def _sound(trial: Trial) -> bool:
    return trial.outcome == "measured" and math.isfinite(trial.seconds_per_step) and all(map(math.isfinite, trial.losses))


def forget(about: dict[str, Any]) -> None:
    """Removes what is remembered for this key."""
    with contextlib.suppress(OSError):
        place(about).unlink()
