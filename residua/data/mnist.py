"""MNIST and Fashion-MNIST: 60,000 training and 10,000 test images, 28 x 28, grey, of ten classes.

From Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning applied to document recognition", 1998, and from
H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms", 2017.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from residua.data._torchvision import Origin, arrays, dataset, load_splits
from residua.dataset import Dataset

__all__ = ["fashion_mnist", "mnist"]

_FILES = "with the four idx files, unpacked"


def mnist(data_dir: Path, *, download: bool = True) -> Dataset:
    """The handwritten digits 0 to 9; no flips, which would change digits."""
    from torchvision.datasets import MNIST

    origin = Origin("mnist", f"the folder MNIST/raw {_FILES}", MNIST.mirrors[0])
    return _open(MNIST, origin, data_dir, download, classes=tuple("0123456789"), flip=False, pad=2)


def fashion_mnist(data_dir: Path, *, download: bool = True) -> Dataset:
    """Ten kinds of clothing, from T-shirt/top to ankle boot."""
    from torchvision.datasets import FashionMNIST

    origin = Origin("fashion_mnist", f"the folder FashionMNIST/raw {_FILES}", FashionMNIST.mirrors[0])
    return _open(FashionMNIST, origin, data_dir, download, classes=tuple(FashionMNIST.classes), flip=True, pad=3)


def _open(
    source: Any, origin: Origin, data_dir: Path, download: bool, *, classes: tuple[str, ...], flip: bool, pad: int
) -> Dataset:
    def opener(root: Path, split: str, download: bool) -> Any:
        return source(root, train=split == "train", download=download)

    loaded = load_splits(origin, data_dir, download, opener, ("train", "test"))
    splits = {split: arrays(split, part.data.unsqueeze(1), part.targets) for split, part in loaded.items()}
    return dataset(origin, classes, splits, flip=flip, pad=pad)
