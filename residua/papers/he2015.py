"""He et al. 2015, "Deep Residual Learning for Image Recognition": arms, items and claims. Layer 4.

The CIFAR-10 networks can be run at any budget. The ImageNet networks are wired at full; below it CIFAR networks stand in for
them: 20 layers for 18, 56 for 34 (the plain net of 34 layers degrades on ImageNet, that of 56 on CIFAR-10).
"""

from __future__ import annotations

from typing import Any, Literal

from residua.claims import Arm, Ensemble, Item, Paper, Probe, Row
from residua.papers import _he_figures as figures
from residua.papers._forms import GROSS_110, standing_in, with_options
from residua.papers._he2015_claims import CLAIMS
from residua.papers._he2015_settled import costs
from residua.papers._identity_fit import identity_fit
from residua.papers._small import unavailable
from residua.recipe import replaced
from residua.recipes.he2015 import he2015_cifar, he2015_imagenet
from residua.recipes.he2016 import he2016_cifar
from residua.recipes.highway import highway_cifar

__all__ = ["he2015"]

Effect = Literal["gross", "order"]
ENDS = unavailable("20 and 56 layers, the ends, are run with three seeds instead of four depths with fewer")
LONG = unavailable("it needs the full length of training")
IMAGENET = unavailable("nothing stands in for it on CIFAR-10")


def _cifar(name: str, effect: Effect = "order", **fields: Any) -> Arm:
    """A CIFAR arm. The paper has one run of each; what is a matter of order takes three, at full too."""
    return Arm(name, he2015_cifar(name), effect, **{"full_seeds": 3 if effect == "order" else 1, **fields})


def _imagenet(name: str, model: str, form: str = "", stand_in: str = "", dense: bool = False, **options: Any) -> Arm:
    """An ImageNet arm; `form` is the CIFAR network that stands in for it, with the same shortcut. Tables 2 and 3 test by ten
    crops, table 4 at several scales (`dense`)."""
    full = with_options(he2015_imagenet(model), **options)
    shortcut = {"shortcut": options["shortcut"]} if options.get("shortcut", "A") != "A" else {}
    small = standing_in(full, with_options(he2015_cifar(form), **shortcut)) if form else IMAGENET
    narrow = {} if form else {"model.options": options | {"width": 0.125}}  # at smoke: the whole depth, an eighth of the maps
    protocols = ("ten-crop", "dense") if dense else ("ten-crop",)
    return Arm(name, full, small=small, stand_in=stand_in, smoke=narrow, protocols=protocols, departs=PLATEAUS)


PLATEAUS = (
    "the learning rate falls at 150,000, 300,000 and 450,000 updates, where figure 4 shows its steps, because the paper's "
    "rule, when the error plateaus, depends on who looks; the images are normalised by colour instead of by pixel, as in all "
    "later re-implementations"
)
SIX_ON_CIFAR = (
    "six networks on CIFAR-10 stand for six on ImageNet, two of them 152 layers deep, because six trainings on "
    "ImageNet take many weeks of several GPUs"
)
ON_CIFAR = "{} on CIFAR-10 stands for it"

CIFAR = (
    *(_cifar(f"{kind}{depth}") for kind in ("plain", "resnet") for depth in (20, 56)),
    *(_cifar(f"{kind}{depth}", small=ENDS) for kind in ("plain", "resnet") for depth in (32, 44)),
    _cifar("plain110", "gross", small=GROSS_110),
    _cifar("resnet110", "gross", small=GROSS_110, full_seeds=5),
    _cifar("resnet1202", small=LONG, smoke={"model.name": "cifar_resnet", "model.options": {"depth": 62}}),
    Arm(
        "resnet110-no-warmup", replaced(he2015_cifar("resnet110"), {"schedule.warmup": 0.0}), "gross",
        small={"steps": 400, "schedule.drops": [], "evaluations": 1},
        stand_in="only the 400 updates in which the other arm warms up",
    ),
    Arm("resnet110-1layer", he2016_cifar("resnet110_1layer"), "gross", small=GROSS_110, full_seeds=5),
    Arm(
        "plain56-unnormalised", with_options(he2015_cifar("plain56"), normalization="none", initializer="gaussian"), "gross",
        small={"steps": 500, "evaluations": 1}, stand_in="only the first 500 updates",
    ),
    Arm("resnet20-B", with_options(he2015_cifar("resnet20"), shortcut="B")),
    Arm("resnet20-C", with_options(he2015_cifar("resnet20"), shortcut="C")),
    Arm("he2015-highway19", highway_cifar("highway_conv_19"), small=LONG),
)  # fmt: skip

