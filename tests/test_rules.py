"""Rules against simulated seeds whose truth is known: how often each verdict is given, and what it never does."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from residua.claims import AllOf, Claim, Equal, Evidence, Exact, Fails, Lower, NotAttempted, Ordered, Outcome, Record, Rule, Works
from residua.comparing import compared, holm
from residua.rules import ByBudget, settled_parts

DRAWS = 1_500


def evidence(budget: str = "small", num_test: int = 10_000, **arms: list[float]) -> Evidence:
    return Evidence(
        [Record(arm, seed, {"test_error": value}) for arm, values in arms.items() for seed, value in enumerate(values)],
        budget, num_test,
    )  # fmt: skip


def verdicts(rule: Rule, seeds: int, **means: float) -> Counter[str]:
    """How often each verdict is given for arms of these true means, seeds normal with standard deviation 1."""
    draws = np.random.default_rng(0).standard_normal((DRAWS, len(means), seeds))
    return Counter(
        rule(evidence(**{arm: [mean + x for x in part] for (arm, mean), part in zip(means.items(), draw)})).verdict
        for draw in draws.tolist()
    )


@pytest.mark.parametrize("seeds", [3, 5])
def test_an_effect_that_is_not_there_is_shown_in_at_most_five_per_cent(seeds: int) -> None:
    found = verdicts(Lower("a", "b"), seeds, a=10.0, b=10.0)
    assert found["shown"] / DRAWS <= 0.05 + 3 * (0.05 * 0.95 / DRAWS) ** 0.5
    assert found["refuted"] / DRAWS <= 0.05 + 3 * (0.05 * 0.95 / DRAWS) ** 0.5
    assert found["under-powered"] > 0.85 * DRAWS


def test_an_effect_of_just_the_least_size_is_refuted_in_at_most_five_per_cent() -> None:
    found = verdicts(Lower("a", "b", least=2.0), 3, a=10.0, b=12.0)
    assert found["refuted"] / DRAWS <= 0.05 + 3 * (0.05 * 0.95 / DRAWS) ** 0.5


def test_a_large_effect_is_shown_and_its_opposite_refuted() -> None:
    assert verdicts(Lower("a", "b", least=1.0), 3, a=10.0, b=16.0)["shown"] > 0.95 * DRAWS
    assert verdicts(Lower("b", "a", least=1.0), 3, a=10.0, b=16.0)["refuted"] > 0.95 * DRAWS


def test_an_order_of_four_that_is_not_there_is_hardly_ever_shown_nor_refuted() -> None:
    rule = Ordered(["a", "b", "c", "d"])
    found = verdicts(rule, 3, a=10.0, b=10.0, c=10.0, d=10.0)
    assert found["shown"] == 0
    assert found["refuted"] / DRAWS <= 0.05 + 3 * (0.05 * 0.95 / DRAWS) ** 0.5
    assert verdicts(rule, 3, a=10.0, b=18.0, c=26.0, d=34.0)["shown"] > 0.95 * DRAWS
    assert verdicts(rule, 3, a=10.0, b=18.0, c=10.0, d=34.0)["refuted"] > 0.95 * DRAWS


def test_equality_is_shown_in_at_most_five_per_cent_where_arms_differ_by_the_margin() -> None:
    rule = Equal("a", "b", margin=4.0)
    assert verdicts(rule, 3, a=10.0, b=14.0)["shown"] / DRAWS <= 0.05 + 3 * (0.05 * 0.95 / DRAWS) ** 0.5
    assert verdicts(rule, 3, a=10.0, b=10.0)["shown"] > 0.8 * DRAWS
    assert verdicts(rule, 3, a=10.0, b=22.0)["refuted"] > 0.95 * DRAWS


def test_the_interval_is_welchs() -> None:
    from scipy import stats

    left, right = [9.1, 10.2, 9.7], [11.0, 12.9, 10.4, 12.0]
    found = compared(left, right)
    peer = stats.ttest_ind(right, left, equal_var=False, alternative="greater")
    assert found.p_positive == pytest.approx(peer.pvalue)
    assert found.low == pytest.approx(peer.confidence_interval(0.95).low)


def test_holms_correction_by_its_own_example() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_with_one_seed_only_gross_differences_decide() -> None:
    rule = Lower("a", "b", least=0.5)
    assert rule(evidence(a=[10.0], b=[18.0])).verdict == "under-powered"
    assert rule(evidence(a=[10.0], b=[45.0])).verdict == "shown"
    assert rule(evidence(a=[45.0], b=[10.0])).verdict == "refuted"
    assert Lower("a", "b", gross=5.0)(evidence(a=[10.0], b=[18.0])).verdict == "shown"
    assert Lower("a", "b", gross=5.0)(evidence(num_test=100, a=[10.0], b=[18.0])).verdict == "under-powered"
    assert Lower("a", "b", "train_loss")(evidence(a=[1.0], b=[2.0])).verdict == "not attempted"


def test_equality_is_never_shown_with_one_seed() -> None:
    assert Equal("a", "b", margin=1.0)(evidence(a=[10.0], b=[10.0])).verdict == "under-powered"
    assert Equal("a", "b", margin=1.0)(evidence(a=[10.0], b=[40.0])).verdict == "refuted"


def test_values_without_any_spread_are_compared_as_they_are() -> None:
    assert Lower("a", "b")(evidence(a=[50.0, 50.0], b=[90.0, 90.0])).verdict == "shown"
    assert Lower("a", "b")(evidence(a=[90.0, 90.0], b=[90.0, 90.0])).verdict == "under-powered"
    assert Equal("a", "b", margin=1.0)(evidence(a=[90.0, 90.0], b=[90.0, 90.0])).verdict == "shown"


def test_failing_and_working_take_the_test_sets_size_into_account() -> None:
    assert Fails("a", 60.0)(evidence(a=[61.5])).verdict == "shown"
    assert Fails("a", 60.0)(evidence(num_test=300, a=[61.5])).verdict == "under-powered"
    assert Fails("a", 60.0)(evidence(a=[40.0, 30.0])).verdict == "refuted"
    assert Works("a", 60.0)(evidence(a=[40.0, 80.0])).verdict == "under-powered"
    assert Works("a", 60.0)(evidence(a=[40.0, 30.0])).verdict == "shown"


def test_all_of_several_is_as_strong_as_the_weakest() -> None:
    facts = evidence(a=[10.0, 10.1], b=[20.0, 20.1], c=[90.0, 90.0])
    assert AllOf(Lower("a", "b"), Fails("c", 60.0))(facts).verdict == "shown"
    assert AllOf(Lower("a", "b"), Fails("a", 60.0))(facts).verdict == "refuted"
    assert AllOf(Lower("a", "b"), Works("d", 60.0))(facts).verdict == "not attempted"
    assert AllOf(Lower("b", "a"), Works("d", 60.0))(facts).verdict == "refuted"


def test_of_several_tests_one_that_refutes_must_do_so_among_all() -> None:
    """With every true effect at `least`, a claim of four parts is refuted in 5 % of the cases and not in 5 % for each part."""
    arms = {f"{side}{arm}": mean for side in "wxyz" for arm, mean in (("a", 10.0), ("b", 11.0))}
    parts = [Lower(f"{side}a", f"{side}b", least=1.0) for side in "wxyz"]
    assert verdicts(AllOf(*parts), 3, **arms)["refuted"] / DRAWS <= 0.05 + 3 * (0.05 * 0.95 / DRAWS) ** 0.5
    facts = evidence(wa=[10.0, 10.1, 10.2], wb=[8.0, 8.1, 8.2], xa=[1.0, 1.1, 1.2], xb=[5.0, 5.1, 5.2])
    outcome = AllOf(*parts[:2])(facts)
    assert outcome.verdict == "refuted"
    assert outcome.p_against is not None
    assert outcome.p_against == pytest.approx(2 * (parts[0](facts).p_against or 1.0))


def test_a_refutation_has_its_p_value() -> None:
    """The verdict and the p-value of each kind of rule say the same."""
    near = evidence(a=[10.0, 10.4, 10.2], b=[10.1, 10.5, 10.3])
    far = evidence(a=[10.0, 10.4, 10.2], b=[8.1, 8.5, 8.3])
    for facts, verdict in ((far, "refuted"), (near, "shown")):
        outcome = Equal("a", "b", margin=1.0)(facts)
        assert outcome.verdict == verdict
        assert outcome.p_against is not None
        assert (outcome.p_against < 0.05) == (verdict == "refuted")
    for rule in (Lower("a", "b", least=0.5), Ordered(("a", "b"), least=0.5)):
        outcome = rule(far)
        assert outcome.verdict == "refuted"
        assert outcome.p_against is not None
        assert outcome.p_against < 0.05


def test_smoke_decides_nothing_but_what_needs_no_run() -> None:
    facts = evidence("smoke", a=[10.0, 10.1], b=[20.0, 20.1])
    assert Claim("x", Lower("a", "b"), ("a", "b"), statement=".").decide(facts).verdict == "not attempted"
    assert Claim("x", Exact(".", lambda: Outcome("shown", "so")), statement=".").decide(facts).verdict == "shown"
    assert Claim("x", NotAttempted("far"), statement=".").decide(evidence()).why == "far"


def test_evidence_reaches_into_measurements_by_dotted_paths() -> None:
    record = Record("a", 0, {}, {"train_error": [(1, 2.0)]}, {"lesion": {"median": 1.5, "units": [{"damage": 3.0}], "on": True}})
    found = Evidence([record])
    assert found.values("a", "lesion.median") == [1.5]
    assert found.values("a", "lesion.units.0.damage") == [3.0]
    assert found.values("a", "lesion.units.1.damage") == found.values("a", "lesion.on") == found.values("a", "lesion") == []
    assert found.curve("a", "train_error") == [[(1, 2.0)]]


@pytest.mark.parametrize(
    "rule", [Lower("a", "b", least=1.0), Ordered(["a", "b"]), Equal("a", "b"), Fails("a", 60), Works("a", 60)]
)
def test_every_rule_says_in_words_what_decides(rule: Rule) -> None:
    text = AllOf(rule).text
    assert "under-powered" in text
    assert "95 %" in text
    assert "a" in text


def test_what_needs_no_run_is_settled_once() -> None:
    counted: list[int] = []

    def count() -> Outcome:
        counted.append(1)
        return Outcome("shown", "Counted.")

    rule = AllOf(Exact("It is counted.", count), Lower("a", "b"))
    for budget in ("small", "full"):
        assert rule(evidence(budget, a=[1.0], b=[2.0])).verdict == "under-powered"
    assert len(counted) == 1


def test_the_parts_that_need_no_run_are_those_of_the_budget() -> None:
    exact = Exact("It is counted.", lambda: Outcome("shown", "Counted."))
    wrong = Exact("It is not so.", lambda: Outcome("refuted", "It is not."))
    rule = ByBudget(AllOf(AllOf(exact, Lower("a", "b")), wrong), Lower("a", "b"), "it is shorter")
    assert settled_parts(rule, "full") == ["Counted."]
    assert settled_parts(rule, "small") == []
    assert settled_parts(exact, "full") == []
    assert rule(evidence("small", a=[1.0], b=[20.0])).verdict == "shown"
    assert rule(evidence("full", a=[1.0], b=[20.0])).verdict == "refuted"
    assert "it is shorter" in rule.text
