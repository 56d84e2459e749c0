"""Checkpoints: written aside, flushed, read back, renamed, and only then are older ones removed. Layer 2.

    step-00001234/   model.safetensors   optimizer.safetensors   [average.safetensors]   state.json

`state.json` holds the step, the SHA-256 of each tensor file and of itself. No pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from residua.errors import RunError

__all__ = ["Checkpoint", "available", "latest", "read", "remove_partial", "write"]

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: `step` updates made so far, named tensors by file, and `extra` plain values."""

    step: int
    tensors: Mapping[str, dict[str, Tensor]]
    extra: Mapping[str, Any]


def write(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Saves `checkpoint` under `folder` (which must exist) and then removes all but it and the newest `keep` - 1 before it.

    Later ones go too: a run that saves this step has gone back before them, since they could not be used.
    Raises `RunError` when the target is full, read-only or gone; what was there before is then untouched.
    """
    target = folder / f"step-{checkpoint.step:08d}"
    partial = folder / f".partial-{checkpoint.step:08d}"
    try:
        _clear(partial)
        partial.mkdir()
        hashes = {}
        for name, tensors in checkpoint.tensors.items():
            contents = save_tensors({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
            hashes[name] = hashlib.sha256(contents).hexdigest()
            _write_flushed(partial / f"{name}.safetensors", contents)
        state = {"format": FORMAT, "step": checkpoint.step, "sha256": hashes, "extra": dict(checkpoint.extra)}
        _write_flushed(partial / "state.json", _with_digest(state))
        _flush_folder(partial)
        read(partial)
        _clear(target)
        partial.rename(target)
        _flush_folder(folder)
    except (OSError, RunError) as error:
        _clear(partial)
        raise RunError(_why_not_saved(folder, checkpoint.step, error)) from error
    kept = available(folder, checkpoint.step)[:keep]
    for path in available(folder):
        if path not in kept:
            _clear(path)
    return target


def read(path: Path) -> Checkpoint:
    """The checkpoint in folder `path`; raises `RunError` naming the file that is missing, damaged or of another format."""
    try:
        contents = (path / "state.json").read_bytes()
        state = json.loads(contents)
        del state["self"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"The checkpoint {path} is damaged: state.json cannot be read ({error}).") from error
    if contents != _with_digest(state):
        raise RunError(f"The checkpoint {path} is damaged: state.json does not match its own checksum.")
    if state["format"] != FORMAT:
        raise RunError(f"The checkpoint {path} has format {state['format']}; this version reads format {FORMAT}.")
    tensors = {}
    for name, expected in state["sha256"].items():
        file = path / f"{name}.safetensors"
        try:
            contents = file.read_bytes()
        except OSError as error:
            raise RunError(f"The checkpoint {path} is damaged: {file.name} cannot be read ({error.strerror}).") from error
        if hashlib.sha256(contents).hexdigest() != expected:
            raise RunError(f"The checkpoint {path} is damaged: {file.name} does not match its checksum.")
        tensors[name] = load_tensors(contents)
    return Checkpoint(state["step"], tensors, state["extra"])


def available(folder: Path, until: int | None = None) -> list[Path]:
    """The checkpoints under `folder`, the newest first, unread; with `until` those of at most that many updates."""
    found = sorted(folder.glob("step-" + 8 * "[0-9]"), reverse=True)
    return found if until is None else [path for path in found if path.name <= f"step-{until:08d}"]


def latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole (None if there is none at all), and what is wrong with each newer one.

    Raises `RunError` if there are checkpoints and every one of them is damaged.
    """
    damaged: list[str] = []
    for path in available(folder):
        try:
            return read(path), damaged
        except RunError as error:
            damaged.append(str(error))
    if damaged:
        raise RunError("No checkpoint can be used. " + " ".join(damaged) + f" Move {folder} away to start anew.")
    return None, damaged


def remove_partial(folder: Path) -> None:
    """Removes what an interrupted save left behind."""
    for path in folder.glob(".partial-*"):
        _clear(path)


def _with_digest(state: Mapping[str, Any]) -> bytes:
    """The bytes of state.json, in the one form that is written: with the SHA-256 of the rest under "self"."""
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    return json.dumps({**state, "self": digest}, indent=1).encode()


def _write_flushed(path: Path, contents: bytes) -> None:
    with path.open("wb") as file:
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """A rename is durable only once the folder itself is flushed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _clear(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _why_not_saved(folder: Path, step: int, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if not folder.is_dir():
        return f"The checkpoint could not be saved: {folder} no longer exists."
    free = shutil.disk_usage(folder).free / 2**20
    last = available(folder, step)
    kept = f"The last good checkpoint is {last[0]}." if last else "There is no earlier checkpoint."
    saved = f"The checkpoint could not be saved in {folder}: {reason} ({free:.0f} MiB free)."
    return f"{saved} {kept} Mend that, then run the same command."
