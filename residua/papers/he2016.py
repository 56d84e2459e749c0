"""He et al. 2016, "Identity Mappings in Deep Residual Networks": arms, items and claims. Layer 4.

Below budget full what fails grossly is seen with 110 layers in 1,000 updates of one seed; what is a matter of order with 20
layers in six epochs of three seeds, where the paper has 110 and 164. The networks of 164 and 1001 layers and those of ImageNet
are wired at full.
"""

from __future__ import annotations

from typing import Any

from residua.claims import Arm, Item, Paper, Row
from residua.papers import _he_figures as figures
from residua.papers._forms import GROSS_110, standing_in, with_options
from residua.papers._he2016_claims import CLAIMS, ORDERS
from residua.papers._small import unavailable
from residua.recipe import replaced
from residua.recipes.he2015 import he2015_cifar
from residua.recipes.he2016 import he2016_cifar, he2016_imagenet

__all__ = ["he2016"]

FIVE = 5  # the paper's tables are medians of five runs
DEEP = unavailable("164 and more layers take the full length of training; 20 and 110 layers are run")
IMAGENET = unavailable("nothing stands in for it on CIFAR-10")
NARROW = {"width": 0.125}  # at smoke: the whole depth, with an eighth of the maps
AT_224 = (
    "measured on the centre crop of 224 pixels beside numbers that are printed for one of 320, because no protocol here has "
    "crops of another side than that of training; trained for 90 epochs, because the paper does not print the end"
)
TWENTY = he2015_cifar("resnet20")

SHORTCUTS: dict[str, dict[str, Any]] = {
    "scale-0-1": {"unit": "constant-scaling", "scaling": [0.0, 1.0]},
    "scale-0.5-1": {"unit": "constant-scaling", "scaling": [0.5, 1.0]},
    "scale-0.5-0.5": {"unit": "constant-scaling", "scaling": [0.5, 0.5]},
    "exclusive-gate-bias0": {"unit": "exclusive-gating", "gate_bias": 0.0},
    "exclusive-gate-bias-6": {"unit": "exclusive-gating", "gate_bias": -6.0},
    "exclusive-gate-bias-7": {"unit": "exclusive-gating", "gate_bias": -7.0},
    "shortcut-gate-bias0": {"unit": "shortcut-only-gating", "gate_bias": 0.0},
    "shortcut-gate-bias-6": {"unit": "shortcut-only-gating", "gate_bias": -6.0},
    "conv1x1": {"unit": "conv-shortcut"},
    "dropout-0.5": {"unit": "dropout-shortcut", "drop": 0.5},
}
# Plain-110 is the first; a bias of -7 lies within what one short run of -6 tells.
NOT_SMALL = {
    "scale-0-1": unavailable("it is plain-110 with the same weights, which is run"),
    "exclusive-gate-bias-7": unavailable("one short run would not tell it from a bias of -6"),
}


def _deep(model: str, **options: Any) -> Any:
    return with_options(he2016_cifar(model), **options)


def _table1(name: str) -> Arm:
    recipe = _deep("preact_cifar_resnet", depth=110, **SHORTCUTS[name])
    return Arm(f"resnet110-{name}", recipe, "gross", small=NOT_SMALL.get(name, GROSS_110), full_seeds=FIVE)


def _order(unit: str, depth: int) -> Arm:
    """One of the five orders; 20 layers stand for 110, without warm-up as ResNet-20 is trained."""
    bottlenecks = {"branch": "bottleneck"} if depth == 164 else {}
    full = _deep("preact_cifar_resnet", depth=depth, unit=unit, **bottlenecks)
    if unit == "original" and depth == 110:
        full, form = he2016_cifar("resnet110"), TWENTY
    else:
        own = {"depth": 20} if unit == "full-preactivation" else {"depth": 20, "unit": unit}
        form = replaced(TWENTY, {"model.name": "preact_cifar_resnet", "model.options": own})
    if depth == 164:
        tiny = {"model.options": {"depth": 29, "unit": unit, **bottlenecks}}
        return Arm(f"{unit}-164", full, small=DEEP, smoke=tiny, full_seeds=FIVE)
    fewer = 2 if unit == "relu-only-preactivation" else 0  # equality within a point takes more seeds than there is time for
    stand_in = "20 layers stand for 110"
    return Arm(f"{unit}-110", full, small=standing_in(full, form), full_seeds=FIVE, stand_in=stand_in, small_seeds=fewer)


