"""The execution plan: precision, memory format, compilation, threads. Given a step to try, it measures. Layer 3.

A plan changes how a step is computed, never what: every candidate's losses are compared with those of the plain one (fp32,
eager, contiguous) on the same batches from the same weights, on a copy of the model. What was measured is remembered by
`residua.plan_memory`.
"""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from residua import convolving, kernels
from residua.errors import RequestError, nearest
from residua.network import Network
from residua.sparing import kept_bytes
from residua.unit import walk

__all__ = ["PLANS", "Length", "Plan", "Trial", "activation_bytes", "apply", "choose", "compiled", "measure"]

COMPILE_FORECAST = 600.0  # seconds of eager training below which compiling is not tried: it costs up to a minute itself
COMPILED_SHAPES = 256
"""How often torch may compile the same code: by default 8 times, and the ninth is an error. It counts each size of a micro-batch
and of its images (`augment.scales`), each stage that is compiled on its own, and all runs of the process."""
LOSS_TOLERANCE = 0.05  # relative; bf16 rounds to 3 significant digits, and the first losses of a network are its noisiest
SENSITIVE = 0.005  # relative; rounded weights move the loss of a network of some 20 layers by less
CHAOTIC = 2.0


@dataclass(frozen=True)
class Plan:
    """How a step is computed. `precision` "fp32" or "bf16" (autocast); `memory_format` "contiguous" or "channels_last";
    `compile` "none", "model" or "stages"; `fused`: normalisations with what follows them in own loops (`residua.kernels`), and
    with `winograd` convolutions in own loops, too (`residua.convolving`). With `fused` in bf16 Muon multiplies what is large
    in bf16 (`residua.orthogonal`)."""

    name: str
    precision: str = "fp32"
    memory_format: str = "contiguous"
    compile: str = "none"
    exact: bool = False
    fused: bool = False
    winograd: bool = False

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context in which the forward pass runs."""
        return torch.autocast(device.type, dtype=torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def placed(self, tensor: Tensor) -> Tensor:
        """A batch of images in the plan's memory format."""
        channels_last = self.memory_format == "channels_last"
        return tensor.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


PLANS = {
    plan.name: plan
    for plan in (
        Plan("fp32"),
        Plan("fp32-channels-last", memory_format="channels_last"),
        Plan("fp32-fused", memory_format="channels_last", fused=True),
        Plan("bf16", "bf16", "channels_last"),
        Plan("bf16-fused", "bf16", "channels_last", fused=True),
        Plan("bf16-winograd", "bf16", "channels_last", fused=True, winograd=True),
        Plan("fp32-compile", "fp32", "channels_last", "model"),
        Plan("bf16-compile", "bf16", "channels_last", "model"),
        Plan("bf16-compile-stages", "bf16", "channels_last", "stages"),
        Plan("exact", exact=True),
    )
}


@dataclass(frozen=True)
class Trial:
    """What trying a plan showed: median seconds a step, seconds before the first, the losses, and the outcome in words."""

    name: str
    seconds_per_step: float
    start_seconds: float
    losses: tuple[float, ...]
    outcome: str


def named(name: str) -> Plan:
    """The plan called `name`; raises `RequestError` with the valid names."""
    if name not in PLANS:
        close = nearest(name, PLANS)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise RequestError(f"There is no plan called {name!r}. {hint}Valid: auto, {', '.join(PLANS)}.")
    return PLANS[name]


def check(plan: Plan, device: torch.device, world: int = 1, network: Network | None = None) -> None:
    """Raises `RequestError` if updates (of `network`, where it is known) cannot be computed as the plan says: on this device and
    machine, and in a run of `world` processes that is to begin. Without its fused loops a run would go on with other rounding."""
    loops = loops_obstacle(plan, network) if plan.fused and device.type == "cpu" else None
    if why := loops or (_no_compiler(device) if plan.compile != "none" else None):
        raise RequestError(
            f"The plan {plan.name!r} cannot be used here: {why}. A run that began with it goes on where that is mended; "
            f"a new one can take --plan {plan.precision} or auto."
        )
    if plan.compile != "none" and world > 1:
        raise RequestError(
            f"The plan {plan.name!r} compiles the network, which is for runs of one process; this one has {world}. "
            f"Choose --plan {'bf16' if plan.precision == 'bf16' else 'fp32-channels-last'} or auto."
        )


