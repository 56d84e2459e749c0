"""What the small budget asks for: another rule than at full, or the reason why a small form has no meaning. Layer 4."""

from __future__ import annotations

from typing import Any

from residua.claims import Evidence, Measured, Outcome, Rule

__all__ = ["by_budget", "unavailable"]

IMAGENET = "it needs ImageNet, and some days of eight GPUs"
LENGTH = "a training of some epochs does not see it"


def unavailable(reason: str) -> dict[str, Any]:
    """The `small` (or `smoke`) of an arm that has none."""
    return {"unavailable": reason}


def by_budget(full: Rule, small: Rule, because: str) -> Measured:
    """`full` decides at the full budget, `small` at the others; `because` says why they differ."""

    def decide(evidence: Evidence) -> Outcome:
        return (full if evidence.budget == "full" else small)(evidence)

    return Measured(f"At the full budget: {full.text} At the small one ({because}): {small.text}", decide)
