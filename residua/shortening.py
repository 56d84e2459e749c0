"""Shortening a trained network: the units that it misses least are removed for good, and what is left is tuned. Layer 5.

A unit's damage is the rise of the mean loss (cross-entropy, nats) when its input stands in for its output. Units go one after the
other: after each, the least damaging of those that are left are measured again, since a unit can matter more once its neighbour
is gone. Nothing is chosen on the split that accuracy is stated on: the damage is that on the validation split where the run has
one besides its test split, else on training images, which flatters all units alike.

A shortened network is a run like any other: its recipe names the units that are gone (`model.options.removed_units`) and the run
that its weights come from (`model.weights`). What was chosen is kept in `shortening.json` before training begins, so that
the same command continues.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from residua import runs as run_directories
from residua.analysis import LADDER, Subject, affordable
from residua.cost import multiply_adds, num_parameters
from residua.errors import RequestError
from residua.evaluation import evaluate
from residua.recipe import Recipe, check_agreement, replaced
from residua.record import Listener, Silent
from residua.removal import outermost, taken_out, why_kept
from residua.runs import Run
from residua.scoring import chosen_device
from residua.subjects import run_subject
from residua.training import train
from residua.unit import Add, Located, SampledAdd, walk

__all__ = ["FILE", "Removal", "choose", "fine_tuning", "shorten"]

FILE = "shortening.json"
AGAIN = 3  # units measured again after each removal
SECONDS = 90.0  # for choosing
LEARNING_RATE = 0.2  # of the parent's, for tuning
LENGTHS = ("steps", "epochs", "minutes")
EPOCHS = 0.2  # of the parent's length, for tuning


@dataclass(frozen=True)
class Removal:
    """A unit that goes: its path, and the rise of the mean loss in nats when it went, those before it gone already."""

    path: str
    damage: float


def shorten(
    run: str | Path | Run,
    *,
    keep: int,
    out: str | Path | None = None,
    epochs: float | None = None,
    data_dir: str | Path | None = None,
    device: str | None = None,
    workers: int | None = None,
    listener: Listener | None = None,
    set: Mapping[str, Any] | None = None,
) -> tuple[Run, dict[str, Any]]:
    """Keeps `keep` of the units of a finished run, tunes what is left, and returns the new run and what `shortening.json` holds.

    `out` defaults to the run's directory with "-keep<N>" added; the same request continues what is there. `epochs` is the length
    of the tuning (default: a fifth of the run's own), `set` changes further fields of its recipe; a length of 0 is not possible.
    "before", "cut" and "after" of the result give top-1 error (%) on the run's final split, parameters, multiply-adds and the
    median milliseconds of one image on this machine; "cut" is the network before it is tuned.

    Raises `RequestError` before any long work where the run is not finished, where so few units cannot be kept (with the
    reasons), or where `out` holds something else or cannot be written.
    """
    listener = listener or Silent()
    parent = run if isinstance(run, Run) else run_directories.open_run(run)
    if not parent.finished():
        raise RequestError(f"The run {parent.path} is not finished. Continue it with the command that began it, then shorten it.")
    target = Path(out) if out is not None else parent.outputs.with_name(f"{parent.path.name}-keep{keep}")
    run_directories.check_writable(target)
    network = run_directories.load(parent)
    number = _to_remove(outermost(network), keep, str(parent.path))
    where = chosen_device(device)
    # a request that cannot be met is refused before anything is measured
    _check_kept_units(network, number, keep, fine_tuning(parent, (), epochs, set or {}), str(parent.path))
    card = _stored(target, parent, keep)
    if card is None:
        subject = run_subject(parent, split=_split(parent), data_dir=data_dir, device=where)
        removals, images = choose(subject, number, listener)
        card = {
            "parent": str(parent.path), "keep": keep, "measured_on": subject.data, "images": images,
            "removed": [{"path": item.path, "damage": item.damage} for item in removals],
        }  # fmt: skip
        target.mkdir(parents=True, exist_ok=True)
        _write(target, card)
    paths = [str(item["path"]) for item in card["removed"]]
    recipe = fine_tuning(parent, paths, epochs, set or {})
    child = train(None, recipe=recipe, out=target, data_dir=data_dir, device=device, workers=workers, listener=listener)
    if "after" not in card:
        card = {**card, **_compared(parent, child, paths, data_dir, device)}
        _write(target, card)
    return child, card


def fine_tuning(parent: Run, paths: Sequence[str], epochs: float | None, changes: Mapping[str, Any]) -> Recipe:
    """The parent's recipe without the units `paths`, from the parent's weights: `epochs` (default: a fifth of the parent's), a
    fifth of its learning rate that falls along a cosine, no warm-up."""
    recipe, card = parent.recipe, parent.manifest
    check_agreement({"epochs": epochs}, changes)
    length = {"epochs": epochs} if epochs is not None else {name: changes[name] for name in LENGTHS if name in changes}
    if not length:
        length = {"epochs": max(1.0, round(EPOCHS * card["total_steps"] / card["steps_per_epoch"], 2))}
    removed = [*recipe.model.options.get("removed_units", ()), *paths]
    return replaced(recipe, {
        "name": "shorten", "model.options.removed_units": removed, "model.weights": str(parent.path),
        "optim.lr": LEARNING_RATE * recipe.optim.lr, "optim.head_first": 0.0, "schedule.shape": "cosine", "schedule.drops": (),
        "schedule.warmup": 0.0, "schedule.final": 0.0, **changes, **length,
    }, "the request")  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- the request


def _to_remove(units: Sequence[Located], keep: int, where: str) -> int:
    """How many units go; refuses numbers that are out of reach."""
    if not units:
        raise RequestError(f"The network of {where} is not built of units, so that none can be removed.")
    staying = [unit for unit in units if not unit.removable]
    reasons = "; ".join(f"{unit.path}: {why_kept(unit.unit)}" for unit in staying[:4])
    more = f"; and {len(staying) - 4} more" if len(staying) > 4 else ""
    if len(staying) == len(units):
        raise RequestError(f"None of the {len(units)} units of {where} can be removed ({reasons}{more}).")
    if not len(staying) <= keep < len(units):
        kept = f" {len(staying)} of them have to stay ({reasons}{more})." if staying else ""
        raise RequestError(
            f"--keep {keep} is not possible: the network of {where} has {len(units)} units, of which {max(1, len(staying))} to "
            f"{len(units) - 1} can be kept.{kept}"
        )
    return len(units) - keep


def _check_kept_units(network: nn.Module, number: int, keep: int, recipe: Recipe, where: str) -> None:
    """Refuses a recipe whose training keeps more units in a pass (`kept_units`) than are left once `number` are gone."""
    kept = recipe.model.options.get("kept_units", 0)
    adding = [found for found in walk(network) if isinstance(found.unit.merge, (Add, SampledAdd))]
    removable = [found.path for found in outermost(network) if found.removable]
    within = [sum(f"{found.path}.".startswith(f"{path}.") for found in adding) for path in removable]
    left = len(adding) - sum(sorted(within, reverse=True)[:number])  # whichever go, no fewer are left
    if type(kept) is int and kept > left:
        raise RequestError(
            f"--keep {keep} is not possible with kept_units={kept}, by which {where} trains on {kept} units at a time: {left} "
            f"that add would be left. Keep more units, or tune with --set model.options.kept_units={left} (0: with all)."
        )


def _split(parent: Run) -> str:
    """ "val" where accuracy is stated on "test", else "train"."""
    counts = parent.data.get("counts", {})
    return "val" if {"val", "test"} <= counts.keys() or (parent.recipe.data.holdout and "test" in counts) else "train"


def _stored(target: Path, parent: Run, keep: int) -> dict[str, Any] | None:
    """What an earlier command chose for this target, None if nothing; refuses a target that is something else."""
    if not (target / FILE).is_file():
        if run_directories.is_run(target) or (target.is_dir() and not run_directories.is_vacant(target)):
            raise RequestError(f"{target} is not empty and was not made by shortening. Choose another --out.")
        return None
    try:
        card: dict[str, Any] = json.loads((target / FILE).read_text(encoding="utf-8"))
        same = (card["parent"], card["keep"]) == (str(parent.path), keep)
        [(item["path"], item["damage"]) for item in card["removed"]]
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{target / FILE} is damaged: {error}. Choose another --out.") from error
    if not same:
        raise RequestError(
            f"{target} holds the run {card['parent']} shortened to {card['keep']} units, not {parent.path} to {keep}. "
            "Choose another --out."
        )
    return card


def _write(target: Path, card: Mapping[str, Any]) -> None:
    run_directories.write_atomically(target / FILE, json.dumps(card, indent=1, ensure_ascii=False))


# ------------------------------------------------------------------------------------------------------------- choosing


def choose(
    subject: Subject, number: int, listener: Listener | None = None, seconds: float = SECONDS
) -> tuple[list[Removal], int]:
    """The `number` units that go, in the order in which they do, and the number of images that this stands on.

    As many images are used as let all measurements fit into `seconds`.
    """
    listener = listener or Silent()
    units = {found.path: found for found in outermost(subject.model) if found.removable}
    measurements = 1 + len(units) + AGAIN * number
    sample, _ = next(subject.batches())
    with torch.inference_mode():
        subject.model(sample)
        start = time.perf_counter()
        subject.model(sample)
    pace = (time.perf_counter() - start) / len(sample)
    count = affordable(seconds / measurements, pace, subject.num_images) if subject.num_images > LADDER[0] else subject.num_images
    listener.note(f"Measuring {len(units)} units on {count:,} images of {subject.data}.")
    batches = _first(subject, count)
    gone: list[Removal] = []
    loss = _loss(subject.model, batches)
    known = {path: _loss(subject.model, batches, units[path]) for path in units}
    for _ in range(number):
        nearest = sorted(known, key=known.__getitem__)[: AGAIN if gone else 0]
        for path in nearest:
            known[path] = _loss(subject.model, batches, *(units[item.path] for item in gone), units[path])
        candidates = nearest or list(known)
        chosen = min(candidates, key=known.__getitem__)
        gone.append(Removal(chosen, known[chosen] - loss))
        listener.note(f"{chosen} goes: the loss changes from {loss:.4f} to {known[chosen]:.4f}.")
        shift = known.pop(chosen) - loss
        loss += shift
        known = {path: value + shift for path, value in known.items()}
    return gone, count


def _first(subject: Subject, count: int) -> list[tuple[Tensor, Tensor]]:
    found, left = [], count
    for images, labels in subject.batches():
        found.append((images[:left], labels[:left]))
        left -= len(labels)
        if left <= 0:
            break
    return found


def _loss(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], *out: Located) -> float:
    """Mean cross-entropy with the units `out` taken out."""
    with torch.inference_mode(), taken_out(*(found.unit for found in out)):
        total = sum(float(F.cross_entropy(model(images).float(), labels, reduction="sum")) for images, labels in batches)
    return total / sum(len(labels) for _, labels in batches)


# ------------------------------------------------------------------------------------------------------ before and after


def _compared(
    parent: Run, child: Run, paths: Sequence[str], data_dir: str | Path | None, device: str | None
) -> dict[str, dict[str, float]]:
    """Accuracy, size and speed of the parent, of the cut network before tuning, and of the new run."""
    subject = run_subject(parent, data_dir=data_dir, device=chosen_device(device))
    gone = [found.unit for found in outermost(subject.model) if found.path in paths]
    wrong = 0
    with torch.inference_mode(), taken_out(*gone):
        for images, labels in subject.batches():
            wrong += int((subject.model(images).argmax(1) != labels).sum())
    networks = [run_directories.load(run).to(subject.device) for run in (parent, child)]
    image = next(subject.batches())[0][:1].contiguous()
    slow, fast = latencies(networks, image)
    errors = [evaluate(run, data_dir=data_dir, device=device, save=False).to_dict()["top1_error"] for run in (parent, child)]
    shape = tuple(image.shape[1:])
    sizes = [{"parameters": num_parameters(net), "multiply_adds": multiply_adds(net, shape)} for net in networks]
    return {
        "before": {"top1_error": errors[0], **sizes[0], "milliseconds": slow},
        "cut": {"top1_error": 100 * wrong / subject.num_images, **sizes[1]},
        "after": {"top1_error": errors[1], **sizes[1], "milliseconds": fast},
    }


def latencies(networks: Sequence[nn.Module], image: Tensor, rounds: int = 30) -> list[float]:
    """Median milliseconds of a forward pass of each network for `image` [1, C, H, W], measured in turn so that a busy machine
    slows all alike."""
    taken: list[list[float]] = [[] for _ in networks]
    with torch.inference_mode():
        for number in range(rounds + 3):
            for times, network in zip(taken, networks):
                start = time.perf_counter()
                network(image).cpu()
                if number >= 3:
                    times.append(1000 * (time.perf_counter() - start))
    return [statistics.median(times) for times in taken]
