"""From the signal of a captured graph and its skips to the flow that paths and drawings read. Layer 3.

What neither weighs nor joins is left out, and so is what only steers: the layers that compute a gate or a kernel are crossed by
no path (the signal of a highway unit is carried past them).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from residua.flow import Flow, Step
from residua.graph import module_path, shape_of
from residua.layer_words import join_words, layer_words, resolution_words
from residua.signals import Signal, Spot
from residua.skips import Found, place

__all__ = ["reduce", "stage"]


def reduce(signal: Signal, skips: Mapping[int, tuple[int, Found]]) -> Flow:
    """The flow of a signal; `skips` maps the number of a merge to the skip's index in the census and the skip."""
    needed = _needed(signal)
    steps: list[Step] = []
    stands: dict[int, int] = {}  # of each spot the step whose signal it carries
    resolved: dict[int, tuple[str, ...]] = {}  # of each spot what has changed the resolution since that step
    for spot in signal.spots:
        if spot.number not in needed:
            continue
        sources = tuple(dict.fromkeys(stands[o] for o in spot.carried))
        before = resolved[spot.carried[0]] if spot.carried else ()
        kind = "layer" if spot.weighs else "source" if not spot.operands else "join"
        if spot.number in skips:
            found = skips[spot.number][1]
            kind, sources, before = "choice", (stands[found.bypass], stands[found.branch]), resolved[found.bypass]
        if kind == "join" and len(sources) == 1:
            words = resolution_words(spot.node)
            stands[spot.number], resolved[spot.number] = sources[0], (*before, words) if words else before
            continue
        stands[spot.number], resolved[spot.number] = len(steps), ()
        steps.append(_step(spot, kind, sources, before, skips[spot.number][0] if kind == "choice" else None))
    ends = tuple(dict.fromkeys(stands[o] for o in signal.outputs))
    if not ends:
        steps.append(Step("source", (), "constant"))
        ends = (len(steps) - 1,)
    if len(ends) > 1:
        steps.append(Step("join", ends, "outputs"))
    return Flow(tuple(steps), len(steps) - 1 if len(ends) > 1 else ends[0])


def _needed(signal: Signal) -> set[int]:
    """The spots from which signal is carried to an output, and all inputs."""
    needed, pending = {spot.number for spot in signal.spots if not spot.operands}, list(signal.outputs)
    while pending:
        number = pending.pop()
        if number not in needed:
            needed.add(number)
            pending.extend(signal.spots[number].carried)
    return needed


def _step(spot: Spot, kind: str, sources: tuple[int, ...], before: tuple[str, ...], skip: int | None) -> Step:
    return Step(
        kind=kind,
        inputs=sources,
        label=place(spot.node),
        skip=skip,
        shape=shape_of(spot.node)[1:],
        group=stage(spot.node),
        detail=layer_words(spot.node) if kind == "layer" else join_words(spot.node) if kind == "join" else "",
        before=before if kind in ("layer", "choice") else (),
    )


def stage(node: fx.Node) -> str:
    """The stage or block in which a node stands: the path of its module up to the first part that ends in a digit, the
    layer's own name left out ("layer1" of "layer1.0.conv1", "stages.0" of "stages.0.blocks.1", "features" of "features.3")."""
    parts = module_path(node).split(".")
    if len(parts) > 1 and (node.meta.get("nn_module_stack") or {}) and _is_layer(node):
        parts = parts[:-1]
    for position, part in enumerate(parts):
        if part[-1:].isdigit():
            return ".".join(parts[: position + 1])
    return ".".join(parts[:1]) if len(parts) > 1 else "" if _is_layer(node) else parts[0]


def _is_layer(node: fx.Node) -> bool:
    """Whether the innermost module is a layer of torch itself."""
    kind = next(reversed(node.meta["nn_module_stack"].values()))[1] if node.meta.get("nn_module_stack") else ""
    name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    return name.startswith("torch.nn.modules.") and "container" not in name
