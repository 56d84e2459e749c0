"""The claims of he2016 on the order of activations, depth, and what structure settles. Layer 4."""

from __future__ import annotations

from residua.claims import (
    AllOf,
    Claim,
    Equal,
    Evidence,
    Exact,
    Lower,
    Measured,
    NotAttempted,
    Outcome,
    Rule,
    Verdict,
    not_attempted,
)
from residua.papers import _he2016_settled as settled
from residua.papers._contrasts import Wider
from residua.papers._he2016_shortcuts import SHORTCUTS
from residua.papers._small import by_budget

__all__ = ["CLAIMS", "ORDERS"]

ORDERS = ("original", "bn-after-addition", "relu-before-addition", "relu-only-preactivation", "full-preactivation")
ORIGINAL, PREACT = "original-110", "full-preactivation-110"
TWENTY = "Below budget full 20 layers stand for 110 and 164, where the paper's differences are smaller than seeds resolve."
READING = "it is about the wording of a text or about two printed numbers; nothing can be run for it."


def _by_depth(left: str, right: str, least: float) -> Rule:
    """Lower with 110 and 164 layers at full, with the stand-in for 110 else."""
    pairs = [(f"{left}-{depth}", f"{right}-{depth}") for depth in (110, 164)]
    return by_budget(
        AllOf(*(Lower(*pair, least=least) for pair in pairs)), Lower(*pairs[0], least=least), "20 layers stand for 110"
    )


def _arms(*units: str) -> tuple[str, ...]:
    return tuple(f"{unit}-{depth}" for depth in (110, 164) for unit in units)


def _wording(evidence: Evidence) -> Outcome:
    losses = {name: evidence.values("full-preactivation-164", name) for name in ("train_loss", "test_loss")}
    if evidence.budget != "full" or not all(losses.values()):
        return not_attempted("After a few epochs the loss on augmented images is high for any network: it takes the full length.")
    gaps = [train - test for train, test in zip(*losses.values())]
    verdict: Verdict = "shown" if min(gaps) > 0 else "refuted" if max(gaps) < 0 else "under-powered"
    return Outcome(verdict, f"Training loss less test loss: {', '.join(f'{gap:+.3f}' for gap in gaps)}.", losses)


