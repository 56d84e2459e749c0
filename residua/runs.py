"""The run directory: the interface between the stages. Layer 3.

recipe.json      the fully resolved Recipe
manifest.json    versions, hardware, revision, data fingerprint; total steps, plan, threads, micro-batch, processes
data.json        classes, facts, sizes of the splits, what the data check found
normalization.safetensors   mean and standard deviation, as the network's input is normalised
metrics.jsonl    one JSON object a line: step, epoch, split, values, seconds
checkpoints/     see `residua.checkpoints`
evaluations/     one JSON file an evaluation
shortening.json  of a shortened run: its parent, the units removed and their damage, accuracy and cost before and after
report.html
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from residua import checkpoints
from residua import recipe as recipes
from residua.errors import RequestError, RunError, RunWarning, nearest
from residua.models import create_model
from residua.network import Network
from residua.recipe import Recipe

__all__ = [
    "FORMAT", "SHIPPED", "Run", "check_writable", "load", "locked", "meant", "open_run", "ship", "shipped", "write_atomically",
]  # fmt: skip

FORMAT = 1
SHIPPED = Path(__file__).with_name("trained")
"""The folder of the trained networks that come with the package: run directories, each under its name."""


@dataclass(frozen=True)
class Run:
    """An opened run directory. `manifest` and `data` are the plain values of their files, `normalization` has "mean" and
    "std", float32 [C, 1, 1] or [C, H, W], in units of pixel value / 255."""

    path: Path
    recipe: Recipe
    manifest: Mapping[str, Any]
    data: Mapping[str, Any]
    normalization: Mapping[str, Tensor]

    def recorded(self, field: str) -> Any:
        """A field of the manifest that is needed; raises `RequestError` where it is missing."""
        if field not in self.manifest:
            raise _without(self.path / "manifest.json", field)
        return self.manifest[field]

    @property
    def classes(self) -> list[str]:
        """Class names in the order of their ids, frozen when the run began."""
        return list(self.data["classes"])

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def outputs(self) -> Path:
        """The folder for what is found out about the run: its own, or `runs/NAME` for one that comes with the package."""
        return Path("runs") / self.path.name if self.path.parent == SHIPPED else self.path

    @property
    def image_size(self) -> int:
        """Side of the network's input in pixels."""
        size = self.recipe.data.image_size
        assert size is not None, "a stored recipe is resolved"
        return size

    def metrics(self, split: str | None = None) -> list[dict[str, Any]]:
        """The metric lines, of one split or all; a line cut short by a kill is left out."""
        lines = read_lines(self.path / "metrics.jsonl")
        return [line for line in lines if split is None or line["split"] == split]

    @property
    def trained(self) -> float:
        """The share of its steps that lies behind the newest checkpoint, from 0 (there is none) to 1."""
        newest = checkpoints.available(self.checkpoints)
        return int(newest[0].name.removeprefix("step-")) / self.manifest["total_steps"] if newest else 0.0

    def finished(self) -> bool:
        """Whether a checkpoint of the last step exists."""
        return self.trained == 1.0

    def build(self) -> Network:
        """The run's network, freshly initialised."""
        return create_model(self.recipe.model.name, **self.recipe.model.options)


def create(
    path: Path, recipe: Recipe, manifest: Mapping[str, Any], data: Mapping[str, Any], normalization: dict[str, Tensor]
) -> Run:
    """Lays out a new run directory; the manifest comes last, so a directory with a manifest is whole."""
    try:
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_atomically(path / "recipe.json", json.dumps(recipes.to_dict(recipe), indent=1, ensure_ascii=False))
        write_atomically(path / "data.json", json.dumps(data, indent=1, ensure_ascii=False))
        write_atomically(path / "normalization.safetensors", save(normalization))
        write_atomically(path / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False))
    except OSError as error:
        raise RunError(f"The run directory {path} cannot be written: {error.strerror or error}.") from error
    return open_run(path)


def is_run(path: Path) -> bool:
    """Whether `path` holds a run."""
    return (path / "manifest.json").is_file()


def is_vacant(path: Path) -> bool:
    """Whether a run may begin in the folder `path`: it holds nothing but what an interrupted beginning leaves."""
    names = ("recipe.json", "data.json", "normalization.safetensors", "manifest.json", "shortening.json")
    left = {"lock", "checkpoints", *names, *(_aside(path / name).name for name in names)}
    return not is_run(path) and {item.name for item in path.iterdir()} <= left and not any(path.glob("checkpoints/*"))


