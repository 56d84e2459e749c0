"""The images that a trained run is measured on: a split of its own data, or of other data whose classes it knows. Layer 3."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from residua.data import is_there, one_path, open_data
from residua.datacheck import BY_CONTENT
from residua.dataset import ArraySamples, Dataset, Samples, class_counts
from residua.errors import RequestError, nearest, unknown
from residua.resolve import held_out
from residua.runs import Run

__all__ = ["MeasuredSplit", "listed", "open_split"]


@dataclass(frozen=True)
class MeasuredSplit:
    """What is measured, labels in the ids of the run's classes. `left_out`: (name, reason) of the files of this split that the
    check of the data left out. `note` says how the data was read, and whether it has changed since the run was trained."""

    source: str
    name: str
    samples: Samples
    left_out: tuple[tuple[str, str], ...]
    note: str


def open_split(run: Run, source: str | None, split: str | None, channels: int, data_dir: Path | str | None) -> MeasuredSplit:
    """The split called `split` (by default "test", else "val") of `source` (None: the run's own data).

    Raises `RequestError` where the data or such a split is not there, for classes that the run does not know, and where images
    that a run has set aside (`data.holdout`) can no longer be told from those it was trained on, since its data has changed.
    """
    source = run.recipe.data.source if source is None else source
    own = one_path(source) == one_path(run.recipe.data.source)
    if own and not is_there(source):
        raise RequestError(
            f"The run {run.path} was trained on {source!r}, and there is no such folder or file, seen from {Path.cwd()}. Repeat "
            "the command in the folder that the run was trained in, or say with --data where its data lies."
        )
    dataset = open_data(source, data_dir=data_dir, channels=channels, max_bad=1.0, seconds=0.0)
    note = dataset.note if dataset.note.endswith(".") or not dataset.note else f"{dataset.note}."
    if own:
        dataset = held_out(dataset, run.recipe)
    name = split or dataset.final
    if name not in dataset.splits:
        raise unknown(f"split of {source}", name, dataset.splits)
    samples = dataset.splits[name]
    if not len(samples):
        raise RequestError(f"The split {name} of {source} has no images.")
    ids = _ids(dataset, run)
    if own and _changed(dataset, run):
        if run.recipe.data.holdout and name == "val":
            raise RequestError(
                f"The data of the run {run.path} has changed since it was trained: the images that it set aside as val "
                f"(data.holdout={run.recipe.data.holdout}) can no longer be told from those it was trained on. Measure another "
                "split, or train it anew."
            )
        note = f"{note} The data has changed since the run was trained on it.".strip()
    return MeasuredSplit(source, name, replace(samples, labels=ids[samples.labels]), _left_out(dataset, name), note)


def _changed(dataset: Dataset, run: Run) -> bool:
    """Whether the images are others than those of the training: by their pixels where they lie in memory once the data is open,
    else as far as their numbers, and the names and sizes of files, show. Files that the run held in memory are known to it by
    their pixels, which are not read for this: of them only the numbers show it."""
    counts = {name: class_counts(samples, len(dataset.classes)) for name, samples in dataset.splits.items()}
    if (list(dataset.classes), counts) != (run.classes, run.data.get("counts", counts)):
        return True
    held = any(isinstance(samples, ArraySamples) for samples in dataset.splits.values())
    if held != run.manifest.get("in_memory", True):
        return False
    return dataset.fingerprint() != run.recorded("data_fingerprint")


def _left_out(dataset: Dataset, split: str) -> tuple[tuple[str, str], ...]:
    """What the check left out of a split. Where splits are made by content nobody knows which one a file that cannot be read
    belongs to: it is named for each."""
    found = (item for item in dataset.findings.items if item.kind in ("unreadable", "empty file"))
    return tuple((item.name, item.reason) for item in found if item.split in (split, BY_CONTENT))


def _ids(dataset: Dataset, run: Run) -> Tensor:
    """The run's class id of each of the data's classes, by name."""
    ids = {name: label for label, name in enumerate(run.classes)}
    strange = [name for name in dataset.classes if name not in ids]
    if strange:
        hints = [f"{name!r}" + (f" (nearest: {close[0]!r})" if (close := nearest(name, ids, 1)) else "") for name in strange[:5]]
        more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
        raise RequestError(
            f"{dataset.source} has classes that the run {run.path} does not know: {', '.join(hints)}{more}. "
            f"The run knows {len(ids)} classes: {listed(set(ids))}. Rename the classes of the data, or leave these out."
        )
    return torch.tensor([ids[name] for name in dataset.classes])


def listed(names: set[str]) -> str:
    """Some of the names, in a sentence."""
    shown = ", ".join(map(repr, sorted(names)[:5])) or "none"
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
