"""Run directories as a training leaves them, with made-up but realistic numbers, for the tests of the report."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from residua import checkpoints, recipe, runs, scorecard
from residua.checkpoints import Checkpoint
from residua.runs import Run
from residua.scorecard import Evaluation, Member
from residua.scoring import Scores
from residua.sheets import write_sheet

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HOSTILE = (
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$\\frac{a", "קלב נובח", "日本語のとても長いクラス名",
    "🦊 fox", "x" * 300, "{{ 7 * 7 }}", "line\nbreak\x00\x1b[31m", "\u202eevil", "javascript:alert(1)", "</style></svg>&amp;",
)  # fmt: skip


def make_run(
    path: Path,
    classes: Sequence[str] = CLASSES,
    *,
    num_points: int = 120,
    findings: int = 3,
    samples: bool = True,
    evaluated: bool = True,
    images: Tensor | None = None,
    per_class: int = 100,
) -> Run:
    """A finished run of 24 epochs; `images`, uint8 [N, C, S, S], are shown as its samples. `num_points` 0: no metric lines."""
    changes: dict[str, Any] = {
        "data.source": "cifar10", "data.image_size": 32, "model.name": "cifar_resnet", "epochs": 24, "augment.crop": "pad",
        "model.options": {"depth": 8, "num_classes": len(classes), "in_channels": 3}, "augment.pad": 4,
        "augment.flip": True, "label_smoothing": 0.1,
    }  # fmt: skip
    steps_per_epoch = max(1, num_points // 24)
    normalization = {"mean": torch.full((3, 1, 1), 0.45), "std": torch.full((3, 1, 1), 0.25)}
    run = runs.create(
        path, recipe.replaced(recipe.Recipe(), changes), manifest(num_points or 24, steps_per_epoch),
        card(classes, findings, per_class), normalization,
    )  # fmt: skip
    checkpoints.write(run.checkpoints, Checkpoint(num_points or 24, {"model": {"weight": torch.zeros(1)}}, {}))
    if num_points:
        write_metrics(run, num_points, steps_per_epoch)
    if evaluated:
        for protocol in ("center", "ten-crop"):
            scorecard.save(evaluation(run, classes, per_class, protocol), path / "evaluations")
    if samples:
        shown = images if images is not None else torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8)
        write_sheet(path / "samples" / "augmented.png", shown[:40], [classes[i % len(classes)] for i in range(len(shown[:40]))],
                    seed=0, note="The first batch of the first epoch.")  # fmt: skip
        if evaluated:
            wrong = [scorecard.asdict(item) for item in evaluation(run, classes, per_class, "center").worst][:24]
            write_sheet(path / "samples" / "worst.png", shown[: len(wrong)], wrong)
    return run


def manifest(total_steps: int, steps_per_epoch: int) -> dict[str, Any]:
    """What is fixed before the first step."""
    trials = [
        ("fp32", 0.412, 2.3104, "measured"), ("fp32-channels-last", 0.331, 2.3104, "measured"),
        ("bf16", 0.187, 2.3119, "measured"), ("bf16-compile", None, None, "failed: RuntimeError: no compiler"),
    ]  # fmt: skip
    return {
        "format": runs.FORMAT, "residua": "0.1.0", "created": "2026-03-05T14:07:31+00:00", "git": "4b1d2f0a9c7e",
        "command": ["residua", "train", "cifar10", "--model", "resnet20", "--epochs", "24", "--set", "optim.lr=0.4"],
        "versions": {"python": "3.12.3", "torch": "2.15.0", "torchvision": "0.30.0", "numpy": "2.3.1"},
        "hardware": {"processor": "AMD EPYC 7B13", "cores": 2, "memory_gib": 7.8, "device": "cpu", "cpu_capability": "AVX2"},
        "data_fingerprint": "9f2c" * 16, "total_steps": total_steps, "steps_per_epoch": steps_per_epoch,
        "plan": {
            "name": "bf16", "precision": "bf16", "memory_format": "channels_last", "compile": "none",
            "exact": False, "factor": 2.203,
            "tried": [{"name": n, "seconds_per_step": s, "start_seconds": 0.5, "loss": x, "outcome": o} for n, s, x, o in trials],
            "note": "compiling is skipped: there is no C++ compiler on this machine (installing g++ would allow it)",
        },
        "threads": 2, "micro_batch": None, "processes": 1, "parameters": 272_474, "multiply_adds": 40_800_000,
        "forecast": {"seconds": 741.0, "memory_mib": 412},
    }  # fmt: skip


def card(classes: Sequence[str], findings: int, per_class: int) -> dict[str, Any]:
    """What data.json holds."""
    kinds = (("unreadable", "left out"), ("duplicate", "kept; the same bytes are in train and in test"), ("empty", "left out"))
    items = [{"kind": kinds[i % 3][0], "what": f"train/cat/{i:05d}.jpg", "done": kinds[i % 3][1]} for i in range(findings)]
    counts = {"train": [5 * per_class] * len(classes), "test": [per_class] * len(classes)}
    total = 6 * per_class * len(classes)
    return {
        "source": "cifar10", "note": "CIFAR-10 by its own files.", "classes": list(classes),
        "counts": counts, "facts": {"channels": 3, "size": [32, 32], "flip": True, "pad": 4},
        "findings": {"total": total, "headers": total, "decoded": total - 10, "items": items},
    }  # fmt: skip


def write_metrics(run: Run, num_points: int, steps_per_epoch: int) -> None:
    """Curves that fall, with noise; the learning rate rises and falls."""
    noise = torch.randn(num_points + 1, generator=torch.Generator().manual_seed(0)).tolist()
    lines = []
    for step in range(1, num_points + 1):
        done, seconds = step / num_points, 700 * step / num_points
        loss = (0.55 + 1.7 * math.exp(-4 * done)) * math.exp(0.06 * noise[step])
        values = {
            "loss": loss, "error": max(0.0, (4 + 80 * math.exp(-4 * done)) * (1 + 0.1 * noise[step])),
            "lr": 0.4 * min(done / 0.2, (1 - done) / 0.8), "images_per_second": 1650 + 25 * noise[step] if step > 1 else 300,
        }  # fmt: skip
        lines.append({"step": step, "epoch": step / steps_per_epoch, "split": "train", "values": values, "seconds": seconds})
        if step % max(1, num_points // 10) == 0:
            measured = {"loss": 0.28 + 1.6 * math.exp(-5 * done), "top1_error": 7.6 + 70 * math.exp(-6 * done), "top5_error": 0.4}
            lines.append({"step": step, "epoch": step / steps_per_epoch, "split": "test", "values": measured, "seconds": seconds})
    lines.append({"step": num_points // 2, "split": "unreadable", "values": {"name": "train/dog/7.jpg", "reason": "truncated"}})
    lines.append({"step": num_points, "split": "end", "values": {"training_seconds": 702.4, "peak_memory_mib": 655.1}})
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def evaluation(run: Run, classes: Sequence[str], per_class: int, protocol: str) -> Evaluation:
    """The result of a network that is right about nine times in ten and mistakes neighbours most."""
    count = len(classes)
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count).repeat_interleave(per_class)
    logits = 0.9 * torch.randn(len(labels), count, generator=generator)
    logits[torch.arange(len(labels)), labels] += 3.4
    logits[torch.arange(len(labels)), labels ^ 1 if count % 2 == 0 else labels] += 0.9
    scores = Scores((1.9 * logits).softmax(1), labels, torch.arange(len(labels)), (("test/cat/0099.jpg", "truncated"),))
    names = [f"test/{classes[label]}/{place:04d}.png" for place, label in enumerate(labels.tolist())]
    values = scorecard.summarize(scores, classes, names)
    member = Member(str(run.path), values["top1_error"], values["top5_error"], 32, None, "bf16")
    return Evaluation(
        runs=(str(run.path),), data="cifar10", split="test", protocol=protocol, scales=None, weights="final", members=(member,),
        device="cpu", seconds=2.5, images_per_second=4012.0, note="CIFAR-10 by its own files. As the test file has them.",
        **values,
    )  # fmt: skip
