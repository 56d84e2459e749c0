"""The figures of a report: the data, the curves, the final result, the mistakes. Layer 4.

Each function gives plain values and SVG texts; how they look is the template's matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from residua import plots
from residua.plots import Line, shortened
from residua.report_inputs import Inputs, Values, number
from residua.report_setup import interval
from residua.sheets import Sheet
from residua.wording import NOTHING, count, counted, decimal, duration, percent, value

__all__ = ["curves", "data", "evaluation", "mistakes"]

MOST_BARS = 50  # classes, above which their counts are summed up in words
MOST_CELLS, BESIDE = 30, 14  # classes, above which the confusions are listed, not drawn; drawn beside the list
MOST_ROWS = 30  # classes, above which the table shows the hardest and folds the others away
LISTED = 50  # findings shown by name
IMAGE_BUDGET = 1_700_000  # characters of image data in one section, so that a page stays well under 5 MB


def data(inputs: Inputs) -> dict[str, Any]:
    """Where the images come from, how many, what the check found, and how the network sees them."""
    card = inputs.run.data
    classes, facts = inputs.run.classes, card.get("facts") or {}
    counts = {split: values for split, values in inputs.splits.items() if len(values) == len(classes)}
    return {
        "source": str(card.get("source") or inputs.run.recipe.data.source),
        "note": _sentence(card.get("note")),
        "facts": _facts(inputs, facts),
        "counts": [(split, count(sum(values))) for split, values in inputs.splits.items()],
        "plot": _counts_plot(classes, counts) if counts and len(classes) <= MOST_BARS else "",
        "summary": [] if len(classes) <= MOST_BARS else [_counts_summary(s, values, classes) for s, values in counts.items()],
        "findings": _findings(card.get("findings") or {}),
        "unreadable": _unreadable(inputs),
        "tiles": _tiles(inputs.augmented),
        "sheet_note": (inputs.augmented.described.get("note") or "") if inputs.augmented else "",
    }  # fmt: skip


def _facts(inputs: Inputs, facts: Values) -> str:
    size, colours = facts.get("size"), {1: "Grey", 3: "RGB"}.get(facts.get("channels", 0), "")
    sizes = f"{size[0]} x {size[1]} pixels" if size else "of various sizes"
    side = inputs.run.recipe.data.image_size
    seen = f", seen by the network at {side} x {side}" if side and size != [side, side] else ""
    return f"{colours} images, {sizes}{seen}." if colours else ""


def _sentence(text: Any) -> str:
    """The text with a full stop at its end; empty stays empty."""
    text = str(text or "").strip()
    return f"{text}." if text and text[-1] not in ".!?" else text


def _counts_plot(classes: Sequence[str], counts: Mapping[str, Sequence[int]]) -> str:
    return plots.class_counts("counts", "Images of each class, by split", classes, counts)


def _counts_summary(split: str, values: Sequence[int], classes: Sequence[str]) -> str:
    least, most = min(values), max(values)
    text = f"{split}: {count(sum(values))} images in {count(len(values))} classes, {count(least)} to {count(most)} a class"
    if least == most:
        return f"{split}: {count(sum(values))} images in {count(len(values))} classes, {count(least)} each."
    return f"{text} (fewest: {shortened(classes[values.index(least)], 40)}; most: {shortened(classes[values.index(most)], 40)})."


def _findings(findings: Values) -> dict[str, Any]:
    items = [item for item in findings.get("items") or [] if isinstance(item, dict)]
    kinds: dict[str, int] = {}
    for item in items:
        kinds[str(item.get("kind"))] = kinds.get(str(item.get("kind")), 0) + 1
    total = number(findings.get("total"))
    headers, decoded = count(findings.get("headers")), count(findings.get("decoded"))
    reached = f"Of {count(total)} files, {headers} headers were read and {decoded} decoded before training." if total else ""
    return {"kinds": list(kinds.items()), "items": items[:LISTED], "more": len(items) - LISTED, "reached": reached}


def _unreadable(inputs: Inputs) -> dict[str, Any]:
    found = {str(v.get("name")): str(v.get("reason")) for line in inputs.lines.get("unreadable", ()) if (v := line.get("values"))}
    told = counted(len(found), "file") if found else ""
    return {"items": list(islice(found.items(), LISTED)), "more": len(found) - LISTED, "count": told}


def curves(inputs: Inputs) -> dict[str, Any]:
    """Loss, error, learning rate and throughput over the epochs, and the watched split as a table."""
    watched = inputs.watched
    axis = "epoch" if inputs.run.manifest.get("steps_per_epoch") else "step"
    loss = _lines(inputs, ("train", "loss", "training"), (watched, "loss", watched))
    error = _lines(inputs, ("train", "error", "training"), (watched, "top1_error", f"{watched}, top-1"))
    lr, speed = _lines(inputs, ("train", "lr", "learning rate")), _lines(inputs, ("train", "images_per_second", "throughput"))
    steps = inputs.run.recipe.schedule.shape == "steps"
    drawn = [
        (plots.curves("loss", "Loss over the epochs", loss, axis, "loss"), "Loss") if loss else None,
        (plots.curves("error", "Error over the epochs", error, axis, "error (%)"), "Error") if error else None,
        (plots.curves("rate", "Learning rate", lr, axis, "learning rate", log=steps), "Learning rate") if lr else None,
        (plots.curves("speed", "Throughput", speed, axis, "images a second", log=False), "Throughput") if speed else None,
    ]
    return {"plots": [plot for plot in drawn if plot], "watched": watched, "table": _watched_table(inputs), "axis": axis}


def _lines(inputs: Inputs, *wanted: tuple[str, str, str]) -> list[Line]:
    lines = []
    for split, key, label in wanted:
        x, y = inputs.series(split, key)
        if x:
            lines.append(Line(label, x, y, bold=split != "train" or key == "lr"))
    return lines


def _watched_table(inputs: Inputs) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    per_epoch = inputs.run.manifest.get("steps_per_epoch") or 1
    for line in inputs.lines.get(inputs.watched, ()):
        values, step = line.get("values") or {}, number(line.get("step")) or 0
        rows.append((
            decimal(step / per_epoch), count(step), decimal(values.get("loss"), 4), percent(values.get("top1_error")),
            percent(values.get("top5_error")), duration(line.get("seconds")),
        ))  # fmt: skip
    size = max(1, -(-len(rows) // 60))
    return rows[::-1][::size][::-1]


def evaluation(inputs: Inputs) -> dict[str, Any]:
    """The final result: table of protocols, confusions, classes, calibration."""
    result = inputs.main
    rows = [_protocol(e) for e in inputs.evaluations]
    if result is None:
        return {"result": None, "protocols": rows, "damaged": inputs.damaged}
    matrix, classes = _matrix(result)
    calibration = result.get("calibration") or {}
    bins = [b for b in calibration.get("bins") or [] if isinstance(b, dict) and {"low", "high", "count"} <= b.keys()]
    drawn = bool(matrix) and len(classes) <= MOST_CELLS
    return {
        "result": result,
        "protocols": rows,
        "damaged": inputs.damaged,
        "note": str(result.get("note") or "").removeprefix(_sentence(inputs.run.data.get("note"))).strip(),
        "confusion": plots.confusion("confusion", "Confusion matrix", classes, matrix) if drawn else "",
        "beside": drawn and len(classes) <= BESIDE,
        "confused": _confused(matrix, classes, 5 if drawn else 20),
        "classes": _class_table(result),
        "reliability": plots.reliability("calibration", "Reliability diagram", bins) if bins else "",
        "ece": percent(_times100(calibration.get("ece"))),
        "nll": decimal(result.get("nll")),
        "brier": decimal(result.get("brier")),
    }


def _protocol(e: Values) -> tuple[str, ...]:
    scales = e.get("scales")
    how = str(e.get("protocol") or "") + (f" at {value(scales)}" if scales else "")
    how += " (last weights)" if e.get("weights") == "last" else ""
    alone = len(e.get("runs") or [None])
    how += f", {alone} runs averaged" if alone > 1 else ""
    return (
        how, str(e.get("data") or ""), str(e.get("split") or ""), count(e.get("num_samples")), percent(e.get("top1_error")),
        interval(e).removeprefix("95 % interval "), percent(e.get("top5_error")), percent(e.get("balanced_accuracy")),
        f"{count(e.get('images_per_second'))} images/s",
    )  # fmt: skip


def _matrix(result: Values) -> tuple[list[list[int]], list[str]]:
    classes = [str(name) for name in result.get("classes") or []]
    matrix = [list(row) for row in result.get("confusion_matrix") or []]
    whole = len(matrix) == len(classes) and all(len(row) == len(classes) for row in matrix)
    return (matrix, classes) if whole else ([], classes)


def _confused(matrix: Sequence[Sequence[int]], classes: Sequence[str], most: int) -> list[tuple[str, str, str, str]]:
    """(label, prediction, how often, share of the label's images), the most frequent first."""
    wrong = [(n, row, column) for row, values in enumerate(matrix) for column, n in enumerate(values) if n and row != column]
    wrong.sort(key=lambda item: (-item[0], item[1], item[2]))
    totals = [sum(values) for values in matrix]
    return [(classes[row], classes[column], count(n), percent(100 * n / totals[row], 1)) for n, row, column in wrong[:most]]


def _class_table(result: Values) -> dict[str, Any]:
    table = [row for row in result.get("per_class") or [] if isinstance(row, dict)]
    hardest = sorted(table, key=lambda row: (number(row.get("recall")) is None, number(row.get("recall")) or 0))
    short = len(table) <= MOST_ROWS
    return {
        "rows": [_class_row(row) for row in (table if short else hardest[:20])],
        "all": [] if short else [_class_row(row) for row in table],
    }


def _class_row(row: Values) -> tuple[str, ...]:
    shares = (percent(row.get(key), 1) for key in ("recall", "precision", "f1"))
    return (str(row.get("class")), count(row.get("count")), *shares)


def mistakes(inputs: Inputs) -> dict[str, Any]:
    """The wrongly classified images whose label got the least probability: thumbnails, or a table where none were kept.

    Thumbnails of another result than the one that is reported are not shown.
    """
    listed = [item for item in (inputs.main or {}).get("worst") or [] if isinstance(item, dict)]
    names = {item.get("name") for item in listed}
    tiles = [(uri, item) for uri, item in _tiles(inputs.worst) if isinstance(item, dict) and item.get("name") in names]
    return {"tiles": [(uri, _mistake(item)) for uri, item in tiles], "items": [_mistake(item) for item in listed[:24]]}


def _mistake(item: Values) -> dict[str, str]:
    predicted = item.get("predicted_probability", item.get("probability"))
    return {
        "name": str(item.get("name") or NOTHING),
        "label": str(item.get("label")),
        "predicted": str(item.get("predicted")),
        "predicted_probability": percent(_times100(predicted), 1),
        "label_probability": percent(_times100(item.get("label_probability")), 1),
    }


def _tiles(sheet: Sheet | None) -> list[tuple[str, Any]]:
    """The tiles, as many as fit the budget."""
    kept: list[tuple[str, Any]] = []
    size = 0
    for uri, caption in sheet.tiles if sheet else []:
        size += len(uri)
        if size > IMAGE_BUDGET:
            break
        kept.append((uri, caption))
    return kept


def _times100(share: Any) -> float | None:
    known = number(share)
    return None if known is None else 100 * known
