"""Loops of our own in C, made into a library by the machine's compiler: found, compiled once, loaded. Layer 1.

Compiling takes a second or two, for one source seven, and is done once for each source, compiler and processor; the library stays
in the user's cache. `Source.obstacle` says why there can be none on a machine. What several sources share is in files
of the suffix ".h".
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from residua.machine import cache_folder

__all__ = ["FLAG", "NUMBER", "POINTER", "REAL", "Source", "compiler", "forget", "laid_out", "noted", "processor"]

POINTER, NUMBER, REAL, FLAG = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
"""The types of the loops' arguments: const float *, long, float, int."""

_FLAGS = ("-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno", "-ffp-contract=fast", "-fopenmp")


class Source:
    """The loops of a C file beside this one, compiled and loaded when they are first asked for, and then held.

    `functions` has the types of the arguments of each; they return 0, or anything else where there was no memory, but for those
    in `nothing`, which return nothing. `macros` are the compiler's, and `bf16` says that the loops multiply bfloat16.
    """

    def __init__(
        self, file: str, functions: Mapping[str, Sequence[Any]], *, nothing: Collection[str] = (), bf16: bool = False,
        macros: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.file, self.functions, self.nothing, self.bf16, self.macros = file, functions, nothing, bf16, macros
        self.loaded: ctypes.CDLL | None = None
        self.why: str | None = None
        _SOURCES.append(self)

    def obstacle(self) -> str | None:
        """Why the loops cannot run here, in a sentence; None if they can. The first call compiles and loads them."""
        if self.loaded is None and self.why is None:
            self.why = self._missing() or self._load()
        return self.why

    @property
    def library(self) -> ctypes.CDLL:
        """The loops. A call that found no memory raises `MemoryError`."""
        why = self.obstacle()
        if self.loaded is None:
            raise RuntimeError(f"the loops of {self.file} cannot run: {why}")
        note = getattr(_noting, "note", None)
        return self.loaded if note is None else cast(ctypes.CDLL, _Noted(self.loaded, note))

    def _missing(self) -> str | None:
        if self.bf16 and "avx512_bf16" not in processor():
            return "this processor has no products of bf16 (AVX-512 BF16)"
        if not sys.platform.startswith("linux"):
            return "the loops of our own are for Linux"
        if _compiler() is None:
            return "there is no C compiler on this machine (installing gcc would make training faster)"
        return None

    def _load(self) -> str | None:
        try:
            library = ctypes.CDLL(str(_built(self.file, self.macros)))
        except (OSError, subprocess.SubprocessError) as error:
            said = (getattr(error, "stderr", "") or str(error)).strip()
            reason = said.splitlines()[0] if said else type(error).__name__
            return f"the C compiler could not make the loops of {self.file}: {reason}"
        for name, types in self.functions.items():
            function = library[name]
            setattr(library, name, function)
            function.argtypes = types
            if name in self.nothing:
                function.restype = None
            else:
                function.errcheck = self._checked
        self.loaded = library
        return None

    def _checked(self, failed: Any, *_: Any) -> Any:
        if failed:
            raise MemoryError(f"no memory for the loops of {self.file}")


class _Noted:
    """A library whose calls are noted."""

    def __init__(self, library: ctypes.CDLL, note: Callable[[Callable[..., Any], Sequence[Any]], None]) -> None:
        self.library, self.note = library, note

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self.library, name)

        def call(*given: Any) -> Any:
            self.note(function, given)
            return function(*given)

        return call


@contextmanager
def noted(note: Callable[[Callable[..., Any], Sequence[Any]], None]) -> Iterator[None]:
    """Within the block `note` is given each call of loops in this thread, with its arguments, before it is made."""
    _noting.note = note
    try:
        yield
    finally:
        _noting.note = None


_SOURCES: list[Source] = []
_noting = threading.local()


def compiler() -> str:
    """The compiler that makes the loops on this machine, as it names itself; their bytes may depend on it."""
    found = _compiler()
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout if found else ""
    return said.partition("\n")[0]


def _compiler() -> str | None:
    return next((found for name in (os.environ.get("CC"), "gcc", "cc", "clang") if name and (found := shutil.which(name))), None)


def _built(source: str, macros: tuple[str, ...]) -> Path:
    """The library of `source`, compiled for this processor, this compiler and this text, or found in the cache.

    Raises `OSError` or `subprocess.SubprocessError` where that fails.
    """
    compiler = _compiler()
    assert compiler is not None, "that there is one was asked before"
    path = Path(__file__).with_name(source)
    command = [compiler, *_FLAGS, *macros, "-shared", "-fPIC"]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    openmp = _openmp()
    texts = [path.read_text(), *(shared.read_text() for shared in sorted(path.parent.glob("*.h")))]
    key = hashlib.sha256("\0".join([*texts, *command, version, openmp, processor()]).encode()).hexdigest()[:20]
    built = cache_folder() / f"{path.stem}-{key}.so"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=built.parent) as folder:  # aside, then renamed: others may make the same one
            aside = Path(folder, built.name)
            whole = [*command, str(path), "-o", str(aside), *([openmp] if openmp else []), "-lm"]
            subprocess.run(whole, capture_output=True, text=True, check=True, timeout=120)
            aside.replace(built)
    return built


def forget() -> None:
    """Has all sources ask anew for the processor, the compiler and their libraries; for tests."""
    for source in _SOURCES:
        source.loaded = source.why = None


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
