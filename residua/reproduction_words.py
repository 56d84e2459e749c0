"""The words of a reproduction's page: measures, departures from a protocol, and the numbers that a claim stands on. Layer 5."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from residua.rules import WORDS
from residua.wording import NOTHING, decimal, value

__all__ = [
    "Fact",
    "because",
    "broken",
    "column",
    "compared",
    "departed",
    "difference",
    "facts",
    "measure",
    "number",
    "printed",
    "revision",
    "rule",
    "said",
]

Fact = tuple[str, str]

MEASURES = {
    **WORDS, "parameters": "parameters", "multiply_adds": "multiply-adds", "training_seconds": "seconds of training",
}  # fmt: skip
COLUMNS = {
    "error": "error, %", "baseline": "baseline, %", "preact": "pre-activation, %", "c10": "CIFAR-10, %",
    "c10plus": "CIFAR-10 augmented, %", "c100": "CIFAR-100, %", "c100plus": "CIFAR-100 augmented, %", "svhn": "SVHN, %",
    "cifar10": "CIFAR-10, %", "cifar100": "CIFAR-100, %", "top1": "top-1 error, %", "top5": "top-5 error, %",
    "top1_1crop": "top-1 error, one crop, %", "top5_1crop": "top-5 error, one crop, %", "resnet110": "110 layers, %",
    "resnet164": "164 layers, %", "with_residual": "with shortcuts, %", "without_residual": "without shortcuts, %",
    "params_m": "parameters, millions", "flops_g": "multiply-adds, thousand millions", "time_ms": "time, ms",
    "cross_entropy": "cross-entropy, nats",
}  # fmt: skip
FIELDS = {
    "model.name": "network", "model.options.depth": "depth", "model.options.width": "width",
    "model.options.growth": "growth rate",
    "model.options.shortcut": "shortcut", "model.options.unit": "unit", "model.options.branch": "branch",
    "model.options.block": "block", "model.options.bottleneck": "bottleneck", "model.options.compression": "compression",
    "model.options.cardinality": "cardinality", "model.options.normalization": "normalisation",
    "model.options.dropout": "dropout", "model.options.stem": "stem", "model.options.head": "head", "data.source": "data",
    "data.image_size": "side of the images", "data.normalize": "normalisation of the images",
    "data.holdout": "training images held out", "augment.crop": "crop", "augment.pad": "padding before the crop",
    "augment.flip": "mirroring", "augment.colour": "change of colours", "augment.cutout": "side of what is cut out",
    "batch_size": "batch", "micro_batch": "images at a time", "evaluations": "measurements on the test set",
    "plan": "execution plan", "schedule.name": "schedule", "schedule.warmup": "share of the training that warms up",
    "schedule.warmup_factor": "learning rate at the start of warm-up", "schedule.warmup_shape": "shape of the warm-up",
    "schedule.drops": "where the learning rate falls, in shares of the training", "optim.name": "optimiser",
    "optim.lr": "learning rate", "optim.momentum": "momentum", "optim.weight_decay": "weight decay", "optim.eps": "epsilon",
    "optim.square_decay": "decay of the mean square", "average.decay": "decay of the average of weights",
}  # fmt: skip
LENGTHS = ("steps", "epochs", "minutes")
UNSAID = ("name", *LENGTHS)  # a recipe's name computes nothing; lengths are said together
REASONS = {
    "smoke": "The budget smoke proves within seconds a network that all of it can be run: hence the digits, a few updates and, "
    "where a network is large, a small one of its structure.",
    "small": "The budget small looks for the direction of an effect on a small machine, where full trainings would take days to "
    "months: hence shorter ones, with schedules shortened alike, and smaller networks or data where theirs are too large.",
    "full": "The budget full keeps to the papers; where a run differs all the same, the reason stands beside it.",
}
NUMBERS = {
    "p": "p", "arm": "run", "r2": "R²", "rho": "rank correlation", "lr": "learning rate", "std": "standard deviation",
    "low": "lower bound", "high": "upper bound", "state": "when", "share": "share",
}  # fmt: skip
REVISION = 12  # digits of a git revision that are shown
MOST = 16  # numbers of one list that are shown
_HOLDS = re.compile(r": (True|False)\b")
_BUDGET = re.compile(r" (?=At the small one )")
_PART = re.compile(r" \(\d\d?\) ")
_TOKEN = re.compile(r"(?<![\w.-])[a-z0-9-]+(?:[._][a-z0-9_-]+)+(?![\w-])")


def revision(git: str | None) -> str:
    """The git revision of the sources, in words: "da2f507af3b1 with uncommitted changes"; "" where it is not known."""
    head, changes, _ = (git or "").partition("+")
    return head[:REVISION] + (" with uncommitted changes" if changes else "")


def measure(name: str) -> str:
    """A measure in words."""
    if name in MEASURES:
        return MEASURES[name]
    for suffix, words in (("_parameters", "parameters"), ("_multiply_adds", "multiply-adds"), ("_ms", "time, ms")):
        if name.endswith(suffix):
            return words
    return name.replace(".", ": ").replace("@", " at ").replace("_", " ")


def column(name: str) -> str:
    """The heading of a printed column."""
    return COLUMNS.get(name, name.replace("_", " "))


def said(text: str) -> str:
    """A sentence with measures in words, where a rule names them as fields, and with yes and no for what holds or not."""
    text = _HOLDS.sub(lambda found: ": yes" if found[1] == "True" else ": no", text)
    return _TOKEN.sub(lambda found: MEASURES.get(found[0], found[0]), text)


def number(thing: Any) -> str:
    """A number as it is read in a table: whole ones whole, others to four digits."""
    if isinstance(thing, float) and not thing.is_integer():
        return decimal(thing, 4)
    return f"{thing:,.0f}" if isinstance(thing, (int, float)) and not isinstance(thing, bool) else value(thing)


# ---------------------------------------------------------------------------------------------------------- departures


def difference(run: Mapping[str, Any]) -> list[str]:
    """How one run departs from the protocol: a phrase for each thing, the length first."""
    fields = run["departures"]
    phrases = []
    if lengths := {name: fields[name] for name in LENGTHS if name in fields}:
        there, here = (_length({name: pair[side] for name, pair in lengths.items()}) for side in (0, 1))
        phrases.append(f"{here} of training instead of {there}")
    for name, (there, here) in fields.items():
        if name not in UNSAID:
            phrases.append(
                f"{FIELDS.get(name, name.rpartition('.')[2].replace('_', ' '))}: {_set(here)} instead of {_set(there)}"
            )
    return phrases + ([run["departs"]] if run["departs"] else [])


def departed(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """How several runs depart from their protocols: each phrase with the arms that it holds for ("" for all)."""
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for phrase in difference(run):
            found.setdefault(phrase, {})[run["arm"]] = None
    return [(phrase, "" if len(names) == len(arms) else ", ".join(names)) for phrase, names in found.items()]


def because(budget: str) -> str:
    """Why the runs of a budget differ from the protocol; "" for what no run decides."""
    return REASONS.get(budget, "")


def broken(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which of several runs ended early, and why."""
    return [f"{run['arm']}, seed {run['seed']}: {run['broken_off']}" for run in runs if run["broken_off"]]


