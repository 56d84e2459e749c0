"""From a resolved recipe and its data to a run that is ready to start: plan measured, length fixed, forecast made. Layer 4."""

from __future__ import annotations

import copy
import datetime
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

import residua
from residua import keyed, machine, plan, runs
from residua import recipe as recipes
from residua.batches import Order, Share, train_batches
from residua.cost import multiply_adds, num_parameters
from residua.dataset import ArraySamples, Dataset, FileSamples, class_counts, hold
from residua.errors import RequestError
from residua.models import create_model
from residua.network import Network
from residua.plan import Plan, Trial
from residua.recipe import Recipe
from residua.record import Listener
from residua.resolve import normalization
from residua.runs import Run
from residua.step import Step

__all__ = ["Prepared", "begin", "continue_run", "default_out", "fresh_network", "in_memory", "make_order"]


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
    """runs/<data>-<model>-<recipe>-<hash>: the same request leads to the same directory."""
    digest = hashlib.sha256(json.dumps(recipes.to_dict(recipe), sort_keys=True).encode()).hexdigest()[:6]
    words = (Path(recipe.data.source).stem or "data", recipe.model.name, Path(recipe.name).stem)
    return Path("runs") / "-".join([*(word.replace(" ", "_") for word in words if word != "auto"), digest])


def in_memory(dataset: Dataset, recipe: Recipe, device: torch.device) -> tuple[Dataset, bool]:
    """The data set with its splits held as uint8 where the recipe or the memory at hand says so, and whether they are."""
    files = [samples for samples in dataset.splits.values() if isinstance(samples, FileSamples)]
    wanted = recipe.data.in_memory
    if files and wanted is not False:
        size, channels = dataset.facts.size, dataset.facts.channels
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
    known = {item.what for item in dataset.findings.items}
    for samples in dataset.splits.values():
        for place in samples.unreadable if isinstance(samples, ArraySamples) else ():
            if samples.names[place] not in known:
                dataset.findings.add("undecodable", samples.names[place], "left out of training and of all counts")


def fits_device(dataset: Dataset, device: torch.device) -> bool:
    """Whether all images take less than a quarter of the device's free memory."""
    needed = sum(samples.images.nbytes for samples in dataset.splits.values() if isinstance(samples, ArraySamples))
    return needed <= torch.cuda.mem_get_info(device)[0] // 4


def moved(samples: Any, device: torch.device) -> ArraySamples:
    """The samples with their images on `device`."""
    return replace(samples, images=samples.images.to(device))


def make_order(dataset: Dataset, recipe: Recipe) -> Order:
    """The order of the training split."""
    return Order(dataset.splits["train"].labels, recipe.batch_size, recipe.seed, recipe.data.balance == "sampler")


def class_weights(dataset: Dataset, recipe: Recipe) -> Tensor | None:
    """N / (K n_c) for each class if the recipe weighs classes, so that the mean weight of a sample is 1."""
    if recipe.data.balance != "weights":
        return None
    counts = torch.tensor(class_counts(dataset.splits["train"], len(dataset.classes)), dtype=torch.float32)
    return counts.sum() / (len(counts) * counts.clamp_min(1))


