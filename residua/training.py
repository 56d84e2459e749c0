"""The loop, in seams one can name: `Step` computes an update, `Recorder` writes down, `Checkpointer` saves. Layer 4.

The loop itself is `_run_steps`. Position is the step's number; everything random is a pure function of it (`residua.keyed`), so to
continue is to load a checkpoint and start the same iterators there.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from residua import checkpoints, keyed
from residua.batches import Batch, Share
from residua.checkpoints import Checkpoint
from residua.errors import RunError
from residua.runs import Run
from residua.step import NonFiniteLoss, Outcome, Step

__all__ = ["Checkpointer", "Interrupted", "Listener", "Silent", "run_steps", "signals_caught"]


class Interrupted(RunError):
    """Training stopped on a signal after a checkpoint was saved; `code` is the exit code, 130 or 143."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"Interrupted; a checkpoint is saved in {where}. The same command continues.")
        self.code = 128 + number
