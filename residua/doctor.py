"""What this machine can do for training, what will be slow and how to mend it; and how a data set is read. Layer 4."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch

from residua import machine
from residua.data import open_data
from residua.dataset import class_counts
from residua.prepare import colour
from residua.recipe import Recipe, replaced
from residua.resolve import normalization, resolve

__all__ = ["examine_data", "examine_machine"]


def examine_machine() -> dict[str, Any]:
    """Hardware, versions, measured matrix rates in GFLOP/s, and a list of `advice`, each a sentence with a remedy."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rates = {name: round(matrix_rate(dtype, device)) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    card = {
        "hardware": machine.hardware(device),
        "versions": machine.versions(),
        "threads": torch.get_num_threads(),
        "free_memory_gib": round(psutil.virtual_memory().available / 2**30, 1),
        "free_disk_gib": round(shutil.disk_usage(Path.cwd()).free / 2**30, 1),
        "gflops": rates,
        "compiler": next((name for name in ("g++", "clang++", "c++") if shutil.which(name)), None),
        "tensorboard": _installed("tensorboard"),
    }
    return {**card, "advice": _advice(card)}


def matrix_rate(dtype: torch.dtype, device: torch.device, size: int = 1024, seconds: float = 0.3) -> float:
    """GFLOP/s of a square matrix product, the best of as many tries as fit into `seconds`."""
    left, right = torch.randn(size, size, device=device).to(dtype), torch.randn(size, size, device=device).to(dtype)
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        torch.mm(left, right)
        wait()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def _advice(card: dict[str, Any]) -> list[str]:
    advice = []
    cores = len(os.sched_getaffinity(0))
    if card["threads"] < cores // 2:
        advice.append(f"torch uses {card['threads']} of {cores} cores: unset OMP_NUM_THREADS or raise it.")
    if card["hardware"]["device"] == "cpu" and card["gflops"]["bf16"] < card["gflops"]["fp32"]:
        advice.append(
            "This processor has no fast bf16, so training runs in fp32; a processor with AMX or a GPU is several times faster."
        )
    if card["compiler"] is None and card["hardware"]["device"] == "cpu":
        advice.append("There is no C++ compiler, so long trainings are not compiled; installing g++ makes them some 20 % faster.")
    if card["free_memory_gib"] < 2:
        advice.append("Less than 2 GiB of memory is free: a smaller batch (--batch-size) or --set micro_batch=N takes less.")
    if card["free_disk_gib"] < 1:
        advice.append("Less than 1 GiB of disk is free here: checkpoints may fail; use --out on another disk.")
    return advice


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def examine_data(source: str, data_dir: Path | None = None) -> dict[str, Any]:
    """How `source` was read: note, facts, classes, counts by split, and all findings."""
    dataset = open_data(source, data_dir=data_dir)
    recipe, _ = resolve(replaced(Recipe(), {"data.source": source}), dataset)
    stats = normalization(dataset.splits["train"], recipe, dataset.facts.channels)
    return {
        "source": dataset.source,
        "note": dataset.note,
        "classes": list(dataset.classes),
        "counts": {name: class_counts(samples, len(dataset.classes)) for name, samples in dataset.splits.items()},
        "facts": {**asdict(dataset.facts), "mean": colour(stats["mean"]), "std": colour(stats["std"])},
        "findings": asdict(dataset.findings),
    }
