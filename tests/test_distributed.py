"""Two processes under torchrun (gloo): the losses of one process, the same order of samples, every image counted once."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from toy_runs import one_thread  # noqa: F401
from trainings import command, environment, final_bytes, losses, settings, train, write_images

import residua
from residua import checkpoints
from residua.batches import Order, Share, even_cuts
from residua.runs import Run, read_lines

FIELDS = settings(
    model__normalization="group", model__stochastic_depth=0.2, augment__mixup=0.3, augment__flip=True, steps=60,
    optim__name="sgd", optim__lr=0.02,  # Muon's orthogonal steps magnify rounding
)  # fmt: skip
PRIME = 13  # images in val: neither even nor a multiple of anything


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 training images of two classes and 13 to measure."""
    root = write_images(tmp_path_factory.mktemp("data") / "images", {"dark": 15, "light": 15})
    for index in range(3):
        (root / "val" / "light" / f"{index:03}.png").unlink()
    return root


def processes(images: Path, out: Path, fields: dict[str, Any], count: int = 2) -> list[str]:
    """The command that trains with several processes."""
    arguments = command("train", images, "--out", out, **fields)[1:]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *arguments]


def finished(images: Path, out: Path, fields: dict[str, Any], count: int = 2) -> Run:
    """The run of several processes, trained to its end."""
    done = subprocess.run(processes(images, out, fields, count), env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    assert done.stdout.count("Report:") == 1
    return residua.open_run(out)


@pytest.fixture(scope="module")
def pair(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two processes that was not disturbed."""
    return finished(images, tmp_path_factory.mktemp("pair") / "run", FIELDS)


def test_two_processes_follow_the_losses_of_one(images: Path, pair: Run, tmp_path: Path) -> None:
    alone = train(images, tmp_path / "alone", **FIELDS)
    assert pair.manifest["processes"] == 2
    assert pair.manifest["steps_per_epoch"] == alone.manifest["steps_per_epoch"]
    torch.testing.assert_close(losses(pair)[:20], losses(alone)[:20], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses(pair), losses(alone), rtol=0.02, atol=0.01)


def test_every_image_is_measured_exactly_once(images: Path, pair: Run, tmp_path: Path) -> None:
    alone = train(images, tmp_path / "alone", **FIELDS)
    measured, expected = pair.metrics("val")[-1]["values"], alone.metrics("val")[-1]["values"]
    assert measured["num_samples"] == expected["num_samples"] == PRIME
    assert measured["loss"] == pytest.approx(expected["loss"], rel=0.02)
    assert residua.evaluate(pair).to_dict()["num_samples"] == PRIME


def test_two_processes_train_the_head_first_and_the_stem_until_as_one_does(images: Path, tmp_path: Path) -> None:
    fields = {**FIELDS, "optim.head_first": 0.25, "optim.stem_until": 0.5, "steps": 8}
    alone, pair = train(images, tmp_path / "alone", **fields), finished(images, tmp_path / "pair", fields)
    torch.testing.assert_close(losses(pair), losses(alone), rtol=1e-4, atol=1e-5)


def interrupted(images: Path, out: Path, ranks: str, count: int = 2) -> None:
    """A run whose processes of these ranks ("*": all, and what launched them) get a signal after its fifth step."""
    process = subprocess.Popen(
        processes(images, out, FIELDS, count), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while process.poll() is None and len(read_lines(out / "metrics.jsonl")) < 5:
        time.sleep(0.01)
    launcher = psutil.Process(process.pid)
    workers = [child for child in launcher.children() if ranks == "*" or child.environ().get("RANK") == ranks]
    for one in [*workers, *([launcher] if ranks == "*" else [])]:
        one.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=400)
    assert process.returncode != 0
    assert "The same command continues" in said
    reached = residua.open_run(out)
    assert not reached.finished()
    assert checkpoints.available(reached.checkpoints)[0].name >= "step-00000005"
    assert len(reached.metrics("train")) >= 5


@pytest.mark.parametrize("ranks", ["1", "*"])
def test_interrupted_and_continued_two_processes_end_in_the_same_bytes(
    images: Path, pair: Run, tmp_path: Path, ranks: str
) -> None:
    interrupted(images, tmp_path / "run", ranks)
    assert final_bytes(finished(images, tmp_path / "run", FIELDS)) == final_bytes(pair)


@pytest.mark.slow
def test_interrupted_and_continued_three_processes_end_in_the_same_bytes(images: Path, tmp_path: Path) -> None:
    """Of three addends the order decides the rounding."""
    whole = finished(images, tmp_path / "whole", FIELDS, 3)
    interrupted(images, tmp_path / "run", "2", 3)
    assert final_bytes(finished(images, tmp_path / "run", FIELDS, 3)) == final_bytes(whole)


def test_with_batch_statistics_two_processes_train(images: Path, tmp_path: Path) -> None:
    fields = {**FIELDS, "model.normalization": "batch", "average.decay": 0.9, "steps": 40}
    run = finished(images, tmp_path / "run", fields)
    found = losses(run)
    assert all(math.isfinite(loss) for loss in found)
    assert sum(found[-5:]) < sum(found[:5])
    measured, saved = run.metrics("val")[-1]["values"], residua.evaluate(run).to_dict()
    assert measured["num_samples"] == PRIME
    assert measured["top1_error"] == pytest.approx(saved["top1_error"])
    assert measured["loss"] == pytest.approx(saved["nll"], rel=1e-4)


def test_a_wrong_request_is_said_once_without_a_traceback(images: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        processes(images / "none", tmp_path / "run", FIELDS), env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert done.stderr.count("There is no folder") == 1
    assert "residua/training.py" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_plan_that_compiles_is_refused_before_anything_is_done(images: Path, tmp_path: Path) -> None:
    fields = {**FIELDS, "plan": "fp32-compile"}
    done = subprocess.run(
        processes(images, tmp_path / "run", fields), env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert done.stderr.count("'fp32-compile' compiles the network") == 1
    assert "Data:" not in done.stdout
    assert not (tmp_path / "run").exists()


def test_another_number_of_processes_is_refused(images: Path, pair: Run) -> None:
    with pytest.raises(
        residua.RequestError,
        match=r"begun with 2 processes, not 1, .*Continue it with 2 processes, or choose another",
    ):
        train(images, pair.path, **FIELDS)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_the_order_of_samples_does_not_depend_on_the_number_of_processes(world: int, balanced: bool) -> None:
    order = Order(torch.tensor([0, 0, 1, 0, 1, 0, 0, 1, 0, 0, 0]), 4, 7, balanced)
    whole = [draws.tolist() for _, _, draws in order.steps(3, 20, Share())]
    shares = [[draws.tolist() for _, _, draws in order.steps(3, 20, Share(rank, world))] for rank in range(world)]
    assert [list(chain.from_iterable(parts)) for parts in zip(*shares)] == whole


@pytest.mark.parametrize("parts", range(1, 9))
@pytest.mark.parametrize("count", [0, 1, 2, 3, 8, 31, 128])
def test_cuts_never_part_a_pair(count: int, parts: int) -> None:
    cuts = even_cuts(count, parts)
    assert len(cuts) == parts + 1
    assert (cuts[0], cuts[-1]) == (0, count)
    assert cuts == sorted(cuts)
    assert all(cut % 2 == 0 for cut in cuts[:-1]) or count % 2 == 1
