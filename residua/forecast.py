"""What a run will take: the plan is measured on a copy, the number of steps fixed, time and memory forecast. Layer 4."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from residua import plan, plan_memory
from residua.batches import Order, Share, train_batches
from residua.cost import num_parameters
from residua.dataset import Dataset
from residua.errors import RequestError
from residua.network import Network
from residua.plan import Length, MakeStep, Plan, Trial
from residua.recipe import Recipe, replaced
from residua.resolve import class_weights, make_order, side_of
from residua.step import NonFiniteLoss, Step

__all__ = ["check_memory", "chosen_plan", "explained", "needs", "spare_memory", "total_steps", "trial_factory"]

SPARE = 0.8  # of the memory that is free: tensors are counted, and what lies between and beside them is not


def trial_factory(
    network: Network,
    recipe: Recipe,
    dataset: Dataset,
    stats: Mapping[str, Tensor],
    device: torch.device,
    workers: int,
    share: Share,
    *,
    head_only: bool = False,
) -> MakeStep:
    """Makes, for a plan, a function that trains a copy of the network, or its head only, on the run's first batches, at the full
    size of the images."""
    recipe = replaced(recipe, {"optim.head_first": float(head_only), "augment.scales": ()})
    order = make_order(dataset, recipe)
    steps = 100_000  # so that a warm-up is seen at its start: plans are compared where losses are smooth

    def make_step(candidate: Plan, rounded: bool) -> Callable[[int], float]:
        twin = copy.deepcopy(network)
        if rounded:
            with torch.no_grad():
                for parameter in twin.parameters():
                    parameter.copy_(parameter.bfloat16())
        train = Step(twin, recipe, candidate, stats, steps, device=device, class_weights=class_weights(dataset, recipe))
        batches = train_batches(
            dataset.splits["train"], order, recipe.augment, side_of(recipe), 0, steps, Share(0, share.world), workers
        )

        def step(_: int) -> float:
            try:
                return train(next(batches)).loss
            except NonFiniteLoss as error:  # the run itself will stop there and say more
                return error.value

        return step

    def isolated(candidate: Plan, *, rounded: bool = False) -> Callable[[int], float]:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if device.type == "cuda" else []):
            inner = make_step(candidate, rounded)

        def step(number: int) -> float:
            with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if device.type == "cuda" else []):
                return inner(number)

        return step

    return isolated


def chosen_plan(
    recipe: Recipe,
    network: Network,
    trial: MakeStep,
    order: Order,
    device: torch.device,
    threads: int,
    *,
    world: int = 1,
    num_classes: int = 0,
) -> tuple[Plan, list[Trial], str]:
    """The recipe's plan, or the fastest of those that are measured now or were before, with all trials and a note."""
    sparing = plan.spares(network)
    if recipe.plan != "auto":
        chosen = plan.named(recipe.plan)
        plan.apply(chosen, threads, device, sparing=sparing)
        return chosen, [], "asked for"
    plan.apply(plan.PLANS["fp32"], threads, device, sparing=sparing)
    seconds = None if recipe.minutes is None else 60 * recipe.minutes
    length = Length(seconds=seconds) if seconds else Length(steps=total_steps(recipe, order, math.nan, 0.0))
    about = plan_memory.key(recipe, device, threads, world, num_classes, (network.recompute_every, network.recompute_stages))
    known = plan_memory.recall(about)
    chosen, trials, note = plan.choose(trial, network, device, length, known=known, world=world)
    if {one.name for one in trials} <= {one.name for one in known}:
        note = "; ".join(filter(None, ("as measured before", note)))
    plan_memory.remember(about, trials)
    return chosen, trials, note


def total_steps(recipe: Recipe, order: Order, pace: float, spent: float, measured: int = 0) -> int:
    """The number of updates: as asked, or what fits into `minutes` at `pace` seconds a step, less the seconds `spent` so far.

    Kept back: measuring `measured` images as often as the recipe says and twice at the end, each at half of what an image
    costs in training (a forward pass, and decoding), and a twelfth, by which long runs were slower than their first steps.
    """
    if recipe.steps is not None:
        return recipe.steps
    if recipe.epochs is not None:
        return max(1, round(recipe.epochs * order.steps_per_epoch))
    assert recipe.minutes is not None
    measuring = (recipe.evaluations + 2) * measured / recipe.batch_size * pace / 2
    return max(1, int((recipe.minutes * 60 - spent - measuring) * 0.92 / pace))