ORDER = (
    Claim(
        "bn_after_addition_worse",
        AllOf(
            _by_depth("original", "bn-after-addition", 0.3),
            by_budget(
                Lower("imagenet2016-resnet101", "imagenet2016-resnet101-bn-after-addition", least=0.5, gross=0.5),
                Lower(ORIGINAL, "bn-after-addition-110", least=0.3),
                "ImageNet is left out",
            ),
        ),
        (*_arms("original", "bn-after-addition"), "imagenet2016-resnet101", "imagenet2016-resnet101-bn-after-addition"),
        stands_in=TWENTY,
    ),
    Claim(
        "relu_before_addition_worse",
        _by_depth("original", "relu-before-addition", 0.1),
        _arms("original", "relu-before-addition"),
        stands_in=TWENTY,
    ),
    Claim(
        "relu_only_preact_neutral",
        by_budget(
            AllOf(*(Equal(f"original-{d}", f"relu-only-preactivation-{d}", margin=0.5) for d in (110, 164))),
            Equal(ORIGINAL, "relu-only-preactivation-110", margin=1.0),
            "20 layers stand for 110, and short trainings spread more",
        ),
        _arms("original", "relu-only-preactivation"),
        stands_in=TWENTY,
    ),
    Claim(
        "full_preact_best",
        AllOf(*(_by_depth("full-preactivation", unit, 0.1) for unit in ORDERS[:-1])),
        _arms(*ORDERS),
        stands_in=TWENTY,
    ),
    Claim(
        "preact_wins_everywhere",
        by_budget(
            AllOf(
                Lower("preact_resnet110-1layer", "resnet110-1layer", least=0.1),
                Lower(PREACT, ORIGINAL, least=0.1),
                Lower("full-preactivation-164", "original-164", least=0.1),
                Lower("preact_resnet1001", "resnet1001", least=1.0),
                *(Lower(f"preact_resnet{d}-cifar100", f"resnet{d}-cifar100", least=0.3) for d in (164, 1001)),
            ),
            Lower(PREACT, ORIGINAL, least=0.1),
            "20 layers stand for 110, the only pair that is run",
        ),
        (
            "preact_resnet110-1layer",
            "resnet110-1layer",
            PREACT,
            ORIGINAL,
            "full-preactivation-164",
            "original-164",
            "preact_resnet1001",
            "resnet1001",
            *(f"{k}resnet{d}-cifar100" for d in (164, 1001) for k in ("preact_", "")),
        ),
        stands_in=TWENTY,
    ),
    Claim(
        "gain_grows_with_depth",
        by_budget(
            Wider(("preact_resnet1001", "resnet1001"), ("full-preactivation-164", "original-164"), least=1.0),
            Wider(("preact56", "resnet56"), ("preact20", "resnet20"), least=0.5, gross=3.0),
            "20 and 56 layers stand for 164 and 1001",
        ),
        (
            "preact_resnet1001",
            "resnet1001",
            "full-preactivation-164",
            "original-164",
            "preact56",
            "resnet56",
            "preact20",
            "resnet20",
        ),
        stands_in="Below budget full one seed of 56 layers of pre-activation: under-powered by design unless gross.",
    ),
    Claim(
        "original_1001_degrades",
        AllOf(Lower("original-164", "resnet1001", least=0.5), Lower("preact_resnet1001", "full-preactivation-164", least=0.2)),
        ("original-164", "resnet1001", "preact_resnet1001", "full-preactivation-164"),
    ),
    Claim(
        "preact_regularises",
        by_budget(
            AllOf(
                *(
                    rule
                    for d in (110, 164)
                    for rule in (
                        Lower(f"original-{d}", f"full-preactivation-{d}", "train_loss"),
                        Lower(f"full-preactivation-{d}", f"original-{d}", least=0.1),
                    )
                )
            ),
            AllOf(Lower(ORIGINAL, PREACT, "train_loss"), Lower(PREACT, ORIGINAL, least=0.1)),
            "20 layers stand for 110",
        ),
        _arms("original", "full-preactivation"),
        stands_in=f"{TWENTY} After six epochs no network over-fits yet, so that a regularising effect may not show.",
    ),
    Claim(
        "resnet200_overfits_orig",
        AllOf(
            Lower("imagenet2016-resnet152", "imagenet2016-resnet200", least=0.2, gross=0.2),
            Lower("imagenet2016-preact_resnet200", "imagenet2016-preact_resnet152", least=0.2, gross=0.2),
            Lower("imagenet2016-preact_resnet200", "imagenet2016-resnet200", least=0.5, gross=0.5),
        ),
        tuple(f"imagenet2016-{k}resnet{d}" for d in (152, 200) for k in ("", "preact_")),
    ),
)

SETTLED = (
    Claim(
        "forward_sum_identity",
        Exact(
            "All chains of units of one shape in a network of 56 layers, float64: below 1e-11 of the signal.", settled.forward_sum
        ),
    ),
    Claim(
        "backward_one_plus",
        Exact("The same chains: below 1e-11 of the gradient.", settled.backward_one_plus),
    ),
    Claim(
        "branch_input_normalised",
        Exact(
            "The layers that give each weight layer of a branch its input, in networks of 56 layers: with full pre-activation "
            "all are "
            "a normalisation and ReLU, with the original unit only those inside the branch.",
            settled.inputs_normalised,
        ),
    ),
    Claim("param_10_2", Exact("Counted with and without normalisations.", settled.parameters_without_norms)),
    Claim(
        "secondary_train_test_wording",
        Measured(
            "At full, pre-activation net of 164 layers: shown if the training loss is above the test loss in every seed, "
            "refuted if below "
            "in every seed.",
            _wording,
        ),
        ("full-preactivation-164",),
        statement="With pre-activation the training loss is high compared with the test loss, as a secondary text says.",
    ),
    *(Claim(claim, NotAttempted(READING)) for claim in ("secondary_agrees", "baseline_661", "digitised_curves")),
)

CLAIMS = (*SHORTCUTS, *ORDER, *SETTLED)