def open_run(path: Path | str) -> Run:
    """The run in `path`, or the one of that name that comes with the package (`shipped`).

    Raises `RequestError` if it is none, of a format that this version does not read, or if a file of it is damaged, with the
    file's name.
    """
    path = located(path)
    if not path.is_dir():
        raise RequestError(f"There is no run directory {path}.{_instead(path)}")
    if not is_run(path):
        raise RequestError(f"{path} is not a run directory: it has no manifest.json.{_instead(path)}")
    try:
        manifest = _manifest(path / "manifest.json")
        if manifest["format"] != FORMAT:
            raise RequestError(f"The run {path} has format {manifest['format']}; this version reads format {FORMAT}.")
        recipe = recipes.from_dict(json.loads((path / "recipe.json").read_text(encoding="utf-8")), str(path / "recipe.json"))
        data = json.loads((path / "data.json").read_text(encoding="utf-8"))
        normalization = load_file(path / "normalization.safetensors")
        if not all(isinstance(name, str) for name in data["classes"]):
            raise ValueError("data.json names no classes")
    except RequestError:
        raise
    except Exception as error:  # a damaged file can fail in the parser of any of the four formats
        raise RequestError(f"The run {path} is damaged: {error}.") from error
    return Run(path, recipe, manifest, data, normalization)


def _manifest(file: Path) -> dict[str, Any]:
    """What manifest.json holds; raises `RequestError` where a field is of another kind than it is written, or one is missing that
    every use of a run needs."""
    manifest = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(manifest, dict):
        raise ValueError(f"{file} holds no object with fields")
    for field in ("format", "total_steps"):
        if field not in manifest:
            raise _without(file, field)
    for field, (kind, words) in _KINDS.items():
        if field not in manifest:
            continue
        value = manifest[field]
        if type(value) is not kind or (isinstance(value, int) and value < 1):
            raise RequestError(
                f"The run {file.parent} is damaged: in {file} the field {field} is {value!r}, not {words}. {_ADVICE}"
            )
    return manifest


_NUMBER: tuple[type, str] = (int, "a whole number of at least 1")
_FIELDS: tuple[type, str] = (dict, "an object with fields")
_KINDS: dict[str, tuple[type, str]] = {
    "format": _NUMBER, "total_steps": _NUMBER, "steps_per_epoch": _NUMBER, "processes": _NUMBER, "threads": _NUMBER,
    "data_fingerprint": (str, "a text"), "command": (list, "a list"), "recompute": (list, "a list"), "plan": _FIELDS,
    "versions": _FIELDS, "hardware": _FIELDS,
}  # fmt: skip
_ADVICE = "Put the file back from a copy of the run, or train it anew into another --out."


def _without(file: Path, field: str) -> RequestError:
    return RequestError(f"The run {file.parent} is damaged: {file} has no field {field}. {_ADVICE}")


def shipped() -> list[str]:
    """The names of the trained networks that come with the package; `open_run` takes them in place of a path."""
    return sorted(path.name for path in SHIPPED.glob("*") if is_run(path))


def located(path: Path | str) -> Path:
    """The folder that `path` means: itself where there is one, else that of the run of this name that comes with the package."""
    given = Path(path)
    return SHIPPED / given if not given.exists() and str(given) in shipped() else given


def meant(path: Path) -> str:
    """A question after what may have been meant by a path that is no run: a run in it, beside it or below runs/, or one of
    `shipped`; "" if nothing is near. It begins with a space, to follow the sentence that says so."""
    found = {
        place.parent.name: place.parent for folder in (Path("runs"), path.parent) for place in folder.glob("*/manifest.json")
    }
    inside = sorted(str(place.parent) for place in path.glob("*/manifest.json"))[:3]
    close = inside or [str(found[name]) for name in nearest(path.name, found)]
    if close:
        return f" Did you mean {' or '.join(close)}?"
    close = nearest(str(path), shipped(), 1)
    return f" Did you mean {close[0]}, which comes with residua?" if close else ""


def _instead(path: Path) -> str:
    """What a message says besides where a path is no run."""
    if close := meant(path):
        return close
    names = shipped()
    come = f" With residua come: {', '.join(names)}." if names else ""
    return f" A run directory is the folder that `residua train` writes, below runs/ or where --out says.{come}"


