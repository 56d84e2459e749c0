"""Peak memory and time of a training step: ours, ours where memory is short, and eager bf16 autocast; and both by depth.

    python benchmarks/memory.py [--model resnet110] [--batch 128] [--rounds 3] [--seconds 5] [--json FILE]
    python benchmarks/memory.py --depths 20 32 44 56 110 1202 --batch 32 [--seconds 3] [--figure FILE.svg] [--json FILE]

All ways make the same update: forward, backward, SGD with momentum, of the network for images of 32 pixels. "eager bf16" is the
network as it is usually written, in channels-last order under autocast, with the allocator that the process comes with. "ours" is
the step of `residua train` under the plan bf16-fused with its allocator; "ours, short of memory" the same, when the forecast
is told that `--share` (half) of the memory is free that eager bf16 was seen to take. Each turn is a process of its own. First
it makes updates of a smaller network with two images, so that libraries, compiled loops and interpreter are there; the peak
is the most resident memory (VmHWM) in later updates less what was resident then: weights, gradients, momentum and maps, and
what the allocator lost between them. "counted" is the most that torch's tensors held at once in an update, without weights and
momentum.

The second form takes the three-stage networks of depth 6n + 2 one after another; where all maps would take more than `--most`
MiB, the network is only measured with recomputation. A line through both ends of the depths is compared with what lies between.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import form

WAYS = ("eager bf16", "ours", "ours, short of memory")


def resident(field: str) -> float:
    """A field of /proc/self/status in MiB: VmRSS now, VmHWM at most."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def eager(name: str, batch: int) -> tuple[Callable[[], None], str]:
    """An update the usual way."""
    import torch
    from torch.nn import functional as F
    from usual_networks import resnet

    network = resnet(int(name.removeprefix("resnet"))).to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch) % 10
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step, ""


def ours(name: str, batch: int, free_mib: float) -> tuple[Callable[[], None], str]:
    """An update by the step of `residua train`; what the forecast did about the memory that is free."""
    import torch

    from residua import forecast, kernels, plan, resolve
    from residua.batches import Batch, Share
    from residua.dataset import ArraySamples, Dataset, Facts
    from residua.prepare import fresh_network
    from residua.recipe import replaced
    from residua.recipes import get_recipe
    from residua.step import Step

    device, chosen = torch.device("cpu"), "bf16-fused" if kernels.available() else "bf16"
    images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8)
    draws = torch.arange(batch)
    samples = ArraySamples(images, draws % 10, [str(place) for place in range(batch)])
    dataset = Dataset(
        source="random", note="", classes=tuple("0123456789"), splits={"train": samples, "test": samples},
        facts=Facts(channels=3, size=(32, 32), flip=True, pad=4),
    )  # fmt: skip
    changes: dict[str, Any] = {
        "data.source": "random", "model.name": name, "batch_size": batch, "epochs": 1000, "plan": chosen, "optim.name": "sgd",
        "optim.lr": 0.1, "optim.weight_decay": 5e-4, "average.decay": 0,
    }  # fmt: skip
    recipe = resolve.resolve(replaced(get_recipe("fast", name), changes), dataset)[0]
    network = fresh_network(recipe)
    said = forecast.spare_memory(network, recipe, Share(), device, free=round(free_mib * 2**20)) if free_mib else None
    plan.apply(plan.PLANS[chosen], torch.get_num_threads(), device, sparing=plan.spares(network, plan.PLANS[chosen]))
    step = Step(network, recipe, plan.PLANS[chosen], resolve.normalization(samples, recipe, 3), 100_000, device=device)
    count = iter(range(10**9))

    def update() -> None:
        step(Batch(next(count), 0, images, samples.labels, draws, torch.ones(batch, dtype=torch.bool)))

    return update, said or ""


def turn(name: str, way: str, batch: int, seconds: float, free_mib: float) -> dict[str, Any]:
    """One turn: MiB at the peak, MiB of tensors, milliseconds an update, what the forecast said."""

    def made(name: str, batch: int, free_mib: float) -> tuple[Callable[[], None], str]:
        return eager(name, batch) if way == "eager bf16" else ours(name, batch, free_mib)

    small, _ = made("resnet20", 2, 0.0)
    small()
    small()
    before = resident("VmRSS")
    step, said = made(name, batch, free_mib if way == WAYS[2] else 0.0)
    step()
    taken: list[float] = []
    while sum(taken) < seconds or len(taken) < 2:
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    peak = resident("VmHWM") - before
    return {"peak": peak, "counted": counted(step), "ms": 1e3 * statistics.median(taken), "said": said}


