"""Numbers as a reader expects them: durations, shares, counts; a number and its unit never part at a line's end. Layer 0."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["NOTHING", "count", "counted", "decimal", "duration", "percent", "value"]

NOTHING = "–"
_GAP = "\N{NO-BREAK SPACE}"


def duration(seconds: Any) -> str:
    """ "412 ms", "4.2 s", "42 s", "12 min 34 s", "3 h 5 min", "2 d 4 h"."""
    if not _number(seconds) or seconds < 0:
        return NOTHING
    if seconds < 10:
        return f"{seconds:.1f}{_GAP}s" if seconds >= 1 else f"{decimal(1000 * seconds)}{_GAP}ms"
    whole = round(seconds)
    for large, small, size, per in (("d", "h", 86_400, 3_600), ("h", "min", 3_600, 60), ("min", "s", 60, 1)):
        if whole >= size:
            rest = whole % size // per
            return f"{whole // size}{_GAP}{large}" + (f" {rest}{_GAP}{small}" if rest else "")
    return f"{whole}{_GAP}s"


def percent(number: Any, digits: int = 2) -> str:
    """A number that is per cent already: "7.56 %"."""
    return f"{number:.{digits}f}{_GAP}%" if _number(number) else NOTHING


def count(number: Any) -> str:
    """A whole number with commas: "45,000"."""
    return f"{round(number):,}" if _number(number) else NOTHING


def counted(number: Any, thing: str, things: str = "") -> str:
    """A whole number with its noun: "1 image", "45,000 images", "2 classes" where the plural is given."""
    return f"{count(number)} {thing if number == 1 else things or thing + 's'}"


def decimal(number: Any, digits: int = 3) -> str:
    """A number to `digits` significant digits, without exponent where it can be read without."""
    if not _number(number):
        return NOTHING
    if number and not 1e-4 <= abs(number) < 1e7:
        return f"{number:.{digits}g}"
    places = max(0, digits - 1 - (math.floor(math.log10(abs(number))) if number else 0))
    return f"{number:,.{places}f}"


def value(thing: Any) -> str:
    """Any plain value as one text: yes and no for booleans, a dash for None, lists by commas."""
    if thing is None:
        return NOTHING
    if isinstance(thing, bool):
        return "yes" if thing else "no"
    if isinstance(thing, int):
        return count(thing) if abs(thing) >= 10_000 else str(thing)
    if isinstance(thing, float):
        return f"{thing:g}"
    if isinstance(thing, (list, tuple)):
        return ", ".join(map(value, thing)) or NOTHING
    if isinstance(thing, dict):
        return ", ".join(f"{key} {value(inner)}" for key, inner in thing.items()) or NOTHING
    return str(thing)


def _number(thing: Any) -> bool:
    return isinstance(thing, (int, float)) and not isinstance(thing, bool) and math.isfinite(thing)
