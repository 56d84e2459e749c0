"""The highway nets' recipes: the papers' exponential decay, and the authors' released solvers to the letter."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from residua.models import CATALOG, create_model
from residua.optim import build_optimizer, learning_rate_factor
from residua.recipe import Recipe
from residua.recipes import get_recipe


def rate(recipe: Recipe, progress: float) -> float:
    return recipe.optim.lr * learning_rate_factor(recipe.schedule, progress)


def test_the_fully_connected_nets_rate_decays_exponentially_by_the_epoch() -> None:
    recipe = get_recipe("highway-mnist")
    assert recipe.epochs == 100
    for epoch in range(100):
        for share in (0.001, 0.5, 0.999):
            assert rate(recipe, (epoch + share) / 100) == pytest.approx(0.05 * 0.95**epoch)
    assert (recipe.optim.name, recipe.optim.momentum, recipe.optim.nesterov, recipe.optim.weight_decay) == ("sgd", 0.9, False, 0)
    assert (recipe.data.source, recipe.augment.crop, recipe.augment.flip) == ("mnist", "none", False)


@pytest.mark.parametrize(
    ("name", "lr", "drops", "total", "crop"),
    [
        ("highway-mnist-conv", 0.01, (60_000, 120_000), 180_000, ("none", None, False)),
        ("highway-cifar", 0.025, (100_000, 150_000, 175_000), 200_000, ("pad", 8, True)),
    ],
)
def test_the_convolutional_recipes_are_the_released_solvers(
    name: str, lr: float, drops: tuple[int, ...], total: int, crop: tuple[str, int | None, bool]
) -> None:
    recipe = get_recipe(name)
    assert (recipe.batch_size, recipe.steps) == (100, total)
    assert dataclasses.astuple(recipe.optim)[:6] == ("sgd", lr, 0.9, True, 1e-3, False)
    assert (recipe.augment.crop, recipe.augment.pad, recipe.augment.flip) == crop
    assert rate(recipe, 0) == pytest.approx(lr)
    for place, step in enumerate(drops):
        assert rate(recipe, (step - 1) / total) == pytest.approx(lr * 0.1**place)
        assert rate(recipe, step / total) == pytest.approx(lr * 0.1 ** (place + 1))


def test_biases_and_with_them_the_gates_are_not_decayed() -> None:
    """Decay would pull the gate biases towards zero, where the gates are half open."""
    with torch.device("meta"):
        network = create_model("highway_conv_19")
    groups = build_optimizer(network, get_recipe("highway-cifar").optim).param_groups
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    assert {path.endswith("weight") for path, p in network.named_parameters() if id(p) in decayed} == {True}
    assert {path.endswith("bias") for path, p in network.named_parameters() if id(p) not in decayed} == {True}


@pytest.mark.parametrize("name", ["highway-mnist", "highway-mnist-conv", "highway-cifar"])
def test_the_recipes_own_model_is_in_the_catalogue(name: str) -> None:
    assert CATALOG.get(get_recipe(name).model.name).paper == "highway"
