"""Training: the loop (`_run_steps`), and `train`, which leads to it. Layer 4.

Position is the step's number, and everything random is a pure function of it (`residua.keyed`), so to continue a run is to
load a checkpoint and to start the same iterators there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from residua import checkpoints, machine, plan, prepare, runs
from residua import recipe as recipes
from residua.augment import Key, transformed
from residua.batches import Batch, Share, train_batches
from residua.data import open_data
from residua.dataset import Dataset, FileSamples, Samples
from residua.errors import RequestError, RunError
from residua.images import printable
from residua.prepare import Prepared
from residua.processes import agreed, joined, signals_caught, together
from residua.recipe import Recipe
from residua.recipes import get_recipe
from residua.record import Checkpointer, Listener, Recorder, Silent
from residua.resolve import check_size, class_weights, held_out, make_order, resolve
from residua.runs import Run
from residua.scoring import evaluation_view, watch
from residua.sheets import write_sheet
from residua.step import NonFiniteLoss, Step

__all__ = ["Interrupted", "request", "train"]

GONE = 20  # images in a row that cannot be read: the data has gone, as on a disk that fails


class Interrupted(RunError):
    """Training stopped on a signal after a checkpoint was saved; `code` is the exit code, 130 or 143."""

    def __init__(self, number: int, where: Path) -> None:
        super().__init__(f"Interrupted; a checkpoint is saved in {where}. The same command continues.")
        self.code = 128 + number


def train(
    data: str | None = None,
    *,
    model: str | None = None,
    recipe: str | Recipe = "fast",
    out: str | Path | None = None,
    data_dir: str | Path | None = None,
    device: str | None = None,
    workers: int | None = None,
    listener: Listener | None = None,
    **fields: Any,
) -> Run:
    """Trains a network, or continues the run in `out`, and returns the finished run.

    `data` is a name, a folder or a CSV file (default: the recipe's, which is the embedded digits), `model` a catalogue name,
    `recipe` a name, a file or a `Recipe`; `fields` change it by name: `epochs=3`, `minutes=10`, `seed=1`, or through a
    dictionary `set={"optim.lr": 0.05}`; a field that is given in both ways must be given the same value. `out` defaults to a name
    under runs/ that tells what the run is; the same request leads to the same directory and continues what is there. Raises
    `RequestError` before any long work if the request is wrong, `RunError` if the work fails, `Interrupted` after a checkpoint on
    SIGINT or SIGTERM.
    """
    started = time.perf_counter()
    listener = listener or Silent()
    wanted = request(data, model, recipe, fields)
    target = Path(out) if out is not None else prepare.default_out(wanted)
    with joined(device) as (share, where), torch.random.fork_rng([where] if where.type == "cuda" else []):
        if share.rank:
            return _follow(target, wanted, data_dir, where, workers, share)
        with runs.locked(target):
            prepared = _prepare(target, wanted, data_dir, where, workers, share, started, listener)
            together(share)
            return _run(prepared, share, listener)


def request(data: str | None, model: str | None, recipe: str | Recipe, fields: Mapping[str, Any]) -> Recipe:
    """The recipe that is asked for, before the data is known."""
    chosen = get_recipe(recipe, model) if isinstance(recipe, str) else recipe
    own = {**{name: value for name, value in fields.items() if name != "set"}, "model.name": model, "data.source": data}
    given = {name: value for name, value in own.items() if value is not None}
    changes = fields.get("set", {})
    recipes.check_agreement(given, changes)
    chosen = recipes.replaced(chosen, {**changes, **given}, "the request")
    if chosen.plan != "auto":
        plan.named(chosen.plan)
    return chosen


def _prepare(
    target: Path, wanted: Recipe, data_dir: str | Path | None, device: torch.device, workers: int | None, share: Share,
    started: float, listener: Listener,
) -> Prepared:  # fmt: skip
    if not runs.is_run(target):
        prepare.check_weights(wanted)
        if wanted.plan != "auto":
            plan.check(plan.named(wanted.plan), device, share.world)
    dataset, resolved = _open(target, wanted, data_dir, device, listener)
    workers = _workers(workers)
    if runs.is_run(target):
        prepared = prepare.continue_run(target, resolved, dataset, device, workers=workers, share=share)
        if (text := prepare.other_software(prepared)) is not None:
            listener.note(text)
    elif runs.is_vacant(target):
        prepared = prepare.begin(
            target, resolved, dataset, device, workers=workers, share=share, started=started, threads=torch.get_num_threads(),
            command=machine.command_line(), listener=listener,
        )  # fmt: skip
    else:
        raise RequestError(f"{target} is not empty and is not a run. Choose another --out.")
    plan.apply(prepared.plan, prepared.run.manifest["threads"], device, sparing=plan.spares(prepared.network, prepared.plan))
    if not (target / "samples" / "augmented.png").exists():
        _write_samples(prepared)
    return prepared


def _open(
    target: Path, wanted: Recipe, data_dir: str | Path | None, device: torch.device, listener: Listener
) -> tuple[Dataset, Recipe]:
    """The data and the resolved recipe; the images lie in memory or not as the run in `target`, if there is one, began."""
    before = runs.open_run(target).manifest.get("in_memory") if runs.is_run(target) else None
    channels = wanted.model.options.get("in_channels")
    folder = Path(data_dir) if data_dir is not None else None
    dataset = open_data(wanted.data.source, data_dir=folder, channels=channels, max_bad=wanted.data.max_bad)
    dataset = held_out(dataset, wanted)
    resolved, notes = resolve(wanted, dataset)
    if not runs.is_run(target):
        check_size(resolved)
    dataset, held = prepare.in_memory(dataset, resolved, device, before)
    sizes = ", ".join(f"{len(samples):,} {name}" for name, samples in dataset.splits.items())
    listener.note(f"Data: {dataset.note} {sizes}; {len(dataset.classes)} classes; {'in memory' if held else 'streamed'}.")
    for kind, count in dataset.findings.counts().items():
        first = next(item.what for item in dataset.findings.items if item.kind == kind)
        listener.note(f"Data check: {count} {kind}, such as {first}.")
    for note in notes:
        listener.note(note)
    return dataset, resolved


def _workers(asked: int | None) -> int:
    """Threads that prepare batches: as many as cores, at most 8."""
    return asked if asked is not None else min(8, len(os.sched_getaffinity(0)))


def _follow(
    target: Path, wanted: Recipe, data_dir: str | Path | None, device: torch.device, workers: int | None, share: Share
) -> Run:
    """The part of every process but the first: wait until the run is laid out, then train along."""
    together(share)
    dataset, resolved = _open(target, wanted, data_dir, device, Silent())
    prepared = prepare.continue_run(target, resolved, dataset, device, workers=_workers(workers), share=share)
    plan.apply(prepared.plan, prepared.run.manifest["threads"], device, sparing=plan.spares(prepared.network, prepared.plan))
    return _run(prepared, share, Silent())


def _run(prepared: Prepared, share: Share, listener: Listener) -> Run:
    """Loads the newest checkpoint, makes the missing updates, and evaluates at the end."""
    run, total = prepared.run, prepared.run.manifest["total_steps"]
    if not share.rank:
        checkpoints.remove_partial(run.checkpoints)
    found, damaged = checkpoints.latest(run.checkpoints)
    for text in damaged:
        listener.note(f"{text} The one before it is used.")
    step = Step(
        prepared.network, run.recipe, prepared.plan, run.normalization, total, device=prepared.device,
        class_weights=class_weights(prepared.dataset, run.recipe), share=share,
    )  # fmt: skip
    first = 0
    if found is not None:
        runs.load_weights(prepared.network, found.tensors["model"], str(run.path))
        step.load(found.tensors)
        first = found.step
        listener.note(f"{run.path}: continued from step {first:,} of {total:,}." if first < total else f"{run.path} is finished.")
    if first < total:
        _run_steps(prepared, step, first, found.extra if found else {}, share, listener)
    return runs.open_run(run.path)


def _run_steps(prepared: Prepared, step: Step, first: int, extra: Mapping[str, Any], share: Share, listener: Listener) -> None:
    """The loop: take the next batch, update, note it, save and measure when it is time. `extra` is the checkpoint's."""
    run, total = prepared.run, prepared.run.manifest["total_steps"]
    order = make_order(prepared.dataset, run.recipe)
    samples, size = prepared.dataset.splits["train"], run.image_size
    batches = train_batches(samples, order, run.recipe.augment, size, first, total, share, prepared.workers)
    recorder = None
    if not share.rank:
        recorder = Recorder(run, first, extra.get("seconds", 0.0), listener, extra.get("pending"))
    checkpointer = Checkpointer(run, step, recorder) if recorder else None
    machine.forget_peak_memory(prepared.device)  # that of the trials
    measure_at = _measure_at(total, order.steps_per_epoch, run.recipe.evaluations)
    blank = 0  # images in a row that could not be read, of all processes
    with closing(recorder) if recorder else nullcontext(), signals_caught(share) as caught:
        for batch in batches:
            _require_files(batch, samples, run)
            _update(step, batch, prepared)
            done = batch.step + 1
            blank = 0 if step.last.count else blank + run.recipe.batch_size
            if blank >= GONE:
                raise _without(f"not one of the last {blank:,} images could be read", batch, run)
            if recorder and checkpointer:
                recorder.unread(done, batch.unreadable, samples)
                recorder.trained(done, step.last)
            if done in measure_at:
                _measure(prepared, step, done, recorder, share)
            if recorder and done == total:
                memory = machine.peak_memory_mib(prepared.device)
                recorder.line(total, "end", {"training_seconds": recorder.seconds, "peak_memory_mib": memory})
            stop = agreed(caught, share)
            if checkpointer and (stop or checkpointer.due(done)):
                checkpointer.save(done)
            if stop and done < total:
                together(share)  # where one process ends, what launched them ends the others: not before all is saved
                raise Interrupted(stop, run.path)


def _update(step: Step, batch: Batch, prepared: Prepared) -> None:
    """One update; a loss that is not finite stops the run before the weights change, naming step, samples and checkpoint."""
    try:
        step(batch)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        recipe = prepared.run.recipe
        small = f"batch_size={recipe.batch_size}" + (f" in parts of {recipe.micro_batch}" if recipe.micro_batch else "")
        raise RequestError(
            f"Batch normalisation has nothing to take the mean over: {small} leaves it one value a channel at a map of 1 x 1 in "
            f"{recipe.model.name}. Choose larger batches (--batch-size, micro_batch), or larger images (data.image_size), and "
            f"another --out than {prepared.run.path}."
        ) from error
    except NonFiniteLoss as error:
        names = prepared.dataset.splits["train"].names
        listed = ", ".join(printable(names[draw % len(names)]) for draw in error.draws.tolist()[:8])
        saved = checkpoints.available(prepared.run.checkpoints, error.step)
        last = f"The last good checkpoint is {saved[0]}." if saved else "There is no checkpoint yet."
        raise RunError(
            f"The loss is {error.value} at step {error.step}; the weights were not changed. Samples of the batch: {listed}, ... "
            f"({len(error.draws)} in all). {last} A lower optim.lr or optim.clip=1 often helps."
        ) from error


def _require_files(batch: Batch, samples: Samples, run: Run) -> None:
    """Stops where a file that could be read when the data was opened is not there any more. An update without its image would be
    another one than the run's, and be saved as if it were."""
    if isinstance(samples, FileSamples) and any(not (samples.root / name).exists() for name, _ in batch.unreadable):
        raise _without("images are not there any more", batch, run)


def _without(what: str, batch: Batch, run: Run) -> RunError:
    first = f" The first: {batch.unreadable[0][1]}" if batch.unreadable else ""
    saved = checkpoints.available(run.checkpoints)
    last = f"The last good checkpoint is {saved[0]}." if saved else "There is no checkpoint yet."
    return RunError(f"At step {batch.step} {what}.{first} {last} Mend that, then run the same command.")


def _measure_at(total: int, per_epoch: int, most: int) -> set[int]:
    """The steps after which the watched split is measured: ends of epochs, evenly spread, at most `most`; always the last."""
    epochs = total // per_epoch
    if epochs <= most:
        return {per_epoch * (index + 1) for index in range(epochs)} | {total}
    return {per_epoch * round((index + 1) * epochs / most) for index in range(most)} | {total}


def _measure(prepared: Prepared, step: Step, done: int, recorder: Recorder | None, share: Share) -> None:
    """Loss and errors of the watched split, of the averaged weights where there are any, each image counted once."""
    run, split = prepared.run, prepared.dataset.watched
    samples = prepared.dataset.splits[split]
    if recorder:
        recorder.pause()
    with _averaged(step):
        if share.world > 1:  # batch statistics differ between processes; what is saved, and so measured, is the first one's
            for tensor in step.network.state_dict().values():
                dist.broadcast(tensor, 0)
        sums = watch(
            step.network, samples, torch.arange(share.rank, len(samples), share.world), evaluation_view(run.recipe),
            run.normalization, device=prepared.device, precision=prepared.plan.precision, exact=prepared.plan.exact,
            batch_size=256, workers=prepared.workers,
        )  # fmt: skip
    names = ("count", "loss_sum", "wrong1", "wrong5")
    totals = torch.tensor([float(sums[name]) for name in names], dtype=torch.float64, device=prepared.device)
    if share.world > 1:
        dist.all_reduce(totals)
    count, loss, wrong1, wrong5 = totals.tolist()
    if not count:
        raise RunError(
            f"Not one of the {len(samples):,} images of {split} can be read: there is nothing to measure at step {done}. Mend "
            "them, then run the same command."
        )
    values = {"loss": loss / count, "top1_error": 100 * wrong1 / count, "num_samples": int(count)}
    if len(run.classes) > 5:
        values["top5_error"] = 100 * wrong5 / count
    if recorder:
        recorder.measured(done, split, values)
        recorder.proceed()


@contextmanager
def _averaged(step: Step) -> Iterator[None]:
    """Within the block the network has its averaged weights, if it keeps an average, and is in evaluation mode."""
    own: dict[str, Tensor] = {}
    if step.average is not None:
        own = {name: tensor.clone() for name, tensor in step.network.state_dict().items()}
        step.network.load_state_dict(step.average.tensors)
    step.network.eval()
    try:
        yield
    finally:
        step.train()
        if own:
            step.network.load_state_dict(own)


def _write_samples(prepared: Prepared, count: int = 40) -> None:
    """A sheet of the first training images as the network sees them, after augmentation."""
    run, samples = prepared.run, prepared.dataset.splits["train"]
    order = make_order(prepared.dataset, run.recipe)
    batch = next(iter(train_batches(samples, order, run.recipe.augment, run.image_size, 0, 1, Share(), 0)))
    kept = torch.arange(len(batch.labels))[batch.valid][:count]
    images = batch.images[kept.to(batch.images.device)].cpu()
    stats = {name: tensor.cpu() for name, tensor in run.normalization.items()}
    x, _ = transformed(images, run.recipe.augment, stats, Key(run.recipe.seed, 0), batch.draws[kept])
    pixels = ((x * stats["std"] + stats["mean"]) * 255).clamp(0, 255).round().to(torch.uint8)
    captions = [run.classes[label] for label in batch.labels[kept].tolist()]
    (run.path / "samples").mkdir(exist_ok=True)
    write_sheet(run.path / "samples" / "augmented.png", pixels, captions, seed=run.recipe.seed)
