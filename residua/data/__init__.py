"""The catalogue of data sources: one family a file, each entry a function that opens a source.

An entry is `name(data_dir, *, download=True) -> Dataset`. Files whose `__all__` is empty read what has no fixed name: folders
and tables of images.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from residua.catalog import Catalog
from residua.errors import RequestError, unknown

if TYPE_CHECKING:
    from residua.dataset import Dataset, Samples

__all__ = ["CATALOG", "is_there", "one_path", "open_data"]

CATALOG = Catalog("residua.data", "data set")


def open_data(
    source: str,
    *,
    data_dir: Path | str | None = None,
    channels: int | None = None,
    max_bad: float = 0.05,
    seconds: float = 60.0,
    download: bool = True,
) -> Dataset:
    """The data set that `source` names: an entry of the catalogue, a folder of images, or a table (`.csv`).

    A catalogue name goes before a folder of the same name (write `./digits` for the folder). Named sets lie in, or are downloaded
    to, `data_dir`; without it $RESIDUA_DATA, without that `./data`. `channels` (1 or 3) turns all images grey or RGB; without
    it they are as the source has them. `max_bad`, from 0 to 1, and `seconds` are those of `datacheck.check`.
    Raises `RequestError` if there is no such source, if it cannot be had, or if the check says stop.
    """
    if channels not in (None, 1, 3):
        raise RequestError(f"channels must be 1 (grey) or 3 (RGB), not {channels!r}.")
    if not 0 <= max_bad <= 1:
        raise RequestError(f"max_bad is a share of the files, from 0 to 1, not {max_bad!r}.")
    if source in CATALOG:
        folder = _home_named(str(data_dir or os.environ.get("RESIDUA_DATA") or "data"))
        return _with_channels(CATALOG.get(source)(folder, download=download), channels)
    path = _home_named(source)
    if path.suffix.lower() == ".csv" and not path.is_dir():
        from residua.data.table import open_csv

        return open_csv(path, channels=channels, max_bad=max_bad, seconds=seconds)
    if path.exists():
        from residua.data.folder import open_folder

        return open_folder(path, channels=channels, max_bad=max_bad, seconds=seconds)
    raise _missing(source)


def is_there(source: str) -> bool:
    """Whether `source` is a name of the catalogue, or a path at which something lies."""
    return source in CATALOG or _home_named(source).exists()


def one_path(source: str) -> str:
    """A source of data, its path written in the one shortest way: "pets" for "./pets/". A name of the catalogue stays as it is,
    and so does the "./" that tells a folder of the same name from it."""
    if source in CATALOG:
        return source
    path = os.path.normpath(source)
    return f"./{path}" if path in CATALOG else path


def _home_named(path: str) -> Path:
    """The path with a leading "~" or "~user" as that user's home folder; as it is where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _missing(source: str) -> RequestError:
    separators = {"/", os.sep, os.altsep or os.sep}
    if source.startswith((".", "~")) or any(separator in source for separator in separators):
        return RequestError(
            f"There is no folder {source!r} (seen from {Path.cwd()}). Give a folder of images, a .csv file, or one of "
            f"{', '.join(CATALOG.names())}."
        )
    return unknown("data set", source, CATALOG.names(), "No folder or .csv file is called so either.")


def _with_channels(dataset: Dataset, channels: int | None) -> Dataset:
    """The same data set with all images grey or RGB."""
    if channels is None or channels == dataset.facts.channels:
        return dataset
    splits = {name: _converted(samples, channels) for name, samples in dataset.splits.items()}
    return replace(dataset, splits=splits, facts=replace(dataset.facts, channels=channels))


def _converted(samples: Samples, channels: int) -> Samples:
    from functools import partial

    from residua.dataset import ArraySamples
    from residua.images import decode, to_channels

    if isinstance(samples, ArraySamples):
        return replace(samples, images=to_channels(samples.images, channels))
    return replace(samples, decode=partial(decode, channels=channels))
