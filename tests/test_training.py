"""The loop: a run that was stopped ends in the bytes of one that was not; the same command continues; and it fails by name."""

from __future__ import annotations

import json
import math
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from PIL import Image
from toy_runs import one_thread  # noqa: F401
from trainings import ALL_RANDOM, SIDE, Stop, final_bytes, losses, settings, stopped, train, write_images

import residua
from residua import checkpoints, machine, measured_split, plan
from residua.data import open_data
from residua.dataset import ArraySamples
from residua.errors import RequestError, RunError
from residua.images import decode
from residua.prepare import default_out
from residua.training import Interrupted, request
from residua.views import CentralView


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training images of two classes in PNGs of one size."""
    return write_images(tmp_path_factory.mktemp("data") / "images", {"dark": 12, "light": 12})


# -------------------------------------------------------------------------------------------------------- stop and go


def test_a_stop_after_any_step_changes_no_byte(images: Path, tmp_path: Path) -> None:
    whole = final_bytes(train(images, tmp_path / "whole", **ALL_RANDOM))
    assert set(whole) == {"model.safetensors", "average.safetensors", "optimizer.safetensors"}
    for step in range(1, 8):
        out = tmp_path / f"stopped-{step}"
        stopped(images, out, step, **ALL_RANDOM)
        assert final_bytes(train(images, out, **ALL_RANDOM)) == whole


def test_a_stop_after_every_step_changes_no_byte_and_no_loss(images: Path, tmp_path: Path) -> None:
    whole = train(images, tmp_path / "whole", **ALL_RANDOM)
    for step in range(1, 8):
        stopped(images, tmp_path / "stopped", step, **ALL_RANDOM)
    run = train(images, tmp_path / "stopped", **ALL_RANDOM)
    assert final_bytes(run) == final_bytes(whole)
    assert losses(run) == losses(whole)
    assert [line["values"] for line in run.metrics("val")] == [line["values"] for line in whole.metrics("val")]


def test_a_line_over_several_updates_is_the_same_where_the_run_went_on_between_them(images: Path, tmp_path: Path) -> None:
    fields = {"steps": 4_000, "checkpoints.seconds": 1e-9}  # a line every second step, a checkpoint every step
    stopped(images, tmp_path / "run", 4, **fields)
    whole = losses(residua.open_run(tmp_path / "run"))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    stopped(images, tmp_path / "run", 4, **fields)
    assert losses(residua.open_run(tmp_path / "run")) == whole
    assert len(whole) == 2


@pytest.mark.parametrize("plan", ["fp32-channels-last", "bf16", "exact"])
@pytest.mark.parametrize("optimiser", ["sgd", "adamw", "muon"])
def test_every_optimiser_continues_exactly_under_every_eager_plan(
    images: Path, tmp_path: Path, plan: str, optimiser: str
) -> None:
    fields = {"plan": plan, "optim.name": optimiser, "optim.lr": 0.01, "optim.clip": 1.0, "average.decay": 0.9, "steps": 4}
    whole = train(images, tmp_path / "whole", **fields)
    stopped(images, tmp_path / "stopped", 2, **fields)
    assert final_bytes(train(images, tmp_path / "stopped", **fields)) == final_bytes(whole)


@pytest.mark.parametrize("crop", ["pad", "random-resized", "scale-jitter"])
def test_workers_and_where_the_images_lie_change_no_byte(images: Path, tmp_path: Path, crop: str) -> None:
    fields = {**ALL_RANDOM, "augment.crop": crop, "augment.min_side": 14, "augment.max_side": 18, "steps": 5}
    held = final_bytes(train(images, tmp_path / "held", **fields, data__in_memory=True))
    for workers in (0, 2):
        streamed = {**fields, "data.in_memory": False}
        run = train(images, tmp_path / f"streamed-{workers}", workers=workers, **streamed)
        assert final_bytes(run) == held


@pytest.mark.parametrize("held", [True, False])
def test_where_the_images_lie_is_decided_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bool) -> None:
    def free(mebibytes: int) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=mebibytes * 2**20, total=2**36))

    little, much = 4, 1_000  # a quarter of it is less, and more, than the 1.1 MiB of these images
    images = write_images(tmp_path / "images", {"dark": 400, "light": 400}, side=22)
    fields = {"data.image_size": SIDE, "steps": 4}
    whole = final_bytes(train(images, tmp_path / "whole", **fields))
    free(much if held else little)
    stopped(images, tmp_path / "run", 2, **fields)
    free(little if held else much)
    listener = Stop()
    run = train(images, tmp_path / "run", listener=listener, **fields)
    assert run.manifest["in_memory"] is held
    assert any(("in memory" if held else "streamed") in text for text in listener.notes if text.startswith("Data: "))
    assert final_bytes(run) == whole


@pytest.mark.parametrize(("side", "held"), [(2 * SIDE - 2, True), (2 * SIDE - 1, False)])
def test_images_that_are_seen_at_a_reduced_scale_are_streamed(tmp_path: Path, side: int, held: bool) -> None:
    images = write_images(tmp_path / "images", {"dark": 8, "light": 8}, side=side)
    for path in images.rglob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    file = next(images.rglob("*.jpg"))
    seen = decode(file, channels=3, view=CentralView(SIDE))
    assert seen.equal(CentralView(SIDE)(decode(file, channels=3))) is held
    run = train(images, tmp_path / "run", steps=1, data__image_size=SIDE)
    assert run.manifest["in_memory"] is held
    if not held:
        with pytest.raises(RequestError, match=f"at most {side - 1} pixels"):
            train(images, tmp_path / "held", steps=1, data__image_size=SIDE, data__in_memory=True)


def test_the_number_of_workers_may_change_on_the_way(images: Path, tmp_path: Path) -> None:
    fields = {**ALL_RANDOM, "augment.crop": "random-resized", "data.in_memory": False, "steps": 6}
    whole = final_bytes(train(images, tmp_path / "whole", **fields))
    stopped(images, tmp_path / "stopped", 2, workers=2, **fields)
    stopped(images, tmp_path / "stopped", 4, workers=0, **fields)
    assert final_bytes(train(images, tmp_path / "stopped", workers=1, **fields)) == whole


def test_a_finished_run_is_returned_at_once(images: Path, tmp_path: Path) -> None:
    run = train(images, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != "lock" and path.is_file()}
    listener = Stop()
    again = train(images, tmp_path / "run", listener=listener)
    assert again.finished()
    assert listener.losses == []
    assert any("is finished" in text for text in listener.notes)
    assert final_bytes(again) == final_bytes(run)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != "lock" and path.is_file()}
    assert after == before


def test_the_same_request_leads_to_the_same_directory(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = residua.train(str(images), set=settings(steps=1))
    again = residua.train(str(images), set=settings(steps=1))
    other = residua.train(str(images), set=settings(steps=1, seed=1))
    assert first.path == again.path != other.path
    assert first.path.name.startswith("images-cifar_resnet-fast-")


def test_how_its_path_is_written_and_how_often_it_saves_make_no_other_run(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pets").symlink_to(images)
    monkeypatch.chdir(tmp_path)
    first = residua.train("pets", set=settings(steps=1))
    for source, changes in (("pets/", {}), ("./pets", {}), ("runs/../pets", {"checkpoints.seconds": 10, "checkpoints.keep": 1})):
        listener = Stop()
        again = residua.train(source, set=settings(steps=1, **changes), listener=listener)
        assert again.path == first.path
        assert any("is finished" in text for text in listener.notes)


def test_a_name_of_the_catalogue_and_a_folder_called_so_make_two_runs() -> None:
    names = [default_out(request(source, None, "fast", {})).name for source in ("digits", "./digits", "digits/", ".//digits")]
    assert names == ["digits-fast-8dabc3", *3 * [names[1]]]
    assert names[1] != names[0]


def test_a_changed_recipe_is_refused_with_the_fields_that_differ(images: Path, tmp_path: Path) -> None:
    train(images, tmp_path / "run", steps=1)
    with pytest.raises(RequestError) as caught:
        train(images, tmp_path / "run", steps=1, optim__lr=0.01, seed=3)
    assert "optim.lr: " in str(caught.value)
    assert "there, 0.01 now" in str(caught.value)
    assert "seed: 0 there, 3 now" in str(caught.value)
    assert "To train by the recipe of now, choose another --out." in str(caught.value)
    assert "steps" not in str(caught.value).partition("repeat")[0]


def test_how_often_to_save_may_change(images: Path, tmp_path: Path) -> None:
    stopped(images, tmp_path / "run", 3)
    run = train(images, tmp_path / "run", checkpoints__seconds=1e-9, checkpoints__keep=4)
    assert run.finished()
    assert [path.name for path in checkpoints.available(run.checkpoints)] == [f"step-{step:08d}" for step in (8, 7, 6, 5)]
    assert run.recipe.checkpoints.keep == 2


def test_changed_data_is_refused(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    train(tmp_path / "images", tmp_path / "run", steps=1)
    (tmp_path / "images" / "train" / "dark" / "000.png").unlink()
    with pytest.raises(RequestError, match=r"The data of the run .*images\) has changed since it began, .*Put the data back"):
        train(tmp_path / "images", tmp_path / "run", steps=1)


def test_a_damaged_checkpoint_is_passed_over_by_name_and_the_end_is_the_same(images: Path, tmp_path: Path) -> None:
    whole = final_bytes(train(images, tmp_path / "whole"))
    stopped(images, tmp_path / "run", 3)
    stopped(images, tmp_path / "run", 5)
    file = tmp_path / "run" / "checkpoints" / "step-00000005" / "model.safetensors"
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 1
    file.write_bytes(contents)
    listener = Stop()
    run = train(images, tmp_path / "run", listener=listener)
    assert any("step-00000005 is damaged: model.safetensors" in text for text in listener.notes)
    assert any("continued from step 3 of 8" in text for text in listener.notes)
    assert final_bytes(run) == whole


def test_a_beginning_that_was_cut_short_is_begun_again(images: Path, tmp_path: Path) -> None:
    run = train(images, tmp_path / "run", steps=2)
    expected = final_bytes(run)
    for path in checkpoints.available(run.checkpoints):
        shutil.rmtree(path)
    for name in ("manifest.json", "metrics.jsonl"):
        (run.path / name).unlink()
    shutil.rmtree(run.path / "samples")
    shutil.rmtree(run.path / "tensorboard", ignore_errors=True)
    assert final_bytes(train(images, tmp_path / "run", steps=2)) == expected


def test_a_run_without_a_checkpoint_yet_starts_from_the_same_weights_fitted_to_the_data(images: Path, tmp_path: Path) -> None:
    fields = {
        "model.name": "speed_resnet",
        "model.widths": (8,),
        "model.units": (1,),
        "plan": "fp32",
        "batch_size": 8,
        "steps": 2,
    }
    run = residua.train(str(images), out=tmp_path / "run", workers=0, set=fields)
    expected = final_bytes(run)
    shutil.rmtree(run.checkpoints)
    run.checkpoints.mkdir()
    assert final_bytes(residua.train(str(images), out=tmp_path / "run", workers=0, set=fields)) == expected


@pytest.mark.parametrize(
    ("group", "name", "said"), [("versions", "torch", "torch: 1.0 there, "), ("hardware", "processor", "processor: 1.0 there, ")]
)
def test_going_on_elsewhere_says_what_the_bytes_lose(images: Path, tmp_path: Path, group: str, name: str, said: str) -> None:
    stopped(images, tmp_path / "run", 3)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    manifest[group][name] = "1.0"
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    for expected in (1, 0):  # the second time the run is finished
        listener = Stop()
        train(images, tmp_path / "run", listener=listener)
        assert sum(said in text and "equal to rounding, and not in bytes" in text for text in listener.notes) == expected


def test_the_peak_of_memory_is_that_of_the_training_and_not_of_what_was_tried_before() -> None:
    device = torch.device("cpu")
    held = torch.ones(2**28, dtype=torch.uint8)
    before = machine.peak_memory_mib(device)
    del held
    plan.release(device)
    machine.forget_peak_memory(device)
    after = machine.peak_memory_mib(device)
    if after == before:
        pytest.skip("this system does not let the peak be forgotten")
    assert after < before - 200


def test_a_folder_with_other_things_in_it_is_refused(images: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RequestError, match="is not empty and is not a run"):
        train(images, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "thesis.tex"]


def test_a_wrong_request_leaves_no_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError):
        train(tmp_path / "none", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match="cifar10"):
        residua.train("cifar01")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(images: Path, tmp_path: Path, number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="The same command continues") as caught:
        train(images, tmp_path / "run", listener=Stop(4, number))
    assert caught.value.code == 128 + number
    assert checkpoints.available(tmp_path / "run" / "checkpoints")[0].name == "step-00000004"
    assert signal.getsignal(number) == before


def test_a_signal_in_the_last_step_does_not_undo_the_end(images: Path, tmp_path: Path) -> None:
    assert train(images, tmp_path / "run", listener=Stop(8)).finished()


# ------------------------------------------------------------------------------------------------- what can go wrong


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_step_samples_and_checkpoint(
    images: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunError) as caught:
        train(images, tmp_path / "run", optim__lr=1e30, schedule__warmup=0.0, data__in_memory=False)
    message = str(caught.value)
    saved = checkpoints.available(tmp_path / "run" / "checkpoints")
    assert "The loss is nan at step" in message or "The loss is inf at step" in message
    assert "train/dark/" in message
    assert "train/light/" in message
    assert f"The last good checkpoint is {saved[0]}" in message
    step = int(message.partition(" at step ")[2].partition(";")[0])
    assert step >= int(saved[0].name[-8:])
    lines = [line["step"] for line in residua.open_run(tmp_path / "run").metrics("train")]
    assert lines == list(range(1, step + 1))
    tensors = checkpoints.read(saved[0]).tensors["model"]
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_run_whose_directory_vanishes_fails(images: Path, tmp_path: Path) -> None:
    def vanish() -> None:
        shutil.rmtree(tmp_path / "run")

    with pytest.raises(RunError, match="no longer exists"):
        train(images, tmp_path / "run", listener=Stop(3, then=vanish), checkpoints__seconds=0.001)
    with pytest.raises(RunError, match="no longer exists"):
        train(images, tmp_path / "run", listener=Stop(3, then=vanish), checkpoints__seconds=1_000)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_target_that_stops_being_writable_fails_within_one_save(images: Path, tmp_path: Path) -> None:
    def block() -> None:
        shutil.rmtree(tmp_path / "run" / "checkpoints")
        (tmp_path / "run" / "checkpoints").write_text("")

    listener = Stop(3, then=block)
    with pytest.raises(RunError, match="could not be saved"):
        train(images, tmp_path / "run", listener=listener, checkpoints__seconds=0.001)
    assert len(listener.losses) == 3


def test_a_file_that_turns_unreadable_is_listed_once_and_the_run_goes_on(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    bad = tmp_path / "images" / "train" / "dark" / "003.png"

    def damage() -> None:
        bad.write_bytes(bad.read_bytes()[:60].ljust(bad.stat().st_size, b"\0"))

    listener = Stop(1, then=damage)
    run = train(tmp_path / "images", tmp_path / "run", listener=listener, data__in_memory=False, steps=9)
    lines = run.metrics("unreadable")
    assert [line["values"]["name"] for line in lines] == ["train/dark/003.png"]
    assert sum("003.png" in text for text in listener.notes) == 1
    assert run.finished()
    assert all(math.isfinite(loss) for loss in losses(run))


def test_training_images_that_vanish_stop_the_run_which_goes_on_to_the_same_bytes_when_they_are_back(
    images: Path, tmp_path: Path
) -> None:
    whole = final_bytes(train(images, tmp_path / "whole", data__in_memory=False))
    shutil.copytree(images, tmp_path / "images")
    listener = Stop(3, then=lambda: (tmp_path / "images" / "train").rename(tmp_path / "away"))  # type: ignore[arg-type, return-value]
    with pytest.raises(RunError, match="images are not there any more"):
        train(tmp_path / "images", tmp_path / "run", listener=listener, data__in_memory=False, checkpoints__seconds=1e-9)
    (tmp_path / "away").rename(tmp_path / "images" / "train")
    run = train(tmp_path / "images", tmp_path / "run", data__in_memory=False, checkpoints__seconds=1e-9)
    assert final_bytes(run) == whole
    assert all(line["values"]["loss"] > 0 for line in run.metrics("train"))


def test_training_images_none_of_which_can_be_read_any_more_stop_the_run(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")

    def damage() -> None:
        for file in (tmp_path / "images" / "train").glob("*/*.png"):
            file.write_bytes(file.read_bytes()[:60].ljust(file.stat().st_size, b"\0"))

    with pytest.raises(RunError, match="not one of the last 24 images could be read"):
        train(tmp_path / "images", tmp_path / "run", listener=Stop(1, then=damage), data__in_memory=False)


def test_a_watched_split_of_which_nothing_can_be_read_any_more_fails_by_name(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    listener = Stop(3, then=lambda: shutil.rmtree(tmp_path / "images" / "val"))
    with pytest.raises(RunError, match="Not one of the 16 images of val can be read"):
        train(tmp_path / "images", tmp_path / "run", listener=listener, data__in_memory=False)


def test_images_set_aside_are_not_measured_once_the_data_has_changed(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "images" / "val").rename(tmp_path / "images" / "test")
    run = train(tmp_path / "images", tmp_path / "run", data__holdout=4)
    before = residua.evaluate(run, split="val", save=False)
    assert before.num_samples == 4
    assert "has changed" not in before.note
    first = tmp_path / "images" / "train" / "dark" / "000.png"
    shutil.copyfile(first, first.with_name("new.png"))
    with pytest.raises(RequestError, match="can no longer be told from those it was trained on"):
        residua.evaluate(run, split="val", save=False)
    after = residua.evaluate(run, save=False)
    assert after.split == "test"
    assert "The data has changed since the run was trained on it." in after.note


def test_changed_pixels_of_a_set_in_memory_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train("digits", tmp_path / "run", data__holdout=100, data__image_size=SIDE, steps=1)
    assert "has changed" not in residua.evaluate(run, split="val", save=False).note
    found = open_data("digits")
    train_split, test_split = found.splits["train"], found.splits["test"]
    assert isinstance(train_split, ArraySamples)
    flipped = {"train": replace(train_split, images=train_split.images.flip(-1)), "test": test_split}
    monkeypatch.setattr(measured_split, "open_data", lambda *_args, **_options: replace(found, splits=dict(flipped)))
    assert "The data has changed since the run was trained on it." in residua.evaluate(run, save=False).note
    with pytest.raises(RequestError, match="can no longer be told from those it was trained on"):
        residua.evaluate(run, split="val", save=False)


def test_a_file_that_is_unreadable_from_the_start_weighs_nothing_streamed_or_held(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", {"dark": 12, "light": 12})
    bad = images / "train" / "dark" / "003.png"
    bad.write_bytes(bad.read_bytes()[:60].ljust(bad.stat().st_size, b"\0"))
    held = train(images, tmp_path / "held", data__in_memory=True)
    streamed = train(images, tmp_path / "streamed", data__in_memory=False)
    assert final_bytes(held) == final_bytes(streamed)
    assert losses(held) == losses(streamed)
    assert any("003.png" in item["what"] for item in held.data["findings"]["items"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"optim.lr": -0.1}, "optim.lr = -0.1"),
        ({"optim.lerning_rate": 1}, "optim.lerning_rate"),
        ({"model.dpth": 8}, "dpth"),
        ({"model.name": "resnet21"}, "resnet20"),
        ({"plan": "fp23"}, "fp32"),
        ({"augment.cutout": 40}, "larger than the image"),
        ({"augment.crop": "scale-jitter", "augment.min_side": 8}, "larger than the image"),
        ({"data.holdout": 1_000}, "in val already"),
        ({"model.num_classes": 3}, "the data has 2 classes"),
        ({"model.weights": "nowhere"}, "no run directory or file nowhere"),
        ({"micro_batch": 0}, "micro_batch"),
    ],
)
def test_a_wrong_request_is_refused_before_any_work(images: Path, tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError) as caught:
        train(images, tmp_path / "run", **fields)
    assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "options", "scales", "words"),
    [
        ("speed_resnet", {}, (), "at least 9 pixels, and these have 8. --set data.image_size=9 "),
        ("speed_resnet", {"widths": (4,) * 5, "units": (1,) * 5}, (), "at least 33 pixels, and these have 8. "),
        (
            "speed_resnet",
            {"widths": (4, 4), "units": (1, 1)},
            ((0.0, 0.5),),
            "5 pixels, and these have 4 at augment.scales of 0.5. ",
        ),
        ("cifar_densenet", {"depth": 10}, ((0.0, 0.25),), "at least 4 pixels, and these have 2 at augment.scales of 0.25. "),
        ("densenet_40_12", {}, ((0.0, 0.25),), "have 2 at augment.scales of 0.25. --set data.image_size=14 "),
    ],
)
def test_images_that_are_too_small_for_the_network_are_refused_before_any_work(
    tmp_path: Path, model: str, options: dict[str, Any], scales: tuple[tuple[float, float], ...], words: str
) -> None:
    fields = {**{f"model.{name}": value for name, value in options.items()}, "augment.scales": scales, "steps": 1}
    with pytest.raises(RequestError) as caught:
        residua.train("digits", model=model, out=tmp_path / "run", set=fields)
    assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_images_as_small_as_the_network_takes_are_trained_on(tmp_path: Path) -> None:
    fields = {"model.widths": (4, 4), "model.units": (1, 1), "data.image_size": 10, "augment.scales": ((0.0, 0.5),), "steps": 1}
    assert residua.train("digits", model="speed_resnet", out=tmp_path / "run", set={**fields, "plan": "fp32"}).finished()
    with pytest.raises(RequestError, match="image_size=10 "):
        residua.train("digits", model="speed_resnet", out=tmp_path / "other", set={**fields, "data.image_size": 8})


# ------------------------------------------------------------------------------------------------------ what is computed


def test_minutes_fix_the_number_of_steps_before_the_first(images: Path, tmp_path: Path) -> None:
    run = train(images, tmp_path / "run", minutes=0.05, steps=None)
    assert run.manifest["total_steps"] >= 1
    assert run.finished()
    assert run.metrics("end")[0]["values"]["training_seconds"] < 60


def test_micro_batches_give_the_same_losses_where_no_statistics_are_shared(images: Path, tmp_path: Path) -> None:
    fields = {"model.normalization": "group", "augment.mixup": 0.4, "optim.lr": 0.01, "steps": 4}
    whole = losses(train(images, tmp_path / "whole", **fields))
    for size in (4, 2):
        split = losses(train(images, tmp_path / f"micro-{size}", micro_batch=size, **fields))
        torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-5)


def test_exact_is_the_same_whatever_the_threads(images: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        run = train(images, tmp_path / f"threads-{count}", plan="exact", steps=3, **ALL_RANDOM)
        found.append(final_bytes(run))
        assert run.manifest["threads"] == 1
    torch.set_num_threads(threads)
    assert found[0] == found[1]


def test_the_stored_plan_and_threads_are_used_on_resumption(images: Path, tmp_path: Path) -> None:
    stopped(images, tmp_path / "run", 2, plan="bf16", steps=3)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    run = train(images, tmp_path / "run", plan="bf16", steps=3)
    used = checkpoints.read(checkpoints.available(run.checkpoints)[0]).extra["threads"]
    torch.set_num_threads(threads)
    assert run.manifest["plan"]["name"] == "bf16"
    assert used == run.manifest["threads"] == threads


def test_probing_plans_leaves_the_result_alone(images: Path, tmp_path: Path) -> None:
    chosen = train(images, tmp_path / "auto", plan="auto", steps=3, **ALL_RANDOM)
    direct = train(images, tmp_path / "direct", plan=chosen.manifest["plan"]["name"], steps=3, **ALL_RANDOM)
    assert final_bytes(chosen) == final_bytes(direct)


def test_training_leaves_the_caller_s_generator_as_it_was(images: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(images, tmp_path / "run", steps=1, **ALL_RANDOM)
    assert torch.rand(3).equal(expected)


@pytest.mark.parametrize("batch_size", [5, 23, 24, 1])
def test_any_batch_size_up_to_the_data_trains(images: Path, tmp_path: Path, batch_size: int) -> None:
    run = train(images, tmp_path / "run", batch_size=batch_size, augment__mixup=0.4, steps=6)
    assert run.finished()
    assert run.manifest["steps_per_epoch"] == 24 // batch_size
    assert all(math.isfinite(loss) for loss in losses(run))


def test_a_batch_too_small_for_its_normalisation_is_refused_by_name(images: Path, tmp_path: Path) -> None:
    fields = {"model.name": "resnet18", "model.stem": "imagenet", "data.image_size": 32, "augment.crop": "random-resized"}
    with pytest.raises(RequestError, match="batch_size=1 leaves it one value a channel"):
        residua.train(str(images), out=tmp_path / "run", set={**fields, "batch_size": 1, "plan": "fp32", "steps": 2})


def test_a_last_batch_of_one_image_is_measured(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", {"dark": 12, "light": 13})
    extra = images / "val" / "dark"
    for index in range(241):
        shutil.copy(extra / f"{index % 8:03}.png", extra / f"{index + 8:03}.png")
    run = train(images, tmp_path / "run", steps=1)
    assert run.metrics("val")[0]["values"]["num_samples"] == 257  # one more than an evaluation batch


def test_a_batch_larger_than_the_data_becomes_the_data(images: Path, tmp_path: Path) -> None:
    listener = Stop()
    run = train(images, tmp_path / "run", batch_size=1_000, steps=2, listener=listener)
    assert run.recipe.batch_size == 24
    assert any("larger than the data: 24 is used" in text for text in listener.notes)


def test_a_holdout_is_set_aside_and_watched(tmp_path: Path) -> None:
    run = residua.train("digits", out=tmp_path / "run", set=settings(data__holdout=50, steps=1))
    assert sum(run.data["counts"]["val"]) == 50
    assert run.metrics("val")[0]["values"]["num_samples"] == 50
    whole = residua.train("digits", out=tmp_path / "whole", set=settings(steps=1))
    assert sum(run.data["counts"]["train"]) == sum(whole.data["counts"]["train"]) - 50


@pytest.mark.parametrize("balance", ["sampler", "weights"])
def test_uneven_classes_are_balanced(tmp_path: Path, balance: str) -> None:
    images = write_images(tmp_path / "images", {"many": 20, "few": 4})
    fields = {"data.balance": balance, "augment.mixup": 0.2, "steps": 6}
    whole = train(images, tmp_path / "whole", **fields)
    stopped(images, tmp_path / "stopped", 2, **fields)
    assert final_bytes(train(images, tmp_path / "stopped", **fields)) == final_bytes(whole)


def test_weights_of_a_run_are_the_start_of_another(images: Path, tmp_path: Path) -> None:
    first = train(images, tmp_path / "first", steps=2)
    tiny = {"steps": 1, "optim.lr": 1e-12, "model.weights": str(first.path)}
    second = train(images, tmp_path / "second", **tiny)
    start, end = (residua.load(run).state_dict() for run in (first, second))
    name = "stages.0.0.branch.conv1.weight" if "stages.0.0.branch.conv1.weight" in start else "stem.conv.weight"
    torch.testing.assert_close(end[name], start[name])
    with pytest.raises(RequestError, match="are of another network"):
        train(images, tmp_path / "third", **{**tiny, "model.depth": 14})


def test_weights_for_other_classes_start_all_but_the_classifier(images: Path, tmp_path: Path) -> None:
    other = write_images(tmp_path / "other", {"red": 4, "green": 4, "blue": 4})
    first = train(other, tmp_path / "first", steps=1)
    second = train(images, tmp_path / "second", **{"steps": 1, "optim.lr": 1e-12, "model.weights": str(first.path)})
    start, end = (residua.load(run).state_dict() for run in (first, second))
    torch.testing.assert_close(end["stem.conv.weight"], start["stem.conv.weight"])
    assert end["head.classifier.weight"].shape[0] == 2


def test_the_number_of_measurements_is_held_to_what_is_asked(images: Path, tmp_path: Path) -> None:
    run = train(images, tmp_path / "run", steps=24, evaluations=3)
    steps = [line["step"] for line in run.metrics("val")]
    assert len(steps) == 3
    assert steps[-1] == 24
    assert all(step % run.manifest["steps_per_epoch"] == 0 for step in steps)


def test_grey_images_of_a_small_side_train(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", {"dark": 4, "light": 4}, side=SIDE // 2)
    assert train(images, tmp_path / "run", steps=1, model__in_channels=1).finished()