def counted(step: Callable[[], None]) -> float:
    """The most MiB that tensors which an update makes hold at once, by the profiler's record of allocations."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / 2**20


def measured(name: str, way: str, batch: int, seconds: float, free_mib: float = 0.0) -> dict[str, Any]:
    """A turn in a process of its own."""
    words = ["--turn", name, way, "--batch", str(batch), "--seconds", str(seconds), "--free", str(free_mib)]
    done = subprocess.run(
        [sys.executable, __file__, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compared(model: str, batch: int, rounds: int, seconds: float, share: float) -> dict[str, Any]:
    """The first form's result."""
    turns: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            free = share * turns[WAYS[0]][0]["peak"] if turns[WAYS[0]] else 0.0
            turns[way].append(measured(model, way, batch, seconds, free))
            print(f"{way:<24} " + ", ".join(f"{key} {value:.0f}" for key, value in turns[way][-1].items() if key != "said"))
    rows = []
    for way, found in turns.items():
        memory = [one["peak"] / base["peak"] for one, base in zip(found, turns[WAYS[0]])]
        pace = [one["ms"] / base["ms"] for one, base in zip(found, turns[WAYS[0]])]
        rows.append(
            {"way": way, "peak, MiB": statistics.median(one["peak"] for one in found),
             "counted, MiB": statistics.median(one["counted"] for one in found),
             "of eager's peak": statistics.median(memory), "least": min(memory), "greatest": max(memory),
             "ms an update": statistics.median(one["ms"] for one in found), "of eager's time": statistics.median(pace),
             "least time": min(pace), "greatest time": max(pace)}
        )  # fmt: skip
    notes = sorted({one["said"] for found in turns.values() for one in found if one["said"]})
    return form.result(f"memory-{model}", rows, notes=notes, raw={"turns": turns, "batch": batch})


def by_depth(depths: list[int], batch: int, seconds: float, most: float, figure: Path | None) -> dict[str, Any]:
    """The second form's result."""
    rows: list[dict[str, Any]] = []
    for depth in depths:
        row: dict[str, Any] = {"depth": depth}
        for way, free in ((WAYS[1], 0.0), (WAYS[2], 1.0)):
            if way == WAYS[1] and rows and rows[-1][f"{way}: peak, MiB"] is not None:
                expected = rows[-1][f"{way}: peak, MiB"] * depth / rows[-1]["depth"]
            else:
                expected = 0.0
            found = measured(f"resnet{depth}", way, batch, seconds, free) if expected <= most else None
            for column, key in (("peak, MiB", "peak"), ("counted, MiB", "counted"), ("ms an update", "ms")):
                row[f"{way}: {column}"] = None if found is None else found[key]
        rows.append(row)
        print(", ".join(f"{key} {value if value is None else round(value)}" for key, value in row.items()), flush=True)
    if figure is not None:
        figure.write_text(drawn(rows), encoding="utf-8")
    return form.result("memory-by-depth", rows, notes=[f"Batches of {batch}.", *straightness(rows)], raw={"batch": batch})


def straightness(rows: list[dict[str, Any]]) -> list[str]:
    """How far the points lie from the line through the shallowest and the deepest network."""
    said = []
    for way in WAYS[1:]:
        for column in ("counted, MiB", "ms an update"):
            points = [(row["depth"], row[f"{way}: {column}"]) for row in rows if row[f"{way}: {column}"] is not None]
            (x0, y0), (x1, y1) = points[0], points[-1]
            line = [y0 + (y1 - y0) * (x - x0) / (x1 - x0) for x, _ in points]
            off = max(abs(y - there) / there for (_, y), there in zip(points, line))
            slope = (y1 - y0) / (x1 - x0)
            said.append(f"{way}, {column}: {slope:.3g} a layer; at most {100 * off:.0f} % off the line between both ends.")
    return said


def drawn(rows: list[dict[str, Any]]) -> str:
    """Peak memory over depth, both ways."""
    from residua.panels import Curve, panel

    curves = [
        Curve([row["depth"] for row in rows], [row[f"{way}: peak, MiB"] for row in rows], way, network, style="both")
        for network, way in enumerate(WAYS[1:])
    ]
    return panel("memory-by-depth", "Peak memory of an update by depth", curves, "depth", "peak memory, MiB", whole=True)


def main() -> None:
    """Measures what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet110")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--depths", type=int, nargs="+")
    parser.add_argument("--most", type=float, default=2000)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--turn", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--free", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turn:
        print(json.dumps(turn(*options.turn, options.batch, options.seconds, options.free)), flush=True)
        os._exit(0)
    if options.depths:
        found = by_depth(options.depths, options.batch, options.seconds, options.most, options.figure)
    else:
        found = compared(options.model, options.batch, options.rounds, options.seconds, options.share)
    form.write(options.json, found)
    print("\n".join(found["notes"]))


if __name__ == "__main__":
    main()