ON_IMAGENET = (
    _imagenet("imagenet-plain18", "plain18", "plain20", ON_CIFAR.format("plain-20")),
    _imagenet("imagenet-plain34", "plain34", "plain56", ON_CIFAR.format("plain-56")),
    _imagenet("imagenet-plain34-20", "plain34", "plain20", ON_CIFAR.format("plain-20")),
    _imagenet("imagenet-resnet18", "resnet18", "resnet20", ON_CIFAR.format("ResNet-20"), shortcut="A"),
    _imagenet("imagenet-resnet34", "resnet34", "resnet56", ON_CIFAR.format("ResNet-56"), shortcut="A"),
    _imagenet("imagenet-resnet34-A", "resnet34", "resnet20", ON_CIFAR.format("ResNet-20, option A,"), shortcut="A"),
    _imagenet("imagenet-resnet34-B", "resnet34", "resnet20", ON_CIFAR.format("ResNet-20, option B,"), shortcut="B"),
    _imagenet("imagenet-resnet34-C", "resnet34", "resnet20", ON_CIFAR.format("ResNet-20, option C,"), shortcut="C"),
    *(_imagenet(f"imagenet-resnet{depth}", f"resnet{depth}", dense=True, stride_on="1x1") for depth in (50, 101, 152)),
)
OPTIONS = tuple(f"imagenet-resnet34-{kind}" for kind in "ABC")
DEEP = tuple(f"imagenet-resnet{depth}" for depth in (50, 101, 152))
TEN_CROPS = "ten-crop.test_error"
SIX = ("resnet20", "resnet20-B", "resnet20-C", "resnet56", "preact20", "preact56")

PANELS = (
    ("he2015-fig6-plain", "Plain", {f"plain{depth}": f"plain-{depth}" for depth in (20, 32, 44, 56)}),
    ("he2015-fig6-residual", "Residual", {f"resnet{depth}": f"ResNet-{depth}" for depth in (20, 32, 44, 56)}),
    (
        "he2015-fig6-deep",
        "110 and 1202 layers",
        {"plain110": "plain-110", "resnet110": "ResNet-110", "resnet1202": "ResNet-1202"},
    ),
)
RESPONSES = {name: name for name in ("plain20", "plain56", "resnet20", "resnet56", "resnet110")}
BLOCKS: tuple[tuple[str, str, int, dict[str, object]], ...] = (("basic", "resnet34", 1, {}), ("bottleneck", "resnet50", 1, {}))


