"""Veit et al. 2016, "Residual Networks Behave Like Ensembles of Relatively Shallow Networks": arms, items and claims. Layer 4.

The paper damages trained networks: the evidence is `lesion` and `paths` of pre-activation nets of 20 to 110 layers. Below budget
full 20, 32 and 56 layers are trained, for six epochs. Departure at full: the training of he2016 in the place of that of
fb.resnet.torch, which has the same rates, batch and length but normalises and initialises a little otherwise.
"""

from __future__ import annotations

from typing import Any

from residua.claims import AllOf, Arm, Claim, Drawing, Equal, Evidence, Exact, Item, NotAttempted, Paper, Row, Rule
from residua.papers import _he_figures as figures
from residua.papers import _veit2016_lesions as lesions
from residua.papers import _veit2016_paths as paths
from residua.papers._forms import with_options
from residua.papers._settled import skips_of
from residua.papers._small import by_budget, unavailable
from residua.recipes.he2016 import he2016_cifar
from residua.unravelled import unravelled_svg

__all__ = ["veit2016"]

LONG = unavailable("the runs of 20, 32 and 56 layers stand for it")
EFFECTIVE = unavailable("training on short paths takes the full length to be compared")
NO_WARMUP = {"schedule.warmup": 0.0}  # as the networks of 20 layers of the other papers
RECIPE = (
    "trained by the recipe of he2016, because none here is that of fb.resnet.torch for CIFAR: the rates, the batch and the "
    "length are the same, the images are normalised and the weights initialised a little otherwise"
)
READING = "it is about printed numbers that differ; nothing can be run for it."
DEEP, SHALLOW = "preact110", "preact56"
FIFTY_SIX = "Below budget full 56 layers stand for 110, trained for six epochs, one seed."


def _net(name: str, depth: int, small: dict[str, Any] | None = None, seeds: int = 1, **options: Any) -> Arm:
    recipe = with_options(he2016_cifar("preact_cifar_resnet"), depth=depth, **options)
    return Arm(name, recipe, small=NO_WARMUP if small is None else small, small_seeds=seeds, departs=RECIPE)


ARMS = (
    _net("preact20", 20, seeds=3),
    _net("preact32", 32),
    _net("preact44", 44, LONG),
    _net("preact56", 56),
    _net("preact110", 110, LONG),
    _net("preact32-stochastic", 32, stochastic_depth=0.5),
    _net("preact110-stochastic", 110, LONG, stochastic_depth=0.5),
    _net("preact110-effective-paths", 110, EFFECTIVE, kept_units=23),
)
DEPTHS = ("preact20", "preact32", "preact44", "preact56", "preact110")
SMALL_DEPTHS = ("preact20", "preact32", "preact56")


def _deep(full: Rule, small: Rule) -> Rule:
    return by_budget(full, small, "56 layers stand for 110")


def _lesion_figure(place: int, *arms: str) -> figures.Draw:
    """One of the figures of the lesion analysis: 0 single, 1 several, 2 swapped."""

    def draw(evidence: Evidence) -> list[Drawing]:
        return list(figures.analysed("lesion", {arm: arm for arm in arms})(evidence))[place : place + 1]

    return draw


def _unravelled(evidence: Evidence) -> list[Drawing]:  # noqa: ARG001 (drawn from the code)
    found = skips_of("preact_cifar_resnet", 3, 32, depth=20)
    svg = unravelled_svg(found.flow, found.skips, first=0, units=3, title="Three units and their eight paths")
    return [
        Drawing("Unravelled", svg, "Three units in series, above as they are built, below as the sum of their paths.", wide=True)
    ]


ITEMS = (
    Item("unravelled", "Figure 1: the unravelled view", draw=_unravelled, claims=("binomial_paths", "ensemble_size_dispute")),
    Item(
        "lesion_single",
        "Figure 3: one unit or layer off",
        (*DEPTHS, "plain20"),
        ("lesion",),
        rows=tuple(
            Row(arm, "lesion.baseline", f"lesion_single_cifar/preact-resnet-{depth}/baseline", f"{arm}, nothing off")
            for arm, depth in zip(DEPTHS, (20, 32, 44, 56, 110))
        ),
        draw=figures.both(
            _lesion_figure(0, "preact20", "preact56", "preact110", "plain20"), _lesion_figure(0, "preact32", "preact44")
        ),
        claims=(
            "delete_one_resnet",
            "delete_one_vgg",
            "transition_blocks_matter",
            "robustness_grows_with_depth",
            "claim_is_for_deep_nets",
            "first_block",
        ),
        note="Plain-20 stands for VGG: a layer is removed, or zero where that changes the shape.",
    ),
    Item(
        "lesion_many",
        "Figure 5a: several units off",
        (DEEP, SHALLOW),
        ("lesion",),
        draw=_lesion_figure(1, DEEP, SHALLOW),
        claims=("error_grows_smoothly",),
        note=FIFTY_SIX,
    ),
    Item(
        "lesion_reorder",
        "Figure 5b: units swapped",
        (DEEP, SHALLOW),
        ("lesion",),
        draw=_lesion_figure(2, DEEP, SHALLOW),
        claims=("reorder_smooth",),
        note=FIFTY_SIX,
    ),
    Item(
        "path_gradients",
        "Figure 6: path lengths, gradients over paths, and their product",
        (DEEP, SHALLOW),
        ("paths",),
        draw=figures.analysed("paths", {DEEP: DEEP, SHALLOW: SHALLOW}),
        claims=("binomial_paths", "gradient_decays", "short_paths_carry_gradient"),
        note=FIFTY_SIX,
    ),
    Item(
        "effective_paths",
        "Section 5: training on short paths only",
        ("preact110-effective-paths", DEEP),
        rows=(
            Row("preact110-effective-paths", published="effective_paths_retrained/effective-paths-only/error"),
            Row(DEEP, published="effective_paths_retrained/full-model/error"),
        ),
        claims=("short_paths_suffice",),
    ),
    Item(
        "stochastic_depth",
        "Figure 8: one unit off after training with stochastic depth",
        ("preact32", "preact32-stochastic", DEEP, "preact110-stochastic"),
        ("lesion",),
        draw=figures.both(_lesion_figure(0, "preact32", "preact32-stochastic"), _lesion_figure(0, DEEP, "preact110-stochastic")),
        claims=("stochastic_depth_only_helps_transitions",),
        note="Below budget full 32 layers stand for 110.",
    ),
)

