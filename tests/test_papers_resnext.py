"""ResNeXt as a paper: entries for all claims, equal forms in float64, small forms of equal size."""

from __future__ import annotations

from paper_checks import assert_recipes, assert_settled, assert_whole, claim, evidence, forecast_hours, small_arms

from residua import cost
from residua.models import create_model


def test_the_paper_is_whole() -> None:
    assert_whole("resnext")
    assert_recipes("resnext")


def test_structure_settles_forms_and_costs() -> None:
    ids = ("three_forms_equal", "templates_of_equal_cost", "table1_sizes", "depth2_is_a_wider_block", "secondary_32_paths")
    assert_settled("resnext", dict.fromkeys((*ids, "resnet50_flops"), "shown"))


def test_the_small_runs_fit_and_compare_networks_of_equal_size() -> None:
    assert 0.05 < forecast_hours("resnext") < 0.7
    sizes = {
        arm.name: cost.num_parameters(create_model(recipe.model.name, **recipe.model.options))
        for arm, recipe, _ in small_arms("resnext")
    }
    assert len(sizes) == 4
    assert max(sizes["resnext50_1x64d"], sizes["resnext50_32x4d"]) < 1.03 * min(
        sizes["resnext50_1x64d"], sizes["resnext50_32x4d"]
    )


def test_cardinality_is_decided_by_the_two_ends_at_small() -> None:
    rule = claim("resnext", "cardinality_helps_at_equal_cost").rule
    values = {("resnext50_32x4d", "test_error"): [20.0, 20.1, 20.2], ("resnext50_1x64d", "test_error"): [22.0, 22.1, 22.2]}
    assert rule(evidence(values)).verdict == "shown"
    assert rule(evidence(values, "full")).verdict == "not attempted"
