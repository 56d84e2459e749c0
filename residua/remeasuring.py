"""Probes and measurements made anew and held against what was kept. Layer 4."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from residua import budgets
from residua.claims import Probe
from residua.errors import RequestError
from residua.keeping import speaks
from residua.running import Settings, computed, measured
from residua.selection import Shelf
from residua.wording import counted, decimal

__all__ = ["TOLERANCE", "Held", "Verdict", "computed_again", "measured_again", "not_compared"]

TOLERANCE = 0.05  # of the measurements of a network that is the same to the last digit: threads and processors round otherwise
FACTOR = 10.0  # between those of a network that rounding has led elsewhere: seeds of one kept network differ by up to 6.5
LEAST_ERROR = 1.0  # point per cent that is added to errors before that factor is taken: of few images one or none may be wrong
ROUNDING = 1e-6  # of a probe on another processor, relative
SMALLEST = 1e-9  # below which a number is as good as zero
Verdict = Literal["equal", "agrees", "differs", "not compared"]


@dataclass(frozen=True)
class Held:
    """What a probe or a measurement showed when it was made anew: the verdict (as that of a `Verification`), the largest
    relative distance from what was kept (None where nothing was compared so closely), and why, in a sentence."""

    verdict: Verdict
    why: str
    largest: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return dict(vars(self))


def not_compared(card: Mapping[str, Any], why: str) -> dict[str, Held]:
    """Every measurement of a kept run, with the reason why none was made anew."""
    return {name: Held("not compared", why) for name in card["measurements"]}


# ----------------------------------------------------------------------------------------------------------------- probes


def computed_again(card: Mapping[str, Any], papers: Shelf) -> tuple[Held, int]:
    """A kept probe computed anew, and how many of its numbers were compared. Raises `RequestError` where it cannot be."""
    probe = papers.arms.get(card["arm"])
    if not isinstance(probe, Probe):
        raise RequestError(f"{card['id']} cannot be repeated: no paper computes {card['arm']} any more.")
    if not speaks(card, papers):
        raise RequestError(f"{card['id']} cannot be repeated: what {probe.name} computes has changed since it was kept.")
    values, rest = computed(probe, card["seed"], card["budget"])
    ours, theirs = _plain({**values, **rest}), {**card["values"], **card["measurements"]}
    if probe.timed:
        return Held("not compared", f"Times are those of a moment and a processor, and not compared. {_beside(card, ours)}"), 0
    here, there = _groups(ours), _groups(theirs)
    count = sum(map(len, there.values()))
    if ours == theirs:
        return Held("equal", f"It was computed anew: {counted(count, 'number')}, all equal to the last digit.", 0.0), count
    if {name: len(own) for name, own in here.items()} != {name: len(own) for name, own in there.items()}:
        return Held("differs", "It was computed anew, and gives other sorts of numbers than were kept."), count
    pairs = [pair for name, own in there.items() for pair in zip(own, here[name])]
    largest = max((_distance([one], [other]) for one, other in pairs), default=math.inf)
    if largest > ROUNDING:
        return Held(
            "differs", f"It was computed anew, and its numbers differ by up to {100 * largest:.2g} %.", _finite(largest)
        ), count
    return Held(
        "agrees", f"It was computed anew: its numbers agree within {100 * largest:.2g} %, as other rounding does.", largest
    ), count


def _beside(card: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The times that were taken now and then, and on which processor then."""
    numbers = (
        f"{name} {decimal(ours[name])}, and was {decimal(value)}" for name, value in card["values"].items() if name in ours
    )
    processor = card["manifest"].get("hardware", {}).get("processor")
    where = (
        f"those that were kept were taken on {processor}"
        if processor
        else "which processor took those that were kept is not known"
    )
    return f"{'; '.join(numbers)}; {where}."


# ----------------------------------------------------------------------------------------------------------- measurements


def measured_again(card: Mapping[str, Any], run: Path, same: bool, papers: Shelf, settings: Settings) -> dict[str, Held]:
    """Every measurement of a kept training made anew on its repetition in `run`; `same`: the two are equal to the last digit."""
    found = {}
    for name, kept in card["measurements"].items():
        own = papers.measurements.get(name)
        if own is not None and own.version != card.get("versions", {}).get(name, 1):
            found[name] = Held("not compared", "The paper has defined it anew since it was kept.")
            continue
        settings.listener.note(f"Measuring {name} of the repetition of {card['id']}.")
        try:
            again = measured(name, run, card["arm"], budgets.ALLOWANCE[card["budget"]], settings)
        except RequestError as error:  # a measurement that is gone
            found[name] = Held("not compared", str(error))
            continue
        found[name] = _held(kept, _plain(again["result"]), same) if "result" in again else Held("differs", again["left_out"])
    return found


def _held(theirs: Mapping[str, Any], ours: Mapping[str, Any], same: bool) -> Held:
    """A measurement against the kept one: closely where network and images are the same, else as seeds are."""
    if theirs == ours:
        return Held("equal", "All of it is equal to the last digit.", 0.0)
    there, here = _groups(theirs), _groups(ours)
    if same and theirs.get("used") == ours.get("used"):
        if {name: len(own) for name, own in there.items()} != {name: len(own) for name, own in here.items()}:
            return Held("differs", "It gives other sorts of numbers than were kept.")
        apart = {name: _distance(own, here[name]) for name, own in there.items()}
        worst = max(apart, key=apart.__getitem__, default="")
        largest = apart.get(worst, math.inf)
        said = f"its numbers differ by up to {100 * largest:.2g} % ({worst}), where {100 * TOLERANCE:g} % is rounding"
        return Held("differs" if largest > TOLERANCE else "agrees", f"Of the same network and images {said}.", _finite(largest))
    reason = "The network agrees to rounding only" if not same else "Time allowed for other images or draws"
    ratios = {name: _ratio(name, own, here[name]) for name, own in there.items() if name in here}
    worst = max(ratios, key=ratios.__getitem__, default="")
    ratio = ratios.get(worst, math.inf)
    said = f"the sizes of its numbers differ by up to a factor of {ratio:.3g} ({worst}), where seeds differ by up to {FACTOR:g}"
    return Held("differs" if ratio > FACTOR else "agrees", f"{reason}: {said}.")


def _groups(values: Mapping[str, Any]) -> dict[str, list[float]]:
    """The numbers of plain values by dotted name, those of one list together; not what says how much was looked at."""
    found: dict[str, list[float]] = defaultdict(list)
    for name, value in _numbers({name: value for name, value in values.items() if name != "used"}, ""):
        found[name].append(value)
    return dict(found)


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, name)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, float(value)


def _distance(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """The Euclidean distance of two lists, relative to the kept one."""
    length = math.hypot(*theirs)
    apart = math.dist(theirs, ours)
    return 0.0 if apart < SMALLEST else apart / max(length, SMALLEST)


def _ratio(name: str, theirs: Sequence[float], ours: Sequence[float]) -> float:
    """By which factor the root mean squares of two lists differ; 1 where either is zero."""
    floor = LEAST_ERROR if "error" in name or name.startswith("baseline") else 0.0
    low, high = sorted(math.hypot(*own) / math.sqrt(len(own)) + floor for own in (theirs, ours))
    return high / low if low > SMALLEST else 1.0


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As they are read from a file."""
    return dict(json.loads(json.dumps(values)))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
