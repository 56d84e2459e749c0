"""ImageNet, ILSVRC 2012: about 1.28 million training and 50,000 validation images of 1000 classes, in files.

From O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV, 2015. It can be had only from its makers,
after signing in; nothing is downloaded. Either `train/` and `val/` with a sub-folder for each WordNet id (n01440764, ...) lie in
`data_dir/imagenet` or in `data_dir`, or the three official archives lie there, which torchvision then unpacks.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

from residua.data.folder import open_folder
from residua.dataset import Dataset
from residua.errors import RequestError

__all__ = ["imagenet"]

_ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz")


def imagenet(data_dir: Path, *, download: bool = True) -> Dataset:  # noqa: ARG001 (the form of every entry)
    """The splits train and val; class ids in the order of the WordNet ids, which is the one of published weights."""
    places = (data_dir / "imagenet", data_dir)
    root = next((place for place in places if _has_splits(place)), None)
    if root is None:
        root = next((place for place in places if all((place / name).is_file() for name in _ARCHIVES)), None)
        if root is None:
            raise RequestError(
                f"imagenet cannot be had: neither {' nor '.join(str(place.absolute()) for place in places)} has train/ and val/ "
                f"with a sub-folder for each class, or the archives {', '.join(_ARCHIVES)}. Get those from https://image-net.org "
                "(free of charge, after signing in) and put them there, or say with --data-dir or RESIDUA_DATA where they lie."
            )
        _unpack(root)
    opened = open_folder(root)
    return replace(opened, source="imagenet", classes=class_names(opened.classes), note=f"{opened.note}, in {root}")


def class_names(wordnet_ids: Sequence[str]) -> tuple[str, ...]:
    """What the classes show, for all 1000 WordNet ids in order; any other list is given back as it is.

    Where torchvision gives two classes the same name, as some versions do, the WordNet id is added.
    """
    from torchvision.models import ResNet50_Weights

    names = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    if len(wordnet_ids) != len(names):
        return tuple(wordnet_ids)
    often = Counter(names)
    return tuple(f"{name} ({wordnet_id})" if often[name] > 1 else name for name, wordnet_id in zip(names, wordnet_ids))


def _has_splits(place: Path) -> bool:
    return (place / "train").is_dir() and (place / "val").is_dir()


def _unpack(root: Path) -> None:
    from torchvision.datasets import ImageNet

    try:
        with redirect_stdout(sys.stderr):
            for split in ("train", "val"):
                ImageNet(root, split=split)
    except (RuntimeError, OSError, ValueError) as error:
        raise RequestError(f"The archives of imagenet in {root} cannot be unpacked: {error}") from error
