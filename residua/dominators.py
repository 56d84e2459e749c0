"""The tree of dominators of a flow: of each step the nearest one that every way to it passes. Layer 3.

Two ways part at the nearest common dominator of their ends. A root, `ROOT`, precedes all sources. The search for it is that of
Cooper, Harvey and Kennedy 2001 (figure 3), which on a graph without circles ends after one pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from residua.flow import Flow

__all__ = ["ROOT", "Dominators"]

ROOT = -1


class Dominators:
    """`nearest` holds for each step of a flow the number of its nearest dominator, `ROOT` for a source."""

    def __init__(self, flow: Flow) -> None:
        self.nearest: list[int] = []
        self._depths: list[int] = []
        for step in flow.steps:
            self.nearest.append(self.common(step.inputs))
            self._depths.append(self._depths[self.nearest[-1]] + 1 if self.nearest[-1] != ROOT else 1)

    def common(self, steps: Sequence[int]) -> int:
        """The nearest common dominator of steps, each of which dominates itself; the root for none."""
        common = steps[0] if steps else ROOT
        for other in steps[1:]:
            while common != other:
                if other == ROOT or (common != ROOT and self._depths[common] >= self._depths[other]):
                    common = self.nearest[common]
                else:
                    other = self.nearest[other]
        return common

    def chain(self, start: int, end: int) -> Iterator[int]:
        """The dominators of `end`, itself first, up to `start`, which is one of them and is left out."""
        while end != start:
            yield end
            end = self.nearest[end]

    def below(self, dominator: int, step: int) -> int:
        """The step directly under `dominator`, in the tree, that dominates `step`."""
        while self.nearest[step] != dominator:
            step = self.nearest[step]
        return step
