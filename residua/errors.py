"""The two ways to fail, and the search for the nearest name.

Layer 0: imports the standard library only. A `RequestError` is the user's to mend (exit code 2); a `RunError` is a failure
while working (exit code 1). Both carry one readable message: what, where, why, and what to do next. So does a `RunWarning`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__all__ = ["RequestError", "RunError", "RunWarning", "UnreadableImage", "memory_message", "nearest", "unknown"]


class RequestError(ValueError):
    """The request was wrong: a misspelt name, a value out of range, data that cannot be used. Exit code 2."""


class RunError(RuntimeError):
    """The work failed: a loss that is not finite, a full disk, a damaged checkpoint. Exit code 1."""


class RunWarning(UserWarning):
    """Another state of a run than its last one is used: a checkpoint is damaged, or the run is not finished."""


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


def memory_message(error: Exception) -> str | None:
    """What to tell of an error that says that memory ran out, on the processor or on a GPU; None for any other error."""
    text = str(error)
    if not isinstance(error, MemoryError) and not re.search(r"out of memory|allocate memory|ALLOC_FAILED", text):
        return None
    gpu = re.search(r"CUDA|CUBLAS|CUDNN", text) is not None
    asked = re.search(r"tried to allocate ([\d.]+) (bytes|\w?iB)", text, re.IGNORECASE)
    size = "" if asked is None else f"{int(asked[1]) / 2**20:,.0f} MiB" if asked[2] == "bytes" else f"{asked[1]} {asked[2]}"
    return (
        f"Memory ran out{' on the GPU' if gpu else ''}{f' when {size} more were asked for' if size else ''}. A smaller "
        "--batch-size takes less, and in training --set micro_batch=N, which keeps the batch; so do smaller images and a smaller "
        f"network{', and --device cpu leaves the GPU aside' if gpu else ''}. A run that has begun keeps its checkpoints: once "
        "there is more memory, the same command continues it."
    )
