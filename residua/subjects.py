"""What can be analysed, made from a run or from any module with images. Layer 3.

The images of a run are those of one of its splits, as evaluation sees them, in an order drawn once from a seed: folders
list their classes one after the other, and an analysis that stops early must not see the first class only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from residua import keyed
from residua import runs as run_directories
from residua.analysis import Place, Subject, on_ladder
from residua.augment import normalized
from residua.batches import evaluation_batches
from residua.errors import RequestError
from residua.graph import shape_of
from residua.measured_split import open_split
from residua.resolve import side_of
from residua.rewired import Rewired
from residua.runs import Run
from residua.scoring import evaluation_view
from residua.unit import Concat, walk

__all__ = ["batch_size_for", "module_subject", "places", "run_subject", "skip_places"]

LARGEST_BATCH = 250


def run_subject(
    run: Run | Path | str,
    *,
    data: str | None = None,
    data_dir: Path | str | None = None,
    split: str | None = None,
    device: torch.device | None = None,
    name: str | None = None,
    order_seed: int | None = None,
) -> Subject:
    """The trained network of a run (its final weights) with the images of `split` (by default "test", else "val").

    `data` is another source than the run's own; its classes are matched by name. The order of the images is drawn from
    `order_seed`, by default the run's own: networks that are compared are given one. Raises `RequestError` where there is no
    such split, or where the classes differ.
    """
    opened = run if isinstance(run, Run) else run_directories.open_run(run)
    device = device or torch.device("cpu")
    chosen = open_split(opened, data, split, int(opened.normalization["std"].shape[0]), data_dir)
    samples = chosen.samples
    seed = opened.recipe.seed
    order = keyed.permutation(len(samples), seed if order_seed is None else order_seed, "analysis")
    view, size = evaluation_view(opened.recipe), batch_size_for(side_of(opened.recipe))
    statistics = {key: values.to(device) for key, values in opened.normalization.items()}

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in evaluation_batches(samples, order, view, size):
            if batch.valid.any():
                images = normalized(batch.images[batch.valid].to(device), statistics)
                yield _laid_out(images), batch.labels[batch.valid].to(device)

    with torch.random.fork_rng(devices=[]):
        model = run_directories.load(opened)
    model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Subject(
        name=name or opened.path.name or str(opened.path),
        model=model,
        batches=batches,
        num_images=len(samples),
        classes=tuple(opened.classes),
        units=places(model, next(batches())[0][:2]),
        seed=seed,
        device=device,
        data=f"{chosen.source}, {chosen.name}",
        normalization=opened.normalization,
        fresh=_builder(opened.build, seed),
        run=opened,
    )


def module_subject(
    module: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    classes: Sequence[str] | None = None,
    name: str = "model",
    seed: int = 0,
    device: torch.device | None = None,
) -> Subject:
    """Any module that maps images [N, C, H, W] to logits [N, K], with `batches` of (normalised images, labels) that can be read
    again and again in the same order: a list, or a loader that does not shuffle.

    The module itself is used, not a copy, and put into evaluation mode. Raises `RequestError` for batches that can be read only
    once, that are empty, whose images are no floating-point tensors, whose labels are not the numbers of classes, or on which the
    module does not give logits.
    """
    if isinstance(batches, Iterator):
        raise RequestError("The batches of an analysis are read several times: give a list or a loader, not an iterator.")
    device = device or next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    module = module.to(device).eval()

    def again() -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in batches:
            yield images.to(device), labels.to(device, torch.int64)

    highest, sizes = _labels(batches)
    if not sum(sizes):
        raise RequestError("There are no images to analyse: the batches are empty.")
    sample = next(again())[0][:2]
    with torch.inference_mode():
        logits = module(sample)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise RequestError(
            f"The module gives {tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__} for "
            f"{tuple(sample.shape)}: an analysis needs logits [N, K]."
        )
    if logits.shape[1] < 2:
        raise RequestError("The module gives one logit: an analysis needs logits [N, K] of at least two classes.")
    if highest >= logits.shape[1]:
        raise RequestError(
            f"The module gives {logits.shape[1]} logits, and a label is {highest}: labels are from 0 to {logits.shape[1] - 1}."
        )
    names = tuple(classes) if classes is not None else tuple(map(str, range(logits.shape[1])))
    if len(names) != logits.shape[1]:
        raise RequestError(f"The module gives {logits.shape[1]} logits, and {len(names)} classes are named.")
    units, rewired, unseen = places(module, sample), None, ""
    if not units:
        try:
            rewired = Rewired(module, sample)
            units = skip_places(rewired)
        except RequestError as error:
            unseen = f"The skips of {name} could not be looked for: {error}"
    return Subject(
        name, module, again, sum(sizes), names, units, seed, device, "the given batches",
        rewired=rewired if units and units[0].unit is None else None, unseen=unseen,
    )  # fmt: skip


def _labels(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[int, list[int]]:
    """The highest label and the sizes of the batches, whose images and labels are checked."""
    highest, sizes = -1, []
    for images, labels in batches:
        if not (isinstance(images, Tensor) and images.is_floating_point()):
            given = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise RequestError(
                f"Images to analyse are a floating-point tensor [N, C, H, W], normalised as the module's input is; these are "
                f"{given}. Pixels of 0 to 255 become one by (images.float() / 255 - mean) / std."
            )
        whole = isinstance(labels, Tensor) and not (
            labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
        )
        if not whole or labels.shape != images.shape[:1]:
            given = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
            raise RequestError(
                f"Labels are a tensor [N] of whole numbers, one for each image; for images {list(images.shape)} they are {given}."
            )
        sizes.append(len(labels))
        if len(labels):
            lowest, highest = int(labels.min()), max(highest, int(labels.max()))
            if lowest < 0:
                raise RequestError(f"A label is {lowest}: labels are the numbers of the classes, from 0.")
    return highest, sizes


def places(model: nn.Module, sample: Tensor) -> tuple[Place, ...]:
    """The units of `model` in the order of the walk; `sample` [N, C, H, W] runs through it once to see where shapes change."""
    located = list(walk(model))
    changed: dict[nn.Module, bool] = {}

    def note(unit: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        changed[unit] = _is_transition(inputs[0].shape, output.shape, isinstance(unit.merge, Concat))

    handles = [item.unit.register_forward_hook(note) for item in located]
    try:
        with torch.inference_mode():
            model(sample)
    finally:
        for handle in handles:
            handle.remove()
    found: list[Place] = []
    passed = 0
    for item in located:
        passed += changed.get(item.unit, False) and bool(found)
        parts = item.path.split(".")
        stage = int(parts[1]) if parts[0] == "stages" and parts[1].isdigit() else passed
        shortcut = item.unit.shortcut is not None
        found.append(Place(item.index, item.path, stage, item.depth, changed.get(item.unit, False), shortcut, item.unit))
    return tuple(found)


def skip_places(rewired: Rewired) -> tuple[Place, ...]:
    """The skips of a network that is not built of units, in the order of their merges."""
    found: list[Place] = []
    passed = 0
    for skip in rewired.skips:
        changes = _is_transition(shape_of(skip.source_node), shape_of(skip.merge_node), skip.kind == "concatenate")
        passed += changes and bool(found)
        found.append(Place(skip.index, skip.merge, passed, skip.level, changes, True))
    return tuple(found)


def _is_transition(before: tuple[int, ...], after: tuple[int, ...], concatenates: bool) -> bool:
    """Whether the shape changes; of a concatenation, which adds channels by its nature, that of the map."""
    return before[2:] != after[2:] if concatenates else before != after


def batch_size_for(side: int) -> int:
    """The images of a batch whose signals at every unit can be kept at once: as many pixels as 250 images of 32 pixels a side."""
    return on_ladder(LARGEST_BATCH * (32 / side) ** 2, LARGEST_BATCH)


def _builder(build: Callable[[], nn.Module], seed: int) -> Callable[[], nn.Module]:
    def fresh() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed.generator_seed(seed, "analysis", "fresh"))
            return build().eval()

    return fresh


def _laid_out(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)
