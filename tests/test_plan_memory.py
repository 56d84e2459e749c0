"""What is remembered of plans, and when it is not believed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from residua import plan_memory
from residua.plan import Trial
from residua.recipe import Recipe, replaced

CPU = torch.device("cpu")
FOUND = [Trial("fp32", 0.02, 0.1, (1.0, 0.9), "measured"), Trial("bf16", 0.01, 0.2, (1.0, 0.8), "measured")]


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def about(**changes: object) -> dict[str, object]:
    recipe = replaced(Recipe(), {"model.name": "resnet20", **changes})
    return plan_memory.key(recipe, CPU, 2, 1, 10)


def test_trials_come_back_as_they_were_measured() -> None:
    assert plan_memory.recall(about()) == []
    plan_memory.remember(about(), FOUND)
    again = plan_memory.recall(about())
    assert [(trial.name, trial.seconds_per_step, trial.losses) for trial in again] == [
        ("fp32", 0.02, (1.0, 0.9)), ("bf16", 0.01, (1.0, 0.8)),
    ]  # fmt: skip
    assert {trial.outcome for trial in again} == {"measured"}
    plan_memory.remember(about(), [Trial("bf16", 0.03, 0.2, (1.0, 0.8), "measured")])
    assert [trial.seconds_per_step for trial in plan_memory.recall(about())] == [0.02, 0.03]
    plan_memory.forget(about())
    assert plan_memory.recall(about()) == []


@pytest.mark.parametrize(
    "changes",
    [{"model.name": "resnet56"}, {"batch_size": 64}, {"micro_batch": 8}, {"data.image_size": 64}, {"optim.name": "adamw"}],
)
def test_another_model_or_shape_is_another_key(changes: dict[str, object]) -> None:
    plan_memory.remember(about(), FOUND)
    assert plan_memory.recall(about(**changes)) == []


def test_the_seed_and_the_learning_rate_do_not_matter() -> None:
    plan_memory.remember(about(), FOUND)
    assert len(plan_memory.recall(about(**{"seed": 7, "optim.lr": 0.3}))) == 2


def test_failed_diverged_and_rejected_trials_are_not_kept() -> None:
    failed, diverged = Trial("fp32", math.inf, 0.0, (), "failed: no"), Trial("bf16", 0.1, 0.1, (math.nan,), "measured")
    plan_memory.remember(about(), [failed, diverged, Trial("fp32-fused", 0.01, 0.1, (2.0,), "rejected: in this run")])
    assert plan_memory.recall(about()) == []


def test_a_network_that_recomputes_activations_is_another_key() -> None:
    recipe = replaced(Recipe(), {"model.name": "resnet20"})
    plan_memory.remember(about(), FOUND)
    assert plan_memory.recall(plan_memory.key(recipe, CPU, 2, 1, 10, (3, 1))) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"trials": [{"name": "fp32"}]}', '{"trials": 3}', "\0"])
def test_a_damaged_file_counts_as_none(text: str) -> None:
    path = plan_memory.place(about())
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    assert plan_memory.recall(about()) == []
    plan_memory.remember(about(), FOUND)
    assert len(plan_memory.recall(about())) == 2


def test_a_folder_that_cannot_be_written_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    plan_memory.remember(about(), FOUND)
    assert plan_memory.recall(about()) == []
