"""The two ways to fail, and the search for the nearest name.

Layer 0: imports the standard library only. A `RequestError` is the user's to mend (exit code 2); a `RunError` is a failure
while working (exit code 1). Both carry one readable message: what, where, why, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["RequestError", "RunError", "UnreadableImage", "nearest", "unknown"]


class RequestError(ValueError):
    """The request was wrong: a misspelt name, a value out of range, data that cannot be used. Exit code 2."""


class RunError(RuntimeError):
    """The work failed: a loss that is not finite, a full disk, a damaged checkpoint. Exit code 1."""


class UnreadableImage(RequestError):
    """A file that cannot be used as an image; the message names the file and the reason."""


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The up to `count` entries of `names` that look most like `name`, the best first."""
    lowered = {candidate.lower(): candidate for candidate in names}
    found = difflib.get_close_matches(name.lower(), lowered, n=count, cutoff=0.5)
    return [lowered[match] for match in found]


def unknown(kind: str, name: str, names: Iterable[str], advice: str = "") -> RequestError:
    """The error for a `kind` of thing called `name` that is none of `names`; `advice` says where the valid names are listed."""
    names = list(names)
    close = nearest(name, names)
    if close:
        hint = f"Did you mean {' or '.join(repr(match) for match in close)}?"
    elif not names:
        hint = "There is none at all."
    elif len(names) <= 12:
        hint = f"Valid: {', '.join(names)}."
    else:
        hint = ""
    return RequestError(" ".join(part for part in (f"There is no {kind} called {name!r}.", hint, advice) if part))
