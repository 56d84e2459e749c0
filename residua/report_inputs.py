"""What a report is made from: everything it needs of a run directory, read once and tolerantly. Layer 4.

Whatever is optional may be missing or damaged; the report then leaves that part out and says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from residua.runs import Run
from residua.sheets import Sheet, read_sheet

__all__ = ["Inputs", "number", "read_inputs"]

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Inputs:
    """`lines`: the metric lines by split; `evaluations`: the stored results, oldest first; `damaged`: the names of those that
    cannot be read; `augmented` and `worst`: the sample images."""

    run: Run
    lines: Mapping[str, Sequence[Values]]
    evaluations: Sequence[Values]
    damaged: Sequence[str]
    augmented: Sheet | None
    worst: Sheet | None

    @property
    def splits(self) -> dict[str, list[int]]:
        """The number of images of each class, by split."""
        return {str(split): list(counts) for split, counts in (self.run.data.get("counts") or {}).items()}

    @property
    def final(self) -> str:
        """The split that is reported."""
        return "test" if "test" in self.splits or not self.splits else "val"

    @property
    def watched(self) -> str:
        """The split that was measured during training."""
        return "val" if "val" in self.splits else "test"

    @property
    def main(self) -> Values | None:
        """The newest result of this run alone, by the centre crop, on the final split of its own data."""
        own = [e for e in self.evaluations if _is_main(e, self.final) and self._own_data(e)]
        return own[-1] if own else None

    def _own_data(self, evaluation: Values) -> bool:
        return evaluation.get("data") in (None, "", self.run.data.get("source"), self.run.recipe.data.source)

    @property
    def end(self) -> Values:
        """The totals that a finished run writes down."""
        ends = self.lines.get("end", ())
        return ends[-1].get("values") or {} if ends else {}

    @property
    def training_seconds(self) -> float | None:
        """Seconds of training so far, evaluation not counted."""
        known = number(self.end.get("training_seconds"))
        if known is not None:
            return known
        seconds = [number(line.get("seconds")) for lines in self.lines.values() for line in lines]
        return max((s for s in seconds if s is not None), default=None)

    @property
    def steps_done(self) -> int:
        """The last step of which there is a metric line."""
        return max((int(line.get("step") or 0) for lines in self.lines.values() for line in lines), default=0)

    def finished(self) -> bool:
        """Whether the run came to its end."""
        return "end" in self.lines or self.run.finished()

    def series(self, split: str, key: str) -> tuple[list[float], list[float]]:
        """(epochs, values) of one quantity; steps instead of epochs if the length of an epoch is not known."""
        per_epoch = self.run.manifest.get("steps_per_epoch") or 1
        found = [(number(line.get("step")), number((line.get("values") or {}).get(key))) for line in self.lines.get(split, ())]
        known = [(step / per_epoch, value) for step, value in found if step is not None and value is not None]
        return [step for step, _ in known], [value for _, value in known]


def number(thing: Any) -> float | None:
    """The value if it is a finite number, else None."""
    if isinstance(thing, bool) or not isinstance(thing, (int, float)) or not math.isfinite(thing):
        return None
    return thing


def read_inputs(run: Run) -> Inputs:
    """Everything the report needs of `run`."""
    lines: dict[str, list[Values]] = {}
    for line in run.metrics():
        if isinstance(line, dict):
            lines.setdefault(str(line.get("split")), []).append(line)
    evaluations, damaged = _evaluations(*dict.fromkeys((run.path / "evaluations", run.outputs / "evaluations")))
    samples = run.outputs / "samples"
    return Inputs(run, lines, evaluations, damaged, read_sheet(samples / "augmented.png"), read_sheet(samples / "worst.png"))


def _evaluations(*folders: Path) -> tuple[list[Values], list[str]]:
    found: list[Values] = []
    damaged: list[str] = []
    paths = [path for folder in folders for path in folder.glob("*.json")]
    for path in sorted(paths, key=lambda p: (p.stat().st_mtime_ns, p.name)):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            values = None
        if isinstance(values, dict) and number(values.get("top1_error")) is not None:
            found.append(values)
        else:
            damaged.append(path.name)
    return found, damaged


def _is_main(evaluation: Values, split: str) -> bool:
    alone = len(evaluation.get("runs") or [None]) == 1 and evaluation.get("weights") in (None, "final")
    return alone and evaluation.get("protocol") == "center" and evaluation.get("split") == split
