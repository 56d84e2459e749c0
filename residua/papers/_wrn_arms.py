"""The networks of wrn and their recipes: arms of CIFAR, SVHN and ImageNet. Layer 4.

Small forms: 16 layers stand for 40 and 28, and a fourth of the width for the width, so that WRN-40-k becomes WRN-16-(k/4).
"""

from __future__ import annotations

import re
from typing import Any

from residua.claims import Arm
from residua.papers._small import IMAGENET, LENGTH, unavailable
from residua.recipe import replaced
from residua.recipes.wrn import wrn_cifar, wrn_imagenet, wrn_svhn

COSTLY = "with 1.5 to 8 thousand million multiply-adds an image two cores would need weeks"
STAND_IN = "16 layers over 4 epochs stand for 40 and 28, a fourth of the width for the width"
QUOTED = (
    "The paper quotes the errors of ResNet-1001 from he2016, which trains it by its own recipe: weight decay 1e-4, the rate "
    "divided by ten after 32,000 and 48,000 updates, batches of 128 (of 64 for the 4.64 % in brackets). Here it is "
    "trained by the recipe of the wide networks."
)
ZCA = (
    "the images are normalised by mean and standard deviation, as in tables 5 and 6 of the paper, because no recipe here whitens "
    "them by ZCA, as the paper does for tables 2 to 4 where it says nothing else"
)
BLOCKS = {"B(1,3,1)": 40, "B(3,1)": 40, "B(1,3)": 40, "B(3,1,1)": 40, "B(3,3)": 28, "B(3,1,3)": 22}


def _cifar(model: str, source: str = "cifar10", name: str = "", **fields: Any) -> Arm:
    """An arm of the CIFAR protocol. A small form that is not given is unavailable."""
    options, shape = fields.pop("options", {}), re.fullmatch(r"wrn_(\d+)_(8|10|12)", model)
    if shape:
        fields["smoke"] = _narrow(int(shape[1]), 1, **options)
    recipe = replaced(wrn_cifar(model), {"data.source": source, "model.options": options, "evaluations": 20})
    return Arm(name or model, recipe, **{"small": unavailable(COSTLY), "full_seeds": 5, **fields})


def _narrow(depth: int, width: float, **options: Any) -> dict[str, Any]:
    return {"model.name": "cifar_wide_resnet", "model.options": {"depth": depth, "width": width, **options}}


def _small(depth: int, width: float, **options: Any) -> dict[str, Any]:
    return {**_narrow(depth, width, **options), "epochs": 4.0}


def _block(kind: str, depth: int) -> Arm:
    """Table 2. The small forms keep its equal sizes: 3 units a stage with one 3x3 convolution each, 2 with two of them."""
    small = _small(22 if kind.count("3") == 1 else 16, 0.5, **({} if kind == "B(3,3)" else {"block": kind}))
    return _cifar(
        "cifar_wide_resnet",
        name=f"wrn_{depth}_2-{kind}",
        options={"depth": depth, "width": 2, "block": kind},
        small=small,
        small_seeds=2,
        stand_in="16 or 22 layers stand for 22 to 40, a fourth of the width for the width",
        departs=ZCA,
    )


def _layers(count: int) -> Arm:
    """Table 3: blocks of `count` 3x3 convolutions at equal size."""
    block = f"B({','.join(['3'] * count)})"
    small = (
        unavailable("units of three layers do not divide the 12 layers of the small form")
        if count == 3
        else _small(16, 0.5, block=block)
    )
    return _cifar(
        "cifar_wide_resnet",
        name=f"wrn_40_2-l{count}",
        options={"depth": 40, "width": 2, "block": block},
        small=small,
        stand_in=STAND_IN,
        departs=ZCA,
    )


def _imagenet(model: str, name: str = "") -> Arm:
    """At smoke the whole depth, with an eighth of the maps."""
    shape = re.fullmatch(r"(?:wrn|resnet)_?(\d+)(?:_(.+))?", model)
    assert shape is not None, model
    options = {"depth": int(shape[1]), "width": float((shape[2] or "1").replace("_", ".")), "base": 8}
    smoke = {"model.name": "imagenet_wide_resnet", "model.options": options}
    return Arm(name or model, wrn_imagenet(model), small=unavailable(IMAGENET), smoke=smoke)


CIFAR10 = (
    _cifar("wrn_40_1", small=_small(16, 0.25), stand_in=STAND_IN, departs=ZCA),
    _cifar("wrn_40_2", small=_small(16, 0.5), stand_in=STAND_IN, departs=ZCA),
    _cifar("wrn_40_4", small=_small(16, 1), stand_in=STAND_IN, departs=ZCA),
    *(
        _cifar(name, departs=ZCA)
        for name in ("wrn_40_8", "wrn_28_10", "wrn_28_12", "wrn_22_8", "wrn_22_10", "wrn_16_8", "wrn_16_10")
    ),
)
CIFAR100 = tuple(
    _cifar(
        name, "cifar100", f"{name}-cifar100", small=unavailable("CIFAR-10 stands for it; see the arm of CIFAR-10"), departs=ZCA
    )
    for name in ("wrn_40_1", "wrn_40_2", "wrn_40_4", "wrn_28_10", "wrn_28_12", "wrn_22_8", "wrn_22_10", "wrn_16_8", "wrn_16_10")
)
THIN = tuple(
    _cifar(
        "preact_resnet1001",
        source,
        f"preact_resnet1001-wrn{suffix}",
        small=unavailable("1001 layers take two cores a month"),
        full_seeds=1,
    )
    for source, suffix in (("cifar10", ""), ("cifar100", "-cifar100"))
)
REGULAR = f"dropout regularises: {LENGTH}"
DROPOUT = tuple(
    _cifar(
        model, source, f"{model}{'' if source == 'cifar10' else '-cifar100'}{suffix}", options=options, small=unavailable(REGULAR)
    )
    for model in ("wrn_16_4", "wrn_28_10", "wrn_52_1")
    for source in ("cifar10", "cifar100")
    for suffix, options in (("", {}), ("-dropout", {"dropout": 0.3}))
    if model != "wrn_28_10" or options
)
SVHN = tuple(
    Arm(
        f"{model}-svhn{suffix}",
        replaced(wrn_svhn(model), {"model.options": options}),
        small=unavailable(REGULAR),
        smoke=_narrow(16, 1, **options),
    )
    for model in ("wrn_16_4", "wrn_52_1", "wrn_16_8")
    for suffix, options in (("", {}), ("-dropout", {"dropout": 0.4}))
)
LAYERS = tuple(_layers(count) for count in (1, 3, 4))
TYPES = tuple(_block(kind, depth) for kind, depth in BLOCKS.items())
B33 = "wrn_28_2-B(3,3)"
IMAGENETS = tuple(_imagenet(name) for name in ("wrn_18_1_5", "wrn_18_2", "wrn_18_3", "wrn_34_1_5", "wrn_34_2", "wrn_50_2"))
FAIR = tuple(_imagenet(name, f"{name}-fair") for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"))
