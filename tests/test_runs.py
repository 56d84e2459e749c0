"""The run directory: what is laid out is read back, the wrong things are refused by name, and one process holds it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import make_run, one_thread  # noqa: F401
from trainings import environment

from residua import checkpoints, runs
from residua.errors import RequestError, RunError, RunWarning
from residua.runs import locked, open_run

HOLD = """
import sys, time
from pathlib import Path
from residua.runs import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """A process that holds the lock of `path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    """What `run` is a copy of."""
    return make_run(tmp_path_factory.mktemp("template") / "run", "digits")


@pytest.fixture
def run(template: runs.Run, tmp_path: Path) -> runs.Run:
    """A finished run of one step."""
    shutil.copytree(template.path, tmp_path / "run")
    return open_run(tmp_path / "run")


def test_a_second_process_is_refused_and_told_who_holds_the_run_until_that_one_dies(tmp_path: Path) -> None:
    process = holder(tmp_path / "run")
    try:
        with pytest.raises(RequestError) as caught, locked(tmp_path / "run"):
            pass
        assert f"process {process.pid} on {socket.gethostname()}" in str(caught.value)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with locked(tmp_path / "run"):
            assert (tmp_path / "run" / "lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    finally:
        process.kill()
        process.communicate()


def test_a_stale_lock_file_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").write_text("process 1 on elsewhere, long gone")
    with locked(tmp_path / "run"):
        assert "elsewhere" not in (tmp_path / "run" / "lock").read_text()
    assert (tmp_path / "run").is_dir()


def test_a_directory_that_was_made_for_nothing_is_removed(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="wrong"), locked(tmp_path / "run"):
        raise RequestError("wrong")
    assert not list(tmp_path.iterdir())
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "something").write_text("")
    assert (tmp_path / "run" / "something").exists()


def test_the_directories_above_it_that_were_made_for_nothing_are_removed_and_no_others(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="wrong"), locked(tmp_path / "runs" / "deep" / "run"):
        raise RequestError("wrong")
    assert not list(tmp_path.iterdir())
    (tmp_path / "runs").mkdir()
    with locked(tmp_path / "runs" / "deep" / "run"):
        (tmp_path / "runs" / "deep" / "other").mkdir()
    assert [path.name for path in (tmp_path / "runs" / "deep").iterdir()] == ["other"]
    with pytest.raises(RequestError, match="wrong"), locked(tmp_path / "runs" / "more" / "run"):
        raise RequestError("wrong")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["deep"]


def test_a_directory_that_was_there_stays(tmp_path: Path) -> None:
    with locked(tmp_path):
        pass
    assert tmp_path.is_dir()


@pytest.mark.parametrize("place", ["run", "run/deeper"])
def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RequestError, match="cannot be written"), locked(tmp_path / place):
        pass


def test_a_run_is_read_back_as_it_was_laid_out(run: runs.Run) -> None:
    again = open_run(run.path)
    assert (again.recipe, again.manifest, again.data) == (run.recipe, run.manifest, run.data)
    assert again.normalization["mean"].equal(run.normalization["mean"])
    assert again.finished()


def test_its_network_is_the_trained_one(run: runs.Run) -> None:
    network = runs.load(run.path)
    stored = checkpoints.read(run.checkpoints / "step-00000001").tensors["model"]
    assert not network.training
    assert all(tensor.equal(stored[name]) for name, tensor in network.state_dict().items())


def test_the_average_is_loaded_unless_the_last_weights_are_asked_for(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "digits", average=True)
    stored = checkpoints.read(run.checkpoints / "step-00000001").tensors
    name = "head.classifier.weight"
    assert runs.load(run).state_dict()[name].equal(stored["average"][name])
    assert runs.load(run, which="last").state_dict()[name].equal(stored["model"][name])
    with pytest.raises(RequestError, match="'final' or 'last', not 'Final'"):
        runs.load(run, which="Final")


def test_a_missing_directory_and_one_that_is_no_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="There is no run directory"):
        open_run(tmp_path / "none")
    with pytest.raises(RequestError, match=r"it has no manifest\.json"):
        open_run(tmp_path)


def test_a_run_of_another_format_is_refused_with_both_numbers(run: runs.Run) -> None:
    (run.path / "manifest.json").write_text(json.dumps({**run.manifest, "format": 99}))
    with pytest.raises(RequestError, match="has format 99; this version reads format 1"):
        open_run(run.path)


@pytest.mark.parametrize("name", ["manifest.json", "recipe.json", "data.json", "normalization.safetensors"])
def test_a_damaged_file_is_refused(run: runs.Run, name: str) -> None:
    for contents in (b"", b"\xff\xfe", b"[]", b"{", b"null", b'{"format": null}', b"3", b"[" * 100_000):
        (run.path / name).write_bytes(contents)
        with pytest.raises(RequestError):
            open_run(run.path)


@pytest.mark.parametrize("name", ["recipe.json", "data.json", "normalization.safetensors"])
def test_a_missing_file_is_refused(run: runs.Run, name: str) -> None:
    (run.path / name).unlink()
    with pytest.raises(RequestError, match="is damaged"):
        open_run(run.path)


@pytest.mark.parametrize("name", ["os.system", "builtins:eval", "../resnet20", "residua.models.resnet"])
def test_a_recipe_can_name_nothing_but_what_is_in_the_catalogue(run: runs.Run, name: str) -> None:
    recipe: dict[str, Any] = json.loads((run.path / "recipe.json").read_text())
    recipe["model"]["name"] = name
    (run.path / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(RequestError, match="There is no"):
        runs.load(run.path)


def test_a_run_without_a_checkpoint_has_no_network_yet(run: runs.Run) -> None:
    for path in checkpoints.available(run.checkpoints):
        (path / "state.json").unlink()
        path.rename(run.path / path.name)
    with pytest.raises(RequestError, match="has no checkpoint yet"):
        runs.load(run.path)


def test_a_run_with_one_damaged_checkpoint_uses_the_one_before(run: runs.Run) -> None:
    newer = checkpoints.write(run.checkpoints, checkpoints.Checkpoint(2, {"model": {"x": torch.ones(3)}}, {}))
    (newer / "model.safetensors").write_bytes(b"damaged")
    with pytest.warns(RunWarning) as caught:
        assert runs.load(run.path) is not None
    (warning,) = caught
    assert f"The checkpoint {newer} is damaged: model.safetensors does not match" in str(warning.message)
    assert "The weights after step 1 of 1 are used" in str(warning.message)
    assert warning.filename == __file__
    for path in checkpoints.available(run.checkpoints):
        (path / "state.json").write_bytes(b"")
    with pytest.raises(RunError, match="No checkpoint can be used"):
        runs.load(run.path)


def test_a_run_that_is_not_finished_says_which_weights_are_used(run: runs.Run) -> None:
    (run.path / "manifest.json").write_text(json.dumps({**run.manifest, "total_steps": 2_000}))
    with pytest.warns(RunWarning, match=r"run is not finished\. The weights after step 1 of 2,000 are used"):
        runs.load(run.path)


@pytest.mark.parametrize("field", ["format", "total_steps"])
def test_a_manifest_without_a_field_is_refused_by_file_and_field(run: runs.Run, field: str) -> None:
    file = run.path / "manifest.json"
    file.write_text(json.dumps({name: value for name, value in run.manifest.items() if name != field}))
    for use in (runs.load, open_run):
        with pytest.raises(RequestError, match=rf"is damaged: {file} has no field {field}\. Put the file back"):
            use(run.path)
    file.write_text(json.dumps({**run.manifest, field: "many"}))
    with pytest.raises(RequestError, match=rf"in {file} the field {field} is 'many', not a whole number"):
        runs.load(run.path)


@pytest.mark.parametrize(("field", "wrong", "words"), [
    ("steps_per_epoch", 2.5, "a whole number"), ("processes", True, "a whole number"), ("data_fingerprint", 7, "a text"),
    ("plan", "bf16", "an object"), ("versions", None, "an object"), ("command", {}, "a list"),
])  # fmt: skip
def test_a_field_of_another_kind_is_refused_and_a_missing_one_where_it_is_needed(
    run: runs.Run, field: str, wrong: object, words: str
) -> None:
    file = run.path / "manifest.json"
    file.write_text(json.dumps({**run.manifest, field: wrong}))
    with pytest.raises(
        RequestError, match=rf"in {file} the field {field} is {re.escape(repr(wrong))}, not {words}.* Put the file"
    ):
        open_run(run.path)
    file.write_text(json.dumps({name: value for name, value in run.manifest.items() if name != field}))
    with pytest.raises(RequestError, match=rf"{file} has no field {field}\. Put the file back"):
        open_run(run.path).recorded(field)


def test_a_run_whose_last_checkpoint_is_damaged_is_not_shipped(run: runs.Run, tmp_path: Path) -> None:
    whole = checkpoints.read(run.checkpoints / "step-00000001")
    checkpoints.write(run.checkpoints, checkpoints.Checkpoint(0, whole.tensors, whole.extra))
    newer = checkpoints.write(run.checkpoints, whole)
    (newer / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"step-00000001 is damaged: model\.safetensors"):
        runs.ship(run.path, tmp_path / "shipped")
    assert not (tmp_path / "shipped").exists()


def test_weights_of_another_network_are_refused_with_the_list_of_keys(run: runs.Run, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", "digits", classes=("yes", "no"))
    weights = checkpoints.read(other.checkpoints / "step-00000001").tensors["model"]
    weights["extra"] = weights.pop("stem.conv.weight")
    with pytest.raises(RequestError) as caught:
        runs.load_weights(run.build(), weights, "somewhere")
    message = str(caught.value)
    assert "The weights in somewhere are of another network" in message
    assert "extra is unexpected" in message
    assert "stem.conv.weight is missing" in message
    assert "head.classifier.weight has shape (2, 64) instead of (7, 64)" in message


def test_a_long_list_of_keys_is_cut(run: runs.Run) -> None:
    with pytest.raises(RequestError, match=r"; and \d+ more"):
        runs.load_weights(run.build(), {}, "somewhere")


def test_where_a_beginning_was_cut_short_a_run_may_begin(run: runs.Run, tmp_path: Path) -> None:
    assert not runs.is_vacant(run.path)
    for path in checkpoints.available(run.checkpoints):
        path.rename(tmp_path / path.name)
    (run.path / "manifest.json").rename(run.path / ".manifest.json.aside")
    assert runs.is_vacant(run.path)
    (run.path / "holiday.jpg").write_bytes(b"")
    assert not runs.is_vacant(run.path)


def test_a_metric_line_that_was_cut_short_is_left_out(run: runs.Run) -> None:
    lines = [{"step": step, "split": "train", "values": {}} for step in (1, 2)]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "spl')
    assert [line["step"] for line in run.metrics()] == [1, 2]
    assert run.metrics("val") == []


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "file"
    runs.write_atomically(file, "old")
    with pytest.raises(TypeError):
        runs.write_atomically(file, 3)  # type: ignore[arg-type]
    assert file.read_text() == "old"
    runs.write_atomically(file, b"new")
    assert file.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir() if path.name != ".file.aside"] == ["file"]
