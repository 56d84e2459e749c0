"""Our loops beside what torch calls in their place, in turn, in one process: convolutions, poolings, updates of Muon.

    python benchmarks/loops.py [--rounds 9] [--json FILE]

Convolutions are 3x3 of stride 1 or 2, or 1x1, in bf16, channels last, forward and both gradients, with the transform (ours)
or the rounding (theirs) of the weights; torch's are oneDNN's. A normalisation, a ReLU and a 1x1 convolution are timed forward
and backward together, as layers. Muon's updates are ours in bf16 and those in float32. Each call has other maps than the one
before, so that they come from memory, as in an update. A ratio is taken within each round. The ceiling is the rate of a large
product of matrices just then: for a plain convolution nothing goes beyond it.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import form
import torch
from torch import Tensor, nn

from residua import columns, convolving, kernels, optim, orthogonal, plan, pointwise, stems, strided, winograd
from residua.doctor import matrix_rate

CONVOLUTIONS = [  # images, channels, side
    (128, 16, 32), (128, 32, 16), (128, 64, 8), (64, 128, 32), (64, 256, 16), (32, 64, 56), (32, 128, 28), (32, 256, 14),
    (32, 512, 7),
]  # fmt: skip
STRIDED = [(128, 16, 32, 32), (128, 32, 64, 16), (32, 64, 128, 56), (32, 256, 512, 14)]
POINTWISE = [(64, 64, 16, 32), (64, 16, 64, 32), (32, 256, 64, 56), (32, 64, 256, 56), (32, 512, 128, 28), (32, 256, 1024, 14)]
"""Both: images, channels before and after, side."""
POOLINGS = [(1000, 64, 31, 2, 2, 0), (32, 64, 112, 3, 2, 1)]  # images, channels, side, window, stride, padding
FIRST = [(128, 16, 32, 3, 1), (32, 64, 224, 7, 2)]  # images, outputs, side, kernel, stride
CACHES = 256 << 20
"""Bytes that no cache holds."""
UPDATES = [(128, 1152), (256, 2304), (512, 4608), (2048, 512)]


def laid_out(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16().contiguous(memory_format=torch.channels_last)


def turns(*shape: int) -> itertools.cycle[Tensor]:
    """Maps of a shape, of which each comes again when all others were used since."""
    count = max(2, -(-CACHES // (2 * torch.Size(shape).numel())))
    return itertools.cycle([laid_out(*shape) for _ in range(count)])


def on(function: Callable[..., object], *arguments: object) -> Callable[[], object]:
    """A call of `function`, each time with the next map of those among its arguments that take turns."""
    return lambda: function(*(next(given) if isinstance(given, itertools.cycle) else given for given in arguments))


def compared(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each, in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 2):
        for found, run in zip(times, (ours, theirs)):
            before = time.perf_counter()
            run()
            if number > 1:
                found.append(1e3 * (time.perf_counter() - before))
    return times


def row(
    what: str, shape: str, ours: Callable[[], object], theirs: Callable[[], object], rounds: int, work: float
) -> dict[str, Any]:
    """`work`: operations of the plain way, in units of 10^9, or 0."""
    mine, other = compared(ours, theirs, rounds)
    ratio = form.spread([b / a for a, b in zip(mine, other)], "times as fast")
    rate = 1e3 * work / statistics.median(other) if work else None
    found = {"loop": what, "shape": shape, "ours, ms": statistics.median(mine), "torch, ms": statistics.median(other)}
    print(
        f"{what:32s} {shape:26s} {found['ours, ms']:8.2f} {found['torch, ms']:8.2f} ms {ratio['times as fast']:6.2f}", flush=True
    )
    return {**found, **ratio, "torch, GFLOP/s": rate}


def convolutions(rounds: int) -> list[dict[str, Any]]:
    rows = []
    for images, channels, side in CONVOLUTIONS:
        x, dy = turns(images, channels, side, side), turns(images, channels, side, side)
        weight = torch.randn(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
        ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "convolution": (on(winograd.convolution, x, weight), on(plain, x, weight)),
            "its input's gradient": (on(winograd.input_gradient, dy, weight, x), on(gradient, dy, x, weight, 0)),
            "its weights' gradient": (on(winograd.weight_gradient, x, dy, weight), on(gradient, dy, x, weight, 1)),
        }
        work = 2 * 9 * channels**2 * side**2 * images / 1e9
        rows += [row(what, f"{images} x {channels} x {side} x {side}", *pair, rounds, work) for what, pair in ways.items()]
    return rows


def plain(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    return torch.conv2d(x, weight.bfloat16(), None, stride, weight.shape[2] // 2)


def gradient(dy: Tensor, x: Tensor, weight: Tensor, which: int) -> object:
    stride, padding, wanted = [x.shape[2] // dy.shape[2]] * 2, [weight.shape[2] // 2] * 2, [which == 0, which == 1, False]
    return torch.ops.aten.convolution_backward(dy, x, weight.bfloat16(), None, stride, padding, [1, 1], False, [0, 0], 1, wanted)


def strided_convolutions(rounds: int) -> list[dict[str, Any]]:
    rows = []
    for images, inputs, outputs, side in STRIDED:
        loops = strided if inputs < columns.LEAST_CHANNELS else columns
        x, dy = turns(images, inputs, side, side), turns(images, outputs, side // 2, side // 2)
        weight = torch.randn(outputs, inputs, 3, 3).contiguous(memory_format=torch.channels_last)
        ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "convolution of stride 2": (on(loops.convolution, x, weight), on(plain, x, weight, 2)),
            "its input's gradient": (on(loops.input_gradient, dy, weight, x), on(gradient, dy, x, weight, 0)),
            "its weights' gradient": (on(loops.weight_gradient, x, dy, weight), on(gradient, dy, x, weight, 1)),
        }
        work = 2 * 9 * inputs * outputs * (side // 2) ** 2 * images / 1e9
        shape = f"{images} x {inputs} x {side} x {side} to {outputs}"
        rows += [row(what, shape, *pair, rounds, work) for what, pair in ways.items()]
    return rows


def first_layers(rounds: int) -> list[dict[str, Any]]:
    rows = []
    for images, outputs, side, kernel, stride in FIRST:
        loops = stems.Stem(stride, (kernel // 2, kernel // 2))
        x, dy = turns(images, 3, side, side), turns(images, outputs, side // stride, side // stride)
        weight = torch.randn(outputs, 3, kernel, kernel).contiguous(memory_format=torch.channels_last)
        ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            f"first layer {kernel}x{kernel}": (on(loops.convolution, x, weight), on(plain, x, weight, stride)),
            "its weights' gradient": (on(loops.weight_gradient, x, dy, weight), on(gradient, dy, x, weight, 1)),
        }
        work = 2 * kernel**2 * 3 * outputs * (side // stride) ** 2 * images / 1e9
        shape = f"{images} x 3 x {side} x {side} to {outputs}"
        rows += [row(what, shape, *pair, rounds, work) for what, pair in ways.items()]
    return rows


def pointwise_convolutions(rounds: int) -> list[dict[str, Any]]:
    rows = []
    for images, inputs, outputs, side in POINTWISE:
        x, dy = turns(images, inputs, side, side), turns(images, outputs, side, side)
        layers = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False))
        layers = layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        weight = layers[2].weight.detach()
        twin = kernels.fused(layers, own_convolutions=True)
        ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "1x1 convolution": (on(pointwise.convolution, x, weight), on(plain, x, weight)),
            "its input's gradient": (on(pointwise.input_gradient, dy, weight, x), on(gradient, dy, x, weight, 0)),
            "its weights' gradient": (on(pointwise.weight_gradient, x, dy, weight), on(gradient, dy, x, weight, 1)),
            "norm, ReLU, 1x1, both ways": (on(learned, twin, x, dy), on(learned, layers, x, dy)),
        }
        work = 2 * inputs * outputs * side**2 * images / 1e9
        shape = f"{images} x {inputs} x {side} x {side} to {outputs}"
        rows += [row(what, shape, *pair, rounds, 0 if "norm" in what else work) for what, pair in ways.items()]
    return rows


def learned(layers: nn.Module, x: Tensor, dy: Tensor) -> object:
    start = x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layers(start)
    return torch.autograd.grad(y, [start, *layers.parameters()], dy)


def poolings(rounds: int) -> list[dict[str, Any]]:
    rows = []
    for images, channels, side, window, stride, padding in POOLINGS:
        x = turns(images, channels, side, side)
        pool = nn.MaxPool2d(window, stride, padding)
        ours, theirs = (on(both_ways, one, x) for one in (kernels.fused(pool), pool))
        shape = f"{images} x {channels} x {side} x {side}"
        rows.append(row(f"maxima of {window}x{window}, both ways", shape, ours, theirs, rounds, 0))
    return rows


def pooled_norms(rounds: int) -> list[dict[str, Any]]:
    images, channels, side, window, stride, padding = POOLINGS[-1]
    layers = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(window, stride, padding))
    x = turns(images, channels, side, side)
    ours, theirs = (on(both_ways, one, x) for one in (kernels.fused(layers), layers))
    return [row("norm, ReLU, maxima, both ways", f"{images} x {channels} x {side} x {side}", ours, theirs, rounds, 0)]


def both_ways(pool: nn.Module, x: Tensor) -> object:
    start = x.requires_grad_()
    y = pool(start)
    return torch.autograd.grad(y, start, torch.ones_like(y))


def updates(rounds: int) -> list[dict[str, Any]]:
    rows = []
    for shape in UPDATES:
        weight, update = torch.randn(shape), torch.randn(shape)
        own = partial(orthogonal.update_, weight, update, kept=1.0, scale=1e-3)
        rows.append(row("update of Muon", f"{shape[0]} x {shape[1]}", own, partial(in_float32, weight, update), rounds, 0))
    return rows


def in_float32(weight: Tensor, update: Tensor) -> Tensor:
    if update.shape[0] > update.shape[1]:
        return weight.addmm_(update, optim.orthogonalizing(update.mT[None])[0], alpha=-1e-3)
    return weight.addmm_(optim.orthogonalizing(update[None])[0], update, alpha=-1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if why := convolving.obstacle() or orthogonal.obstacle() or kernels.obstacle():
        parser.error(f"the loops cannot run here: {why}")
    torch.manual_seed(0)
    plan.set_allocator(False)
    rows = [
        *convolutions(arguments.rounds),
        *strided_convolutions(arguments.rounds),
        *first_layers(arguments.rounds),
        *pointwise_convolutions(arguments.rounds),
        *poolings(arguments.rounds),
        *pooled_norms(arguments.rounds),
        *updates(arguments.rounds),
    ]
    ceiling = {"bf16, GFLOP/s": matrix_rate(torch.bfloat16, torch.device("cpu"), 2048, 2.0)}
    form.write(arguments.json, form.result("loops", rows, ceiling=ceiling))


if __name__ == "__main__":
    main()
