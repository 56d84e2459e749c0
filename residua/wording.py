"""Numbers as a reader expects them: durations, shares, counts. Layer 0."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["NOTHING", "count", "decimal", "duration", "percent", "value"]

NOTHING = "–"


def duration(seconds: Any) -> str:
    """"0.8 s", "42 s", "12 min 34 s", "3 h 5 min", "2 d 4 h"."""
    if not _number(seconds) or seconds < 0:
        return NOTHING
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"
    whole = round(seconds)
    for large, small, size, per in (("d", "h", 86_400, 3_600), ("h", "min", 3_600, 60), ("min", "s", 60, 1)):
        if whole >= size:
            rest = whole % size // per
            return f"{whole // size} {large}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def percent(number: Any, digits: int = 2) -> str:
    """A number that is per cent already: "7.56 %"."""
    return f"{number:.{digits}f} %" if _number(number) else NOTHING


def count(number: Any) -> str:
    """A whole number with commas: "45,000"."""
    return f"{round(number):,}" if _number(number) else NOTHING


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
