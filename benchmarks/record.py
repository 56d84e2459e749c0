"""The recipe `speedrun` beside the published CIFAR-10 record airbench94_muon, in turn, on the same cores.

    python benchmarks/record.py --peer airbench94_muon.py --data-dir DIR [--epochs 1] [--seeds 0,1] [--ways ...] [--json FILE]

`--peer` is the file as published (github.com/KellerJordan/cifar10-airbench). It is read, moved to the processor (bfloat16 for
half precision, a clock for CUDA's events) and run as it is otherwise, but that the network is not compiled (the way "compiled
with our allocator" compiles it as published) and that its rehearsal, a whole training there, is of one batch: no compiling falls
into its time. In the ways "with our allocator" it has our setting of the allocator, too. Full length is both
training and the accuracy with its views of the test images; with `--epochs` both train a part of their run at full size, which
says how long an epoch takes and nothing about accuracy. Each turn is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import form

RUN = 'if __name__ == "__main__":'
PEER, ALLOCATED, OURS = USUAL = ("airbench94_muon", "airbench94_muon with our allocator", "ours")
COMPILED = "airbench94_muon compiled with our allocator"
WAYS = (*USUAL, COMPILED)


def moved(text: str, epochs: int | None) -> str:
    """The published program, up to its last part, on the processor."""
    text = text[: text.index(RUN)]
    changes = {
        'map_location=torch.device("cuda")': 'map_location="cpu"',
        ".half()": ".bfloat16()",
        "torch.backends.cudnn.benchmark = True": "",
        "with open(sys.argv[0]) as f:\n    code = f.read()": "",
    }
    for old, new in changes.items():
        if old not in text:
            raise SystemExit(f"This is not the program that is meant: {old!r} does not occur in it.")
        text = text.replace(old, new)
    if epochs is not None:
        text = text.replace("range(ceil(total_train_steps / len(train_loader)))", f"range({epochs})")
    return re.sub(r"^    return tta_val_acc$", "    return tta_val_acc, time_seconds", text, flags=re.MULTILINE)


class Clock:
    """What the program uses of `torch.cuda.Event`, for a processor."""

    def __init__(self, **_: Any) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: Clock) -> float:
        return 1e3 * (other.at - self.at)


def rehearse(space: dict[str, Any], model: Any) -> None:
    """Has everything compiled that the program compiles at its first use."""
    import torch
    from torch.nn import functional as F

    for weight in model.parameters():
        if weight.ndim == 4 and weight.requires_grad:
            space["zeropower_via_newtonschulz5"](torch.randn_like(weight).reshape(len(weight), -1))
    for training, images in ((True, 2000), (False, 2000)):
        model.train(training)
        with torch.set_grad_enabled(training):
            batch = torch.randn(images, 3, 32, 32, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
            for frozen in (True, False) if training else ():
                labels = torch.zeros(images, dtype=torch.int64)
                F.cross_entropy(model(batch, whiten_bias_grad=frozen), labels, reduction="sum").backward()
            if not training:
                model(batch)
    model.zero_grad(set_to_none=True)


def peer(arguments: argparse.Namespace, seed: int, way: str) -> dict[str, float]:
    import os

    import torch

    from residua.data import open_data

    if way != PEER:
        from residua import plan

        plan.set_allocator(sparing=False)
    torch.cuda.Event, torch.cuda.synchronize = Clock, lambda: None  # type: ignore[assignment,misc]
    splits = open_data("cifar10", data_dir=arguments.data_dir).splits
    space: dict[str, Any] = {"__name__": "peer"}
    source = moved(Path(arguments.peer).read_text(encoding="utf-8"), arguments.epochs)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("cifar10").mkdir()
        for split, name in (("train", "train.pt"), ("test", "test.pt")):
            images, labels = splits[split].images.permute(0, 2, 3, 1).contiguous(), splits[split].labels
            torch.save({"images": images, "labels": labels, "classes": list("0123456789")}, Path("cifar10") / name)
        exec(compile(source, arguments.peer, "exec"), space)
        torch.manual_seed(seed)
        model = space["CifarNet"]().to(memory_format=torch.channels_last)
        if way == COMPILED:
            model.compile(mode="max-autotune")
        rehearse(space, model)
        accuracy, seconds = space["main"](0, model)
    return {"seconds": seconds, "accuracy": 100 * accuracy}


def ours(arguments: argparse.Namespace, seed: int) -> dict[str, float]:
    import residua

    with tempfile.TemporaryDirectory() as folder:
        fields: dict[str, Any] = (
            {"seed": seed, "set": {"augment.scales": ()}, "epochs": arguments.epochs} if arguments.epochs else {"seed": seed}
        )
        began = time.perf_counter()
        run = residua.train("cifar10", recipe="speedrun", data_dir=arguments.data_dir, out=Path(folder) / "run", **fields)
        whole = time.perf_counter() - began
        lines = [line for line in run.metrics("train") if "seconds" in line]
        measured = residua.evaluate(run, protocol="six-view", data_dir=arguments.data_dir)
    seconds = lines[-1]["seconds"] if lines else whole
    return {"seconds": seconds + measured.seconds, "accuracy": 100 - measured.top1_error, "whole command": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", default="0", help="with commas between")
    parser.add_argument("--ways", default=",".join(USUAL), help=f"with commas between, of {', '.join(WAYS)}")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--turn", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turn:
        way, seed = arguments.turn[0], int(arguments.turn[1])
        print(json.dumps(ours(arguments, seed) if way == OURS else peer(arguments, seed, way)))
        return
    turns: dict[str, list[dict[str, float]]] = {way: [] for way in arguments.ways.split(",")}
    if unknown := turns.keys() - set(WAYS):
        parser.error(f"--ways: {', '.join(sorted(unknown))} is none of {', '.join(WAYS)}")
    for seed in arguments.seeds.split(","):
        for way, found in turns.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--turn", way, seed]
            out = subprocess.run(command, capture_output=True, text=True)
            if out.returncode:
                raise SystemExit(out.stderr)
            found.append(json.loads(out.stdout.splitlines()[-1]))
            print(way, seed, found[-1], flush=True)
    rows: list[dict[str, Any]] = []
    for way, found in turns.items():
        row: dict[str, Any] = {"way": way, "seconds": statistics.median(one["seconds"] for one in found)}
        row["accuracy, %"] = statistics.mean(one["accuracy"] for one in found) if arguments.epochs is None else None
        row["seeds"] = len(found)
        if way != OURS and OURS in turns:
            ratios = [theirs["seconds"] / own["seconds"] for own, theirs in zip(turns[OURS], found)]
            row |= form.spread(ratios, "times as long as ours")
        rows.append(row)
    print(json.dumps(form.rounded(rows), indent=1))
    form.write(arguments.json, form.result("record", rows, raw={"turns": turns}))


if __name__ == "__main__":
    main()
