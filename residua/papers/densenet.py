"""Densely connected networks, DenseNet (Huang et al. 2016). Layer 4.

Small forms: DenseNets of 10 and 16 layers with growth 6 and 12 stand for those of 40 and 100 layers with growth 12 and 24, over 3
epochs of batches of 64: three in four of the updates that the small runs of other papers have.
"""

from __future__ import annotations

from typing import Any

from residua.claims import AllOf, Arm, Claim, Exact, Item, Lower, NotAttempted, Ordered, Paper, Row
from residua.papers import _charts
from residua.papers import _densenet_settled as exact
from residua.papers._densenet_reuse import REUSE, drawn, spread_over_all
from residua.papers._small import IMAGENET, LENGTH, PRINTED, by_budget, not_worse, unavailable
from residua.recipe import replaced
from residua.recipes.densenet import densenet_cifar, densenet_imagenet

__all__ = ["densenet"]

STAND_IN = "10 and 16 layers stand for 40 and 100, half of the growth for the growth"
COSTLY = unavailable("with 0.3 to 9 thousand million multiply-adds an image two cores would need weeks")
SHORT = {"epochs": 3.0}


def _dense(depth: int, growth: int, **options: Any) -> dict[str, Any]:
    return {"model.name": "cifar_densenet", "model.options": {"depth": depth, "growth": growth, **options}}


def _cifar(model: str, source: str = "cifar10", small: dict[str, Any] | None = None, smoke: dict[str, Any] | None = None) -> Arm:
    recipe = replaced(densenet_cifar(model), {"data.source": source})
    name = model if source == "cifar10" else f"{model}-{source}"
    return Arm(name, recipe, small=small or COSTLY, smoke=smoke or {}, stand_in=STAND_IN if small else "")


def _bare(model: str, source: str) -> Arm:
    """Without augmentation, and then with dropout of 0.2."""
    fields = {"data.source": source, "augment.crop": "none", "augment.flip": False, "model.options": {"dropout": 0.2}}
    name = f"{model}-bare" if source == "cifar10" else f"{model}-{source}-bare"
    small = unavailable(f"over-fitting shows at the end of a long training: {LENGTH}")
    return Arm(name, replaced(densenet_cifar(model), fields), small=small, smoke=_dense(10, 12, dropout=0.2))


BC = {"bottleneck": True, "compression": 0.5}
CIFARS = (
    _cifar("densenet_40_12", small=_dense(10, 6) | SHORT),
    _cifar("densenet_100_12", small=_dense(16, 6) | SHORT),
    _cifar("densenet_100_24", small=_dense(16, 12) | SHORT, smoke=_dense(16, 24)),
    _cifar("densenet_bc_100_12", small=_dense(16, 12, **BC) | SHORT),
    _cifar("densenet_bc_250_24", smoke=_dense(22, 24, **BC)),
    _cifar("densenet_bc_190_40", smoke=_dense(22, 40, **BC)),
    *(_cifar(f"densenet_{name}", "cifar100") for name in ("40_12", "100_12", "bc_100_12")),
    _cifar("densenet_100_24", "cifar100", smoke=_dense(16, 24)),
    _cifar("densenet_bc_250_24", "cifar100", smoke=_dense(22, 24, **BC)),
    _cifar("densenet_bc_190_40", "cifar100", smoke=_dense(22, 40, **BC)),
)
BARE = tuple(
    _bare(f"densenet_{name}", source) for name in ("100_12", "100_24", "bc_250_24") for source in ("cifar10", "cifar100")
)
RESNET = Arm(
    "preact_resnet236-densenet",
    replaced(densenet_cifar("preact_cifar_resnet"), {"model.options": {"depth": 236, "branch": "bottleneck"}}),
    small={"model.name": "cifar_wide_resnet", "model.options": {"depth": 16, "width": 0.875}} | SHORT,
    stand_in=("WRN-16 of 14, 28 and 56 maps, a pre-activation ResNet with three times the parameters of the small DenseNet-BC"),
)
QUOTED = (
    "The paper quotes the errors of ResNet-1001 from he2016, which trains it by its own recipe and schedule, in batches of 64 on "
    "CIFAR-10 and of 128 on CIFAR-100. Here it is trained by the recipe of the DenseNets."
)
DEEP = tuple(
    Arm(
        f"preact_resnet1001-densenet{suffix}",
        replaced(densenet_cifar("preact_resnet1001"), {"data.source": source}),
        small=unavailable("1001 layers take two cores a month"),
    )
    for source, suffix in (("cifar10", ""), ("cifar100", "-cifar100"))
)
IMAGENETS = tuple(
    Arm(
        f"densenet{depth}",
        densenet_imagenet(f"densenet{depth}"),
        small=unavailable(IMAGENET),
        smoke={"model.name": "densenet121", "model.options": {"growth": 8}},
    )
    for depth in (121, 169, 201, 264)
)
THIRD = ("densenet_bc_100_12", "preact_resnet236-densenet")

