"""Training from a folder of JPEGs that is read as it goes: the share of the time in which a step waits for its images.

    python benchmarks/waiting.py --images DIR [--models resnet18 resnet50] [--batch 32] [--seconds 20] [--rounds 2] [--json FILE]

The batches, transforms and updates of `residua train FOLDER --batch-size N` with its default recipe, images streamed, under the
plan bf16-fused (bf16 where there is no C compiler). Each turn is a process of its own. The same updates on one batch that is
ready are what a step takes without a folder; decoding alone is what the folder gives when nothing else runs. Decoding takes
its time from the same cores, so a step with it is longer; but a step that finds its images ready never stands still.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import form
from folder_speed import repeated


def turn(folder: Path, model: str, batch: int, seconds: float) -> dict[str, float]:
    """Seconds of a step with streamed images, the share of waiting, seconds of a step whose images are ready; images/s of the
    folder alone."""
    import torch

    from residua import kernels, plan
    from residua.batches import Share, train_batches
    from residua.data import open_data
    from residua.prepare import fresh_network
    from residua.recipes import get_recipe
    from residua.resolve import make_order, normalization, resolve
    from residua.step import Step
    from residua.training import request

    device = torch.device("cpu")
    dataset = open_data(str(folder))
    recipe = request(str(folder), None, get_recipe("fast"), {"model.name": model, "batch_size": batch, "data.in_memory": False})
    recipe, _ = resolve(recipe, dataset)
    chosen = plan.PLANS["bf16-fused" if kernels.available() else "bf16"]
    plan.apply(chosen, torch.get_num_threads(), device)
    samples = dataset.splits["train"]
    stats, order = normalization(samples, recipe, dataset.facts.channels), make_order(dataset, recipe)
    step = Step(fresh_network(recipe), recipe, chosen, stats, 10**6, device=device)
    workers = min(8, len(os.sched_getaffinity(0)))

    def streamed() -> Any:
        assert recipe.data.image_size
        return train_batches(samples, order, recipe.augment, recipe.data.image_size, 0, 10**6, Share(), workers)

    batches = streamed()
    ready = next(batches)
    for _ in range(3):
        step(next(batches))
    waits, steps, began = [], [], time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        images = next(batches)
        middle = time.perf_counter()
        step(images)
        waits.append(middle - start)
        steps.append(time.perf_counter() - start)
    whole = time.perf_counter() - began
    batches.close()
    still, began = [], time.perf_counter()
    while time.perf_counter() - began < seconds / 2:
        start = time.perf_counter()
        step(ready)
        still.append(time.perf_counter() - start)
    alone = streamed()
    for _ in range(4):
        next(alone)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds / 4:
        next(alone)
        count += batch
    rate = count / (time.perf_counter() - began)
    return {
        "step": statistics.median(steps), "waiting": sum(waits) / whole, "longest": max(waits), "ready": statistics.median(still),
        "alone": rate,
    }  # fmt: skip


def main() -> None:
    """Measures and prints each network's shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder of JPEG files")
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--count", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--turn", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turn:
        folder, model = options.turn
        print(json.dumps(turn(Path(folder), model, options.batch, options.seconds)), flush=True)
        os._exit(0)  # threads that prepare batches are of no more use
    rows, raw = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        folder, cache = Path(temporary, "images"), Path(temporary, "cache")
        folder.mkdir()
        repeated(options.images, options.count, folder)
        for model in options.models:
            command = [sys.executable, __file__, "--turn", str(folder), model, "--images", str(options.images)]
            command += ["--batch", str(options.batch), "--seconds", str(options.seconds)]
            environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
            outputs = [
                subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
                for _ in range(options.rounds)
            ]
            raw[model] = turns = [json.loads(output.splitlines()[-1]) for output in outputs]
            middle = {name: statistics.median(one[name] for one in turns) for name in turns[0]}
            rows.append(
                {"network": model, "a step, streamed, ms": 1e3 * middle["step"], "images ready, ms": 1e3 * middle["ready"],
                 "waiting, %": 100 * middle["waiting"], "greatest of the rounds": 100 * max(t["waiting"] for t in turns),
                 "images/s trained": options.batch / middle["step"], "images/s of the folder alone": middle["alone"]}
            )  # fmt: skip
            print(", ".join(f"{name} {value if isinstance(value, str) else f'{value:.3g}'}" for name, value in rows[-1].items()))
    form.write(options.json, form.result("waiting", rows, notes=[f"Batches of {options.batch}, 224 pixels."], raw=raw))


if __name__ == "__main__":
    main()
