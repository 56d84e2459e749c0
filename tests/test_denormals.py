"""Denormal numbers while a network trains: taken as zero by every thread, and by none after it."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from residua.denormals import denormals_are_zero
from residua.machine import torch_openmp

DENORMAL = 1e-40

PROGRAM = """
import torch
from residua.denormals import denormals_are_zero

def share_of_zeros():
    # by bits, for a comparison would take denormal numbers as zero, too
    return (torch.full((1 << 22,), 1e-40).mul(1.0).view(torch.int32) == 0).float().mean().item()

torch.set_num_threads(4)
before = share_of_zeros()  # makes the pool of threads
with denormals_are_zero():
    inside = share_of_zeros()
    torch.set_num_threads(6)
    more = share_of_zeros()
print(before, inside, more, share_of_zeros())
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors may lack the switch")
@pytest.mark.skipif(not torch_openmp(), reason="torch does not run on GNU's OpenMP here")
def test_every_thread_of_a_pool_that_was_there_takes_denormal_numbers_as_zero() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.split() == ["0.0", "1.0", "1.0", "0.0"]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors may lack the switch")
def test_a_switch_that_was_set_before_stays_set() -> None:
    torch.set_flush_denormal(True)
    try:
        with denormals_are_zero():
            pass
        assert torch.full((), DENORMAL).mul(1.0).view(torch.int32) == 0
    finally:
        torch.set_flush_denormal(False)


def test_the_switch_goes_back_when_the_work_fails() -> None:
    with pytest.raises(ValueError), denormals_are_zero():
        raise ValueError
    assert torch.full((), DENORMAL).mul(1.0).view(torch.int32) != 0


def test_training_takes_denormal_numbers_as_zero(tmp_path: Path) -> None:
    from residua import train
    from residua.record import Silent

    class Looking(Silent):
        def measured(self, split: str, values: Mapping[str, float]) -> None:
            seen.append(bool(torch.full((), DENORMAL).mul(1.0).view(torch.int32) == 0))

    seen: list[bool] = []
    train("digits", steps=2, out=tmp_path / "run", listener=Looking())
    assert seen
    assert all(seen)
