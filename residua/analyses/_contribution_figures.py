"""The figures of the contributions, and what they say. Layer 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from residua.analysis import Drawing
from residua.panels import Curve, panel
from residua.plots import shortened
from residua.wording import decimal, percent

__all__: list[str] = []

Results = Mapping[str, Mapping[str, Any]]


def draw(results: Results) -> list[Drawing]:
    """One prediction, the mean over many, and the readout after every unit."""
    name, first = next(iter(results.items()))
    figures = []
    if first["examples"]:
        figures.append(_one(name, first["examples"][0], first))
    return [*figures, _mean(results), _readouts(results)]


def read(results: Results) -> tuple[str, str]:
    """What to look for, and what these numbers say."""
    how = (
        "Units whose part is far from zero decide the prediction; where the readout stays the same from a unit on, the later "
        "units only refine it."
    )
    said = []
    for name, result in results.items():
        text = f"in {name} "
        direct = result["mean"]["direct"]
        if direct is not None:
            largest = max(range(len(direct)), key=lambda number: abs(direct[number]))
            does = "adds" if direct[largest] >= 0 else "takes away"
            text += (
                f"{result['units'][largest]} {does} most, {decimal(direct[largest])} of a mean margin of "
                f"{decimal(result['mean']['margin'])} (the parts miss the whole by at most {result['completeness_error']:.1e}), "
                "and "
            )
        text += f"the readout says what the network says for 90 % of the images {_settled(result)}"
        said.append(text)
    sentence = "; ".join(said) + "."
    return how, sentence[0].upper() + sentence[1:]


def _settled(result: Mapping[str, Any]) -> str:
    """From which unit on nine of ten readouts agree with the network."""
    agreement = result["readout_agreement"]
    last = len(agreement) - 1
    while last > 0 and agreement[last - 1] is not None and agreement[last - 1] >= 90:
        last -= 1
    if last == len(result["units"]):
        return "only after the last unit"
    return "from the start" if last == 0 else f"from {result['units'][last - 1]} on (unit {last} of {len(result['units'])})"


def _one(name: str, example: Mapping[str, Any], result: Mapping[str, Any]) -> Drawing:
    xs = list(range(1, len(result["units"]) + 1))
    ringed = [number for number, changes in enumerate(result["transitions"]) if changes]
    curves = [Curve(xs, example["when_off"], "fall of the margin when it is off", 1, style="dashed")]
    caption = (
        f"{name}, an image of {shortened(example['label'], 30)}: taken for {shortened(example['predicted'], 30)} "
        f"({percent(100 * example['probability'], 1)}) rather than {shortened(example['second'], 30)}."
    )
    if example["direct"] is not None:
        curves.insert(0, Curve(xs, example["direct"], "its own part of the margin", 0, style="both", ringed=ringed))
        caption += (
            f" Margin {decimal(example['margin'])} = units {decimal(sum(example['direct']))} + signal before them "
            f"{decimal(example['start'])} + biases {decimal(example['constant'])}. Rings: stage transitions."
        )
    return Drawing(
        "One prediction",
        panel("contribution-one", "Parts of one prediction by unit", curves, "unit", "margin, logits", whole=True, zero=False,
              levels={"": 0.0}),
        f"{caption} {result['way']}",
    )  # fmt: skip


def _mean(results: Results) -> Drawing:
    curves = []
    for network, (name, result) in enumerate(results.items()):
        mean, xs = result["mean"], list(range(1, len(result["units"]) + 1))
        ringed = [number for number, changes in enumerate(result["transitions"]) if changes]
        if mean["direct"] is not None:
            curves.append(Curve(xs, mean["direct"], f"{name}, own part", network, style="both", ringed=ringed))
        curves.append(Curve(xs, mean["when_off"], f"{name}, when off", network, style="dashed"))
    counts = " and ".join(dict.fromkeys(f"{result['used']['images']:,}" for result in results.values()))
    return Drawing(
        "Mean over images",
        panel("contribution-mean", "Mean part of the margin by unit", curves, "unit", "margin, logits", whole=True, zero=False,
              levels={"": 0.0}),
        f"Means over {counts} images of the margin between the predicted class and the second.",
    )  # fmt: skip


def _readouts(results: Results) -> Drawing:
    curves = []
    for network, (name, result) in enumerate(results.items()):
        xs = list(range(len(result["readout_error"])))
        curves.append(Curve(xs, result["readout_error"], name, network, style="both"))
    return Drawing(
        "Read out after every unit",
        panel("contribution-readout", "Error of the readout after every unit", curves, "units passed", "error, %", whole=True),
        "All later branches count as zero, and the signal reaches the head over the shortcuts; the last point is the network "
        "itself. Without shortcuts there is a point only where the shape fits the head.",
    )  # fmt: skip
