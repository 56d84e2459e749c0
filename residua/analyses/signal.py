"""Signal and gradient by depth, the gradient's direct term, and the identities they rest on (he2016, section 2). Layer 3.

`residua.signal_flow` has the definitions. At initialisation batch normalisation uses the statistics of the batch, as in the
first step of training; everything else is in evaluation mode. The plain twin of the initial network has the same weights, its
additive shortcuts taken out. Of the trained network the plain counterpart is the product of its branches' Jacobians: the
gradient that passes every branch and no shortcut.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from residua.analyses._signal_figures import draw, read
from residua.analysis import Analysis, Budget, NotApplicable, Subject
from residua.gates import in_series, watched
from residua.signal_flow import (
    Terms,
    batch_statistics,
    broken_identities,
    carried,
    gradient_terms,
    similarity,
    variances,
    without_shortcuts,
)

__all__ = ["signal"]

MOST_IMAGES = 64
NEAR = 0.1  # a derivative of the sum this near to -1 takes nearly all of the direct term away


def _measure(subject: Subject, budget: Budget) -> dict[str, Any]:
    units = in_series(subject.model)
    if not units:
        raise NotApplicable(f"{subject.name} is not built of units, whose inputs and branches this analysis compares.")
    _check_runs(subject)
    count = _affordable(subject, budget, len(units))
    images, labels = subject.images(count)
    result: dict[str, Any] = {
        "units": [path for path, _ in units],
        "shortcuts": sum(unit.shortcut is not None for _, unit in units),
        "trained": _state(subject.model, images, labels),
    }
    budget.progress(0.25)
    result.update(initial=None, initial_twin=None)
    if subject.fresh is not None:
        fresh = batch_statistics(subject.fresh().to(subject.device))
        twin = copy.deepcopy(fresh)
        result["initial"] = _state(fresh, images, labels)
        if without_shortcuts(twin):
            result["initial_twin"] = variances(twin, images, labels)
    budget.progress(0.5)
    few = min(4, len(images))
    exact = copy.deepcopy(subject.model).double()
    checks, chains = broken_identities(exact, images[:few].double(), labels[:few])
    result.update(identities=[asdict(check) for check in checks], chains=chains)
    budget.progress(0.6)
    result["similarity"] = _similarities(subject.model, images)
    result["carried"] = _carried(subject.model, images, len(units), budget)
    result["used"] = {"images": len(images), "images of the identities": few}
    return result


def _check_runs(subject: Subject) -> None:
    """Refuses a network with a unit that has no signal or several."""
    one, _ = subject.images(1)
    with watched(subject.model) as ways, torch.no_grad():
        subject.model(one)
    for (path, _), seen in zip(ways.units, ways.seen):
        if seen.runs != 1:
            raise NotApplicable(
                f"The unit {path} of {subject.name} runs {seen.runs} times in a forward pass; here each has to run once."
            )


def _affordable(subject: Subject, budget: Budget, units: int) -> int:
    """As many images as the budget and a gigabyte of signals allow, a power of two."""
    few, _ = subject.images(4)
    with watched(subject.model) as ways, torch.no_grad():
        pace = budget.timed(lambda: subject.model(few)) / len(few)
        size = sum(seen.whole()[0][:1].numel() for seen in ways.seen)
    most = min(MOST_IMAGES, subject.num_images, 2**30 // (24 * size), int(0.5 * budget.left / (pace * (40 + units / 2))))
    return 1 << max(2, most.bit_length() - 1)


def _state(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """What is said of the network in one state, trained or initial."""
    terms = gradient_terms(model, images, labels)
    return {
        **{name: _finite(values) for name, values in variances(model, images, labels).items()},
        "direct_share": _finite(terms.direct_share()),
        **{name: _finite(getattr(terms, name).mean(1).tolist()) for name in ("full", "direct", "longest")},
        "sum_derivative": _quantiles(terms),
    }


def _quantiles(terms: Terms) -> dict[str, Any] | None:
    """Over the images, by unit: the 5 %, 50 % and 95 % quantiles and the least of d/dx_l sum F, and how many are near -1; "kept"
    has the three quantiles of |1 + d/dx_l sum F|, the factor on the direct term."""
    values = terms.sum_derivative()
    rows = [row[row.isfinite()] for row in values]
    if not any(len(row) for row in rows):
        return None
    low, median, high = (_finite([float(row.quantile(q)) if len(row) else math.nan for row in rows]) for q in (0.05, 0.5, 0.95))
    least = _finite([float(row.min()) if len(row) else math.nan for row in rows])
    kept = [_finite([float((row + 1).abs().quantile(q)) if len(row) else math.nan for row in rows]) for q in (0.05, 0.5, 0.95)]
    everything = torch.cat(rows)
    near = float(((everything + 1).abs() < NEAR).double().mean())
    return {"low": low, "median": median, "high": high, "least": least, "kept": kept, "near_minus_one": near}


def _similarities(model: nn.Module, images: Tensor) -> list[float | None]:
    """Linear CKA of each unit's input, and of the last unit's output, with the last unit's output."""
    with watched(model) as ways, torch.no_grad():
        model(images)
        end = ways.seen[-1].whole()[1]
        return [similarity(seen.whole()[0], end) for seen in ways.seen] + [similarity(end, end)]


def _carried(model: nn.Module, images: Tensor, units: int, budget: Budget) -> list[float | None]:
    """The squared correlation of `residua.signal_flow.carried` by unit, at as many places as the budget allows."""
    found: list[float | None] = [None] * units
    pace = budget.timed(lambda: carried(model, images, units - 1))
    allowed = max(2, int(0.9 * budget.left / pace))
    step = max(1, math.ceil(units / allowed))
    places = range(units - 1, -1, -step)
    for number, place in enumerate(places):
        found[place] = carried(model, images, place)
        budget.progress(0.65 + 0.35 * (number + 1) / len(places))
    return found


def _finite(values: list[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


signal = Analysis(
    name="signal",
    title="Signal and gradient by depth",
    about="Variance of signal and gradient by depth, trained and at initialisation; the gradient's direct term, and the "
    "identities of he2016 (equations 4 and 5) checked in float64.",
    measure=_measure,
    draw=draw,
    read=read,
    share=1.0,
)