def fresh_network(recipe: Recipe) -> Network:
    """The recipe's network, initialised from its seed; torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed.generator_seed(recipe.seed, "initial weights"))
        network = create_model(recipe.model.name, **recipe.model.options)
    if recipe.model.weights:
        start_from(network, recipe.model.weights)
    return network


def start_from(network: Network, weights: str) -> None:
    """Loads the weights of a run or of a safetensors file; a classifier for other classes keeps its fresh values."""
    from safetensors.torch import load_file

    path = Path(weights)
    if path.is_dir():
        tensors = dict(runs.load(path).state_dict())
    elif path.is_file() and path.suffix == ".safetensors":
        tensors = load_file(path)
    else:
        raise RequestError(f"--weights takes a run directory or a .safetensors file; there is no {weights}.")
    own = network.state_dict()
    for name in ("head.classifier.weight", "head.classifier.bias"):
        if name in tensors and name in own and tensors[name].shape != own[name].shape:
            tensors[name] = own[name]
    runs.load_weights(network, tensors, weights)


def begin(
    out: Path, recipe: Recipe, dataset: Dataset, device: torch.device, *,
    workers: int, share: Share, started: float, threads: int, command: list[str], listener: Listener,
) -> Prepared:  # fmt: skip
    """Chooses the plan, fixes the number of steps, writes the run directory. `started`: when the command began."""
    network = fresh_network(recipe)
    stats = normalization(dataset.splits["train"], recipe, dataset.facts.channels)
    order = make_order(dataset, recipe)
    trial = _trial_factory(network, recipe, dataset, stats, device, workers, share)
    chosen, trials, note = _plan(recipe, network, trial, order, device, threads)
    pace = plan.measure(chosen, trial, 6, 2.0).seconds_per_step
    total = _total_steps(recipe, order, pace, time.perf_counter() - started)
    forecast = _forecast(network, recipe, chosen, share, device, pace * total)
    _check_memory(forecast, recipe, device)
    card = {
        "format": runs.FORMAT,
        "residua": residua.__version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "versions": machine.versions(),
        "hardware": machine.hardware(device),
        "git": machine.revision(),
        "data_fingerprint": dataset.fingerprint(),
        "total_steps": total,
        "steps_per_epoch": order.steps_per_epoch,
        "plan": {**asdict(chosen), **_explained(chosen, trials, note)},
        "threads": 1 if chosen.exact else threads,
        "micro_batch": recipe.micro_batch,
        "processes": share.world,
        "parameters": num_parameters(network),
        "multiply_adds": multiply_adds(network, (dataset.facts.channels, stats_side(recipe), stats_side(recipe))),
        "forecast": forecast,
    }  # fmt: skip
    run = runs.create(out, recipe, card, _data_card(dataset), stats)
    listener.note(_announcement(run, pace))
    return Prepared(run, dataset, chosen, network, device, workers)


def stats_side(recipe: Recipe) -> int:
    """Side of the network's input; a resolved recipe has one."""
    assert recipe.data.image_size is not None
    return recipe.data.image_size


def continue_run(out: Path, recipe: Recipe, dataset: Dataset, device: torch.device, *, workers: int, share: Share) -> Prepared:
    """Opens the run in `out` to go on; raises `RequestError` if the command, the data or the processes differ."""
    run = runs.open_run(out)
    changed = {k: v for k, v in recipes.differences(run.recipe, recipe).items() if not k.startswith("checkpoints.")}
    if changed:
        listed = "; ".join(f"{name}: {old!r} there, {new!r} now" for name, (old, new) in changed.items())
        raise RequestError(f"The run {out} has another recipe ({listed}). Choose another --out, or repeat: {shell(run)}.")
    if run.manifest["data_fingerprint"] != dataset.fingerprint():
        raise RequestError(
            f"The data of the run {out} has changed since it began. Choose another --out to train on the new data."
        )
    if run.manifest["processes"] != share.world:
        raise RequestError(f"The run {out} was begun with {run.manifest['processes']} processes, not {share.world}.")
    stored = plan.named(run.manifest["plan"]["name"])
    return Prepared(run, dataset, stored, fresh_network(run.recipe), device, workers)


def shell(run: Run) -> str:
    """The command that began a run."""
    import shlex

    return shlex.join(run.manifest["command"])


def _trial_factory(
    network: Network,
    recipe: Recipe,
    dataset: Dataset,
    stats: Mapping[str, Tensor],
    device: torch.device,
    workers: int,
    share: Share,
) -> Callable[[Plan], Callable[[int], float]]:
    """Makes, for a plan, a function that trains a copy of the network on the run's first batches."""
    order = make_order(dataset, recipe)
    steps = max(32, order.steps_per_epoch)

    def make_step(candidate: Plan) -> Callable[[int], float]:
        twin = Step(
            copy.deepcopy(network), recipe, candidate, stats, steps, device=device, class_weights=class_weights(dataset, recipe)
        )
        batches = train_batches(
            dataset.splits["train"], order, recipe.augment, stats_side(recipe), 0, steps, Share(0, share.world), workers
        )

        def step(_: int) -> float:
            return twin(next(batches)).loss

        return step

    def isolated(candidate: Plan) -> Callable[[int], float]:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if device.type == "cuda" else []):
            inner = make_step(candidate)

        def step(number: int) -> float:
            with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if device.type == "cuda" else []):
                return inner(number)

        return step

    return isolated


