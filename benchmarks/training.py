"""Updates a second: ours beside the peers, in turn, in one run, for the networks that people train most.

    python benchmarks/training.py [--only NAME]... [--rounds 3] [--seconds 10] [--json FILE]

Every way makes whole updates from images in memory: forward, backward, optimiser. Ours is the step of `residua train` with the
recipe `fast` (uint8 images, augmentation, Muon, average of weights) under the plan that it chooses by itself, and once more with
the optimiser that the peers use here (SGD with Nesterov momentum). The peers are timm's and torchvision's networks, or the
network written the usual way where they have none, on a float batch that is ready: "default" is eager, fp32, contiguous; "best"
is bf16 autocast in channels-last order, eager or compiled, whichever is faster. Each turn is a process of its own, warmed up,
then timed for `--seconds`. The ceiling is the time of the multiply-adds (three times the forward pass's) at the rate that a
large matrix product reaches on this machine just then.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import form


class Case(NamedTuple):
    """Our network and the peer's, images an update and at once, pixels a side."""

    model: str
    batch: int
    side: int
    peer: str
    at_once: int


CASES = {
    "resnet20": Case("resnet20", 128, 32, "usual", 128),
    "resnet56": Case("resnet56", 128, 32, "usual", 128),
    "resnet18": Case("resnet18", 32, 224, "timm:resnet18", 32),
    "resnet50": Case("resnet50", 32, 224, "torchvision:resnet50", 32),
    "resnet18_batch128": Case("resnet18", 128, 224, "timm:resnet18", 32),  # the batch of `fast`
    "resnet50_batch128": Case("resnet50", 128, 224, "torchvision:resnet50", 32),
    "wrn_16_8": Case("wrn_16_8", 64, 32, "usual", 64),
    "preact_resnet164": Case("preact_resnet164", 64, 32, "usual", 64),
    "densenet_40_12": Case("densenet_40_12", 64, 32, "usual", 64),
}
WAYS = ("default", "best eager", "best compiled", "ours", "ours, SGD")


def peer(name: str) -> Any:
    """The peer's network."""
    library, _, model = CASES[name].peer.partition(":")
    if library == "timm":
        import timm

        return timm.create_model(model, num_classes=10)
    if library == "torchvision":
        import torchvision

        return torchvision.models.get_model(model, num_classes=10)
    from usual_networks import usual

    return usual(CASES[name].model)


def turn(name: str, way: str, seconds: float) -> dict[str, Any]:
    """One turn of one way; its images a second and the peak memory."""
    step, described = (ours if way.startswith("ours") else peers)(name, way)
    for _ in range(3):
        step()
    times, began = [], time.perf_counter()
    while time.perf_counter() - began < seconds or len(times) < 3:
        before = time.perf_counter()
        step()
        times.append(time.perf_counter() - before)
    import resource

    return {
        "images_per_second": CASES[name].batch / statistics.median(times),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "detail": described,
    }


def peers(name: str, way: str) -> tuple[Callable[[], None], str]:
    import torch
    from torch.nn import functional as F

    _, batch, side, peers_name, at_once = CASES[name]
    torch.manual_seed(0)
    best = way.startswith("best")
    network = peer(name)
    images, labels = torch.randn(batch, 3, side, side), torch.randint(0, 10, (batch,))
    if best:
        network = network.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    forward = torch.compile(network) if way == "best compiled" else network
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        for some, own in zip(images.split(at_once), labels.split(at_once)):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=best):
                logits = forward(some)
            (F.cross_entropy(logits.float(), own) * len(some) / batch).backward()
        optimizer.step()

    return step, peers_name


