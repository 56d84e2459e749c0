"""Opens the data sets that torchvision knows how to download, and says clearly why one cannot be had. Not a catalogue file."""

from __future__ import annotations

import pickle
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from residua.dataset import ArraySamples, Dataset, Facts, Findings
from residua.errors import RequestError

__all__ = ["Origin", "arrays", "dataset", "load_splits", "tensor"]

_ARCHIVES = (".tar.gz", ".gz")
_DAMAGED = (RuntimeError, ValueError, AssertionError, EOFError, KeyError, OSError, struct.error, pickle.UnpicklingError)


class Origin(NamedTuple):
    """Where a set comes from: its `name`, the `layout` it has below the data folder, and the `page` that offers it."""

    name: str
    layout: str
    page: str


def load_splits(
    origin: Origin, data_dir: Path, download: bool, opener: Callable[[Path, str, bool], Any], splits: Sequence[str]
) -> dict[str, Any]:
    """What `opener(root, split, download)` gives for each split: from `data_dir` if it is there, downloaded to it if not.

    A download goes to a folder beside its place and is moved there only when torchvision has verified all of it.
    Raises `RequestError` saying where was looked, what was expected there, and how to get it.
    """
    try:
        return {split: opener(data_dir, split, False) for split in splits}
    except _DAMAGED as error:
        if not download:
            raise _not_there(origin, data_dir, str(error)) from error
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{origin.name}-", dir=data_dir) as aside:
            with redirect_stdout(sys.stderr):  # the standard output belongs to results
                for split in splits:
                    opener(Path(aside), split, True)
            _move(Path(aside), data_dir)
        return {split: opener(data_dir, split, False) for split in splits}
    except _DAMAGED as error:
        raise _not_there(origin, data_dir, f"the download failed: {error}") from error


def _move(aside: Path, data_dir: Path) -> None:
    """Moves all files but the archives they came from, in place of damaged ones of the same name."""
    for path in sorted(aside.rglob("*")):
        if path.is_file() and not path.name.endswith(_ARCHIVES):
            target = data_dir / path.relative_to(aside)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)


def _not_there(origin: Origin, data_dir: Path, reason: str) -> RequestError:
    reason = " ".join(reason.split()).rstrip(".").replace("You can use download=True to download it", "").rstrip(". ")
    return RequestError(
        f"{origin.name} cannot be had: {reason}. Looked in {data_dir.absolute()} for {origin.layout}. Get it from {origin.page} "
        "and put it there, or say with --data-dir or RESIDUA_DATA where it lies."
    )


def arrays(split: str, images: Tensor, labels: Tensor) -> ArraySamples:
    """uint8 images [N, C, H, W] and their labels as samples called after their places."""
    return ArraySamples(images.contiguous(), labels.long(), [f"{split} {place}" for place in range(len(labels))])


def dataset(origin: Origin, classes: Sequence[str], splits: dict[str, ArraySamples], *, flip: bool, pad: int) -> Dataset:
    """The opened set; refuses labels that are not ids of its classes, as damaged or foreign files have."""
    for split, samples in splits.items():
        wrong = samples.labels[(samples.labels < 0) | (samples.labels >= len(classes))]
        if len(wrong) or len(samples.images) != len(samples.labels):
            raise RequestError(f"{origin.name}: {split} is damaged, its labels and its {len(classes)} classes do not agree.")
    channels, height, width = splits["train"].images.shape[1:]
    total = sum(len(samples) for samples in splits.values())
    note = f"{origin.layout}, as its makers divided it."
    facts = Facts(channels=channels, size=(height, width), flip=flip, pad=pad)
    return Dataset(origin.name, note, tuple(classes), dict(splits), facts, Findings([], total, total, total))


def tensor(values: Any) -> Tensor:
    """A list, array or tensor as a tensor; an array is not copied."""
    return torch.from_numpy(values) if isinstance(values, np.ndarray) else torch.as_tensor(values)
