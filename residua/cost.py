"""What a network costs: parameters and multiply-adds, layer by layer, counted by torch on the meta device. Layer 1."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["LayerCost", "layer_table", "multiply_adds", "num_parameters"]


@dataclass(frozen=True)
class LayerCost:
    """One layer: its dotted `path`, class name, output shape for a batch of one, parameters and multiply-adds."""

    path: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


def num_parameters(model: nn.Module) -> int:
    """Trainable and frozen parameters, each once."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-adds of convolutions and matrix products for one input of `input_shape` (channels, height, width)."""
    return sum(row.multiply_adds for row in layer_table(model, input_shape))


def layer_table(model: nn.Module, input_shape: tuple[int, ...]) -> list[LayerCost]:
    """The leaf layers in the order in which they run on one input; nothing is computed, only shapes."""
    twin = copy.deepcopy(model).to("meta").eval()
    rows: list[LayerCost] = []
    counter = FlopCounterMode(display=False)
    started: dict[str, int] = {}

    def before(path: str) -> None:
        started[path] = counter.get_total_flops()

    def after(path: str, module: nn.Module, output: torch.Tensor) -> None:
        flops = counter.get_total_flops() - started[path]
        rows.append(LayerCost(path, type(module).__name__, tuple(output.shape), num_parameters(module), flops // 2))

    for path, module in twin.named_modules():
        if not list(module.children()):
            module.register_forward_pre_hook(lambda _m, _i, path=path: before(path))
            module.register_forward_hook(lambda m, _i, out, path=path: after(path, m, out))
    with counter, torch.no_grad():
        twin(torch.empty((1, *input_shape), device="meta"))
    return rows
