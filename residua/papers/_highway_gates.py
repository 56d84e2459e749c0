"""The gates of trained highway networks: their biases and their activity by depth (highway, figure 2). Layer 4."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from residua.analysis import Budget, NotApplicable, Subject
from residua.claims import Drawing, Evidence, Measured, Measurement, Outcome, Verdict
from residua.models.highway import gate_activity
from residua.panels import Curve, panel
from residua.unit import Gate, walk

__all__ = ["GATES", "drawn", "lesions_by_task", "more_negative"]

IMAGES = 500


def _measure(subject: Subject, _budget: Budget) -> dict[str, Any]:
    """By unit: the mean gate bias, at the start and now, the share of biases that fell, and the mean activity of the gates over
    images; and the share of the gates of a single image that are more than half open, a mean over images."""
    gates = [found.unit.merge for found in walk(subject.model) if isinstance(found.unit.merge, Gate)]
    if not gates or subject.fresh is None:
        raise NotApplicable(f"{subject.name} has no gates whose start is known.")
    before = [found.unit.merge for found in walk(subject.fresh()) if isinstance(found.unit.merge, Gate)]
    images, _ = subject.images(IMAGES)
    activity = list(gate_activity(subject.model, images).values())
    each = [torch.stack(list(gate_activity(subject.model, image[None]).values())) for image in images[:50]]
    fell, biases, starts = [], [], []
    for now, then in zip(gates, before):
        bias, start = (gate.transform.get_parameter("bias").detach().cpu() for gate in (now, then))
        fell.append(float((bias < start).float().mean()))
        biases.append(float(bias.mean()))
        starts.append(float(start.mean()))
    return {
        "bias": biases,
        "bias_at_start": starts,
        "share_fallen": fell,
        "activity": [float(gate.mean()) for gate in activity],
        "share_fallen_in_all": statistics.fmean(fell),
        "open_for_one_image": statistics.fmean(float((one > 0.5).float().mean()) for one in each),
        "used": {"images": len(images)},
    }


GATES = Measurement("gates", _measure)


def more_negative(arm: str) -> Measured:
    """Most biases fell and few gates are open, in every seed."""

    def decide(evidence: Evidence) -> Outcome:
        fallen, opened = (evidence.values(arm, f"gates.{name}") for name in ("share_fallen_in_all", "open_for_one_image"))
        if not fallen:
            return Outcome("not attempted", "No gates have been looked at yet.")
        held = [a > 0.5 and b < 0.5 for a, b in zip(fallen, opened)]
        words = ", ".join(f"{100 * a:.0f} % fell and {100 * b:.1f} % are open" for a, b in zip(fallen, opened))
        verdict: Verdict = "shown" if all(held) else "under-powered" if any(held) else "refuted"
        return Outcome(
            verdict, f"Of the biases {words} for a single image.", {"share_fallen": fallen, "open_for_one_image": opened}
        )

    return Measured(
        f"In {arm}, in every seed, more than half of all gate biases are below where they started, and less than half "
        f"of the gates are "
        "more than half open for a single image (a mean over 50 images). Refuted if no seed has both, under-powered if "
        "some have.",
        decide,
    )


def lesions_by_task(easy: str, hard: str) -> Measured:
    """Switching off single late units costs nothing on the easy data and something on the hard data."""

    def late(result: dict[str, Any]) -> float:
        errors = [row["error"] - result["baseline"] for row in result["single"]]
        return statistics.median(errors[len(errors) // 2 :])

    def decide(evidence: Evidence) -> Outcome:
        rises = {arm: [late(result) for result in evidence.measurement(arm, "lesion")] for arm in (easy, hard)}
        if not all(rises.values()):
            return Outcome("not attempted", "The lesions of one of the two have not been measured yet.", rises)
        said = "; ".join(f"{arm} {', '.join(f'{value:+.2f}' for value in values)} points" for arm, values in rises.items())
        if max(rises[easy]) < 1 and min(rises[hard]) >= 1:
            return Outcome("shown", f"Median rise over the later half of the units: {said}.", rises)
        if min(rises[easy]) >= 1 or max(rises[hard]) < max(0.0, *rises[easy]):
            return Outcome("refuted", f"Median rise over the later half of the units: {said}.", rises)
        return Outcome("under-powered", f"Median rise over the later half of the units: {said}.", rises)

    return Measured(
        f"The median rise of the error over the later half of the units, each switched off alone: below 1 point in "
        f"every seed of {easy} "
        f"and at least 1 point in every seed of {hard}. Refuted if {easy} always loses a point, or {hard} never loses "
        f"more than {easy}.",
        decide,
    )


def drawn(evidence: Evidence, arms: Sequence[str]) -> list[Drawing]:
    """Bias and activity by depth, of the first seed of each of `arms`."""
    found = [(arm, results[0]) for arm in arms if (results := evidence.measurement(arm, "gates"))]
    if not found:
        return []
    drawings = []
    for key, title in (("bias", "mean gate bias"), ("activity", "mean gate activity")):
        curves = [
            Curve(list(range(1, len(result[key]) + 1)), result[key], arm, place) for place, (arm, result) in enumerate(found)
        ]
        if key == "bias":
            starts = [
                Curve(
                    [1, len(result["bias"])], [result["bias_at_start"][0], result["bias_at_start"][-1]], "", place, style="dashed"
                )
                for place, (_, result) in enumerate(found)
            ]
            curves += starts
        svg = panel(f"highway-{key}", title.capitalize(), curves, "unit", title, zero=False, whole=True)
        drawings.append(Drawing(title.capitalize(), svg, "Dashed: at the start." if key == "bias" else "Over the test images."))
    return drawings
