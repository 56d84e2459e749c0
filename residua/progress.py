"""What a person sees while a run trains: a bar on a terminal, a line now and then elsewhere. Layer 6."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from residua.wording import duration

__all__ = ["AnalysisWatch", "ReproductionWatch", "Watch"]


class Watch:
    """A `Listener` for the command line; `say` prints a line to stderr."""

    def __init__(self, say: Callable[[str], None], interval: float = 10.0) -> None:
        self.say, self.interval, self.said = say, interval, time.monotonic()
        self.bar: Progress | None = None
        self.latest = ""

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=Console(stderr=True))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def note(self, text: str) -> None:
        """A sentence the user should know of."""
        if self.bar is not None and self.bar.live.is_started:
            self.bar.console.print(text, markup=False, highlight=False)
        else:
            self.say(text)

    def progress(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """Moves the bar, or says a line if the last one is long ago."""
        text = (
            f"loss {values['loss']:.3f}  error {values['error']:.1f} %  {values['images_per_second']:,.0f} images/s{self.latest}"
        )
        if self.bar is not None:
            if not self.bar.task_ids:
                self.bar.start()
                self.bar.add_task("", total=total)
            self.bar.update(self.bar.task_ids[0], completed=step, description=text)
        elif time.monotonic() - self.said >= self.interval or step == total:
            self.said = time.monotonic()
            self.say(f"step {step:,}/{total:,}  {text}")

    def measured(self, split: str, values: Mapping[str, float]) -> None:
        """Notes the newest measurement."""
        self.latest = f"  {split} error {values['top1_error']:.2f} %"
        if self.bar is None:
            self.say(f"{split}: loss {values['loss']:.4f}, top-1 error {values['top1_error']:.2f} %")


class ReproductionWatch(Watch):
    """Watches a matrix of runs: which one runs, how many are done and left, the time to the end; and within a run as `Watch`."""

    def __init__(self, say: Callable[[str], None], interval: float = 30.0) -> None:
        super().__init__(say, interval)
        self.head = ""

    def task(self, name: str, done: int, total: int, left: float) -> None:
        """Says that the run called `name` begins, `done` of `total` being done and `left` seconds forecast to the end."""
        self.head, self.latest = name, ""
        if self.bar is not None and self.bar.task_ids:
            self.bar.reset(self.bar.task_ids[0])
        self.note(f"[{done}/{total} done] {name}: {total - done - 1} more after it, about {duration(left)} to the end.")

    def measured(self, split: str, values: Mapping[str, float]) -> None:
        """Remembers the newest measurement, to be said with the next progress."""
        self.latest = f"  {split} error {values['top1_error']:.2f} %"

    def progress(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """Moves the bar of this run, or says a line now and then."""
        if self.bar is not None and self.bar.task_ids:
            self.bar.update(self.bar.task_ids[0], total=total)
        if self.bar is not None or step < total:
            super().progress(step, total, values)


class AnalysisWatch:
    """Watches analyses: a bar of the time that was forecast, or a line when another analysis begins."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.latest = say, ""
        self.bar: Progress | None = None

    def __enter__(self) -> AnalysisWatch:
        if sys.stderr.isatty():
            text = TextColumn("{task.description}")
            columns = (text, BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=Console(stderr=True))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def note(self, text: str) -> None:
        """A sentence the user should know of."""
        self.say(text)

    def working(self, what: str, done: float) -> None:
        """Moves the bar to the share `done` of all, or says what begins."""
        if self.bar is not None:
            if not self.bar.task_ids:
                self.bar.start()
                self.bar.add_task("", total=1.0)
            self.bar.update(self.bar.task_ids[0], completed=done, description=what)
        elif what != self.latest and done < 1:
            self.say(f"{what} ({100 * done:.0f} % done)")
        self.latest = what
