"""One task of the matrix carried out: trained or computed, measured, and written down as small plain values. Layer 4."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from residua import budgets, machine, runs
from residua import recipe as recipes
from residua.analysis import CATALOG as ANALYSES
from residua.analysis import Budget, NotApplicable
from residua.claims import Arm, Ensemble, Measurement, Probe
from residua.errors import RunError
from residua.evaluation import Evaluation, evaluate, stated
from residua.matrix import Task, read_json
from residua.record import Listener, Silent
from residua.runs import Run, write_atomically
from residua.scoring import chosen_device
from residua.step import NonFiniteLoss
from residua.subjects import run_subject
from residua.training import train
from residua.version import __version__

__all__ = ["FORMAT", "Settings", "carry_out", "computed", "measured", "thinned"]

FORMAT = 1
POINTS = 200  # of a curve that is kept
CLOSELY, LONG = 1_000, 10  # updates of which every line is kept, where the training is so many times as long
OPENING = 50  # lines of the training's beginning that are kept as they were, to hold a repetition against
MANIFEST = (
    "residua", "created", "versions", "hardware", "git", "data_fingerprint", "total_steps", "steps_per_epoch", "threads",
    "parameters", "multiply_adds",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Where data lie and how to work; `measurements` are those of the papers, by name."""

    measurements: Mapping[str, Measurement]
    data_dir: Path | None = None
    device: str | None = None
    workers: int | None = None
    listener: Listener = field(default_factory=Silent)


def carry_out(task: Task, settings: Settings) -> None:
    """Does what a task lacks: the training, which continues at its last checkpoint, then each measurement that is not there.

    Raises what `residua.training.train` raises, but for a loss that is not finite: that is a result, and written down as one.
    """
    if not task.record.is_file():
        if isinstance(task.arm, Arm):
            _train(task, settings)
        elif isinstance(task.arm, Ensemble):
            _combine(task, task.arm, settings)
        else:
            _compute(task, task.arm)
    for name in task.measurements:
        if not task.has(name):
            settings.listener.note(f"Measuring {name} of {task.id}.")
            allowance = budgets.ALLOWANCE[task.budget]
            _write(task.measured(name), measured(name, task.path, task.arm.name, allowance, settings))


# -------------------------------------------------------------------------------------------------------------- trainings


def _train(task: Task, settings: Settings) -> None:
    assert task.recipe is not None
    broken = ""
    try:
        train(
            recipe=task.recipe, out=task.path, data_dir=settings.data_dir, device=settings.device, workers=settings.workers,
            listener=settings.listener,
        )  # fmt: skip
    except RunError as error:
        if not isinstance(error.__cause__, NonFiniteLoss):
            raise
        broken = f"Training broke off: the loss was {error.__cause__.value} at update {error.__cause__.step:,}."
    run = runs.open_run(task.path)
    values, curves = _shown(run, broken, settings)
    manifest = {name: run.manifest[name] for name in MANIFEST} | {"plan": run.recorded("plan")["name"]}
    opening = [[line["step"], line["values"]["loss"], line["values"]["error"]] for line in run.metrics("train")[:OPENING]]
    _record(task, values, curves, broken=broken, manifest=manifest, opening=opening)


def _shown(run: Run, broken: str, settings: Settings) -> tuple[dict[str, float], dict[str, list[list[float]]]]:
    """The measures and curves of a run (`residua.evidence.Record`)."""
    lines, tests = run.metrics("train"), run.metrics("test")
    total, images = run.recorded("total_steps"), run.recipe.batch_size
    values: dict[str, float] = {"parameters": run.recorded("parameters"), "multiply_adds": run.recorded("multiply_adds")}
    if broken:
        chance, uniform = 100 * (1 - 1 / len(run.classes)), math.log(len(run.classes))
        values |= {"test_error": chance, "train_error": chance, "best_test_error": chance}
        values |= {"train_loss": uniform, "test_loss": uniform}
    else:
        last = [line["values"] for line in lines if line["step"] > total - run.recorded("steps_per_epoch")]
        seconds = run.metrics("end")[-1]["values"]["training_seconds"]
        values |= {"training_seconds": seconds, "seconds_per_image": seconds / (total * images)}
        values |= {f"train_{name}": fmean(line[name] for line in last) for name in ("error", "loss")}
        values |= _tested(tests[-1]["values"]) if tests else _evaluated(_evaluation([run], "center", settings))
        values["best_test_error"] = min([values["test_error"], *(line["values"]["top1_error"] for line in tests)])
    curves = {f"train_{name}": thinned(lines, name) for name in ("error", "loss")}
    if tests:
        curves |= {"test_error": thinned(tests, "top1_error"), "test_loss": thinned(tests, "loss")}
    return values, curves


def _tested(values: Mapping[str, float]) -> dict[str, float]:
    found = {"test_error": values["top1_error"], "test_loss": values["loss"]}
    return found | ({"top5_error": values["top5_error"]} if "top5_error" in values else {})


