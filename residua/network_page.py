"""A network taken apart, as text for a terminal: a paragraph that answers, then tables with series folded. Layer 5."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

from residua.wording import NOTHING, count, counted, decimal

__all__ = ["network", "repeated"]

LONGEST_PERIOD = 60
_SCALES = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_WAYS = {"identity": "past by the identity", "projection": "projected", "pooled": "pooled", "scaled": "scaled", "gated": "gated",
         "dropped": "with dropout"}  # fmt: skip
_KINDS = {"add": "addition", "concatenate": "concatenation", "gate": "gate", "index": "hand-over of indices"}


def network(card: Mapping[str, Any]) -> str:
    """One network, from what `Inspection.to_dict` gives: what it is, its skips, layers and units."""
    parts = [_answer(card), *filter(None, [_unknown(card), _skips(card)]), _layers(card)]
    if card["units"]:
        parts.append(_units(card))
    shape = "x".join(map(str, card["input_shape"]))
    cost = f"{card['parameters']:,} parameters, {card['multiply_adds']:,} multiply-adds for one {shape} input"
    units = f"{len(card['units'])} units" if card["units"] else counted(len(card["skips"]), "skip")
    return "\n\n".join([*parts, f"{card['name']}: {units}, {cost}"])


def _answer(card: Mapping[str, Any]) -> str:
    answer = card["verdict"]["answer"]
    said = {"both": "both residual and skip connections", "neither": "neither residual nor skip connections"}.get(answer, answer)
    lines = [f"{card['name']} has {said}.", *card["verdict"]["reasons"]]
    if card["skips"]:
        kinds = Counter((skip["kind"], skip["way"]) for skip in card["skips"])
        listed = ", ".join(f"{counted(number, _KINDS[kind])} {_WAYS[way]}" for (kind, way), number in kinds.items())
        proven = sum(skip["proven"] for skip in card["skips"])
        lines.append(
            f"{counted(len(card['skips']), 'skip')}: {listed}; {'all' if proven == len(card['skips']) else proven} proven."
        )
    if card["dense_connections"]:
        lines.append(
            f"{counted(card['dense_connections'], 'dense connection')}, from every earlier layer of a block to every later one."
        )
    lines.append(_paths(card))
    cost = card["cost"]
    kept = f"a training step keeps {_bytes(cost['kept_bytes'])} for its backward pass" if cost["kept_bytes"] else ""
    added = f"{count(cost['skip_additions'])} additions at the skips besides" if cost["skip_additions"] else ""
    lines.append("; ".join(filter(None, [f"{count(cost['multiply_adds'])} multiply-adds", added, kept])) + ".")
    lines.append(_field(card["receptive_field"]))
    how = {"export": "", "fx": "Captured by a trace. ", "dispatch": "Captured by a trace of the one way that these inputs take. "}
    lines.append(how[card["capture"]["how"]] + " ".join(card["capture"]["unseen"]))
    return "\n".join(filter(None, [*lines, card["note"]]))


def _paths(card: Mapping[str, Any]) -> str:
    number, lengths = card["num_paths"], card["path_lengths"]
    if number is None:
        return "Its paths cross in too many ways to be counted here."
    if number == 1:
        return f"One path, of {counted(lengths['layers']['longest'], 'weight layer')}."
    power = number.bit_length() - 1
    exact = count(number) if number < 10**15 else ""
    as_power = f"2^{power}" if number == 1 << power else "" if exact else f"about 2^{math.log2(number):.1f}"
    layers = lengths["layers"]
    spread = f"{decimal(layers['mean'])} on average, standard deviation {decimal(layers['standard_deviation'])}"
    lengths_said = f"of {layers['shortest']} to {layers['longest']} weight layers, {spread}"
    return f"{' = '.join(filter(None, [exact, as_power]))} paths {lengths_said}."


def _field(field: Mapping[str, Any]) -> str:
    if field["path"] is None:
        return f"No receptive field: {field['then']}"
    sides = {key: "x".join(map(str, field[key])) for key in ("shortest", "longest")}
    theory = f"{sides['longest']} in theory by the longest path, {sides['shortest']} by the shortest"
    said = f"Receptive field of {field['path']}: {theory}"
    effective = f", {decimal(field['effective'])} in effect with these weights" if field["effective"] else ""
    then = f"; then {field['then']}" if field["then"] else "."
    gates = f" Besides, {counted(len(field['gates']), 'gate')} on the way see the whole input." if field["gates"] else ""
    return said + effective + then + gates


def _bytes(number: int) -> str:
    for size, unit in _SCALES:
        if number >= size:
            return f"{decimal(number / size)} {unit}"
    return f"{number} bytes"


def _unknown(card: Mapping[str, Any]) -> str:
    reasons: dict[str, list[str]] = {}
    for merge in card["unknown"]:
        reasons.setdefault(re.sub(r"\d+", "n", merge["reason"]), []).append(merge["merge"])
    lines = [
        f"- {places[0]}{f' and {len(places) - 1} more' if len(places) > 1 else ''}: {why}" for why, places in reasons.items()
    ]
    return "\n".join(["Unknown, and not counted:", *lines]) if lines else ""


def _skips(card: Mapping[str, Any]) -> str:
    def sign(skip: Mapping[str, Any]) -> Hashable:
        return skip["kind"], skip["way"], skip["span"], skip["level"], skip["proven"], _pattern(skip["merge"])

    rows = [
        [skip["source"], skip["merge"], skip["kind"], skip["way"], str(skip["span"]), str(skip["level"]) if skip["level"] else "",
         "yes" if skip["proven"] else "no", times]
        for skip, times in _folded(card["skips"], sign)
    ]  # fmt: skip
    return _table(["from", "to", "kind", "way", "span", "inside", "proven", ""], rows, "llllrrll") if rows else ""


def _layers(card: Mapping[str, Any]) -> str:
    def sign(row: Mapping[str, Any]) -> Hashable:
        return _pattern(row["path"]), *(
            str(row[key]) for key in ("kind", "output_shape", "parameters", "multiply_adds", "kept_bytes")
        )

    rows = [
        [row["path"], row["kind"], "x".join(map(str, row["output_shape"])), f"{row['parameters']:,}", f"{row['multiply_adds']:,}",
         _bytes(row["kept_bytes"]) if row["kept_bytes"] else "0" if row["kept_bytes"] == 0 else NOTHING, times]
        for row, times in _folded(card["layers"], sign, "path")
    ]  # fmt: skip
    return _table(["layer", "kind", "output", "parameters", "multiply-adds", "kept", ""], rows, "lllrrrl")


def _units(card: Mapping[str, Any]) -> str:
    def sign(unit: Mapping[str, Any]) -> Hashable:
        return unit["shortcut"], unit["merge"], unit["removable"], unit["depth"], _pattern(unit["path"])

    rows = [
        [unit["path"], unit["shortcut"] or "none", unit["merge"], "yes" if unit["removable"] else "no", times]
        for unit, times in _folded(card["units"], sign)
    ]
    return _table(["unit", "shortcut", "merge", "removable", ""], rows, "lllll")


def _pattern(path: str) -> str:
    return re.sub(r"\d+", "#", path)


def _folded(rows: Sequence[Any], sign: Callable[[Any], Hashable], path: str = "") -> Iterator[tuple[Any, str]]:
    """The rows, those of a series once, with its number behind its first row; `path` names the field by which rows are of
    one block, which is then folded as a whole."""
    blocks = [_block(row[path]) for row in rows] if path else []

    def begins(place: int) -> bool:
        return not path or place in (0, len(rows)) or blocks[place] != blocks[place - 1]

    for start, period, times in repeated([sign(row) for row in rows], begins, LONGEST_PERIOD if path else 2):
        for offset in range(period):
            said = "" if offset or times == 1 else f"x {times}" if period == 1 else f"{period} rows x {times}"
            yield rows[start + offset], said


def _block(path: str) -> str:
    """The path up to its last number."""
    numbers = list(re.finditer(r"(?:^|[._])\d+(?=\.|$)", path))
    return path[: numbers[-1].end()] if numbers else ""


def repeated(signs: Sequence[Hashable], begins: Callable[[int], bool], longest: int) -> Iterator[tuple[int, int, int]]:
    """A sequence as (start, period, times), in order and without gaps: what repeats in series, or single entries (period 1,
    once). What repeats starts and ends where something `begins`, and has at most `longest` entries; at each place the repetition
    that spares most entries is taken."""
    place = 0
    while place < len(signs):
        best = (1, 1)
        for period in range(1, min(longest, (len(signs) - place) // 2) + 1 if begins(place) else 1):
            end = place + period
            if not begins(end):
                continue
            while end < len(signs) and signs[end] == signs[end - period]:
                end += 1
            times = (end - place) // period
            if period * (times - 1) > best[0] * (best[1] - 1):
                best = period, times
        yield place, *best
        place += best[0] * best[1]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(heads, *rows)]
    lines = []
    for row in (heads, *rows):
        cells = (cell.rjust(width) if side == "r" else cell.ljust(width) for cell, width, side in zip(row, widths, sides))
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
