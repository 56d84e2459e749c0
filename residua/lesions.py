"""Damage done to a trained network for the time of a measurement: units off, layers removed, units swapped. Layer 3.

Off means what `residua.unit.switched_off` says: the branch counts as zero, and the shortcut alone is left (veit2016 section 4.1
does the same to its networks). A network without shortcuts would be cut in two by that; there veit2016 removes a layer, so that
its input takes the place of its output. Here this is done to every layer that keeps its shape; the others become zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from residua import keyed
from residua.analysis import NotApplicable, Place, Subject
from residua.chains import Chain, Step, chain_of, shortcut_alone, swapped
from residua.infer import DTYPES, prepared_parts
from residua.weight_layers import WeightLayer, removed, weight_layers

__all__ = ["Damage", "Patient", "Target", "kendall_tau", "pairs_drawn", "patient"]


@dataclass(frozen=True)
class Target:
    """Something that is damaged by itself: a unit, a skip, or a layer of a network without shortcuts.

    `what` is left: "shortcut" (a unit that is off), "input" (a removed layer), or "zero". `transition`: it changes the shape.
    """

    path: str
    stage: int
    transition: bool
    what: str
    place: Place | None = None
    layer: WeightLayer | None = None


@dataclass(frozen=True)
class Damage:
    """What is done to a network in one forward pass: the steps of its chain from `start` on, those of `instead` replaced, within
    the context `around`, which may give the network to be run instead of the chain."""

    start: int = 0
    instead: Mapping[int, Step] = field(default_factory=dict)
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True)
class Patient:
    """A subject, its chain (None where it is none), its targets in order, and the groups of steps of the chain that can be
    swapped: within a stage and of one shape. `ordered` are the numbers of all steps that weigh and stand between the first and
    the last. `alone` has the step that is left of a target that is off, by its path, where it can be told. With a `dtype` the
    steps are those of `residua.infer` and compute in it, whatever is around them."""

    subject: Subject
    chain: Chain | None
    targets: tuple[Target, ...]
    swappable: tuple[tuple[int, ...], ...]
    ordered: tuple[int, ...]
    alone: Mapping[str, nn.Module] = field(default_factory=dict)
    dtype: torch.dtype | None = None

    @property
    def plain(self) -> bool:
        """Whether layers are removed, since there is no shortcut that would be left."""
        return bool(self.targets) and self.targets[0].layer is not None

    def without(self, targets: Sequence[Target], *, zero: bool = False) -> Damage:
        """All of `targets` damaged at once; with `zero` the response of each layer becomes zero, whatever its shape."""
        if self.chain is None:
            return Damage(around=partial(self._damaged, targets, zero))
        places = [self.chain.place_of(target.path) for target in targets]
        instead: dict[int, Step] = {}
        rest = []
        for target, place in zip(targets, places):
            alone = self.alone.get(target.path)
            if alone is None:
                rest.append(target)
            else:
                instead[place] = alone
        return Damage(max(0, min(places)), instead, partial(self._damaged, rest, zero) if rest else nullcontext)

    def shuffled(self, pairs: Sequence[tuple[int, int]]) -> tuple[Damage, float]:
        """The steps of each pair exchanged, one pair after the other, and Kendall's tau of the order that results."""
        assert self.chain is not None
        order = {place: place for place in self.ordered}
        for a, b in pairs:
            order[a], order[b] = order[b], order[a]
        changed = [place for place, source in order.items() if place != source]
        damage = Damage(min(changed, default=len(self.chain) - 1), swapped(self.chain.steps, order))
        return damage, kendall_tau([order[place] for place in self.ordered])

    def logits(self, damage: Damage, images: Tensor, signals: Sequence[Tensor]) -> Tensor:
        """What the damaged network gives for `images` [N, C, H, W], whose `signals` before each step are known: [N, K]."""
        with damage.around() as whole:
            if self.chain is None:
                return (whole if callable(whole) else self.subject.model)(images)
            return self.chain.after(signals[damage.start], damage.start, damage.instead)

    def signals(self, images: Tensor) -> list[Tensor]:
        """The inputs of all steps, and last the logits; without a chain the images and the logits."""
        if self.dtype is not None:
            images = images.to(self.dtype, memory_format=torch.channels_last)
        return self.chain.signals(images) if self.chain else [images, self.subject.model(images)]

    @contextmanager
    def _damaged(self, targets: Sequence[Target], zero: bool) -> Iterator[Callable[[Tensor], Tensor]]:
        with ExitStack() as stack:
            places = [target.place for target in targets if target.place is not None]
            network = stack.enter_context(self.subject.off(*places)) if places else self.subject.model
            for target in targets:
                if target.layer is not None:
                    stack.enter_context(_silent(target.layer) if zero or target.what == "zero" else removed(target.layer))
            yield network


