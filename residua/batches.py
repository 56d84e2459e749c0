"""Batches as pure functions of position: which samples a step sees, and their pixels. Layer 2.

Position is (epoch, step). An epoch's order is a keyed permutation of the training split; a step takes the next `batch_size` of
it, and the remainder at the epoch's end that does not fill a batch is left out (another one each epoch). A process takes its
share of each batch, so the global order is the same for any number of processes; shares and micro-batches are cut at even
places, so that mixing never crosses them. Nothing here has state: to resume is to start the iterator at a later step.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from residua import keyed
from residua.augment import Key, central_view, train_view
from residua.dataset import ArraySamples, Samples
from residua.errors import RunError, UnreadableImage
from residua.recipe import Augment

__all__ = ["Batch", "CentralView", "Order", "Share", "evaluation_batches", "even_cuts", "train_batches"]


@dataclass(frozen=True)
class Share:
    """The part of every batch that process `rank` of `world` takes."""

    rank: int = 0
    world: int = 1


@dataclass(frozen=True)
class Batch:
    """`images` uint8 [N, C, S, S], `labels` int64 [N], `draws` int64 [N]; `valid` bool [N] is false where a file could not be
    decoded (its pixels are zero), and `unreadable` says which and why."""

    step: int
    epoch: int
    images: Tensor
    labels: Tensor
    draws: Tensor
    valid: Tensor
    unreadable: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Order:
    """Which samples each step of a run sees: `labels` of the training split, `batch_size` of all processes together."""

    labels: Tensor
    batch_size: int
    seed: int
    balanced: bool = False

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in an epoch."""
        return max(1, len(self.labels) // self.batch_size)

    def epoch(self, epoch: int) -> Tensor:
        """The draws of one epoch, in order."""
        count = len(self.labels)
        if not self.balanced:
            return keyed.permutation(count, self.seed, epoch, "order")
        draws = torch.cat([self._repeated(members, epoch) for members in self._members()])
        return draws[keyed.permutation(len(draws), self.seed, epoch, "order")][:count]

    def _members(self) -> list[Tensor]:
        return [(self.labels == label).nonzero().flatten() for label in self.labels.unique().tolist()]

    def _repeated(self, members: Tensor, epoch: int) -> Tensor:
        """A class's samples, shuffled and repeated to an equal share; a repeat is a draw of its own, augmented anew."""
        wanted = -(-len(self.labels) // int(self.labels.unique().numel()))
        order = members[keyed.permutation(len(members), self.seed, epoch, "class", int(self.labels[members[0]]))]
        place = torch.arange(wanted)
        return order[place % len(members)] + len(self.labels) * (place // len(members))

    def steps(self, first: int, last: int, share: Share) -> Iterator[tuple[int, int, Tensor]]:
        """(step, epoch, draws of this process) for the steps first .. last - 1."""
        epoch, draws = -1, torch.empty(0)
        for step in range(first, last):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                draws = self.epoch(epoch)
            start = step % self.steps_per_epoch * self.batch_size
            batch = draws[start : start + self.batch_size]
            cuts = even_cuts(len(batch), share.world)
            yield step, epoch, batch[cuts[share.rank] : cuts[share.rank + 1]]


def even_cuts(count: int, parts: int) -> list[int]:
    """The `parts + 1` places that cut `count` into nearly equal parts, each at an even place (but for the end)."""
    return [min(count, 2 * round(part * count / parts / 2)) for part in range(parts)] + [count]


def train_batches(
    samples: Samples, order: Order, augment: Augment, size: int, first: int, last: int, share: Share, workers: int
) -> Iterator[Batch]:
    """The batches of steps first .. last - 1, before the batch-wise transforms.

    Images in memory that need no view of their own are taken by index, on the device on which they lie; all others go
    through `workers` processes (0: this one).
    """
    if isinstance(samples, ArraySamples) and augment.crop in ("none", "pad") and samples.images.shape[-2:] == (size, size):
        for step, epoch, draws in order.steps(first, last, share):
            yield _from_memory(samples, step, epoch, draws)
        return
    loader = _loader(_TrainFetch(samples, augment, size, order.seed), _Keys(order, first, last, share), workers)
    for (step, epoch, draws), (images, valid, unreadable) in zip(order.steps(first, last, share), _guarded(loader)):
        labels = samples.labels[draws % len(samples)]
        yield Batch(step, epoch, images, labels, draws, valid, unreadable)


def _from_memory(samples: ArraySamples, step: int, epoch: int, draws: Tensor) -> Batch:
    places = draws % len(samples)
    bad = [place for place in places.tolist() if place in samples.unreadable] if samples.unreadable else []
    valid = torch.ones(len(places), dtype=torch.bool) if not bad else ~torch.isin(places, torch.tensor(bad))
    listed = tuple((samples.names[place], samples.unreadable[place]) for place in bad)
    on_device = places.to(samples.images.device)
    return Batch(step, epoch, samples.images[on_device], samples.labels[places], draws, valid, listed)


@dataclass(frozen=True)
class CentralView:
    """The evaluation view of one image: `size` pixels square, cut from a shorter side of `size / fraction`."""

    size: int
    fraction: float = 1.0

    def __call__(self, image: Tensor) -> Tensor:
        return central_view(image, self.size, self.fraction)

    def keeps(self, images: Tensor) -> bool:
        """Whether the view leaves images of this shape as they are."""
        return self.fraction == 1.0 and images.shape[-2:] == (self.size, self.size)


def evaluation_batches(
    samples: Samples, indices: Tensor, view: Callable[[Tensor], Tensor], batch_size: int, workers: int = 0
) -> Iterator[Batch]:
    """The samples at `indices`, each once, in order, as `view` shows them (all of one shape); `draws` are the places."""
    chunks = list(indices.split(batch_size)) if len(indices) else []
    if isinstance(samples, ArraySamples) and isinstance(view, CentralView) and view.keeps(samples.images):
        for step, chunk in enumerate(chunks):
            yield _from_memory(samples, step, 0, chunk)
        return
    loader = _loader(_ViewFetch(samples, view), [chunk.tolist() for chunk in chunks], workers)
    for step, (chunk, (images, valid, unreadable)) in enumerate(zip(chunks, _guarded(loader))):
        yield Batch(step, 0, images, samples.labels[chunk], chunk, valid, unreadable)


# ------------------------------------------------------------------------------------------------- fetching, in workers

_Fetched = tuple[str, Tensor | str]


@dataclass(frozen=True)
class _TrainFetch:
    """Sample-wise part of training: decode and view. Indexed by (epoch, draw)."""

    samples: Samples
    augment: Augment
    size: int
    seed: int

    def __getitem__(self, position: tuple[int, int]) -> _Fetched:
        epoch, draw = position
        place = draw % len(self.samples)
        try:
            image = self.samples.load(place)
        except UnreadableImage as error:
            return self.samples.names[place], str(error)
        return self.samples.names[place], train_view(image, self.augment, self.size, Key(self.seed, epoch), draw)


@dataclass(frozen=True)
class _ViewFetch:
    """Decode and view for evaluation. Indexed by place."""

    samples: Samples
    view: Callable[[Tensor], Tensor]

    def __getitem__(self, place: int) -> _Fetched:
        try:
            return self.samples.names[place], self.view(self.samples.load(place))
        except UnreadableImage as error:
            return self.samples.names[place], str(error)


@dataclass(frozen=True)
class _Keys:
    """The batch sampler: lists of (epoch, draw)."""

    order: Order
    first: int
    last: int
    share: Share

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for _, epoch, draws in self.order.steps(self.first, self.last, self.share):
            yield [(epoch, draw) for draw in draws.tolist()]

    def __len__(self) -> int:
        return self.last - self.first


def _collate(fetched: list[_Fetched]) -> tuple[Tensor, Tensor, tuple[tuple[str, str], ...]]:
    shapes = [image.shape for _, image in fetched if isinstance(image, Tensor)]
    blank = torch.zeros(shapes[0] if shapes else (1, 1, 1), dtype=torch.uint8)
    images = torch.stack([image if isinstance(image, Tensor) else blank for _, image in fetched])
    valid = torch.tensor([isinstance(image, Tensor) for _, image in fetched])
    return images, valid, tuple((name, reason) for name, reason in fetched if isinstance(reason, str))


def _loader(dataset: object, keys: object, workers: int) -> DataLoader:
    workers = workers if shared_memory_suffices() else 0
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=keys,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_quiet_worker if workers else None,
        prefetch_factor=2 if workers else None,
        generator=torch.Generator().manual_seed(0),  # the loader draws a seed; nothing here uses it
    )


def _quiet_worker(_: int) -> None:
    """Ctrl-C and a batch system's SIGTERM reach all processes of a run; only the main one acts, and it ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _guarded(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor, tuple[tuple[str, str], ...]]]:
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RunError(f"A data worker died: {error} Continue with the same command, if need be with --workers 0.") from error


def shared_memory_suffices(needed: int = 128 * 2**20) -> bool:
    """Whether worker processes have room to hand over batches; containers often grant only 64 MiB of shared memory."""
    return not os.path.isdir("/dev/shm") or shutil.disk_usage("/dev/shm").free >= needed  # noqa: PTH112
