"""he2015, he2016, veit2016: every claim has its rule, what structure settles is settled, stand-ins are what they say."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from paper_checks import assert_small
from records import claim_of, made, seeds

from residua import budgets
from residua.claims import Arm, Claim, Ensemble, Evidence, Exact, Paper, Probe, Record
from residua.matrix import address_of
from residua.models import CATALOG, check_options, create_model
from residua.papers import published
from residua.papers._contrasts import Wider, judged, weighed
from residua.papers._forms import standing_in, with_options
from residua.papers._he2015_measured import updates_until
from residua.papers._he2015_settled import deepened
from residua.papers._identity_fit import NEARNESS, identity_fit, rises_with_nearness
from residua.papers._settled import multiply_adds
from residua.papers.he2015 import he2015
from residua.papers.he2016 import he2016
from residua.papers.veit2016 import veit2016
from residua.recipe import Recipe, replaced
from residua.recipes.he2015 import he2015_cifar, he2015_imagenet

PAPERS = {paper.key: paper for paper in (he2015, he2016, veit2016)}
ARMS = {arm.name: arm for paper in PAPERS.values() for arm in paper.arms}
CLAIMS = [(paper, claim) for paper in PAPERS.values() for claim in paper.claims]
LONG = {"secondary_inception_counted", "backward_one_plus", "forward_sum_identity"}


def names(claims: list[tuple[Paper, Claim]]) -> list[str]:
    return [f"{paper.key}/{claim.id}" for paper, claim in claims]


@pytest.mark.parametrize("key", PAPERS)
def test_every_claim_and_discrepancy_of_the_file_has_a_rule_and_no_other(key: str) -> None:
    ids = [claim.id for claim in PAPERS[key].claims]
    assert sorted(ids) == sorted(published(key).claims)
    assert all(claim.statement or published(key).statement(claim.id) for claim in PAPERS[key].claims)
    assert all(len(claim.rule.text) > 20 for claim in PAPERS[key].claims)


@pytest.mark.parametrize("key", PAPERS)
def test_what_items_and_claims_name_is_there(key: str) -> None:
    ids = {claim.id for claim in PAPERS[key].claims}
    for item in PAPERS[key].items:
        assert set(item.claims) <= ids
        assert set(item.arms) | {row.arm for row in item.rows} <= ARMS.keys()
        assert {row.arm for row in item.rows} <= set(item.arms)
        for row in item.rows:
            assert not row.published or published(key).cell(row.published).value is not None
    for claim in PAPERS[key].claims:
        assert set(claim.arms) <= ARMS.keys()
    assert len(ARMS) == sum(len(paper.arms) for paper in PAPERS.values())


@pytest.mark.parametrize(
    "claim",
    [
        pytest.param(claim, id=f"{paper.key}/{claim.id}", marks=[pytest.mark.slow] if claim.id in LONG else [])
        for paper, claim in CLAIMS
        if isinstance(claim.rule, Exact)
    ],
)
def test_what_structure_settles_is_settled(claim: Claim) -> None:
    before = torch.random.get_rng_state()
    outcome = claim.decide(Evidence([], "smoke"))
    assert outcome.verdict == "shown", outcome.why
    assert torch.equal(torch.random.get_rng_state(), before)


def parts(rule: Any) -> list[Any]:
    return [inner for part in getattr(rule, "rules", ()) for inner in parts(part)] or [rule]


@pytest.mark.parametrize(
    "claim",
    [
        pytest.param(claim, id=claim.id, marks=[pytest.mark.slow] if claim.id in LONG else [])
        for _, claim in CLAIMS
        if not isinstance(claim.rule, Exact) and any(isinstance(part, Exact) for part in parts(claim.rule))
    ],
)
def test_the_exact_part_of_a_claim_that_runs_decide_holds(claim: Claim) -> None:
    exact = [part for part in parts(claim.rule) if isinstance(part, Exact)]
    assert exact
    assert all(part(Evidence([])).verdict == "shown" for part in exact)


@pytest.mark.parametrize("claim", [claim for _, claim in CLAIMS], ids=names(CLAIMS))
@pytest.mark.parametrize("budget", ["small", "full"])
def test_without_runs_what_needs_runs_is_not_attempted(claim: Claim, budget: str) -> None:
    if any(isinstance(part, Exact) for part in parts(claim.rule)):
        return
    outcome = claim.decide(Evidence([], budget))
    assert outcome.verdict == "not attempted"
    assert outcome.why


# --------------------------------------------------------------------------------------------------------------- forms


@pytest.mark.parametrize("name", [name for name, arm in ARMS.items() if isinstance(arm, Arm)])
def test_every_arm_has_a_recipe_at_every_budget_or_says_why_not(name: str) -> None:
    arm = ARMS[name]
    assert isinstance(arm, Arm)
    for budget in ("smoke", "small", "full"):
        if reason := budgets.unavailable(arm, budget):
            assert budget == "small"
            assert len(reason) > 20
            continue
        recipe = budgets.recipe_at(arm, budget, 3)
        assert recipe.seed == 3
        check_options(recipe.model.name, CATALOG.get(recipe.model.name), recipe.model.options)
        if budget == "small":
            assert recipe.data.source == "cifar10"
            assert recipe.data.image_size is None
            assert (recipe.steps or 0) <= 2_000
            assert recipe.augment.crop == "pad"
            assert recipe.batch_size == 128
            assert work_of(recipe) > 0
        if budget == "smoke":
            assert recipe.data.source == "digits"
            assert_small(recipe)


@cache
def _work(name: str, options: str) -> float:
    return multiply_adds(name, 32, **json.loads(options)) / 40_551_040


def work_of(recipe: Recipe) -> float:
    """Multiply-adds of an image, in those of ResNet-20."""
    return _work(recipe.model.name, json.dumps(recipe.model.options, sort_keys=True))


def small(name: str) -> str:
    arm = ARMS[name]
    assert isinstance(arm, Arm)
    return address_of(budgets.recipe_at(arm, "small", 0), "the same data")


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("imagenet-plain18", "plain20"), ("imagenet-plain34", "plain56"), ("imagenet-resnet18", "resnet20"),
        ("imagenet-resnet34", "resnet56"), ("imagenet-resnet34-A", "resnet20"), ("imagenet-resnet34-B", "resnet20-B"),
        ("imagenet-resnet34-C", "resnet20-C"), ("imagenet-plain34-20", "plain20"), ("original-110", "resnet20"),
        ("full-preactivation-110", "preact20"),
    ],
)  # fmt: skip
def test_a_form_that_stands_in_is_the_same_run_and_is_not_paid_for_twice(name: str, other: str) -> None:
    assert small(name) == small(other)
    assert small(name) != small("resnet110")


def test_a_stand_in_changes_every_field_but_length_and_name() -> None:
    full = with_options(he2015_imagenet("resnet34"), shortcut="A")
    form = with_options(he2015_cifar("resnet20"), shortcut="B")
    got = replaced(full, standing_in(full, form))
    assert replaced(got, {"steps": form.steps, "name": form.name}) == form
    assert got.steps == full.steps


def test_the_runs_at_small_fit_into_eight_hours_of_a_thousand_images_a_second() -> None:
    seconds: dict[tuple[str, int], float] = {}
    for arm in ARMS.values():
        if isinstance(arm, (Ensemble, Probe)) or budgets.unavailable(arm, "small"):
            continue
        for seed in range(budgets.seeds_at(arm, "small")):
            recipe = budgets.recipe_at(arm, "small", seed)
            work = work_of(recipe)
            images = 128 * (recipe.steps or 390 * (recipe.epochs or 0))
            seconds[address_of(recipe, ""), seed] = work * images / 1_000
    assert sum(seconds.values()) < 8 * 3_600


# --------------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("deep", "expected"),
    [([40.0, 42.0, 41.0], "shown"), ([24.0, 26.0, 25.0], "refuted"), ([20.0, 35.0, 30.0], "under-powered")],
)
def test_degradation_is_decided_by_the_training_error_of_three_seeds(deep: list[float], expected: str) -> None:
    records = seeds("plain20", "train_error", [25.5, 26.0, 26.5]) + seeds("plain56", "train_error", deep)
    assert claim_of("he2015/degradation_train_cifar").decide(Evidence(records, "small")).verdict == expected


@pytest.mark.parametrize(("error", "expected"), [(88.0, "shown"), (65.0, "under-powered"), (52.0, "refuted"), (30.0, "refuted")])
def test_a_shortcut_fails_in_a_short_run_by_its_distance_from_the_original(error: float, expected: str) -> None:
    records = [made("resnet110", train_error=55.0), made("resnet110-scale-0.5-1", train_error=error)]
    assert claim_of("he2016/scaling_shortcut_fails").decide(Evidence(records, "small")).verdict == expected


@pytest.mark.parametrize(
    ("first", "last", "expected"), [(1.0, 2.0, "refuted"), (1e-9, 1.0, "shown"), (1e-2, 1.0, "under-powered")]
)
def test_vanishing_gradients_explain_the_degradation_only_if_they_vanish(first: float, last: float, expected: str) -> None:
    state = {"gradient": [first**2, last**2], "signal": [1.0, 1.0]}
    records = seeds("plain20", "train_error", [25.5, 26.0, 26.5])
    for seed, error in enumerate([40.0, 41.0, 42.0]):
        records.append(Record("plain56", seed, {"train_error": error}, {}, {"signal": {"initial": state, "trained": state}}))
    evidence = Evidence(records, "small")
    assert claim_of("he2015/secondary_vanishing").decide(evidence).verdict == expected
    alive = {"refuted": "shown", "shown": "refuted"}.get(expected, expected)
    assert claim_of("he2015/not_vanishing_gradients").decide(evidence).verdict == alive
    healthy = "shown" if first > 1e-3 else "refuted"
    assert claim_of("he2015/healthy_backward").decide(evidence).verdict == healthy


def test_the_contrast_is_that_of_welch_and_satterthwaite() -> None:
    a, b = [1.0, 2.0, 4.0], [0.0, 0.5, 0.7, 1.1]
    found = weighed([(1.0, a), (-1.0, b)])
    scipy = pytest.importorskip("scipy.stats")
    interval = scipy.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert weighed([(1.0, a), (-1.0, [2.0])]).single


def test_a_wider_gap_is_found_at_its_rate_and_no_gap_seldom() -> None:
    rule = Wider(("a", "b"), ("c", "d"), least=0.0)
    shown = {True: 0, False: 0}
    for wide in shown:
        for trial in range(300):
            records = []
            for place, arm in enumerate("abcd"):
                mean = 2.0 if wide and arm == "b" else 0.0
                draws = torch.randn(3, generator=torch.Generator().manual_seed(1_000 * trial + 10 * place + wide))
                records += seeds(arm, "test_error", [mean + 0.3 * float(draw) for draw in draws])
            shown[wide] += rule(Evidence(records)).verdict == "shown"
    assert shown[True] > 285
    assert shown[False] < 300 * 0.05 + 4 * math.sqrt(300 * 0.05 * 0.95)


def test_with_one_seed_only_what_is_gross_decides() -> None:
    alone = weighed([(1.0, [5.0]), (-1.0, [1.0])])
    assert judged(alone, 1.0, "x").verdict == "under-powered"
    assert judged(alone, 1.0, "x", gross=3.0).verdict == "shown"


def test_convergence_is_the_first_update_below_the_level() -> None:
    curve = [(10 * step, 3.0 - 0.1 * step) for step in range(1, 31)]
    assert updates_until(curve, 1.5) == 180  # the mean of the points 14 to 18 is 1.4, that of 13 to 17 is 1.5
    assert updates_until(curve, -5.0) is None
    assert updates_until([], 1.0) is None


def losses(arm: str, factors: list[float], broken: str = "") -> list[Record]:
    """A loss that falls below the level after some 150 updates times the factor, a factor for each seed; 1,500 are made."""
    curves = [[(step, 3.0 - 0.01 * step / factor) for step in range(0, 1_510, 10)] for factor in factors]
    return [Record(arm, seed, {}, {"train_loss": curve}, {}, broken) for seed, curve in enumerate(curves)]


@pytest.mark.parametrize(
    ("plain20", "plain56", "resnet56", "expected"),
    [
        (1.0, 4.0, 1.0, "shown"),
        (1.0, 1.0, 1.0, "refuted"),
        (8.0, 12.0, 1.0, "under-powered"),  # plain-56 stays above the level: less than twice, but nothing is known of how much
        (1.0, 12.0, 1.0, "shown"),  # here the bound itself is more than twice
        (12.0, 12.0, 1.0, "under-powered"),
        (1.0, 4.0, 12.0, "refuted"),  # the residual nets slow down more than what was seen of the plain ones
    ],
)
def test_slowing_convergence_compares_four_networks(plain20: float, plain56: float, resnet56: float, expected: str) -> None:
    factors = {"plain20": plain20, "plain56": plain56, "resnet20": 1.0, "resnet56": resnet56}
    records = [one for arm, factor in factors.items() for one in losses(arm, [factor, 1.02 * factor, 1.04 * factor])]
    outcome = claim_of("he2015/plain_convergence_slows").decide(Evidence(records, "small"))
    assert outcome.verdict == expected, outcome.why


def test_a_net_that_breaks_off_has_not_converged_fast() -> None:
    records = [*losses("plain20", [6.0, 6.1, 6.2]), *losses("resnet20", [1.0, 1.1, 1.2]), *losses("resnet56", [1.0, 1.1, 1.2])]
    short = [replace(one, curves={"train_loss": one.curves["train_loss"][:5]}) for one in losses("plain56", [1.0] * 3, "nan")]
    whole = losses("plain56", [1.0])
    outcome = claim_of("he2015/plain_convergence_slows").decide(Evidence([*records, *short], "small"))
    assert outcome.verdict == "under-powered", outcome.why
    outcome = claim_of("he2015/plain_convergence_slows").decide(Evidence([*records, *short[1:], *whole], "small"))
    assert outcome.numbers["updates"]["plain56"][1:] == [1_500, 1_500]


def errors(arm: str, points: dict[int, float], **values: float) -> Record:
    """One run with this training error by update."""
    return Record(arm, 0, values, {"train_error": list(points.items())})


@pytest.mark.parametrize(
    ("warm", "cold", "expected"),
    [(70.0, 90.0, "shown"), (79.9, 80.0, "under-powered"), (85.0, 90.0, "refuted"), (60.0, 70.0, "refuted")],
)
def test_the_warm_up_is_judged_on_the_updates_300_to_400(warm: float, cold: float, expected: str) -> None:
    arms = {"resnet110": warm, "resnet110-no-warmup": cold}
    records = [errors(arm, {300: 89.0, 350: value, 400: value, 450: 10.0}) for arm, value in arms.items()]
    claim = claim_of("he2015/warmup_110")
    assert claim.decide(Evidence(records, "small")).verdict == expected
    coarse = [errors(arm, {320: value, 640: value}) for arm, value in arms.items()]
    assert claim.decide(Evidence(coarse, "full")).verdict == "not attempted"


@pytest.mark.parametrize(
    ("single", "plain", "double", "expected"),
    [
        (88.0, 90.0, 45.0, "shown"),
        (88.0, 89.9, 88.0, "under-powered"),  # none has learned
        (60.0, 90.0, 45.0, "refuted"),
        (83.0, 90.0, 45.0, "under-powered"),
    ],
)
def test_single_layer_units_are_held_against_units_of_two(single: float, plain: float, double: float, expected: str) -> None:
    arms = {"resnet110-1layer": single, "plain110": plain, "resnet110": double}
    records = [made(arm, train_error=value) for arm, value in arms.items()]
    assert claim_of("he2015/single_layer_residual_useless").decide(Evidence(records, "small")).verdict == expected


@pytest.mark.parametrize(
    ("without", "normalised", "expected"), [(90.0, 60.0, "shown"), (70.0, 60.0, "refuted"), (90.0, 82.0, "refuted")]
)
def test_to_start_is_to_leave_chance_by_the_end_of_the_training(without: float, normalised: float, expected: str) -> None:
    records = [made("plain56-unnormalised", train_error=without), made("plain56", train_error=normalised)]
    claim = claim_of("he2015/start_needs_normalisation")
    assert claim.decide(Evidence(records, "small")).verdict == expected
    assert "The first rule is back" in claim.amended


@pytest.mark.parametrize(
    ("base", "own", "expected"),
    [
        (45.0, 70.0, "shown"),
        (45.0, 55.0, "under-powered"),
        (45.0, 46.0, "refuted"),
        (45.0, 30.0, "refuted"),
        (88.0, 89.0, "under-powered"),
    ],
)
def test_to_fail_is_to_lie_far_behind_the_original_network(base: float, own: float, expected: str) -> None:
    records = [made("resnet110", train_error=base), made("resnet110-dropout-0.5", train_error=own)]
    assert claim_of("he2016/dropout_shortcut_fails").decide(Evidence(records, "small")).verdict == expected


def test_what_is_said_of_every_seed_is_not_shown_where_one_broke_off() -> None:
    signal = {state: {"gradient": [1.0, 1.0], "signal": [1.0, 1.0]} for state in ("initial", "trained")}
    whole = [Record("plain56", seed, {}, {}, {"signal": signal}) for seed in (0, 1)]
    broken = [*whole[:1], Record("plain56", 1, {}, {}, {}, "Training broke off.")]
    for name in ("not_vanishing_gradients", "healthy_backward", "forward_variance_healthy"):
        claim = claim_of(f"he2015/{name}")
        assert claim.decide(Evidence(whole, "small")).verdict == "shown"
        outcome = claim.decide(Evidence(broken, "small"))
        assert outcome.verdict == "under-powered"
        assert "seed 1 of plain56 broke off" in outcome.why


# --------------------------------------------------------------------------------------------------- what is computed


def test_a_deepened_net_is_refused_where_it_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="fewer units"):
        deepened(create_model("plain56"), create_model("plain20"))
    with pytest.raises(ValueError, match="plain"):
        deepened(create_model("resnet20"), create_model("resnet32"))


def test_the_fit_is_a_function_of_its_seed_and_its_rule_reads_it() -> None:
    first, again, other = identity_fit(0, "smoke"), identity_fit(0, "smoke"), identity_fit(1, "smoke")
    assert first == again != other
    assert all(math.isfinite(value) for part in first.values() for value in part.values())
    assert set(first["advantage"]) == set(NEARNESS)
    for slope, expected in ((1.0, "shown"), (-1.0, "refuted")):
        records = [
            Record("identity-fit", seed, {}, {}, {"advantage": {n: slope * t + 0.01 * seed for n, t in NEARNESS.items()}})
            for seed in range(5)
        ]
        assert rises_with_nearness(Evidence(records, "small")).verdict == expected


def test_the_costs_are_those_of_the_table() -> None:
    probe = ARMS["he2015-costs"]
    assert isinstance(probe, Probe)
    found = probe.measure(0, "full")
    for row in next(item for item in he2015.items if item.id == "table6").rows:
        if row.arm == "he2015-costs":
            printed = published("he2015").cell(row.published).value
            assert found[row.measure] == pytest.approx(printed, abs=0.05 if printed > 1 else 0.006)


@pytest.mark.parametrize(
    "item", ["he2015/fig2", "he2015/fig5", "he2016/fig2", "he2016/fig4", "he2016/fig5", "veit2016/unravelled"]
)
def test_drawings_are_made_from_the_code(item: str) -> None:
    key, _, name = item.partition("/")
    found = next(one for one in PAPERS[key].items if one.id == name)
    assert found.draw is not None
    drawn = found.draw(Evidence([]))
    assert drawn
    assert all(drawing.svg.lstrip().startswith("<svg") for drawing in drawn)


def test_figures_leave_out_what_has_not_run() -> None:
    for paper in PAPERS.values():
        for item in paper.items:
            if item.draw is not None and item.arms:
                assert list(item.draw(Evidence([]))) == []
