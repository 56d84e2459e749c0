"""A shelf of one paper whose arms take seconds on the digits, for the tests of reproductions."""

from __future__ import annotations

from typing import Any

import pytest

from residua import budgets, costing
from residua.analysis import Budget, Drawing, Subject
from residua.claims import (
    AllOf,
    Arm,
    Claim,
    Ensemble,
    Evidence,
    Exact,
    Item,
    Lower,
    Measured,
    Measurement,
    NotAttempted,
    Outcome,
    Paper,
    Probe,
    Row,
    Works,
)
from residua.recipe import Augment, Data, Model, Optim, Recipe
from residua.selection import Shelf

KEY = "he2015"  # whose printed numbers stand beside


def on_a_usual_machine(patch: pytest.MonkeyPatch) -> None:
    """Rates and allowances as of a usual machine, so that none are measured."""
    patch.setattr(costing, "rates", lambda: costing.Rates(3e-11, 1.5e-9, 1e-4))
    patch.setattr(budgets, "ALLOWANCE", {"smoke": 0.5, "small": 0.5, "full": 0.5})


def arm(name: str, steps: int = 24, **fields: Any) -> Arm:
    """A network of eight layers on the digits."""
    options = fields.pop("options", {})
    recipe = Recipe(
        name="a recipe", data=Data(source="digits"), model=Model(name="cifar_resnet", options={"depth": 8, **options}),
        augment=Augment(crop="pad", flip=False), optim=Optim(lr=0.05), batch_size=32, steps=10 * steps, evaluations=2,
        plan="fp32",
    )  # fmt: skip
    return Arm(name, recipe, **{"small": {"steps": steps}, "small_seeds": 2, **fields})


def _norms(subject: Subject, _: Budget) -> dict[str, Any]:
    total = sum(float(tensor.detach().square().sum()) for tensor in subject.model.parameters())
    return {"sum_of_squares": total, "used": {"images": 0}}


def _draw(evidence: Evidence) -> list[Drawing]:
    count = len(evidence.of("residual"))
    return [Drawing("Curves", f'<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"><title>{count}</title></svg>')]


def _larger(evidence: Evidence) -> Outcome:
    norms = evidence.values("residual", "norms.sum_of_squares")
    return Outcome("shown" if norms and min(norms) > 0 else "refuted", f"{norms}", {"norms": norms})


def make_shelf(*more: Arm) -> Shelf:
    """Three arms, an ensemble, a probe; claims of every sort; an item with rows and a figure."""
    arms = (
        arm("residual"), arm("plain", options={"plain": True}), arm("long", small={"unavailable": "it is long"}),
        Ensemble("both", ("residual", "plain")),
        Probe("halves", lambda seed, budget: {"value": 0.5 + seed, "table": {"seed": seed, "budget": budget}}, seeds=2), *more,
    )  # fmt: skip
    claims = (
        Claim("lower", Lower("residual", "plain", "train_error"), ("residual", "plain"), statement="Residual is lower."),
        Claim("works", AllOf(Works("residual", 95.0), Works("both", 95.0)), ("residual", "both"), statement="It works."),
        Claim("norms", Measured("Norms are positive.", _larger), ("residual",), ("norms",), statement="Norms are positive."),
        Claim("halves", Works("halves", 2.0, "value"), ("halves",), statement="A half is less than two."),
        Claim("long", Works("long", 95.0), ("long",), statement="It works for long."),
        Claim("arithmetic", Exact("Counted.", lambda: Outcome("shown", "1 + 1 = 2", {"sum": 2})), statement="1 + 1 = 2."),
        Claim("imagenet", NotAttempted("it needs ImageNet"), statement="Not here."),
    )
    items = (
        Item(
            "fig6", "Curves", ("residual", "plain"), ("ten-crop", "lesion"),
            rows=(Row("residual", published="table6/resnet-20/error"), Row("plain", "train_error")), draw=_draw,
            claims=("lower",),
        ),
        Item("combined", "An ensemble", ("both",), rows=(Row("both"),)),
    )  # fmt: skip
    paper = Paper(KEY, arms, items, claims, (Measurement("norms", _norms),))
    return Shelf({KEY: paper}, {one.name: one for one in arms}, {"norms": paper.measurements[0]})
