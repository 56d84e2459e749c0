"""What a run will need, and how it fits into the memory at hand."""

from __future__ import annotations

import pytest
import torch

from residua import forecast
from residua.batches import Share
from residua.data import open_data
from residua.network import Network
from residua.prepare import fresh_network
from residua.recipe import Recipe, replaced
from residua.resolve import resolve

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    changes = {"model.name": "resnet56", "batch_size": 128, "steps": 10, "plan": "fp32"}
    return resolve(replaced(Recipe(), changes), open_data("digits"))[0]


def needed(network: Network, recipe: Recipe) -> float:
    return forecast.needs(network, recipe, forecast.plan.PLANS["fp32"], Share(), CPU, 0.0)["memory_mib"]


def test_with_memory_at_hand_nothing_is_recomputed(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "free_memory", lambda _: 2**40)
    network = fresh_network(recipe)
    assert forecast.spare_memory(network, recipe, Share(), CPU) is None
    assert (network.recompute_every, network.recompute_stages) == (0, None)


def test_as_few_stages_are_recomputed_as_the_memory_asks_for(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    network = fresh_network(recipe)
    whole = needed(network, recipe)
    needs = {}
    for stages in (1, 2, 3):
        network.recompute_every, network.recompute_stages = 3, stages
        needs[stages] = needed(network, recipe)
    assert whole > needs[1] > needs[2] >= needs[3], "what comes back for a while may be more than what is kept"
    assert needs[1] < 0.8 * whole, "the first of three stages holds four sevenths of the activations"
    for stages in (1, 2, 3):
        network = fresh_network(recipe)
        free = int((needs[stages] + 1) * 2**20 / forecast.SPARE)
        monkeypatch.setattr(forecast, "free_memory", lambda _, free=free: free)
        said = forecast.spare_memory(network, recipe, Share(), CPU)
        fewest = next(fitting for fitting in needs if needs[fitting] <= needs[stages])
        assert (network.recompute_every, network.recompute_stages) == (3, fewest)
        assert said is not None
        assert f"first {fewest} stages are computed again" in said


def test_the_plan_that_was_found_recomputes_no_more_than_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 keeps half of what fp32 keeps: where the memory is between the two, a run in bf16 recomputes nothing, and a run whose
    plan is to be found neither."""
    changes = {"model.name": "resnet56", "batch_size": 128, "steps": 1, "augment.crop": "pad"}
    dataset = open_data("digits")
    recipe = resolve(replaced(Recipe(), changes), dataset)[0]
    network = fresh_network(recipe)
    plain = needed(network, recipe)
    half = forecast.needs(network, recipe, forecast.plan.PLANS["bf16"], Share(), CPU, 0.0)["memory_mib"]
    assert half < 0.7 * plain
    free = int((half + plain) / 2 * 2**20 / forecast.SPARE)
    monkeypatch.setattr(forecast, "free_memory", lambda _: free)
    assert forecast.spare_memory(network, recipe, Share(), CPU) is not None
    network = fresh_network(recipe)
    assert forecast.spare_memory(network, recipe, Share(), CPU, chosen=forecast.plan.PLANS["bf16"]) is None


def test_what_the_recipe_has_decided_stays(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "free_memory", lambda _: 1)
    network = fresh_network(replaced(recipe, {"model.recompute_every": 9}))
    assert forecast.spare_memory(network, recipe, Share(), CPU) is None
    assert network.recompute_every == 9
