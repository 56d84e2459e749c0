"""What every paper of the catalogue owes, as functions: entries for all claims, names that exist, arms that can be built."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from residua import cost
from residua.budgets import recipe_at, seeds_at
from residua.claims import Arm, Claim, Ensemble, Evidence, Paper, Probe, Record
from residua.data import CATALOG as DATA
from residua.models import create_model
from residua.papers import CATALOG, published
from residua.recipe import Recipe
from residua.rules import Exact

RESNET20 = 40_551_040  # multiply-adds, of which the forecast takes 1,000 images a second on two cores


def paper(key: str) -> Paper:
    found = CATALOG.get(key)
    assert isinstance(found, Paper)
    assert found.key == key
    return found


def all_arms() -> dict[str, Arm | Ensemble | Probe]:
    """Those of all papers that are there, by name."""
    return {arm.name: arm for name in CATALOG.names() for arm in CATALOG.get(name).arms}


def assert_whole(key: str) -> None:
    """Every claim and discrepancy of the TOML has an entry and the other way round; everything that is named is there."""
    found, printed = paper(key), published(key)
    ids = [claim.id for claim in found.claims]
    assert len(ids) == len(set(ids))
    assert set(ids) == set(printed.claims)
    names = [arm.name for arm in found.arms]
    assert len(names) == len(set(names))
    known, measured = all_arms(), {one.name for one in found.measurements} | {"lesion", "responses", "signal", "paths"}
    for part in (*found.claims, *found.items):
        assert set(part.arms) <= set(known), part.id
        assert set(part.measurements) <= measured, part.id
    for claim in found.claims:
        assert claim.statement or printed.statement(claim.id)
        assert claim.rule.text.strip().endswith("."), claim.id
    for item in found.items:
        assert set(item.claims) <= set(ids), item.id
        assert not item.draw or item.draw(Evidence([], "small")) is not None
        for row in item.rows:
            assert row.arm in item.arms, (item.id, row.arm)
            assert not row.published or isinstance(printed.cell(row.published).value, (int, float))


def assert_settled(key: str, expected: dict[str, str]) -> None:
    """Every exact claim is decided, with numbers, as expected by id."""
    found = {claim.id: claim.rule.decide() for claim in paper(key).claims if isinstance(claim.rule, Exact)}
    assert {name: outcome.verdict for name, outcome in found.items()} == expected, {n: o.why for n, o in found.items()}
    assert all(outcome.numbers and outcome.why for outcome in found.values())


def small_arms(key: str) -> Iterator[tuple[Arm, Recipe, int]]:
    """The arms of a paper that run at small, their recipes there, and how many seeds."""
    for arm in paper(key).arms:
        if isinstance(arm, Arm) and "unavailable" not in arm.small:
            yield arm, recipe_at(arm, "small", 0), seeds_at(arm, "small")


def assert_recipes(key: str) -> None:
    """Every arm's network can be built at full and small for the classes of its data, its data set is in the catalogue, and its
    form at smoke is small enough for some seconds."""
    shapes = {"imagenet": 1000, "cifar100": 100}
    recipes = [arm.recipe for arm in paper(key).arms if isinstance(arm, Arm)]
    for recipe in (*recipes, *(small for _, small, _ in small_arms(key))):
        assert recipe.data.source in DATA.names()
        with torch.device("meta"):
            options = {"num_classes": shapes.get(recipe.data.source, 10), **recipe.model.options}
            assert cost.num_parameters(create_model(recipe.model.name, **options)) > 0
    for arm in paper(key).arms:
        if isinstance(arm, Arm) and "unavailable" not in arm.smoke:
            assert_small(recipe_at(arm, "smoke", 0))


def assert_small(recipe: Recipe) -> None:
    """The network is small enough for some seconds of training and two checkpoints."""
    with torch.device("meta"):
        assert cost.num_parameters(create_model(recipe.model.name, **recipe.model.options)) < 11e6


def forecast_hours(key: str) -> float:
    """Hours of two cores of all runs at small on CIFAR-10, by multiply-adds. (The runs on the digits are not counted.)"""
    hours = 0.0
    for _, recipe, seeds in small_arms(key):
        if recipe.data.source == "cifar10":
            side = recipe.data.image_size or 32
            decided = {"in_channels": 3, "image_size": side} if recipe.model.name == "highway" else {}
            with torch.device("meta"):
                network = create_model(recipe.model.name, **decided, **recipe.model.options)
            images = recipe.steps * recipe.batch_size if recipe.steps else 50_000 * (recipe.epochs or 0)
            hours += seeds * images * cost.multiply_adds(network, (3, side, side)) / RESNET20 / 1000 / 3600
    return hours


def evidence(values: dict[tuple[str, str], list[float]], budget: str = "small") -> Evidence:
    """Made-up records: (arm, measure) -> one value a seed."""
    records: dict[tuple[str, int], dict[str, float]] = {}
    for (arm, measure), seeds in values.items():
        for seed, value in enumerate(seeds):
            records.setdefault((arm, seed), {})[measure] = value
    return Evidence([Record(arm, seed, found) for (arm, seed), found in records.items()], budget)


def claim(key: str, name: str) -> Claim:
    return next(one for one in paper(key).claims if one.id == name)
