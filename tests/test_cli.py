"""The command line: what it writes where, its exit codes, its options, and a readable message for everything that is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from json_page import assert_as_documented
from PIL import Image
from toy_runs import one_thread  # noqa: F401
from trainings import command, environment, start, write_images
from typer.main import get_command
from typer.testing import CliRunner, Result

from residua import checkpoints
from residua.cli import app
from residua.runs import read_lines

TINY = ("--model", "cifar_resnet", "--set", "model.depth=8", "--plan", "fp32", "--batch-size", "8", "--set", "steps=2")


def residua(*arguments: str | Path) -> Result:
    """The command, called in this process; its exit code, stdout and stderr."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def document(*arguments: str | Path) -> Any:
    """What the command writes with --json."""
    result = residua(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refused(*arguments: str | Path, code: int = 2) -> str:
    """The message of a command that fails: on stderr alone, without a traceback."""
    result = residua(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six classes with German, Japanese and spaced names; one file of val that cannot be decoded."""
    names = ("Äpfel", "リンゴ", "red apple", "d", "e", "f")
    root = write_images(tmp_path_factory.mktemp("data") / "images", dict.fromkeys(names, 4))
    bad = root / "val" / "d" / "bad.png"
    bad.write_bytes((root / "val" / "d" / "000.png").read_bytes()[:80])
    return root


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run, and what its training wrote with --json."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return out, document("train", images, *TINY, "--out", out, "--set", "data.max_bad=0.5")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small folder of two classes, to be damaged."""
    return write_images(tmp_path / "images", {"dark": 6, "light": 6})


@pytest.fixture
def run(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged."""
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run"


# ------------------------------------------------------------------------------------------------------ JSON, as documented


def test_models_inspect_and_doctor_write_what_is_documented() -> None:
    assert_as_documented("models", document("models"))
    assert_as_documented("inspect", document("inspect", "plain20"), document("inspect", "resnet20"))
    assert_as_documented("doctor", document("doctor"))


def test_train_writes_what_is_documented(trained: tuple[Path, dict[str, Any]]) -> None:
    out, found = trained
    assert_as_documented("train", found)
    assert found["finished"] is True
    assert Path(found["run"]) == out
    assert Path(found["report"]).is_file()
    assert found["metrics"]["steps"] == 2


def test_evaluate_predict_report_and_doctor_write_what_is_documented(trained: tuple[Path, dict[str, Any]], images: Path) -> None:
    run = trained[0]
    dense = document("evaluate", run, "--protocol", "dense", "--scales", "12,16")
    single = document("evaluate", run)
    assert_as_documented("evaluate", single, dense, document("evaluate", run, run))
    assert (single["num_samples"], single["num_unreadable"]) == (48, 1)
    entries = document("predict", run, images / "val", "--top", "2")
    assert_as_documented("predict", entries)
    assert len(entries) == 49
    assert [entry["path"] for entry in entries if entry["error"]] == [str(images / "val" / "d" / "bad.png")]
    header = residua("predict", run, images / "val", "--top", "2", "--csv").stdout.splitlines()[0]
    assert header == "path,label,probability,error,label_2,probability_2"
    assert_as_documented("report", document("report", run))
    assert_as_documented("doctor DATA", document("doctor", images), document("doctor", "digits"))


@pytest.mark.slow
def test_doctor_writes_what_is_documented_of_plans() -> None:
    """Every way of computing an update, the compiled ones too."""
    found = document("doctor", "--plan", "cifar_resnet", "--set", "depth=8", "--batch-size", "16", "--image-size", "16")
    assert_as_documented("doctor --plan", found)


# ------------------------------------------------------------------------------------------------------------- the options

OPTIONS = {
    "models": "pattern --json --debug",
    "inspect": "model --image-size --set --svg --unfold --json --debug",
    "train": "data --model --recipe --epochs --minutes --batch-size --seed --device --workers --weights --plan --exact --out "
    "--data-dir --set --json --debug",
    "evaluate": "runs --data --split --protocol --scales --batch-size --device --workers --data-dir --json --debug",
    "predict": "run files --top --csv --device --workers --json --debug",
    "shorten": "run --keep --epochs --out --device --workers --data-dir --set --json --debug",
    "analyze": "runs --only --minutes --data --split --out --device --data-dir --json --debug",
    "reproduce": "names --budget --minutes --seeds --verify --keep --out --device --workers --data-dir --json --debug",
    "report": "run --json --debug",
    "doctor": "data --plan --image-size --batch-size --set --data-dir --json --debug",
}


def test_the_verbs_and_their_options_are_these() -> None:
    """Options never leave, so think twice before one is added here; a field of the recipe needs none."""
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    found = {
        verb: " ".join(max(p.opts, key=len) for p in command.params if "--help" not in p.opts) for verb, command in verbs.items()
    }
    assert found == OPTIONS


@pytest.mark.parametrize("verb", OPTIONS)
def test_every_verb_explains_itself(verb: str) -> None:
    result = residua(verb, "--help")
    assert result.exit_code == 0
    for option in OPTIONS[verb].split():
        assert not option.startswith("--") or option in result.stdout


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys\nsys.argv = ['residua', '--help']\nfrom residua.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'scipy', 'sklearn', 'PIL', 'pydantic', 'matplotlib', 'jinja2', 'psutil'}\n"
        "sys.exit(' '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    print(f"residua --help: {time.perf_counter() - began:.2f} s with the interpreter's start")  # noqa: T201
    assert (done.returncode, done.stderr) == (0, "")
    assert "train" in done.stdout


# ---------------------------------------------------------------------------------------------------- where things are said


def test_results_go_to_stdout_and_all_else_to_stderr(folder: Path, tmp_path: Path) -> None:
    result = residua("train", folder, *TINY, "--out", tmp_path / "run")
    assert result.exit_code == 0
    assert re.match(r"Val: top-1 error \d+\.\d\d % \(accuracy", result.stdout)
    assert f"Run:    {tmp_path / 'run'}\nReport: {tmp_path / 'run' / 'report.html'}\n" in result.stdout
    for text in ("Data: ", "Plan: fp32", "step 2/2"):
        assert text in result.stderr
        assert text not in result.stdout
    again = residua("train", folder, *TINY, "--out", tmp_path / "run")
    assert again.exit_code == 0
    assert "is finished" in again.stderr


def test_tables_are_written_for_people(trained: tuple[Path, dict[str, Any]], images: Path) -> None:
    run = trained[0]
    assert re.search(r"^resnet20 +20 +269,722 ", residua("models", "resnet2*").stdout, re.MULTILINE)
    page = residua("inspect", "resnet20").stdout
    assert page.startswith("resnet20 has residual connections.")
    assert "512 = 2^9 paths of 2 to 20 weight layers" in page
    assert "9 units, 269,722 parameters" in page
    assert "リンゴ" in residua("evaluate", run).stdout
    assert "Äpfel" in residua("doctor", images).stdout
    assert "Matrix products" in residua("doctor").stdout
    assert residua("report", run).stdout.strip() == str(run / "report.html")
    predicted = residua("predict", run, images / "val" / "d", "--csv")
    assert predicted.exit_code == 0
    assert len(predicted.stdout.strip().splitlines()) == 10
    assert "1 of 9 files could not be read" in predicted.stderr


def test_class_names_survive_a_terminal_that_cannot_show_them(trained: tuple[Path, dict[str, Any]], images: Path) -> None:
    strange = os.fsencode(images.parent / "pho") + b"\xff.png"
    shutil.copy(images / "val" / "d" / "000.png", strange)
    for arguments in (["predict", str(trained[0]), os.fsdecode(strange), "--json"], ["evaluate", str(trained[0])]):
        done = subprocess.run(
            [sys.executable, "-m", "residua", *arguments],
            env=environment(PYTHONIOENCODING="ascii"),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "--json" not in arguments or json.loads(done.stdout.decode("ascii"))[0]["error"] is None


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = residua("evaluate", tmp_path / "none", "--debug")
    assert result.exit_code == 1
    assert "There is no run directory" in str(result.exception)


# -------------------------------------------------------------------------------------------------------- what can be wrong


def png(width: int, height: int) -> bytes:
    """A small file that claims to be an image of this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1_000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["models", "resnt20"], ["resnt20", "'resnet20'"]),
        (["inspect", "resnet21"], ["resnet21", "'resnet20'"]),
        (["inspect", "resnet20", "--set", "shortcutt=B"], ["shortcutt", "shortcut"]),
        (["train", "--model", "resnet21"], ["resnet21", "'resnet20'"]),
        (["train", "--recipe", "fats"], ["fats", "'fast'", "docs/command-line.md"]),
        (["train", "--recipe", "none.toml"], ["There is no recipe file none.toml"]),
        (["train", "--set", "optim.lernrate=1"], ["optim.lernrate", "optim.lr"]),
        (["train", "--set", "optim.lr"], ["field=value"]),
        (["train", "--set", "optim.lr=-0.1"], ["optim.lr = -0.1", "greater than 0"]),
        (["train", "--set", "augment.crop=center"], ["augment.crop", "pad"]),
        (["train", "--set", "data.image_size=300", "--set", "augment.crop=scale-jitter"], ["256", "300"]),
        (["train", "--set", "augment.cutout=9"], ["cutout", "larger than the image"]),
        (["train", "--set", "steps=3", "--set", "epochs=2"], ["one length"]),
        (["train", "--plan", "fp33"], ["fp33", "fp32"]),
        (["train", "--exact", "--plan", "bf16"], ["contradicts"]),
        (["train", "--epochs", "1", "--set", "epochs=2"], ["epochs is given twice, as 1.0 and with --set as 2"]),
        (["train", "--model", "resnet20", "--set", "model.name=plain20"], ["model.name is given twice", "as 'resnet20'"]),
        (["train", "digits", "--set", "data.source=cifar10"], ["data.source is given twice", "'digits'", "'cifar10'"]),
        (["train", "--seed", "1", "--set", "seed=2"], ["seed is given twice"]),
        (["train", "--exact", "--set", "plan=bf16"], ["plan is given twice", "'exact'", "'bf16'"]),
        (["train", "--device", "cuda:99"], ["--device cuda:99"]),
        (["train", "--device", "tpu3"], ["--device tpu3"]),
        (["train", "--epochs", "0"], ["epochs"]),
        (["train", "--batch-size", "0"], ["batch_size"]),
        (["train", "cifar11"], ["cifar11", "'cifar10'"]),
        (["train", "./no/such/folder"], ["There is no folder './no/such/folder'"]),
        (["train", "~nobody_is_called_so/pets"], ["There is no folder '~nobody_is_called_so/pets'"]),
        (["train", "--set", "model.num_classes=7"], ["num_classes = 7", "10 classes"]),
        (["train", "--weights", "nowhere"], ["nowhere"]),
        (["evaluate", "nowhere"], ["There is no run directory nowhere"]),
        (["predict", "nowhere", "nothing.png"], ["nothing.png"]),
        (["analyze", "nowhere"], ["There is no run directory nowhere"]),
        (["report", "nowhere"], ["There is no run directory nowhere"]),
        (["doctor", "./no/such/folder"], ["There is no folder"]),
    ],
)  # fmt: skip
def test_a_wrong_request_is_one_readable_line_with_exit_code_2(
    arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused(*arguments)
    assert message.startswith("residua: ")
    assert all(word in message for word in words), message
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_run_that_is_not_there_is_told_with_the_nearest_and_with_what_a_run_is(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    run.rename(tmp_path / "runs" / "digits-resnet20-fast-1a2b3c")
    monkeypatch.chdir(tmp_path)
    for given in ("runs/digits-resnet20-fast", "digits-resnet20", str(tmp_path / "runs" / "digits-resnet20-1a2b3c"), "runs"):
        message = refused("evaluate", given)
        assert "digits-resnet20-fast-1a2b3c?" in message, message
    assert "A run directory is the folder that `residua train` writes" in refused("evaluate", "elsewhere/x")


def test_a_file_that_is_not_there_is_told_with_where_it_was_looked_for(run: Path, tmp_path: Path) -> None:
    assert refused("predict", run, tmp_path / "zzz.jpg").endswith(f"zzz.jpg. Looked in {tmp_path}.")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "Memory ran out. A smaller --batch-size takes less"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate "
                      "2097152000 bytes. Error code 12 (Cannot allocate memory)"), "when 2,000 MiB more were asked for"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139 GiB"),
         "on the GPU when 20.00 GiB more were asked for"),
    ],
)  # fmt: skip
def test_memory_that_runs_out_is_one_message(run: Path, error: Exception, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("residua.evaluation.evaluate", fails)
    assert words in refused("evaluate", run, code=1)
    assert residua("evaluate", run, "--debug").exception is error


def test_an_error_of_ours_keeps_its_traceback(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("a mistake in the program")

    monkeypatch.setattr("residua.evaluation.evaluate", fails)
    assert isinstance(residua("evaluate", run).exception, RuntimeError)


def test_an_unknown_verb_or_option_is_a_wrong_request() -> None:
    assert residua("trian").exit_code == 2
    assert residua("train", "--epoch", "3").exit_code == 2
    assert residua("train", "--workers", "-1").exit_code == 2
    assert residua("evaluate").exit_code == 2


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def one_class(folder: Path) -> None:
    shutil.rmtree(folder / "train" / "dark")
    shutil.rmtree(folder / "val" / "dark")


def one_image(folder: Path) -> None:
    image = (folder / "train" / "dark" / "000.png").read_bytes()
    empty(folder)
    (folder / "dark").mkdir()
    (folder / "dark" / "000.png").write_bytes(image)


def nothing_but_text(folder: Path) -> None:
    for file in folder.rglob("*.png"):
        file.write_text("no image")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (empty, "no image"),
        (one_class, "at least two classes"),
        (one_image, "at least two classes"),
        (nothing_but_text, "cannot be read"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(folder)
    message = refused("train", folder, *TINY, "--out", tmp_path / "run")
    assert words in message
    assert not (tmp_path / "run").exists()


def zero_bytes(file: Path) -> None:
    file.write_bytes(b"")


def truncated(file: Path) -> None:
    Image.effect_noise((64, 64), 80).convert("RGB").save(file, "JPEG")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def text(file: Path) -> None:
    file.write_text("<html>404</html>")


def directory(file: Path) -> None:
    file.mkdir()


def bomb(file: Path) -> None:
    file.write_bytes(png(50_000, 50_000))


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (zero_bytes, "empty file"),
        (truncated, "undecodable"),
        (text, "unreadable"),
        (directory, "folders named like images"),
        (bomb, "unreadable"),
    ],
)
def test_one_bad_file_is_listed_by_name_and_the_run_goes_on(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], kind: str
) -> None:
    damage(folder / "train" / "dark" / "x.jpg")
    result = residua("train", folder, *TINY, "--set", "data.max_bad=0.2", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert f"Data check: 1 {kind}" in result.stderr
    assert "x.jpg" in result.stderr
    found = json.loads((tmp_path / "run" / "data.json").read_text())["findings"]["items"]
    assert [item["kind"] for item in found] == [kind]
    assert "x.jpg" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    predicted = residua("predict", tmp_path / "run", folder / "train" / "dark")
    assert predicted.exit_code == 0
    assert kind == "folders named like images" or "x.jpg" in predicted.stderr


def test_one_flipped_byte_is_refused_by_name_and_the_checkpoint_before_is_used(run: Path) -> None:
    newest, before = checkpoints.available(run / "checkpoints")
    file = newest / "model.safetensors"
    contents = bytearray(file.read_bytes())
    contents[-1] ^= 1
    file.write_bytes(contents)
    result = residua("evaluate", run)
    assert result.exit_code == 0
    assert "step-00000002 is damaged: model.safetensors does not match its checksum" in result.stderr
    assert result.stderr.count("residua: The checkpoint ") == result.stderr.count("The weights after step 1 of 2 are used.") == 1
    (before / "state.json").write_bytes(b"")
    message = refused("evaluate", run, code=1)
    assert "step-00000002 is damaged: model.safetensors does not match its checksum" in message


def test_weights_of_another_network_are_refused_with_the_keys(run: Path, tmp_path: Path, images: Path) -> None:
    message = refused(
        "train",
        images,
        *TINY,
        "--set",
        "model.depth=14",
        "--weights",
        run,
        "--out",
        tmp_path / "other",
        "--set",
        "data.max_bad=0.5",
    )
    assert "are of another network" in message
    assert "is missing" in message


def test_a_batch_larger_than_the_data_and_a_last_batch_of_one_train(folder: Path, tmp_path: Path) -> None:
    result = residua("train", folder, *TINY, "--batch-size", "500", "--out", tmp_path / "large")
    assert result.exit_code == 0
    assert "The batch of 500 is larger than the data: 12 is used." in result.stderr
    result = residua("train", folder, *TINY, "--batch-size", "11", "--out", tmp_path / "one-left")
    assert result.exit_code == 0
    assert residua("evaluate", tmp_path / "one-left", "--batch-size", "15").exit_code == 0


def test_another_recipe_on_the_same_directory_is_refused_with_the_command_that_began_it(run: Path, images: Path) -> None:
    message = refused("train", images, *TINY, "--set", "data.max_bad=0.5", "--seed", "7", "--out", run)
    assert "seed: 0 there, 7 now" in message


def test_a_target_that_cannot_be_written_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused("train", folder, *TINY, "--out", tmp_path / "file" / "run")


# ------------------------------------------------------------------------------------------------------ as real processes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_with_its_code_and_a_checkpoint_and_the_command_continues(
    folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    arguments = command(
        "train", folder, *TINY[:-2], "--out", out, steps=3_000, augment__crop="random-resized", data__in_memory="false"
    )
    process = start([*arguments, "--workers", "1", "--json"], tmp_path)
    while process.poll() is None and len(read_lines(out / "metrics.jsonl")) < 3:
        time.sleep(0.01)
    os.killpg(process.pid, number)  # as a terminal does: the data workers get it too
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 128 + number, stderr
    assert stdout == ""
    assert f"a checkpoint is saved in {out}. The same command continues." in stderr
    assert "Traceback" not in stderr
    newest = checkpoints.available(out / "checkpoints")[0]
    assert checkpoints.read(newest).step == read_lines(out / "metrics.jsonl")[-1]["step"] >= 3


def test_a_second_signal_leaves_at_once_and_the_last_checkpoint_is_whole(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(command("train", folder, *TINY[:-2], "--out", out, steps=100_000), tmp_path)
    while process.poll() is None and len(read_lines(out / "metrics.jsonl")) < 2:
        time.sleep(0.01)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    assert checkpoints.latest(out / "checkpoints")[0] is not None


def test_a_full_disk_ends_the_run_with_exit_code_1_within_one_save(folder: Path, tmp_path: Path) -> None:
    arguments = command("train", folder, *TINY, "--out", tmp_path / "run")
    quoted = " ".join(f"'{argument}'" for argument in arguments)
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 200; exec {quoted}"], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert "The checkpoint could not be saved" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_second_process_on_the_same_run_is_refused_with_exit_code_2(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(command("train", folder, *TINY[:-2], "--out", out, steps=100_000), tmp_path)
    while process.poll() is None and not (out / "metrics.jsonl").exists():
        time.sleep(0.01)
    second = subprocess.run(
        command("train", folder, *TINY[:-2], "--out", out, steps=100_000),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    process.kill()
    process.communicate()
    assert second.returncode == 2
    assert f"is being trained by process {process.pid} on " in second.stderr
