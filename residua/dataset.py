"""What a data source hands over: samples, classes, facts and findings. Layer 1.

Images are uint8 tensors [C, H, W], C = 1 (grey) or 3 (RGB), values 0 to 255; labels are class ids 0 .. len(classes) - 1.
A sample is named by its place in its split, which is fixed by the sorted names of its files (or the order of its arrays).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from residua import keyed
from residua.errors import UnreadableImage
from residua.images import View

__all__ = [
    "ArraySamples",
    "Dataset",
    "Facts",
    "FileSamples",
    "Finding",
    "Findings",
    "Samples",
    "class_counts",
    "hold",
    "holdout",
    "subset",
]


@dataclass(frozen=True)
class Facts:
    """What is true of a source's images.

    `channels` 1 or 3; `size` (H, W) if all images share it, else None; `flip`: a mirror image is still a likely image of
    its class; `pad`: the padding, in pixels, that a random crop of uniform images may use (about an eighth of the side).
    """

    channels: int
    size: tuple[int, int] | None
    flip: bool
    pad: int


@dataclass(frozen=True)
class ArraySamples:
    """Samples held in memory: `images` uint8 [N, C, H, W], `labels` int64 [N], `names` for lists in reports.

    `unreadable` maps the places of files that could not be decoded (their pixels are zero) to the reason.
    """

    images: Tensor
    labels: Tensor
    names: Sequence[str]
    unreadable: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> Tensor:
        """Image `index`, uint8 [C, H, W]; raises `UnreadableImage` with the reason if its file could not be decoded."""
        if index in self.unreadable:
            raise UnreadableImage(self.unreadable[index])
        return self.images[index]

    def seen(self, index: int, view: View) -> Tensor:
        """Image `index` as `view` shows it; raises like `load`."""
        image = self.load(index)
        return view.show(image, *image.shape[-2:])


class Decoder(Protocol):
    """Turns a path into [C, H, W], or into what a view shows of it."""

    def __call__(self, path: Path, /, *, view: View | None = None) -> Tensor: ...


@dataclass(frozen=True)
class FileSamples:
    """Samples in files, decoded when asked for.

    `names` are paths relative to `root`, `sizes` the files' lengths in bytes; `decode` reads one.
    """

    root: Path
    names: Sequence[str]
    labels: Tensor
    sizes: Sequence[int]
    decode: Decoder

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> Tensor:
        """Image `index`, uint8 [C, H, W]; raises `UnreadableImage` naming the file."""
        return self.decode(self.root / self.names[index])

    def seen(self, index: int, view: View) -> Tensor:
        """Image `index` as `view` shows it, decoded at the scale that suffices for it; raises like `load`."""
        return self.decode(self.root / self.names[index], view=view)


Samples = ArraySamples | FileSamples


@dataclass(frozen=True)
class Finding:
    """One thing the data check found: `kind` (such as "unreadable"), `what` it is, by name, and what was `done` about it. Where
    it is one file that cannot be read: its `name`, its `split` ("" where that would follow from its content) and the `reason`."""

    kind: str
    what: str
    done: str
    name: str = ""
    split: str = ""
    reason: str = ""


@dataclass
class Findings:
    """All that the data check found, and how far it got: files whose headers were read, and files decoded, of `total`."""

    items: list[Finding] = field(default_factory=list)
    total: int = 0
    headers: int = 0
    decoded: int = 0

    def add(self, kind: str, what: str, done: str, *, name: str = "", split: str = "", reason: str = "") -> None:
        """Lists one finding."""
        self.items.append(Finding(kind, what, done, name, split, reason))

    def counts(self) -> dict[str, int]:
        """How many findings there are of each kind."""
        counts: dict[str, int] = {}
        for item in self.items:
            counts[item.kind] = counts.get(item.kind, 0) + 1
        return counts


@dataclass(frozen=True)
class Dataset:
    """A source that has been opened: `splits` by name ("train"; "val" and/or "test"), class names in the order of their ids.

    `source` is what the user named; `note` says in a sentence how it was read (its layout, its split).
    """

    source: str
    note: str
    classes: tuple[str, ...]
    splits: dict[str, Samples]
    facts: Facts
    findings: Findings = field(default_factory=Findings)

    @property
    def watched(self) -> str:
        """The split that is measured during training: "val" where there is one, else "test"."""
        return "val" if "val" in self.splits else "test"

    @property
    def final(self) -> str:
        """The split that is reported at the end: "test" where there is one, else "val"."""
        return "test" if "test" in self.splits else "val"

    def fingerprint(self) -> str:
        """SHA-256 over classes, splits, names and labels, and the pixels of what is held in memory."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for split, samples in sorted(self.splits.items()):
            digest.update(split.encode())
            digest.update(samples.labels.numpy().tobytes())
            if isinstance(samples, ArraySamples):
                digest.update(samples.images.cpu().contiguous().numpy().tobytes())
            else:
                files = (f"{name}\0{size}" for name, size in zip(samples.names, samples.sizes))
                digest.update("\0".join(files).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def holdout(samples: Samples, count: int, seed_text: str = "holdout") -> tuple[Samples, Samples]:
    """(kept, held out): `count` samples chosen by the hash of their place, the same ones every time."""
    order = keyed.permutation(len(samples), seed_text)
    return subset(samples, order[count:].sort().values), subset(samples, order[:count].sort().values)


def subset(samples: Samples, indices: Tensor) -> Samples:
    """The samples at `indices`, in that order."""
    names = [samples.names[i] for i in indices.tolist()]
    if isinstance(samples, ArraySamples):
        unreadable = {new: samples.unreadable[old] for new, old in enumerate(indices.tolist()) if old in samples.unreadable}
        return ArraySamples(samples.images[indices], samples.labels[indices], names, unreadable)
    sizes = [samples.sizes[i] for i in indices.tolist()]
    return FileSamples(samples.root, names, samples.labels[indices], sizes, samples.decode)


def hold(samples: Samples) -> ArraySamples:
    """The samples decoded into memory; they must share one size. What cannot be decoded is zero and listed as unreadable."""
    if isinstance(samples, ArraySamples):
        return samples
    images: Tensor | None = None
    unreadable: dict[int, str] = {}
    with ThreadPoolExecutor() as pool:
        for place, image in enumerate(pool.map(partial(_loaded, samples), range(len(samples)))):
            if isinstance(image, str):
                unreadable[place] = image
                continue
            if images is None:
                images = torch.zeros((len(samples), *image.shape), dtype=torch.uint8)
            images[place] = image
    if images is None:
        raise UnreadableImage(f"None of the {len(samples)} images in {samples.root} can be decoded.")
    return ArraySamples(images, samples.labels, samples.names, unreadable)


def _loaded(samples: FileSamples, place: int) -> Tensor | str:
    try:
        return samples.load(place)
    except UnreadableImage as error:
        return str(error)


def class_counts(samples: Samples, num_classes: int) -> list[int]:
    """How many samples each class has."""
    return torch.bincount(samples.labels, minlength=num_classes).tolist()