LESION, PATHS = ("lesion",), ("paths",)
CLAIMS = (
    Claim(
        "delete_one_resnet",
        _deep(lesions.deletion_hurts_little(DEEP, 1.0), lesions.deletion_hurts_little(SHALLOW, 5.0)),
        (DEEP, SHALLOW),
        LESION,
        stands_in=f"{FIFTY_SIX} The authors' own net of 56 layers has a median of 3 points.",
    ),
    Claim(
        "delete_one_vgg",
        lesions.deletion_of_a_layer("plain20"),
        ("plain20",),
        LESION,
        stands_in="Plain-20 stands for VGG of 15 layers.",
    ),
    Claim(
        "transition_blocks_matter",
        _deep(lesions.transitions(DEEP), lesions.transitions(SHALLOW)),
        (DEEP, SHALLOW),
        LESION,
        stands_in=FIFTY_SIX,
    ),
    Claim(
        "robustness_grows_with_depth",
        by_budget(lesions.robustness(DEPTHS), lesions.robustness(SMALL_DEPTHS), "44 and 110 layers are not trained"),
        DEPTHS,
        LESION,
    ),
    Claim(
        "error_grows_smoothly",
        _deep(lesions.grows_smoothly(DEEP), lesions.grows_smoothly(SHALLOW)),
        (DEEP, SHALLOW),
        LESION,
        stands_in=FIFTY_SIX,
    ),
    Claim(
        "reorder_smooth",
        _deep(lesions.reordering(DEEP), lesions.reordering(SHALLOW)),
        (DEEP, SHALLOW),
        LESION,
        stands_in=FIFTY_SIX,
    ),
    Claim(
        "binomial_paths",
        Exact(
            "Paths of the captured graph of the pre-activation net of 110 layers, counted by length in units: 54 choose k, "
            "and more than "
            "95 % of them have 19 to 35.",
            paths.binomial_paths,
        ),
    ),
    Claim(
        "gradient_decays",
        _deep(paths.decays_exponentially(DEEP), paths.decays_exponentially(SHALLOW)),
        (DEEP, SHALLOW),
        PATHS,
        stands_in=FIFTY_SIX,
    ),
    Claim(
        "short_paths_carry_gradient",
        AllOf(
            Exact("Of the paths of the graph 0.45 % have 5 to 17 units, counted.", paths.short_paths_are_rare),
            _deep(
                paths.carried_by_short_paths(DEEP, 20 / 54, 0.02),
                paths.carried_by_short_paths(SHALLOW, 0.5, 0.25),
            ),
        ),
        (DEEP, SHALLOW),
        PATHS,
        stands_in=f"{FIFTY_SIX} With fewer units short paths are a larger share.",
    ),
    Claim(
        "short_paths_suffice",
        Equal("preact110-effective-paths", DEEP, margin=0.5),
        ("preact110-effective-paths", DEEP),
        stands_in="Two seeds a side at least (--seeds 3) are needed to show equality.",
    ),
    Claim(
        "stochastic_depth_only_helps_transitions",
        by_budget(
            lesions.stochastic_depth(DEEP, "preact110-stochastic"),
            lesions.stochastic_depth("preact32", "preact32-stochastic"),
            "32 layers stand for 110",
        ),
        (DEEP, "preact110-stochastic", "preact32", "preact32-stochastic"),
        LESION,
        stands_in="Below budget full 32 layers; in the authors' raw data of 32 layers ordinary units gain too.",
    ),
    Claim("claim_is_for_deep_nets", lesions.only_for_deep("preact20"), ("preact20",), LESION),
    Claim(
        "first_block",
        _deep(lesions.first_unit(DEEP), lesions.first_unit(SHALLOW)),
        (DEEP, SHALLOW),
        LESION,
        statement="The largest damage is at the first unit, which changes no resolution.",
        stands_in=FIFTY_SIX,
    ),
    Claim("baselines", NotAttempted(READING)),
    Claim(
        "ensemble_size_dispute",
        Exact(
            "Two units of two layers, float64: the sum of what the four paths give by themselves is the output where branches "
            "are linear, and is not where they have a ReLU (by more than a hundredth), so that units with nonlinear branches "
            "cannot be split into "
            "independent paths.",
            paths.cannot_be_split,
        ),
    ),
)

veit2016 = Paper("veit2016", arms=ARMS, items=ITEMS, claims=CLAIMS)
