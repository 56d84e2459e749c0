"""Metric lines and the times of saving."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import make_run, one_thread  # noqa: F401
from trainings import Stop

from residua import checkpoints
from residua.dataset import FileSamples
from residua.errors import RunError
from residua.images import decode, printable
from residua.record import Checkpointer, Recorder
from residua.runs import Run, open_run, read_lines
from residua.step import Outcome


class OneTensor:
    """Stands where a `Step` does: something with tensors to save."""

    def tensors(self) -> dict[str, dict[str, Any]]:
        """No tensors at all."""
        return {"model": {}}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What `run` is a copy of."""
    return make_run(tmp_path_factory.mktemp("template") / "run", "digits")


@pytest.fixture
def run(template: Run, tmp_path: Path) -> Run:
    """A run of 20 steps, 10 an epoch, without a checkpoint."""
    shutil.copytree(template.path, tmp_path / "run")
    run = open_run(tmp_path / "run")
    for path in checkpoints.available(run.checkpoints):
        path.rename(tmp_path / path.name)
    manifest = {**run.manifest, "total_steps": 20, "steps_per_epoch": 10}
    return Run(run.path, run.recipe, manifest, run.data, run.normalization)


def noted(run: Run, steps: range, first: int = 0) -> Recorder:
    """A recorder that has noted these steps."""
    recorder = Recorder(run, first, 0.0, Stop())
    for step in steps:
        recorder.trained(step, Outcome(float(step), 50.0, 0.1, 8))
    return recorder


def test_a_line_says_step_epoch_split_values_and_seconds(run: Run) -> None:
    noted(run, range(1, 3)).close()
    line = read_lines(run.path / "metrics.jsonl")[1]
    assert set(line) == {"step", "epoch", "split", "values", "seconds"}
    assert (line["step"], line["epoch"], line["split"]) == (2, 0.2, "train")
    assert set(line["values"]) == {"loss", "error", "lr", "images_per_second"}


def test_on_resumption_later_lines_are_cut_back(run: Run) -> None:
    recorder = noted(run, range(1, 9))
    recorder.measured(8, "val", {"loss": 1.0, "top1_error": 50.0})
    recorder.line(8, "end", {})
    recorder.close()
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "split": "tr')
    noted(run, range(6, 8), first=5).close()
    lines = read_lines(run.path / "metrics.jsonl")
    assert [(line["step"], line["split"]) for line in lines] == [(step, "train") for step in range(1, 8)]
    assert (run.path / "metrics.jsonl").read_text().endswith("}\n")


def test_a_long_run_notes_means_over_several_steps(run: Run) -> None:
    long = Run(run.path, run.recipe, {**run.manifest, "total_steps": 6_000}, run.data, run.normalization)
    recorder = Recorder(long, 0, 0.0, Stop())
    for step, (loss, count) in enumerate([(1.0, 10), (2.0, 10), (6.0, 20)], 1):
        recorder.trained(step, Outcome(loss, 0.0, 0.1, count))
    recorder.close()
    lines = read_lines(run.path / "metrics.jsonl")
    assert [(line["step"], line["values"]["loss"]) for line in lines] == [(3, 3.75)]


def test_a_line_after_a_resumption_is_over_all_updates_since_the_one_before(run: Run) -> None:
    long = Run(run.path, run.recipe, {**run.manifest, "total_steps": 6_000}, run.data, run.normalization)
    outcomes = [Outcome(1 / (step + 1), step / 7, 0.1, 8 + step) for step in range(6)]

    def note(recorder: Recorder, steps: range) -> None:
        for step in steps:
            time.sleep(0.005)
            recorder.trained(step, outcomes[step - 1])

    whole = Recorder(long, 0, 0.0, Stop())
    note(whole, range(1, 7))
    whole.close()
    expected = read_lines(run.path / "metrics.jsonl")
    for stop in range(1, 6):
        recorder = Recorder(long, 0, 0.0, Stop())
        note(recorder, range(1, stop + 1))
        Checkpointer(long, OneTensor(), recorder).save(stop)  # type: ignore[arg-type]
        note(recorder, range(stop + 1, 6))  # what is lost
        recorder.close()
        extra = checkpoints.read(long.checkpoints / f"step-{stop:08d}").extra
        recorder = Recorder(long, stop, extra["seconds"], Stop(), extra["pending"])
        note(recorder, range(stop + 1, 7))
        recorder.close()
        lines = read_lines(run.path / "metrics.jsonl")
        names = ("loss", "error", "lr")
        assert [[line["values"][name] for name in names] for line in lines] == [
            [line["values"][name] for name in names] for line in expected
        ]
        rates = [line["values"]["images_per_second"] for line in lines]
        counts = [sum(item.count for item in outcomes[start : start + 3]) for start in (0, 3)]
        assert all(rate <= count / 0.015 for rate, count in zip(rates, counts))


def test_a_checkpoint_of_an_older_version_has_nothing_pending(run: Run) -> None:
    recorder = Recorder(run, 5, 3.0, Stop(), None)
    assert (recorder.waiting, recorder.since) == ([], 3.0)
    recorder.close()


