"""Tiny trainings: folders of small PNGs, the settings of a run of a few steps, and ways to stop it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import residua
from residua import checkpoints
from residua.runs import Run
from residua.training import Interrupted

SIDE = 12
ALL_RANDOM = {
    "augment.mixup": 0.4,
    "augment.cutout": 3,
    "model.dropout": 0.3,
    "model.stochastic_depth": 0.4,
    "average.decay": 0.9,
}


def write_images(root: Path, per_class: Mapping[str, int], side: int = SIDE, seed: int = 0) -> Path:
    """`root`/<split>/<class>/<number>.png, noise around a grey of the class's own: 8 a class in val and as said in train."""
    numbers = np.random.default_rng(seed)
    for place, (name, count) in enumerate(per_class.items()):
        for split, images in (("train", count), ("val", 8)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(images):
                pixels = numbers.integers(0, 90, (side, side, 3)) + 160 * place // max(1, len(per_class) - 1)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:03}.png")
    return root


def settings(**changes: Any) -> dict[str, Any]:
    """The fields of a run of 8 steps of 8 images; a double underscore in a name stands for the dot."""
    fields = {
        "model.name": "cifar_resnet", "model.depth": 8, "plan": "fp32", "batch_size": 8, "steps": 8, "evaluations": 1,
        "augment.crop": "pad", "augment.flip": True, "average.decay": 0.0,
    }  # fmt: skip
    return {**fields, **{name.replace("__", "."): value for name, value in changes.items()}}


def train(data: Path | str, out: Path, *, workers: int = 0, listener: Any = None, **changes: Any) -> Run:
    """A run with these settings, in this process."""
    return residua.train(str(data), out=out, workers=workers, listener=listener, set=settings(**changes))


class Stop:
    """A listener that keeps what it hears, and at a step sends this process a signal."""

    def __init__(self, at: int = 0, number: int = signal.SIGTERM, then: Callable[[], None] | None = None) -> None:
        self.at, self.number, self.then = at, number, then
        self.notes: list[str] = []
        self.losses: list[float] = []

    def note(self, text: str) -> None:
        """Keeps the sentence."""
        self.notes.append(text)

    def progress(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """Keeps the loss; at the step, acts."""
        self.losses.append(values["loss"])
        if step == self.at:
            (self.then or (lambda: os.kill(os.getpid(), self.number)))()

    def measured(self, split: str, values: Mapping[str, float]) -> None:
        """Hears nothing."""


def stopped(data: Path | str, out: Path, at: int, **changes: Any) -> None:
    """Trains until the step `at`, where a signal arrives."""
    with pytest.raises(Interrupted):
        train(data, out, listener=Stop(at), **changes)
    assert checkpoints.available(out / "checkpoints")[0].name == f"step-{at:08d}"


def final_bytes(run: Run) -> dict[str, str]:
    """SHA-256 of each tensor file of the last step."""
    folder = run.checkpoints / f"step-{run.manifest['total_steps']:08d}"
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors"))}


def losses(run: Run) -> list[float]:
    """The loss of every step."""
    return [line["values"]["loss"] for line in run.metrics("train")]


def command(*arguments: str | Path, **changes: Any) -> list[str]:
    """The command line; `changes` are --set."""
    pairs = [part for name, value in changes.items() for part in ("--set", f"{name.replace('__', '.')}={value}")]
    return [sys.executable, "-m", "residua", *map(str, arguments), *pairs]


def environment(**more: str) -> dict[str, str]:
    """One thread, no GPU: what tiny trainings are fastest with, and the same everywhere."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def start(arguments: list[str], cwd: Path, **more: Any) -> subprocess.Popen[str]:
    """Starts a command in its own process group, its output piped."""
    return subprocess.Popen(
        arguments, cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, **more,
    )  # fmt: skip
