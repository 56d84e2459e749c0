"""DenseNet as a paper: entries for all claims, connections counted in graphs, weights on sources against ones written by hand."""

from __future__ import annotations

import pytest
import torch
from paper_checks import assert_recipes, assert_settled, assert_whole, claim, evidence, forecast_hours
from torch import nn

from residua import cost
from residua.analysis import Budget, Subject
from residua.claims import Evidence, Record
from residua.models import create_model
from residua.papers._densenet_reuse import REUSE, drawn
from residua.papers.densenet import RESNET


def test_the_paper_is_whole() -> None:
    assert_whole("densenet")
    assert_recipes("densenet")


def test_structure_settles_sizes_connections_and_the_merge() -> None:
    assert_settled("densenet", dict.fromkeys(("parameter_counts", "connections", "inputs_of_a_layer", "naming"), "shown"))


def test_the_small_runs_fit() -> None:
    assert 0.05 < forecast_hours("densenet") < 0.7


def test_the_small_resnet_has_three_times_the_parameters_of_the_small_densenet() -> None:
    ours = create_model("cifar_densenet", depth=16, growth=12, bottleneck=True, compression=0.5)
    ratio = cost.num_parameters(create_model("cifar_wide_resnet", **RESNET.small["model.options"])) / cost.num_parameters(ours)
    assert 2.7 < ratio < 3.3


def reuse(weights: dict[int, float]) -> dict[str, object]:
    """What is measured of a DenseNet of 13 layers whose later layers have the given mean absolute weight on each source."""
    model = create_model("cifar_densenet", depth=13, growth=2)
    for stage in model.stages:
        convs = [unit.branch.conv1 for unit in stage if hasattr(unit, "branch")]
        base = convs[0].in_channels
        for layer in convs:
            sources = [base, *[2] * ((layer.in_channels - base) // 2)]
            signs = torch.sign(torch.randn_like(layer.weight))
            parts = [weights.get(place, 0.5) * part for place, part in enumerate(signs.split(sources, dim=1))]
            layer.weight.data.copy_(torch.cat(parts, dim=1))
    subject = Subject("dense", model, lambda: iter(()), 0, ("a", "b"), ())
    return REUSE.measure(subject, Budget(1.0))


def test_the_weights_on_each_source_are_those_written_by_hand() -> None:
    found = reuse({0: 0.1, 1: 0.4, 2: 0.3})["blocks"]
    assert [len(block["weights"]) for block in found] == [3, 3, 3]
    for block in found:
        for row, expected in zip(block["weights"], ([0.1], [0.1, 0.4], [0.1, 0.4, 0.3])):
            assert row == pytest.approx(expected)


@pytest.mark.parametrize(
    ("weights", "verdict"),
    [({0: 0.1, 1: 0.4, 2: 0.3}, "shown"), ({0: 0.9, 1: 0.4, 2: 0.3}, "refuted"), ({0: 0.1, 1: 0.4, 2: 0.01}, "refuted")],
)
def test_reuse_is_decided_by_both_parts_of_the_claim(weights: dict[int, float], verdict: str) -> None:
    found = Evidence([Record("densenet_100_12", 0, {}, measurements={"reuse": reuse(weights)})], "small")
    assert claim("densenet", "feature_reuse").rule(found).verdict == verdict
    assert "<svg" in drawn(found, ("densenet_40_12", "densenet_100_12"))[0].svg


def test_a_densenet_that_is_not_worse_by_a_point_is_shown() -> None:
    rule = claim("densenet", "third_of_parameters").rule
    left, right = ("densenet_bc_100_12", "test_error"), ("preact_resnet236-densenet", "test_error")
    assert rule(evidence({left: [20.0, 20.1, 20.2], right: [20.0, 20.1, 20.2]})).verdict == "shown"
    assert rule(evidence({left: [25.0, 25.1, 25.2], right: [20.0, 20.1, 20.2]})).verdict == "refuted"
    assert rule(evidence({left: [20.0, 23.0, 26.0], right: [20.0, 22.0, 20.2]})).verdict == "under-powered"
    assert rule(evidence({left: [20.0], right: [20.0]})).verdict == "under-powered"


def test_a_network_without_dense_blocks_is_refused() -> None:
    subject = Subject("none", nn.Linear(2, 2), lambda: iter(()), 0, ("a", "b"), ())
    with pytest.raises(ValueError, match="not built of stages"):
        REUSE.measure(subject, Budget(1.0))
