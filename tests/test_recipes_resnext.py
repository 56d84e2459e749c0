"""The ResNeXts' recipes to the letter of the paper."""

from __future__ import annotations

import dataclasses

import pytest

from residua.models import CATALOG
from residua.optim import learning_rate_factor
from residua.recipe import Recipe
from residua.recipes import get_recipe


def rate(recipe: Recipe, epoch: float) -> float:
    assert recipe.epochs is not None
    return recipe.optim.lr * learning_rate_factor(recipe.schedule, epoch / recipe.epochs)


def assert_nothing_else(recipe: Recipe) -> None:
    """What the paper does not name is off."""
    augment = recipe.augment
    assert (augment.cutout, augment.mixup, augment.cutmix) == (0, 0, 0)
    assert (recipe.label_smoothing, recipe.average.decay, recipe.optim.clip, recipe.schedule.warmup) == (0, 0, 0, 0)
    assert (recipe.data.balance, recipe.data.holdout, recipe.optim.layer_decay) == ("none", 0, 1)


def test_the_cifar_recipe_is_that_of_appendix_a() -> None:
    recipe = get_recipe("resnext-cifar")
    assert (recipe.batch_size, recipe.epochs, recipe.data.source) == (128, 300, "cifar10")
    assert dataclasses.astuple(recipe.optim)[:6] == ("sgd", 0.1, 0.9, False, 5e-4, True)
    rates = {epoch: rate(recipe, epoch) for epoch in (0, 149.99, 150, 224.99, 225, 299.99)}
    assert rates == pytest.approx({0: 0.1, 149.99: 0.1, 150: 1e-2, 224.99: 1e-2, 225: 1e-3, 299.99: 1e-3})
    assert (recipe.augment.crop, recipe.augment.pad, recipe.augment.flip, recipe.augment.colour) == ("pad", 4, True, 0)
    assert_nothing_else(recipe)


def test_the_imagenet_recipe_drops_three_times_every_30_epochs() -> None:
    recipe = get_recipe("resnext-imagenet")
    assert (recipe.batch_size, recipe.epochs, recipe.data.image_size) == (256, 120, 224)
    assert dataclasses.astuple(recipe.optim)[:6] == ("sgd", 0.1, 0.9, False, 1e-4, True)
    rates = [rate(recipe, epoch) for epoch in (0, 29.99, 30, 59.99, 60, 89.99, 90, 119.99)]
    assert rates == pytest.approx([0.1, 0.1, 1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])
    augment = recipe.augment
    assert (augment.crop, augment.min_area, augment.flip, augment.colour) == ("random-resized", 0.08, True, 0)
    assert_nothing_else(recipe)


@pytest.mark.parametrize("name", ["resnext-cifar", "resnext-imagenet"])
def test_the_recipes_own_model_is_in_the_catalogue(name: str) -> None:
    assert CATALOG.get(get_recipe(name).model.name).paper == "resnext"
