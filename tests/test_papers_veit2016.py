"""veit2016: what lesions, swaps and gradients over paths decide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from records import claim_of, made

from residua.claims import Evidence, Record


def lesion(errors: list[float], baseline: float = 10.0, **more: Any) -> dict[str, Any]:
    rows = [{"path": str(place), "stage": 0, "transition": place in (3, 6), "error": error} for place, error in enumerate(errors)]
    return {"baseline": baseline, "chance": 90.0, "single": rows, "random": [], "swaps": [], **more}


def test_lesions_decide_their_claims() -> None:
    fragile, hardy = lesion([60.0, 40, 35, 70, 45, 30, 66, 40, 50]), lesion([50.0, 10.5, 10.8, 40, 10.2, 10.4, 35, 10.8, 10.1])
    middle = lesion([60.0, 14, 15, 50, 13, 12, 40, 15, 13])
    records = [made("preact20", s, fragile) for s in range(3)] + [made("preact32", 0, middle), made("preact56", 0, hardy)]
    evidence = Evidence(records, "small")
    for name in (
        "delete_one_resnet",
        "transition_blocks_matter",
        "robustness_grows_with_depth",
        "claim_is_for_deep_nets",
        "first_block",
    ):
        assert claim_of(f"veit2016/{name}").decide(evidence).verdict == "shown", name
    turned = Evidence([made("preact20", 0, hardy), made("preact32", 0, middle), made("preact56", 0, fragile)], "small")
    for name in ("delete_one_resnet", "robustness_grows_with_depth", "claim_is_for_deep_nets"):
        assert claim_of(f"veit2016/{name}").decide(turned).verdict == "refuted", name


def test_growth_and_reordering_are_read_from_draws() -> None:
    smooth = [{"k": k, "median": 10.0 + 5 * k, "errors": []} for k in range(1, 9)]
    jump = [{"k": k, "median": 10.0 if k < 4 else 90.0, "errors": []} for k in range(1, 9)]
    falling = [{"pairs": p, "tau": 1 - 0.02 * p, "error": 10.0 + 4 * p} for p in range(1, 11)]
    for random, swaps, expected in (
        (smooth, falling, "shown"),
        (jump, [row | {"error": 50 * row["tau"]} for row in falling], "refuted"),
    ):
        evidence = Evidence([made("preact56", 0, lesion([10.0] * 9, random=random, swaps=swaps))], "small")
        assert claim_of("veit2016/error_grows_smoothly").decide(evidence).verdict == expected
        assert claim_of("veit2016/reorder_smooth").decide(evidence).verdict == expected


def test_a_correlation_with_a_constant_is_undefined_and_decides_nothing() -> None:
    swaps = [{"pairs": p, "tau": 1 - 0.02 * p, "error": 87.5} for p in range(1, 11)]
    outcome = claim_of("veit2016/reorder_smooth").decide(
        Evidence([made("preact56", 0, lesion([10.0] * 9, swaps=swaps))], "small")
    )
    assert outcome.verdict == "under-powered"
    assert "undefined" in outcome.why
    assert "nan" not in outcome.why
    assert outcome.numbers == {"seeds": [{"rho": None, "p": None}]}


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        (lambda k: 10 ** (-0.1 * k), "shown"),
        (lambda k: 10 ** (0.1 * k), "refuted"),
        (lambda k: 1e-2 / (k + 1) ** 3, "under-powered"),
    ],
)
def test_the_decay_over_paths_is_a_straight_line_in_logarithms(norm: Callable[[int], float], expected: str) -> None:
    lengths = list(range(28))
    result = {"length": lengths, "norm": [norm(k) for k in lengths]}
    evidence = Evidence([Record("preact56", 0, {}, {}, {"paths": result})], "small")
    assert claim_of("veit2016/gradient_decays").decide(evidence).verdict == expected
