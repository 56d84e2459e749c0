"""Results as text for a terminal. Each function gives the lines that the command line prints. Layer 5."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from residua.prediction import Prediction
from residua.published import PAPERS, Published
from residua.reproduction_page import spread
from residua.wording import NOTHING, counted, duration

__all__ = [
    "analyses", "classes", "data", "headline", "machine", "networks", "papers", "plans", "predictions", "reproduction",
    "shortening", "verification",
]  # fmt: skip


def networks(rows: Iterable[tuple[str, Published]]) -> str:
    """The catalogue by paper: a line a network."""
    groups: dict[str, list[tuple[str, Published]]] = {}
    for name, entry in rows:
        groups.setdefault(entry.paper, []).append((name, entry))
    width = max((len(name) for group in groups.values() for name, _ in group), default=4) + 2
    lines = [f"{'name':<{width}}{'depth':>6}{'parameters':>14}{'multiply-adds':>18}  {'input':<12}where"]
    for paper, group in groups.items():
        lines += ["", PAPERS[paper]]
        for name, entry in group:
            size = "x".join(map(str, entry.input_shape))
            numbers = f"{entry.depth:>6}{entry.parameters:>14,}{entry.multiply_adds:>18,}"
            lines.append(f"{name:<{width}}{numbers}  {size:<12}{entry.table}")
    return "\n".join(lines)


def headline(values: Mapping[str, Any]) -> str:
    """An evaluation in one line."""
    low, high = values["top1_interval"]
    top5 = f", top-5 error {values['top5_error']:.2f} %" if values["top5_error"] is not None else ""
    bad = f"; {values['num_unreadable']} unreadable images left out" if values["num_unreadable"] else ""
    return (
        f"{values['split'].capitalize()}: top-1 error {values['top1_error']:.2f} % (accuracy {100 - values['top1_error']:.2f} %, "
        f"95 % interval of the error {low:.2f} to {high:.2f}){top5}, {values['num_samples']:,} images{bad}."
    )


def classes(values: Mapping[str, Any]) -> str:
    """An evaluation by class."""
    lines = [f"Balanced accuracy {values['balanced_accuracy']:.2f} %, calibration error {values['calibration']['ece']:.4f}."]
    lines += ["", f"{'class':<24}{'images':>8}{'recall %':>10}{'precision %':>13}{'f1 %':>8}"]
    for row in values["per_class"]:
        recall, precision, f1 = ("-" if row[key] is None else f"{row[key]:.2f}" for key in ("recall", "precision", "f1"))
        lines.append(f"{row['class']:<24}{row['count']:>8}{recall:>10}{precision:>13}{f1:>8}")
    return "\n".join(lines)


def analyses(document: Mapping[str, Any]) -> str:
    """What each analysis says, and where its figures are."""
    lines = []
    for entry in document["analyses"]:
        lines += [entry["title"], *(f"  {sentence}" for sentence in entry["reading"][1:])]
        lines += [f"  Left out: {reason}" for reason in entry["left_out"].values()]
    return "\n".join([*lines, f"Figures: {document['page']}"] if document["page"] else lines)


def shortening(card: Mapping[str, Any]) -> str:
    """The units that went, and a line each for the network before, cut, and after tuning."""
    gone = ", ".join(f"{item['path']} ({item['damage']:+.4f})" for item in card["removed"])
    lines = [f"Removed (change of the mean loss on {card['measured_on']}, {card['images']:,} images): {gone}"]
    lines.append(f"{'':8}{'error':>9}{'parameters':>14}{'multiply-adds':>16}{'one image':>12}")
    for name in ("before", "cut", "after"):
        row = card[name]
        pace = f"{row['milliseconds']:.2f} ms" if "milliseconds" in row else ""
        lines.append(f"{name:8}{row['top1_error']:>7.2f} %{row['parameters']:>14,}{row['multiply_adds']:>16,}{pace:>12}".rstrip())
    return "\n".join(lines)


def papers(rows: Iterable[Mapping[str, Any]]) -> str:
    """Papers with their items and claims: what is known of each, and what the budgets would cost."""
    rows = list(rows)
    head = {"name": "paper/item or claim", "known": "known", "smoke": "smoke", "small": "small", "full": "full"}
    listed = [head, *(row for paper in rows for row in paper["rows"])]
    width = {column: 2 + max(len(row[column]) for row in listed) for column in head}

    def line(row: Mapping[str, str]) -> str:
        costs = "".join(f"{row[budget]:>{width[budget]}}" for budget in ("smoke", "small", "full"))
        return f"  {row['name']:<{width['name']}}{row['known']:<{width['known']}}{costs}"

    lines = [line(head)]
    for paper in rows:
        lines += ["", paper["citation"], f"  {paper['summary']}", *map(line, paper["rows"])]
    return "\n".join([
        *lines, "",
        "Costs are forecasts for this machine, within a factor of two; runs that several share are counted with each.",
        f"{NOTHING} where a budget has no such run, or none that could settle the claim: --json says why.",
        "residua reproduce PAPER/ITEM --budget smoke | small | full runs it.",
    ])  # fmt: skip


def reproduction(document: Mapping[str, Any]) -> str:
    """A line a claim with its verdict, and what one that is not attempted would cost; then the tables of the items, with what is
    left out of each."""
    lines = []
    for entry in document["claims"]:
        lines.append(f"{entry['verdict']:<15}{entry['paper']}/{entry['id']}: {entry['why']}")
        if costs := [f"{duration(seconds)} at {budget}" for budget, seconds in (entry["cost"] or {}).items() if seconds]:
            lines.append(f"{'':<15}Forecast here: {', '.join(costs)}.")
    for item in document["items"]:
        if item["rows"] or item["left_out"]:
            lines += ["", f"{item['paper']}/{item['id']}: {item['title']}"]
        if item["rows"]:
            labels = [f"{row['label']}, {row['measure']}" for row in item["rows"]]
            width = 2 + max(map(len, labels))
            lines.append(f"  {'':<{width}}{'paper':>10}{'measured':>24}")
            for label, row in zip(labels, item["rows"]):
                printed = "-" if row["published"] is None else row["published"]
                lines.append(f"  {label:<{width}}{printed!s:>10}{spread(row):>24}")
        lines += [f"  Left out: {arm}: {reason}" for arm, reason in item["left_out"].items()]
    return "\n".join(lines)


def verification(values: Mapping[str, Any]) -> str:
    """What a repetition showed, in a line."""
    made = f" {values['updates']:,} of {values['total']:,} updates repeated." if values["total"] else ""
    return f"{values['id']}: {values['verdict']}. {values['why']}{made}"


def predictions(items: Sequence[Prediction]) -> str:
    """A line a file: its labels and their probabilities, or that it cannot be read."""
    width = max(len(item.path) for item in items)
    lines = []
    for item in items:
        labels = ", ".join(f"{label} {probability:.4f}" for label, probability in item.top)
        lines.append(f"{item.path:<{width}}  {labels if not item.error else 'unreadable'}")
    return "\n".join(lines)


def machine(card: Mapping[str, Any]) -> str:
    """The machine in a few lines, then the advice."""
    groups = (
        f"{group.capitalize()}: " + ", ".join(f"{k} {v}" for k, v in card[group].items()) for group in ("hardware", "versions")
    )
    return "\n".join([
        *groups,
        f"Threads: {card['threads']}; free memory {card['free_memory_gib']} GiB; free disk {card['free_disk_gib']} GiB",
        f"Matrix products: {card['gflops']['fp32']:,} GFLOP/s in fp32, {card['gflops']['bf16']:,} in bf16",
        f"C++ compiler: {card['compiler'] or 'none'}; TensorBoard: {'installed' if card['tensorboard'] else 'not installed'}",
        *(f"- {text}" for text in card["advice"] or ["Nothing to mend."]),
    ])  # fmt: skip


def plans(card: Mapping[str, Any]) -> str:
    """The execution plans that were tried for a network, the fastest first, and what a run would take."""
    rows = sorted(card["plans"], key=lambda row: row["seconds_per_step"] or float("inf"))
    size = "x".join(map(str, card["input_shape"]))
    lines = [
        f"{card['model']}: whole updates of the recipe fast, {card['batch_size']} images of {size}, on {card['device']} "
        f"with {counted(card['threads'], 'thread')}",
        "",
        f"{'plan':<22}{'ms a step':>11}{'images/s':>10}{'factor':>8}{'start, s':>10}{'losses apart':>14}",
    ]
    for row in rows:
        if row["seconds_per_step"] is None:
            lines.append(f"{row['name']:<22}{row['outcome']}")
            continue
        apart = "" if row["loss_apart"] is None else f"{row['loss_apart']:.1e}"
        said = "" if row["outcome"] == "measured" else f"  {row['outcome']}"
        lines.append(
            f"{row['name']:<22}{1000 * row['seconds_per_step']:>11,.1f}{row['images_per_second']:>10,.0f}{row['factor']:>8.2f}"
            f"{row['start_seconds']:>10.1f}{apart:>14}{said}"
        )
    lines += [f"{name:<22}not tried: {reason}" for name, reason in card["left_out"].items()]
    lines += [
        "",
        "A run tries fp32 and bf16, then what could beat the better of the two, and takes what ends first, its start included:",
    ]
    lines += [f"{choice['updates']:>9,} updates  {choice['plan']:<20}{duration(choice['seconds'])}" for choice in card["chosen"]]
    rates, ceiling = card["gflops"], card["ceiling"]
    lines += [
        "",
        f"Ceiling: matrix products reach {rates['fp32']:,} GFLOP/s in fp32 and {rates['bf16']:,} in bf16; the multiply-adds of "
        f"an update at these rates are {ceiling['fp32']:,.0f} and {ceiling['bf16']:,.0f} images/s.",
        f"Memory: {card['memory_mib']:,} MiB for the update, {card['free_mib']:,} MiB free.",
        *([card["recomputed"]] if card["recomputed"] else []),
        *card["notes"],
        *(f"{row['name']}: {row['what']}." for row in rows),
        "Losses apart: the greatest relative difference from fp32 over the updates that both made.",
        f"Remembered in {card['remembered_in']}.",
    ]
    return "\n".join(lines)


def data(card: Mapping[str, Any]) -> str:
    """A data set: how it was read, its classes, what the check found."""
    splits, findings = list(card["counts"]), card["findings"]
    lines = [card["note"], "Facts: " + ", ".join(f"{name} {value}" for name, value in card["facts"].items()), ""]
    lines.append(f"{'class':<32}" + "".join(f"{split:>10}" for split in splits))
    for index, name in enumerate(card["classes"]):
        lines.append(f"{name:<32}" + "".join(f"{card['counts'][split][index]:>10,}" for split in splits))
    lines.append("")
    if findings["total"]:
        read, decoded = findings["headers"], findings["decoded"]
        lines.append(f"Checked: {read:,} headers and {decoded:,} decoded of {findings['total']:,} files")
    lines += [f"- {item['kind']}: {item['what']} ({item['done']})" for item in findings["items"]]
    return "\n".join(lines if findings["items"] else [*lines, "Nothing is wrong with it."])