def apply(plan: Plan, threads: int, device: torch.device, *, sparing: bool = False) -> int:
    """Sets what belongs to the whole process: threads, deterministic kernels, and an allocator that keeps its memory or, if
    `sparing`, gives it back. Returns what `set_allocator` does."""
    torch.set_num_threads(1 if plan.exact else threads)
    threshold = set_allocator(sparing)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
    return threshold


def set_allocator(sparing: bool) -> int:
    """Tells glibc to serve large buffers from its heap: by default each is mapped and unmapped anew, and a training step
    spends up to a third of its time in page faults. Where memory is what is short (`sparing`, for networks that recompute
    their activations) each large buffer is mapped and goes back at once, for the heap grows to several times what is in
    use when its blocks are freed in another order than they were taken.

    Returns the size in bytes up to which buffers come from the heap. It is 0 where nothing could be set, and nothing is then:
    elsewhere than on glibc, or where that refuses."""
    if not sys.platform.startswith("linux"):
        return 0
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return 0
    m_trim_threshold, m_mmap_threshold = -1, -3
    # Older versions of glibc refuse more than half of a heap's largest size, 32 MiB on 64 bits. To set the other threshold alone
    # would do harm: setting either one ends their growth, from 128 KiB on, with the buffers that are freed.
    for threshold in (2**18,) if sparing else (2**30, 2**25):
        if mallopt(m_mmap_threshold, threshold):
            mallopt(m_trim_threshold, 2**18 if sparing else 2**31 - 1)
            return threshold
    return 0


def release(device: torch.device) -> None:
    """Gives back to the system what the allocator keeps of memory that is free, such as that of trials."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


def spares(network: Network, plan: Plan | None = None) -> bool:
    """Whether memory comes before speed: the network recomputes its activations in all stages, and not, under `plan`, map by map
    in the fused loops, after which little is left between the blocks of the heap."""
    recomputes = network.recompute_every > 0 and network.recompute_stages is None
    return recomputes and not (plan is not None and plan.fused)


def compile_obstacle(network: Network, device: torch.device, world: int = 1) -> str | None:
    """Why compiling is not tried in a run of `world` processes, in a sentence; None if it can be."""
    if world > 1:
        return "compiling is skipped: it is for runs of one process"
    if len(list(walk(network))) > 120:
        return "compiling is skipped: the network has more than 120 units, and compiling would take many minutes"
    if why := _no_compiler(device):
        return f"compiling is skipped: {why}"
    return None


def _no_compiler(device: torch.device) -> str | None:
    """What torch lacks to compile a network for a device, in a sentence; None for nothing."""
    compilers = (os.environ.get("CXX"), "g++", "clang++", "c++")
    if device.type == "cpu" and not any(name and shutil.which(name) for name in compilers):
        return "there is no C++ compiler on this machine (installing g++ would allow it)"
    return None


def compiled(network: Network, plan: Plan) -> nn.Module | Callable[[Tensor], Tensor]:
    """The network's forward under the plan, sharing its weights; compiled without graph breaks, or it raises."""
    if plan.fused:
        twin = kernels.fused(network, own_convolutions=plan.winograd)
        if isinstance(twin, Network):
            kernels.spared(twin)
        return twin
    if plan.compile == "none":
        return network
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, COMPILED_SHAPES)
    if plan.compile == "stages":
        return _Staged(network)
    return torch.compile(network, fullgraph=True, dynamic=False)


