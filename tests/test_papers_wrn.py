"""Wide residual networks as a paper: its claims have entries, structure settles what it can, the small forms fit their time."""

from __future__ import annotations

import pytest
from paper_checks import assert_recipes, assert_settled, assert_whole, claim, evidence, forecast_hours, small_arms

from residua import cost
from residua.models import create_model
from residua.papers._wrn_times import TIMES


def test_the_paper_is_whole() -> None:
    assert_whole("wrn")
    assert_recipes("wrn")


def test_structure_settles_sizes_and_two_mistakes() -> None:
    ids = ("wide50_size", "parameter_counts", "linear_in_depth_quadratic_in_width", "equal_sizes_of_table3", "resnet1202_row")
    assert_settled("wrn", dict.fromkeys((*ids, "secondary_doubled_channels"), "shown"))


def test_times_are_those_of_the_processor_that_took_them() -> None:
    assert TIMES.timed


def test_the_small_runs_take_at_most_an_hour_and_a_half() -> None:
    assert 0.3 < forecast_hours("wrn") < 1.5


def test_the_small_block_types_have_about_equal_sizes() -> None:
    sizes = {
        arm.name: cost.num_parameters(create_model(recipe.model.name, **recipe.model.options))
        for arm, recipe, _ in small_arms("wrn")
        if "B(" in arm.name
    }
    assert len(sizes) == 6
    assert max(sizes.values()) < 1.45 * min(sizes.values())


@pytest.mark.parametrize(
    ("changes", "verdict"), [([0.2, 0.1], "shown"), ([-0.2, -0.1], "under-powered"), ([0.2, -0.1], "under-powered")]
)
def test_a_loss_that_rises_between_the_falls_of_the_rate_is_seen(changes: list[float], verdict: str) -> None:
    """Ten measurements of the test loss; the fourth to the sixth lie between the falls at 0.3 and 0.6 of the run."""
    rule, found = claim("wrn", "loss_rises_after_first_drop").rule, evidence({("wrn_40_4", "test_error"): [10.0] * len(changes)})
    for record, change in zip(found.records, changes):
        values = [2.0, 1.8, 1.7, 1.0, 1.0 + change / 2, 1.0 + change, 0.6, 0.6, 0.5, 0.5]
        object.__setattr__(record, "curves", {"test_loss": [(312 * (n + 1), value) for n, value in enumerate(values)]})
    assert rule(found).verdict == verdict
    full = type(found)(found.records, "full")
    assert rule(full).verdict == ("refuted" if max(changes) < 0 else verdict)


def test_four_measurements_are_too_few_to_see_a_loss_rise() -> None:
    """The small budget's four epochs: of the updates 390, 780, 1,170 and 1,560 only one lies between the falls of the rate."""
    found = evidence({("wrn_40_4", "test_error"): [10.0]})
    object.__setattr__(found.records[0], "curves", {"test_loss": [(390 * (n + 1), 1.0) for n in range(4)]})
    outcome = claim("wrn", "loss_rises_after_first_drop").rule(found)
    assert outcome.verdict == "under-powered"
    assert "1 of 1 runs have not two measurements" in outcome.why


@pytest.mark.parametrize(("times", "verdict"), [([5.0, 6.0], "shown"), ([1.5, 1.1], "refuted"), ([3.0, 1.0], "under-powered")])
def test_the_speed_rule_counts_the_least_factor(times: list[float], verdict: str) -> None:
    found = evidence({("wrn-times", "wrn_40_4_ms"): [1.0] * 2, ("wrn-times", "preact_resnet1001_ms"): times})
    assert claim("wrn", "wrn40_4_faster").rule(found).verdict == verdict


@pytest.mark.slow
def test_the_networks_of_figure_4_are_timed() -> None:
    found = TIMES.measure(0, "smoke")
    assert len(found) == 5
    assert all(value > 0 for value in found.values())
    assert found["wrn_28_10_ms"] > found["wrn_40_4_ms"]
