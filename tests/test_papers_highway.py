"""Highway networks as a paper: the limits of the gate to the last bit, gates read from trained networks, lesions by task."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from paper_checks import assert_recipes, assert_settled, assert_whole, claim, forecast_hours, small_arms

from residua.analysis import Budget, NotApplicable, Subject
from residua.claims import Evidence, Record
from residua.models import create_model
from residua.papers._highway_gates import GATES, drawn
from residua.unit import Gate, walk


def test_the_paper_is_whole() -> None:
    assert_whole("highway")
    assert_recipes("highway")


def test_structure_settles_the_limits_of_the_gate() -> None:
    assert_settled("highway", dict.fromkeys(("closed_gate_is_identity", "twice_the_parameters"), "shown"))


def test_the_small_runs_are_of_digits_and_one_of_colour_images() -> None:
    sources = {arm.name: recipe.data.source for arm, recipe, _ in small_arms("highway")}
    assert [name for name, source in sources.items() if source != "digits"] == ["highway_50-cifar100"]
    assert forecast_hours("highway") < 0.05
    assert {f"{kind}_200" for kind in ("highway", "highway_plain", "residual", "residual_plain")} < sources.keys()


def subject(model: torch.nn.Module, start: torch.nn.Module | None) -> Subject:
    images = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(60, dtype=torch.int64)
    fresh = None if start is None else lambda: start
    return Subject("net", model.eval(), lambda: iter([(images, labels)]), 60, ("a", "b"), (), fresh=fresh)


def measured(bias: float) -> dict[str, Any]:
    """The gates of a net without weights in its gates, so that activity is the sigmoid of the bias."""
    trained, start = (create_model("highway", depth=6, width=4, image_size=8, gate_bias=value) for value in (bias, -4.0))
    for found in walk(trained):
        assert isinstance(found.unit.merge, Gate)
        torch.nn.init.zeros_(found.unit.merge.transform.get_parameter("weight"))
    return GATES.measure(subject(trained, start), Budget(1.0))


@pytest.mark.parametrize("bias", [-6.0, -2.0, 3.0])
def test_activity_and_biases_are_those_of_the_closed_form(bias: float) -> None:
    found = measured(bias)
    assert found["activity"] == pytest.approx([1 / (1 + math.exp(-bias))] * 5, rel=1e-6)
    assert found["bias"] == pytest.approx([bias] * 5)
    assert found["bias_at_start"] == pytest.approx([-4.0] * 5)
    assert found["share_fallen_in_all"] == (1.0 if bias < -4 else 0.0)
    assert found["open_for_one_image"] == (1.0 if bias > 0 else 0.0)


@pytest.mark.parametrize(
    ("biases", "verdict"), [([-6.0, -5.0], "shown"), ([-2.0, -3.0], "refuted"), ([-6.0, -2.0], "under-powered")]
)
def test_falling_biases_are_judged_over_all_seeds(biases: list[float], verdict: str) -> None:
    records = [Record("highway_50", seed, {}, measurements={"gates": measured(bias)}) for seed, bias in enumerate(biases)]
    found = Evidence(records, "small")
    assert claim("highway", "gates_grow_more_negative").rule(found).verdict == verdict
    assert [drawing.title for drawing in drawn(found, ("highway_50",))] == ["Mean gate bias", "Mean gate activity"]


def test_a_network_without_gates_has_none_to_measure() -> None:
    with pytest.raises(NotApplicable, match="no gates"):
        GATES.measure(subject(create_model("highway", depth=4, plain=True, image_size=8), None), Budget(1.0))


@pytest.mark.parametrize(
    ("easy", "hard", "verdict"), [(0.1, 3.0, "shown"), (2.0, 3.0, "refuted"), (0.1, 0.05, "refuted"), (0.1, 0.5, "under-powered")]
)
def test_lesions_are_judged_by_the_later_half_of_the_units(easy: float, hard: float, verdict: str) -> None:
    def lesion(rise: float) -> dict[str, Any]:
        return {"baseline": 5.0, "single": [{"error": 50.0}] * 4 + [{"error": 5.0 + rise}] * 5}

    records = [
        Record(arm, 0, {}, measurements={"lesion": lesion(rise)})
        for arm, rise in (("highway_50", easy), ("highway_50-cifar100", hard))
    ]
    assert claim("highway", "lesion_depends_on_task").rule(Evidence(records, "small")).verdict == verdict
