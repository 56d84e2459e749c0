"""The page of a reproduction: one HTML file that holds all it shows, made from the plain values of reproduction.json. Layer 5."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from markupsafe import Markup

from residua.evidence import VERDICTS
from residua.report import environment, packaged, printable
from residua.reproduction_claims import SIGNS, anchor, claim_view
from residua.reproduction_tables import spread, table
from residua.reproduction_words import because, broken, departed, difference, number, revision
from residua.wording import NOTHING, counted, duration, value

__all__ = ["page", "spread", "tally"]

BUDGETS = {
    "smoke": "some updates on the digits, which prove that the machinery works and decide nothing",
    "small": "real data at reduced length, which decides the direction of an effect where it can",
    "full": "the papers' protocols to the letter",
}
MACHINE = {"processor": "processor", "cores": "cores", "memory_gib": "memory, GiB", "device": "device", "gpu": "GPU",
           "cpu_capability": "vector unit"}  # fmt: skip
SHOWN_ALONE = 20  # runs, before their table scrolls in its own box
_TURNING = re.compile("[\u202a-\u202e\u2066-\u2069]")  # what turns the direction of reading for all that follows
_REFERENCE = re.compile(r'(\bid="|\burl\(#|href="#)')


def page(document: Mapping[str, Any]) -> str:
    """The HTML of a reproduction's document."""
    runs = {run["id"]: run for run in document["runs"]}
    claims = [claim_view(entry, runs) for entry in document["claims"]]
    text = environment().from_string(packaged("reproduction_template.html")).render(
        style=Markup(packaged("report_style.css") + packaged("reproduction_style.css")),
        title=_title(document), asked=", ".join(document["names"]) or "everything", lead=_lead(document),
        made=_date(document["made"]),
        version=document["version"], budget=document["budget"], again=document["again"],
        figures=_figures(document), verdicts=_bar(document["claims"]), papers=_papers(document, claims, runs),
        runs=[_run(run) for run in document["runs"]], because=because(document["budget"]),
        failed=document["failed"], long=len(runs) > SHOWN_ALONE,
        machine=[(words, value(document["hardware"][name])) for name, words in MACHINE.items() if name in document["hardware"]],
        versions=list(document["versions"].items()),
    )  # fmt: skip
    return printable(_TURNING.sub("\N{REPLACEMENT CHARACTER}", text))


def tally(document: Mapping[str, Any]) -> list[tuple[str, int]]:
    """How many claims have each verdict."""
    return _tally(document["claims"])


def _tally(claims: Iterable[Mapping[str, Any]]) -> list[tuple[str, int]]:
    counts = Counter(claim["verdict"] for claim in claims)
    return [(verdict, counts[verdict]) for verdict in VERDICTS]


def _bar(claims: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The verdicts with their counts, and the share of the bar that each takes in per cent."""
    return [
        {"verdict": verdict, "count": count, "sign": SIGNS[verdict], "share": 100 * count / max(1, len(claims))}
        for verdict, count in _tally(claims)
    ]


# -------------------------------------------------------------------------------------------------------------- the head


def _title(document: Mapping[str, Any]) -> str:
    """What is reproduced: the name of one item or claim, the title of one paper, or how many papers there are."""
    names, cards = document["names"], document["papers"]
    if len(names) == 1 and "/" in names[0]:
        return str(names[0])
    if len(cards) == 1:
        return str(next(iter(cards.values()))["title"])
    return ", ".join(names) if 0 < len(names) <= 4 else f"Reproduction of {counted(len(cards), 'paper')}"


def _lead(document: Mapping[str, Any]) -> str:
    parts = [counted(len(document["claims"]), "claim"), counted(len(document["items"]), "table or figure", "tables and figures")]
    return f"{' and '.join(parts)} at the budget {document['budget']}: {BUDGETS[document['budget']]}."


def _date(made: str) -> str:
    """ "21 November 2026, 19:50 UTC"."""
    when = datetime.fromisoformat(made)
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def _figures(document: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    runs = document["runs"]
    decided = sum(count for verdict, count in tally(document) if verdict in ("shown", "refuted"))
    exact = sum(claim["budget"] == "exact" for claim in document["claims"])
    own = {run["id"].rpartition("-s")[2]: run for run in runs}  # several arms can share a run
    seconds = sum(run["values"].get("training_seconds") or 0 for run in own.values())
    arms = counted(len({run["arm"] for run in runs}), "network or recipe", "networks and recipes")
    return [
        ("Claims decided", f"{decided} of {len(document['claims'])}", f"{exact} of all by structure or arithmetic, without runs"),
        ("Runs", number(len(own)), f"of {arms}"),
        ("Training", duration(seconds) if seconds else NOTHING, "in all of these runs, measurements left out"),
        ("This command", duration(document["seconds"]), "runs that were there already are not made again"),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ the papers


def _papers(
    document: Mapping[str, Any], claims: Sequence[Mapping[str, Any]], runs: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Each paper with its items and claims; those that are not attempted stand apart."""
    shown = {f"{claim['paper']}/{claim['id']}": claim for claim in claims}
    found = []
    for key, card in document["papers"].items():
        own = [claim for claim in claims if claim["paper"] == key]
        items = [_item(item, place, shown, runs) for place, item in enumerate(document["items"]) if item["paper"] == key]
        found.append({
            **card, "key": key, "anchor": anchor("paper", key), "items": items, "bar": _bar(own), "count": len(own),
            "attempted": [claim for claim in own if claim["verdict"] != "not attempted"],
            "waiting": [claim for claim in own if claim["verdict"] == "not attempted"],
        })  # fmt: skip
    return found


def _item(
    item: Mapping[str, Any], place: int, claims: Mapping[str, Mapping[str, Any]], runs: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    beside = [name if "/" in name else f"{item['paper']}/{name}" for name in item["claims"]]
    own = [runs[name] for name in item["runs"] if name in runs]
    ended_early = Counter(run["arm"] for run in own if run["broken_off"])
    return {
        **item, "anchor": anchor("item", item["paper"], item["id"]), "table": table(item["rows"], ended_early),
        "drawings": [
            {**figure, "svg": _own_ids(figure["svg"], f"f{place}-{number}-")} for number, figure in enumerate(item["figures"])
        ],
        "beside": [claims[name] for name in beside if name in claims], "departed": departed(own), "broken": broken(own),
    }  # fmt: skip


def _own_ids(svg: str, prefix: str) -> str:
    """The drawing with ids that no other drawing of the page has: one analysis may be drawn in several places."""
    return _REFERENCE.sub(lambda found: found[1] + prefix, svg)


def _run(run: Mapping[str, Any]) -> dict[str, Any]:
    values, broken_off = run["values"], [run["broken_off"]] if run["broken_off"] else []
    return {
        "id": run["id"], "anchor": anchor("run", run["id"]), "verify": run["verify"],
        "unrepeatable": run["unrepeatable"], "sources": revision(run["git"]), "processor": run["processor"], "seed": run["seed"],
        "numbers": [number(values[name]) if name in values else NOTHING for name in ("test_error", "train_error", "train_loss")],
        "seconds": duration(values.get("training_seconds")), "differs": "; ".join([*difference(run), *broken_off]) or "nothing",
    }  # fmt: skip
