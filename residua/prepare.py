"""From a resolved recipe and its data to a run that is ready to start: plan measured, length fixed, forecast made. Layer 4."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from residua import checkpoints, forecast, keyed, machine, native, plan, runs, weights
from residua import recipe as recipes
from residua.augment import area_factor, normalized
from residua.batches import Share
from residua.cost import multiply_adds, num_parameters
from residua.data import one_path
from residua.dataset import ArraySamples, Dataset, FileSamples, Samples, class_counts, hold
from residua.errors import RequestError, RunError, UnreadableImage
from residua.images import printable
from residua.models import create_model
from residua.network import Network
from residua.plan import Plan
from residua.recipe import Recipe
from residua.record import Listener
from residua.resolve import make_order, normalization, side_of
from residua.runs import Run
from residua.scoring import evaluation_view
from residua.version import __version__
from residua.weights import Loaded
from residua.wording import duration

__all__ = ["Prepared", "begin", "check_weights", "continue_run", "default_out", "fresh_network", "in_memory"]


@dataclass(frozen=True)
class Prepared:
    """All that the loop needs."""

    run: Run
    dataset: Dataset
    plan: Plan
    network: Network
    device: torch.device
    workers: int


def default_out(recipe: Recipe) -> Path:
    """runs/<data>-<model>-<recipe>-<hash>: the same request leads to the same directory, however the path of its data is written
    and however often it saves, and also once recipes have more fields: what differs from the defaults is hashed."""
    source = one_path(recipe.data.source)
    counted = replace(recipe, data=replace(recipe.data, source=source), checkpoints=recipes.Checkpoints())
    chosen = {name: value for name, (_, value) in recipes.differences(recipes.Recipe(), counted).items()}
    digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:6]
    words = (Path(source).stem or "data", recipe.model.name, Path(recipe.name).stem)
    return Path("runs") / "-".join([*(word.replace(" ", "_") for word in words if word != "auto"), digest])


def in_memory(dataset: Dataset, recipe: Recipe, device: torch.device, before: bool | None = None) -> tuple[Dataset, bool]:
    """The data set with its splits held as uint8 where the recipe or the memory at hand says so, and whether they are.

    `before` is what was chosen when the run began (None: it begins now, or did not write it down). What is free at the moment
    then decides nothing: the fingerprint of images in memory is another one than that of files.
    """
    files = [samples for samples in dataset.splits.values() if isinstance(samples, FileSamples)]
    wanted = recipe.data.in_memory if recipe.data.in_memory is not None else before
    if files and wanted is not False:
        size, channels = dataset.facts.size, dataset.facts.channels
        largest = 2 * side_of(recipe) - 2  # larger ones may be decoded at a reduced scale, each time for what is seen of them
        if size is not None and min(size) > largest:
            if wanted:
                raise RequestError(
                    f"data.in_memory needs images whose shorter side is at most {largest} pixels at data.image_size="
                    f"{side_of(recipe)}; these have {min(size)}, so they are streamed (data.in_memory=false)."
                )
            size = None
        fits = size is not None and sum(map(len, files)) * channels * size[0] * size[1] <= psutil.virtual_memory().available // 4
        if wanted and size is None:
            raise RequestError(
                "data.in_memory needs images of one size; these differ, so they are streamed (data.in_memory=false)."
            )
        if wanted or fits:
            dataset = replace(dataset, splits={name: hold(samples) for name, samples in dataset.splits.items()})
            list_unreadable(dataset)
    held = all(isinstance(samples, ArraySamples) for samples in dataset.splits.values())
    if held and device.type == "cuda" and fits_device(dataset, device):
        dataset = replace(dataset, splits={name: moved(samples, device) for name, samples in dataset.splits.items()})
    return dataset, held


def list_unreadable(dataset: Dataset) -> None:
    """Adds to the findings what turned out to be undecodable when the images were read into memory."""
    known = {(item.split, item.name) for item in dataset.findings.items if item.kind == "undecodable"}
    for split, samples in dataset.splits.items():
        for place, reason in samples.unreadable.items() if isinstance(samples, ArraySamples) else ():
            if (split, name := printable(samples.names[place])) not in known:
                done = "left out of training and of all counts"
                dataset.findings.add("undecodable", f"{name}: {reason}", done, name=name, split=split, reason=reason)


def fits_device(dataset: Dataset, device: torch.device) -> bool:
    """Whether all images take less than a quarter of the device's free memory."""
    needed = sum(samples.images.nbytes for samples in dataset.splits.values() if isinstance(samples, ArraySamples))
    return needed <= torch.cuda.mem_get_info(device)[0] // 4


