"""Analysing trained networks: the analyses that are asked for, one after the other within a time, for one network or several side
by side. Layer 5.

What each gives is kept in `<run>/analysis.json`, from which `analysis.html` is drawn. Analyses that are there already, of the
same networks, data and checkpoint, stay; those that are asked for are measured anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from residua import checkpoints, plan, report_analysis, scoring
from residua import runs as run_directories
from residua.analysis import CATALOG, Analysis, Budget, NotApplicable, Subject
from residua.cost import num_parameters
from residua.errors import RequestError, RunError
from residua.runs import Run
from residua.subjects import module_subject, run_subject
from residua.version import __version__
from residua.wording import duration

__all__ = ["Analyses", "Watcher", "allocated", "analyze"]

Source = str | Path | Run | nn.Module | Subject
MINUTES = 8.0


class Watcher(Protocol):
    """Who watches: `note` gets a sentence, `working` what is being done and the share of all that is done, from 0 to 1."""

    def note(self, text: str) -> None: ...

    def working(self, what: str, done: float) -> None: ...


@dataclass(frozen=True)
class Analyses:
    """What came out. `subjects` are facts of the networks, `entries` one analysis each ("name", "title", "about", "reading",
    "results" by the network's name, "left_out" with reasons, "seconds"); `asked` has those of "data", "data_dir", "split",
    "device", "out" that were given; `page` is the HTML file, None where none is written."""

    subjects: tuple[dict[str, Any], ...]
    entries: tuple[dict[str, Any], ...]
    asked: dict[str, str]
    seconds: float
    page: Path | None = None

    def __getitem__(self, name: str) -> dict[str, Any]:
        """The results of the analysis called `name`, by network."""
        return next(entry["results"] for entry in self.entries if entry["name"] == name)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "version": __version__, "subjects": list(self.subjects), "asked": self.asked, "analyses": list(self.entries),
            "seconds": self.seconds, "page": None if self.page is None else str(self.page),
        }  # fmt: skip


@dataclass
class _Work:
    """One analysis of one subject, and the most seconds that it can use."""

    analysis: Analysis
    subject: Subject
    most: float
    seconds: float = field(default=0.0)


def analyze(
    of: Source | Sequence[Source],
    *,
    only: Sequence[str] | None = None,
    minutes: float = MINUTES,
    batches: Iterable[tuple[Tensor, Tensor]] | None = None,
    classes: Sequence[str] | None = None,
    data: str | None = None,
    data_dir: str | Path | None = None,
    split: str | None = None,
    device: str | None = None,
    out: str | Path | None = None,
    watcher: Watcher | None = None,
) -> Analyses:
    """Analyses a run, or any module with data, or several of them side by side.

    `of`: run directories, or modules that map images [N, C, H, W] to logits [N, K]; for modules `batches` gives (normalised
    images, labels), a list or a loader that does not shuffle, and `classes` the names. `only`: names of analyses, by default
    all. `minutes`: the time for everything together; the analyses choose their numbers of images and draws by it and state
    them. `data`, `data_dir`, `split`: as for `residua.evaluate`. `out`: a folder for analysis.html and analysis.json, by default
    that of the first run; for modules nothing is written without it.

    Raises `RequestError` for a wrong request before any work, and where nothing that was asked for has a meaning.
    """
    chosen = [CATALOG.get(name) for name in dict.fromkeys(only or CATALOG.names())]
    if not 0 < minutes < 1e6:
        raise RequestError(f"minutes must be above 0, not {minutes}.")
    start = time.perf_counter()
    several: list[Source] = [of] if isinstance(of, (str, Path, Run, nn.Module, Subject)) else list(of)
    if not several:
        raise RequestError("There is nothing to analyse: name at least one run directory.")
    if out is not None:
        run_directories.check_writable(Path(out))
    options = {"data": data, "data_dir": data_dir, "split": split, "device": device, "out": out}
    asked = {name: str(value) for name, value in options.items() if value is not None}
    plan.set_allocator(False)
    with torch.random.fork_rng(devices=[]), _modes_kept(several):
        seed = _order_seed(several)
        subjects = _named([_subject(one, batches, classes, data, data_dir, split, device, seed) for one in several])
        facts = tuple(map(_facts, subjects))
        folder = Path(out) if out is not None else subjects[0].run.outputs if subjects[0].run else None
        if folder is not None:
            run_directories.check_writable(folder)
        work = _planned(chosen, subjects, 60 * minutes - (time.perf_counter() - start), watcher)
        entries: dict[str, dict[str, Any]] = {}
        try:
            _measured(work, entries, start + 60 * minutes, watcher)
        finally:
            finished = tuple(_read(entry) for entry in entries.values() if entry["results"] or entry["left_out"])
            result = Analyses(facts, finished, asked, round(time.perf_counter() - start, 2))
            if folder is not None and finished:
                result = _written(result, folder)
    if not any(entry["results"] for entry in finished):
        reasons = dict.fromkeys(reason for entry in finished for reason in entry["left_out"].values())
        raise RequestError(" ".join(reasons))
    return result


def allocated(seconds: float, shares: Sequence[float], most: Sequence[float]) -> list[float]:
    """`seconds` divided in proportion to `shares`; none gets more than its `most`: what it cannot use goes to the others."""
    given = [0.0] * len(shares)
    open_ones = set(range(len(shares)))
    left = max(0.0, seconds)
    while open_ones:
        unit = left / sum(shares[number] for number in open_ones)
        full = {number for number in open_ones if most[number] <= unit * shares[number]}
        for number in full or open_ones:
            given[number] = min(most[number], unit * shares[number])
        left -= sum(given[number] for number in full)
        open_ones = open_ones - full if full else set()
    return given


# -------------------------------------------------------------------------------------------------------------- subjects


@contextmanager
def _modes_kept(several: Sequence[Source]) -> Iterator[None]:
    """Leaves each module that was given, and all in it, in the mode (training or evaluation) that it came in."""
    modes = [(module, module.training) for one in several if isinstance(one, nn.Module) for module in one.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _subject(
    one: Source,
    batches: Iterable[tuple[Tensor, Tensor]] | None,
    classes: Sequence[str] | None,
    data: str | None,
    data_dir: str | Path | None,
    split: str | None,
    device: str | None,
    order_seed: int | None,
) -> Subject:
    if isinstance(one, Subject):
        return one
    if isinstance(one, nn.Module):
        if batches is None:
            raise RequestError("A module is analysed with images: give batches=[(images, labels), ...].")
        place = scoring.chosen_device(device) if device else None
        return module_subject(one, batches, classes=classes, name=type(one).__name__, device=place)
    place = scoring.chosen_device(device)
    return run_subject(one, data=data, data_dir=data_dir, split=split, device=place, order_seed=order_seed)


def _order_seed(several: Sequence[Source]) -> int | None:
    """The seed of the first run: all are shown the images in its order, so that what is drawn side by side is of one image."""
    first = next((one for one in several if isinstance(one, (str, Path, Run))), None)
    if first is None:
        return None
    return (first if isinstance(first, Run) else run_directories.open_run(first)).recipe.seed


def _named(subjects: list[Subject]) -> list[Subject]:
    """The subjects with names that differ."""
    names = [subject.name for subject in subjects]
    if len(set(names)) == len(names):
        return subjects
    texts = [str(subject.run.path) if subject.run else subject.name for subject in subjects]
    before = [texts[:number].count(text) for number, text in enumerate(texts)]
    unique = [text if texts.count(text) == 1 else f"{text} ({count + 1})" for text, count in zip(texts, before)]
    return [replace(subject, name=name) for subject, name in zip(subjects, unique)]


def _facts(subject: Subject) -> dict[str, Any]:
    run = subject.run
    newest = checkpoints.available(run.checkpoints) if run else []
    return {
        "name": subject.name, "run": str(run.path) if run else None,
        "model": run.recipe.model.name if run else type(subject.model).__name__, "checkpoint": newest[0].name if newest else None,
        "data": subject.data, "images": subject.num_images, "classes": len(subject.classes), "units": len(subject.units),
        "parameters": num_parameters(subject.model), "device": str(subject.device),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------------ work


def _planned(chosen: Sequence[Analysis], subjects: Sequence[Subject], seconds: float, watcher: Watcher | None) -> list[_Work]:
    work = []
    paces = [_pace(subject) for subject in subjects]
    for analysis in chosen:
        for subject, pace in zip(subjects, paces):
            most = analysis.work(subject) * pace + 1.0 if analysis.work else float("inf")
            work.append(_Work(analysis, subject, most))
    work.sort(key=lambda item: item.analysis.share)  # what is left over goes to those that can use most
    given = allocated(seconds, [item.analysis.share for item in work], [item.most for item in work])
    for item, own in zip(work, given):
        item.seconds = own
    if watcher:
        parts = [
            f"{analysis.name} {duration(sum(item.seconds for item in work if item.analysis is analysis))}" for analysis in chosen
        ]
        names = " and ".join(subject.name for subject in subjects)
        watcher.note(f"Analysing {names}: at most {duration(sum(given))} ({', '.join(parts)}).")
    return work


def _pace(subject: Subject) -> float:
    """Seconds of a forward pass of one image."""
    images, _ = next(subject.batches())
    with torch.inference_mode():
        return Budget(0).timed(lambda: subject.model(images).sum().item()) / len(images)


def _measured(work: Sequence[_Work], entries: dict[str, dict[str, Any]], end: float, watcher: Watcher | None) -> None:
    """Fills `entries`; what one analysis leaves of its time goes to those that follow."""
    total = sum(item.seconds for item in work) or 1.0
    done = 0.0
    for number, item in enumerate(work):
        rest = work[number:]
        left = allocated(end - time.perf_counter(), [i.analysis.share for i in rest], [i.most for i in rest])
        entry = entries.setdefault(
            item.analysis.name,
            {"name": item.analysis.name, "title": item.analysis.title, "about": item.analysis.about, "results": {},
             "left_out": {}, "seconds": {}},
        )  # fmt: skip

        def progress(share: float, item: _Work = item, done: float = done) -> None:
            if watcher:
                watcher.working(f"{item.analysis.name} of {item.subject.name}", min(1.0, (done + share * item.seconds) / total))

        progress(0.0)
        began = time.perf_counter()
        try:
            entry["results"][item.subject.name] = item.analysis.measure(item.subject, Budget(left[0], progress))
        except NotApplicable as reason:
            entry["left_out"][item.subject.name] = str(reason)
        entry["seconds"][item.subject.name] = round(time.perf_counter() - began, 2)
        done += item.seconds
    if watcher:
        watcher.working("done", 1.0)


def _read(entry: dict[str, Any]) -> dict[str, Any]:
    entry["reading"] = list(CATALOG.get(entry["name"]).read(entry["results"])) if entry["results"] else []
    return entry


# --------------------------------------------------------------------------------------------------------------- results


def _written(result: Analyses, folder: Path) -> Analyses:
    """analysis.json and analysis.html in `folder`, with the analyses that were there."""
    path = folder / "analysis.json"
    entries = {entry["name"]: entry for entry in (*_earlier(path, result.subjects), *result.entries)}
    names = [name for name in CATALOG.names() if name in entries]
    result = replace(result, page=folder / "analysis.html")
    document = replace(result, entries=tuple(entries[name] for name in names)).to_dict()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
        run_directories.write_atomically(path, text)
        run_directories.write_atomically(folder / "analysis.html", report_analysis.page(document))
    except OSError as error:
        raise RunError(f"The analysis cannot be written to {folder}: {error.strerror or error}.") from error
    return result


def _earlier(path: Path, subjects: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The analyses of an earlier file of this version, if they are of the same networks, checkpoints and data."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["version"] != __version__ or document["subjects"] != list(subjects):
            return []
        return [entry for entry in document["analyses"] if entry["name"] in CATALOG]
    except (OSError, ValueError, KeyError, TypeError):
        return []
