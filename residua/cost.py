"""What a network costs: parameters, multiply-adds, and what training keeps, layer by layer, counted by torch on the meta device.

Layer 1. Nothing is computed and nothing large is allocated: only shapes go through the network. A module that cannot run so,
because it looks at values, is run once on a copy.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["LayerCost", "kept_bytes", "layer_costs", "layer_table", "multiply_adds", "num_parameters"]

Kept = Mapping[tuple[str, int], int]  # bytes by the path of a module and the number of its call


@dataclass(frozen=True)
class LayerCost:
    """One layer: its dotted `path`, class name, output shape (with the batch), its own parameters, and multiply-adds.

    `kept_bytes` is what it keeps for the backward pass of a training step beside parameters and what a layer before it keeps
    already; None where that was not counted.
    """

    path: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    kept_bytes: int | None = None


def num_parameters(model: nn.Module) -> int:
    """Trainable and frozen parameters, each once."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: nn.Module, input_shape: tuple[int, ...], *extra: torch.Tensor) -> int:
    """Multiply-adds of convolutions and matrix products for one input of `input_shape` (channels, height, width).

    `extra` are further inputs that the model takes, such as a mask.
    """
    return sum(row.multiply_adds for row in layer_table(model, input_shape, *extra))


def layer_table(model: nn.Module, input_shape: tuple[int, ...], *extra: torch.Tensor) -> list[LayerCost]:
    """The leaf layers in the order in which they run on one input of `input_shape`; `extra` are further inputs."""
    dtype = next((parameter.dtype for parameter in model.parameters()), None)
    return layer_costs(model, (torch.empty((1, *input_shape), device="meta", dtype=dtype), *extra))


def layer_costs(model: nn.Module, inputs: Sequence[Any], kept: Kept | None = None) -> list[LayerCost]:
    """The leaf layers in the order in which they run on `inputs`, in evaluation mode.

    A module that holds layers and multiplies (or keeps something) besides them, as attention does, follows them in a row of its
    own. `kept` is what `kept_bytes` gives for the same inputs; without it the rows do not say what is kept.
    """
    counter = FlopCounterMode(display=False)
    rows: list[LayerCost] = []
    calls: Counter[str] = Counter()
    running: list[list[int]] = []  # of each module that runs: operations before it, operations inside the modules that it holds

    def before(_path: str) -> None:
        running.append([counter.get_total_flops(), 0])

    def after(path: str, module: nn.Module, output: Any) -> None:
        started, inside = running.pop()
        all_of_it = counter.get_total_flops() - started
        if running:
            running[-1][1] += all_of_it
        keeps = kept.get((path, calls[path]), 0) if kept is not None else None
        calls[path] += 1
        if all_of_it > inside or keeps or not list(module.children()):
            own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
            row = LayerCost(path, type(module).__name__, _shape(output), own, (all_of_it - inside) // 2)
            rows.append(replace(row, kept_bytes=keeps))

    def run(twin: nn.Module, tensors: Sequence[Any]) -> None:
        rows.clear()
        calls.clear()
        running.clear()
        with counter, torch.no_grad(), _watched(twin.eval(), before, after):
            twin(*tensors)

    _on_meta(model, inputs, run)
    return rows


def kept_bytes(model: nn.Module, inputs: Sequence[Any]) -> Kept | None:
    """What a forward pass of `inputs` in training mode keeps for the backward pass, in bytes by (path, number of the call).

    Each storage counts once, for the innermost module that was running when it was first kept; parameters and buffers do not
    count, the network's input does. What is computed again instead of kept (checkpointing) is not there. None where the pass
    fails in training mode, as batch norms do that see a single value.
    """
    kept: Counter[tuple[str, int]] = Counter()
    calls: Counter[str] = Counter()
    running: list[tuple[str, int]] = []
    seen: dict[int, Any] = {}  # storages are held, so that no later one gets the number of an earlier one

    def before(path: str) -> None:
        running.append((path, calls[path]))
        calls[path] += 1

    def after(_path: str, _module: nn.Module, _output: Any) -> None:
        running.pop()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen[storage._cdata] = storage
            kept[running[-1] if running else ("", 0)] += storage.nbytes()
        return tensor

    def run(twin: nn.Module, tensors: Sequence[Any]) -> None:
        for record in (kept, calls, running, seen):
            record.clear()
        for tensor in (*twin.parameters(), *twin.buffers()):
            seen[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with torch.enable_grad(), _watched(twin.train(), before, after), hooks:
            twin(*tensors)

    try:
        _on_meta(model, inputs, run)
    except (RuntimeError, ValueError):
        return None
    return dict(kept)


def _on_meta(model: nn.Module, inputs: Sequence[Any], run: Callable[[nn.Module, Sequence[Any]], None]) -> None:
    """Runs a copy on the meta device; where that fails, on the CPU, with values."""
    try:
        run(copy.deepcopy(model).to("meta"), [item.to("meta") if isinstance(item, Tensor) else item for item in inputs])
    except (NotImplementedError, RuntimeError):
        if any(isinstance(item, Tensor) and item.is_meta for item in inputs):
            raise
        run(copy.deepcopy(model), inputs)


@contextmanager
def _watched(model: nn.Module, before: Callable[[str], None], after: Callable[[str, nn.Module, Any], None]) -> Iterator[None]:
    """Within the block every call of a module is told before and after."""
    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda _m, _i, path=path: before(path)))
        handles.append(module.register_forward_hook(lambda m, _i, out, path=path: after(path, m, out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _shape(output: Any) -> tuple[int, ...]:
    """Of the first tensor in what a module gives."""
    if isinstance(output, Tensor):
        return tuple(output.shape)
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return next((shape for shape in map(_shape, values) if shape), ())
