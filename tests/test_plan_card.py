"""`residua doctor --plan`: every plan that applies is tried on whole updates, explained, and left out only with a reason."""

from __future__ import annotations

import json
import math

import pytest
import torch

from residua import kernels, normalizing, orthogonal, plan_card, plan_memory, pointwise, stems, strided, tables, winograd
from residua.errors import RequestError
from residua.models import create_model
from residua.plan import PLANS
from residua.plan_card import LENGTHS, examine_plan, random_dataset


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which nothing can be compiled any more (our own loops are by now)."""
    for loops in (kernels, normalizing, orthogonal, pointwise, stems, strided, winograd):
        loops.obstacle()
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)


@pytest.mark.usefixtures("no_compiler")
def test_every_plan_is_tried_or_left_out_with_its_reason() -> None:
    card = examine_plan("cifar_resnet", {"depth": 8}, batch_size=16, image_size=16)
    tried = [row["name"] for row in card["plans"]]
    assert tried[0] == "fp32"
    assert {*tried, *card["left_out"]} == set(PLANS)
    assert all("compiler" in card["left_out"][name] for name in ("fp32-compile", "bf16-compile", "bf16-compile-stages"))
    assert card["plans"][0]["factor"] == 1
    assert card["plans"][0]["loss_apart"] == 0
    assert all(row["outcome"] == "measured" and row["loss_apart"] < 0.05 for row in card["plans"])
    rates = {row["name"]: row["images_per_second"] for row in card["plans"]}
    assert all(math.isclose(rates[row["name"]], 16 / row["seconds_per_step"], rel_tol=1e-3) for row in card["plans"])
    assert [choice["updates"] for choice in card["chosen"]] == list(LENGTHS)
    for choice in card["chosen"]:
        row = next(row for row in card["plans"] if row["name"] == choice["plan"])
        assert choice["seconds"] == pytest.approx(
            choice["updates"] * row["seconds_per_step"] + row["start_seconds"], abs=0.1, rel=1e-2
        )
    text = tables.plans(card)
    assert "not tried: compiling is skipped" in text
    fastest = max(rates, key=lambda name: rates[name])
    assert text.split("losses apart\n")[1].startswith(f"{fastest} ")


@pytest.mark.usefixtures("no_compiler")
def test_what_was_measured_is_remembered_for_runs() -> None:
    card = examine_plan("cifar_resnet", {"depth": 8}, source="digits", batch_size=20)
    assert card["input_shape"] == [1, 8, 8]
    with open(card["remembered_in"], encoding="utf-8") as file:  # noqa: PTH123
        kept = json.load(file)
    assert {row["name"] for row in kept["trials"]} >= {row["name"] for row in card["plans"]}
    assert plan_memory.recall(kept["key"])


@pytest.mark.parametrize(
    ("from_heap", "said"),
    [(0, "allocator is as it was"), (2**25, "freed buffers of up to 32 MiB are"), (2**30, "freed buffers are")],
)
def test_the_card_says_which_memory_is_kept(from_heap: int, said: str) -> None:
    network = create_model("cifar_resnet", depth=8)
    assert said in plan_card._notes(torch.device("cpu"), 1, network, from_heap)[0]


def test_a_wrong_request_is_refused_before_anything_is_tried() -> None:
    with pytest.raises(RequestError, match="resnet20"):
        examine_plan("resnet2O")
    with pytest.raises(RequestError, match="depth"):
        examine_plan("cifar_resnet", {"dept": 8})
    with pytest.raises(RequestError, match="in_channels must be a whole number"):
        examine_plan("resnet20", {"in_channels": "x"})
    with pytest.raises(RequestError, match="6n"):
        examine_plan("cifar_resnet", {"depth": 9})


def test_noise_has_the_shape_that_is_asked_for() -> None:
    dataset = random_dataset(1, 12, 30, 3)
    samples = dataset.splits["train"]
    assert samples.load(0).shape == (1, 12, 12)
    assert len(samples) == 30
    assert sorted(set(samples.labels.tolist())) == [0, 1, 2]
