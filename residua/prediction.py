"""What a trained network says of image files: a label and its probability for each. Layer 4.

The same decoder, view and normalisation as in `residua.evaluation`, so a file gets here the score that it gets there.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from residua import runs
from residua.batches import evaluation_batches
from residua.data.folder import images_below
from residua.dataset import FileSamples
from residua.errors import RequestError, RunError, nearest
from residua.evaluation import load_ready, precision_of
from residua.images import decode, printable
from residua.runs import Run
from residua.scoring import Scores, chosen_device, evaluation_view, scores

__all__ = ["Prediction", "predict", "predictions_csv"]


@dataclass(frozen=True)
class Prediction:
    """What the network says of one file: the likeliest `label` with its `probability` (0 to 1), and the likeliest few in
    `top`, the best first. A file that cannot be read has an `error` and nothing else."""

    path: str
    label: str | None
    probability: float | None
    error: str | None
    top: tuple[tuple[str, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; an entry of `top` is {"label", "probability"}."""
        top = [{"label": label, "probability": probability} for label, probability in self.top]
        return {"path": self.path, "label": self.label, "probability": self.probability, "error": self.error, "top": top}


def predict(
    run: str | Path | Run,
    files: str | Path | Iterable[str | Path],
    *,
    top: int = 5,
    device: str | None = None,
    batch_size: int = 64,
    workers: int = 0,
) -> list[Prediction]:
    """One `Prediction` a file, in the order given; a folder stands for the images in it and below, sorted by path.

    In a folder, files are told to be images by the end of their name; a file that is named itself is always tried. `top`: how
    many of the likeliest classes to list, cut to the number of classes.

    Raises `RequestError` for a path that does not exist and a folder without images.
    """
    if top < 1 or batch_size < 1:
        raise RequestError(f"top and batch_size must be at least 1, not {top} and {batch_size}.")
    paths = _found([files] if isinstance(files, (str, Path)) else files)
    opened = run if isinstance(run, Run) else runs.open_run(run)
    found = _scores(opened, paths, chosen_device(device), batch_size, workers)
    if not found.probabilities.isfinite().all():
        raise RunError(f"The network of {opened.path} gives scores that are not finite: its weights cannot be used.")
    return _predictions(paths, opened.classes, found, top)


def predictions_csv(predictions: Sequence[Prediction], top: int = 1) -> str:
    """The predictions as CSV with a header: path, label, probability, error, and for the next likeliest classes up to the one at
    place `top` label_2, probability_2, label_3, ...; what a prediction does not have is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    places = range(2, top + 1)
    further = [name for place in places for name in (f"label_{place}", f"probability_{place}")]
    writer.writerow(["path", "label", "probability", "error", *further])
    for item in predictions:
        ranked = [value for pair in item.top[1:top] for value in pair]
        empty = [None] * (len(further) - len(ranked))
        writer.writerow([item.path, item.label, item.probability, item.error, *ranked, *empty])
    return text.getvalue()


def _scores(run: Run, paths: list[str], device: torch.device, batch_size: int, workers: int) -> Scores:
    channels = run.normalization["std"].shape[0]
    labels = torch.zeros(len(paths), dtype=torch.int64)
    samples = FileSamples(Path(), paths, labels, [0] * len(paths), partial(decode, channels=channels))
    network = load_ready(run, device)
    batches = evaluation_batches(samples, torch.arange(len(paths)), evaluation_view(run.recipe), batch_size, workers)
    return scores(network, batches, run.normalization, device, precision_of(run, device))


def _predictions(paths: list[str], classes: list[str], found: Scores, top: int) -> list[Prediction]:
    reasons = dict(found.unreadable)
    rows = {place: row for row, place in enumerate(found.places.tolist())}
    predictions = []
    for place, path in enumerate(paths):
        if place not in rows:
            predictions.append(Prediction(printable(path), None, None, reasons[path]))
            continue
        best = found.probabilities[rows[place]].sort(descending=True, stable=True)
        ranked = [(classes[label], float(value)) for label, value in zip(best.indices.tolist(), best.values)]
        predictions.append(Prediction(printable(path), *ranked[0], None, tuple(ranked[:top])))
    return predictions


# ----------------------------------------------------------------------------------------------------------------- files


def _found(files: Iterable[str | Path]) -> list[str]:
    """The files themselves, folders replaced by the images below them."""
    found: list[str] = []
    for given in map(Path, files):
        if given.is_dir():
            inside = images_below(given)
            if not inside:
                raise RequestError(f"There are no images in the folder {given} or below it.")
            found += inside
        elif os.path.lexists(given):
            found.append(str(given))
        else:
            raise RequestError(_missing(given))
    if not found:
        raise RequestError("There is nothing to predict: name at least one image or folder of images.")
    return found


def _missing(path: Path) -> str:
    """What is wrong with a path, and what there is near it."""
    parent = next(above for above in path.absolute().parents if above.is_dir())
    wanted = path.absolute().relative_to(parent).parts[0]
    try:
        close = nearest(wanted, sorted(entry.name for entry in parent.iterdir()))
    except OSError:
        close = []
    hint = f" Near it there is {' or '.join(str(parent / name) for name in close)}." if close else f" Looked in {parent}."
    return f"There is no file or folder {printable(path)}.{hint}"
