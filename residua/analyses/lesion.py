"""The error of a trained network with units off, removed, or in another order (veit2016, sections 4.1 to 4.3). Layer 3.

All damages of a batch share what lies before them: the signal before each step of the network is computed once, so that switching
off every unit in turn costs about half of as many passes. `residua.lesions` says what is done to a unit and to a plain layer.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from residua import keyed
from residua.analyses._lesion_figures import draw, read
from residua.analysis import Analysis, Budget, Subject, affordable
from residua.infer import precision_here, ready
from residua.lesions import Damage, Patient, pairs_drawn, patient
from residua.network import Network
from residua.scoring import autocast_for
from residua.statistics import wilson_interval

__all__ = ["lesion"]

MOST_IMAGES = 10_000
ENOUGH_IMAGES = 1_000
DRAWS = (20, 10, 5)
COUNTS = 8


def _measure(subject: Subject, budget: Budget) -> dict[str, Any]:
    precision = precision_here("bf16", subject.device)  # the errors are counts: rounding moves one in some hundred images
    found = patient(subject, precision)
    images, _ = next(subject.batches())
    with torch.inference_mode(), _computing(found, precision):
        seconds = budget.timed(lambda: found.signals(images)[-1].sum().item())
    single = [found.without([target]) for target in found.targets]
    draws, random, orders = _planned(found, budget, single, seconds / len(images))
    many = [damage for _, damages in random for damage in damages]
    swaps = [damage for _, _, damage in orders]
    damages = [Damage(), *single, *many, *swaps]
    each = sum(_cost(found, damage) for damage in damages) * seconds / len(images)
    wanted = affordable(0.9 * budget.left, each, min(MOST_IMAGES, subject.num_images))
    seen, wrong, counts, exact = _count(found, damages, wanted, precision, budget)
    errors = [100 * number / seen for number in wrong]
    singles, rest = errors[1 : 1 + len(single)], errors[1 + len(single) :]
    low, high = wilson_interval(wrong[0], seen)
    zeroed = _zeroed(found, images, precision) if found.plain else [None] * len(single)
    return {
        "kind": "layers" if found.plain else "units" if subject.rewired is None else "skips",
        "baseline": errors[0],
        "baseline_in_fp32": 100 * exact / seen,
        "baseline_interval": [100 * low, 100 * high],
        "chance": 100 * (1 - max(counts) / seen),
        "single": [
            {"path": target.path, "stage": target.stage, "transition": target.transition, "left": target.what, "error": error,
             "error_when_zero": zero}
            for target, error, zero in zip(found.targets, singles, zeroed)
        ],
        "random": _random_rows(random, rest[: len(many)]),
        "swaps": [
            {"pairs": pairs, "tau": round(tau, 4), "error": error}
            for (pairs, tau, _), error in zip(orders, rest[len(many) :])
        ],
        "without_swaps": None if orders else "no two steps of one shape stand in a chain",
        "used": {"images": seen, "draws": draws, "precision": precision},
    }  # fmt: skip


def _computing(found: Patient, precision: str) -> AbstractContextManager[object]:
    """The context for `precision`, unless the steps compute in it by themselves."""
    return autocast_for(precision, found.subject.device) if found.dtype is None else nullcontext()


def _planned(
    found: Patient, budget: Budget, single: Sequence[Damage], pace: float
) -> tuple[int, list[tuple[int, list[Damage]]], list[tuple[int, float, Damage]]]:
    """How many draws, and which: as many as leave time for enough images."""
    base = 1 + sum(_cost(found, damage) for damage in single)
    ks = _counts(len(found.targets))
    pairs = sum(len(group) for group in found.swappable)
    for draws in DRAWS:
        random = [(k, [_some_off(found, k, draw) for draw in range(draws)]) for k in ks]
        orders = [_reordered(found, count, draw) for draw in range(draws) for count in _counts(pairs)] if pairs else []
        more = sum(_cost(found, damage) for _, damages in random for damage in damages)
        more += sum(_cost(found, damage) for _, _, damage in orders)
        if (base + more) * pace * min(ENOUGH_IMAGES, found.subject.num_images) < 0.9 * budget.left:
            break
    return draws, random, orders


def _counts(most: int) -> list[int]:
    """The numbers of units that are switched off at once, or of pairs that are swapped: up to some two fifths of all."""
    last = max(min(most, 6), -(-2 * most // 5))
    return sorted({round(1 + (last - 1) * step / (COUNTS - 1)) for step in range(COUNTS)}) if last else []


def _some_off(found: Patient, k: int, draw: int) -> Damage:
    order = keyed.permutation(len(found.targets), found.subject.seed, "lesion", k, draw)
    return found.without([found.targets[place] for place in sorted(order[:k].tolist())])


def _reordered(found: Patient, pairs: int, draw: int) -> tuple[int, float, Damage]:
    damage, tau = found.shuffled(pairs_drawn(found.swappable, pairs, found.subject.seed, "swap", pairs, draw))
    return pairs, tau, damage


def _cost(found: Patient, damage: Damage) -> float:
    """In passes through the whole network."""
    return 1.0 if found.chain is None else (len(found.chain) - damage.start) / len(found.chain)


def _count(
    found: Patient, damages: Sequence[Damage], wanted: int, precision: str, budget: Budget
) -> tuple[int, list[int], list[int], int]:
    """Images seen, how many of them each damaged network gets wrong, how many each class has, and how many the undamaged network
    gets wrong in float32."""
    seen, exact, wrong = 0, 0, [0] * len(damages)
    counts = [0] * len(found.subject.classes)
    model = found.subject.model
    in_fp32 = ready(model, "fp32", found.subject.device) if isinstance(model, Network) else model
    for images, labels in found.subject.batches():
        images, labels = images[: wanted - seen], labels[: wanted - seen]
        with torch.inference_mode():
            exact += int((in_fp32(images).argmax(1) != labels).sum())
        with torch.inference_mode(), _computing(found, precision):
            signals = found.signals(images)
            for number, damage in enumerate(damages):
                wrong[number] += int((found.logits(damage, images, signals).argmax(1) != labels).sum())
                budget.progress((seen + len(labels) * (number + 1) / len(damages)) / wanted)
        for label in labels.tolist():
            counts[label] += 1
        seen += len(labels)
        if seen >= wanted:
            break
    return seen, wrong, counts, exact


def _zeroed(found: Patient, images: Tensor, precision: str) -> list[float | None]:
    """The error on one batch with the response of each layer zero: what is left of a plain network is a constant."""
    labels = next(found.subject.batches())[1]
    rows: list[float | None] = []
    with torch.inference_mode(), _computing(found, precision):
        signals = found.signals(images)
        for target in found.targets:
            logits = found.logits(found.without([target], zero=True), images, signals)
            rows.append(100 * float((logits.argmax(1) != labels).float().mean()))
    return rows


def _random_rows(random: Sequence[tuple[int, Sequence[Damage]]], errors: Sequence[float]) -> list[dict[str, Any]]:
    rows, start = [], 0
    for k, damages in random:
        own = sorted(errors[start : start + len(damages)])
        low, middle, high = statistics.quantiles(own, n=4, method="inclusive") if len(own) > 1 else own * 3
        rows.append({"k": k, "errors": own, "median": middle, "q1": low, "q3": high})
        start += len(damages)
    return rows


def _work(subject: Subject) -> float:
    places = max(len(subject.units), 10)
    return min(MOST_IMAGES, subject.num_images) * (0.6 * places + 1.6 * COUNTS * DRAWS[0])


lesion = Analysis(
    name="lesion",
    title="Lesions",
    about="Error after switching off each unit, k random units, and after swapping units within their stage (veit2016, sections "
    "4.1 to 4.3); of a network without shortcuts each layer that keeps its shape is removed, and the others become zero.",
    measure=_measure,
    draw=draw,
    read=read,
    share=4.0,
    work=_work,
)
