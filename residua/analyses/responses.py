"""The standard deviation of each layer's response, in the order of the network and sorted (he2015, figure 7). Layer 3.

The response of a layer is the output of its normalisation, before the ReLU and before the addition. Where no normalisation reads
a layer's output directly (the last layer of a pre-activation branch, a network without normalisation) it is the layer's own
output, and the result says so.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from residua.analysis import Analysis, Budget, Drawing, NotApplicable, Subject, affordable
from residua.panels import Curve, panel
from residua.weight_layers import WeightLayer, responses_seen, weight_layers
from residua.wording import decimal

__all__ = ["responses"]

MOST_IMAGES = 5_000


@dataclass
class _Moments:
    """Count, mean and mean square distance from it of the values seen so far, in float64 (Chan et al. 1979)."""

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def see(self, values: Tensor) -> None:
        variance, mean = (float(item) for item in torch.var_mean(values.float(), correction=0))
        total = self.count + values.numel()
        share = values.numel() / total
        step = mean - self.mean
        self.variance += share * (variance - self.variance) + share * (1 - share) * step * step
        self.mean += share * step
        self.count = total


def _measure(subject: Subject, budget: Budget) -> dict[str, Any]:
    sample, _ = next(subject.batches())
    layers = dict(enumerate(weight_layers(subject.model, sample[:2])))
    if not layers:
        raise NotApplicable(f"{subject.name} has no module with weights of its own, so that there is no response to measure.")
    moments = {number: _Moments() for number in layers}

    def see(images: Tensor) -> None:
        with torch.inference_mode(), responses_seen(layers, lambda number, response: moments[number].see(response)):
            subject.model(images)

    pace = budget.timed(lambda: see(sample)) / len(sample)
    wanted = affordable(budget.left, pace, min(MOST_IMAGES, subject.num_images))
    for item in moments.values():
        item.count, item.mean, item.variance = 0, 0.0, 0.0
    seen = 0
    for images, _ in subject.batches():
        see(images[: wanted - seen])
        seen += len(images[: wanted - seen])
        budget.progress(seen / wanted)
        if seen >= wanted:
            break
    ends = _parts(subject, layers)
    rows = [
        {"layer": layer.path if not layer.call else f"{layer.path} (call {layer.call + 1})", "part": ends[number],
         "normalization": layer.norm_path, "std": _finite(math.sqrt(moments[number].variance)),
         "mean": _finite(moments[number].mean)}
        for number, layer in layers.items() if moments[number].count
    ]  # fmt: skip
    main = _stds({"layers": rows})
    return {
        "layers": rows,
        "median_std": statistics.median(main) if main else None,
        "largest_std": max(main, default=None),
        "without_normalization": sum(row["part"] == "main" and row["normalization"] is None for row in rows),
        "used": {"images": seen},
    }


def _parts(subject: Subject, layers: Mapping[int, WeightLayer]) -> dict[int, str]:
    """Where each layer stands: on a "shortcut", in the "head" (what gives the logits), or on the "main" way."""
    shortcuts = tuple(f"{place.path}.shortcut." for place in subject.units)
    last = max(layers)
    return {
        number: "shortcut" if f"{layer.path}.".startswith(shortcuts)
        else "head" if layer.path.startswith("head.") or number == last else "main"
        for number, layer in layers.items()
    }  # fmt: skip


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _stds(result: Mapping[str, Any]) -> list[float]:
    return [row["std"] for row in result["layers"] if row["part"] == "main" and row["std"] is not None]


def _draw(results: Mapping[str, Mapping[str, Any]]) -> list[Drawing]:
    ordered, sorted_ones = [], []
    for network, (name, result) in enumerate(results.items()):
        stds = _stds(result)
        places = list(range(1, len(stds) + 1))
        ordered.append(Curve(places, stds, name, network, style="both" if len(stds) <= 60 else "line"))
        sorted_ones.append(Curve(places, sorted(stds, reverse=True), name, network))
    return [
        Drawing(
            "In the order of the network",
            panel("responses-order", "Standard deviation of the responses by layer", ordered, "layer", "std of the response",
                  whole=True),
            "Each point is a layer on the main way (without shortcuts and classifier), from the input on.",
        ),
        Drawing(
            "Sorted by size",
            panel("responses-sorted", "Standard deviation of the responses, sorted", sorted_ones, "layers, the largest first",
                  "std of the response", whole=True),
        ),
    ]  # fmt: skip


def _read(results: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    how = (
        "A layer with a small response changes the signal that passes it only a little; he2015 finds smaller responses in "
        "residual networks than in plain ones, and smaller ones the deeper they are."
    )
    said = []
    for name, result in results.items():
        bare = result["without_normalization"]
        note = f" ({bare} of them not normalised directly behind the layer)" if bare else ""
        said.append(f"in {name} the median over {len(_stds(result))} layers{note} is {decimal(result['median_std'])}")
    ratio = ""
    medians = [result["median_std"] for result in results.values()]
    if len(medians) == 2 and all(medians):
        ratio = f", a ratio of {decimal(medians[0] / medians[1])}"
    text = "; ".join(said) + ratio + "."
    return how, text[0].upper() + text[1:]


def _work(subject: Subject) -> float:
    return 1.5 * min(MOST_IMAGES, subject.num_images)


responses = Analysis(
    name="responses",
    title="Responses of the layers",
    about="Standard deviation of each layer's output over images, channels and positions, after normalisation, before ReLU and "
    "addition (he2015, figure 7).",
    measure=_measure,
    draw=_draw,
    read=_read,
    share=0.5,
    work=_work,
)
