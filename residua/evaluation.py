"""How good a trained network is on a split, measured by a stated protocol; one run, or the average of several. Layer 4.

`residua.scoring` gives the scores, `residua.statistics` the numbers; here the data is found, its classes are matched to the
run's, and the result is put together and saved. Nothing is chosen by looking at the split: weights and view are the run's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from residua import runs as run_directories
from residua import scorecard, scoring
from residua.batches import CentralView, evaluation_batches
from residua.dataset import Samples
from residua.errors import RequestError, RunError, unknown
from residua.infer import precision_here, ready
from residua.measured_split import MeasuredSplit, listed, open_split
from residua.network import Network
from residua.plan import set_allocator
from residua.runs import Run
from residua.scorecard import Evaluation, Member
from residua.scoring import Scores, autocast_for, evaluation_view, scores, watch
from residua.sheets import write_sheet

__all__ = [
    "PROTOCOLS", "Evaluation", "autocast_for", "evaluate", "evaluation_view", "load_for_scoring", "scores", "stated", "watch",
]  # fmt: skip

PROTOCOLS = ("center", "ten-crop", "six-view", "dense")
MAX_SCALE = 4096


@dataclass(frozen=True)
class _Request:
    """What is asked, checked."""

    data: str | None
    data_dir: Path | None
    split: str | None
    protocol: str
    scales: tuple[int, ...] | None
    batch_size: int
    device: torch.device
    workers: int
    which: str

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise unknown("protocol", self.protocol, PROTOCOLS)
        if self.which not in ("final", "last"):
            raise RequestError(f"The weights to evaluate are 'final' or 'last', not {self.which!r}.")
        if self.scales is not None and self.protocol != "dense":
            raise RequestError(f"Scales belong to the protocol dense, not to {self.protocol}.")
        if self.scales is not None and not all(1 <= scale <= MAX_SCALE for scale in self.scales or (0,)):
            raise RequestError(f"Scales are shorter sides of 1 to {MAX_SCALE} pixels, at least one, not {list(self.scales)}.")
        if self.batch_size < 1:
            raise RequestError(f"The batch size must be at least 1, not {self.batch_size}.")


def evaluate(
    runs: str | Path | Run | Sequence[str | Path | Run],
    *,
    data: str | None = None,
    data_dir: str | Path | None = None,
    split: str | None = None,
    protocol: str = "center",
    scales: Sequence[int] | None = None,
    batch_size: int = 128,
    device: str | None = None,
    workers: int = 0,
    which: str = "final",
    save: bool = True,
) -> Evaluation:
    """Measures a run, or several as an ensemble whose softmax scores are averaged.

    `data`: a source, by default the one the run was trained on; its classes are matched by name. `split`: by default
    "test" where there is one, else "val". `protocol`: "center", "ten-crop", "six-view" or "dense" (see `residua.scoring`); mirror
    images are left out where the run was trained without them. `scales`: the shorter sides for "dense", by default the
    paper's five in proportion to the image size. `which`: "final" or "last" weights. With `save`, the result of a single
    run is also written to `<run>/evaluations/<source>-<split>-<protocol>.json`.

    Raises `RequestError` for a wrong request, for classes that the run does not know and for runs that do not fit together.
    """
    opened = _opened(runs)
    folder = Path(data_dir) if data_dir is not None else None
    wanted = tuple(scales) if scales is not None else None
    request = _Request(data, folder, split, protocol, wanted, batch_size, scoring.chosen_device(device), workers, which)
    source = _common_source(opened, request)
    splits = {
        channels: open_split(opened[0], source, request.split, channels, request.data_dir)
        for channels in {_channels(run) for run in opened}
    }
    start = time.perf_counter()
    parts = [_score_member(run, opened[0].classes, splits[_channels(run)].samples, request) for run in opened]
    seconds = time.perf_counter() - start
    result = _result(opened, splits[_channels(opened[0])], parts, request, seconds)
    if not save or len(opened) > 1:
        return result
    if not opened[0].finished():  # its report would show it as the finished run's
        return replace(result, note=f"{result.note} Not saved: the run is not finished.".strip())
    result = scorecard.save(result, opened[0].outputs / "evaluations")
    if protocol == "center" and data is None and split is None:
        return _with_worst(opened[0], splits[_channels(opened[0])].samples, result)
    return result


def stated(name: str) -> tuple[str, tuple[int, ...] | None] | None:
    """The protocol that a name states, and its scales: "center", "ten-crop", "dense", or "dense@256" for a shorter side of 256
    pixels alone; None for what is no protocol."""
    protocol, at, side = name.partition("@")
    if protocol not in PROTOCOLS or (at and not (protocol == "dense" and side.isdecimal())):
        return None
    return protocol, (int(side),) if at else None


# ------------------------------------------------------------------------------------------------------------ the request


def _opened(runs: str | Path | Run | Sequence[str | Path | Run]) -> list[Run]:
    several = [runs] if isinstance(runs, (str, Path, Run)) else list(runs)
    if not several:
        raise RequestError("There is no run to evaluate: name at least one run directory.")
    opened = [run if isinstance(run, Run) else run_directories.open_run(run) for run in several]
    first = opened[0]
    for other in opened[1:]:
        if set(other.classes) != set(first.classes):
            raise RequestError(
                f"These runs have different classes and cannot be averaged: only in {first.path}: "
                f"{listed(set(first.classes) - set(other.classes))}; only in {other.path}: "
                f"{listed(set(other.classes) - set(first.classes))}."
            )
    return opened


def _common_source(opened: list[Run], request: _Request) -> str:
    sources = list(dict.fromkeys(run.recipe.data.source for run in opened))
    if request.data is None and len(sources) > 1:
        raise RequestError(f"These runs were trained on different data ({', '.join(sources)}): say which to measure them on.")
    return request.data if request.data is not None else sources[0]


def _channels(run: Run) -> int:
    return run.normalization["std"].shape[0]


# ---------------------------------------------------------------------------------------------------------------- scores


def load_for_scoring(run: Run, device: torch.device, which: str = "final") -> Network:
    """The run's network on `device`, laid out for speed. Building it draws initial weights: torch's generator is put back."""
    with torch.random.fork_rng(devices=[]):
        return run_directories.load(run, which=which).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def load_ready(run: Run, device: torch.device, which: str = "final") -> Network:
    """The run's network as it scores images (`residua.infer.ready`): by the run's plan, as it is if that is exact."""
    plan = run.manifest.get("plan", {})
    network = load_for_scoring(run, device, which)
    if network.recompute_every == 0:
        set_allocator(sparing=False)
    return ready(network, plan.get("precision", "fp32"), device, exact=plan.get("exact", False))


def precision_of(run: Run, device: torch.device) -> str:
    """The precision in which the run's network scores images on `device`, "fp32" or "bf16": that of its plan where native."""
    return precision_here(str(run.manifest.get("plan", {}).get("precision", "fp32")), device)


