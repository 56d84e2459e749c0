"""Wide Residual Networks (Zagoruyko and Komodakis 2016). Layer 4.

Small forms: 16 layers stand for 40 and 28, and a fourth of the width for the width, so that WRN-40-k becomes WRN-16-(k/4);
CIFAR-10 stands for CIFAR-100. Tables 2 to 4 are of images whitened by ZCA, which no recipe offers: their networks are trained on
images normalised by mean and standard deviation, as those of tables 5 and 6.
"""

from __future__ import annotations

from residua.claims import AllOf, Claim, Exact, Lower, Measured, NotAttempted, Ordered, Outcome, Paper
from residua.evidence import Evidence
from residua.papers import _wrn_settled as exact
from residua.papers._small import LENGTH, PRINTED, by_budget
from residua.papers._wrn_arms import (
    B33,
    CIFAR10,
    CIFAR100,
    DROPOUT,
    FAIR,
    IMAGENETS,
    LAYERS,
    QUOTED,
    SVHN,
    THIN,
    TYPES,
)
from residua.papers._wrn_items import ITEMS
from residua.papers._wrn_times import ON_CPU, TIMES, faster

__all__ = ["wrn"]


def _rises(evidence: Evidence) -> Outcome:
    """The test loss between the first and the second fall of the learning rate, by its first and its last measurement there."""
    changes = []
    curves = [curve for curve in evidence.curve("wrn_40_4", "test_loss") if curve]
    for curve in curves:
        last = curve[-1][0]
        inside = [value for step, value in curve if 0.3 * last < step <= 0.6 * last]
        if len(inside) > 1:
            changes.append(inside[-1] - inside[0])
    numbers = {"change_of_the_test_loss": changes}
    if not curves:
        return Outcome("not attempted", "There is no test loss of WRN-40-4 yet.", numbers)
    if len(changes) < len(curves):
        few = f"{len(curves) - len(changes)} of {len(curves)} runs have not two measurements between the two falls of the rate"
        return Outcome("under-powered", f"Whether the loss rises cannot be seen: {few}.", numbers)
    listed = ", ".join(f"{change:+.3f}" for change in changes)
    if min(changes) > 0.02:
        return Outcome("shown", f"The test loss rises between the two falls of the rate in every seed: {listed}.", numbers)
    if max(changes) < 0 and evidence.budget == "full":
        return Outcome("refuted", f"The test loss falls between the two falls of the rate in every seed: {listed}.", numbers)
    return Outcome("under-powered", f"The test loss does not rise in every seed: {listed}. {LENGTH.capitalize()}.", numbers)


RISES = Measured(
    "The test loss of WRN-40-4 at the end of the second of the four levels of the learning rate is above that at its "
    "beginning, by more "
    "than 0.02 nats in every seed. Refuted at the full budget if it is below in every seed. At the small budget a "
    "level has 2.4 epochs "
    "instead of 60, so that a loss that falls there proves nothing: under-powered by design.",
    _rises,
)
SEEDS = "Half a point is what the medians of five runs of the paper resolve."

