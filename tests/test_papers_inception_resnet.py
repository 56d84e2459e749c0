"""Inception-ResNet as a paper: entries for all claims, skips counted in graphs, which of two networks learns sooner."""

from __future__ import annotations

import pytest
from paper_checks import assert_recipes, assert_settled, assert_whole, claim, forecast_hours, small_arms

from residua.claims import Evidence, Record


def test_the_paper_is_whole() -> None:
    assert_whole("inception_resnet")
    assert_recipes("inception_resnet")


def test_structure_settles_sizes_skips_and_two_ways_of_scaling() -> None:
    ids = ("printed_expansions", "usual_parameter_counts", "inception_is_not_residual", "contrast_with_he2016")
    assert_settled("inception_resnet", dict.fromkeys(ids, "shown"))


def test_the_small_runs_fit_and_differ_from_the_protocol_as_is_said() -> None:
    assert 0.02 < forecast_hours("inception_resnet") < 0.5
    for arm, recipe, _ in small_arms("inception_resnet"):
        assert arm.stand_in
        assert (recipe.optim.name, recipe.optim.momentum, recipe.optim.eps, recipe.average.decay) == ("sgd", 0.9, None, 0)


@pytest.mark.parametrize(("gain", "verdict"), [(0.3, "shown"), (-0.3, "refuted"), (0.04, "under-powered"), (0.0, "refuted")])
def test_the_network_whose_curve_lies_lower_learns_sooner(gain: float, verdict: str) -> None:
    records = [
        Record(arm, seed, {}, {"train_loss": [(step, 2.0 - shift - 0.1 * step + 0.01 * seed) for step in range(10)]})
        for arm, shift in (("inception_resnet_v1", gain), ("inception_resnet_v1-plain", 0.0))
        for seed in range(3)
    ]
    assert claim("inception_resnet", "residual_trains_faster").rule(Evidence(records, "small")).verdict == verdict
