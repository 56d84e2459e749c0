"""The speed comparison of wrn figure 4: forward and backward passes of thin and wide networks, timed on this machine. Layer 4."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping

import torch
from torch import nn

from residua.claims import Evidence, Measured, Outcome, Probe
from residua.models import create_model

__all__ = ["ON_CPU", "TIMES", "faster"]

BATCH = 32  # that of the figure; its memory would not fit everywhere, so that fewer images are timed and the time is scaled
THIN = "preact_resnet1001"
NETWORKS = ("preact_resnet164", THIN, "wrn_40_4", "wrn_16_10", "wrn_28_10")
IMAGES = {"smoke": 2, "small": 8, "full": 8}
ON_CPU = (
    "The paper times a batch of 32 on a GPU (Titan X, cuDNN 5). Here a batch of 8 is timed on the CPU and its time scaled to 32 "
    "images, at budget full too."
)


def _milliseconds(_seed: int, budget: str) -> Mapping[str, float]:
    """Milliseconds of a forward and a backward pass of 32 images, by network: the least of two after one to warm up (of one at
    smoke)."""
    count, found = IMAGES[budget], {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name in NETWORKS:
            model = create_model(name).to(memory_format=torch.channels_last).train()
            images = torch.randn(count, 3, 32, 32).to(memory_format=torch.channels_last)
            seconds = [_step(model, images) for _ in range(1 if budget == "smoke" else 3)]
            found[f"{name}_ms"] = 1e3 * min(seconds[1:] or seconds) * BATCH / count
            del model
            gc.collect()
    return found


def _step(model: nn.Module, images: torch.Tensor) -> float:
    labels = torch.arange(len(images)) % 10
    start = time.perf_counter()
    nn.functional.cross_entropy(model(images), labels).backward()
    return time.perf_counter() - start


TIMES = Probe(
    "wrn-times", _milliseconds, "Forward and backward pass of the networks of figure 4, at their full size, on the CPU.", seeds=3,
    timed=True,
)  # fmt: skip


def faster(name: str, printed: float, least: float) -> Measured:
    """`name` takes less time an update than pre-activation ResNet-1001: by a factor of at least `least` in every repetition."""

    def decide(evidence: Evidence) -> Outcome:
        wide, thin = evidence.values("wrn-times", f"{name}_ms"), evidence.values("wrn-times", f"{THIN}_ms")
        if not wide or not thin:
            return Outcome("not attempted", "The networks have not been timed yet.")
        ratios = [b / a for a, b in zip(wide, thin)]
        listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        said = f"ResNet-1001 takes {listed} times as long as {name} (the paper: {printed:g})."
        if min(ratios) >= least:
            return Outcome("shown", said, {"ratios": ratios})
        return Outcome("refuted" if max(ratios) < least else "under-powered", said, {"ratios": ratios})

    return Measured(
        f"Forward and backward pass of the same images: pre-activation ResNet-1001 takes at least {least:g} times as "
        f"long as "
        f"{name} in each of the repetitions on this machine; refuted if in none. The paper's {printed:g} is that of one GPU "
        f"of its day; {least:g} counts, since the amount of arithmetic alone would not give it.",
        decide,
    )
