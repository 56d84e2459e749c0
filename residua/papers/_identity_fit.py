"""A small fit that asks when the residual form helps: targets between zero and the identity (he2015, section 3.1). Layer 4.

Three fully connected units of two layers, h <- W_2 ReLU(W_1 h), with or without "+ h", are fitted to T(x) = t x + 0.3 g(x),
where g is a random bounded function and t goes from 0 (the target is near zero) to 1 (near the identity). Full batches,
gradient descent with momentum, weights drawn as He et al. 2015b; each form has the best of a grid of rates, by the error on
other points.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from residua import keyed
from residua.claims import Evidence, Outcome, not_attempted
from residua.papers._contrasts import weighed

__all__ = ["NEARNESS", "identity_fit", "rises_with_nearness"]

NEARNESS = {"zero": 0.0, "quarter": 0.25, "half": 0.5, "three_quarters": 0.75, "identity": 1.0}
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
WIDTH, UNITS, POINTS, STEPS = 16, 3, 512, 400
WORST = 1e6  # of a fit that diverged
LEAST = 0.3  # log10: a factor of 2 in the error that is left


def identity_fit(seed: int, budget: str) -> dict[str, dict[str, float]]:
    """By target: the mean square errors "plain" and "residual", and "advantage", log10 of plain over residual."""
    generator = torch.Generator().manual_seed(keyed.generator_seed(seed, "identity fit"))
    bend = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64) / WIDTH**0.5
    x = torch.randn(2, POINTS, WIDTH, generator=generator, dtype=torch.float64)
    away = torch.tanh(2 * x @ bend)
    first = torch.randn(UNITS, 2, WIDTH, WIDTH, generator=generator, dtype=torch.float64) * (2 / WIDTH) ** 0.5
    steps = STEPS // 20 if budget == "smoke" else STEPS
    plain, residual = (_fitted(first, x, away, steps, skip) for skip in (False, True))
    parts = {"plain": plain, "residual": residual, "advantage": (plain / residual).log10()}
    return {name: dict(zip(NEARNESS, values.tolist())) for name, values in parts.items()}


def _fitted(first: Tensor, x: Tensor, away: Tensor, steps: int, skip: bool) -> Tensor:
    """The least error on the second half of the points over the rates, for each target: [targets]."""
    shares = torch.tensor(list(NEARNESS.values()), dtype=x.dtype).repeat_interleave(len(RATES))[:, None, None]
    rates = torch.tensor(RATES, dtype=x.dtype).repeat(len(NEARNESS))[:, None, None]
    targets = [shares * x[half] + 0.3 * away[half] for half in (0, 1)]
    weights = [w.expand(len(shares), -1, -1).clone().requires_grad_() for w in first.flatten(0, 1)]
    momenta = [torch.zeros_like(w) for w in weights]
    for _ in range(steps):
        errors = (_network(weights, x[0], skip) - targets[0]).square().mean((1, 2))
        gradients = torch.autograd.grad(errors.sum(), weights)
        with torch.no_grad():
            for weight, momentum, gradient in zip(weights, momenta, gradients):
                momentum.mul_(0.9).add_(gradient * WIDTH)
                weight.sub_(rates * momentum)
    with torch.no_grad():
        left = (_network(weights, x[1], skip) - targets[1]).square().mean((1, 2))
    return left.nan_to_num(nan=WORST).clamp(1e-12, WORST).view(len(NEARNESS), len(RATES)).amin(1)


def _network(weights: list[Tensor], x: Tensor, skip: bool) -> Tensor:
    h = x.expand(len(weights[0]), -1, -1)
    for first, second in zip(weights[::2], weights[1::2]):
        f = torch.relu(h @ first) @ second
        h = h + f if skip else f
    return h


def rises_with_nearness(evidence: Evidence) -> Outcome:
    """identity_target_helps: the advantage at the identity over that near zero, and the order between them."""
    found = {name: evidence.values("identity-fit", f"advantage.{name}") for name in NEARNESS}
    if not all(found.values()):
        return not_attempted("The fit has not been made yet.")
    ends = weighed([(1.0, found["identity"]), (-1.0, found["zero"])])
    means = [sum(values) / len(values) for values in found.values()]
    rising = all(a < b for a, b in pairwise(means))
    listed = ", ".join(f"t = {t:g} {mean:+.2f}" for t, mean in zip(NEARNESS.values(), means))
    why = f"Advantage of the residual form (log10 of the ratio of errors): {listed}. {ends.words('The ends differ by')}"
    numbers = {"advantage": found, **ends.numbers(), "rising": rising}
    if ends.high < LEAST and not ends.single:
        return Outcome("refuted", why, numbers)
    if ends.low > 0 and ends.value >= LEAST and rising and not ends.single:
        return Outcome("shown", why, numbers)
    return Outcome("under-powered", why if rising else f"{why} The means do not rise throughout.", numbers)
