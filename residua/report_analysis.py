"""The page of the analyses: one HTML file, drawn from plain numbers. Layer 5."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from residua.analysis import CATALOG, Analysis
from residua.report import environment, packaged, printable
from residua.wording import count, counted, duration, value

__all__ = ["page"]


def page(document: Mapping[str, Any]) -> str:
    """The HTML of `residua.analyzing.Analyses.to_dict`."""
    template = environment().from_string(packaged("report_analysis_template.html"))
    subjects = document["subjects"]
    html = template.render(
        style=Markup(packaged("report_style.css")),
        title=" and ".join(subject["name"] for subject in subjects),
        lead=_lead(document),
        figures=_figures(document),
        subjects=[_row(subject) for subject in subjects],
        command=_command(document),
        sections=[_section(CATALOG.get(entry["name"]), entry) for entry in document["analyses"]],
        version=document["version"],
    )
    return printable(html)


def _lead(document: Mapping[str, Any]) -> str:
    subjects = document["subjects"]
    sets = list(dict.fromkeys(subject["data"] for subject in subjects))
    side = "One network" if len(subjects) == 1 else f"{count(len(subjects))} networks side by side"
    return f"{side}, taken apart on images of {' and '.join(sets)}. Nothing was trained, and nothing in the networks was changed."


def _figures(document: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    subjects, entries = document["subjects"], document["analyses"]
    spent = sum(sum(entry["seconds"].values()) for entry in entries)
    return [
        ("Networks", count(len(subjects)), ", ".join(dict.fromkeys(subject["model"] for subject in subjects))),
        ("Units", _each(subjects, "units"), "that can be switched off"),
        ("Images", _each(subjects, "images"), "of which each analysis says how many it used"),
        ("Analyses", count(len(entries)), f"in {duration(spent)}"),
    ]


def _each(subjects: Sequence[Mapping[str, Any]], key: str) -> str:
    """The count of each network, once where they are equal."""
    return " / ".join(dict.fromkeys(count(subject[key]) for subject in subjects))


def _row(subject: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(subject["name"]), str(subject["model"]), count(subject["parameters"]), count(subject["units"]),
        str(subject["checkpoint"] or "–"), str(subject["device"]),
    )  # fmt: skip


def _command(document: Mapping[str, Any]) -> list[str]:
    runs = [subject["run"] for subject in document["subjects"]]
    if not all(runs):
        return []
    options = [word for name, given in document["asked"].items() for word in (f"--{name.replace('_', '-')}", given)]
    return ["residua", "analyze", *map(shlex.quote, (*runs, *options))]


def _section(analysis: Analysis, entry: Mapping[str, Any]) -> dict[str, Any]:
    results = entry["results"]
    return {
        "name": entry["name"],
        "title": entry["title"],
        "about": entry["about"],
        "reading": entry["reading"],
        "drawings": analysis.draw(results) if results else [],
        "used": [f"{name}: {_used(result['used'], entry['seconds'].get(name))}" for name, result in results.items()],
        "left_out": list(entry["left_out"].values()),
    }


def _used(used: Mapping[str, Any], seconds: float | None) -> str:
    parts = [counted(item, _single(key), key) if isinstance(item, int) else f"{key} {value(item)}" for key, item in used.items()]
    return ", ".join([*parts, duration(seconds)])


def _single(things: str) -> str:
    """ "path of each image" of "paths of each image"."""
    head, of, rest = things.partition(" of ")
    return head.removesuffix("s") + of + rest
