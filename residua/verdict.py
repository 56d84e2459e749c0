"""Residual connections, skip connections, both or neither: the rule, and what it says of a network. Layer 3.

A residual connection adds a correction to a signal that is otherwise kept, y = h(x) + F(x) with h the identity or as near to it
as shapes allow; such units are short and repeated in series (He et al. 2015 and 2016). Skip connection is the general word; where
the two are told apart it means the others: long, concatenating, gating, handing over indices, or tree-like. Skip by skip:

1. A concatenation is a skip connection (DenseNet, U-Net), except where the way that crosses no weights only pools: such a way is
   one of the parallel towers of a reduction (Inception), which carries nothing on unchanged, and counts as neither.
2. A gate that decides by the signal how much is carried is a skip connection (Highway), and so are indices (SegNet).
3. An addition is a residual connection where the bypass keeps the signal (identity, pooled, scaled, dropped, or through units
   that themselves keep it), whatever it goes past. So nested additions as in the hourglass are residual.
4. An addition whose bypass is a projection is a residual connection too, a change of shape within a series (ResNet, options B
   and C), unless its branch goes through a coarser resolution than that of the sum and comes back. Then two features, neither of
   which is kept, meet on the way back from the coarsest one: a tree-like skip connection (FPN's laterals, FCN's score maps).

A network with connections of both sorts has both, one with none has neither. Parallel towers that all carry weights are no skips.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from residua.dominators import Dominators
from residua.flow import Flow
from residua.wording import counted

__all__ = ["ANSWERS", "Verdict", "verdict"]

ANSWERS = ("residual connections", "skip connections", "both", "neither")


class Judged(Protocol):
    """What the rule asks of a skip: its number in the flow; "add", "concatenate", "gate" or "index"; "identity", "projection",
    "pooled", "scaled", "gated" or "dropped"; and the weight layers that its branch crosses."""

    @property
    def index(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def way(self) -> str: ...
    @property
    def span(self) -> int: ...


@dataclass(frozen=True)
class Verdict:
    """`answer` is one of `ANSWERS`, `reasons` say why in sentences. `residual`, `skip` and `towers` are the indices of the skips
    that count as residual connections, as skip connections, and as neither."""

    answer: str
    reasons: tuple[str, ...]
    residual: tuple[int, ...]
    skip: tuple[int, ...]
    towers: tuple[int, ...]


def verdict(skips: Sequence[Judged], flow: Flow, num_unknown: int = 0) -> Verdict:
    """What connections a network has, by the rule of this module.

    `flow` has a choice for each skip, with shapes [channels, sizes...] where there are any. `num_unknown` merges could not be
    decided; the reasons say so.
    """
    coarser = _through_a_coarser_resolution(flow)
    sorts: dict[str, list[Judged]] = {"residual": [], "skip": [], "towers": []}
    for skip in skips:
        sorts[_sort(skip, skip.index in coarser)].append(skip)
    residual, others = bool(sorts["residual"]), bool(sorts["skip"])
    answer = ANSWERS[{(True, False): 0, (False, True): 1, (True, True): 2, (False, False): 3}[residual, others]]
    reasons = [*_why_residual(sorts["residual"], flow, coarser), *_why_skip(sorts["skip"]), *_why_neither(sorts["towers"])]
    if not skips:
        reasons.insert(0, "No way goes past weight layers that another one crosses and meets it again as a skip would.")
    if num_unknown:
        reasons.append(f"{counted(num_unknown, 'merge')} could not be decided and count as nothing here.")
    return Verdict(answer, tuple(reasons), *(tuple(skip.index for skip in group) for group in sorts.values()))


def _sort(skip: Judged, coarser: bool) -> str:
    if skip.kind == "concatenate":
        return "towers" if skip.way == "pooled" else "skip"
    if skip.kind in ("gate", "index") or skip.way == "gated":
        return "skip"
    return "skip" if skip.way == "projection" and coarser else "residual"


def _through_a_coarser_resolution(flow: Flow) -> set[int]:
    """The skips whose branch as a whole goes through fewer positions than the merge has. (A gate beside the branch, such as that
    of squeeze-and-excitation, may well see one position only: the branch does not pass through it.)"""
    tree = Dominators(flow)
    found = set()
    for number, step in enumerate(flow.steps):
        if step.kind == "choice" and step.skip is not None and len(step.shape) > 2:
            passed = tree.chain(tree.nearest[number], step.inputs[1])
            shapes = (flow.steps[place].shape for place in passed)
            if any(len(shape) == len(step.shape) and math.prod(shape[1:]) < math.prod(step.shape[1:]) for shape in shapes):
                found.add(step.skip)
    return found


def _why_residual(skips: Sequence[Judged], flow: Flow, coarser: set[int]) -> list[str]:
    if not skips:
        return []
    indices = {skip.index for skip in skips}
    nearest = Dominators(flow).nearest
    series: list[int] = []  # of each step how many of these merges every way to it passes
    for number, step in enumerate(flow.steps):
        series.append((series[nearest[number]] if nearest[number] >= 0 else 0) + (step.skip in indices))
    most = max(series)
    ways = Counter(skip.way for skip in skips)
    said = ", ".join(f"{count} {_WAYS[way]}" for way, count in ways.most_common())
    spans = sorted(skip.span for skip in skips)
    span = f"{spans[0]} to {spans[-1]} weight layers" if spans[0] < spans[-1] else counted(spans[0], "weight layer")
    place = f"up to {most} in series" if 1 < most < len(skips) else "all in series" if most > 1 else "not repeated in series"
    reasons = [
        f"{counted(len(skips), 'addition')} to a signal that is kept ({said}), past {span}, {place}: residual connections."
    ]
    nested = sum(skip.index in coarser for skip in skips)
    if nested:
        reasons.append(f"{nested} of them go past a coarser resolution; they are residual since their bypass keeps the signal.")
    return reasons


def _why_skip(skips: Sequence[Judged]) -> list[str]:
    groups: dict[str, list[Judged]] = {}
    for skip in skips:
        groups.setdefault(
            "add" if skip.kind == "add" and skip.way == "projection" else "gate" if skip.way == "gated" else skip.kind, []
        ).append(skip)
    return [f"{counted(len(group), *_SKIPS[kind])}: skip connections." for kind, group in groups.items()]


def _why_neither(towers: Sequence[Judged]) -> list[str]:
    if not towers:
        return []
    return [f"{counted(len(towers), 'concatenation')} of a pooled signal with weighted ones: parallel towers, which are neither."]


_WAYS = {
    "identity": "by the identity", "projection": "projected to another shape", "pooled": "pooled", "scaled": "scaled",
    "dropped": "with dropout",
}  # fmt: skip
_SKIPS = {
    "concatenate": ("concatenation of earlier maps with later ones", "concatenations of earlier maps with later ones"),
    "gate": ("gate that decides how much of the signal is carried", "gates that decide how much of the signal is carried"),
    "index": ("hand-over of pooling indices", "hand-overs of pooling indices"),
    "add": (
        "addition of a projected map to one that comes back from a coarser resolution",
        "additions of projected maps to ones that come back from a coarser resolution",
    ),
}