def patient(subject: Subject, precision: str | None = None) -> Patient:
    """What can be damaged in `subject`; raises `NotApplicable` where nothing can.

    With a `precision` ("fp32" or "bf16") the steps are made ready for inference in it (`residua.infer`), where the subject is a
    chain on the CPU and all its targets can be switched off by replacing steps."""
    sample = next(subject.batches())[0][:2]
    chain = chain_of(subject.model, sample) if subject.rewired is None else None
    if subject.unseen:
        raise NotApplicable(subject.unseen)
    targets = [
        Target(place.path, place.stage, place.changes_shape, "shortcut" if place.shortcut else "zero", place)
        for place in subject.units
    ]
    if not any(place.shortcut for place in subject.units):
        targets = _layer_targets(subject, sample)
    if not targets:
        raise NotApplicable(f"{subject.name} has neither units nor layers on its main way that could be switched off.")
    swappable, ordered = _swappable(chain, sample) if chain else ((), ())
    alone = _alone(chain, targets) if chain else {}
    found = Patient(subject, chain, tuple(targets), swappable, ordered, alone)
    return found if precision is None else _ready(found, DTYPES[precision])


def _alone(chain: Chain, targets: Sequence[Target]) -> dict[str, nn.Module]:
    units = {target.path: target.place.unit for target in targets if target.place is not None}
    found = {path: shortcut_alone(unit) for path, unit in units.items() if unit is not None and unit in chain.steps}
    return {path: step for path, step in found.items() if step is not None}


def _ready(found: Patient, dtype: torch.dtype) -> Patient:
    """`found` with its steps as they are for inference, or as it is where modules of the network itself have to be changed."""
    chain, alone = found.chain, found.alone
    if chain is None or len(alone) < len(found.targets) or found.subject.device.type != "cpu":
        return found
    parts = prepared_parts(found.subject.model, [*chain.steps, *alone.values()], dtype)
    if parts is None:
        return found
    own = Chain(tuple(parts[: len(chain)]), chain.paths)
    return replace(found, chain=own, alone=dict(zip(alone, parts[len(chain) :])), dtype=dtype)


def kendall_tau(order: Sequence[int]) -> float:
    """Kendall's rank correlation of `order`, distinct numbers, with the same numbers sorted: 1 - 4 inversions / (n (n - 1))."""
    n = len(order)
    inversions = sum(order[i] > order[j] for i in range(n) for j in range(i + 1, n))
    return 1.0 if n < 2 else 1 - 4 * inversions / (n * (n - 1))


def pairs_drawn(groups: Sequence[Sequence[int]], count: int, *keys: int | str) -> list[tuple[int, int]]:
    """`count` pairs of members of the same group, each drawn from all such pairs as a pure function of `keys`."""
    pairs = [(a, b) for group in groups for i, a in enumerate(group) for b in group[i + 1 :]]
    picks = keyed.integers(0, len(pairs), *keys, torch.arange(count)).tolist()
    return [pairs[pick] for pick in picks]


def _layer_targets(subject: Subject, sample: Tensor) -> list[Target]:
    """The layers of a network without shortcuts, from the first to the last but the one that gives the logits."""
    layers = [layer for layer in weight_layers(subject.model, sample)[:-1] if not layer.path.startswith("head.")]
    again = {layer.module for layer in layers if layer.call}
    stage = -1
    targets: list[Target] = []
    for layer in (layer for layer in layers if layer.module not in again):
        stage += not layer.keeps_shape or not targets
        what = "input" if layer.keeps_shape else "zero"
        targets.append(Target(layer.path, max(0, stage), not layer.keeps_shape, what, layer=layer))
    return targets


def _swappable(chain: Chain, sample: Tensor) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
    with torch.inference_mode():
        shapes = [signal.shape for signal in chain.signals(sample)]
    weighing = [
        place for place, step in enumerate(chain.steps)
        if 0 < place < len(chain) - 1 and any(parameter.dim() > 1 for parameter in step.parameters())
    ]  # fmt: skip
    groups: dict[tuple[int, ...], list[int]] = {}
    for place in weighing:
        if shapes[place] == shapes[place + 1]:
            groups.setdefault(tuple(shapes[place]), []).append(place)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1), tuple(weighing)


@contextmanager
def _silent(layer: WeightLayer) -> Iterator[None]:
    """The response of the layer, after its normalisation, is zero, and so is what it gives besides, such as states."""
    module: nn.Module = layer.norm or layer.module
    handle = module.register_forward_hook(lambda _m, _i, output: tree_map(_zeros, output))
    try:
        yield
    finally:
        handle.remove()


def _zeros(part: Any) -> Any:
    return torch.zeros_like(part) if isinstance(part, Tensor) else part
