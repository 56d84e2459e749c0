"""SVHN, street view house numbers, cropped digits: 73,257 training and 26,032 test images, 32 x 32, RGB.

From Y. Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning", NIPS workshop, 2011. The
531,131 easier extra images are not used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from residua.data._torchvision import Origin, arrays, dataset, load_splits, tensor
from residua.dataset import Dataset

__all__ = ["svhn"]


def svhn(data_dir: Path, *, download: bool = True) -> Dataset:
    """The digits 0 to 9 (the files' label 10 is the digit 0); no flips, which would change digits."""
    from torchvision.datasets import SVHN

    def opener(root: Path, split: str, download: bool) -> Any:
        return SVHN(root, split=split, download=download)

    origin = Origin("svhn", "the files train_32x32.mat and test_32x32.mat", "http://ufldl.stanford.edu/housenumbers")
    loaded = load_splits(origin, data_dir, download, opener, ("train", "test"))
    splits = {split: arrays(split, tensor(part.data), tensor(part.labels)) for split, part in loaded.items()}
    return dataset(origin, tuple("0123456789"), splits, flip=False, pad=4)