wrn = Paper(
    "wrn",
    arms=(*CIFAR10, *CIFAR100, *THIN, *DROPOUT, *SVHN, *LAYERS, *TYPES, *IMAGENETS, *FAIR, TIMES),
    claims=(
        Claim(
            "width_helps",
            by_budget(
                AllOf(
                    Ordered(("wrn_40_4-cifar100", "wrn_40_2-cifar100", "wrn_40_1-cifar100"), least=0.5, reason=SEEDS),
                    Lower("wrn_22_10-cifar100", "wrn_22_8-cifar100"),
                    Lower("wrn_16_10-cifar100", "wrn_16_8-cifar100"),
                ),
                Ordered(("wrn_40_4", "wrn_40_2", "wrn_40_1"), least=0.5, reason=SEEDS),
                "one depth, CIFAR-10",
            ),
            arms=(
                "wrn_40_1",
                "wrn_40_2",
                "wrn_40_4",
                "wrn_40_1-cifar100",
                "wrn_40_2-cifar100",
                "wrn_40_4-cifar100",
                "wrn_22_8-cifar100",
                "wrn_22_10-cifar100",
                "wrn_16_8-cifar100",
                "wrn_16_10-cifar100",
            ),
            stands_in="WRN-16 with widening factors 0.25, 0.5 and 1 on CIFAR-10.",
        ),
        Claim(
            "depth_helps_up_to_28",
            AllOf(Lower("wrn_22_8", "wrn_16_8"), Lower("wrn_28_10", "wrn_22_10"), Lower("wrn_22_8", "wrn_40_8")),
            arms=("wrn_16_8", "wrn_22_8", "wrn_22_10", "wrn_28_10", "wrn_40_8"),
        ),
        Claim(
            "wide16_matches_1001",
            AllOf(Lower("wrn_16_8", "preact_resnet1001-wrn"), Lower("wrn_16_8-cifar100", "preact_resnet1001-wrn-cifar100")),
            arms=("wrn_16_8", "preact_resnet1001-wrn", "wrn_16_8-cifar100", "preact_resnet1001-wrn-cifar100"),
            stands_in=QUOTED,
        ),
        Claim(
            "wrn40_4_vs_1001",
            AllOf(
                Exact("WRN-40-4 has fewer parameters than pre-activation ResNet-1001.", exact.smaller_than_1001),
                faster("wrn_40_4", 8.0, 2.0),
                Lower("wrn_40_4-cifar100", "preact_resnet1001-wrn-cifar100"),
                by_budget(
                    Lower("wrn_40_4", "preact_resnet1001-wrn"),
                    NotAttempted("The errors need ResNet-1001 trained: some two months of two cores."),
                    "no ResNet-1001",
                ),
            ),
            arms=("wrn-times", "wrn_40_4", "preact_resnet1001-wrn", "wrn_40_4-cifar100", "preact_resnet1001-wrn-cifar100"),
            stands_in=f"{QUOTED} {ON_CPU}",
        ),
        Claim("wrn40_4_faster", faster("wrn_40_4", 8.0, 2.0), arms=("wrn-times",), stands_in=ON_CPU),
        Claim("wrn28_10_faster", faster("wrn_28_10", 1.6, 1.2), arms=("wrn-times",), stands_in=ON_CPU),
        Claim(
            "wrn28_10_margin",
            AllOf(
                Lower("wrn_28_10", "preact_resnet1001-wrn", least=0.5, reason="The paper prints 0.92; half of it counts."),
                Lower(
                    "wrn_28_10-cifar100",
                    "preact_resnet1001-wrn-cifar100",
                    least=1.7,
                    reason="The paper prints 3.46; half of it counts.",
                ),
            ),
            arms=("wrn_28_10", "preact_resnet1001-wrn", "wrn_28_10-cifar100", "preact_resnet1001-wrn-cifar100"),
            stands_in=QUOTED,
        ),
        Claim(
            "b33_best",
            AllOf(*(Lower(B33, arm.name) for arm in TYPES if arm.name != B33)),
            arms=tuple(arm.name for arm in TYPES),
            stands_in=(
                "16 and 22 layers of a fourth of the width, two seeds: differences below a point are under-powered by design."
            ),
        ),
        Claim(
            "two_convs_best",
            by_budget(
                AllOf(
                    Lower("wrn_40_2", "wrn_40_2-l1", least=0.5, reason="One is said to be clearly worse."),
                    Lower("wrn_40_2", "wrn_40_2-l3"),
                    Lower("wrn_40_2", "wrn_40_2-l4"),
                ),
                AllOf(
                    Lower("wrn_40_2", "wrn_40_2-l1", least=0.5, reason="One is said to be clearly worse."),
                    Lower("wrn_40_2", "wrn_40_2-l4"),
                ),
                "16 layers, which units of three do not divide",
            ),
            arms=("wrn_40_2", *(arm.name for arm in LAYERS)),
            stands_in="WRN-16-0.5. Differences below half a point are under-powered by design.",
        ),
        Claim(
            "dropout_helps",
            AllOf(
                Lower("wrn_28_10-dropout", "wrn_28_10"),
                Lower("wrn_28_10-cifar100-dropout", "wrn_28_10-cifar100"),
                Lower("wrn_52_1-svhn-dropout", "wrn_52_1-svhn"),
                Lower("wrn_16_4-svhn-dropout", "wrn_16_4-svhn"),
                Lower("wrn_16_4", "wrn_16_4-dropout"),
            ),
            arms=(
                "wrn_28_10",
                "wrn_28_10-cifar100",
                "wrn_28_10-dropout",
                "wrn_28_10-cifar100-dropout",
                "wrn_16_4",
                "wrn_16_4-dropout",
                "wrn_52_1-svhn",
                "wrn_52_1-svhn-dropout",
                "wrn_16_4-svhn",
                "wrn_16_4-svhn-dropout",
            ),
        ),
        Claim("wide50_beats_152", Lower("wrn_50_2", "resnet152-fair"), arms=("wrn_50_2", "resnet152-fair")),
        Claim("wide50_size", Exact(exact.WIDE50, exact.wide50)),
        Claim(
            "wide_imagenet_monotone",
            AllOf(
                Ordered(("wrn_18_3", "wrn_18_2", "wrn_18_1_5", "resnet18-fair")),
                Ordered(("wrn_34_2", "wrn_34_1_5", "resnet34-fair")),
            ),
            arms=("wrn_18_3", "wrn_18_2", "wrn_18_1_5", "resnet18-fair", "wrn_34_2", "wrn_34_1_5", "resnet34-fair"),
        ),
        Claim("meanstd_better_than_zca", NotAttempted("No recipe whitens images by ZCA, which has gone out of use.")),
        Claim(
            "loss_rises_after_first_drop",
            RISES,
            arms=("wrn_40_4",),
            stands_in="WRN-16-1 over 4 epochs. That weight decay is the cause, and that dropout softens it, is not tested.",
        ),
        Claim("parameter_counts", Exact(exact.COUNTS, exact.counts)),
        Claim("linear_in_depth_quadratic_in_width", Exact(exact.GROWTH, exact.growth)),
        Claim("equal_sizes_of_table3", Exact(exact.EQUAL, exact.equal_sizes)),
        Claim(
            "wrn50_2_top5",
            NotAttempted(f"{PRINTED} WRN-50-2 trained on ImageNet would tell which one holds."),
            arms=("wrn_50_2",),
        ),
        Claim("resnet1202_row", Exact(exact.ROW_1202, exact.row_1202)),
        Claim("preact1001_batch64", NotAttempted(PRINTED)),
        Claim("figure4_errors", NotAttempted(PRINTED)),
        Claim("secondary_doubled_channels", Exact(exact.DOUBLED, exact.doubled)),
        Claim("protocols_differ", NotAttempted(PRINTED)),
    ),
    items=ITEMS,
)