def ours(name: str, way: str) -> tuple[Callable[[], None], str]:
    import torch

    from residua import forecast, plan, resolve
    from residua.batches import Batch, Share
    from residua.dataset import ArraySamples, Dataset, Facts
    from residua.prepare import fresh_network
    from residua.recipe import Recipe, replaced
    from residua.recipes import get_recipe
    from residua.step import Step

    model, batch, side, _, at_once = CASES[name]
    device = torch.device("cpu")
    images = torch.randint(0, 256, (4 * batch, 3, side, side), dtype=torch.uint8)
    if side > 64:  # decoded photographs lie pixel by pixel (`residua.batches`)
        images = images.contiguous(memory_format=torch.channels_last)
    samples = ArraySamples(images, torch.arange(len(images)) % 10, [str(place) for place in range(len(images))])
    dataset = Dataset(
        source="random", note="", classes=tuple("0123456789"), splits={"train": samples, "test": samples},
        facts=Facts(channels=3, size=(side, side), flip=True, pad=side // 8),
    )  # fmt: skip
    changes: dict[str, Any] = {"data.source": "random", "model.name": model, "batch_size": batch, "epochs": 1000}
    if at_once < batch:
        changes["micro_batch"] = at_once
    if way == "ours, SGD":
        changes |= {"optim.name": "sgd", "optim.lr": 0.1, "optim.weight_decay": 5e-4, "average.decay": 0}
    recipe: Recipe = resolve.resolve(replaced(get_recipe("fast", model), changes), dataset)[0]
    stats = resolve.normalization(samples, recipe, 3)
    network = fresh_network(recipe)
    trial = forecast.trial_factory(network, recipe, dataset, stats, device, 0, Share())
    order = resolve.make_order(dataset, recipe)
    chosen, _, note = forecast.chosen_plan(recipe, network, trial, order, device, torch.get_num_threads(), num_classes=10)
    plan.apply(chosen, torch.get_num_threads(), device)
    step = Step(network, recipe, chosen, stats, 100_000, device=device)
    count = iter(range(10**9))

    def update() -> None:
        number = next(count)
        draws = torch.arange(batch) + batch * (number % 4)
        step(Batch(number, 0, images[draws], samples.labels[draws], draws, torch.ones(batch, dtype=torch.bool)))

    return update, chosen.name + (f" ({note})" if note else "")


def matrix_rate() -> dict[str, float]:
    import torch

    from residua.doctor import matrix_rate as rate

    return {
        name: rate(dtype, torch.device("cpu"), 2048, 2.0) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }


def multiply_adds(name: str) -> int:
    from residua.cost import multiply_adds as count
    from residua.models import create_model

    case = CASES[name]
    return count(create_model(case.model, num_classes=10), (3, case.side, case.side))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=CASES)
    parser.add_argument("--ways", default=",".join(w for w in WAYS), help="with commas between")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--turn", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turn:
        print(json.dumps(turn(*arguments.turn, arguments.seconds)))
        return
    ways = [way.strip() for way in arguments.ways.replace("ours, SGD", "ours; SGD").split(",")]
    ways = [way.replace(";", ",") for way in ways]
    cases: dict[str, Any] = {}
    for name in arguments.only or CASES:
        turns: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        rates = []
        for _ in range(arguments.rounds):
            rates.append(matrix_rate())
            for way in ways:
                command = [sys.executable, __file__, "--turn", name, way, "--seconds", str(arguments.seconds)]
                out = subprocess.run(command, capture_output=True, text=True)
                if out.returncode:
                    print(f"{name}, {way}: {out.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                    continue
                turns[way].append(json.loads(out.stdout.splitlines()[-1]))
        cases[name] = case = summary(name, turns, rates)
        print(table(name, case), flush=True)
        form.write(arguments.json, written(cases))


def summary(name: str, turns: dict[str, list[dict[str, Any]]], rates: list[dict[str, float]]) -> dict[str, Any]:
    speeds = {way: [one["images_per_second"] for one in found] for way, found in turns.items() if found}
    bests = [way for way in speeds if way.startswith("best")]
    best = max(bests, key=lambda way: statistics.median(speeds[way]), default=None)
    rate = statistics.median(one["bf16"] for one in rates)
    case: dict[str, Any] = {
        "ceiling": rate * 1e9 / (6 * multiply_adds(name)),
        "matrix_gflops": rates,
        "best": best,
        "ways": {},
        "ratios": {},
    }
    for way, found in speeds.items():
        peak = max(one["peak_mib"] for one in turns[way])
        case["ways"][way] = {"images_per_second": found, "peak_mib": peak, "detail": turns[way][0]["detail"]}
    for way in (way for way in speeds if way.startswith("ours")):
        for against in filter(None, ("default", best)):
            if against in speeds:
                pairs = [mine / theirs for mine, theirs in zip(speeds[way], speeds[against])]
                case["ratios"][f"{way} / {against}"] = {"median": statistics.median(pairs), "low": min(pairs), "high": max(pairs)}
    return case


def written(cases: dict[str, Any]) -> dict[str, Any]:
    """The result so far, in the form of all benchmarks."""
    rows, ceiling = [], {}
    for name, case in cases.items():
        ceiling[f"{name}, images/s"] = case["ceiling"]
        for way, found in case["ways"].items():
            speed = statistics.median(found["images_per_second"])
            row = {"network": name, "way": way, "images/s": speed, "share of the ceiling": speed / case["ceiling"]}
            for against in ("default", "best"):
                ratio = case["ratios"].get(f"{way} / {case['best'] if against == 'best' else against}", {})
                row |= {f"against {against}": ratio.get("median"), f"least, {against}": ratio.get("low"),
                        f"greatest, {against}": ratio.get("high")}  # fmt: skip
            rows.append({**row, "peak MiB": found["peak_mib"], "what": found["detail"]})
    note = 'The ratios of "best" are to the faster of the two best ways, each taken within a round.'
    return form.result("training", rows, ceiling=ceiling, notes=[note], raw={"cases": cases})


def table(name: str, case: dict[str, Any]) -> str:
    lines = [f"{name}: ceiling {case['ceiling']:.0f} images/s"]
    for way, found in case["ways"].items():
        speed = statistics.median(found["images_per_second"])
        lines.append(f"  {way:15s} {speed:8.1f} images/s  {found['peak_mib']:6.0f} MiB  {found['detail']}")
    for ratio, value in case["ratios"].items():
        lines.append(f"  {ratio}: {value['median']:.2f} ({value['low']:.2f} to {value['high']:.2f})")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
