"""Figure 5 of densenet: how much each layer of a trained block weighs each earlier one. Layer 4."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from residua.analysis import Budget, NotApplicable, Subject
from residua.claims import Drawing, Evidence, Measured, Measurement, Outcome
from residua.network import Network
from residua.panels import Curve, panel
from residua.unit import Concat, Unit

__all__ = ["REUSE", "drawn", "spread_over_all"]

SHARE = 0.2


def _measure(subject: Subject, _budget: Budget) -> dict[str, Any]:
    """For each block, "weights": a row for each layer, its mean absolute weight on each source: the input of the block, then the
    layers before it, in order. The first convolution of a layer is looked at, as in the figure."""
    if not isinstance(subject.model, Network):
        raise NotApplicable(f"{subject.name} is not built of stages.")
    blocks = []
    for stage in subject.model.stages:
        units = [unit for unit in stage.modules() if isinstance(unit, Unit) and isinstance(unit.merge, Concat)]
        if units:
            blocks.append({"weights": _sources(units)})
    if not blocks:
        raise NotApplicable(f"{subject.name} has no dense block.")
    return {"blocks": blocks, "used": {"images": 0}}


def _sources(units: Sequence[Unit]) -> list[list[float]]:
    rows, edges = [], [0]
    for unit in units:
        convs = [module for module in unit.branch.modules() if isinstance(module, nn.Conv2d)]
        weight = convs[0].weight.detach().abs().float()
        edges.append(weight.shape[1])  # what this layer reads begins with what the one before it read
        rows.append([float(weight[:, low:high].mean()) for low, high in itertools.pairwise(edges)])
    return rows


REUSE = Measurement("reuse", _measure)


def _judged(result: Mapping[str, Any]) -> tuple[float, float]:
    """The least share of a layer's largest weight that it gives to one of the earlier layers, and the weight on the inputs of the
    later blocks, which come from a transition, relative to that on layers."""
    shares = [
        min(row[1:]) / max(row[1:]) for block in result["blocks"] for row in block["weights"] if len(row) > 2 and max(row[1:]) > 0
    ]
    inputs = [row[0] for block in result["blocks"][1:] for row in block["weights"] if len(row) > 1]
    layers = [value for block in result["blocks"][1:] for row in block["weights"] for value in row[1:]]
    return min(shares), statistics.fmean(inputs) / statistics.fmean(layers)


def spread_over_all(full: str, small: str) -> Measured:
    """The claim on feature reuse, of arm `full` at the full budget and else of `small`."""

    def decide(evidence: Evidence) -> Outcome:
        found = [_judged(result) for result in evidence.measurement(full if evidence.budget == "full" else small, "reuse")]
        if not found:
            return Outcome("not attempted", "No weights have been looked at yet.")
        words = "; ".join(f"least share {share:.2f}, transitions {ratio:.2f} times the layers" for share, ratio in found)
        numbers = {"least_share": [share for share, _ in found], "transition_to_layers": [ratio for _, ratio in found]}
        held = [share >= SHARE and ratio < 1 for share, ratio in found]
        if all(held):
            return Outcome("shown", f"In every seed: {words}.", numbers)
        return Outcome("under-powered" if any(held) else "refuted", f"By seed: {words}.", numbers)

    return Measured(
        f"In every seed (1) each layer gives every earlier layer of its block at least {SHARE:g} of the mean absolute "
        f"weight that it "
        "gives the one it weighs most, and (2) in the later blocks the mean weight on the block's input, which a "
        "transition gave, is "
        "less than that on layers. Weights start equal over all sources, so that (1) says that training keeps it so. "
        "Refuted if no "
        "seed has both, under-powered if some have.",
        decide,
    )


def drawn(evidence: Evidence, arms: Sequence[str]) -> list[Drawing]:
    """The weights of the last layer of each block on its sources, of the first of `arms` that has run."""
    for arm in arms:
        results = evidence.measurement(arm, "reuse")
        if results:
            curves = [
                Curve(list(range(len(block["weights"][-1]))), block["weights"][-1], f"block {number}", number - 1, style="both")
                for number, block in enumerate(results[0]["blocks"], 1)
            ]
            title = "Weight of a block's last layer on its sources"
            svg = panel("densenet-fig5", title, curves, "source (0: the block's input)", "mean absolute weight", whole=True)
            return [
                Drawing(
                    title,
                    svg,
                    f"{arm}, first seed. The paper's heat map has a row for every layer; here it is the last of each block.",
                )
            ]
    return []
