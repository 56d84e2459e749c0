"""The one form of all results here: a JSON file that `page.py` can show.

    {"name": "inference", "date": "2026-11-21", "machine": {...}, "versions": {...}, "command": "python benchmarks/...",
     "rows": [{column: value, ...}, ...], "ceiling": {what: value, ...}, "notes": [sentence, ...], "raw": {...}}

Columns and ceilings name their unit ("images/s"). A ratio is taken within each round and given by its median with the least and
the greatest in columns of their own; `raw`, where it is, holds what the rows were computed from.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

FIELDS = ("name", "date", "machine", "versions", "command", "rows", "ceiling", "notes")
PEERS = ("timm", "onnxruntime")


def result(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    ceiling: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
    raw: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The result of this process, called as its command line says, on this machine and today."""
    import torch

    from residua.machine import hardware, versions

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = versions() | {peer: metadata.version(peer) for peer in PEERS if _installed(peer)}
    machine = hardware(device) | {"threads": torch.get_num_threads()}
    form: dict[str, Any] = {
        "name": name, "date": time.strftime("%Y-%m-%d"), "machine": machine, "versions": found, "command": command(),
        "rows": [dict(row) for row in rows], "ceiling": dict(ceiling or {}), "notes": list(notes),
    }  # fmt: skip
    return form | ({"raw": dict(raw)} if raw else {})


def write(path: Path | None, form: Mapping[str, Any]) -> None:
    """Writes a result, rounded to four digits, if a path is given."""
    if path is not None:
        path.write_text(json.dumps(rounded(form), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def spread(ratios: Sequence[float], against: str) -> dict[str, Any]:
    """The columns of a ratio: median, least and greatest over the rounds."""
    return {against: statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)}


def command() -> str:
    """How this process was called: paths outside the repository, which are of one machine, as $ and the option's name."""
    words, root = ["python"], Path(__file__).resolve().parent.parent
    option = ""
    for place, word in enumerate(sys.argv):
        path = Path(word)
        if place == 0 or (path.is_absolute() and path.is_relative_to(root)):
            words.append(os.path.relpath(path.resolve(), root))
        elif path.is_absolute():
            words.append("$" + option.lstrip("-").replace("-", "_").upper())
        else:
            words.append(shlex.quote(word))
        option = word
    return " ".join(words)


def rounded(value: Any) -> Any:
    """Numbers to four digits, counts as they are; None for what is no number."""
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if value - value == 0 else None
    return value


def _installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False