def _as_deep(name: str, model: str, data: str = "cifar10", **fields: Any) -> Arm:
    """A network of 164 or 1001 layers, in its tiny form of 29 layers of bottlenecks at smoke."""
    unit = "full-preactivation" if model.startswith("preact") else "original"
    tiny = {"model.name": "preact_cifar_resnet", "model.options": {"depth": 29, "unit": unit, "branch": "bottleneck"}}
    recipe = replaced(he2016_cifar(model), {"data.source": data, **fields})
    return Arm(name, recipe, small=DEEP, smoke=tiny, full_seeds=FIVE)


def _imagenet(model: str, name: str = "", **options: Any) -> Arm:
    full = with_options(he2016_imagenet(model), **options)
    departs = "" if model.endswith("101") else AT_224  # table 5
    return Arm(f"imagenet2016-{name or model}", full, small=IMAGENET, smoke={"model.options": options | NARROW}, departs=departs)


ARMS = (
    *(_table1(name) for name in SHORTCUTS),
    *(_order(unit, depth) for depth in (110, 164) for unit in ORDERS),
    Arm("preact_resnet110-1layer", he2016_cifar("preact_resnet110_1layer"), "gross", small=DEEP, full_seeds=FIVE),
    *(_as_deep(f"{kind}resnet1001", f"{kind}resnet1001") for kind in ("", "preact_")),
    _as_deep("preact_resnet1001-batch64", "preact_resnet1001", batch_size=64),
    *(_as_deep(f"{kind}resnet{d}-cifar100", f"{kind}resnet{d}", "cifar100") for d in (164, 1001) for kind in ("", "preact_")),
    _imagenet("resnet101"),
    _imagenet("preact_resnet101", "resnet101-bn-after-addition", unit="bn-after-addition"),
    *(_imagenet(model) for model in ("resnet152", "preact_resnet152", "resnet200", "preact_resnet200")),
)

TABLE1 = ("resnet110", *(f"resnet110-{name}" for name in SHORTCUTS))
FAILED = ("scale-0-1", "scale-0.5-1", "exclusive-gate-bias0", "dropout-0.5")  # no error is printed
PRINTED = {"resnet110": "original", **{f"resnet110-{name}": name for name in SHORTCUTS if name not in FAILED}}
FIG3 = {
    "resnet110": "original",
    "resnet110-scale-0.5-0.5": "scaled by 0.5",
    "resnet110-exclusive-gate-bias-6": "exclusive gate",
    "resnet110-shortcut-gate-bias0": "shortcut-only gate",
    "resnet110-conv1x1": "1x1 convolution",
}
TABLE3 = (
    ("resnet110-1layer", "preact_resnet110-1layer", "c10-resnet-110-1layer"),
    ("original-110", "full-preactivation-110", "c10-resnet-110"),
    ("original-164", "full-preactivation-164", "c10-resnet-164"),
    ("resnet1001", "preact_resnet1001", "c10-resnet-1001"),
    ("resnet164-cifar100", "preact_resnet164-cifar100", "c100-resnet-164"),
    ("resnet1001-cifar100", "preact_resnet1001-cifar100", "c100-resnet-1001"),
)
TABLE4 = {
    "resnet110": "c10-resnet-110",
    "resnet1202": "c10-resnet-1202",
    "full-preactivation-164": "c10-preact-164",
    "preact_resnet1001": "c10-preact-1001",
    "preact_resnet1001-batch64": "c10-preact-1001-batch64",
    "resnet164-cifar100": "c100-resnet-164",
    "resnet1001-cifar100": "c100-resnet-1001",
    "preact_resnet164-cifar100": "c100-preact-164",
    "preact_resnet1001-cifar100": "c100-preact-1001",
}
TABLE5 = {
    "imagenet2016-resnet152": "resnet-152-orig-320",
    "imagenet2016-preact_resnet152": "resnet-152-preact-320",
    "imagenet2016-resnet200": "resnet-200-orig-320",
    "imagenet2016-preact_resnet200": "resnet-200-preact-320",
}
SMALL = "Below budget full: 110 layers, 1,000 updates, one seed; training errors tell more than test errors there."


def _unit(unit: str, **options: Any) -> tuple[str, str, int, dict[str, Any]]:
    return unit, "preact_cifar_resnet", 1, {"depth": 14, "unit": unit, **options}


