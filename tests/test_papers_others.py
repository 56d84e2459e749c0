"""The other networks as a paper: VGG's claims, and an entry with its reason for everything that waits."""

from __future__ import annotations

from paper_checks import assert_recipes, assert_settled, assert_whole, claim, evidence, forecast_hours


def test_the_paper_is_whole() -> None:
    assert_whole("others")
    assert_recipes("others")


def test_structure_settles_sizes_kernels_and_how_layers_are_counted() -> None:
    assert_settled("others", dict.fromkeys(("vgg_sizes", "vgg_three_small_kernels", "googlenet_layers"), "shown"))


def test_the_small_runs_fit() -> None:
    assert 0.02 < forecast_hours("others") < 0.3


def test_depth_that_helps_and_then_no_more_is_shown() -> None:
    rule = claim("others", "vgg_depth_helps_to_19").rule
    errors = {"vgg11": 24.0, "vgg13": 22.0, "vgg16": 20.0, "vgg19": 20.0}
    found = {(arm, "test_error"): [error, error + 0.1, error + 0.2] for arm, error in errors.items()}
    assert rule(evidence(found)).verdict == "shown"
    found["vgg19", "test_error"] = [26.0, 26.1, 26.2]
    assert rule(evidence(found)).verdict == "refuted"
