"""A flow made ready to be drawn: poolings as nodes of their own, joins of joins as one node. Layer 3."""

from __future__ import annotations

import itertools
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from residua.flow import Flow, Step
from residua.svg import shortened

__all__ = ["DrawnSkip", "Node", "Repeat", "Scheme", "scheme", "shared_path", "without"]

LONGEST_TEXT = 30  # characters in a box


class DrawnSkip(Protocol):
    """What a drawing asks of a skip of the census: its `kind` ("add", "concatenate", "gate", "index") and its `way` ("identity",
    "projection", "pooled", "scaled", "gated", "dropped")."""

    @property
    def kind(self) -> str: ...
    @property
    def way(self) -> str: ...


@dataclass
class Node:
    """A node of the drawing: `kind` as that of a step, or "other" (a pooling); `skips` the indices of the skips that merge here,
    several where equal blocks are drawn once; `folds` the numbers of the repeats in which it stands."""

    kind: str
    text: str
    note: str
    inputs: list[int]
    shape: tuple[int, ...] = ()
    group: str = ""
    detail: str = ""
    kinds: tuple[str, str] = ("", "")
    skips: tuple[int, ...] = ()
    folds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Repeat:
    """Blocks that are drawn once and stand for `count` equal ones in series."""

    number: int
    count: int


@dataclass
class Scheme:
    """Nodes in topological order, the number of the output among them, and the repeats."""

    nodes: list[Node]
    output: int
    repeats: list[Repeat] = field(default_factory=list)


def scheme(flow: Flow, skips: Sequence[DrawnSkip]) -> Scheme:
    """The nodes of the drawing of `flow`. Raises IndexError for a choice whose skip is not among `skips`."""
    return _joined(_expanded(flow, skips))


def _expanded(flow: Flow, skips: Sequence[DrawnSkip]) -> Scheme:
    """One node a step, and one for each pooling before it; steps that read one place through the same pooling share its node."""
    nodes: list[Node] = []
    place: list[int] = []
    pooled: dict[tuple[int, str], int] = {}
    for step in flow.steps:
        inputs = [place[source] for source in step.inputs]
        for words in step.before:
            key = (inputs[0], words)
            if key not in pooled:
                shape = _reduced(nodes[inputs[0]].shape, words) or step.shape
                nodes.append(Node("other", words, words, inputs[:1], shape, step.group, words))
                pooled[key] = len(nodes) - 1
            inputs[0] = pooled[key]
        kinds: tuple[str, str] = ("", "")
        indices: tuple[int, ...] = ()
        if step.kind == "choice":
            skip = skips[step.skip or 0]
            kinds, indices = (skip.kind, _way(skip, nodes, inputs, step)), (step.skip or 0,)
        nodes.append(Node(step.kind, _text(step), _note(step), inputs, step.shape, step.group, step.detail, kinds, indices))
        place.append(len(nodes) - 1)
    return Scheme(nodes, place[flow.output])


def _reduced(shape: Sequence[int], words: str) -> tuple[int, ...]:
    """The shape after a pooling such as "max pool, /2" of a map [C, ...]; () where the words or the shape do not tell."""
    found = re.search(r", /(\d+)$", words)
    if found is None or len(shape) < 2:
        return ()
    return (shape[0], *(max(1, size // int(found[1])) for size in shape[1:]))


def _way(skip: DrawnSkip, nodes: Sequence[Node], inputs: Sequence[int], merge: Step) -> str:
    """The way of a skip; "projection" also where an addition's bypass begins with another shape than it ends with (option A)."""
    start = nodes[inputs[0]]
    changes = start.kind not in ("layer", "other") or skip.way == "identity"
    alike = len(start.shape) == len(merge.shape) != 2  # of sequences the order of the axes is not known
    changes = changes and start.kind != "other" and alike and sorted(start.shape) != sorted(merge.shape)
    return "projection" if skip.kind == "add" and changes else skip.way


def _text(step: Step) -> str:
    if step.kind == "source":
        return " ".join([shortened(step.label or "input", 14), "×".join(map(str, step.shape))]).strip()
    if step.kind == "layer":
        return shortened(step.detail or step.label, LONGEST_TEXT)
    *path, last = step.label.split(".")
    return shortened(step.detail or (".".join([*path[-1:], last]) if last.isdigit() else last) or "join", 14)


def _note(step: Step) -> str:
    return ": ".join(part for part in (step.label, step.detail, "×".join(map(str, step.shape))) if part)


def _joined(drawn: Scheme) -> Scheme:
    """Joins that are read by one other join of the same words only are taken into it."""
    uses = [0] * len(drawn.nodes)
    for node in drawn.nodes:
        for source in node.inputs:
            uses[source] += 1
    taken = set()
    for node in drawn.nodes:
        if node.kind == "join":
            inputs: list[int] = []
            for source in node.inputs:
                first = drawn.nodes[source]
                if first.kind == "join" and uses[source] == 1 and first.text == node.text:
                    taken.add(source)
                    inputs += first.inputs
                else:
                    inputs.append(source)
            node.inputs = list(dict.fromkeys(inputs))
    return without(drawn, taken)


def without(drawn: Scheme, unwanted: Container[int]) -> Scheme:
    """The scheme without some nodes, which nothing that stays may read."""
    numbers = [number for number in range(len(drawn.nodes)) if number not in unwanted]
    place = {number: index for index, number in enumerate(numbers)}
    nodes = [drawn.nodes[number] for number in numbers]
    for node in nodes:
        node.inputs = [place[source] for source in node.inputs]
    return Scheme(nodes, place[drawn.output], drawn.repeats)


def shared_path(paths: Sequence[str]) -> str:
    """The module path that some module paths begin with; empty ones do not count."""
    parts = [path.split(".") for path in paths if path]
    shared = list(itertools.takewhile(lambda level: len(set(level)) == 1, zip(*parts)))
    return ".".join(level[0] for level in shared)
