"""How much each unit moves a prediction, and what would be predicted after every unit. Layer 3.

Three figures of a unit. *Direct*: its part of the margin (the largest logit minus the second largest) in a division that adds
up to the whole (`residua.decomposition`, float64; the error of completeness is stated). *When off*: by how much the margin of the
two classes falls when the unit is switched off, later units reacting; these do not add up. *Readout*: what the head says of the
signal after the unit if all later branches count as zero, so that the signal goes to the head over the shortcuts alone,
which also bring it to the head's shape. Everything between, a last normalisation for one, is the network's own with the
statistics of training. In a network without shortcuts the later units that keep their shape are left out instead; where one of
them changes it there is no readout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from residua.analyses._contribution_figures import draw, read
from residua.analysis import Analysis, Budget, NotApplicable, Place, Subject, affordable
from residua.chains import Chain, Step, chain_of, shortcut_alone
from residua.decomposition import Decomposition, decomposed, margin
from residua.unit import Add, Concat, Gate, SampledAdd, Unit, switched_off

__all__ = ["contribution"]

MOST_IMAGES, MOST_READ = 250, 2_000


def _measure(subject: Subject, budget: Budget) -> dict[str, Any]:
    outer = [place for place in subject.units if place.depth == 0]
    if not outer:
        raise NotApplicable(f"{subject.name} has no units, and no skips, among which a prediction could be divided.")
    first, _ = subject.images(8)
    pace = budget.timed(lambda: _divided(subject, first, outer)) / len(first)
    quick = budget.timed(lambda: _plain_logits(subject, first)) / len(first)
    each = pace + (len(outer) + 1) * quick
    images, labels = subject.images(affordable(0.6 * budget.left, each, min(MOST_IMAGES, subject.num_images)))
    logits = _plain_logits(subject, images)
    predicted = logits.topk(2, dim=1).indices
    off = _when_off(subject, images, logits, predicted, outer, budget)
    division = _divided(subject, images, outer)
    budget.progress(0.6)
    readout = _readout(subject, outer, budget, quick)
    read = readout.pop("read")
    return {
        "units": [place.path for place in outer],
        "transitions": [place.changes_shape for place in outer],
        "way": _way(outer, division),
        "completeness_error": None if division is None else float(division.error.abs().max()),
        "largest_margin": float((logits.gather(1, predicted) * logits.new_tensor([1, -1])).sum(1).max()),
        "mean": _parts(division, off, slice(None)),
        "examples": [
            _example(subject, number, labels, logits, predicted, division, off) for number in _shown(labels, predicted[:, 0])
        ],
        **readout,
        "used": {"images": len(images), "readout images": read},
    }


def _divided(subject: Subject, images: Tensor, outer: Sequence[Place]) -> Decomposition | None:
    """The division of the margins; None for a network that is not built of units."""
    return None if subject.rewired is not None else decomposed(subject.model, images, outer, margin)


def _plain_logits(subject: Subject, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return subject.model(images).float()


def _when_off(
    subject: Subject, images: Tensor, logits: Tensor, predicted: Tensor, outer: Sequence[Place], budget: Budget
) -> Tensor:
    """The fall of the margin between the two classes with each unit off, [U, N]."""
    whole = logits.gather(1, predicted)
    rows = []
    with torch.inference_mode():
        for number, place in enumerate(outer):
            with subject.off(place) as network:
                damaged = network(images).float().gather(1, predicted)
            rows.append((whole - damaged)[:, 0] - (whole - damaged)[:, 1])
            budget.progress(0.5 * (number + 1) / len(outer))
    return torch.stack(rows)


def _parts(division: Decomposition | None, off: Tensor, which: slice) -> dict[str, Any]:
    """Of one image, or the mean over images: the margin and its parts."""
    own = {"when_off": off[:, which].reshape(len(off), -1).mean(1).tolist()}
    if division is None:
        return {**own, "direct": None, "start": None, "constant": None, "margin": None}

    def mean(part: Tensor) -> float:
        return float(part[which, 0].mean())

    direct = division.units[:, which, 0].reshape(len(off), -1).mean(1).tolist()
    return {**own, "direct": direct, "start": mean(division.start), "constant": mean(division.constant),
            "margin": mean(division.sums)}  # fmt: skip


def _shown(labels: Tensor, predicted: Tensor) -> list[int]:
    """The first image that is right and the first that is wrong."""
    right = labels == predicted
    return [int(found[0]) for found in (right.nonzero().flatten(), (~right).nonzero().flatten()) if len(found)]


def _example(
    subject: Subject, number: int, labels: Tensor, logits: Tensor, predicted: Tensor, division: Decomposition | None, off: Tensor
) -> dict[str, Any]:
    classes = subject.classes
    one, two = predicted[number].tolist()
    return {
        "place": number,
        "label": classes[int(labels[number])],
        "predicted": classes[one],
        "second": classes[two],
        "probability": float(logits[number].softmax(0)[one]),
        **_parts(division, off, slice(number, number + 1)),
    }


def _way(outer: Sequence[Place], division: Decomposition | None) -> str:
    """What kind of direct way there is, in a sentence."""
    units = [place.unit for place in outer if place.unit is not None]
    if division is None:
        return "The network is not built of units of this library, so that its logits are not divided."
    if not any(unit.shortcut is not None for unit in units):
        return "There is no direct way in a network without shortcuts: all of the signal goes through the last unit."
    if any(isinstance(unit.merge, Gate) for unit in units):
        return "The sum is exact; what each gate lets through is taken as it is for this image."
    if all(isinstance(unit.post, nn.Identity) and isinstance(unit.merge, (Add, SampledAdd, Concat)) for unit in units):
        return "The sum is exact, and nothing stands between the additions: only the head decides which values count."
    return "The sum is exact; the values that the ReLU after each addition lets through are taken as they are for this image."


# --------------------------------------------------------------------------------------------------------------- readout


def _readout(subject: Subject, outer: Sequence[Place], budget: Budget, quick: float) -> dict[str, Any]:
    """Error of the readout after every unit (the first is that before all units), and how often it already says what the whole
    network says."""
    sample = next(subject.batches())[0][:2]
    chain = chain_of(subject.model, sample) if subject.rewired is None else None
    each = (1.5 if chain else len(outer) + 1) * quick
    wanted = affordable(0.8 * budget.left, each, min(MOST_READ, subject.num_images))
    seen, wrong, agreed = 0, [0] * (len(outer) + 1), [0] * (len(outer) + 1)
    left_out = [False] * (len(outer) + 1)
    for images, labels in subject.batches():
        images, labels = images[: wanted - seen], labels[: wanted - seen]
        with torch.inference_mode():
            final = subject.model(images).argmax(1)
            for number, logits in enumerate(_after_each(subject, chain, images, outer)):
                if logits is None:
                    left_out[number] = True
                    continue
                wrong[number] += int((logits.argmax(1) != labels).sum())
                agreed[number] += int((logits.argmax(1) == final).sum())
        seen += len(labels)
        budget.progress(0.6 + 0.4 * seen / wanted)
        if seen >= wanted:
            break
    return {
        "readout_error": [None if gone else 100 * count / seen for count, gone in zip(wrong, left_out)],
        "readout_agreement": [None if gone else 100 * count / seen for count, gone in zip(agreed, left_out)],
        "read": seen,
    }


def _after_each(subject: Subject, chain: Chain | None, images: Tensor, outer: Sequence[Place]) -> list[Tensor | None]:
    """The logits read before the first unit and after each unit, [N, K] each; None where the shapes forbid it."""
    if chain is None or any(chain.steps[chain.place_of(place.path)] is not place.unit for place in outer):
        found: list[Tensor | None] = []
        for number in range(len(outer) + 1):
            with subject.off(*outer[number:]) as network:
                found.append(network(images) if all(place.shortcut for place in outer[number:]) else None)
        return found
    steps = [chain.place_of(place.path) for place in outer]
    signals = chain.signals(images)
    left = {step: _left_of(place) for step, place in zip(steps, outer)}
    found = []
    for number in range(len(outer) + 1):
        later = {step: left[step] for step in steps[number:]}
        start = steps[number] if number < len(outer) else steps[-1] + 1
        known = {step: function for step, function in later.items() if function is not None}
        found.append(chain.after(signals[start], start, known) if len(known) == len(later) else None)
    return found


def _left_of(place: Place) -> Step | None:
    """What is left of a unit that is off; None of a plain unit that changes the shape."""
    unit = place.unit
    assert unit is not None
    if unit.shortcut is None:
        return None if place.changes_shape else lambda x: x
    return shortcut_alone(unit) or (lambda x: _run_off(unit, x))


def _run_off(unit: Unit, x: Tensor) -> Tensor:
    with switched_off(unit):
        return unit(x)


def _work(subject: Subject) -> float:
    return MOST_IMAGES * (len(subject.units) + 20.0) + 1.5 * MOST_READ


contribution = Analysis(
    name="contribution",
    title="What each unit adds to a prediction",
    about="Each unit's part of the margin between the predicted class and the second, in a division that adds up; the fall of "
    "that margin when the unit is off; and what the head reads from the signal after every unit.",
    measure=_measure,
    draw=draw,
    read=read,
    share=1.0,
    work=_work,
)
