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


def multiply_adds(model: nn.Module, input_shape: tuple[int, ...], *extra: torch.Tensor) -> int:
    """Multiply-adds of convolutions and matrix products for one input of `input_shape` (channels, height, width).

    `extra` are further inputs that the model takes, such as a mask.
    """
    return sum(row.multiply_adds for row in layer_table(model, input_shape, *extra))


def layer_table(model: nn.Module, input_shape: tuple[int, ...], *extra: torch.Tensor) -> list[LayerCost]:
    """The leaf layers in the order in which they run on one input; nothing is computed, only shapes.

    A module that holds layers and multiplies besides them, as attention does, follows them in a row of its own.
    """
    twin = copy.deepcopy(model).to("meta").eval()
    rows: list[LayerCost] = []
    counter = FlopCounterMode(display=False)
    running: list[list[int]] = []  # of each module that runs: operations before it, operations inside the modules that it holds

    def before() -> None:
        running.append([counter.get_total_flops(), 0])

    def after(path: str, module: nn.Module, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        started, inside = running.pop()
        all_of_it = counter.get_total_flops() - started
        if running:
            running[-1][1] += all_of_it
        if all_of_it > inside or not list(module.children()):
            shape = tuple((output if isinstance(output, torch.Tensor) else output[0]).shape)
            own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
            rows.append(LayerCost(path, type(module).__name__, shape, own, (all_of_it - inside) // 2))

    for path, module in twin.named_modules():
        module.register_forward_pre_hook(lambda _m, _i: before())
        module.register_forward_hook(lambda m, _i, out, path=path: after(path, m, out))
    dtype = next((parameter.dtype for parameter in twin.parameters()), None)
    with counter, torch.no_grad():
        twin(torch.empty((1, *input_shape), device="meta", dtype=dtype), *(tensor.to("meta") for tensor in extra))
    return rows
