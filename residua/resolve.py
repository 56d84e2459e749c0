"""From a recipe and an opened data set to the recipe that is run: open fields decided, contradictions found. Layer 3."""

from __future__ import annotations

import bisect
import inspect
import itertools
import math
import os
from typing import Any

import torch
from torch import Tensor

from residua import models
from residua.batches import Order, evaluation_batches
from residua.dataset import ArraySamples, Dataset, Facts, Samples, class_counts, holdout
from residua.errors import RequestError
from residua.network import Network
from residua.published import Published
from residua.recipe import Recipe, replaced
from residua.views import CentralView

__all__ = [
    "IMPLIED",
    "check_size",
    "class_weights",
    "held_out",
    "implied_options",
    "make_order",
    "normalization",
    "resolve",
    "side_of",
]

SMALL = 96  # uniform images up to this side are trained at their own size, with the stem for small images
DEFAULT_EPOCHS, DEFAULT_STEPS = 24, 400


def held_out(dataset: Dataset, recipe: Recipe) -> Dataset:
    """The data set with `data.holdout` training samples set aside as "val"."""
    count = recipe.data.holdout
    if not count:
        return dataset
    train = dataset.splits["train"]
    if "val" in dataset.splits:
        raise RequestError(
            f"{dataset.source} has {len(dataset.splits['val'])} images in val already; data.holdout sets training images aside "
            "as val only where there is none. Leave data.holdout at 0."
        )
    if count >= len(train):
        raise RequestError(f"data.holdout = {count} would leave nothing of {len(train)} training images.")
    kept, aside = holdout(train, count)
    splits = {**dataset.splits, "train": kept, "val": aside}
    return Dataset(dataset.source, dataset.note, dataset.classes, splits, dataset.facts, dataset.findings)


