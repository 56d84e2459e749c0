"""The DenseNets' recipes to the letter of the paper."""

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


@pytest.mark.parametrize(("name", "epochs"), [("densenet-cifar", 300), ("densenet-svhn", 40)])
def test_the_cifar_and_svhn_recipes_are_the_papers(name: str, epochs: int) -> None:
    recipe = get_recipe(name)
    assert (recipe.batch_size, recipe.epochs, recipe.data.source) == (64, epochs, "svhn" if epochs == 40 else "cifar10")
    assert dataclasses.astuple(recipe.optim)[:6] == ("sgd", 0.1, 0.9, True, 1e-4, True)
    rates = [rate(recipe, share * epochs) for share in (0, 0.499, 0.5, 0.749, 0.75, 0.999)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    augment = recipe.augment
    if epochs == 40:
        assert (augment.crop, augment.flip, augment.colour) == ("none", False, 0)
        assert recipe.model.options == {"dropout": 0.2}
    else:
        assert (augment.crop, augment.pad, augment.flip, augment.colour) == ("pad", 4, True, 0)
        assert recipe.model.options == {}
    assert recipe.data.normalize == ("none" if recipe.data.source == "svhn" else "channel")
    assert_nothing_else(recipe)


def test_the_dropout_on_svhn_is_that_of_a_densenet() -> None:
    assert get_recipe("densenet-svhn", "densenet_40_12").model.options == {"dropout": 0.2}
    assert get_recipe("densenet-svhn", "vgg16").model.options == {}


def test_the_imagenet_recipe_is_that_of_the_code_the_paper_names() -> None:
    recipe = get_recipe("densenet-imagenet")
    assert (recipe.batch_size, recipe.epochs, recipe.data.image_size) == (256, 90, 224)
    assert dataclasses.astuple(recipe.optim)[:6] == ("sgd", 0.1, 0.9, True, 1e-4, True)
    rates = [rate(recipe, epoch) for epoch in (0, 29.99, 30, 59.99, 60, 89.99)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert (recipe.augment.crop, recipe.augment.min_area, recipe.augment.flip) == ("random-resized", 0.08, True)
    assert_nothing_else(recipe)


@pytest.mark.parametrize("name", ["densenet-cifar", "densenet-svhn", "densenet-imagenet"])
def test_the_recipes_own_model_is_in_the_catalogue(name: str) -> None:
    assert CATALOG.get(get_recipe(name).model.name).paper == "densenet"
