"""Highway networks (Srivastava, Greff and Schmidhuber 2015). Layer 4.

Small forms: the digits stand for MNIST, 40 passes over 1,438 images; the networks are those of the paper. The paper searches some
40 settings for each network; here one setting serves all but the net on pictures in colour.
"""

from __future__ import annotations

from typing import Any

from residua.claims import AllOf, Arm, Claim, Exact, Item, Lower, NotAttempted, Paper, Row, Works
from residua.papers import _charts
from residua.papers import _highway_settled as exact
from residua.papers._highway_gates import GATES, drawn, lesions_by_task, more_negative
from residua.papers._small import PRINTED, not_worse, unavailable
from residua.recipe import replaced
from residua.recipes.highway import highway_cifar, highway_mnist

__all__ = ["highway"]

DEPTHS = (10, 20, 50, 100, 200)
DIGITS: dict[str, Any] = {"data.source": "digits", "epochs": 40.0}
STAND_IN = "the digits stand for MNIST"


def _connected(kind: str, depth: int) -> Arm:
    """Highway and plain nets are the paper's; the residual ones and their twins have batch norm, units of two layers, and one
    layer more than `depth` says."""
    if kind.startswith("highway"):
        name = "highway"
        options: dict[str, Any] = {
            "depth": depth, "width": 71 if kind == "highway_plain" else 50, "plain": kind == "highway_plain"
        }  # fmt: skip
    else:
        name = "residual_mlp"
        options = {"widths": [50], "units": [depth // 2], "normalization": "batch", "plain": kind == "residual_plain"}
    recipe = replaced(highway_mnist(name), {"model.options": options})
    return Arm(f"{kind}_{depth}", recipe, small=DIGITS, stand_in=STAND_IN)


def _varied(name: str, options: dict[str, Any], seeds: int = 1) -> Arm:
    recipe = replaced(highway_mnist("highway"), {"model.options": {"depth": 50, "width": 50} | options})
    return Arm(name, recipe, small=DIGITS, stand_in=STAND_IN, small_seeds=seeds)


KINDS = {"highway": "highway", "highway_plain": "plain", "residual": "residual", "residual_plain": "plain with batch norm"}
NETS = tuple(_connected(kind, depth) for kind in KINDS for depth in DEPTHS)
OPEN = _varied("highway_50-bias0", {"gate_bias": 0.0}, 3)
STARTS = tuple(
    _varied(f"highway_50-{kind}", {"initializer": kind, "gate_bias": -4.0}) for kind in ("lecun", "glorot", "orthogonal")
)
TANH = _varied("highway_50-tanh", {"activation": "tanh"})
COLOUR = Arm(
    "highway_50-cifar100",
    replaced(
        highway_mnist("highway"),
        {"data.source": "cifar100", "optim.lr": 0.01, "model.options": {"depth": 50, "width": 50}},
    ),
    small={"data.source": "cifar10", "epochs": 8.0},
    small_seeds=1,
    stand_in="CIFAR-10 stands for CIFAR-100; the rate is 0.01, for at 0.05 the loss is no number after 19 to 73 updates",
)
CONVOLUTIONAL = tuple(
    Arm(
        f"highway_conv_19{'' if source == 'cifar10' else '-cifar100'}",
        replaced(highway_cifar(), {"data.source": source}),
        small=unavailable("200,000 updates with 330 million multiply-adds an image take two cores a week"),
    )
    for source in ("cifar10", "cifar100")
)
BY_DEPTH = tuple(arm.name for arm in NETS)
HALF = "Half a nat is far beyond the spread of the seeds of networks that train."

highway = Paper(
    "highway",
    arms=(*NETS, OPEN, *STARTS, TANH, COLOUR, *CONVOLUTIONAL),
    measurements=(GATES,),
    claims=(
        Claim(
            "plain_degrades",
            AllOf(
                Lower("highway_plain_10", "highway_plain_50", "train_loss", least=0.5, reason=HALF),
                Lower("highway_plain_10", "highway_plain_100", "train_loss", least=0.5, reason=HALF),
                Lower("highway_100", "highway_plain_100", "train_loss", least=0.5, reason=HALF),
                not_worse("highway_100", "highway_10", 0.1, "train_loss"),
            ),
            arms=("highway_plain_10", "highway_plain_50", "highway_plain_100", "highway_10", "highway_100"),
            stands_in=f"{STAND_IN.capitalize()}; one setting instead of a search over 40.",
        ),
        Claim(
            "highway100_par_plain10",
            not_worse("highway_100", "highway_plain_10", 0.05, "train_loss"),
            arms=("highway_100", "highway_plain_10"),
            stands_in=f"{STAND_IN.capitalize()}.",
        ),
        Claim(
            "one_stage_beats_fitnets",
            NotAttempted("FitNets, which learn from a teacher in two stages, are not built here."),
            arms=("highway_conv_19",),
        ),
        Claim(
            "negative_bias_needed",
            AllOf(
                Lower("highway_50", "highway_50-bias0", "train_loss", least=0.1, reason="A tenth of a nat is beyond the seeds."),
                *(
                    Works(arm.name, 0.5, "train_loss", "A net that has not begun to learn stays at 2.3.")
                    for arm in (*STARTS, TANH)
                ),
            ),
            arms=("highway_50", "highway_50-bias0", *(arm.name for arm in (*STARTS, TANH))),
            stands_in=f"{STAND_IN.capitalize()}; 50 layers, gate biases 0 and -4, four initialisations and two activations.",
        ),
        Claim(
            "highway_never_gains_at_100plus",
            not_worse("highway_100", "highway_200", 1.0, reason="The digits have 359 test images; a point is 3.6 of them."),
            arms=("highway_100", "highway_200"),
            stands_in=(
                f"200 fully connected layers against 100. {STAND_IN.capitalize()}, on which there is little left to gain."
            ),
        ),
        Claim(
            "lesion_depends_on_task",
            lesions_by_task("highway_50", "highway_50-cifar100"),
            arms=("highway_50", "highway_50-cifar100"),
            measurements=("lesion",),
            stands_in=(
                "The digits stand for MNIST, CIFAR-10 for CIFAR-100; the test error for the training error; what is left "
                "of a unit that is off is (1 - T) x, not x."
            ),
        ),
        Claim("closed_gate_is_identity", Exact(exact.LIMITS, exact.limits)),
        Claim("twice_the_parameters", Exact(exact.SIZES, exact.sizes)),
        Claim(
            "gates_grow_more_negative",
            more_negative("highway_50"),
            arms=("highway_50",),
            measurements=("gates",),
            stands_in=f"{STAND_IN.capitalize()}; the biases start at -4, not at -2.",
        ),
        Claim(
            "highway_residual_plain_by_depth",
            AllOf(
                Lower("highway_200", "highway_plain_200", "train_loss", least=0.5, reason=HALF),
                Lower("residual_200", "highway_plain_200", "train_loss", least=0.5, reason=HALF),
                Lower("residual_200", "residual_plain_200", "train_loss", least=0.1, reason="Both have batch norm."),
                not_worse("highway_200", "highway_20", 0.1, "train_loss"),
                not_worse("residual_200", "residual_20", 0.1, "train_loss"),
            ),
            arms=(
                "highway_200",
                "highway_plain_200",
                "residual_200",
                "residual_plain_200",
                "highway_20",
                "residual_20",
            ),
            stands_in=f"{STAND_IN.capitalize()}. The residual nets and their plain twins have batch norm, and a layer more.",
        ),
        Claim("versions", NotAttempted(PRINTED)),
        Claim("cifar100_error", NotAttempted(PRINTED), arms=("highway_conv_19-cifar100",)),
    ),
    items=(
        Item(
            "fig1",
            "Training loss by depth: highway, plain and residual",
            arms=BY_DEPTH,
            rows=tuple(
                Row(f"{kind}_{depth}", "train_loss", published, f"{label}, {depth} layers")
                for kind, label in KINDS.items()
                for depth in DEPTHS
                for published in [
                    {
                        ("highway_plain", 10): "mnist_depth/plain-10/cross_entropy",
                        ("highway_plain", 100): "mnist_depth/plain-100/cross_entropy",
                        ("highway", 100): "mnist_depth/highway-100/cross_entropy",
                    }.get((kind, depth), "")
                ]
            ),
            draw=lambda evidence: [
                drawing
                for measure, log, title in (
                    ("train_loss", True, "Training loss by depth"),
                    ("test_error", False, "Test error by depth"),
                )
                for drawing in _charts.by_size(
                    evidence,
                    {label: {depth: f"{kind}_{depth}" for depth in DEPTHS} for kind, label in KINDS.items()},
                    measure,
                    f"highway-fig1-{measure}",
                    title,
                    "layers",
                    log=log,
                    whole=True,
                )
            ],
            claims=(
                "plain_degrades",
                "highway100_par_plain10",
                "negative_bias_needed",
                "highway_never_gains_at_100plus",
                "highway_residual_plain_by_depth",
            ),
            note="The printed values are orders of magnitude of the best of a search on MNIST.",
        ),
        Item(
            "fig2",
            "Gates of 50 layers",
            arms=("highway_50", "highway_50-cifar100"),
            measurements=("gates",),
            draw=lambda evidence: drawn(evidence, ("highway_50", "highway_50-cifar100")),
            claims=("gates_grow_more_negative",),
        ),
        Item(
            "fig4",
            "Lesions of 50 layers",
            arms=("highway_50", "highway_50-cifar100"),
            measurements=("lesion",),
            draw=lambda evidence: _charts.analysed(evidence, "lesion", ("highway_50", "highway_50-cifar100")),
            claims=("lesion_depends_on_task",),
        ),
        Item(
            "table3",
            "CIFAR with 19 layers",
            arms=tuple(arm.name for arm in CONVOLUTIONAL),
            rows=(
                Row("highway_conv_19", "test_error"),
                Row("highway_conv_19-cifar100", "test_error", "cifar_best/cifar100-error-in-he2016/error"),
            ),
            claims=("one_stage_beats_fitnets", "cifar100_error", "versions"),
        ),
        Item(
            "unit",
            "The highway unit",
            draw=lambda _: _charts.units(exact.units()),
            claims=("closed_gate_is_identity", "twice_the_parameters"),
        ),
    ),
)