def resolve(recipe: Recipe, dataset: Dataset) -> tuple[Recipe, list[str]]:
    """The recipe with every open field decided by the data, and a sentence for each decision a user should know of.

    Raises `RequestError` where recipe and data contradict each other.
    """
    notes: list[str] = []
    facts, train = dataset.facts, dataset.splits["train"]
    small = facts.size is not None and max(facts.size) <= SMALL
    side = recipe.data.image_size or (max(facts.size) if small and facts.size else 224)
    changes: dict[str, Any] = {"data.image_size": side, **_augmentation(recipe, facts, side, small)}
    changes.update(_model(recipe, dataset, side, notes))
    if recipe.batch_size > len(train):
        changes["batch_size"] = len(train)
        notes.append(f"The batch of {recipe.batch_size} is larger than the data: {len(train)} is used.")
    if recipe.micro_batch and recipe.micro_batch > changes.get("batch_size", recipe.batch_size):
        changes["micro_batch"] = changes.get("batch_size", recipe.batch_size)
    if recipe.steps is None and recipe.epochs is None and recipe.minutes is None:
        per_epoch = max(1, len(train) // changes.get("batch_size", recipe.batch_size))
        changes["epochs"] = max(DEFAULT_EPOCHS, math.ceil(DEFAULT_STEPS / per_epoch))
        notes.append(f"No length is given: {changes['epochs']} epochs (--epochs or --minutes choose another).")
    return replaced(recipe, changes, "the recipe"), notes


def _augmentation(recipe: Recipe, facts: Facts, side: int, small: bool) -> dict[str, Any]:
    augment = recipe.augment
    crop = augment.crop if augment.crop != "auto" else "pad" if small else "random-resized"
    if crop == "scale-jitter" and augment.min_side < side:
        raise RequestError(f"The crop of {side} pixels is larger than the image: augment.min_side is {augment.min_side}.")
    if augment.cutout > side:
        raise RequestError(f"augment.cutout = {augment.cutout} is larger than the image of {side} pixels.")
    if augment.pad is not None and augment.pad >= side:
        raise RequestError(f"augment.pad = {augment.pad} would shift the image of {side} pixels out of sight.")
    pad = augment.pad if augment.pad is not None else facts.pad if small else side // 8
    flip = augment.flip if augment.flip is not None else facts.flip
    return {"augment.crop": crop, "augment.pad": pad, "augment.flip": flip}


def _model(recipe: Recipe, dataset: Dataset, side: int, notes: list[str]) -> dict[str, Any]:
    name, options = recipe.model.name, dict(recipe.model.options)
    if name == "auto":
        name = "resnet20" if side <= SMALL else "resnet18"
        notes.append(f"No model is given: {name}, the default for images of {side} pixels (--model chooses another).")
    entry = models.CATALOG.get(name)
    implied = implied_options(name, dataset.facts.channels, side, len(dataset.classes))
    words = {"num_classes": "classes", "in_channels": "channels", "image_size": "pixels a side"}
    for option, what in words.items():
        if option in options and option in implied and options[option] != implied[option]:
            raise RequestError(f"model.{option} = {options[option]}, but the data has {implied[option]} {what}.")
    if "stem" in implied and "stem" not in options:
        notes.append(
            f"{name} gets the stem for small images, since they have {side} pixels (--set model.stem=imagenet keeps its own)."
        )
    options = {**implied, **options}
    if isinstance(entry, Published) and "image_size" not in implied and options.get("stem") != "small":
        _fits(name, entry, side, _smallest_scale(recipe))
    models.check_options(name, entry, options)
    return {"model.name": name, "model.options": options}


IMPLIED = ("num_classes", "in_channels", "image_size", "stem")
"""The options of networks that the data decide where the user does not."""


def implied_options(name: str, channels: int, side: int, num_classes: int) -> dict[str, Any]:
    """What the network called `name` is built with because of the data: classes, channels, the side of the images where it takes
    one size only, the stem for small images where a published network of large ones has it."""
    entry = models.CATALOG.get(name)
    known = inspect.signature(entry.builder if isinstance(entry, Published) else entry).parameters
    implied: dict[str, Any] = {"num_classes": num_classes, "in_channels": channels}
    if "image_size" in known:
        implied["image_size"] = side
    if isinstance(entry, Published) and "stem" in known and entry.input_shape[-1] > SMALL >= side:
        implied["stem"] = "small"
    return implied


def _smallest_scale(recipe: Recipe) -> float:
    return min([1.0, *(scale for _, scale in recipe.augment.scales)])


def _fits(name: str, entry: Published, side: int, scale: float) -> None:
    """Raises `RequestError` for images that are too small for the network or, if it takes one size only, too large."""
    least, whole, seen = entry.least_side, entry.least_side == entry.input_shape[-1], round(side * scale)
    if seen < least or (whole and seen > least):
        raise _wrong_size(name, f"{'' if whole else 'at least '}{least}", least, seen, scale)


def _wrong_size(name: str, takes: str, least: int, seen: int, scale: float) -> RequestError:
    enough = next(side for side in itertools.count(least) if round(side * scale) >= least)
    where = f" at augment.scales of {scale:g}" if scale < 1 else ""
    return RequestError(
        f"{name} takes images of {takes} pixels, and these have {seen}{where}. --set data.image_size={enough} resizes them."
    )


def check_size(recipe: Recipe) -> None:
    """Raises `RequestError` if the images are too small for the network of a resolved recipe.

    For published networks `resolve` knows; of the others, whose options decide it, shapes alone are sent through the network.
    """
    name, options, scale = recipe.model.name, recipe.model.options, _smallest_scale(recipe)
    if isinstance(models.CATALOG.get(name), Published) or "image_size" in options:
        return
    network = models.outlined(name, **options).eval()
    channels, seen = options["in_channels"], max(1, round(side_of(recipe) * scale))
    if _takes(network, channels, seen):
        return
    enough = next((side for side in (seen * 2**power for power in range(1, 12)) if _takes(network, channels, side)), None)
    if enough is not None:  # else it is not their size that is wrong
        least = bisect.bisect_left(range(enough), True, lo=seen, key=lambda side: _takes(network, channels, side))
        raise _wrong_size(name, f"at least {least}", least, seen, scale)


def _takes(network: Network, channels: int, side: int) -> bool:
    """Whether an image [1, channels, side, side] goes through the network, so far as shapes tell."""
    try:
        with torch.no_grad():
            network(torch.zeros(1, channels, side, side, device=next(network.parameters()).device))
    except NotImplementedError:  # it looks at values
        return True
    except RuntimeError:
        return False
    return True


def normalization(samples: Samples, recipe: Recipe, channels: int, most: int = 2_000) -> dict[str, Tensor]:
    """ "mean" and "std" of the training images in units of pixel / 255, float32: [C, 1, 1], or for `normalize = "pixel"` a mean
    [C, S, S] and std of 1; for "none" 0 and 1.

    Images in memory count all; files are sampled, `most` of them evenly over the sorted list, seen as evaluation sees them.
    """
    if recipe.data.normalize == "none":
        return {"mean": torch.zeros(channels, 1, 1), "std": torch.ones(channels, 1, 1)}
    side = side_of(recipe)
    whole = isinstance(samples, ArraySamples) and samples.images.shape[-2:] == (side, side)
    images = _readable(samples) if whole and isinstance(samples, ArraySamples) else _sampled(samples, side, most)
    if recipe.data.normalize == "pixel":
        mean = torch.stack([part.double().sum(0) for part in images.split(256)]).sum(0) / (255 * len(images))
        return {"mean": mean.float().contiguous(), "std": torch.ones(channels, 1, 1)}
    values = torch.arange(256, dtype=torch.float64, device=images.device) / 255
    share = torch.stack([_histogram(images, c) for c in range(channels)]).double() / images[:, 0].numel()
    colour = (share * values).sum(1)
    std = (share * (values - colour[:, None]).square()).sum(1).sqrt().clamp_min(1e-3)
    return {"mean": colour.float().view(-1, 1, 1), "std": std.float().view(-1, 1, 1)}


def _histogram(images: Tensor, channel: int) -> Tensor:
    """How often each of the values 0 to 255 occurs in a channel of the images."""
    return torch.stack([torch.bincount(part[:, channel].flatten(), minlength=256) for part in images.split(256)]).sum(0)


def _readable(samples: ArraySamples) -> Tensor:
    if not samples.unreadable:
        return samples.images
    return samples.images[[place for place in range(len(samples)) if place not in samples.unreadable]]


def _sampled(samples: Samples, side: int, most: int) -> Tensor:
    places = torch.linspace(0, len(samples) - 1, min(most, len(samples))).round().long().unique()
    batches = evaluation_batches(samples, places, CentralView(side), 64, workers=min(8, os.cpu_count() or 1))
    images = [batch.images[batch.valid.to(batch.images.device)] for batch in batches if batch.valid.any()]
    if not images:
        raise RequestError(f"None of the {len(places)} training images that were tried can be decoded.")
    return torch.cat(images)


def make_order(dataset: Dataset, recipe: Recipe) -> Order:
    """The order of the training split."""
    return Order(dataset.splits["train"].labels, recipe.batch_size, recipe.seed, recipe.data.balance == "sampler")


def class_weights(dataset: Dataset, recipe: Recipe) -> Tensor | None:
    """N / (K n_c) for each class if the recipe weighs classes, so that the mean weight of a sample is 1."""
    if recipe.data.balance != "weights":
        return None
    counts = torch.tensor(class_counts(dataset.splits["train"], len(dataset.classes)), dtype=torch.float32)
    return counts.sum() / (len(counts) * counts.clamp_min(1))


def side_of(recipe: Recipe) -> int:
    """Side of the network's input; a resolved recipe has one."""
    assert recipe.data.image_size is not None
    return recipe.data.image_size