def _plan(
    recipe: Recipe,
    network: Network,
    trial: Callable[[Plan], Callable[[int], float]],
    order: Order,
    device: torch.device,
    threads: int,
) -> tuple[Plan, list[Trial], str]:
    if recipe.plan != "auto":
        chosen = plan.named(recipe.plan)
        plan.apply(chosen, threads, device)
        return chosen, [], "asked for"
    plan.apply(plan.PLANS["fp32"], threads, device)

    def total_seconds(pace: float) -> float:
        return recipe.minutes * 60 * (pace > 0) if recipe.minutes else pace * _total_steps(recipe, order, pace, 0.0)

    return plan.choose(trial, network, device, total_seconds)


def _total_steps(recipe: Recipe, order: Order, pace: float, spent: float) -> int:
    """The number of updates: as asked, or what fits into `minutes` less what is spent and what measuring will take."""
    if recipe.steps is not None:
        return recipe.steps
    if recipe.epochs is not None:
        return max(1, round(recipe.epochs * order.steps_per_epoch))
    assert recipe.minutes is not None
    return max(1, int((recipe.minutes * 60 - spent) * 0.95 / pace))


def _forecast(
    network: Network, recipe: Recipe, chosen: Plan, share: Share, device: torch.device, seconds: float
) -> dict[str, float]:
    """Seconds of training, and MiB of memory: weights, gradients, optimiser, average, and what the backward pass keeps."""
    side, channels = stats_side(recipe), recipe.model.options["in_channels"]
    sample = torch.zeros(2, channels, side, side, device=device)
    kept = plan.activation_bytes(copy.deepcopy(network).to(device), sample, chosen)
    images = min(recipe.micro_batch or recipe.batch_size, -(-recipe.batch_size // share.world))
    copies = 2 + (1 if recipe.optim.name != "adamw" else 2) + bool(recipe.average.decay)
    return {"seconds": round(seconds, 1), "memory_mib": round((4 * copies * num_parameters(network) + images * kept) / 2**20)}


def _check_memory(forecast: Mapping[str, float], recipe: Recipe, device: torch.device) -> None:
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if forecast["memory_mib"] * 2**20 > free:
        raise RequestError(
            f"This run would need about {forecast['memory_mib']:,} MiB of memory and {free // 2**20:,} MiB are free. "
            f"--set micro_batch={max(1, recipe.batch_size // 4)} keeps the batch and takes less."
        )


def _explained(chosen: Plan, trials: list[Trial], note: str) -> dict[str, Any]:
    plain = next((trial.seconds_per_step for trial in trials if trial.name == "fp32"), math.nan)
    own = next((trial.seconds_per_step for trial in trials if trial.name == chosen.name), math.nan)
    tried = [
        {"name": t.name, "seconds_per_step": finite(t.seconds_per_step), "start_seconds": round(t.start_seconds, 2),
         "loss": finite(t.losses[-1]) if t.losses else None, "outcome": t.outcome}
        for t in trials
    ]  # fmt: skip
    return {"factor": finite(plain / own if own else math.nan), "tried": tried, "note": note}


def finite(value: float) -> float | None:
    """The value to four digits, or None where it is no number: JSON has neither NaN nor infinity."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _data_card(dataset: Dataset) -> dict[str, Any]:
    counts = {name: class_counts(samples, len(dataset.classes)) for name, samples in dataset.splits.items()}
    return {
        "source": dataset.source, "note": dataset.note, "classes": list(dataset.classes), "counts": counts,
        "facts": asdict(dataset.facts), "findings": asdict(dataset.findings),
    }  # fmt: skip


def _announcement(run: Run, pace: float) -> str:
    card = run.manifest
    factor = card["plan"]["factor"]
    gain = f", {factor:.2g} times as fast as fp32" if factor and factor > 1.05 else ""
    note = f" ({card['plan']['note']})" if card["plan"]["note"] else ""
    images = run.recipe.batch_size / pace if pace else math.nan
    forecast = f"forecast {machine.duration(card['forecast']['seconds'])} of training and {card['forecast']['memory_mib']:,} MiB"
    return (
        f"Plan: {card['plan']['name']}{gain}{note}; {images:,.0f} images/s. "
        f"{card['total_steps']:,} steps of {run.recipe.batch_size}, {forecast}."
    )