def test_an_unreadable_file_is_noted_once_even_after_a_resumption(run: Run) -> None:
    listener = Stop()
    recorder = Recorder(run, 0, 0.0, listener)
    samples = FileSamples(run.path, [], torch.zeros(0), [], decode)
    recorder.unread(1, (("a.png", "a.png: it is cut short."),), samples)
    recorder.unread(2, (("a.png", "a.png: it is cut short."), ("\u2028b.png", "b.png: it is empty.")), samples)
    recorder.close()
    again = Recorder(run, 2, 0.0, listener)
    again.unread(3, (("\u2028b.png", "b.png: it is empty."),), samples)
    again.close()
    assert listener.notes == ["a.png: it is cut short.", "b.png: it is empty."]
    assert [line["values"]["name"] for line in read_lines(run.path / "metrics.jsonl")] == ["a.png", printable("\u2028b.png")]


def test_time_outside_training_is_not_counted(run: Run) -> None:
    recorder = Recorder(run, 0, 100.0, Stop())
    recorder.pause()
    before = recorder.seconds
    time.sleep(0.05)
    recorder.proceed()
    recorder.trained(1, Outcome(1.0, 0.0, 0.1, 8))
    recorder.close()
    assert 100 <= before <= recorder.seconds < before + 0.05


def test_the_rate_counts_the_time_before_a_pause_and_not_the_pause(run: Run) -> None:
    long = Run(run.path, run.recipe, {**run.manifest, "total_steps": 4_000}, run.data, run.normalization)
    listener = Stop()
    recorder = Recorder(long, 0, 0.0, listener)
    time.sleep(0.05)
    recorder.trained(1, Outcome(1.0, 0.0, 0.1, 8))
    recorder.pause()
    time.sleep(1.0)
    recorder.proceed()
    recorder.trained(2, Outcome(1.0, 0.0, 0.1, 8))
    recorder.close()
    (line,) = read_lines(run.path / "metrics.jsonl")
    assert 16 / 0.5 < line["values"]["images_per_second"] <= 16 / 0.05
    assert line["values"]["images_per_second"] == pytest.approx(16 / line["seconds"])


def test_a_full_disk_is_an_error_that_says_so(run: Run) -> None:
    recorder = Recorder(run, 0, 0.0, Stop())
    recorder.file.close()
    recorder.file = open("/dev/full", "a", encoding="utf-8")  # noqa: PTH123, SIM115
    with pytest.raises(RunError, match="No space left on device"):
        recorder.line(1, "train", {})
    recorder.close()


def test_it_saves_after_the_first_update_then_by_time_then_at_the_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    checkpointer = Checkpointer(run, OneTensor(), Recorder(run, 0, 0.0, Stop()))  # type: ignore[arg-type]
    assert run.recipe.checkpoints.seconds == 60
    saved = []
    for step in range(1, 21):
        clock[0] += 9
        if checkpointer.due(step):
            checkpointer.save(step)
            saved.append(step)
    checkpointer.recorder.close()
    assert saved == [1, 8, 10, 17, 20]  # the first, 60 s later, the epoch's end, 60 s later, the last
    assert [path.name for path in checkpoints.available(run.checkpoints)] == ["step-00000020", "step-00000017"]


def test_short_epochs_do_not_save_each(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    checkpointer = Checkpointer(run, OneTensor(), Recorder(run, 0, 0.0, Stop()))  # type: ignore[arg-type]
    checkpointer.save(1)
    clock[0] += 9
    assert not checkpointer.due(10)
    clock[0] += 1
    assert checkpointer.due(10)
    assert not checkpointer.due(11)
    assert checkpointer.due(20)
    checkpointer.recorder.close()


def test_the_same_step_is_saved_once(run: Run) -> None:
    checkpointer = Checkpointer(run, OneTensor(), Recorder(run, 0, 0.0, Stop()))  # type: ignore[arg-type]
    checkpointer.save(3)
    before = (run.checkpoints / "step-00000003").stat().st_ino
    checkpointer.save(3)
    checkpointer.recorder.close()
    assert (run.checkpoints / "step-00000003").stat().st_ino == before


def test_lines_are_json_whatever_they_say(run: Run) -> None:
    recorder = Recorder(run, 0, 0.0, Stop())
    recorder.line(1, "unreadable", {"name": "犬/\n\"'\u2028\x85.png"})
    recorder.close()
    assert [line["values"]["name"] for line in run.metrics("unreadable")] == ["犬/\n\"'\u2028\x85.png"]


def test_tensorboard_shows_the_same_curves_without_what_was_cut_back(run: Run) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    noted(run, range(1, 9)).close()
    time.sleep(0.01)
    recorder = noted(run, range(6, 8), first=5)
    recorder.measured(7, "val", {"loss": 1.5, "top1_error": 50.0})
    recorder.close()
    curves = EventAccumulator(str(run.path / "tensorboard"))
    curves.Reload()
    assert sorted(curves.Tags()["scalars"]) == [
        "train/error", "train/images_per_second", "train/loss", "train/lr", "val/loss", "val/top1_error",
    ]  # fmt: skip
    assert [(item.step, item.value) for item in curves.Scalars("train/loss")] == [(step, step) for step in range(1, 8)]
    assert [(item.step, item.value) for item in curves.Scalars("val/loss")] == [(7, 1.5)]
