"""Batches as pure functions of position: which samples a step sees, and their pixels. Layer 2.

Position is (epoch, step). An epoch's order is a keyed permutation of the training split; a step takes the next `batch_size` of
it, and the remainder at the epoch's end that does not fill a batch is left out (another one each epoch). A process takes its
share of each batch, so the global order is the same for any number of processes; shares and micro-batches are cut at even
places, so that mixing never crosses them. Nothing here has state: to resume is to start the iterator at a later step.

Of views that had to be made, the channels of a pixel lie side by side in memory ("channels last").
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from residua import keyed
from residua.augment import Key
from residua.dataset import ArraySamples, Samples
from residua.errors import UnreadableImage
from residua.images import View
from residua.recipe import Augment
from residua.views import CentralView, train_views

__all__ = ["AHEAD", "Batch", "CentralView", "Order", "Share", "evaluation_batches", "even_cuts", "train_batches"]

AHEAD = 2
"""Batches that are prepared while one is in use."""

PART = 8
"""Images that a thread takes at a time."""


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

    Images in memory that need no view of their own are taken by index, on the device on which they lie; of all others the
    next `AHEAD` batches are prepared by `workers` threads while one is in use (0: by this thread, when it is asked for).
    """
    if isinstance(samples, ArraySamples) and augment.crop in ("none", "pad") and samples.images.shape[-2:] == (size, size):
        for step, epoch, draws in order.steps(first, last, share):
            yield _from_memory(samples, step, epoch, draws)
        return

    def asked() -> Iterator[_Asked]:
        for step, epoch, draws in order.steps(first, last, share):
            yield _Asked(step, epoch, draws, train_views(augment, size, Key(order.seed, epoch), draws))

    yield from _prepared(samples, asked(), workers)


def evaluation_batches(samples: Samples, indices: Tensor, view: View, batch_size: int, workers: int = 0) -> Iterator[Batch]:
    """The samples at `indices`, each once, in order, as `view` shows them (all of one shape); `draws` are the places."""
    chunks = indices.split(batch_size) if len(indices) else ()
    if isinstance(samples, ArraySamples) and isinstance(view, CentralView) and view.keeps(samples.images):
        for step, chunk in enumerate(chunks):
            yield _from_memory(samples, step, 0, chunk)
        return
    yield from _prepared(samples, (_Asked(step, 0, chunk, [view] * len(chunk)) for step, chunk in enumerate(chunks)), workers)


def _from_memory(samples: ArraySamples, step: int, epoch: int, draws: Tensor) -> Batch:
    places = draws % len(samples)
    bad = [place for place in places.tolist() if place in samples.unreadable] if samples.unreadable else []
    valid = torch.ones(len(places), dtype=torch.bool) if not bad else ~torch.isin(places, torch.tensor(bad))
    listed = tuple((samples.names[place], samples.unreadable[place]) for place in bad)
    on_device = places.to(samples.images.device)
    images = samples.images
    images = images.index_select(0, on_device) if images.is_contiguous() else images[on_device]  # the first copies whole images
    return Batch(step, epoch, images, samples.labels[places], draws, valid, listed)


# ------------------------------------------------------------------------------------------------- preparing, in threads


@dataclass(frozen=True)
class _Asked:
    """A batch that is to be made: one view a draw."""

    step: int
    epoch: int
    draws: Tensor
    views: list[View]


def _prepared(samples: Samples, asked: Iterator[_Asked], workers: int) -> Iterator[Batch]:
    """The batches that are `asked` for, in order. Decoding and resizing let go of Python's lock, so that threads do them side
    by side, and what they make needs no way from process to process."""
    if not workers or (isinstance(samples, ArraySamples) and samples.images.is_cuda):
        for one in asked:
            assembly = _Assembly(samples, one)
            assembly.fill(range(len(one.views)))
            yield assembly.batch()
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="data", initializer=_step_back)
    under_way: deque[tuple[_Assembly, list[Future[None]]]] = deque()
    try:
        while True:
            for one in islice(asked, AHEAD + 1 - len(under_way)):
                assembly, count = _Assembly(samples, one), len(one.views)
                parts = [range(start, min(start + PART, count)) for start in range(0, count, PART)]
                under_way.append((assembly, [pool.submit(assembly.fill, part) for part in parts]))
            if not under_way:
                return
            assembly, futures = under_way.popleft()
            for future in futures:
                future.result()
            yield assembly.batch()
    finally:
        pool.shutdown(cancel_futures=True)


def _step_back() -> None:
    """Lets the threads that compute go first: each of their parallel regions lasts as long as its slowest thread."""
    if sys.platform == "linux":  # elsewhere it would be the whole process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10))


class _Assembly:
    """A batch in the making: rows may be filled in any order and by several threads, each into its place."""

    def __init__(self, samples: Samples, asked: _Asked) -> None:
        self.samples, self.asked = samples, asked
        self.places = asked.draws % len(samples)
        self.reasons: dict[int, str] = {}
        self.images: Tensor | None = None  # [N, ..., H, W, C]
        self.lock = threading.Lock()

    def fill(self, rows: range) -> None:
        """Puts the views of these rows into their places."""
        for row in rows:
            try:
                view = self.samples.seen(int(self.places[row]), self.asked.views[row]).movedim(-3, -1)
            except UnreadableImage as error:
                self.reasons[row] = str(error)
                continue
            images = self._room(view)
            if view.is_cuda:
                images[row] = view
            else:  # torch would start a team of threads of its own from each of ours
                np.copyto(images[row].numpy(), view.numpy())

    def _room(self, like: Tensor) -> Tensor:
        with self.lock:
            if self.images is None:
                shape, pinned = (len(self.asked.views), *like.shape), torch.cuda.is_initialized() and not like.is_cuda
                self.images = torch.empty(shape, dtype=torch.uint8, device=like.device, pin_memory=pinned)
            return self.images

    def batch(self) -> Batch:
        """The batch, when all rows were filled."""
        asked, count = self.asked, len(self.places)
        images = self.images if self.images is not None else torch.zeros((count, 1, 1, 1), dtype=torch.uint8)
        bad = sorted(self.reasons)
        images[bad] = 0
        valid = torch.ones(count, dtype=torch.bool)
        valid[bad] = False
        names = [self.samples.names[int(self.places[row])] for row in bad]
        listed = tuple(zip(names, (self.reasons[row] for row in bad)))
        labels = self.samples.labels[self.places]
        return Batch(asked.step, asked.epoch, images.movedim(-1, -3), labels, asked.draws, valid, listed)
