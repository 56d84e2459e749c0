"""What a run leaves behind while it trains: `Recorder` writes metric lines, `Checkpointer` saves when it is time. Layer 4."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any, Protocol

import torch

from residua import checkpoints
from residua.checkpoints import Checkpoint
from residua.dataset import FileSamples, Samples
from residua.errors import RunError
from residua.filecheck import remember_pixels
from residua.images import printable
from residua.runs import Run, read_lines, write_atomically
from residua.step import Outcome, Step

__all__ = ["Checkpointer", "Listener", "Recorder", "Silent"]


class Listener(Protocol):
    """Whoever watches a training: the command line, a notebook, a test."""

    def note(self, text: str) -> None:
        """A sentence the user should know of."""

    def progress(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """Updates made so far, of `total`, and the means since the last call."""

    def measured(self, split: str, values: Mapping[str, float]) -> None:
        """A measurement of a split that is not trained on."""


class Silent:
    """A listener that says nothing."""

    def note(self, text: str) -> None:
        """Says nothing."""

    def progress(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """Says nothing."""

    def measured(self, split: str, values: Mapping[str, float]) -> None:
        """Says nothing."""


class Recorder:
    """Appends to metrics.jsonl, to TensorBoard where it is installed, and tells the listener.

    `first` is the step at which the run (re)starts: lines of later steps are cut off, as if they had never been. `seconds` is the
    training time up to there, and `pending` what a checkpoint holds of the updates since the last line before it.
    """

    def __init__(
        self, run: Run, first: int, seconds: float, listener: Listener, pending: Mapping[str, Any] | None = None
    ) -> None:
        self.path, self.listener = run.path / "metrics.jsonl", listener
        self.total, self.per_epoch = run.recorded("total_steps"), run.recorded("steps_per_epoch")
        self.every = max(1, self.total // 2_000)
        kept = [line for line in read_lines(self.path) if line["step"] <= first and (line["split"] != "end")]
        write_atomically(self.path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
        self.file = self.path.open("a", encoding="utf-8")
        self.unreadable = {line["values"]["name"] for line in kept if line["split"] == "unreadable"}
        self.board = _Board(run.path / "tensorboard", first) if importlib.util.find_spec("tensorboard") else None
        self.seconds, self.mark = seconds, time.perf_counter()
        self.since: float = pending["since"] if pending else seconds  # training time at the last line of this split
        self.waiting = [Outcome(*values) for values in pending["outcomes"]] if pending else []

    def pending(self) -> dict[str, Any]:
        """The updates that no line tells of yet, and the training time at the last line: what a checkpoint must hold, since a
        line's means are over all updates since the one before."""
        return {"since": self.since, "outcomes": [list(astuple(outcome)) for outcome in self.waiting]}

    def trained(self, step: int, outcome: Outcome) -> None:
        """Notes one update; a line is written every `every` updates, with the means since the last."""
        self.pause()
        self.proceed()
        self.waiting.append(outcome)
        if step % self.every and step != self.total:
            return
        count = sum(item.count for item in self.waiting)
        values = {
            "loss": sum(item.loss * item.count for item in self.waiting) / max(1, count),
            "error": sum(item.error * item.count for item in self.waiting) / max(1, count),
            "lr": outcome.lr,
            "images_per_second": count / max(1e-9, self.seconds - self.since),
        }
        self.since, self.waiting = self.seconds, []
        self.line(step, "train", values)
        self.listener.progress(step, self.total, values)

    def measured(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Notes a measurement of a split."""
        self.line(step, split, values)
        self.listener.measured(split, values)

    def unread(self, step: int, files: tuple[tuple[str, str], ...], samples: Samples) -> None:
        """Notes files that could not be decoded, each once, and remembers them for the next check of this data."""
        for name, reason in files:
            if printable(name) in self.unreadable:
                continue
            self.unreadable.add(printable(name))
            self.line(step, "unreadable", {"name": printable(name), "reason": reason})
            self.listener.note(reason)
            if isinstance(samples, FileSamples):
                remember_pixels({samples.root / name: reason})

    def line(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Writes one JSON line."""
        entry = {"step": step, "epoch": step / self.per_epoch, "split": split, "values": dict(values), "seconds": self.seconds}
        try:
            self.file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            self.file.flush()
            if self.board is not None and split not in ("unreadable", "end"):
                self.board.add(step, split, values)
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be written: {error.strerror}. The last good checkpoint stays as it is."
            ) from error

    def pause(self) -> None:
        """Ends the stretch of training time before something that is not training."""
        self.seconds += time.perf_counter() - self.mark

    def proceed(self) -> None:
        """Begins a new stretch of training time."""
        self.mark = time.perf_counter()

    def flush(self) -> None:
        """Makes the lines durable; a checkpoint follows."""
        self.file.flush()
        os.fsync(self.file.fileno())
        if self.board is not None:
            self.board.file.flush()

    def close(self) -> None:
        """Closes the files, whose lines are written already."""
        for file in (self.file, self.board.file if self.board is not None else None):
            if file is not None:
                with suppress(OSError):
                    file.close()


class _Board:
    """An event file for TensorBoard under `folder`, which drops what came after step `first`. Written here, record by record:
    torch's writer does it in a thread, whose failures cannot be caught, and takes seconds to import."""

    def __init__(self, folder: Path, first: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.event, self.summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(exist_ok=True)
        self.file = (folder / f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}").open("ab")
        self.writer = RecordWriter(self.file)
        self._write(file_version="brain.Event:2")
        self._write(step=first + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def add(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Notes the values, each as a curve of its own."""
        entries = [self.summary.Value(tag=f"{split}/{name}", simple_value=value) for name, value in values.items()]
        self._write(step=step, summary=self.summary(value=entries))

    def _write(self, **fields: Any) -> None:
        self.writer.write(self.event(wall_time=time.time(), **fields).SerializeToString())


class Checkpointer:
    """Saves after a run's first update, so that a target that cannot be written shows at once; then at the end of an epoch and
    every `seconds`, whichever comes first, but epochs shorter than a sixth of `seconds` do not save each on their own."""

    def __init__(self, run: Run, step: Step, recorder: Recorder) -> None:
        self.run, self.step, self.recorder = run, step, recorder
        self.seconds, self.keep = run.recipe.checkpoints.seconds, run.recipe.checkpoints.keep
        self.saved = time.monotonic() if checkpoints.available(run.checkpoints) else -math.inf
        self.saved_step = -1

    def due(self, step: int) -> bool:
        """Whether to save after `step` updates."""
        waited = time.monotonic() - self.saved
        at_end = step % self.recorder.per_epoch == 0 and waited >= self.seconds / 6
        return at_end or waited >= self.seconds or step == self.recorder.total

    def save(self, step: int) -> None:
        """Saves the state after `step` updates; raises `RunError` if it cannot."""
        if step == self.saved_step:
            return
        self.recorder.flush()
        extra = {
            "seconds": self.recorder.seconds, "threads": torch.get_num_threads(), "pending": self.recorder.pending(),
        }  # fmt: skip
        checkpoints.write(self.run.checkpoints, Checkpoint(step, self.step.tensors(), extra), self.keep)
        self.saved, self.saved_step = time.monotonic(), step
