"""Trained networks that come with the package: taken by name wherever a run is, and never written into."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from toy_runs import one_thread  # noqa: F401
from trainings import train

import residua
from residua import runs
from residua.analyzing import analyze
from residua.errors import RequestError
from residua.report import write_report
from residua.shortening import shorten

NAME = "resnet8.digits"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    """A run of a few steps on the digits that keeps an average."""
    run = train("digits", tmp_path_factory.mktemp("trained") / "run", steps=30, average__decay=0.5)
    residua.evaluate(run)
    return run


@pytest.fixture
def package(trained: runs.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that holds that run as NAME; the working directory is another, empty one."""
    monkeypatch.setattr(runs, "SHIPPED", tmp_path / "package")
    runs.ship(trained, tmp_path / "package" / NAME)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "package"


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def test_what_is_shipped_is_the_run_without_its_optimiser(package: Path, trained: runs.Run) -> None:
    opened = residua.open_run(NAME)
    assert runs.shipped() == [NAME]
    assert (opened.recipe, dict(opened.manifest)) == (trained.recipe, dict(trained.manifest))
    assert {path.name for path in package.rglob("*.safetensors")} == {
        "model.safetensors", "average.safetensors", "normalization.safetensors"}  # fmt: skip
    for which in ("final", "last"):
        ours, theirs = (runs.load(run, which=which).state_dict() for run in (opened, trained))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_it_is_used_by_its_name_and_stays_as_it_is(package: Path, trained: runs.Run) -> None:
    before = contents(package)
    Image.fromarray(torch.full((8, 8), 99, dtype=torch.uint8).numpy()).save("picture.png")
    assert residua.predict(NAME, "picture.png") == residua.predict(trained, "picture.png")
    found, own = residua.evaluate(NAME), residua.evaluate(trained, save=False)
    assert (found.top1_error, found.nll) == (own.top1_error, own.nll)
    assert Path(found.saved or "").is_relative_to(f"runs/{NAME}")
    assert Path(found.saved or "").is_file()
    page = write_report(NAME)
    assert page == Path(f"runs/{NAME}/report.html")
    assert f"{found.top1_error:.2f}" in page.read_text(encoding="utf-8")
    assert contents(package) == before


@pytest.mark.usefixtures("package")
def test_a_training_starts_from_it() -> None:
    run = train("digits", Path("tuned"), steps=1, model__weights=NAME, optim__lr=1e-9)
    start, end = runs.load(residua.open_run(NAME)).state_dict(), runs.load(run, which="last").state_dict()
    weights = [name for name in start if name.endswith("weight")]
    assert all(torch.allclose(start[name], end[name], atol=1e-6) for name in weights)


@pytest.mark.usefixtures("package")
def test_a_folder_of_that_name_comes_first() -> None:
    Path(NAME).mkdir()
    with pytest.raises(RequestError, match="not a run directory"):
        residua.open_run(NAME)


@pytest.mark.usefixtures("package")
def test_a_name_that_is_nearly_right_gets_the_right_one() -> None:
    with pytest.raises(RequestError, match=f"no run directory resnet8-digits. Did you mean {NAME}, which comes with residua?"):
        residua.open_run("resnet8-digits")
    with pytest.raises(RequestError, match=f"With residua come: {NAME}"):
        residua.open_run("somewhere/else")


def test_a_run_that_was_never_evaluated_can_be_shipped_analyzed_and_shortened(
    trained: runs.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(trained.path, bare, ignore=shutil.ignore_patterns("evaluations"))
    monkeypatch.setattr(runs, "SHIPPED", tmp_path / "package")
    runs.ship(bare, tmp_path / "package" / NAME)
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path / "package")
    analyze(NAME, only=["responses"], minutes=1)
    assert Path(f"runs/{NAME}/analysis.html").is_file()
    child, _ = shorten(NAME, keep=2, set={"steps": 1})
    assert child.path == Path(f"runs/{NAME}-keep2")
    assert contents(tmp_path / "package") == before


def test_only_what_is_finished_is_shipped_and_over_nothing(package: Path, trained: runs.Run, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is there already"):
        runs.ship(trained, package / NAME)
    for path in (tmp_path / "package" / NAME / "checkpoints").iterdir():
        path.rename(path.with_name("step-00000007"))
    with pytest.raises(RequestError, match="is not finished"):
        runs.ship(NAME, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_networks_that_come_along_are_small_whole_and_of_no_machine(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), (90, 120, 200)).save(tmp_path / "picture.png")
    assert "resnet20.cifar10" in runs.shipped()
    for name in runs.shipped():
        files = [path for path in (runs.SHIPPED / name).rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) < 2**21
        texts = [path.read_text(encoding="utf-8") for path in files if path.suffix in (".json", ".jsonl")]
        assert not any(re.search(r'"/|/(home|root|tmp|work)/', text) for text in texts)
        run = residua.open_run(name)
        assert run.finished()
        (found,) = residua.predict(name, tmp_path / "picture.png", device="cpu")
        assert found.label in run.classes


def test_resnet20_has_the_error_on_cifar10_that_its_manifest_says() -> None:
    folder = Path(os.environ.get("RESIDUA_DATA", ""))
    if not (folder / "cifar-10-batches-py").is_dir():
        pytest.skip("RESIDUA_DATA names no folder with cifar-10-batches-py")
    run = residua.open_run("resnet20.cifar10")
    assert residua.evaluate(run, data_dir=folder, device="cpu", save=False).top1_error == pytest.approx(
        run.metrics("test")[-1]["values"]["top1_error"], abs=0.1
    )
