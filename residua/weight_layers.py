"""The weight layers of any module in the order in which they are called, each with the normalisation that follows. Layer 1.

A weight layer is a module that itself holds a parameter of two or more dimensions and is no normalisation: a convolution, a
linear layer, an embedding, a recurrent layer. What a module computes by a function of weights that are not its own is not seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["WeightLayer", "removed", "responses_seen", "weight_layers"]

_NORMS = (
    nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.RMSNorm,
)  # fmt: skip


@dataclass(frozen=True)
class WeightLayer:
    """One call of a weight layer. `path` is its dotted name, `call` how often it was called before in the same pass; `norm` is
    the normalisation that reads its output directly, with its name and how often it was called before. `keeps_shape`: its
    response has the shape of its input."""

    path: str
    module: nn.Module
    call: int
    norm: nn.Module | None = None
    norm_path: str | None = None
    norm_call: int = 0
    keeps_shape: bool = False


def weight_layers(model: nn.Module, sample: Tensor) -> tuple[WeightLayer, ...]:
    """The layers in the order in which `model` calls them for `sample`, seen in one forward pass without gradients."""
    paths = {module: path for path, module in model.named_modules()}
    found: list[WeightLayer] = []
    outputs: dict[int, tuple[Tensor, int]] = {}  # the tensors are kept, so that no later one gets the number of an earlier one
    calls: Counter[nn.Module] = Counter()

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        first = next((item for item in inputs if isinstance(item, Tensor)), None)
        if isinstance(module, _NORMS):
            place = outputs[id(first)][1] if id(first) in outputs else None
            if place is not None and found[place].norm is None:
                found[place] = replace(found[place], norm=module, norm_path=paths[module], norm_call=calls[module])
            calls[module] += 1
            return
        response = _tensor(output)
        same = first is not None and response is not None and first.shape == response.shape
        found.append(WeightLayer(paths[module], module, calls[module], keeps_shape=same))
        calls[module] += 1
        if response is not None:
            outputs[id(response)] = (response, len(found) - 1)

    watched = [module for module in paths if isinstance(module, _NORMS) or _weighs(module)]
    handles = [module.register_forward_hook(note) for module in watched]
    try:
        with torch.inference_mode():
            model(sample)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(found)


@contextmanager
def responses_seen(layers: Mapping[int, WeightLayer], see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Within the block, which holds one forward pass, `see(number, response)` is called for each of `layers`, by its number.

    The response is the output of the layer after its normalisation, if one reads it, and before anything else (he2015,
    figure 7); it may be changed in place later on, so use it at once.
    """
    by_module: dict[nn.Module, dict[int, int]] = {}
    for number, layer in layers.items():
        by_module.setdefault(layer.norm or layer.module, {})[layer.call if layer.norm is None else layer.norm_call] = number
    calls: Counter[nn.Module] = Counter()

    def note(module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        number = by_module[module].get(calls[module])
        calls[module] += 1
        response = _tensor(output)
        if number is not None and response is not None:
            see(number, response)

    handles = [module.register_forward_hook(note) for module in by_module]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def removed(*layers: WeightLayer) -> Iterator[None]:
    """Within the block each of the layers, with its normalisation, hands on a copy of its input, since what follows may work in
    place: what veit2016 does to the layers of a plain network. Their shapes must be kept. What a layer gives besides its response
    (states, attention weights) stays."""

    def hand_on(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        found = _tensor(inputs)
        assert found is not None, "a layer that keeps its shape has an input"
        response = found.clone()
        return (response, *output[1:]) if isinstance(output, (tuple, list)) else response

    modules = [module for layer in layers for module in (layer.module, layer.norm) if module is not None]
    handles = [module.register_forward_hook(hand_on) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensor(output: Any) -> Tensor | None:
    if isinstance(output, (tuple, list)):
        return next((item for item in output if isinstance(item, Tensor)), None)
    return output if isinstance(output, Tensor) else None


def _weighs(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
