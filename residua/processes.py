"""This process among others: its share of the work, its device, and the signals that end it. Layer 3."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist

from residua.batches import Share
from residua.errors import RequestError, RunError

__all__ = ["agreed", "joined", "signals_caught", "together"]

ECHO = 2.0


@contextmanager
def signals_caught(share: Share) -> Iterator[list[int]]:
    """Within the block the first SIGINT or SIGTERM is noted in the list; the second leaves at once. Of several processes each may
    get the same one twice, from the terminal and from what launched them: one that comes within `ECHO` seconds is none."""
    caught: list[int] = []
    since = 0.0

    def note(number: int, _: FrameType | None) -> None:
        nonlocal since
        if caught and (share.world == 1 or time.monotonic() - since > ECHO):
            os._exit(128 + number)
        if not caught:
            caught.append(number)
            since = time.monotonic()

    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    except ValueError:  # signals belong to the main thread; elsewhere (a notebook's worker) there is nothing to catch
        previous = {}
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def agreed(caught: list[int], share: Share) -> int:
    """The signal that any process has caught, the same for all of them; 0 for none."""
    number = caught[0] if caught else 0
    if share.world == 1:
        return number
    flag = torch.tensor(number, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return int(flag)


@contextmanager
def joined(device: str | None) -> Iterator[tuple[Share, torch.device]]:
    """This process's share of the work and its device; joins the others when started by torchrun."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    where = _chosen(device, int(os.environ.get("LOCAL_RANK", "0")))
    if world == 1:
        yield Share(), where
        return
    dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    try:
        yield Share(dist.get_rank(), dist.get_world_size()), where
    finally:
        dist.destroy_process_group()


def _chosen(name: str | None, local_rank: int) -> torch.device:
    if name is None:
        name = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("training runs on the CPU and on NVIDIA GPUs")
        if device.type == "cuda":
            if not torch.cuda.is_available():
                raise RuntimeError("no CUDA device is available")
            device = torch.device("cuda", local_rank if device.index is None else device.index)
            torch.cuda.set_device(device)
    except RuntimeError as error:
        raise RequestError(
            f"--device {name} cannot be used: {str(error).splitlines()[0]}. Valid: cpu, cuda, cuda:0, ..."
        ) from None
    return device


def together(share: Share) -> None:
    """Waits until all processes are here; raises `RunError` if one of them has ended."""
    if share.world > 1:
        try:
            dist.barrier()
        except RuntimeError as error:
            raise RunError("Another process of this run has ended; its own message says why.") from error
