"""scikit-learn's handwritten digits: 1797 images, 8 x 8, grey. They come with the library; nothing is downloaded.

From E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998. The values 0
to 16 become 0 to 255. The split is stratified and follows from the content: within each class the images are put in the order
of the SHA-256 of their pixels, and the first fifth, rounded, is test. So it does not depend on the order of the rows.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from residua.dataset import ArraySamples, Dataset, Facts, Findings, Samples

__all__ = ["digits"]


def digits(data_dir: Path, *, download: bool = True) -> Dataset:  # noqa: ARG001 (the form of every entry)
    """The digits 0 to 9, splits train and test (about 80 and 20 per cent of each class); `data_dir` is not used."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = ((torch.from_numpy(bunch.images).double() * 255 / 16) + 0.5).floor().to(torch.uint8).unsqueeze(1)
    splits: dict[str, Samples] = {**split_by_content(images, torch.from_numpy(bunch.target).long())}
    found = Findings(total=len(images), headers=len(images), decoded=len(images))
    note = "scikit-learn's digits; in each class the fifth of the images whose SHA-256 is lowest is test, the rest train."
    return Dataset("digits", note, tuple("0123456789"), splits, Facts(channels=1, size=(8, 8), flip=False, pad=1), found)


def split_by_content(images: Tensor, labels: Tensor) -> dict[str, ArraySamples]:
    """uint8 images [N, C, H, W] and labels [N] as train and test, both in the order of the SHA-256 of the images' pixels."""
    hashes = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images]
    order = sorted(range(len(hashes)), key=lambda index: (hashes[index], index))
    test: set[int] = set()
    for label in labels.unique().tolist():
        members = [index for index in order if labels[index] == label]
        test.update(members[: round(len(members) / 5)])
    return {
        "train": _taken(images, labels, hashes, [index for index in order if index not in test]),
        "test": _taken(images, labels, hashes, [index for index in order if index in test]),
    }


def _taken(images: Tensor, labels: Tensor, hashes: list[str], places: list[int]) -> ArraySamples:
    names = [f"digit {int(labels[place])}, {hashes[place][:8]}" for place in places]
    return ArraySamples(images[places], labels[places], names)
