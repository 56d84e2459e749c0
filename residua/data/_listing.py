"""From a list of image files to an opened data set: the check, the class ids, the facts. Not a catalogue file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import torch

from residua.datacheck import Checked, Listed, check
from residua.dataset import Dataset, Facts, FileSamples, Findings, Samples
from residua.filecheck import FileFacts
from residua.images import decode, printable

__all__ = ["SPLIT_RULE", "SPLIT_WORDS", "assemble", "counted"]

SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test",
}  # fmt: skip
"""The words, in small letters, for each split in names of folders and in tables."""

SPLIT_RULE = "a file is val where the first 8 bytes of its SHA-256, as a fraction, are below 0.2, else train"


def assemble(
    source: Path,
    root: Path,
    listed: Sequence[Listed],
    splits: Sequence[str],
    findings: Findings,
    *,
    layout: str,
    labels: Iterable[str] = (),
    channels: int | None = None,
    max_bad: float = 0.05,
    seconds: float = 60.0,
) -> Dataset:
    """Checks the files `listed` below `root` (absolute) and makes a `Dataset` of them; `layout` says how `source` was read.

    `splits` are those there must be, `labels` all class names known. Raises `RequestError` where a rule of the check says stop.
    """
    listed = sorted(listed)
    checked = check(root, listed, splits, findings, labels=labels, max_bad=max_bad, seconds=seconds)
    facts = _facts(checked.facts, channels)
    opened: dict[str, Samples] = {split: _samples(root, checked, split, facts.channels) for split in splits}
    sizes = ", ".join(f"{len(samples)} in {split}" for split, samples in opened.items())
    note = f"{layout}; {len(checked.classes)} classes, {sizes}"
    return Dataset(printable(source), note, checked.classes, opened, facts, findings)


def _samples(root: Path, checked: Checked, split: str, channels: int) -> FileSamples:
    ids = {label: place for place, label in enumerate(checked.classes)}
    chosen = [(file, known) for file, known in zip(checked.files, checked.facts) if file.split == split]
    labels = torch.tensor([ids[file.label] for file, _ in chosen], dtype=torch.int64)
    names, sizes = [file.name for file, _ in chosen], [known.size for _, known in chosen]
    return FileSamples(root, names, labels, sizes, partial(decode, channels=channels))


def _facts(known: Sequence[FileFacts], channels: int | None) -> Facts:
    """Grey if every image is; the size if all share it. Nothing speaks against flips unless the user knows better."""
    headers = [facts.header for facts in known if facts.header is not None]
    sizes = {(header.height, header.width) for header in headers}
    size = sizes.pop() if len(sizes) == 1 else None
    return Facts(
        channels or max(header.channels for header in headers), size, flip=True, pad=max(1, min(size) // 8) if size else 0
    )


def counted(names: Sequence[str], show: int = 5) -> str:
    """`names` as a list in a sentence, cut after `show`, made safe to print."""
    kinds = list(Counter(printable(name) for name in names))
    return ", ".join(kinds[:show]) + (", ..." if len(kinds) > show else "")
