"""`residua shorten`: what it chooses, on which images, and that a shortened network is a run like any other."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from json_page import assert_as_documented
from toy_runs import one_thread  # noqa: F401
from trainings import Stop, final_bytes, settings, stopped, train, write_images
from typer.testing import CliRunner

import residua
from residua import runs, shortening
from residua.cli import app
from residua.errors import RequestError
from residua.evaluation import evaluate
from residua.removal import outermost, taken_out
from residua.runs import Run
from residua.shortening import FILE, choose, fine_tuning, latencies, shorten
from residua.subjects import run_subject
from residua.training import Interrupted

COUNTS = {"dark": 16, "grey": 16, "light": 16}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), COUNTS)


@pytest.fixture(scope="module")
def parent(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """14 layers: six units, of which those that open stages 2 and 3 have to stay."""
    return train(data, tmp_path_factory.mktemp("runs") / "parent", model__depth=14)


def tuned(parent: Run, out: Path, **more: Any) -> tuple[Run, dict[str, Any]]:
    return shorten(parent, keep=4, out=out, set={"steps": 8, **more.pop("set", {})}, **more)


@pytest.fixture(scope="module")
def child(parent: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    return tuned(parent, tmp_path_factory.mktemp("short") / "child")


def test_the_weights_of_a_shortened_run_are_told_by_their_number_of_units(
    parent: Run, child: tuple[Run, dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="are of another network: both are cifar_resnet, but with 4 units there and 6 here"):
        train(data, tmp_path / "run", model__depth=14, model__weights=str(child[0].path))
    with pytest.raises(RequestError, match="both are cifar_resnet, but built with other options"):
        train(data, tmp_path / "run", model__depth=14, model__width=8, model__weights=str(parent.path))


def test_a_shortened_network_is_a_run_like_any_other(parent: Run, child: tuple[Run, dict[str, Any]]) -> None:
    run, card = child
    gone = [item["path"] for item in card["removed"]]
    assert len(gone) == 2
    reopened = runs.open_run(run.path)
    assert reopened.recipe.model.options["removed_units"] == gone
    assert reopened.finished()
    network = runs.load(reopened)
    assert len(outermost(network)) == 4
    assert card["after"]["top1_error"] == evaluate(reopened, save=False).to_dict()["top1_error"]
    assert card["before"]["top1_error"] == evaluate(parent, save=False).to_dict()["top1_error"]
    prediction = residua.predict(run.path, [next((Path(parent.recipe.data.source) / "val").rglob("*.png"))])
    assert prediction[0].top


def test_it_starts_from_the_weights_of_the_parent(parent: Run, child: tuple[Run, dict[str, Any]]) -> None:
    run, card = child
    assert run.manifest["weights"]["where"] == str(parent.path)
    left_out = run.manifest["weights"]["ignored"]
    assert left_out
    assert all(name.startswith(tuple(item["path"] for item in card["removed"])) for name in left_out)
    assert run.manifest["weights"]["fresh"] == {}


def test_cost_falls_by_that_of_the_units_that_went(parent: Run, child: tuple[Run, dict[str, Any]]) -> None:
    _, card = child
    units = {found.path: found.unit for found in outermost(runs.load(parent))}
    parameters = sum(p.numel() for item in card["removed"] for p in units[item["path"]].parameters())
    assert card["before"]["parameters"] - card["after"]["parameters"] == parameters > 0
    # each removed unit has two 3x3 layers on maps of side 12, 6 or 3 of width 16, 32 or 64: 2 * 9 * 16^2 * 12^2 in every stage
    assert card["before"]["multiply_adds"] - card["after"]["multiply_adds"] == 2 * (2 * 9 * 16**2 * 12**2)
    assert card["cut"]["multiply_adds"] == card["after"]["multiply_adds"]
    assert card["after"]["milliseconds"] > 0


def test_the_error_of_the_cut_network_is_that_without_the_units(parent: Run, child: tuple[Run, dict[str, Any]]) -> None:
    subject = run_subject(parent)
    gone = [found.unit for found in outermost(subject.model) if found.path in {item["path"] for item in child[1]["removed"]}]
    wrong = 0
    with torch.inference_mode(), taken_out(*gone):
        for images, labels in subject.batches():
            wrong += int((subject.model(images).argmax(1) != labels).sum())
    assert child[1]["cut"]["top1_error"] == pytest.approx(100 * wrong / subject.num_images)


def test_the_same_request_again_does_nothing_and_says_the_same(parent: Run, child: tuple[Run, dict[str, Any]]) -> None:
    run, card = child
    before = final_bytes(run)
    again, same = tuned(parent, run.path)
    assert same == card
    assert final_bytes(again) == before


def test_an_interrupted_tuning_goes_on_to_the_same_bytes(parent: Run, child: tuple[Run, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        tuned(parent, tmp_path / "stopped", listener=Stop(3))
    kept = json.loads((tmp_path / "stopped" / FILE).read_text())
    assert "after" not in kept
    run, card = tuned(parent, tmp_path / "stopped")
    assert card["removed"] == kept["removed"] == child[1]["removed"]
    assert final_bytes(run) == final_bytes(child[0])


def test_what_was_shortened_can_be_shortened_again(child: tuple[Run, dict[str, Any]], tmp_path: Path) -> None:
    run, card = shorten(child[0], keep=3, out=tmp_path / "again", set={"steps": 2})
    removed = run.recipe.model.options["removed_units"]
    assert removed[:2] == [item["path"] for item in child[1]["removed"]]
    assert removed[2:] == [item["path"] for item in card["removed"]]
    assert len(outermost(runs.load(run))) == 3


def test_the_unit_whose_loss_costs_least_goes_first_and_all_that_can_may_go(parent: Run) -> None:
    subject = run_subject(parent, split="train")
    images = torch.cat([x for x, _ in subject.batches()])
    labels = torch.cat([y for _, y in subject.batches()])

    def loss(*paths: str) -> float:
        gone = [found.unit for found in outermost(subject.model) if found.path in paths]
        with torch.inference_mode(), taken_out(*gone):
            return float(torch.nn.functional.cross_entropy(subject.model(images), labels))

    removals, count = choose(subject, 4)
    assert count == len(labels)
    free = [found.path for found in outermost(subject.model) if found.removable]
    assert len(free) == 4
    assert removals[0].path == min(free, key=loss)
    assert removals[0].damage == pytest.approx(loss(removals[0].path) - loss(), abs=1e-6)
    rest = [path for path in free if path != removals[0].path]
    assert removals[1].path == min(rest, key=lambda path: loss(removals[0].path, path)), "all three that are left are measured"
    assert sorted(item.path for item in removals) == sorted(free)
    assert sum(item.damage for item in removals) == pytest.approx(loss(*free) - loss(), abs=1e-5)


def test_units_are_chosen_on_validation_images_and_never_on_the_test_split(
    data: Path, tmp_path: Path, child: tuple[Run, dict[str, Any]]
) -> None:
    assert child[1]["measured_on"].endswith(", train"), "the only other split is the one that accuracy is stated on"
    source = tmp_path / "images"
    for split, origin in (("train", "train"), ("val", "val"), ("test", "val")):
        (source / split).parent.mkdir(exist_ok=True)
        (source / split).symlink_to(data / origin, target_is_directory=True)
    full = train(source, tmp_path / "full", steps=1)
    _, card = shorten(full, keep=2, out=tmp_path / "short", set={"steps": 1})
    assert card["measured_on"].endswith(", val")


def test_the_tuning_has_the_recipe_of_the_parent_but_for_its_length_and_rate(parent: Run) -> None:
    recipe = fine_tuning(parent, ["stages.0.1"], None, {"batch_size": 4})
    assert recipe.optim.lr == pytest.approx(0.2 * parent.recipe.optim.lr)
    assert (recipe.epochs, recipe.steps) == (1.0, None)
    assert recipe.batch_size == 4
    assert dataclasses.replace(recipe.optim, lr=1.0) == dataclasses.replace(parent.recipe.optim, lr=1.0)
    assert recipe.augment == parent.recipe.augment
    assert fine_tuning(parent, ["stages.0.1"], 7.0, {}).epochs == 7
    assert fine_tuning(parent, ["stages.0.1"], 7.0, {"epochs": 7}).epochs == 7
    with pytest.raises(RequestError, match=r"epochs is given twice, as 7\.0 and with --set as 5"):
        fine_tuning(parent, ["stages.0.1"], 7.0, {"epochs": 5})


@pytest.mark.parametrize(
    ("keep", "message"), [(6, "2 to 5 can be kept"), (1, r"stages\.1\.0: its shortcut is not the identity"), (0, "have to stay")]
)
def test_numbers_out_of_reach_are_refused_before_any_work(parent: Run, tmp_path: Path, keep: int, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        shorten(parent, keep=keep, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(parent: Run, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for out in (file, file / "short"):
        with pytest.raises(RequestError, match=f"--out {out} cannot be written"):
            shorten(parent, keep=4, out=out)


def test_a_length_that_cannot_be_is_refused_before_any_work(parent: Run, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="epochs"):
        shorten(parent, keep=4, epochs=0.0, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_more_units_kept_in_training_than_are_left_is_refused_before_any_work(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(data, tmp_path / "run", model__depth=14, model__kept_units=5, steps=1)
    monkeypatch.setattr(shortening, "choose", lambda *_: pytest.fail("units were measured"))
    with pytest.raises(RequestError, match=r"--keep 4 is not possible with kept_units=5, .*4 that add would.*kept_units=4"):
        shorten(run, keep=4, out=tmp_path / "short")
    assert not (tmp_path / "short").exists()
    with pytest.raises(pytest.fail.Exception, match="were measured"):
        shorten(run, keep=4, out=tmp_path / "short", set={"model.options.kept_units": 4, "steps": 2})


def test_another_directory_is_refused(parent: Run, child: tuple[Run, dict[str, Any]], data: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="was not made by shortening"):
        shorten(parent, keep=4, out=parent.path)
    with pytest.raises(RequestError, match="shortened to 4 units"):
        shorten(parent, keep=3, out=child[0].path)
    stopped(data, tmp_path / "half", 3)
    with pytest.raises(RequestError, match="is not finished"):
        shorten(tmp_path / "half", keep=2)


def test_a_network_that_concatenates_has_nothing_to_remove(data: Path, tmp_path: Path) -> None:
    run = residua.train(str(data), out=tmp_path / "dense", set={**settings(steps=1), "model.name": "cifar_densenet",
                                                                "model.options": {"depth": 10, "growth": 4}})  # fmt: skip
    with pytest.raises(RequestError, match=r"None of the .* units .* concatenates"):
        shorten(run, keep=1)


def test_latency_is_measured_in_turn() -> None:
    calls: list[str] = []

    class Called(torch.nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(self.name)
            return x

    found = latencies([Called("a"), Called("b")], torch.zeros(1, 1), rounds=2)
    assert calls == ["a", "b"] * 5
    assert all(value > 0 for value in found)


def test_the_command_says_what_went_and_gives_one_document(parent: Run, child: tuple[Run, dict[str, Any]]) -> None:
    arguments = ["shorten", str(parent.path), "--keep", "4", "--out", str(child[0].path), "--set", "steps=8"]
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 0, said.output
    assert f"Removed (change of the mean loss on {child[1]['measured_on']}" in said.stdout
    document = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert_as_documented("shorten", document)
    assert document["after"] == child[1]["after"]
    refused = CliRunner().invoke(app, ["shorten", str(parent.path), "--keep", "9"])
    assert refused.exit_code == 2
    assert "2 to 5 can be kept" in refused.stderr
