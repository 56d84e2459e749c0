"""A network as a chain of steps, so that what lies before a unit is computed once for all that is done to the unit. Layer 2."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from residua.network import Network
from residua.unit import Add, SampledAdd, Unit

__all__ = ["Chain", "Step", "chain_of", "shortcut_alone", "swapped"]

Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Chain:
    """Modules whose composition is a network: `steps` in order, `paths` their dotted names in it."""

    steps: tuple[nn.Module, ...]
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.steps)

    def place_of(self, path: str) -> int:
        """The number of the step that is, or holds, the module called `path`; -1 where none does."""
        held = [place for place, own in enumerate(self.paths) if path == own or path.startswith(f"{own}.")]
        return held[0] if held else -1

    def signals(self, x: Tensor) -> list[Tensor]:
        """The input of every step, and last what the network gives. A step gets a copy: what it does in place is not in them."""
        found = [x]
        for step in self.steps:
            found.append(step(found[-1].clone()))
        return found

    def after(self, x: Tensor, start: int, instead: Mapping[int, Step] | None = None) -> Tensor:
        """What the network gives if the input of step `start` is `x`, which stays as it is; the steps numbered in `instead` are
        replaced."""
        x = x.clone()
        for place in range(start, len(self.steps)):
            x = (instead or {}).get(place, self.steps[place])(x)
        return x


def chain_of(model: nn.Module, sample: Tensor) -> Chain | None:
    """The chain of a `Network` (stem, the members of each stage that is a sequence, head) or of a sequence of modules.

    None where `model` is neither, where a step gives more than one signal, or where the chain does not give exactly what the
    model gives for `sample`.
    """
    if isinstance(model, Network):
        found = [("stem", model.stem)]
        for number, stage in enumerate(model.stages):
            inner = stage.named_children() if isinstance(stage, nn.Sequential) else [("", stage)]
            found += [(f"stages.{number}.{name}".rstrip("."), module) for name, module in inner]
        found.append(("head", model.head))
    elif isinstance(model, nn.Sequential):
        found = list(model.named_children())
    else:
        return None
    chain = Chain(tuple(module for _, module in found), tuple(path for path, _ in found))
    with torch.inference_mode():
        x = sample.clone()
        for step in chain.steps:
            x = step(x)
            if not isinstance(x, Tensor):
                return None
        return chain if torch.equal(x, model(sample)) else None


def shortcut_alone(unit: Unit) -> nn.Module | None:
    """What is left of `unit` when it is switched off (`residua.unit.switched_off`), without computing the branch in vain: the
    shortcut and what follows, where the merge is an addition. None for other merges, which need the shape of the branch."""
    shortcut = unit.shortcut
    if shortcut is None or not isinstance(unit.merge, (Add, SampledAdd)):
        return None
    return nn.Sequential(shortcut, unit.post)


def swapped(steps: Sequence[nn.Module], order: Mapping[int, int]) -> dict[int, Step]:
    """The replacements that put step `order[place]` at `place`."""
    return {place: steps[source] for place, source in order.items() if place != source}