class _Staged(nn.Module):
    """A network whose stages are compiled each on its own."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.parts = [
            torch.compile(part, fullgraph=True, dynamic=False) for part in (network.stem, *network.stages, network.head)
        ]

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


class MakeStep(Protocol):
    """Prepares a training by a plan: gives a function of the step's number that trains a copy and returns the loss.

    With `rounded` the copy begins with weights rounded to bf16.
    """

    def __call__(self, candidate: Plan, *, rounded: bool = False) -> Callable[[int], float]: ...


def measure(plan: Plan, make_step: MakeStep, steps: int, limit: float = math.inf) -> Trial:
    """Tries `plan`: the first step warms up, then the median of up to `steps` more, stopping early after `limit` seconds."""
    seconds: list[float] = []
    began = time.perf_counter()
    try:
        step = make_step(plan)
        losses = [step(0)]
        start = time.perf_counter() - began
        while len(seconds) < steps and (not seconds or sum(seconds) < limit):
            before = time.perf_counter()
            losses.append(step(len(seconds) + 1))
            seconds.append(time.perf_counter() - before)
    except Exception as error:  # a backend may refuse a plan in any way and at any step; the others still stand
        reason = str(error).strip().splitlines()
        return Trial(plan.name, math.inf, 0.0, (), f"failed: {type(error).__name__}: {reason[0] if reason else ''}"[:200])
    return Trial(plan.name, sorted(seconds)[len(seconds) // 2], start, tuple(losses), "measured")


def agrees(trial: Trial, reference: Trial, rounded: Trial | None = None) -> bool:
    """Whether the losses follow the reference's over the steps that both made.

    `rounded` is the reference begun with weights rounded to bf16. Where that alone moves its loss (a very deep network in its
    first updates), rounding decides what losses come: from there on a factor of `CHAOTIC` is let pass.
    """
    decided = False
    for place, (ours, theirs) in enumerate(zip(trial.losses, reference.losses)):
        if rounded is not None and place < len(rounded.losses):
            decided = decided or not abs(rounded.losses[place] - theirs) <= SENSITIVE * max(abs(theirs), 0.1)
        near = theirs / CHAOTIC <= ours <= theirs * CHAOTIC
        if not (near if decided else abs(ours - theirs) <= LOSS_TOLERANCE * max(abs(theirs), 0.1)):
            return False
    return bool(trial.losses and reference.losses)


@dataclass(frozen=True)
class Length:
    """How long a run is: a number of updates, or seconds in which to make as many as possible."""

    steps: int | None = None
    seconds: float | None = None

    def forecast(self, pace: float) -> float:
        """Seconds of the run at `pace` seconds a step."""
        return self.seconds if self.seconds is not None else pace * (self.steps or 1)

    def cost(self, trial: Trial) -> float:
        """What is to be least: the time of all steps and the start, or the time a step where the time is given."""
        if self.seconds is not None:
            return trial.seconds_per_step / max(1.0, self.seconds - trial.start_seconds)
        return self.forecast(trial.seconds_per_step) + trial.start_seconds


def choose(
    make_step: MakeStep,
    network: Network,
    device: torch.device,
    length: Length,
    *,
    steps: int = 4,
    limit: float = 1.5,
    known: Sequence[Trial] = (),
    world: int = 1,
) -> tuple[Plan, list[Trial], str]:
    """The fastest plan for a run of this length, all trials, and a note on what was left out.

    Each trial makes up to `steps` updates within `limit` seconds after a first one. fp32 and bf16 come first; then what could be
    faster still than the better of the two: channels-last order where bf16 is not, our own loops on a CPU, and compiling where
    the run is long and of one process (`world`). Trials in `known` are not repeated: their outcome stands, which came of losses
    in a run of their own. What is measured here is judged by losses in fp32 that are measured here too, for those of another run
    may differ by its seed, data or rate.
    """
    before = {trial.name: trial for trial in known}
    trials: dict[str, Trial] = {}
    measured_here = False

    def attempt(name: str, longer: int = 1) -> None:
        nonlocal measured_here
        if name in before:
            trials[name] = before[name]
            return
        if not measured_here:
            trials["fp32"], measured_here = measure(PLANS["fp32"], make_step, steps, limit), True
        if name != "fp32":
            trials[name] = judged(measure(PLANS[name], make_step, longer * steps, longer * limit), trials["fp32"], make_step)

    attempt("fp32")
    attempt("bf16")
    best = _best(trials, length)
    if best.name == "fp32":
        attempt("fp32-channels-last")
    precision, notes = PLANS[best.name].precision, []
    if device.type == "cpu":
        obstacle = kernels.obstacle()
        if obstacle is None and has_batch_norm(network):
            attempt(f"{precision}-fused")
        elif obstacle is not None:
            notes.append(f"the fused loops are left out: {obstacle}")
        if precision == "bf16" and has_own_convolutions(network) and loops_obstacle(PLANS["bf16-winograd"], network) is None:
            attempt("bf16-winograd")
    best = _best(trials, length)
    if math.isfinite(best.seconds_per_step) and length.forecast(best.seconds_per_step) > COMPILE_FORECAST:
        obstacle = compile_obstacle(network, device, world)
        if obstacle is None:
            attempt(f"{precision}-compile", longer=2)
            best = _best(trials, length)
        else:
            notes.append(obstacle)
    return PLANS[best.name], list(trials.values()), "; ".join(notes)


def has_batch_norm(network: nn.Module) -> bool:
    """Whether there is anything to fuse."""
    return any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def has_own_convolutions(network: nn.Module) -> bool:
    """Whether there are convolutions for loops of our own."""
    return any(convolving.loops_for(module) is not None for module in network.modules())


def loops_obstacle(plan: Plan, network: nn.Module | None = None) -> str | None:
    """Why the loops of our own that the plan asks for (for `network`, where it is known) cannot run here, in a sentence."""
    norms = plan.fused and (network is None or has_batch_norm(network))
    convolutions = plan.winograd and (network is None or has_own_convolutions(network))
    return (kernels.obstacle() if norms else None) or (convolving.obstacle() if convolutions else None)


def _best(trials: Mapping[str, Trial], length: Length) -> Trial:
    usable = [trial for trial in trials.values() if trial.outcome == "measured"]
    return min(usable, key=length.cost) if usable else trials["fp32"]


def judged(trial: Trial, reference: Trial, make_step: MakeStep) -> Trial:
    """The trial, rejected in its outcome if its losses differ from those of the reference, which the same run showed."""
    if trial.outcome != "measured" or agrees(trial, reference):
        return trial
    rounded = measure(PLANS[reference.name], partial(make_step, rounded=True), len(reference.losses) - 1)
    if agrees(trial, reference, rounded):
        return trial
    return Trial(**{**asdict(trial), "outcome": "rejected: its losses differ from those in fp32"})


def activation_bytes(network: Network, images: Tensor, plan: Plan) -> int:
    """Bytes that the backward pass keeps for each image more, measured on the given few images [N, C, H, W] and on twice as many
    (what it keeps whatever their number, such as weights in bf16, is left out); torch's generator is left as it was."""
    seen: dict[int, int] = {}
    # Weights in bf16 are kept or not by the loops that the number of images calls for.
    weights = {weight.shape for weight in network.parameters() if weight.ndim > 2}

    def keep(tensor: Tensor) -> None:
        if tensor.shape not in weights and not isinstance(tensor, nn.Parameter):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()

    devices = [images.device] if images.device.type == "cuda" else []
    forward = compiled(network, plan) if plan.fused else network
    found = []
    for times in (1, 2):
        seen.clear()
        with torch.random.fork_rng(devices=devices), kept_bytes(keep), plan.autocast(images.device):
            graph = forward(plan.placed(torch.cat([images] * times)))
        found.append(sum(seen.values()))
        del graph  # what was seen had to stay until it was counted: an address may be used again
    return (found[1] - found[0]) // len(images)
