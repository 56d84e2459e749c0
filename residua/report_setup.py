"""The words of a report: its headline, what was run, how to repeat it, and what its figures do not show. Layer 4."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from residua import recipe as recipes
from residua.report_inputs import Inputs, number
from residua.wording import NOTHING, count, counted, decimal, duration, percent, value

__all__ = ["caveats", "headline", "repeat", "setup"]

UNEVEN = 1.2  # the largest class is so many times the smallest: balanced accuracy is then shown beside the error
FEW = 30  # images of a class, below which its figures are called uncertain

Rows = list[tuple[str, str]]


def title(inputs: Inputs) -> str:
    """What was trained on what."""
    source = str(inputs.run.data.get("source") or inputs.run.recipe.data.source)
    return f"{inputs.run.recipe.model.name} on {PurePath(source).name or source}"


def headline(inputs: Inputs) -> dict[str, Any]:
    """The result in one sentence and in a row of figures."""
    result = inputs.main
    figures = _result_figures(inputs, result) if result else _interim_figures(inputs)
    manifest = inputs.run.manifest
    train = sum(inputs.splits.get("train", []))
    if train:
        figures.append(("Trained on", count(train), f"images in {counted(len(inputs.run.classes), 'class', 'classes')}"))
    if inputs.training_seconds is not None:
        figures.append(("Training time", duration(inputs.training_seconds), _device(manifest)))
    if number(manifest.get("parameters")) is not None:
        adds = number(manifest.get("multiply_adds"))
        figures.append(("Parameters", _large(manifest["parameters"]), f"{_large(adds)} multiply-adds an image" if adds else ""))
    return {"title": title(inputs), "sentence": _sentence(inputs, result), "figures": figures, "unfinished": _unfinished(inputs)}


def _result_figures(inputs: Inputs, result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    figures = [("Top-1 error", percent(result["top1_error"]), interval(result))]
    if number(result.get("top5_error")) is not None:
        figures.append(("Top-5 error", percent(result["top5_error"]), "the label is not among the first five"))
    if number(result.get("balanced_accuracy")) is not None and _uneven(inputs):
        figures.append(("Balanced accuracy", percent(result["balanced_accuracy"]), "mean recall of the classes"))
    figures.append(("Measured on", count(result.get("num_samples")), f"images of the {result.get('split')} split"))
    return figures


def _interim_figures(inputs: Inputs) -> list[tuple[str, str, str]]:
    epochs, errors = inputs.series(inputs.watched, "top1_error")
    if not errors:
        return []
    return [("Top-1 error", percent(errors[-1]), f"{inputs.watched} split, at epoch {epochs[-1]:.3g}; not a final result")]


def _sentence(inputs: Inputs, result: Mapping[str, Any] | None) -> str:
    if result is None:
        return "No final evaluation is stored with this run yet; residua evaluate makes one."
    wrong = round(result["top1_error"] * (result.get("num_samples") or 0) / 100)
    took = f"After {duration(inputs.training_seconds)} of training" if inputs.training_seconds is not None else "After training"
    return (
        f"{took} with the recipe {inputs.run.recipe.name}, the network mistakes {count(wrong)} of "
        f"{count(result.get('num_samples'))} {result.get('split')} images that it has not been trained on."
    )


def _unfinished(inputs: Inputs) -> str:
    if inputs.finished():
        return ""
    total = inputs.run.manifest.get("total_steps")
    return (
        f"This run is not finished: it has come to step {count(inputs.steps_done)} of {count(total)}. "
        "The command that began it continues it."
    )


def interval(result: Mapping[str, Any]) -> str:
    """The 95 % interval of the top-1 error in words; empty if there is none."""
    ends = result.get("top1_interval") or []
    if len(ends) != 2 or number(ends[0]) is None or number(ends[1]) is None:
        return ""
    return f"95 % interval {ends[0]:.2f} to {percent(ends[1])}"


def setup(inputs: Inputs) -> dict[str, Any]:
    """The recipe in groups, the plan and why it was taken, the machine, the versions."""
    manifest = inputs.run.manifest
    groups: list[tuple[str, Rows]] = [("run", [])]
    for name, inner in recipes.to_dict(inputs.run.recipe).items():
        if isinstance(inner, dict):
            groups.append((name, [(field.removeprefix("options."), value(v)) for field, v in _flat(inner)]))
        else:
            groups[0][1].append((name, value(inner)))
    groups.sort(key=lambda group: -len(group[1]))
    return {
        "recipe": groups,
        "length": _length(inputs),
        "weights": str((manifest.get("weights") or {}).get("sentence") or ""),
        "plan": _plan(manifest.get("plan") or {}),
        "machine": [(name.replace("_", " "), value(v)) for name, v in _flat(manifest.get("hardware") or {})],
        "versions": _versions(manifest),
        "measured": _measured(inputs),
    }


def _length(inputs: Inputs) -> str:
    manifest, recipe = inputs.run.manifest, inputs.run.recipe
    total, per_epoch = number(manifest.get("total_steps")), number(manifest.get("steps_per_epoch"))
    if total is None:
        return ""
    epochs = f", {total / per_epoch:.4g} epochs" if per_epoch else ""
    processes = manifest.get("processes") or 1
    micro = manifest.get("micro_batch")
    parts = f" in micro-batches of {micro}" if micro and micro < recipe.batch_size else ""
    spread = f", on {processes} processes" if processes > 1 else ""
    return f"{count(total)} steps of {recipe.batch_size} images{parts}{epochs}{spread}; seed {recipe.seed}."


def _plan(plan: Mapping[str, Any]) -> dict[str, Any]:
    tried = [trial for trial in plan.get("tried") or [] if isinstance(trial, dict)]
    plain = number(tried[0].get("seconds_per_step")) if tried else None
    rows = []
    for trial in tried:
        seconds = number(trial.get("seconds_per_step"))
        losses = trial.get("losses") or [trial.get("loss")]
        times = f"{plain / seconds:.2f}" if plain and seconds else NOTHING
        rows.append((trial.get("name"), duration(seconds), times, decimal(losses[-1], 4), trial.get("outcome") or ""))
    factor = number(plan.get("factor"))
    chosen = f"Plan {plan['name']}" if plan.get("name") else ""
    if chosen and factor and tried:
        chosen += f": {factor:.2f} times the speed of {tried[0].get('name')}, the fastest of those tried for a run of this length"
    known = [key for key in ("precision", "memory_format", "compile", "threads") if key in plan]
    facts = ", ".join(f"{key.replace('_', ' ')} {value(plan[key])}" for key in known).capitalize()
    return {"chosen": f"{chosen}." if chosen else "", "facts": facts, "tried": rows, "note": str(plan.get("note") or "")}


def _versions(manifest: Mapping[str, Any]) -> Rows:
    rows = [("residua", value(manifest.get("residua")))]
    rows += [(name, value(version)) for name, version in (manifest.get("versions") or {}).items() if name != "residua"]
    revision, _, changed = str(manifest.get("git") or "").partition("+")
    if revision:
        rows.append(("revision", revision[:12] + (", changed" if changed else "")))
    for name, key in (("begun", "created"), ("data fingerprint", "data_fingerprint")):
        if manifest.get(key):
            rows.append((name, str(manifest[key])[:19].replace("T", " ")))
    return rows


def _measured(inputs: Inputs) -> list[tuple[str, str, str]]:
    """Forecast before the first step beside what was measured."""
    forecast, end = inputs.run.manifest.get("forecast") or {}, inputs.end
    on_gpu = (inputs.run.manifest.get("hardware") or {}).get("device") == "cuda"
    memory = "memory" if on_gpu else "memory (measured: of the whole process)"
    rows = [
        ("training", duration(forecast.get("seconds")), duration(inputs.training_seconds)),
        ("evaluation", duration(forecast.get("evaluation_seconds")), duration(end.get("evaluation_seconds"))),
        (memory, _mib(forecast.get("memory_mib")), _mib(end.get("peak_memory_mib"))),
    ]
    return [row for row in rows if row[1:] != (NOTHING, NOTHING)]


def repeat(inputs: Inputs) -> dict[str, Any]:
    """The words of the command that made the run, quoted for a shell, and its recipe as TOML."""
    command = inputs.run.manifest.get("command") or []
    return {
        "command": [shlex.quote(str(word)) for word in (command if isinstance(command, list) else [command])],
        "toml": recipes.write_toml(inputs.run.recipe),
    }


def caveats(inputs: Inputs) -> list[str]:
    """What the figures do not show, as far as it applies to this run."""
    result, notes = inputs.main, []
    notes.append(
        f"One run with one seed ({inputs.run.recipe.seed}). The interval covers the choice of the measured images, not the "
        "training: another seed gives another error. For a comparison, repeat with several seeds and give mean and spread."
    )
    if result is not None and inputs.final == inputs.watched:
        notes.append(
            f"The {inputs.final} split was also watched during training. Nothing was chosen by it: the weights are those of the "
            "last step. But whoever adjusts a recipe by these curves fits it to this split, and then needs a fresh one."
        )
    if inputs.series("train", "error")[1]:
        notes.append(
            "The training error is measured while training: on augmented images, in training mode, on weights that were still "
            "changing. It is not the error on the clean training images, and can lie above the measured split's."
        )
    notes += _about_losses(inputs)
    notes.append(
        "The measured images come from the same source as the training images. Images from elsewhere (another camera, another "
        "year, other backgrounds) may be recognised less well, and nothing here shows how much."
    )
    notes += _about_counts(inputs, result)
    notes.append("The data check finds images that are equal byte by byte, not near-duplicates, and it does not judge labels.")
    notes.append("Times and throughput hold for this machine, with whatever else it was doing.")
    return notes


def _about_losses(inputs: Inputs) -> list[str]:
    recipe = inputs.run.recipe
    known = {
        "label smoothing": recipe.label_smoothing,
        "mixed images": recipe.augment.mixup or recipe.augment.cutmix,
        "class weights": recipe.data.balance == "weights",
    }
    parts = [name for name, present in known.items() if present]
    if not parts or not inputs.series("train", "loss")[1]:
        return []
    return [f"The training loss contains {' and '.join(parts)}, the measured loss does not: do not read one against the other."]


def _about_counts(inputs: Inputs, result: Mapping[str, Any] | None) -> list[str]:
    notes = []
    counts = inputs.splits.get(inputs.final) or []
    few = sum(1 for c in counts if c < FEW)
    if result is not None and few:
        notes.append(
            f"{counted(few, 'class', 'classes')} of {len(counts)} with fewer than {FEW} images in the {inputs.final} split: "
            "figures of single classes are uncertain there."
        )
    if result is not None and result.get("num_unreadable"):
        notes.append(f"{counted(result['num_unreadable'], 'image')} could not be read and counted in no result.")
    findings = inputs.run.data.get("findings") or {}
    total, decoded = number(findings.get("total")), number(findings.get("decoded"))
    if total and decoded is not None and decoded < total:
        decoded_first = f"Before training {count(decoded)} of {count(total)} files were decoded"
        notes.append(f"{decoded_first}; the others were tried at their first use.")
    return notes


def _flat(values: Mapping[str, Any], prefix: str = "") -> Sequence[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, inner in values.items():
        rows += _flat(inner, f"{prefix}{name}.") if isinstance(inner, dict) and inner else [(f"{prefix}{name}", inner)]
    return rows


def _uneven(inputs: Inputs) -> bool:
    return any(max(counts) > UNEVEN * min(counts) for counts in inputs.splits.values() if counts)


def _device(manifest: Mapping[str, Any]) -> str:
    hardware = manifest.get("hardware") or {}
    device = str(hardware.get("gpu") or hardware.get("device") or "")
    cores = hardware.get("cores")
    return f"on {cores} CPU cores" if device in ("", "cpu") and cores else f"on {device}" if device else ""


def _large(thing: Any) -> str:
    known = number(thing)
    if known is None:
        return NOTHING
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(known) >= size:
            return f"{decimal(known / size)} {unit}"
    return count(known)


def _mib(thing: Any) -> str:
    known = number(thing)
    return NOTHING if known is None else f"{known / 1024:.1f} GiB" if known >= 2048 else f"{known:.0f} MiB"
