"""CIFAR-10 and CIFAR-100: 50,000 training and 10,000 test images, 32 x 32, RGB, of 10 and of 100 (fine) classes.

From A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical report, University of Toronto, 2009.
Files: the pickled python batches, checked by torchvision against their MD5 before they are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from residua.data._torchvision import Origin, arrays, dataset, load_splits, tensor
from residua.dataset import Dataset

__all__ = ["cifar10", "cifar100"]

_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html (the python version)"


def cifar10(data_dir: Path, *, download: bool = True) -> Dataset:
    """Ten classes, from airplane to truck, 5,000 training images each."""
    from torchvision.datasets import CIFAR10

    return _open(CIFAR10, Origin("cifar10", "the folder cifar-10-batches-py", _PAGE), data_dir, download)


def cifar100(data_dir: Path, *, download: bool = True) -> Dataset:
    """A hundred classes, from apple to worm, 500 training images each."""
    from torchvision.datasets import CIFAR100

    return _open(CIFAR100, Origin("cifar100", "the folder cifar-100-python", _PAGE), data_dir, download)


def _open(source: Any, origin: Origin, data_dir: Path, download: bool) -> Dataset:
    def opener(root: Path, split: str, download: bool) -> Any:
        return source(root, train=split == "train", download=download)

    loaded = load_splits(origin, data_dir, download, opener, ("train", "test"))
    splits = {split: arrays(split, tensor(part.data).permute(0, 3, 1, 2), tensor(part.targets)) for split, part in loaded.items()}
    return dataset(origin, loaded["train"].classes, splits, flip=True, pad=4)
