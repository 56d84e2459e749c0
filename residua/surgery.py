"""Surgery on the graph of any network: additive skips are cut out, or identity skips put into a plain stack. Layer 3.

x + F(x)  ->  F(x)      the plain network that he2015 compares with (section 3.3): the same parameters, no shortcut
F(x)  ->  x + F(x)      its counterpart, where shapes allow
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from residua.census import Skip, census
from residua.errors import RequestError
from residua.functional import arguments, operation
from residua.graph import capture, shape_of
from residua.rewiring import Rewired
from residua.signals import read
from residua.skips import place

__all__ = ["Change", "Refusal", "Surgery", "plain_twin", "with_skips"]

_ADD = torch.ops.aten.add.Tensor


@dataclass(frozen=True)
class Change:
    """A skip that was cut or put in: from where to where, as in the census."""

    source: str
    merge: str


@dataclass(frozen=True)
class Refusal:
    """A place where nothing was changed, and why."""

    source: str
    merge: str
    reason: str


@dataclass(frozen=True)
class Surgery:
    """The changed network, what was changed in it, and what was not.

    `model` is a module that is called, trained and saved as the original is; its parameters have the original's names. `idle`
    are the original's parameters that it has no more, because only a cut shortcut read them. `notes` say in sentences what
    differs from the original in training, and what capturing could not see.
    """

    model: nn.Module
    changes: tuple[Change, ...]
    refusals: tuple[Refusal, ...]
    idle: tuple[str, ...]
    notes: tuple[str, ...]


def plain_twin(model: nn.Module, example_inputs: tuple[Any, ...] | Tensor, *, share: bool = False) -> Surgery:
    """The plain twin of any network: at every additive skip the branch stands for the sum.

    `share`: with the parameters of `model` themselves instead of copies. Skips that concatenate, gate or hand over positions
    stay, each with a refusal: without its bypass the next layer would have no input of the right width or meaning. Raises
    `RequestError` where there is no additive skip to cut, or where `model` cannot be captured.
    """
    model = model if share else copy.deepcopy(model)
    found = census(capture(model, example_inputs))
    rewired = Rewired(model, found.captured)
    changes, refusals = [], []
    stands: dict[fx.Node, fx.Node] = {}
    for skip in found.skips:
        reason = _uncuttable(skip)
        if reason:
            refusals.append(Refusal(skip.source, skip.merge, reason))
            continue
        merge, branch = rewired.nodes[skip.merge_node], rewired.nodes[skip.ways[1]]
        stands[merge] = stands.get(branch, branch)  # a branch may end with a merge that was cut before
        merge.replace_all_uses_with(stands[merge])
        changes.append(Change(skip.source, skip.merge))
    refusals += [Refusal("", doubt.merge, f"Not known to be a skip: {doubt.reason}") for doubt in found.unknown]
    if not changes:
        listed = "; ".join(f"{refusal.merge}: {refusal.reason}" for refusal in refusals[:3])
        rest = f"; and {len(refusals) - 3} more" if len(refusals) > 3 else ""
        told = f" What it has cannot be cut: {listed}{rest}." if refusals else " It is plain already."
        raise RequestError(f"{type(model).__name__} has no additive skip that can be cut.{told}")
    built = rewired.module()
    return Surgery(built, tuple(changes), tuple(refusals), rewired.idle(built), tuple(rewired.notes))


def _uncuttable(skip: Skip) -> str:
    """Why a skip cannot be cut; "" where it can."""
    if skip.kind == "concatenate":
        before, after = shape_of(skip.merge_node), shape_of(skip.ways[1])
        return f"a concatenation: without the bypass what follows would read the shape {after} instead of {before}"
    if skip.kind == "gate":
        return "a gate, whose two ways share their weight: without the bypass the branch is only scaled down"
    if skip.kind == "index":
        return "pooling indices, without which the unpooling does not know where to"
    merge, branch = skip.merge_node, skip.ways[1]
    if operation(merge) != "add" or merge.kwargs.get("alpha", 1) != 1:
        if arguments(merge)[1] is branch:
            return "the branch has another sign or scale in the sum than alone"
        return "the bypass has another sign or scale in the sum, which makes it no x + F"
    if shape_of(merge) != shape_of(branch):
        return f"the branch of shape {shape_of(branch)} is repeated in the sum of shape {shape_of(merge)}"
    return ""


# ----------------------------------------------------------------------------------------------------------- putting skips in


def with_skips(
    model: nn.Module, example_inputs: tuple[Any, ...] | Tensor, *, every: int = 2, padded: bool = False, share: bool = False
) -> Surgery:
    """The network with an identity skip round every `every` weight layers in series, wherever shapes allow.

    A skip starts at what the first of these layers reads, and is added after the normalisation that follows the last one,
    before its activation (he2015 equation 1 and figure 2). Of all ways to group the layers the one with most skips is taken,
    and among these the one whose groups keep to modules. `padded`: where layers reduce the map and widen it by whole factors,
    the skip takes every second (third, ...) position and zeros for the new channels (option A, section 3.3); otherwise only
    equal shapes are joined. `share` as in `plain_twin`. Layers on which there is a skip already are left alone. Raises
    `RequestError` where nothing can be put in.
    """
    if every < 1:
        raise RequestError(f"A skip goes round one layer or more, not {every}.")
    model = model if share else copy.deepcopy(model)
    found = census(capture(model, example_inputs), proof=False)
    rewired = Rewired(model, found.captured)
    layers = [spot.node for spot in read(found.captured).spots if spot.weighs]
    bypassed = _bypassed(found.skips)
    inputs = [node for node in found.captured.module.graph.nodes if node.op == "placeholder"]
    computed = _reach(inputs, lambda node: list(node.users))
    groups, reasons = [], {}
    for start in range(len(layers) - every + 1):
        group = layers[start : start + every]
        merge = _end(group[-1])
        reason = _unfit(group, merge, bypassed, computed, padded)
        groups.append((group, merge, reason))
        if reason:
            reasons[start] = reason
    chosen = _most(groups, every)
    changes = []
    totals: dict[fx.Node, fx.Node] = {}
    for start in chosen:
        group, merge, _ = groups[start]
        source = totals.get(_input(group[0]), rewired.nodes[_input(group[0])])
        totals[merge] = _put_in(rewired, source, shape_of(_input(group[0])), merge)
        changes.append(Change(place(_input(group[0])), place(merge)))
    covered = {layer for start in chosen for layer in range(start, start + every)}
    refusals = [
        Refusal(place(layers[layer]), place(layers[min(layer + every, len(layers)) - 1]),
                reasons.get(layer, "its neighbours are in other groups") if layer < len(groups) else "too few layers follow")
        for layer in range(len(layers))
        if layer not in covered
    ]  # fmt: skip
    if not changes:
        listed = "; ".join(f"{refusal.source}: {refusal.reason}" for refusal in refusals[:3])
        raise RequestError(f"{type(model).__name__} takes no skip round {every} layers. {listed}")
    built = rewired.module()
    return Surgery(built, tuple(changes), tuple(refusals), rewired.idle(built), tuple(rewired.notes))


def _input(layer: fx.Node) -> fx.Node:
    """What a weight layer reads: the first of its operands that is not stored."""
    return next((node for node in layer.all_input_nodes if node.op != "get_attr"), layer.all_input_nodes[0])


def _end(layer: fx.Node) -> fx.Node:
    """The last normalisation that follows a layer directly, or the layer."""
    node = layer
    while len(node.users) == 1:
        reader = next(iter(node.users))
        picks = operation(reader) == "getitem" and "norm" in operation(node)
        if not (picks or "norm" in operation(reader)) or _input(reader) is not node:
            break
        node = reader
    return node


def _bypassed(skips: tuple[Skip, ...]) -> dict[fx.Node, str]:
    """The nodes between the source and the merge of a skip, "round" where it goes round them and "on" where it passes them."""
    found: dict[fx.Node, str] = {}
    for skip in skips:
        later = _reach([skip.source_node], lambda node: list(node.users))
        between = [later & _reach([way], lambda node: node.all_input_nodes) - {skip.source_node} for way in skip.ways]
        for node in between[0] - between[1]:
            found.setdefault(node, "on")
        found.update(dict.fromkeys(between[1], "round"))
    return found


def _reach(starts: Iterable[fx.Node], following: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    """The nodes `starts` and all that are reached from them by `following`."""
    found: set[fx.Node] = set()
    pending = list(starts)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += following(node)
    return found


def _unfit(group: list[fx.Node], merge: fx.Node, bypassed: Mapping[fx.Node, str], computed: set[fx.Node], padded: bool) -> str:
    """Why no skip fits round a group of layers; "" where one does. `computed` are the nodes that depend on the input."""
    if all(bypassed.get(layer) == "round" for layer in group):
        return "there is a skip round it already"
    for layer in group:
        if layer in bypassed:
            told = "there is a skip round {} already" if bypassed[layer] == "round" else "{} is on the shortcut of a skip already"
            return told.format(place(layer))
    for first, second in itertools.pairwise(group):
        if first not in _reach([second], lambda node: node.all_input_nodes):
            return f"{place(second)} does not read what {place(first)} gives"
        node = second
        while node is not first:
            readers = [n for n in node.all_input_nodes if n in computed and n.op != "placeholder"]
            if len(readers) != 1:
                return f"another signal joins between {place(first)} and {place(second)}"
            node = readers[0]
    source = _input(group[0])
    before, after = shape_of(source), shape_of(merge)
    if before == after:
        return ""
    if source.op == "placeholder" or not padded:
        return f"its input has the shape {before}, and what the skip would be added to {after}"
    if not _steps(before, after):
        return f"zero padding does not lead from the shape {before} to {after}"
    return ""


def _steps(before: tuple[int, ...], after: tuple[int, ...]) -> tuple[int, ...]:
    """By how much each axis behind the channels is thinned out by option A; () where it does not apply."""
    if len(before) != len(after) or len(before) < 3 or before[0] != after[0] or before[1] > after[1]:
        return ()
    steps = tuple(-(-old // new) for old, new in zip(before[2:], after[2:]))
    fits = all(-(-old // step) == new for old, new, step in zip(before[2:], after[2:], steps))
    return steps if fits else ()


def _most(groups: list[tuple[list[fx.Node], fx.Node, str]], every: int) -> list[int]:
    """The starts of groups that do not overlap: as many as can be, then those whose layers share most of their modules' paths."""
    best: list[tuple[int, int, int | None]] = [(0, 0, None)] * (len(groups) + every + 1)
    for start in range(len(groups) - 1, -1, -1):
        best[start] = (*best[start + 1][:2], None)
        group, _, reason = groups[start]
        if not reason:
            count, shared, _ = best[start + every]
            here = (count + 1, shared + _shared(group), start)
            if here[:2] > best[start][:2]:
                best[start] = here
    chosen, at = [], 0
    while at < len(groups):
        taken = best[at][2] is not None
        if taken:
            chosen.append(at)
        at += every if taken else 1
    return chosen


