"""Denormal numbers counted as zero while a network trains, in every thread that computes. Layer 1.

The gradients of deep networks without shortcuts fall below 1e-38, where a processor works a hundred times more slowly and where
nothing of them counts any more. Processors can take such numbers as zero, but the switch belongs to one thread: a pool of
threads that was there before keeps its own, and half of a tensor would be computed by one rule and half by the other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from residua.machine import torch_openmp

__all__ = ["denormals_are_zero"]

SMALL = 1e-40  # a denormal number in float32 and bfloat16


@contextmanager
def denormals_are_zero() -> Iterator[None]:
    """Within it the calling thread, and the pool of threads that torch computes with for it, take denormal numbers as zero.

    Where the processor has no such switch, or the pool is not one of GNU's OpenMP, what cannot be switched stays as it is.
    """
    if _zeroed():
        yield
        return
    _switch(True)
    try:
        yield
    finally:
        _switch(False)


def _zeroed() -> bool:
    """Whether the calling thread takes denormal numbers as zero."""
    return float(torch.full((), SMALL).mul(1.0).view(torch.int32)) == 0


def _switch(on: bool) -> None:
    torch.set_flush_denormal(on)  # threads that are made from now on inherit it
    library = _pool()
    if library is not None:
        each = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: torch.set_flush_denormal(on) and None)
        library.GOMP_parallel(each, None, torch.get_num_threads(), 0)


@cache
def _pool() -> ctypes.CDLL | None:
    """The OpenMP library that torch computes with, if it is GNU's."""
    path = torch_openmp()
    return ctypes.CDLL(path) if path else None
