"""What an analysis is, what it is asked about, and what it may spend: `Analysis`, `Subject`, `Budget`. Layer 3.

An analysis measures one subject, a network with images, and gives plain numbers; drawing and reading see nothing but those
numbers, so that a page can be written again without the network. Nothing here edits a network or draws from a global generator.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from residua.catalog import Catalog
from residua.errors import RequestError
from residua.runs import Run
from residua.unit import Unit, switched_off

__all__ = ["CATALOG", "LADDER", "Analysis", "Budget", "Drawing", "NotApplicable", "Place", "Subject", "affordable", "on_ladder"]

CATALOG = Catalog("residua.analyses", "analysis", "docs/analyses.md describes them.")

LADDER = (8, 16, 32, 64, 125, 250, 375, 500, 750, 1_000, 1_500, 2_000, 3_000, 5_000, 7_500, 10_000, 20_000, 50_000)
"""The numbers of images (or draws) that an analysis chooses from, so that a little more or less time gives the same numbers."""


class NotApplicable(RequestError):
    """This analysis has no meaning for this subject; the message says why. The other analyses and subjects go on."""


@dataclass(frozen=True)
class Place:
    """Something of a subject that can be switched off: a unit of ours, or a skip that the census found.

    `path` is its dotted name, `stage` the number of the stage it stands in (from 0), `depth` its nesting (0: in no other unit).
    `changes_shape` says that its output has another shape than its input (a stage transition), but for the channels that a
    concatenation adds; `shortcut` that something is left when it is off. `unit` is the module, None for a skip of a network that
    is not built of units.
    """

    index: int
    path: str
    stage: int
    depth: int
    changes_shape: bool
    shortcut: bool
    unit: Unit | None = None


@dataclass(frozen=True)
class Subject:
    """What is analysed: the network of a run, or any module with data.

    `model` is in evaluation mode on `device` and gives logits float [N, K] for images float [N, C, H, W]. `batches()` begins
    anew each time and gives the same (normalised images, labels int64 [N]) on `device` in the same order, an even mixture of the
    classes from its start, `num_images` in all. `units` lists what can be switched off, in order of the network.

    `normalization` has "mean" and "std" (float32, [C, 1, 1] or [C, H, W], in units of pixel value / 255) where they are known, to
    show the images. `fresh()`, where it can be done, builds the same network freshly initialised, the same one each time, in
    evaluation mode on the CPU. `run` is the run that the network comes from. `rewired` is, for a network not built of units, the
    same network with the skips that its census found, to be called with the numbers of those that are `off`; where they could
    not be looked for, `unseen` says why. `data` names the images for people.
    """

    name: str
    model: nn.Module
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    num_images: int
    classes: tuple[str, ...]
    units: tuple[Place, ...]
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    data: str = ""
    normalization: Mapping[str, Tensor] | None = None
    fresh: Callable[[], nn.Module] | None = None
    run: Run | None = None
    rewired: Callable[..., Tensor] | None = None
    unseen: str = ""

    def images(self, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` images and their labels (fewer where there are fewer): [N, C, H, W] and [N]."""
        parts: list[tuple[Tensor, Tensor]] = []
        found = 0
        for images, labels in self.batches():
            parts.append((images, labels))
            found += len(labels)
            if found >= count:
                break
        return torch.cat([images for images, _ in parts])[:count], torch.cat([labels for _, labels in parts])[:count]

    @contextmanager
    def off(self, *places: Place) -> Iterator[Callable[[Tensor], Tensor]]:
        """Within the block the function that is given maps images to logits with the branches of `places` counting as zero
        (`residua.unit.switched_off`): what is left of a unit is its shortcut, and of a plain unit nothing."""
        if self.rewired is None:
            with switched_off(*(place.unit for place in places if place.unit is not None)):
                yield self.model
            return
        yield partial(self.rewired, off=[place.index for place in places])


class Budget:
    """The seconds that one analysis of one subject may take, and a way to say how far it is.

    `progress` is called with the share that is done, from 0 to 1. `clock` gives seconds.
    """

    def __init__(
        self, seconds: float, progress: Callable[[float], None] | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.seconds, self._progress, self._clock = seconds, progress, clock
        self._start = clock()

    @property
    def spent(self) -> float:
        """Seconds since the budget was given."""
        return self._clock() - self._start

    @property
    def left(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self.seconds - self.spent)

    def progress(self, done: float) -> None:
        """Says that the share `done` of the work, from 0 to 1, lies behind."""
        if self._progress is not None:
            self._progress(min(1.0, max(0.0, done)))

    def timed(self, work: Callable[[], object]) -> float:
        """The seconds that `work` takes: run once to warm up, then once for the measurement."""
        work()
        start = self._clock()
        work()
        return max(self._clock() - start, 1e-9)


def affordable(seconds: float, each: float, most: int) -> int:
    """The largest number of `LADDER` up to `most` that costs at most `seconds`, `each` seconds a piece; at least the smallest."""
    return on_ladder(min(float(most), seconds / each), most)


def on_ladder(number: float, most: int) -> int:
    """`most` if `number` reaches it, else the largest entry of `LADDER` up to `number` (at least the first), at most `most`."""
    if number >= most:
        return most
    return min(most, max((step for step in LADDER if step <= number), default=LADDER[0]))


@dataclass(frozen=True)
class Drawing:
    """A figure of the page: an inline SVG (`residua.plots`), its heading, and a caption that says what is drawn. `wide` figures
    take the whole width of the page, the others stand side by side where there is room."""

    title: str
    svg: str
    caption: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Analysis:
    """One analysis, the same for every subject.

    `measure(subject, budget)` gives plain JSON values (None instead of NaN or infinity) of one subject. They hold "used", what
    the numbers stand on by name ({"images": 1000, "draws": 10}), adapted to the budget, which it may overrun by a tenth or a
    few seconds. It raises `NotApplicable` with the reason where it has no meaning, and leaves the model and the generators as
    they were. `draw(results)` gives the figures of one or several subjects, whose results are given by name, and
    `read(results)` two sentences: what to look for, and what these numbers say. Both use nothing but their argument. `share` is
    the part of the whole time, relative to that of the other analyses, that it should get. `work(subject)`, where it can be
    known, is the most it can use, in forward passes of one image: what it does not need goes to the others. `title` is its
    heading, `about` one sentence: what is measured, by what definition, from which paper.
    """

    name: str
    title: str
    about: str
    measure: Callable[[Subject, Budget], dict[str, Any]]
    draw: Callable[[Mapping[str, Mapping[str, Any]]], Sequence[Drawing]]
    read: Callable[[Mapping[str, Mapping[str, Any]]], tuple[str, str]]
    share: float = 1.0
    work: Callable[[Subject], float] | None = None
