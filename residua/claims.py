"""A paper as data: its arms (networks trained by recipes), what is measured on them, its items and its claims. Layer 3.

    an arm       one network trained by one recipe; with a seed and a budget it is a run, shared by all that name the arm
    an item      a table or figure of the paper: rows of measured beside printed numbers, drawings
    a claim      a statement of the paper and the rule that decides it, written before any run

A paper is one file in residua/papers/ with a TOML file of its printed numbers beside it (`residua.printed`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from residua.analysis import Budget, Drawing, Subject
from residua.evidence import Evidence, Outcome, Record, Verdict, not_attempted
from residua.orders import Equal, Lower, Ordered
from residua.recipe import Recipe
from residua.rules import AllOf, Exact, Fails, Measured, NotAttempted, Rule, Works

__all__ = [
    "AllOf", "Arm", "Claim", "Drawing", "Ensemble", "Equal", "Evidence", "Exact", "Fails", "Item", "Lower", "Measured",
    "Measurement", "NotAttempted", "Ordered", "Outcome", "Paper", "Probe", "Record",
    "Row", "Rule", "Verdict", "Works", "not_attempted",
]  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One network trained by one recipe.

    `name` is unique within all papers, such as "plain56" or "preact_resnet110-cifar100". `recipe` is the paper's protocol to the
    letter (budget "full"). `effect` says what the small budget must see: "gross" (fails or works: 2,000 updates, one seed) or
    "order" (which is better: 6 epochs, three seeds). `small` and `smoke` are changes of the recipe's fields, by dotted name, at
    those budgets, beyond length and seeds (a length among them replaces the usual one); {"unavailable": reason} where a small
    form has no meaning. `small_seeds` and `full_seeds`: how many seeds (0: by `effect`). `stand_in` says how the small form
    departs from the protocol beyond its length, such as "digits stand for MNIST". `protocols` are those of evaluation by which
    the paper tests the network beyond the centre crop ("ten-crop", "dense", "dense@256"): they are measured at full. `departs`
    says how `recipe` and `protocols` depart from the paper all the same, and why.
    """

    name: str
    recipe: Recipe
    effect: Literal["gross", "order"] = "order"
    small: Mapping[str, Any] = field(default_factory=dict)
    full_seeds: int = 1
    stand_in: str = ""
    smoke: Mapping[str, Any] = field(default_factory=dict)
    small_seeds: int = 0
    protocols: tuple[str, ...] = ()
    departs: str = ""


@dataclass(frozen=True)
class Ensemble:
    """Arms whose probabilities are averaged, named and used like an arm; each seed combines the members' runs of that seed.
    `protocol`: "center", "ten-crop" or "dense" (`residua.evaluation`). Its measures: "test_error", "top5_error", "test_loss".
    `departs` says how it departs from the paper's at any budget, and why."""

    name: str
    members: tuple[str, ...]
    protocol: str = "center"
    departs: str = ""


@dataclass(frozen=True)
class Probe:
    """A small computation that is no training of a network in the catalogue, named and used like an arm.

    `measure(seed, budget)` gives its measures by name, plain numbers, or nested plain values that dotted paths reach; it takes
    seconds, is a pure function of the seed but for times, and draws from no global generator. `version` rises when what it
    computes changes. `seeds` by budget (default: 1 at smoke, 3 else). `timed` says that its measures are times: they speak of the
    processor that they were taken on, and decide nothing on another.
    """

    name: str
    measure: Callable[[int, str], Mapping[str, Any]]
    about: str = ""
    version: int = 1
    seeds: int = 3
    timed: bool = False


@dataclass(frozen=True)
class Measurement:
    """What is measured on a finished run beyond its metrics, where the analyses of the catalogue do not give it.

    `measure(subject, budget)` is that of an `Analysis`: plain JSON values of the run's network with the test images, within the
    seconds of the budget; `subject.run` is the run. `version` rises when what it measures changes.
    """

    name: str
    measure: Callable[[Subject, Budget], dict[str, Any]]
    version: int = 1


@dataclass(frozen=True)
class Row:
    """One number of a table: an arm's measure beside the printed one, "table/row/column" of the TOML ("": not printed). `full` is
    the measure at the budget full, where the paper's protocol is another one than below it ("": the same)."""

    arm: str
    measure: str = "test_error"
    published: str = ""
    label: str = ""
    full: str = ""

    def measure_at(self, budget: str) -> str:
        """What is measured at a budget."""
        return (budget == "full" and self.full) or self.measure


@dataclass(frozen=True)
class Item:
    """A table or figure. `id` is its name within the paper ("fig6", "table1"), `title` its heading. `arms` and `measurements` are
    what it needs; `rows` make its table; `draw` gives its figures from the evidence (of whatever arms have run: those that are
    missing are left out). `claims` stand beside it. `note` says what a reader should know."""

    id: str
    title: str
    arms: tuple[str, ...] = ()
    measurements: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    draw: Callable[[Evidence], Sequence[Drawing]] | None = None
    claims: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """A statement and the rule that decides it. `id` is its name within the paper, that of the TOML's entry; `arms` are the runs,
    ensembles and probes that it needs, `measurements` what is measured on each of the runs: an analysis by name, a protocol of
    evaluation ("ten-crop", "dense"), or a `Measurement` of the paper. `statement` replaces the TOML's.

    `stands_in` says what the evidence departs in from what is claimed; `amended` what of the rule was changed after some of its
    runs had been made, and what it decided before; `too_short` why the length of budget small need not show the effect, so that
    a refutation there is of this length only.
    """

    id: str
    rule: Rule
    arms: tuple[str, ...] = ()
    measurements: tuple[str, ...] = ()
    statement: str = ""
    stands_in: str = ""
    amended: str = ""
    too_short: str = ""

    @property
    def exact(self) -> bool:
        """Whether it is decided without runs."""
        return isinstance(self.rule, Exact)

    def decide(self, evidence: Evidence) -> Outcome:
        """What the rule decides. At budget "smoke" only what needs no run is decided; the rule is applied all the same."""
        if self.arms and not evidence.records and not isinstance(self.rule, (Exact, NotAttempted)):
            return not_attempted("None of its runs has been made yet.")
        outcome = self.rule(evidence)
        if evidence.budget == "smoke" and not self.exact and outcome.verdict != "not attempted":
            why = "The smoke budget proves that the machinery works and decides nothing."
            return Outcome("not attempted", why, outcome.numbers)
        return outcome


@dataclass(frozen=True)
class Paper:
    """One paper. `arms` of other papers may be named without being listed again."""

    key: str
    arms: tuple[Arm | Ensemble | Probe, ...] = ()
    items: tuple[Item, ...] = ()
    claims: tuple[Claim, ...] = ()
    measurements: tuple[Measurement, ...] = ()
