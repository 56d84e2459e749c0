"""The catalogue of recipes: what each must have, and he2015's to the letter."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from residua.batches import Share, train_batches
from residua.data import open_data
from residua.errors import RequestError
from residua.models import create_model
from residua.optim import build_optimizer, learning_rate_factor, parameter_groups
from residua.plan import PLANS
from residua.recipe import Recipe, from_dict, replaced, to_dict, write_toml
from residua.recipes import CATALOG, get_recipe
from residua.resolve import make_order, normalization, resolve, side_of
from residua.step import Step

# A form of any recipe that takes seconds on a CPU: digits, eight layers, two steps.
TINY: dict[str, Any] = {
    "data.source": "digits",
    "data.image_size": 16,
    "model.name": "cifar_resnet",
    "model.options": {"depth": 8},
    "augment.min_side": 18,
    "augment.max_side": 22,
    "batch_size": 16,
    "steps": 2,
}


def rate(recipe: Recipe, step: int) -> float:
    assert recipe.steps is not None
    return recipe.optim.lr * learning_rate_factor(recipe.schedule, step / recipe.steps)


@pytest.mark.parametrize("name", CATALOG.names())
def test_every_recipe_is_one_for_any_model(name: str) -> None:
    for model in (None, "resnet18"):
        recipe = get_recipe(name, model)
        assert isinstance(recipe, Recipe)
        assert recipe.name.replace("-", "_") == name
        assert model is None or recipe.model.name == model
        assert from_dict(to_dict(recipe)) == recipe


@pytest.mark.parametrize("name", CATALOG.names())
def test_every_recipe_says_its_command_and_what_to_expect(name: str) -> None:
    text = CATALOG.get(name).__doc__ or ""
    assert re.search(r"^ +residua train", text, re.MULTILINE), "the exact command, on a line of its own"
    assert re.search(r"expected|reaches|accuracy|error", text, re.IGNORECASE)
    assert re.search(r"\d %|\d\.\d", text), "the expected result as a number"


@pytest.mark.parametrize("name", CATALOG.names())
def test_every_recipe_trains_two_steps_in_its_tiny_form(name: str) -> None:
    digits = open_data("digits")
    recipe, _ = resolve(replaced(get_recipe(name), TINY), digits)
    torch.manual_seed(0)
    model = create_model(recipe.model.name, **recipe.model.options)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    learning = {id(p) for group in parameter_groups(model, recipe.optim) if group["lr"] for p in group["params"]}
    train, size = digits.splits["train"], side_of(recipe)
    stats = normalization(train, recipe, 1)
    step = Step(model, recipe, PLANS["exact"], stats, 10, device=torch.device("cpu"))  # the first two, which train all
    for batch in train_batches(train, make_order(digits, recipe), recipe.augment, size, 0, 2, Share(), 0):
        assert batch.images.shape == (16, 1, size, size)
        assert 0 < step(batch).loss < 100
    assert all(torch.equal(a, b) == (id(b) not in learning) for a, b in zip(before, model.parameters()))


def test_the_cifar_recipe_is_the_papers_to_the_letter() -> None:
    """Section 4.2 of he2015."""
    recipe = get_recipe("he2015-cifar")
    assert (recipe.batch_size, recipe.steps, recipe.data.source) == (128, 64_000, "cifar10")
    assert dataclasses.astuple(recipe.optim)[:6] == ("sgd", 0.1, 0.9, False, 1e-4, True)
    assert {step: rate(recipe, step) for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999)} == pytest.approx(
        {0: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_999: 0.001}
    )
    assert (recipe.augment.crop, recipe.augment.pad, recipe.augment.flip) == ("pad", 4, True)
    assert recipe.data.normalize == "pixel"
    assert (recipe.label_smoothing, recipe.average.decay, recipe.optim.clip, recipe.data.holdout) == (0, 0, 0, 0)
    augment = recipe.augment
    assert (augment.colour, augment.cutout, augment.mixup, augment.cutmix) == (0, 0, 0, 0)
    optimizer = build_optimizer(create_model("resnet20"), recipe.optim)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4]


@pytest.mark.parametrize("model", ["resnet110", "plain110"])
def test_with_110_layers_the_first_400_iterations_run_at_a_tenth(model: str) -> None:
    recipe = get_recipe("he2015-cifar", model)
    rates = [rate(recipe, step) for step in (0, 399, 400, 31_999, 32_000, 48_000)]
    assert rates == pytest.approx([0.01, 0.01, 0.1, 0.1, 0.01, 0.001])


def test_the_other_depths_start_at_the_full_rate() -> None:
    for model in ("resnet20", "resnet56", "resnet1202"):
        assert rate(get_recipe("he2015-cifar", model), 0) == pytest.approx(0.1)


def test_any_length_rescales_the_whole_schedule() -> None:
    recipe = replaced(get_recipe("he2015-cifar"), {"steps": 640})
    assert [rate(recipe, step) for step in (0, 319, 320, 479, 480)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])


def test_the_imagenet_recipe_is_the_papers_but_for_the_departures_it_names() -> None:
    """Section 3.4 of he2015."""
    recipe = get_recipe("he2015-imagenet")
    assert (recipe.batch_size, recipe.steps, recipe.data.image_size) == (256, 600_000, 224)
    assert dataclasses.astuple(recipe.optim)[:6] == ("sgd", 0.1, 0.9, False, 1e-4, True)
    augment = recipe.augment
    assert (augment.crop, augment.min_side, augment.max_side, augment.flip, augment.colour) == (
        "scale-jitter",
        256,
        480,
        True,
        0.1,
    )
    assert "Departures" in (CATALOG.get("he2015_imagenet").__doc__ or "")
    rates = [rate(recipe, step) for step in (0, 149_999, 150_000, 300_000, 450_000, 599_999)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 1e-3, 1e-4, 1e-4])


def test_a_recipe_file_is_a_recipe_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(write_toml(get_recipe("he2015-cifar")))
    assert get_recipe(str(path)) == get_recipe("he2015-cifar")
    assert get_recipe(str(path), "resnet32").model.name == "resnet32"


def test_an_unknown_recipe_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(RequestError, match=r"'he2015_cifar'.*\.toml"):
        get_recipe("he2015-cfar")
