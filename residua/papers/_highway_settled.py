"""What structure settles of highway networks: the two limits of the gate, and the number of parameters. Layer 4."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from residua.claims import Outcome
from residua.papers._settled import images, in_float64, on_meta, settled
from residua.unit import Gate, walk

LIMITS = (
    "A highway net of 12 layers (width 20) in float64 with all gate biases at -800 and at +800, where the sigmoid is 0 "
    "and 1: the "
    "units give their input and the Jacobian is the identity in the first case, the plain layers' outputs and Jacobian "
    "in the "
    "second, exactly."
)


def limits() -> Outcome:
    worst = {}
    for state, value in (("closed", -800.0), ("open", 800.0)):
        network = in_float64("highway", depth=12, width=20, image_size=4)
        units = [found.unit for found in walk(network)]
        for unit in units:
            assert isinstance(unit.merge, Gate)
            nn.init.constant_(unit.merge.transform.get_parameter("bias"), value)
        chain = nn.Sequential(*units)
        plain = nn.Identity() if state == "closed" else nn.Sequential(*(unit.branch for unit in units))
        x = images(1, 1, 4, "gates").flatten(1).repeat(1, 2)[:, :20].abs()
        worst[state] = max(
            float((chain(x) - plain(x)).detach().abs().max()), float((_jacobian(chain, x) - _jacobian(plain, x)).abs().max())
        )
    said = f"closed {worst['closed']:.1e}, open {worst['open']:.1e}"
    return settled(max(worst.values()) == 0.0, f"The largest difference over 11 units: {said}.", **worst)


def _jacobian(model: nn.Module, x: Tensor) -> Tensor:
    jacobian = torch.autograd.functional.jacobian(model, x)
    assert isinstance(jacobian, Tensor)
    return jacobian.reshape(x.numel(), x.numel())


SIZES = (
    "A highway unit of width 50 has exactly twice the parameters of a plain layer of width 50; the plain layer of "
    "width 71 has as many "
    "to 1 %."
)


def sizes() -> Outcome:
    nets = [on_meta(name) for name in ("highway_10", "highway_plain_10")]
    gated, wide = (sum(p.numel() for p in next(iter(walk(net))).unit.parameters()) for net in nets)
    same = 50 * 50 + 50
    holds = gated == 2 * same and abs(gated / wide - 1) < 0.01
    return settled(
        holds, f"{gated:,} in a unit, {same:,} in a layer of width 50, {wide:,} in one of width 71.", sizes=[gated, same, wide]
    )


def units() -> dict[str, nn.Module]:
    """A highway unit and its plain counterpart."""
    titles = {"highway_10": "A highway unit", "highway_plain_10": "A plain layer"}
    return {title: next(iter(walk(on_meta(name)))).unit for name, title in titles.items()}