ITEMS = (
    Item(
        "fig1", "Figure 1: training and test error of plain nets of 20 and 56 layers", ("plain20", "plain56"),
        draw=figures.by_split("he2015-fig1", {"plain20": "plain-20", "plain56": "plain-56"}),
        claims=("degradation_train_cifar", "degradation_test_cifar", "constructed_no_worse"),
    ),
    Item("fig2", "Figure 2: a residual unit", draw=figures.units_drawn("Drawn from the module.", BLOCKS[0])),
    Item(
        "fig3", "Figure 3: VGG-19, the plain and the residual network of 34 layers",
        draw=figures.networks_drawn("Three networks", "Dotted: dimensions change.", 224, "vgg19", "plain34", "resnet34"),
    ),
    Item(
        "fig4", "Figure 4: training on ImageNet, plain and residual",
        ("imagenet-plain18", "imagenet-plain34", "imagenet-resnet18", "imagenet-resnet34"),
        draw=figures.curves_of(
            ("he2015-fig4-plain", "Plain", {"imagenet-plain18": "plain-18", "imagenet-plain34": "plain-34"}),
            ("he2015-fig4-residual", "Residual", {"imagenet-resnet18": "ResNet-18", "imagenet-resnet34": "ResNet-34"}),
        ),
        claims=("degradation_imagenet", "reversal_imagenet", "same_accuracy_18_faster"),
        note="Below budget full CIFAR networks stand in: 20 layers for 18, 56 for 34.",
    ),
    Item("fig5", "Figure 5: the basic unit and the bottleneck", draw=figures.units_drawn("Drawn from the modules.", *BLOCKS)),
    Item(
        "fig6", "Figure 6: training on CIFAR-10", tuple(arm for _, _, arms in PANELS for arm in arms),
        draw=figures.curves_of(*PANELS, train="faint"),
        claims=(
            "plain110_fails", "resnet_gains_with_depth_cifar", "resnet_beats_plain_same_params", "r1202_overfits", "warmup_110",
            "plain_convergence_slows",
        ),
    ),
    Item(
        "fig7", "Figure 7: standard deviations of layer responses", tuple(RESPONSES), ("responses",),
        draw=figures.analysed("responses", RESPONSES), claims=("small_responses", "responses_shrink_with_depth"),
        note="Below budget full ResNet-110 is trained for 1,000 updates only, the others for six epochs.",
    ),
    Item(
        "table1", "Table 1: the ImageNet networks and their cost", ("he2015-costs",),
        rows=tuple(
            Row("he2015-costs", f"resnet{depth}_multiply_adds", f"table1/resnet-{depth}/flops_g", f"ResNet-{depth}, 1e9")
            for depth in (18, 34, 50, 101, 152)
        ),
        claims=("cheaper_than_vgg", "flops_50", "bottleneck_identity_cheap"),
        note="With the bottleneck's stride on the first 1x1.",
    ),
    Item(
        "table2", "Table 2: plain and residual, 18 and 34 layers on ImageNet",
        ("imagenet-plain18", "imagenet-plain34", "imagenet-resnet18", "imagenet-resnet34"),
        rows=tuple(
            Row(f"imagenet-{kind}{depth}", published=f"table2/{kind}-{depth}/top1", full=TEN_CROPS)
            for kind in ("plain", "resnet")
            for depth in (18, 34)
        ),
        claims=("degradation_imagenet", "reversal_imagenet", "residual_vs_plain_34", "same_accuracy_18_faster"),
        note="Ten crops of ImageNet, printed and, at budget full, measured. Below it CIFAR networks stand in, measured on the "
        "whole image.",
    ),
    Item(
        "table3", "Table 3: shortcut options and deeper networks on ImageNet",
        ("imagenet-plain34", *OPTIONS, *DEEP),
        rows=(
            Row("imagenet-plain34", published="table3/plain-34/top1", full=TEN_CROPS),
            *(Row(f"imagenet-resnet34-{kind}", published=f"table3/resnet-34-{kind}/top1", full=TEN_CROPS) for kind in "ABC"),
            *(Row(f"imagenet-resnet{d}", published=f"table3/resnet-{d}/top1", full=TEN_CROPS) for d in (50, 101, 152)),
        ),
        claims=("shortcut_order", "projection_not_essential", "deeper_bottlenecks_better"),
        note="Ten crops of ImageNet, printed and, at budget full, measured. Below it CIFAR networks stand in, measured on the "
        "whole image, ResNet-20 for the three options.",
    ),
    Item(
        "table4", "Table 4: multi-scale testing", ("imagenet-resnet34-B", "imagenet-resnet34-C", *DEEP), ("dense",),
        rows=tuple(
            Row(arm, measure, published, f"{label}, {words}", full)
            for arm, row, label in (
                *((f"imagenet-resnet34-{kind}", f"resnet-34-{kind}", f"option {kind}") for kind in "BC"),
                *((f"imagenet-resnet{depth}", f"resnet-{depth}", f"{depth} layers") for depth in (50, 101, 152)),
            )
            for measure, published, words, full in (
                ("test_error", f"table3/{row}/top1", "one scale, as in table 3", TEN_CROPS),
                ("dense.test_error", f"table4/{row}/top1", "several scales", ""),
            )
        ),
        claims=("single_beats_ensembles", "deeper_bottlenecks_better"),
        note="Several scales: fully convolutional, scores averaged over scales. One scale: ten crops at budget full, below it "
        "the whole image of CIFAR-10, on which ResNet-20 stands in for the three options.",
    ),
    Item(
        "table5", "Table 5: an ensemble of six models", ("he2015-ensemble", *SIX),
        rows=(
            Row("he2015-ensemble", published="table5/resnet-ilsvrc15/top5", label="six models (printed: top-5 on ImageNet)"),
            *(Row(name) for name in SIX),
        ),
        note="Six models of different depth and kind on CIFAR-10 stand for six on ImageNet, two of them 152 layers deep.",
    ),
    Item(
        "table6", "Table 6: test error on CIFAR-10 and parameters",
        (*(f"resnet{depth}" for depth in (20, 32, 44, 56, 110, 1202)), "he2015-costs"),
        rows=(
            *(Row(f"resnet{depth}", published=f"table6/resnet-{depth}/error") for depth in (20, 32, 44, 56, 110, 1202)),
            *(
                Row("he2015-costs", f"resnet{depth}_parameters", f"table6/resnet-{depth}/params_m", f"ResNet-{depth}, millions")
                for depth in (20, 32, 44, 56, 110, 1202)
            ),
        ),
        note="Below budget full ResNet-110 is trained for 1,000 updates only, the others for six epochs.",
        claims=("resnet_gains_with_depth_cifar", "r110_beats_thin_rivals", "r1202_overfits", "best_vs_mean_110"),
    ),
)  # fmt: skip

he2015 = Paper(
    "he2015",
    arms=(
        *CIFAR,
        *ON_IMAGENET,
        Ensemble("he2015-ensemble", SIX, departs=SIX_ON_CIFAR),
        Probe("he2015-costs", costs, "Parameters and multiply-adds of the networks of tables 1 and 6.", seeds=1),
        Probe("identity-fit", identity_fit, "Fits of targets between zero and the identity, with and without shortcut.", seeds=5),
    ),
    items=ITEMS,
    claims=CLAIMS,
)
