"""How many paths a network has and how long they are, exactly, as integers of any size. Layer 3.

The unravelled view of Veit et al. 2016 (section 3): at every skip a path goes either way, so that n units in series have 2^n
paths. A path is one such decision at each of the skips that it meets on the way back from the output; at a join that is no skip
it takes all towers, and its length is that of the longest. Lengths are counted in weight layers (a projection counts) or in
units (merges at which the path takes the branch; Veit et al., section 5).

The rule for any graph, by its dominator tree: a choice with the inputs a and b, whose nearest common dominator is d, has
w(d, a) + w(d, b) ways from d, a join the product of its inputs' ways, and along a chain of dominators ways multiply. A generating
function takes the place of the number where lengths are asked for: the sum of c z^l over lengths l with c paths. Factors along a
chain are collected as a multiset, and their powers are expanded by a linear recurrence, never one by one. Where the towers of a
join share skips below d (a decoder that reads its encoder in every layer), they are not independent; `_crossing` follows them
together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from residua.dominators import ROOT, Dominators
from residua.errors import RunError
from residua.flow import Flow, Step
from residua.generating import ONE, Terms, added, longest, product, shifted, times

__all__ = ["Lengths", "num_paths", "path_lengths"]

_WIDEST = 20_000  # sets of steps followed at once before giving up


@dataclass(frozen=True)
class Lengths:
    """How many paths have which length: `counts` maps a length to an exact number of paths, by length."""

    counts: Mapping[int, int]

    @cached_property
    def num_paths(self) -> int:
        return sum(self.counts.values())

    @property
    def shortest(self) -> int:
        return min(self.counts)

    @property
    def longest(self) -> int:
        return max(self.counts)

    @cached_property
    def mean(self) -> float:
        return float(Fraction(sum(length * count for length, count in self.counts.items()), self.num_paths))

    @cached_property
    def standard_deviation(self) -> float:
        """Of the length over all paths, each weighing the same."""
        total = self.num_paths
        first = sum(length * count for length, count in self.counts.items())
        second = sum(length * length * count for length, count in self.counts.items())
        return math.sqrt(Fraction(total * second - first * first, total * total))

    def share(self, least: int, most: int) -> float:
        """The share, from 0 to 1, of the paths with a length from `least` to `most`, both included."""
        return float(Fraction(sum(c for length, c in self.counts.items() if least <= length <= most), self.num_paths))


def num_paths(flow: Flow) -> int:
    """The number of paths from the sources to the output of `flow`; 1 for a plain network."""
    (term,) = _Ways(flow, _COUNT).chain(ROOT, flow.output)
    return term[1]


def path_lengths(flow: Flow, measure: str = "layers") -> Lengths:
    """The distribution of the paths' lengths, in weight "layers" or in "units".

    Raises ValueError for another `measure`, and RunError where too many ways cross (no series-parallel network is one of those).
    """
    if measure not in _MEASURES:
        raise ValueError(f"Paths are measured in {' or '.join(_MEASURES)}, not in {measure!r}.")
    return Lengths(dict(_Ways(flow, _MEASURES[measure]).chain(ROOT, flow.output)))


@dataclass(frozen=True)
class _Measure:
    """What a path's length grows by: in each weight layer, and at each merge where it takes the branch."""

    layer: int
    branch: int


_COUNT = _Measure(0, 0)
_MEASURES = {"layers": _Measure(1, 0), "units": _Measure(0, 1)}