def rule(text: str) -> list[dict[str, Any]]:
    """A rule as paragraphs, one a budget where they differ: `lead`, and `parts` where all of several are asked for."""
    paragraphs = []
    for piece in _BUDGET.split(said(text)):
        lead, *parts = _PART.split(piece)
        paragraphs.append({"lead": lead, "parts": parts})
    return paragraphs


def _length(values: Mapping[str, Any]) -> str:
    given = [(name, given) for name, given in values.items() if given is not None]
    return " ".join(f"{number(given)} {'updates' if name == 'steps' else name}" for name, given in given) or "the usual length"


def _set(thing: Any) -> str:
    return "the default" if thing is None else "none" if thing == [] else value(thing)


# ------------------------------------------------------------------------------------------------------------- numbers


def compared(numbers: Mapping[str, Any]) -> bool:
    """Whether the numbers are those of a comparison of two sides."""
    return {"left", "right", "estimate", "low", "high"} <= numbers.keys()


def unbounded(numbers: Mapping[str, Any]) -> bool:
    """Whether a comparison has one seed on a side and a measure that no number of images bounds."""
    return numbers["low"] == numbers["high"] and 1 in (len(numbers["left"]), len(numbers["right"]))


def facts(numbers: Mapping[str, Any]) -> list[Fact]:
    """The numbers that a claim stands on, (what, how much), nested ones by their ways."""
    if compared(numbers):
        sides = f"{_listed(numbers['left'])} against {_listed(numbers['right'])}"
        p_value = "" if numbers.get("p") is None else f", p = {decimal(numbers['p'], 2)}"
        bounds = f"95 % one-sided bounds {_signed(numbers['low'])} and {_signed(numbers['high'])}"
        if unbounded(numbers):
            bounds = "one seed on a side: its spread is not known"
        rest = {name: inner for name, inner in numbers.items() if name not in ("left", "right", "estimate", "low", "high", "p")}
        return [*_plain(rest), ("values", sides), ("difference", f"{_signed(numbers['estimate'])} ({bounds}{p_value})")]
    return _plain(numbers)


def _plain(numbers: Mapping[str, Any]) -> list[Fact]:
    found: list[Fact] = []
    for name, inner in numbers.items():
        words = NUMBERS.get(name, name.replace("_", " "))
        if name == "measure":
            found.append((words, measure(str(inner))))
        elif isinstance(inner, Mapping):
            found += [(_joined(words, within), text) for within, text in facts(inner)]
        elif isinstance(inner, list) and inner and all(isinstance(one, Mapping) for one in inner):
            found += [(f"{words}, {place}", _row(one)) for place, one in enumerate(inner, 1)]
        else:
            found.append((words, _listed(inner) if isinstance(inner, list) else number(inner)))
    return found


def _joined(words: str, within: str) -> str:
    return f"{words}: {within}"


def _row(numbers: Mapping[str, Any]) -> str:
    return "; ".join(f"{name} {text}" for name, text in facts(numbers))


def _listed(values: Iterable[Any]) -> str:
    shown = list(values)
    texts = [_listed(one) if isinstance(one, list) else number(one) for one in shown[:MOST]]
    return (", ".join(texts) or NOTHING) + (f" and {len(shown) - MOST} more" if len(shown) > MOST else "")


def _signed(thing: Any) -> str:
    if not isinstance(thing, (int, float)):
        return NOTHING
    return ("+" if thing > 0 else "−" if thing < 0 else "") + decimal(abs(thing), 3)


def printed(value: Any) -> str:
    """A printed number as it is printed: a float keeps its digits."""
    return format(Decimal(repr(value)), "f") if isinstance(value, float) else number(value)
