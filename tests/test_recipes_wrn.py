"""The wide ResNets' recipes to the letter of the paper."""

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


def test_the_cifar_recipe_is_the_papers() -> None:
    recipe = get_recipe("wrn-cifar")
    assert (recipe.batch_size, recipe.epochs, recipe.data.source, recipe.data.normalize) == (128, 200, "cifar10", "channel")
    assert dataclasses.astuple(recipe.optim)[:6] == ("sgd", 0.1, 0.9, True, 5e-4, True)
    rates = {epoch: rate(recipe, epoch) for epoch in (0, 59.99, 60, 119.99, 120, 159.99, 160, 199.99)}
    expected = {0: 0.1, 59.99: 0.1, 60: 0.02, 119.99: 0.02, 120: 0.004, 159.99: 0.004, 160: 0.0008, 199.99: 0.0008}
    assert rates == pytest.approx(expected)
    assert (recipe.augment.crop, recipe.augment.pad, recipe.augment.flip, recipe.augment.colour) == ("pad", 4, True, 0)
    assert recipe.augment.padding == "reflect"
    assert_nothing_else(recipe)


def test_the_svhn_recipe_is_the_papers() -> None:
    recipe = get_recipe("wrn-svhn")
    assert (recipe.batch_size, recipe.epochs, recipe.data.source) == (128, 160, "svhn")
    assert recipe.data.normalize == "none"
    assert dataclasses.astuple(recipe.optim)[:6] == ("sgd", 0.01, 0.9, True, 5e-4, True)
    rates = {epoch: rate(recipe, epoch) for epoch in (0, 79.99, 80, 119.99, 120, 159.99)}
    assert rates == pytest.approx({0: 1e-2, 79.99: 1e-2, 80: 1e-3, 119.99: 1e-3, 120: 1e-4, 159.99: 1e-4})
    assert (recipe.augment.crop, recipe.augment.flip, recipe.augment.colour) == ("none", False, 0)
    assert_nothing_else(recipe)


def test_the_imagenet_recipe_is_that_of_the_code_the_paper_names() -> None:
    recipe = get_recipe("wrn-imagenet")
    assert (recipe.batch_size, recipe.epochs, recipe.data.image_size) == (256, 90, 224)
    assert dataclasses.astuple(recipe.optim)[:6] == ("sgd", 0.1, 0.9, True, 1e-4, True)
    rates = [rate(recipe, epoch) for epoch in (0, 29.99, 30, 59.99, 60, 89.99)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert (recipe.augment.crop, recipe.augment.min_area, recipe.augment.flip) == ("random-resized", 0.08, True)
    assert_nothing_else(recipe)


@pytest.mark.parametrize("name", ["wrn-cifar", "wrn-svhn", "wrn-imagenet"])
def test_the_recipes_own_model_is_in_the_catalogue(name: str) -> None:
    assert CATALOG.get(get_recipe(name).model.name).paper == "wrn"
