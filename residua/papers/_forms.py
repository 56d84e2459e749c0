"""The small forms of arms: recipes that stand in for others, short trainings of 110 layers. Layer 4."""

from __future__ import annotations

from typing import Any

from residua.recipe import Recipe, differences, replaced, to_dict

__all__ = ["GROSS_110", "standing_in", "with_options"]

# The first 400 updates run at 0.01, as in full; the rate falls once, so that half of the rest and more runs at the full rate.
GROSS_110: dict[str, Any] = {"steps": 1_000, "schedule.warmup": 0.4, "schedule.drops": [0.8], "evaluations": 2}
LEFT = ("steps", "epochs", "minutes", "name")


def with_options(recipe: Recipe, **options: Any) -> Recipe:
    """The recipe with these options of its model added."""
    return replaced(recipe, {f"model.options.{name}": value for name, value in options.items()})


def standing_in(full: Recipe, form: Recipe) -> dict[str, Any]:
    """The changes, by dotted name, that make `full` the same as `form` but for its length and name."""
    fields = {name: new for name, (_, new) in differences(full, form).items() if name not in LEFT}
    changes = {name: new for name, new in fields.items() if not name.startswith("model.options.")}
    if changes.keys() != fields.keys():
        changes["model.options"] = to_dict(form)["model"]["options"]
    return changes