def _shared(group: list[fx.Node]) -> int:
    """How many modules all layers of a group stand in."""
    paths = [place(layer).split(".")[:-1] for layer in group]
    count = 0
    for level in zip(*paths):
        if len(set(level)) > 1:
            break
        count += 1
    return count


def _put_in(rewired: Rewired, start: fx.Node, before: tuple[int, ...], merge: fx.Node) -> fx.Node:
    """Adds `start`, of the shape `before`, to `merge`, thinned out and padded where shapes ask for it; gives the sum."""
    graph, end = rewired.graph, rewired.nodes[merge]
    readers, after, way = list(end.users), shape_of(merge), start
    with graph.inserting_after(end):
        total = graph.call_function(_ADD, (start, end))
    with graph.inserting_before(total):
        if before != after:
            for axis, step in enumerate(_steps(before, after), 2):
                if step > 1:
                    way = graph.call_function(torch.ops.aten.slice.Tensor, (way, axis, 0, 2**62, step))
            padding = [0, 0] * (len(after) - 2) + [0, after[1] - before[1]]
            way = graph.call_function(torch.ops.aten.constant_pad_nd.default, (way, padding, 0.0))
    total.args = (way, end)
    total.meta.update(end.meta)
    for reader in readers:
        reader.replace_input_with(end, total)
    return total
