"""The figures and the table of docs/lesions.md, from docs/figures/lesions.json and the printed numbers of veit2016.

`.venv/bin/python tests/doc_lesions.py RUN...` takes the lesions out of the analysis.json of runs first; without a run it draws
anew what is there. A test fails where figures or table differ.
"""

from __future__ import annotations

import json
import statistics
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from residua.analyses.lesion import lesion
from residua.wording import percent

ROOT = Path(__file__).parent.parent
PAGE, FIGURES = ROOT / "docs" / "lesions.md", ROOT / "docs" / "figures"
KEPT = FIGURES / "lesions.json"
PAPER = ROOT / "residua" / "papers" / "veit2016.toml"
BEGIN, END = "<!-- begin lesions -->", "<!-- end lesions -->"
PARTS = ("kind", "baseline", "baseline_interval", "chance", "single", "random", "swaps", "used")


def rounded(value: Any) -> Any:
    """Plain values with floats of at most three places behind the point."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return round(value, 3) if isinstance(value, float) else value


def collected(runs: Sequence[Path]) -> dict[str, Any]:
    """The lesions of each run, by its name."""
    found = {}
    for run in runs:
        document = json.loads((run / "analysis.json").read_text(encoding="utf-8"))
        for entry in document["analyses"]:
            if entry["name"] == "lesion":
                found |= {name: rounded({key: result[key] for key in PARTS}) for name, result in entry["results"].items()}
    return found


def drawings(results: Mapping[str, Any]) -> dict[str, str]:
    """The figures by the names of their files: residual networks by depth, and each beside its plain twin."""
    deep = {name: result for name, result in results.items() if name.startswith("resnet")}
    groups = {"depth": deep}
    for name, result in results.items():
        twin = name.replace("resnet", "plain")
        if name.startswith("resnet") and twin in results:
            groups[name.removeprefix("resnet")] = {name: result, twin: results[twin]}
    kinds = ("single", "random", "swaps")
    return {
        f"lesions-{group}-{kind}.svg": alone(drawing.svg)
        for group, of in groups.items()
        for kind, drawing in zip(kinds, lesion.draw(of))
        if kind == "single" or group != "depth"
    }


def alone(svg: str) -> str:
    """An inline SVG as a file of its own, on white."""
    head = '<svg xmlns="http://www.w3.org/2000/svg" style="background: white; color: #222222; font-family: sans-serif" '
    return svg.replace("<svg ", head, 1) + "\n"


def table(results: Mapping[str, Any]) -> str:
    """The rises of the error, beside those that follow from the raw results of veit2016."""
    rows = []
    for name, result in results.items():
        damaged = [(row["error"], row["transition"]) for row in result["single"]]
        rows.append((name, result["baseline"], damaged, result["used"]["images"]))
    printed = tomllib.loads(PAPER.read_text(encoding="utf-8"))
    singles = next(part for part in printed["table"] if part["id"] == "lesion_single_cifar")["rows"]
    for row in singles:
        if row["id"].startswith("preact-resnet-"):
            errors = row["error_when_block_removed"]
            edges = {len(errors) // 3, 2 * len(errors) // 3}
            rows.append((f"veit2016, {row['id']}", row["baseline"], [(e, n in edges) for n, e in enumerate(errors)], 10_000))
    lines = [
        "| network | error | one less: median rise | inside a stage | at a transition | worst error | images |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, whole, damaged, images in rows:
        inside, edges = ([error - whole for error, edge in damaged if edge is wanted] for wanted in (False, True))
        cells = [percent(whole, 1), *(points(statistics.median(part)) for part in ([*inside, *edges], inside, edges))]
        worst = max(error for error, _ in damaged)
        lines.append(f"| {' | '.join([name, *cells, percent(worst, 1), f'{images:,}'])} |")
    return "\n".join(lines)


def points(value: float) -> str:
    return f"{value:+.1f}"


def page(text: str, results: Mapping[str, Any]) -> str:
    """The page with its table written anew."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table(results)}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        KEPT.write_text(json.dumps(collected([Path(run) for run in sys.argv[1:]]), indent=1) + "\n", encoding="utf-8")
    results = json.loads(KEPT.read_text(encoding="utf-8"))
    for name, svg in drawings(results).items():
        (FIGURES / name).write_text(svg, encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