def needs(network: Network, recipe: Recipe, chosen: Plan, share: Share, device: torch.device, seconds: float) -> dict[str, float]:
    """Seconds of training, and MiB of memory that it takes beside what the process holds already: weights, gradients,
    optimiser, average, and what the backward pass keeps."""
    side, channels = side_of(recipe), recipe.model.options["in_channels"]
    sample = torch.zeros(2, channels, side, side, device=device)
    twin = copy.deepcopy(network).to(device)
    kept = plan.activation_bytes(twin, sample, chosen)
    if network.recompute_every:  # what lies between two kept inputs comes back, when the maps of later stages are gone
        twin.recompute_stages = None
        least = plan.activation_bytes(twin, sample, chosen)
        twin.recompute_every = 0
        part = min(1.0, network.recompute_every / max(1, longest_stage(network)))
        kept = max(kept, least + round((plan.activation_bytes(twin, sample, chosen) - least) * part))
    images = min(recipe.micro_batch or recipe.batch_size, -(-recipe.batch_size // share.world))
    copies = 2 + (2 if recipe.optim.name in ("adamw", "rmsprop") else 1) + bool(recipe.average.decay)
    return {"seconds": round(seconds, 1), "memory_mib": round((4 * copies * num_parameters(network) + images * kept) / 2**20)}


def longest_stage(network: Network) -> int:
    """Units in the stage that has the most."""
    return max((len(stage) for stage in network.stages if isinstance(stage, nn.Sequential)), default=0)


def spare_memory(
    network: Network, recipe: Recipe, share: Share, device: torch.device, *, free: int | None = None, chosen: Plan | None = None
) -> str | None:
    """Has the network compute activations anew in the backward pass where keeping them would not fit into the memory at hand:
    in as few stages as will do, from the first, whose maps are the largest and cost no more to compute. `free`: bytes, by default
    those that are free now; `chosen`: the plan, by default the recipe's, or fp32 where it is to be found. Returns what was done
    in a sentence, or None if nothing was needed or the recipe has decided.
    """
    if network.recompute_every or longest_stage(network) < 2 or recipe.plan == "exact":
        return None
    if chosen is None:
        chosen = plan.named(recipe.plan) if recipe.plan != "auto" else plan.PLANS["fp32"]  # with which all others are compared
    free = free_memory(device) if free is None else free
    wanted = needs(network, recipe, chosen, share, device, 0.0)["memory_mib"] * 2**20
    if wanted <= SPARE * free:
        return None
    network.recompute_every = max(1, round(math.sqrt(longest_stage(network))))
    for stages in range(0 if chosen.fused else 1, len(network.stages) + 1):  # fused: 0 spares what costs no convolution
        network.recompute_stages = stages
        if needs(network, recipe, chosen, share, device, 0.0)["memory_mib"] * 2**20 <= SPARE * free:
            break
    which = f"those of the first {network.recompute_stages} stages" if network.recompute_stages else "those behind normalisations"
    return (
        f"Keeping all activations would take {wanted // 2**20:,} MiB and {free // 2**20:,} MiB are free, so {which} are computed "
        f"again in the backward pass, {network.recompute_every} units at a time."
    )


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def check_memory(forecast: Mapping[str, float], recipe: Recipe, device: torch.device) -> None:
    free = free_memory(device)
    if forecast["memory_mib"] * 2**20 > free:
        raise RequestError(
            f"This run would need about {forecast['memory_mib']:,} MiB of memory and {free // 2**20:,} MiB are free. "
            f"--set micro_batch={max(1, recipe.batch_size // 4)} keeps the batch and takes less."
        )


def explained(chosen: Plan, trials: list[Trial], note: str) -> dict[str, Any]:
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