class _Ways:
    """The generating functions of the ways to each step from its nearest dominator."""

    def __init__(self, flow: Flow, measure: _Measure) -> None:
        self.steps, self.measure = flow.steps, measure
        self.tree = Dominators(flow)
        self.factors: list[Terms] = []
        above = _ancestors(flow)
        for number, step in enumerate(flow.steps):
            self.factors.append(self.factor(step, self.tree.nearest[number]) if above[number] else ONE)

    def factor(self, step: Step, dominator: int) -> Terms:
        """The ways to a step from its nearest dominator."""
        if step.kind == "choice":
            bypass, branch = (self.chain(dominator, source) for source in step.inputs)
            return added(bypass, shifted(branch, self.measure.branch))
        return shifted(self.together(dominator, dict.fromkeys(step.inputs, 0)), self.measure.layer * (step.kind == "layer"))

    def chain(self, start: int, end: int) -> Terms:
        """The ways from a step to one that it dominates: the product of the factors on the chain of dominators between them."""
        return product(Counter(self.factors[step] for step in self.tree.chain(start, end)))

    def together(self, start: int, ends: Mapping[int, int]) -> Terms:
        """The ways from a step to several that it dominates, all taken; `ends` says how much longer each already is."""
        near = self.tree.common(list(ends)) if ends else start
        if len(ends) == 1:
            return shifted(self.chain(start, near), ends[near])
        parts = []
        for part in self.independent(near, ends):
            if len(part) == 1:
                ((end, longer),) = part.items()
                parts.append(shifted(self.chain(near, end), longer))
            else:
                parts.append(self.crossing(near, part))
        return product(Counter([self.chain(start, near), longest(parts)]))

    def independent(self, dominator: int, ends: Mapping[int, int]) -> list[dict[int, int]]:
        """The ends in groups that share no step below the dominator."""
        groups: list[tuple[set[int], dict[int, int]]] = []
        for end, longer in ends.items():
            reached, waiting = set[int](), [end]
            while waiting:
                step = waiting.pop()
                if step != dominator and (child := self.tree.below(dominator, step)) not in reached:
                    reached.add(child)
                    waiting += self.steps[child].inputs
            group = {end: longer}
            for other in [other for other in groups if other[0] & reached]:
                groups.remove(other)
                reached, group = reached | other[0], group | other[1]
            groups.append((reached, group))
        return [group for _, group in groups]

    def crossing(self, dominator: int, ends: Mapping[int, int]) -> Terms:
        """The ways from the dominator to several ends whose ways share steps: the children of the dominator, the last first,
        with all sets of steps that the decisions so far can ask for. A set says of each step how much longer its way is than
        the least; the dominator is in it once a way has arrived there."""
        waiting: dict[int, dict[tuple[tuple[int, int], ...], dict[int, int]]] = {}
        arrived: dict[int, int] = {}

        def ask(asked: Mapping[int, int], terms: Mapping[int, int]) -> None:
            least = min(asked.values())
            moved = {length + least: count for length, count in terms.items()}
            children = [self.tree.below(dominator, step) for step in asked if step != dominator]
            key = tuple(sorted((step, longer - least) for step, longer in asked.items()))
            into = waiting.setdefault(max(children), {}).setdefault(key, {}) if children else arrived
            for length, count in moved.items():
                into[length] = into.get(length, 0) + count

        ask(ends, {0: 1})
        while waiting:
            child = max(waiting)
            step = self.steps[child]
            if len(waiting[child]) > _WIDEST:
                raise RunError(
                    f"The paths of this network cross in too many ways to be told apart by length (at {step.label!r})."
                )
            for key, terms in waiting.pop(child).items():
                here = {end: longer for end, longer in key if end != dominator and self.tree.below(dominator, end) == child}
                others = {end: longer for end, longer in key if end not in here}
                to_child = dict(shifted(self.together(child, here), self.measure.layer * (step.kind == "layer")))
                branch = self.measure.branch
                for sources in (
                    ({step.inputs[0]: 0}, {step.inputs[1]: branch})
                    if step.kind == "choice"
                    else (dict.fromkeys(step.inputs or (ROOT,), 0),)
                ):
                    if not others:
                        ask(sources, times(terms, to_child))
                        continue
                    for length, count in to_child.items():
                        asked = dict(others)
                        for source, more in sources.items():
                            asked[source] = max(asked.get(source, 0), length + more)
                        ask(asked, {shorter: count * times for shorter, times in terms.items()})
        return tuple(sorted(arrived.items()))


def _ancestors(flow: Flow) -> list[bool]:
    """Of each step whether the output depends on it."""
    above = [False] * len(flow.steps)
    above[flow.output] = True
    for number in reversed(range(len(flow.steps))):
        if above[number]:
            for source in flow.steps[number].inputs:
                above[source] = True
    return above
