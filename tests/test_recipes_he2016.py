"""he2016's recipes to the letter of its appendix."""

from __future__ import annotations

import dataclasses

import pytest

from residua.models import CATALOG
from residua.optim import learning_rate_factor
from residua.recipe import Recipe, replaced
from residua.recipes import get_recipe


def rate(recipe: Recipe, progress: float) -> float:
    return recipe.optim.lr * learning_rate_factor(recipe.schedule, progress)


@pytest.mark.parametrize("model", ["preact_resnet110", "preact_resnet1001", "resnet110", "preact_resnet164"])
def test_every_cifar_run_warms_up_for_400_iterations_and_drops_at_32k_and_48k(model: str) -> None:
    recipe = get_recipe("he2016-cifar", model)
    assert (recipe.batch_size, recipe.steps, recipe.data.source, recipe.model.name) == (128, 64_000, "cifar10", model)
    assert dataclasses.astuple(recipe.optim)[:6] == ("sgd", 0.1, 0.9, False, 1e-4, True)
    rates = {step: rate(recipe, step / 64_000) for step in (0, 399, 400, 31_999, 32_000, 47_999, 48_000, 63_999)}
    assert rates == pytest.approx(
        {0: 0.01, 399: 0.01, 400: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_999: 0.001}
    )
    augment = recipe.augment
    assert (augment.crop, augment.pad, augment.flip, augment.colour) == ("pad", 4, True, 0)
    assert (recipe.label_smoothing, recipe.average.decay, recipe.data.normalize) == (0, 0, "pixel")


def test_the_imagenet_recipe_drops_at_30_and_60_epochs_without_a_warm_up() -> None:
    recipe = get_recipe("he2016-imagenet")
    assert (recipe.batch_size, recipe.epochs, recipe.steps, recipe.data.image_size) == (256, 90, None, 224)
    assert dataclasses.astuple(recipe.optim)[:6] == ("sgd", 0.1, 0.9, False, 1e-4, True)
    rates = [rate(recipe, epoch / 90) for epoch in (0, 29.99, 30, 59.99, 60, 89.99)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    augment = recipe.augment
    assert (augment.crop, augment.min_side, augment.max_side, augment.flip, augment.colour) == (
        "scale-jitter",
        256,
        480,
        True,
        0.1,
    )
    assert replaced(recipe, {"augment.crop": "random-resized"}).augment.min_area == 0.08


@pytest.mark.parametrize("name", ["he2016-cifar", "he2016-imagenet"])
def test_the_recipes_own_model_is_in_the_catalogue(name: str) -> None:
    assert CATALOG.get(get_recipe(name).model.name).paper == "he2016"
