"""What a budget can settle at all: rules applied to runs that are supposed, of the arms that have a form there. Layer 4."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

from residua.claims import AllOf, Claim, Evidence, Exact, Record, Rule
from residua.deciding import Known, outcome_of
from residua.rules import ByBudget

__all__ = ["obstacle"]

TRIALS = 16  # several, since a rule may be attempted for some values only
LEAST, MOST = -3.0, 3.0  # powers of ten of what is supposed to be measured
POINTS = 60  # of a curve, 100 updates apart


def obstacle(claim: Claim, budget: str, seeds: Mapping[str, int], left_out: Mapping[str, str]) -> str:
    """Why no runs at a budget could settle a claim, in sentences; "" where some could.

    `seeds` says how many runs each arm has there, `left_out` why an arm has none. A claim that stays "not attempted" whatever is
    measured has an obstacle; one that is under-powered at worst, or reads measurements that nothing here can make up, has none.
    At "smoke", which decides nothing by its nature, no claim has.
    """
    if claim.exact or budget == "smoke":
        return ""
    for trial in range(TRIALS):
        known = Known(budget, _supposed(claim, seeds, random.Random(trial)), left_out=left_out)
        try:
            if known.records and _comes_to_a_verdict(claim.rule, known.evidence(claim.arms)):
                return ""
        except Exception:  # the rule asks for what only a run can show
            return ""
    return outcome_of(claim, known).why


def _comes_to_a_verdict(rule: Rule, evidence: Evidence) -> bool:
    """Whether a rule is more than "not attempted"; one of several parts is if any of them is, since that one could refute it."""
    if isinstance(rule, ByBudget):
        return _comes_to_a_verdict(rule.at(evidence.budget), evidence)
    if isinstance(rule, AllOf):
        return any(_comes_to_a_verdict(part, evidence) for part in rule.rules)
    verdict = rule(evidence).verdict
    return verdict == "refuted" or (verdict != "not attempted" and not isinstance(rule, Exact))


def _supposed(claim: Claim, seeds: Mapping[str, int], draws: random.Random) -> list[Record]:
    """Runs of the arms in which every measure has a value of whatever size, the same in all seeds of an arm."""
    found = []
    for name in claim.arms:
        value = 10 ** draws.uniform(LEAST, MOST)
        curve = [(100 * place, value) for place in range(1, POINTS + 1)]
        measured = _Everything(value), _Everything(curve), _Everything(None)
        found += [Record(name, seed, *measured) for seed in range(seeds.get(name, 0))]
    return found


class _Everything(Mapping[str, Any]):
    """Has whatever is asked for: the one value that is given, or none that could be made up."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __getitem__(self, name: str) -> Any:
        if self._value is None:
            raise LookupError(name)
        return self._value

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0
