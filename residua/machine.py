"""The machine and the software, as far as they bear on results and speed. Layer 1."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

__all__ = [
    "cache_folder", "command_line", "forget_peak_memory", "hardware", "peak_memory_mib", "processor", "revision", "versions",
]  # fmt: skip


def versions() -> dict[str, str]:
    names = ("torch", "torchvision", "numpy", "pillow", "safetensors")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def hardware(device: torch.device) -> dict[str, Any]:
    """What this machine is, as far as it bears on results and speed."""
    card = {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "device": device.type,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    if device.type == "cuda":
        card["gpu"] = torch.cuda.get_device_name(device)
    return card


def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def revision() -> str | None:
    """The git revision of the package's own source tree, marked if it is changed; None where it is installed without one."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(folder)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=5, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+changes" if changed.strip() else "")


def command_line() -> list[str]:
    """How this process was called, with the program's name instead of its path."""
    return ["residua" if Path(sys.argv[0]).name in ("residua", "__main__.py") else Path(sys.argv[0]).name, *sys.argv[1:]]


def peak_memory_mib(device: torch.device) -> float:
    """The most memory held so far: of the device's tensors on a GPU, of this process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_peak_memory(device: torch.device) -> None:
    """Has `peak_memory_mib` count from now on, where the system lets it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def cache_folder() -> Path:
    """Where things are remembered between runs: the folder `residua` under $XDG_CACHE_HOME, else under ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path("~/.cache").expanduser()) / "residua"