def ship(run: Run | Path | str, target: Path) -> Run:
    """Writes to the folder `target`, which must not exist, what a finished run needs to be used: its files but for the samples,
    the report and all of the optimiser's state. It is a run directory that can be evaluated, not one that can be trained on.
    Raises `RequestError` for a run that is not finished, `RunError` for one whose last checkpoint is damaged.
    """
    run = run if isinstance(run, Run) else open_run(run)
    if not run.finished():
        raise RequestError(f"The run {run.path} is not finished. Continue it with the command that began it.")
    if target.exists():
        raise RequestError(f"{target} is there already.")
    checkpoint, damaged = checkpoints.latest(run.checkpoints)
    assert checkpoint is not None
    if damaged:
        raise RunError(f"{damaged[0]} The command that began the run makes its last steps again.")
    kept = {name: tensors for name, tensors in checkpoint.tensors.items() if name in ("model", "average")}
    (target / "checkpoints").mkdir(parents=True)
    checkpoints.write(target / "checkpoints", checkpoints.Checkpoint(checkpoint.step, kept, {}))
    if (run.path / "evaluations").is_dir():
        shutil.copytree(run.path / "evaluations", target / "evaluations")
    for name in ("recipe.json", "data.json", "normalization.safetensors", "metrics.jsonl", "manifest.json"):
        shutil.copyfile(run.path / name, target / name)  # the manifest last: a directory with a manifest is whole
    return open_run(target)


def load(run: Run | Path | str, *, which: str = "final") -> Network:
    """The trained network of a run, in evaluation mode, on the CPU.

    `which`: "final" is the averaged weights where the recipe keeps an average and else the last ones; "last" always the last.
    Where these are not those of the run's end, since a checkpoint is damaged or the run is not finished, a `RunWarning` says so.
    """
    if which not in ("final", "last"):
        raise RequestError(f"The weights to load are 'final' or 'last', not {which!r}.")
    run = run if isinstance(run, Run) else open_run(run)
    checkpoint, damaged = checkpoints.latest(run.checkpoints)
    if checkpoint is None:
        raise RequestError(f"The run {run.path} has no checkpoint yet; continue it with the command that began it.")
    total = run.manifest["total_steps"]
    if damaged or checkpoint.step < total:
        why = " ".join(damaged) or f"The run {run.path} is not finished."
        used = f"The weights after step {checkpoint.step:,} of {total:,} are used."
        warnings.warn(f"{why} {used} The command that began the run goes on from there.", RunWarning, stacklevel=2)
    network = run.build()
    name = "average" if which == "final" and "average" in checkpoint.tensors else "model"
    load_weights(network, checkpoint.tensors[name], str(run.path))
    return network.eval()


def load_weights(network: Network, tensors: Mapping[str, Tensor], where: str) -> None:
    """Loads `tensors` into `network`; raises `RequestError` listing what is missing, unexpected or of another shape."""
    own = network.state_dict()
    wrong = [f"{k} is missing" for k in own.keys() - tensors.keys()] + [f"{k} is unexpected" for k in tensors.keys() - own.keys()]
    wrong += [
        f"{k} has shape {tuple(tensors[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own.keys() & tensors.keys()
        if tensors[k].shape != own[k].shape
    ]
    if wrong:
        listed = "; ".join(sorted(wrong)[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise RequestError(f"The weights in {where} are of another network: {listed}.")
    network.load_state_dict(dict(tensors))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a JSON-lines file; the first line that does not parse ends it."""
    lines: list[dict[str, Any]] = []
    if not path.is_file():
        return lines
    for text in path.read_bytes().split(b"\n"):
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def check_writable(folder: Path, option: str = "--out") -> None:
    """Refuses a folder that cannot be written, before long work that ends in it; of one that is not there yet the nearest folder
    above it decides. Nothing is made."""
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists() or place.is_symlink())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise RequestError(f"{option} {folder} cannot be written: {reason}. Choose another folder with {option}.") from error


def write_atomically(path: Path, contents: str | bytes) -> None:
    """Writes a file so that it is seen whole or not at all."""
    aside = _aside(path)
    with aside.open("wb") as file:
        # A name that is not UTF-8 stands in a text as code points that cannot be encoded; JSON reads their escapes as the same.
        file.write(contents.encode(errors="backslashreplace") if isinstance(contents, str) else contents)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.aside")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the run directory for this process by the operating system's file lock, which ends with the process.

    Raises `RequestError` naming the holder if another process has it. A directory that is made here and in which nothing else
    comes to lie is removed again, with those above it that were made for it.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / "lock").open("a+")
    except OSError as error:
        raise RequestError(f"The run directory {path} cannot be written: {error.strerror or error}.") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise RequestError(f"The run {path} is being trained by {holder}. Wait for it, or choose another --out.") from None
        if not (path / "lock").exists() or not os.path.samestat(os.fstat(file.fileno()), (path / "lock").stat()):
            raise RequestError(f"Another process has just removed {path}. Repeat the command.")
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        except OSError as error:
            raise RunError(f"The run directory {path} cannot be written: {error.strerror or error}.") from error
        try:
            yield
        finally:
            if made and path.is_dir() and [item.name for item in path.iterdir()] == ["lock"]:
                (path / "lock").unlink()
                with suppress(OSError):  # another run may have begun in one of them by now
                    for folder in made:
                        folder.rmdir()
