"""Randomness as a pure function of keys: a counter-based integer hash, the same on CPU and GPU. Layer 0.

Every draw is `hash(key_1, ..., key_n)`: there is no state to save, so order, augmentation and mixing depend only on
(seed, epoch, sample) and never on the number of workers, the batch, or where a run was resumed.

The mixer is the finaliser of splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"),
applied once per key to `state + golden * (key + 1)`. All arithmetic is 64-bit integer arithmetic modulo 2^64, which torch
defines alike on every device. Keys are integers, strings (hashed by BLAKE2) or integer tensors that broadcast together.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["bits", "generator_seed", "integers", "normal", "permutation", "string_key", "uniform"]

Key = int | str | Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """`value` modulo 2^64 as a two's complement int64, the form in which torch stores it."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


@lru_cache(maxsize=1024)
def string_key(text: str) -> int:
    """A 63-bit integer for a string, the same on every machine and in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def _mix_int(state: int) -> int:
    state = ((state ^ (state >> 30)) * _MIX1) & _MASK
    state = ((state ^ (state >> 27)) * _MIX2) & _MASK
    return state ^ (state >> 31)


def _shift(state: Tensor, by: int) -> Tensor:
    """Logical right shift: torch's `>>` on int64 copies the sign bit, which is masked away here."""
    return (state >> by) & ((1 << (64 - by)) - 1)


def _mix_tensor(state: Tensor) -> Tensor:
    state = (state ^ _shift(state, 30)) * _signed(_MIX1)
    state = (state ^ _shift(state, 27)) * _signed(_MIX2)
    return state ^ _shift(state, 31)


def _absorb(keys: tuple[Key, ...]) -> int | Tensor:
    state: int | Tensor = 0
    for key in keys:
        if isinstance(key, str):
            key = string_key(key)
        if isinstance(key, Tensor):
            start = _signed(state) if isinstance(state, int) else state
            state = _mix_tensor(start + (key.to(torch.int64) + 1) * _signed(_GOLDEN))
        elif isinstance(state, Tensor):
            state = _mix_tensor(state + _signed(_GOLDEN * (key + 1)))
        else:
            state = _mix_int((state + _GOLDEN * (key + 1)) & _MASK)
    return state


def bits(*keys: Key) -> Tensor:
    """64 random bits per broadcast key as an int64 tensor (a scalar tensor when all keys are plain)."""
    state = _absorb(keys)
    return torch.tensor(_signed(state)) if isinstance(state, int) else state


def uniform(*keys: Key) -> Tensor:
    """Uniform float64 in [0, 1), 53 random bits each."""
    return _shift(bits(*keys), 11).double() * 2.0**-53


def integers(low: int, high: int | Tensor, *keys: Key) -> Tensor:
    """Uniform int64 in [low, high); `high` may be a tensor that broadcasts with the keys."""
    return low + (uniform(*keys) * (high - low)).long()


def normal(*keys: Key) -> Tensor:
    """Standard normal float64, by Box and Muller from two uniforms (the same on all devices to rounding)."""
    radius = torch.sqrt(-2.0 * torch.log1p(-uniform(*keys, "radius")))
    return radius * torch.cos(2.0 * torch.pi * uniform(*keys, "angle"))


def permutation(size: int, *keys: Key) -> Tensor:
    """A uniform permutation of 0..size-1: the order of `size` hashes (ties, of chance 2^-64 a pair, by index)."""
    return torch.argsort(bits(*keys, torch.arange(size)), stable=True)


def generator_seed(*keys: int | str) -> int:
    """A seed in [0, 2^63) for torch's own generators, for draws that library code makes (dropout)."""
    state = _absorb(keys)
    assert isinstance(state, int)
    return state >> 1
