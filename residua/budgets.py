"""What a budget makes of an arm: the recipe that is run, with how many seeds. Layer 3.

smoke   the digits and a few updates of 32 images: proves that the machinery works and decides nothing
small   real data at reduced length: 2,000 updates and one seed where an effect is gross, 6 epochs and three seeds where
        it is a matter of order; schedules shrink with the length
full    the paper's protocol to the letter
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from residua import models
from residua.claims import Arm, Ensemble, Probe
from residua.errors import RequestError, unknown
from residua.evidence import BUDGETS
from residua.published import Published
from residua.recipe import Recipe, replaced

__all__ = ["ALLOWANCE", "check", "measured_at", "recipe_at", "seeds_at", "unavailable"]

ALLOWANCE = {"smoke": 1.0, "small": 60.0, "full": 300.0}
"""Seconds that one measurement of one run may take."""

GROSS_STEPS, ORDER_EPOCHS = 2_000, 6.0
SEEDS = {"gross": 1, "order": 3}
SMOKE_BATCH, SMOKE_LAYERS = 32, 320  # updates times layers: what keeps a network of any depth at some seconds
SMOKE_MOST, SMOKE_LEAST = 8, 2
SMOKE_SIDE = 8
LENGTHS = {"steps", "epochs", "minutes"}


def check(budget: str) -> None:
    """Raises `RequestError` for a budget that there is not."""
    if budget not in BUDGETS:
        raise unknown("budget", budget, BUDGETS)


def unavailable(arm: Arm | Ensemble | Probe, budget: str) -> str:
    """Why this arm has no run at this budget; "" if it has one."""
    if not isinstance(arm, Arm) or budget == "full":
        return ""
    return str((arm.smoke if budget == "smoke" else arm.small).get("unavailable", ""))


def seeds_at(arm: Arm | Ensemble | Probe, budget: str, asked: int | None = None) -> int:
    """How many seeds an arm gets: as asked, else as the arm and the budget say. An ensemble has as many as its members share,
    which is not known here: 0."""
    if isinstance(arm, Ensemble):
        return 0
    if asked is not None:
        return asked
    if budget == "smoke":
        return 1
    if isinstance(arm, Probe):
        return arm.seeds
    return arm.full_seeds if budget == "full" else arm.small_seeds or SEEDS[arm.effect]


def measured_at(arm: Arm | Ensemble | Probe, budget: str, named: Iterable[str]) -> tuple[str, ...]:
    """What is measured on an arm's runs: what claims and items name, and at full the protocols by which the paper tests it."""
    own = arm.protocols if isinstance(arm, Arm) and budget == "full" else ()
    return tuple(dict.fromkeys((*named, *own)))


def recipe_at(arm: Arm, budget: str, seed: int) -> Recipe:
    """The recipe of the arm at a budget; raises `RequestError` where it has none."""
    if reason := unavailable(arm, budget):
        raise RequestError(f"{arm.name} has no form at the budget {budget}: {reason}.")
    changes: dict[str, Any] = {"seed": seed}
    if budget != "full" and not arm.small.get("unavailable"):
        if not LENGTHS & arm.small.keys():
            changes |= {"steps": GROSS_STEPS} if arm.effect == "gross" else {"epochs": ORDER_EPOCHS}
        changes |= arm.small
    where = f"the arm {arm.name} at {budget}"
    recipe = replaced(arm.recipe, changes, where)
    return recipe if budget != "smoke" else replaced(recipe, _smoke(recipe) | dict(arm.smoke), where)


def _smoke(recipe: Recipe) -> dict[str, Any]:
    """The same network on the digits, in a few updates that are made alike on any machine."""
    decided = ("num_classes", "in_channels", "image_size")
    options = {name: value for name, value in recipe.model.options.items() if name not in decided}
    return {
        "data.source": "digits", "data.holdout": min(recipe.data.holdout, 100), "data.image_size": _side(recipe),
        "model.options": options, "augment.crop": "pad", "augment.pad": 1, "augment.colour": 0.0,
        "augment.cutout": min(recipe.augment.cutout, SMOKE_SIDE), "batch_size": SMOKE_BATCH, "micro_batch": None,
        "steps": max(SMOKE_LEAST, min(SMOKE_MOST, SMOKE_LAYERS // _depth(recipe))), "evaluations": 2, "plan": "fp32",
    }  # fmt: skip


def _side(recipe: Recipe) -> int:
    """The side at which the digits are shown: their own, or the least that the network takes."""
    entry = models.CATALOG.get(recipe.model.name)
    if not isinstance(entry, Published) or "stem" in entry.options():
        return SMOKE_SIDE
    return max(SMOKE_SIDE, entry.least_side)


def _depth(recipe: Recipe) -> int:
    """Weight layers, as the paper counts them."""
    entry = models.CATALOG.get(recipe.model.name)
    depth = recipe.model.options.get("depth", entry.depth if isinstance(entry, Published) else 20)
    return depth if isinstance(depth, int) else 20
