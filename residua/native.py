"""Loops of our own in C, made into a library by the machine's compiler: found, compiled once, loaded. Layer 1.

Compiling takes a second or two and is done once for each source, compiler and processor; the library stays in the user's cache.
`obstacle` says why there can be none on a machine. What several sources share is in loops.h.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from residua.machine import cache_folder

__all__ = ["compiler", "forget", "laid_out", "library", "no_bf16", "obstacle", "processor"]

_FLAGS = ("-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno", "-ffp-contract=fast", "-fopenmp")


@cache
def obstacle(source: str, macros: tuple[str, ...]) -> str | None:
    """Why the loops of `source`, a file beside this one, cannot run here, in a sentence; None if they can. The first call
    compiles them, with `macros`."""
    if not sys.platform.startswith("linux"):
        return "the loops of our own are for Linux"
    if _compiler() is None:
        return "there is no C compiler on this machine (installing gcc would make training faster)"
    try:
        library(source, macros)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip()
        return f"the C compiler could not make the loops of {source}: {said.splitlines()[0] if said else type(error).__name__}"
    return None


def no_bf16() -> str | None:
    """That the processor has no instructions for products of bf16, in a sentence; None if it has them."""
    return None if "avx512_bf16" in processor() else "this processor has no products of bf16 (AVX-512 BF16)"


def compiler() -> str:
    """The compiler that makes the loops on this machine, as it names itself; their bytes may depend on it."""
    found = _compiler()
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout if found else ""
    return said.partition("\n")[0]


def _compiler() -> str | None:
    return next((found for name in (os.environ.get("CC"), "gcc", "cc", "clang") if name and (found := shutil.which(name))), None)


@cache
def library(source: str, macros: tuple[str, ...]) -> ctypes.CDLL:
    """The loops of `source`, compiled for this processor, this compiler and this text, or taken from the cache.

    Raises `OSError` or `subprocess.SubprocessError` where that fails; `obstacle` is to be asked before.
    """
    compiler = _compiler()
    assert compiler is not None, "obstacle() is asked before the loops are"
    path = Path(__file__).with_name(source)
    command = [compiler, *_FLAGS, *macros, "-shared", "-fPIC"]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    openmp = _openmp()
    texts = [path.read_text(), path.with_name("loops.h").read_text()]
    key = hashlib.sha256("\0".join([*texts, *command, version, openmp, processor()]).encode()).hexdigest()[:20]
    built = cache_folder() / f"{path.stem}-{key}.so"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=built.parent) as folder:  # aside, then renamed: others may make the same one
            aside = Path(folder, built.name)
            whole = [*command, str(path), "-o", str(aside), *([openmp] if openmp else []), "-lm"]
            subprocess.run(whole, capture_output=True, text=True, check=True, timeout=120)
            aside.replace(built)
    return ctypes.CDLL(str(built))


def forget() -> None:
    """Asks anew for the compiler and its libraries; for tests."""
    obstacle.cache_clear()
    library.cache_clear()


def laid_out(x: Tensor) -> bool:
    """Whether x is a map as the loops read it, [N, C, H, W] in channels-last order and bfloat16 or float32 on the CPU, and no
    transform of torch is at work that has to see what they do."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.bfloat16, torch.float32)
        and x.dim() == 4
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and not (torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack())
    )


def processor() -> str:
    """The lines of the system that name the processor and what it can do."""
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _openmp() -> str:
    """The path of the OpenMP library that torch runs on; the loops share its threads, for two pools would hinder each other.

    Other packages bring one of their own (scikit-learn does), so torch's folder comes first, then what lies in no package's.
    """
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libgomp" in line}
    own, home = Path(torch.__file__).parent, Path(torch.__file__).parent.parent
    return min(mapped, key=lambda path: (own not in Path(path).parents, home in Path(path).parents, path), default="")