ITEMS = (
    Item(
        "fig1",
        "Figure 1: 1001 layers with the original and the proposed unit",
        ("resnet1001", "preact_resnet1001"),
        draw=figures.loss_and_error(
            ("he2016-fig1", "Training loss and test error", {"resnet1001": "original", "preact_resnet1001": "proposed"}),
        ),
        claims=("original_1001_degrades",),
    ),
    Item(
        "fig2",
        "Figure 2: shortcuts",
        draw=figures.units_drawn(
            "Drawn from the modules.",
            *(
                _unit(unit)
                for unit in (
                    "original",
                    "constant-scaling",
                    "exclusive-gating",
                    "shortcut-only-gating",
                    "conv-shortcut",
                    "dropout-shortcut",
                )
            ),
        ),
    ),
    Item(
        "fig3",
        "Figure 3: training with other shortcuts, 110 layers",
        tuple(FIG3),
        draw=figures.loss_and_error(("he2016-fig3", "Training loss and test error", FIG3)),
        claims=("optimisation_not_capacity", "identity_shortcut_best"),
        note=SMALL,
    ),
    Item("fig4", "Figure 4: orders of activation", draw=figures.units_drawn("Drawn from the modules.", *map(_unit, ORDERS))),
    Item(
        "fig5",
        "Figure 5: pre-activation as an asymmetric form of activation after the addition",
        draw=figures.units_drawn(
            "The same layers; the activation stands on the branch only.", _unit("original"), _unit(ORDERS[-1])
        ),
        claims=("branch_input_normalised",),
    ),
    Item(
        "fig6",
        "Figure 6: normalisation after the addition; pre-activation",
        ("original-110", "bn-after-addition-110", "full-preactivation-110", "original-164", "full-preactivation-164"),
        draw=figures.loss_and_error(
            ("he2016-fig6-left", "Normalisation after addition", {n: n for n in ("original-110", "bn-after-addition-110")}),
            ("he2016-fig6-right", "Pre-activation", {n: n for n in ("original-164", "full-preactivation-164")}),
            ("he2016-fig6-small", "Pre-activation, 110", {n: n for n in ("original-110", "full-preactivation-110")}),
        ),
        claims=("bn_after_addition_worse", "preact_regularises", "branch_input_normalised"),
        note="Below budget full 20 layers stand for 110.",
    ),
    Item(
        "table1",
        "Table 1: shortcuts other than the identity",
        TABLE1,
        rows=tuple(
            row
            for name in TABLE1
            for row in (
                Row(name, published=f"table1/{PRINTED[name]}/error" if name in PRINTED else "", label=f"{name}, test error"),
                Row(name, "train_error", label=f"{name}, training error"),
            )
        ),
        claims=(
            "identity_shortcut_best",
            "scaling_shortcut_fails",
            "frozen_gate_worse",
            "plain_is_scale_zero",
            "gate_bias_critical",
            "shortcut_gate_approaches_identity",
            "conv1x1_hurts_deep",
            "dropout_shortcut_fails",
            "gated_shortcut_contains_identity",
        ),
        note=f"{SMALL} Rows without a printed number failed in the paper: above 20 %.",
    ),
    Item(
        "table2",
        "Table 2: where normalisation and ReLU stand",
        tuple(f"{unit}-{depth}" for depth in (110, 164) for unit in ORDERS),
        rows=tuple(Row(f"{unit}-{depth}", published=f"table2/{unit}/resnet{depth}") for depth in (110, 164) for unit in ORDERS),
        claims=("bn_after_addition_worse", "relu_before_addition_worse", "relu_only_preact_neutral", "full_preact_best"),
        note="Below budget full 20 layers stand for 110.",
    ),
    Item(
        "table3",
        "Table 3: original and pre-activation units",
        tuple(name for *pair, _ in TABLE3 for name in pair),
        rows=tuple(
            Row(name, published=f"table3/{row}/{column}")
            for original, preact, row in TABLE3
            for name, column in ((original, "baseline"), (preact, "preact"))
        ),
        claims=("preact_wins_everywhere", "gain_grows_with_depth", "original_1001_degrades"),
        note="Below budget full 20 layers stand for 110.",
    ),
    Item(
        "table4",
        "Table 4: the deepest networks on CIFAR",
        tuple(TABLE4),
        rows=tuple(Row(name, published=f"table4/{row}/error") for name, row in TABLE4.items()),
        note=SMALL,
    ),
    Item(
        "table5",
        "Table 5: 152 and 200 layers on ImageNet",
        tuple(TABLE5),
        rows=tuple(Row(name, published=f"table5/{row}/top1") for name, row in TABLE5.items()),
        claims=("resnet200_overfits_orig",),
        note="Printed: crops of 320 pixels.",
    ),
)

he2016 = Paper("he2016", arms=ARMS, items=ITEMS, claims=CLAIMS)