def thinned(lines: Sequence[Mapping[str, Any]], name: str) -> list[list[float]]:
    """Points (update, value), some `POINTS`: means of equal stretches, at their last update; of a long training every line of
    the first `CLOSELY` updates besides, where a warm-up is seen. Those that are not finite (the loss on test images of a network
    that is a few updates old) are left out."""
    stretch = max(1, math.ceil(len(lines) / POINTS))
    closely = sum(line["step"] <= CLOSELY for line in lines) if lines and lines[-1]["step"] >= LONG * CLOSELY else 0
    starts = [*range(closely), *range(closely, len(lines), stretch), len(lines)]
    parts = [lines[start:end] for start, end in pairwise(starts)]
    means = [(part[-1]["step"], fmean(line["values"][name] for line in part)) for part in parts]
    return [[step, float(f"{value:.6g}")] for step, value in means if math.isfinite(value)]


# ---------------------------------------------------------------------------------------------- what is not trained itself


def _combine(task: Task, ensemble: Ensemble, settings: Settings) -> None:
    broken = [part.arm.name for part in task.parts if read_json(part.record).get("broken_off")]
    if broken:
        raise RunError(f"{task.id} cannot be combined: the training of {', '.join(broken)} broke off.")
    manifest = _made(chosen_device(settings.device))
    found = _evaluation([runs.open_run(part.path) for part in task.parts], ensemble.protocol, settings)
    _record(task, _evaluated(found), {}, manifest=manifest)


def _compute(task: Task, probe: Probe) -> None:
    manifest = _made(torch.device("cpu"))
    values, rest = computed(probe, task.seed, task.budget)
    _record(task, values, {}, manifest=manifest, measurements=rest)


def computed(probe: Probe, seed: int, budget: str) -> tuple[dict[str, float], dict[str, Any]]:
    """What a probe gives: plain numbers that are finite, and nested values, each by name."""
    found = probe.measure(seed, budget)
    numbers = {name: float(value) for name, value in found.items() if isinstance(value, (int, float))}
    rest = {name: value for name, value in found.items() if name not in numbers}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}, rest


def _made(device: torch.device) -> dict[str, Any]:
    """What a run directory says of a training, as far as it has a meaning for what is not trained."""
    return {
        "residua": __version__, "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": machine.versions(), "hardware": machine.hardware(device), "git": machine.revision(),
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def _evaluation(of: Sequence[Run], protocol: str, settings: Settings, scales: Sequence[int] | None = None) -> Evaluation:
    return evaluate(of, protocol=protocol, scales=scales, data_dir=settings.data_dir, device=settings.device, save=False)


def _evaluated(found: Evaluation) -> dict[str, float]:
    values = {"test_error": found.top1_error, "test_loss": found.nll}
    return values | ({"top5_error": found.top5_error} if found.top5_error is not None else {})


# ----------------------------------------------------------------------------------------------------------- measurements


def measured(name: str, path: Path, arm: str, allowance: float, settings: Settings) -> dict[str, Any]:
    """What the file of a measurement of the run in `path` holds: "result", or under "left_out" why it has no meaning for this
    network. `arm` names the network for people, `allowance` is in seconds."""
    card: dict[str, Any] = {"name": name, "allowance": allowance, "residua": __version__}
    if (protocol := stated(name)) is not None:
        found = _evaluation([runs.open_run(path)], protocol[0], settings, protocol[1])
        return card | {"result": _evaluated(found) | {"used": {"images": found.num_samples}, "scales": found.scales}}
    own = settings.measurements.get(name)
    measure = own.measure if own is not None else ANALYSES.get(name).measure
    subject = run_subject(path, data_dir=settings.data_dir, device=chosen_device(settings.device), name=arm)
    try:
        return card | {"version": own.version if own else 0, "result": measure(subject, Budget(allowance))}
    except NotApplicable as reason:
        return card | {"left_out": str(reason)}


def _record(
    task: Task,
    values: Mapping[str, float],
    curves: Mapping[str, Any],
    *,
    manifest: Mapping[str, Any],
    broken: str = "",
    opening: Sequence[Sequence[float]] = (),
    measurements: Mapping[str, Any] | None = None,
) -> None:
    card = {
        "format": FORMAT, "id": task.id, "arm": task.arm.name, "seed": task.seed, "budget": task.budget, "address": task.address,
        "recipe": recipes.to_dict(task.recipe) if task.recipe else None, "parts": [part.id for part in task.parts],
        "manifest": dict(manifest), "num_test": task.num_test, "broken_off": broken,
        "values": {name: value for name, value in values.items() if math.isfinite(value)}, "curves": dict(curves),
        "opening": [list(line) for line in opening], "measurements": dict(measurements or {}),
    }  # fmt: skip
    _write(task.record, card)


def _write(path: Path, card: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(card, indent=1, ensure_ascii=False, allow_nan=False))
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}.") from error