def moved(samples: Any, device: torch.device) -> ArraySamples:
    """The samples with their images on `device`."""
    return replace(samples, images=samples.images.to(device))


def fresh_network(recipe: Recipe) -> Network:
    """The recipe's network, initialised from its seed; torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed.generator_seed(recipe.seed, "initial weights"))
        return create_model(recipe.model.name, **recipe.model.options)


def fit_to_data(network: Network, samples: Samples, recipe: Recipe, stats: Mapping[str, Tensor], most: int = 5_000) -> None:
    """Gives the layers that start from the data some of its images, drawn by the seed, as evaluation sees them."""
    if not network.fitted_layers():
        return
    scores = keyed.uniform(recipe.seed, "fitting", torch.arange(len(samples)))
    view = evaluation_view(recipe)
    chosen = [
        place for place in scores.argsort().tolist() if not isinstance(samples, ArraySamples) or place not in samples.unreadable
    ]
    images: list[Tensor] = []
    for place in chosen:
        with contextlib.suppress(UnreadableImage):  # the check of the data has listed it
            images.append(samples.seen(place, view).cpu())
        if len(images) == most:
            break
    network.fit(normalized(torch.stack(images), {name: value.cpu() for name, value in stats.items()}))


def check_weights(recipe: Recipe) -> None:
    """Raises `RequestError` if the weights to start from cannot be had or are of another network; before the data is opened."""
    if recipe.model.weights:
        weights.check(recipe.model.weights, recipe.model.name, recipe.model.options)


def start_from(network: Network, recipe: Recipe, classes: Sequence[str]) -> Loaded | None:
    """Loads the weights that the recipe starts from, if it names any; `classes` are those of the data."""
    source = recipe.model.weights
    return weights.load(network, source, name=recipe.model.name, classes=classes) if source else None


def weight_notes(loaded: Loaded | None, recipe: Recipe) -> list[str]:
    """What the user should know of the weights that the run starts from."""
    notes = [loaded.sentence()] if loaded else []
    if recipe.optim.head_first:
        inner = [name for name in loaded.fresh if not name.startswith(("head.", "auxiliaries."))] if loaded else []
        if loaded is None:
            notes.append("optim.head_first trains the head on random features, since no trained weights are named (--weights).")
        elif inner:
            notes.append(f"optim.head_first trains the head while {', '.join(inner)} still has its random values.")
    return notes


def begin(
    out: Path, recipe: Recipe, dataset: Dataset, device: torch.device, *,
    workers: int, share: Share, started: float, threads: int, command: list[str], listener: Listener,
) -> Prepared:  # fmt: skip
    """Chooses the plan, fixes the number of steps, writes the run directory. `started`: when the command began."""
    network = fresh_network(recipe)
    loaded = start_from(network, recipe, dataset.classes)
    for text in weight_notes(loaded, recipe):
        listener.note(text)
    stats = normalization(dataset.splits["train"], recipe, dataset.facts.channels)
    if loaded is None:
        fit_to_data(network, dataset.splits["train"], recipe, stats)
    order = make_order(dataset, recipe)
    free = forecast.free_memory(device)
    spared = forecast.spare_memory(network, recipe, share, device, free=free)
    trial = forecast.trial_factory(network, recipe, dataset, stats, device, workers, share)
    chosen, trials, note = forecast.chosen_plan(
        recipe, network, trial, order, device, threads, world=share.world, num_classes=len(dataset.classes)
    )
    if spared is not None:
        if recipe.plan == "auto":  # what the trials in fp32 needed may be more than what the run needs
            network.recompute_every, network.recompute_stages = 0, None
            spared = forecast.spare_memory(network, recipe, share, device, free=free, chosen=chosen)
        if spared is not None:
            listener.note(spared)
    measured = plan.measure(chosen, trial, 6, 2.0)
    pace = measured.seconds_per_step
    if recipe.optim.head_first:
        head_only = forecast.trial_factory(network, recipe, dataset, stats, device, workers, share, head_only=True)
        head_pace = plan.measure(chosen, head_only, 6, 2.0).seconds_per_step
        pace += recipe.optim.head_first * (head_pace - pace)
    if not math.isfinite(pace):  # training itself fails in these steps and says more, unless its length hangs on the pace
        if recipe.minutes is not None:
            raise RunError(f"Training breaks off in its first steps: {measured.outcome}. A lower optim.lr often helps.")
        pace = 0.0
    pace *= area_factor(recipe.augment.scales)
    measured_images = sum(len(samples) for name, samples in dataset.splits.items() if name != "train")
    total = forecast.total_steps(recipe, order, pace, time.perf_counter() - started, measured_images)
    needs = forecast.needs(network, recipe, chosen, share, device, pace * total)
    plan.release(device)
    forecast.check_memory(needs, recipe, device)
    card = {
        "format": runs.FORMAT,
        "residua": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "versions": versions(chosen),
        "hardware": machine.hardware(device),
        "git": machine.revision(),
        "data_fingerprint": dataset.fingerprint(),
        "total_steps": total,
        "steps_per_epoch": order.steps_per_epoch,
        "in_memory": all(isinstance(samples, ArraySamples) for samples in dataset.splits.values()),
        "plan": {**asdict(chosen), **forecast.explained(chosen, trials, note)},
        "threads": 1 if chosen.exact else threads,
        "micro_batch": recipe.micro_batch,
        "recompute": [network.recompute_every, network.recompute_stages],
        "processes": share.world,
        "parameters": num_parameters(network),
        "multiply_adds": multiply_adds(network, (dataset.facts.channels, side_of(recipe), side_of(recipe))),
        "forecast": needs,
        **({"weights": loaded.to_dict()} if loaded is not None else {}),
    }  # fmt: skip
    run = runs.create(out, recipe, card, _data_card(dataset, stats), stats)
    listener.note(_announcement(run, pace))
    return Prepared(run, dataset, chosen, network, device, workers)


def continue_run(out: Path, recipe: Recipe, dataset: Dataset, device: torch.device, *, workers: int, share: Share) -> Prepared:
    """Opens the run in `out` to go on; raises `RequestError` if command, data or processes differ, or its plan fails here.

    How often to save is as `recipe` has it now; the stored recipe keeps what the run began with.
    """
    run = runs.open_run(out)
    changed = {k: v for k, v in recipes.differences(run.recipe, recipe).items() if not k.startswith("checkpoints.")}
    if "data.source" in changed and len(set(map(one_path, changed["data.source"]))) == 1:
        del changed["data.source"]
    if changed:
        listed = "; ".join(f"{name}: {old!r} there, {new!r} now" for name, (old, new) in changed.items())
        raise RequestError(
            f"The run {out} was begun with another recipe ({listed}), which a run keeps to its end. To continue it, repeat the "
            f"command that began it: {shell(run)}. To train by the recipe of now, choose another --out."
        )
    if run.recorded("data_fingerprint") != dataset.fingerprint():
        raise RequestError(
            f"The data of the run {out} ({dataset.source}) has changed since it began, and a run has one set of data. Put "
            "the data back as it was to continue it, or choose another --out to train on the new data."
        )
    if run.recorded("processes") != share.world:
        began = run.recorded("processes")
        raise RequestError(
            f"The run {out} was begun with {_processes(began)}, not {share.world}, and each has its part of a batch. Continue it "
            f"with {_processes(began)}, or choose another --out to train with {share.world}."
        )
    run = replace(run, recipe=replace(run.recipe, checkpoints=recipe.checkpoints))
    stored = plan.named(str(run.recorded("plan").get("name")))
    network = fresh_network(run.recipe)
    if not run.finished():
        plan.check(stored, device, network=network)
    network.recompute_every, network.recompute_stages = run.manifest.get("recompute", [network.recompute_every, None])
    if not checkpoints.available(run.checkpoints):  # else the weights come from there, and the file may be gone
        loaded = start_from(network, run.recipe, dataset.classes)
        if loaded is not None and loaded.sha256 != run.recorded("weights")["sha256"]:
            raise RequestError(
                f"The weights {loaded.where} have changed since the run {out} began from them, and it has no checkpoint yet. Put "
                "the former ones back to continue it, or choose another --out to start from the new ones."
            )
        if loaded is None:
            fit_to_data(network, dataset.splits["train"], run.recipe, run.normalization)
    return Prepared(run, dataset, stored, network, device, workers)


def versions(chosen: Plan) -> dict[str, str]:
    """What the bytes of a run depend on, beside its recipe, data, plan, threads and processor."""
    return machine.versions() | ({"c_compiler": native.compiler()} if chosen.fused else {})


def other_software(prepared: Prepared) -> str | None:
    """That an unfinished run goes on with other versions than those that began it, in a sentence; None if it does not."""
    run = prepared.run
    began, now = run.recorded("versions"), versions(prepared.plan)
    here = machine.hardware(prepared.device)
    pairs = [(name, began[name], now[name]) for name in now if began.get(name, now[name]) != now[name]]
    if (then := run.recorded("hardware").get("processor")) != here["processor"]:
        pairs.append(("processor", then, here["processor"]))
    if not pairs or prepared.run.finished():
        return None
    listed = "; ".join(f"{name.replace('_', ' ')}: {old} there, {new} here" for name, old, new in pairs)
    return f"The run began elsewhere ({listed}): from here on it is equal to rounding, and not in bytes."


def shell(run: Run) -> str:
    """The command that began a run."""
    import shlex

    return shlex.join(run.recorded("command"))


def _processes(number: int) -> str:
    return f"{number} process{'es' * (number != 1)}"


def _data_card(dataset: Dataset, stats: Mapping[str, Tensor]) -> dict[str, Any]:
    counts = {name: class_counts(samples, len(dataset.classes)) for name, samples in dataset.splits.items()}
    return {
        "source": dataset.source, "note": dataset.note, "classes": list(dataset.classes), "counts": counts,
        "facts": {**asdict(dataset.facts), "mean": colour(stats["mean"]), "std": colour(stats["std"])},
        "findings": asdict(dataset.findings),
    }  # fmt: skip


def colour(values: Tensor) -> list[float]:
    """One number a channel, to five digits."""
    return [round(value, 5) for value in values.mean((-2, -1)).tolist()]


def _announcement(run: Run, pace: float) -> str:
    card = run.manifest
    factor = card["plan"]["factor"]
    gain = f", {factor:.2g} times as fast as fp32" if factor and factor > 1.05 else ""
    note = f" ({card['plan']['note']})" if card["plan"]["note"] else ""
    images = run.recipe.batch_size / pace if pace else math.nan
    needs = f"forecast {duration(card['forecast']['seconds'])} of training and {card['forecast']['memory_mib']:,} MiB"
    return (
        f"Plan: {card['plan']['name']}{gain}{note}; {images:,.0f} images/s. "
        f"{card['total_steps']:,} steps of {run.recipe.batch_size}, {needs}."
    )