def _mirrored(run: Run) -> bool:
    return run.recipe.augment.flip is not False


@dataclass(frozen=True)
class _Part:
    """What one run contributes."""

    scores: Scores
    scales: tuple[int, ...] | None


def _score_member(run: Run, classes: list[str], samples: Samples, request: _Request) -> _Part:
    """The run's scores of all samples, the columns in the order of `classes`."""
    network = load_ready(run, request.device, request.which)
    scales = None
    if request.protocol == "dense":
        scales = request.scales or scoring.dense_scales(run.image_size, network.feature_reductions[-1])
        precision = precision_of(run, request.device)
        window = scoring.dense_window(network, _channels(run), run.image_size, scales, request.device, precision)
        found = scoring.averaged([_score_at(scale, window, run, network, samples, request) for scale in scales])
    else:
        found = _score_crops(run, network, samples, request)
    if not found.probabilities.isfinite().all():
        raise RunError(f"The network of {run.path} gives scores that are not finite: its weights cannot be used.")
    if found.labels.numel() and run.classes != classes:
        found = found._replace(probabilities=found.probabilities[:, [run.classes.index(name) for name in classes]])
    return _Part(found, scales)


def _score_crops(run: Run, network: Network, samples: Samples, request: _Request) -> Scores:
    view: CentralView | scoring.CropsView | scoring.ShiftedView = evaluation_view(run.recipe)
    scorer: scoring.Scorer = scoring.score_whole
    batch_size = request.batch_size
    if request.protocol == "ten-crop":
        view = scoring.CropsView(run.image_size, _mirrored(run))
        scorer, batch_size = scoring.score_crops, max(1, batch_size // 10)
    if request.protocol == "six-view":
        view = scoring.ShiftedView(evaluation_view(run.recipe), _mirrored(run))
        scorer, batch_size = scoring.score_crops, max(1, batch_size // 6)
    batches = evaluation_batches(samples, torch.arange(len(samples)), view, batch_size, request.workers)
    return scores(network, batches, run.normalization, request.device, precision_of(run, request.device), scorer)


def _score_at(scale: int, window: int, run: Run, network: Network, samples: Samples, request: _Request) -> Scores:
    """The dense scores at one scale, in batches of as many pixels as `batch_size` central crops have."""
    single = evaluation_batches(samples, torch.arange(len(samples)), scoring.SideView(scale), 1, request.workers)
    batches = scoring.grouped_by_shape(single, request.batch_size * run.image_size**2)
    scorer = scoring.DenseScorer(window, _mirrored(run))
    return scores(network, batches, run.normalization, request.device, precision_of(run, request.device), scorer)


def _result(opened: list[Run], split: MeasuredSplit, parts: list[_Part], request: _Request, seconds: float) -> Evaluation:
    found = scoring.averaged([part.scores for part in parts])
    found = found._replace(unreadable=split.left_out + found.unreadable)
    values = scorecard.summarize(found, opened[0].classes, split.samples.names)
    members = [
        Member(str(run.path), *scorecard.top_errors(part.scores), run.image_size, part.scales, precision_of(run, request.device))
        for run, part in zip(opened, parts)
    ]
    scales = sorted({scale for part in parts for scale in part.scales or ()})
    return Evaluation(
        runs=tuple(str(run.path) for run in opened),
        data=split.source,
        split=split.name,
        protocol=request.protocol,
        scales=tuple(scales) or None,
        weights=request.which,
        members=tuple(members),
        device=str(request.device),
        seconds=seconds,
        images_per_second=len(split.samples) / seconds,
        note=_note(opened, split, request, values["missing_classes"]),
        **values,
    )


def _with_worst(run: Run, samples: Samples, result: Evaluation) -> Evaluation:
    """Writes a sheet of the images that the network gets most wrong, as it sees them, for the report; what keeps it from that is
    added to the result's note."""
    if not result.worst:
        return result
    view = evaluation_view(run.recipe)
    images = torch.stack([samples.seen(item.place, view).cpu() for item in result.worst])
    try:
        write_sheet(run.outputs / "samples" / "worst.png", images, result.to_dict()["worst"])
    except RunError as error:
        return replace(result, note=f"{result.note} {error}".strip())
    return result


def _note(opened: list[Run], split: MeasuredSplit, request: _Request, missing: tuple[str, ...]) -> str:
    sentences = [split.note]
    if request.protocol != "center" and not all(map(_mirrored, opened)):
        left = {"ten-crop": "Five crops instead of ten", "six-view": "Three views instead of six"}.get(
            request.protocol, "No mirror images"
        )
        sentences.append(f"{left}: the training data says that a mirror image is not a likely image of its class.")
    if missing:
        sentences.append(f"No images of {len(missing)} of the run's {len(opened[0].classes)} classes: {listed(set(missing))}.")
    return " ".join(sentence for sentence in sentences if sentence)