densenet = Paper(
    "densenet",
    arms=(*CIFARS, *BARE, RESNET, *DEEP, *IMAGENETS),
    measurements=(REUSE,),
    claims=(
        Claim(
            "capacity_helps",
            by_budget(
                AllOf(
                    Ordered(("densenet_100_24", "densenet_100_12", "densenet_40_12")),
                    Lower("densenet_100_24-cifar100", "densenet_100_12-cifar100"),
                ),
                Ordered(
                    ("densenet_100_24", "densenet_100_12", "densenet_40_12"),
                    least=0.5,
                    reason="Half a point is beyond the seeds.",
                ),
                "CIFAR-10 alone",
            ),
            arms=(
                "densenet_40_12",
                "densenet_100_12",
                "densenet_100_24",
                "densenet_100_12-cifar100",
                "densenet_100_24-cifar100",
            ),
            stands_in=f"{STAND_IN}.",
        ),
        Claim(
            "bc_l100_matches_1001",
            AllOf(
                Exact(exact.SMALLER, exact.smaller_than_1001),
                not_worse("densenet_bc_100_12", "preact_resnet1001-densenet", 0.3),
                not_worse("densenet_bc_100_12-cifar100", "preact_resnet1001-densenet-cifar100", 0.5),
            ),
            arms=(
                "densenet_bc_100_12",
                "preact_resnet1001-densenet",
                "densenet_bc_100_12-cifar100",
                "preact_resnet1001-densenet-cifar100",
            ),
            stands_in=QUOTED,
        ),
        Claim(
            "third_of_parameters",
            not_worse(*THIRD, 1.0, reason="A point is what three seeds can tell apart."),
            arms=THIRD,
            stands_in=(
                "DenseNet-BC with 16 layers (k = 12) against a WRN-16 of three times its parameters; one pair of sizes "
                "stands "
                "for the curve of figure 4. DenseNets gain most late in training, so that the short form is hard on "
                "the claim."
            ),
        ),
        Claim(
            "overfit_one_case",
            Lower("densenet_100_12-bare", "densenet_100_24-bare"),
            arms=("densenet_100_12-bare", "densenet_100_24-bare"),
        ),
        Claim(
            "no_aug_gain",
            NotAttempted("FractalNet, with which the paper compares, is not built here."),
            arms=("densenet_bc_250_24-bare", "densenet_bc_250_24-cifar100-bare"),
        ),
        Claim(
            "imagenet_depth",
            Ordered(("densenet264", "densenet201", "densenet169", "densenet121")),
            arms=("densenet121", "densenet169", "densenet201", "densenet264"),
        ),
        Claim(
            "feature_reuse",
            spread_over_all("densenet_40_12", "densenet_100_12"),
            arms=("densenet_40_12", "densenet_100_12"),
            measurements=("reuse",),
            stands_in="Blocks of 4 layers (16 in all) instead of 12.",
        ),
        Claim("parameter_counts", Exact(exact.COUNTS, exact.counts)),
        Claim("connections", Exact(exact.CONNECTIONS, exact.connections)),
        Claim("inputs_of_a_layer", Exact(exact.INPUTS, exact.inputs)),
        Claim("repo_vs_table3", NotAttempted(PRINTED)),
        Claim("naming", Exact(exact.NAMING, exact.naming)),
    ),
    items=(
        Item(
            "table2",
            "CIFAR",
            arms=(*(arm.name for arm in CIFARS), *(arm.name for arm in BARE)),
            rows=tuple(
                Row(
                    f"densenet_{name}{'-cifar100' if '100' in column[1:4] else ''}{'' if plus else '-bare'}",
                    published=f"table2/{row}/{column}",
                )
                for row, name in (
                    ("L40-k12", "40_12"),
                    ("L100-k12", "100_12"),
                    ("L100-k24", "100_24"),
                    ("BC-L100-k12", "bc_100_12"),
                    ("BC-L250-k24", "bc_250_24"),
                    ("BC-L190-k40", "bc_190_40"),
                )
                for column, plus in (("c10plus", True), ("c100plus", True), ("c10", False), ("c100", False))
                if plus or name in ("100_12", "100_24", "bc_250_24")
            ),
            claims=("capacity_helps", "bc_l100_matches_1001", "overfit_one_case", "no_aug_gain", "parameter_counts"),
        ),
        Item(
            "table3",
            "ImageNet",
            arms=tuple(arm.name for arm in IMAGENETS),
            rows=tuple(
                Row(f"densenet{depth}", measure, f"table3/densenet-{depth}/{column}_1crop")
                for depth in (121, 169, 201, 264)
                for measure, column in (("test_error", "top1"), ("top5_error", "top5"))
            ),
            claims=("imagenet_depth", "repo_vs_table3"),
        ),
        Item(
            "fig4",
            "Parameter efficiency",
            arms=(*THIRD, "densenet_40_12", "densenet_100_12", "densenet_100_24"),
            rows=tuple(
                Row(name, measure)
                for name in (*THIRD, "densenet_40_12", "densenet_100_12", "densenet_100_24")
                for measure in ("parameters", "test_error")
            ),
            draw=lambda evidence: [
                *_charts.by_parameters(
                    evidence,
                    {
                        "DenseNet": ("densenet_40_12", "densenet_100_12", "densenet_100_24"),
                        "DenseNet-BC": THIRD[:1],
                        "pre-activation ResNet": THIRD[1:],
                    },
                    "densenet-fig4",
                    "Error by parameters",
                ),
                *_charts.training(
                    evidence, {THIRD[0]: "DenseNet-BC", THIRD[1]: "ResNet"}, "densenet-fig4-right", "DenseNet-BC and a ResNet"
                ),
            ],
            claims=("third_of_parameters", "capacity_helps"),
        ),
        Item(
            "fig5",
            "Weights on earlier layers",
            arms=("densenet_40_12", "densenet_100_12"),
            measurements=("reuse",),
            draw=lambda evidence: drawn(evidence, ("densenet_100_12", "densenet_40_12")),
            claims=("feature_reuse",),
        ),
        Item(
            "fig2",
            "The dense block",
            claims=("connections", "inputs_of_a_layer", "naming"),
            draw=lambda _: _charts.units(exact.block()),
        ),
    ),
)
