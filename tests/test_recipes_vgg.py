"""VGG's recipe to the letter of the paper."""

from __future__ import annotations

import dataclasses

import pytest

from residua.models import CATALOG
from residua.optim import learning_rate_factor
from residua.recipes import get_recipe


def test_the_recipe_is_the_papers() -> None:
    recipe = get_recipe("vgg-imagenet")
    assert CATALOG.get(recipe.model.name).paper == "vgg"
    assert (recipe.batch_size, recipe.steps, recipe.data.image_size) == (256, 370_000, 224)
    assert dataclasses.astuple(recipe.optim)[:6] == ("sgd", 0.01, 0.9, False, 5e-4, True)
    rates = [recipe.optim.lr * learning_rate_factor(recipe.schedule, part) for part in (0, 0.249, 0.25, 0.5, 0.75, 0.99)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-4, 1e-5, 1e-5])
    augment = recipe.augment
    assert (augment.crop, augment.min_side, augment.max_side, augment.flip, augment.colour) == (
        "scale-jitter",
        256,
        256,
        True,
        0.1,
    )
    assert (augment.cutout, augment.mixup, augment.cutmix, recipe.label_smoothing, recipe.average.decay) == (0, 0, 0, 0, 0)
