"""How a network would be trained on this machine, and why: the execution plans tried, explained. Layer 4."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from residua import convolving, forecast, kernels, plan, plan_memory
from residua.batches import Share
from residua.cost import multiply_adds, num_parameters
from residua.data import open_data
from residua.dataset import ArraySamples, Dataset, Facts
from residua.doctor import matrix_rate
from residua.errors import RequestError
from residua.models import CATALOG
from residua.plan import PLANS, Length, Plan, Trial
from residua.prepare import fresh_network
from residua.published import Published
from residua.recipe import Recipe, replaced
from residua.recipes import get_recipe
from residua.resolve import normalization, resolve, side_of

__all__ = ["LENGTHS", "examine_plan", "random_dataset"]

LENGTHS = (100, 1_000, 10_000, 100_000)  # updates
_LIMIT = 4.0  # seconds for the timed updates of one plan, after its first

_PARTS = {
    "fp32": "single precision",
    "bf16": "bfloat16 where autocast allows it, weights and sums in single precision",
    "channels_last": "the channels of a pixel side by side",
    "fused": "normalisation, addition, ReLU or GELU and a pooling behind them in one loop each way, of our own",
    "winograd": "convolutions in loops of our own: 3x3 of stride 1 with 2.25 times fewer multiplications, of stride 2 and of "
    "images tap by tap, 1x1 with what stands before them",
    "model": "compiled as a whole",
    "stages": "compiled a stage at a time",
    "exact": "one thread and deterministic operations: the same bytes on every machine of this sort",
}


def random_dataset(channels: int, side: int, count: int, num_classes: int = 10) -> Dataset:
    """Images of noise in memory, for timings: they cost what real ones do once these are decoded."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)
    samples = ArraySamples(images, torch.arange(count) % num_classes, [str(place) for place in range(count)])
    return Dataset(
        source="random", note="", classes=tuple(map(str, range(num_classes))), splits={"train": samples, "test": samples},
        facts=Facts(channels=channels, size=(side, side), flip=True, pad=side // 8),
    )  # fmt: skip


def examine_plan(
    model: str,
    options: Mapping[str, Any] | None = None,
    *,
    source: str | None = None,
    data_dir: Any = None,
    image_size: int | None = None,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Tries every execution plan that applies to the network called `model`, by whole updates of the recipe `fast`, on the
    images of `source` or on noise of the network's usual size, and says which one a run of which length would take.

    Nothing is trained for keeps, and nothing remembered is used; what is measured is remembered for runs of the same kind.
    Raises `RequestError` for an unknown model, option or source.
    """
    entry = CATALOG.get(model)
    changes = {"model.name": model, "epochs": 1000, **{f"model.{name}": value for name, value in (options or {}).items()}}
    if batch_size:
        changes["batch_size"] = batch_size
    if image_size:
        changes["data.image_size"] = image_size
    recipe: Recipe = replaced(get_recipe("fast"), changes)
    if source is not None:
        dataset = open_data(source, data_dir=data_dir)
        recipe = replaced(recipe, {"data.source": source})
    else:
        shape = entry.input_shape if isinstance(entry, Published) else (3, 32, 32)
        channels = (options or {}).get("in_channels", shape[0])
        if not isinstance(channels, int) or channels < 1:
            raise RequestError(f"in_channels must be a whole number of at least 1, not {channels!r}.")
        dataset = random_dataset(channels, image_size or shape[-1], 2 * recipe.batch_size)
    recipe, _ = resolve(recipe, dataset)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return _card(recipe, dataset, device, torch.get_num_threads())


def _card(recipe: Recipe, dataset: Dataset, device: torch.device, threads: int) -> dict[str, Any]:
    network = fresh_network(recipe)
    recomputed = forecast.spare_memory(network, recipe, Share(), device)
    stats = normalization(dataset.splits["train"], recipe, dataset.facts.channels)
    trial = forecast.trial_factory(network, recipe, dataset, stats, device, 0, Share())
    from_heap = plan.apply(PLANS["fp32"], threads, device, sparing=plan.spares(network))
    left_out = {"exact": "it is for the same bytes on every machine, not for speed"}
    trials: list[Trial] = []
    for candidate in _candidates(device):
        reason = _reason(candidate, network, device)
        if reason is None:
            found = plan.measure(candidate, trial, 8, _LIMIT)
            trials.append(plan.judged(found, trials[0] if trials else found, trial))
        else:
            left_out[candidate.name] = reason
    recompute = (network.recompute_every, network.recompute_stages)
    about = plan_memory.key(recipe, device, threads, 1, len(dataset.classes), recompute)
    plan_memory.remember(about, trials)
    if not math.isfinite(trials[0].seconds_per_step):
        raise RequestError(f"Not even the plain plan can be run: {trials[0].outcome}.")
    chosen = {length: _chosen(trials, network, device, length) for length in LENGTHS}
    shape = (dataset.facts.channels, side_of(recipe), side_of(recipe))
    rates = {"fp32": matrix_rate(torch.float32, device, 2048), "bf16": matrix_rate(torch.bfloat16, device, 2048)}
    adds = multiply_adds(network, shape)
    needs = forecast.needs(network, recipe, chosen[LENGTHS[1]], Share(), device, 0.0)
    return {
        "model": recipe.model.name,
        "input_shape": list(shape),
        "parameters": num_parameters(network),
        "multiply_adds": adds,
        "batch_size": recipe.batch_size,
        "optimizer": recipe.optim.name,
        "device": str(device),
        "threads": threads,
        "gflops": {name: round(rate) for name, rate in rates.items()},
        "ceiling": {name: round(rate * 1e9 / (6 * adds), 1) for name, rate in rates.items()},
        "plans": [_row(one, trials[0], recipe.batch_size) for one in trials],
        "left_out": left_out,
        "chosen": [_choice(length, best, trials) for length, best in chosen.items()],
        "memory_mib": needs["memory_mib"],
        "free_mib": forecast.free_memory(device) // 2**20,
        "recomputed": recomputed,
        "notes": _notes(device, threads, network, from_heap),
        "remembered_in": str(plan_memory.place(about)),
    }


def _candidates(device: torch.device) -> list[Plan]:
    kinds = [one for one in PLANS.values() if not one.exact and (device.type == "cpu" or not one.fused)]
    return sorted(kinds, key=lambda one: one.name != "fp32")  # the reference comes first


def _reason(candidate: Plan, network: Any, device: torch.device) -> str | None:
    """Why a plan is not tried; None if it is."""
    if candidate.winograd and not plan.has_own_convolutions(network):
        return "there are no convolutions for it: 3x3, or 1x1 of stride 1, with at least 16 channels, in eights"
    if candidate.fused and not candidate.winograd and not plan.has_batch_norm(network):
        return "there is no batch normalisation to fuse"
    if candidate.fused:
        return plan.loops_obstacle(candidate, network)
    return plan.compile_obstacle(network, device) if candidate.compile != "none" else None


def _chosen(trials: list[Trial], network: Any, device: torch.device, updates: int) -> Plan:
    def unknown(*_: Any, **__: Any) -> Any:
        raise RuntimeError("every plan that applies was tried")

    return plan.choose(unknown, network, device, Length(steps=updates), known=trials)[0]


def _row(one: Trial, reference: Trial, batch_size: int) -> dict[str, Any]:
    described = PLANS[one.name]
    pairs = list(zip(one.losses, reference.losses))
    apart = max((abs(a - b) / max(abs(b), 0.1) for a, b in pairs), default=math.nan)
    words = [_PARTS[described.precision], _PARTS.get(described.memory_format, ""), _PARTS.get(described.compile, "")]
    words += [_PARTS[name] for name in ("fused", "winograd") if getattr(described, name)]
    return {
        "name": one.name,
        "seconds_per_step": forecast.finite(one.seconds_per_step),
        "images_per_second": forecast.finite(batch_size / one.seconds_per_step),
        "factor": forecast.finite(reference.seconds_per_step / one.seconds_per_step),
        "start_seconds": round(one.start_seconds, 2),
        "loss_apart": forecast.finite(apart),
        "outcome": one.outcome,
        "what": "; ".join(filter(None, words)),
    }


def _choice(updates: int, best: Plan, trials: list[Trial]) -> dict[str, Any]:
    own = next(one for one in trials if one.name == best.name)
    return {"updates": updates, "plan": best.name, "seconds": round(Length(steps=updates).cost(own), 1)}


def _notes(device: torch.device, threads: int, network: Any, from_heap: int) -> list[str]:
    """What is set for the whole process, in sentences. `from_heap`: up to how many bytes buffers come from the heap, if set."""
    notes = []
    if device.type == "cpu":
        if not from_heap:
            notes.append("Memory: the system's allocator is as it was, for it cannot be told what to keep (glibc's mallopt).")
        elif plan.spares(network):
            notes.append("Memory: every large buffer goes back to the system at once, for memory is what is short.")
        else:
            largest = f" of up to {from_heap // 2**20} MiB" if from_heap < 2**30 else ""
            notes.append(
                f"Memory: freed buffers{largest} are kept and used again (glibc's mallopt), "
                "which saves a page fault for every 4 KiB."
            )
        notes.append(f"Threads: {threads}, not bound to cores: binding them was no faster.")
        obstacle, fewer = kernels.obstacle(), convolving.obstacle()
        notes.append(f"Own loops: {obstacle}." if obstacle else "Own loops: compiled once for this processor and kept.")
        if fewer and not obstacle:
            notes.append(f"Convolutions in loops of our own: {fewer}.")
    else:
        notes.append("cuDNN: deterministic algorithms, no search among them, so that a run can be repeated.")
    return notes
