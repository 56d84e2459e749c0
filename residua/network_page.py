"""A network taken apart, as text for a terminal: a paragraph that answers, then tables with series folded. Layer 5."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from residua.wording import NOTHING, count, counted, decimal

__all__ = ["network", "repeated"]

LONGEST_PERIOD = 60
LEAST_GROWING = 3
_SCALES = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_WAYS = {"identity": "over the identity", "projection": "over a projection", "pooled": "over a pooling",
         "scaled": "over a scaling", "gated": "over a gate", "dropped": "over dropout"}  # fmt: skip
_KINDS = {"add": ("addition",), "concatenate": ("concatenation",), "gate": ("gate",),
          "index": ("hand-over of indices", "hand-overs of indices")}  # fmt: skip


def network(card: Mapping[str, Any]) -> str:
    """One network, from what `Inspection.to_dict` gives: what it is, its skips, layers and units."""
    parts = [_answer(card), *filter(None, [_unknown(card), _skips(card)]), _layers(card)]
    if card["units"]:
        parts.append(_units(card))
    cost = f"{card['parameters']:,} parameters, {card['multiply_adds']:,} multiply-adds for {_inputs(card)}"
    units = f"{len(card['units'])} units" if card["units"] else counted(len(card["skips"]), "skip")
    return "\n\n".join([*parts, f"{card['name']}: {units}, {cost}"])


def _inputs(card: Mapping[str, Any]) -> str:
    """What the costs are for."""
    batch, shape = card["batch"], "x".join(map(str, card["input_shape"]))
    return ("one input" if batch == 1 else f"a batch of {counted(batch, 'input')}") + (f" of {shape}" if shape else "")


def _answer(card: Mapping[str, Any]) -> str:
    answer = card["verdict"]["answer"]
    said = {"both": "both residual and skip connections", "neither": "neither residual nor skip connections"}.get(answer, answer)
    lines = [f"{card['name']} has {said}.", *card["verdict"]["reasons"]]
    if card["skips"]:
        kinds = Counter((skip["kind"], skip["way"]) for skip in card["skips"])
        listed = ", ".join(f"{counted(number, *_KINDS[kind])} {_WAYS[way]}" for (kind, way), number in kinds.most_common())
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
    of_all = "" if card["batch"] == 1 else f", for {_inputs(card)}"
    lines.append("; ".join(filter(None, [f"{count(cost['multiply_adds'])} multiply-adds", added, kept])) + f"{of_all}.")
    lines.append(_field(card["receptive_field"]))
    how = {"export": "", "fx": "Captured by a symbolic trace.", "dispatch": "Captured by running it once."}
    lines.append(" ".join(filter(None, [how[card["capture"]["how"]], *card["capture"]["unseen"]])))
    return "\n".join(filter(None, [*lines, card["note"]]))


def _paths(card: Mapping[str, Any]) -> str:
    number, lengths = card["num_paths"], card["path_lengths"]
    if number is None:
        return "Its paths cross in too many ways to be counted here."
    if number == 1:
        return f"One path, of {counted(lengths['layers']['longest'], 'weight layer')}."
    power = number.bit_length() - 1
    exact = count(number) if number < 10**15 else ""
    as_power = (
        "" if number == 2 else f"2^{power}" if number == 1 << power else "" if exact else f"about 2^{math.log2(number):.1f}"
    )
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
    side = round(field["effective"] or 0)
    effective = f", {side}x{side} in effect with these weights" if field["effective"] else ""
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
    """The layers; of blocks in series the first one stands for all, with ranges where its numbers grow along the series."""
    layers = card["layers"]
    blocks = [_block(row["path"]) for row in layers]
    alike = [(_pattern(row["path"]), row["kind"], row["output_shape"][2:]) for row in layers]
    equal = [(same, *_numbers(row)) for same, row in zip(alike, layers)]

    def begins(place: int) -> bool:
        return place in (0, len(layers)) or blocks[place] != blocks[place - 1]

    rows = []
    for start, period, times in _growing(repeated(equal, begins, LONGEST_PERIOD), alike, begins):
        for place in range(start, start + period):
            row, last = layers[place], layers[place + period * (times - 1)]
            numbers = [_range(first, end) for first, end in zip(_numbers(row), _numbers(last))]
            said = "" if place > start or times == 1 else f"x {times}" if period == 1 else f"{period} rows x {times}"
            rows.append([row["path"] or "(itself)", row["kind"], *numbers, said])
    return _table(["layer", "kind", "output", "parameters", "multiply-adds", "kept", ""], rows, "lllrrrl")


def _numbers(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    kept = row["kept_bytes"]
    shape = "x".join(map(str, row["output_shape"]))
    return (
        shape,
        f"{row['parameters']:,}",
        f"{row['multiply_adds']:,}",
        _bytes(kept) if kept else NOTHING if kept is None else "0",
    )


def _range(first: str, last: str) -> str:
    """ "64…224x56x56" of "64x56x56" and "224x56x56"; one of two equal texts."""
    if first == last:
        return first
    sides = first.split("x"), last.split("x")
    if len(sides[0]) != len(sides[1]):
        return f"{first}…{last}"
    return "x".join(a if a == b else f"{a}…{b}" for a, b in zip(*sides))


def _growing(
    series: Iterable[tuple[int, int, int]], alike: Sequence[Hashable], begins: Callable[[int], bool]
) -> Iterator[tuple[int, int, int]]:
    """`series` as from `repeated`; what does not repeat in it is told once if it is `alike` at least three times in series."""
    single: list[int] = []
    for start, period, times in (*series, (len(alike), 0, 0)):
        if times == 1:
            single.append(start)
            continue
        origin = single[0] if single else start
        for place, length, number in repeated(alike[origin:start], partial(_from, begins, origin), LONGEST_PERIOD):
            if number >= LEAST_GROWING:
                yield origin + place, length, number
            else:
                yield from ((origin + place + offset, 1, 1) for offset in range(length * number))
        single = []
        if times:
            yield start, period, times


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


def _from(begins: Callable[[int], bool], origin: int, place: int) -> bool:
    return begins(origin + place)


def _folded(rows: Sequence[Any], sign: Callable[[Any], Hashable]) -> Iterator[tuple[Any, str]]:
    """The rows, those of a series once, with its number behind its first row."""
    for start, period, times in repeated([sign(row) for row in rows], lambda _place: True, 2):
        for offset in range(period):
            said = "" if offset or times == 1 else f"x {times}" if period == 1 else f"{period} rows x {times}"
            yield rows[start + offset], said


def _block(path: str) -> str:
    """The path up to the last of its parts that is counted: "layer1.0" of "layer1.0.conv1", whose own name does not count unless
    it is a number."""
    parts = path.split(".")
    counted_ones = [
        place for place, part in enumerate(parts) if part[-1:].isdigit() and (place < len(parts) - 1 or part.isdigit())
    ]
    return ".".join(parts[: counted_ones[-1] + 1]) if counted_ones else ""


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
