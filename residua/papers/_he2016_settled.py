"""What structure and arithmetic settle of he2016: both identities, equal networks, normalised inputs. Layer 4."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from residua import cost
from residua.claims import Outcome
from residua.models import create_model
from residua.network import Network
from residua.papers._settled import images, in_float64, on_meta, settled
from residua.shortcuts import Gated
from residua.signal_flow import broken_identities
from residua.unit import Unit, walk

__all__ = [
    "backward_one_plus", "forward_sum", "gates_contain_the_identity", "inputs_normalised", "parameters_without_norms",
    "zero_scaling_is_plain",
]  # fmt: skip

DEPTH = 56
ROUNDING = 1e-11


def _broken(key: str, unit: str) -> tuple[float, int]:
    """The largest relative error of an identity ("signal" or "gradient") over all chains of units of one shape; the longest."""
    network = in_float64("preact_cifar_resnet", depth=DEPTH, unit=unit)
    _, chains = broken_identities(network, images(2, 3, 16, "identities"), torch.tensor([1, 7]))
    longest = max(int(chain["last"]) - int(chain["first"]) + 1 for chain in chains)
    return max(float(chain[key]) for chain in chains), longest


def forward_sum() -> Outcome:
    """forward_sum_identity, in a pre-activation network of 56 layers, any weights; the original unit breaks it."""
    return _identity("signal", "x_L - x_l - sum F")


def backward_one_plus() -> Outcome:
    """backward_one_plus, in the same network."""
    return _identity("gradient", "dE/dx_l - dE/dx_L (1 + d/dx_l sum F)")


def _identity(key: str, words: str) -> Outcome:
    error, longest = _broken(key, "full-preactivation")
    other, _ = _broken(key, "original")
    why = f"Over up to {longest} units, {words} is {error:.1e} of the whole in float64; with the original unit {other:.1e}."
    return settled(error < ROUNDING < other, why, preactivation=error, original=other, units=longest)


def zero_scaling_is_plain() -> Outcome:
    """Part of plain_is_scale_zero: the same weights in plain-20 and in the net whose shortcuts are multiplied by zero."""
    plain = in_float64("plain20")
    scaled = in_float64("preact_cifar_resnet", depth=20, unit="constant-scaling", scaling=(0.0, 1.0))
    return _same(plain, scaled, "Plain-20 and the network with shortcuts times 0")


def gates_contain_the_identity() -> Outcome:
    """gated_shortcut_contains_identity: a closed gate, and a 1x1 convolution that copies, give the network of identities."""
    found = {}
    for unit in ("shortcut-only-gating", "conv-shortcut"):
        other = in_float64("preact_cifar_resnet", depth=20, unit=unit)
        original = _without_extras(other, unit)
        found[unit] = _apart(original, other)
    said = {unit: f"less than {ROUNDING:g}" if apart < ROUNDING else f"{apart:.1e}" for unit, apart in found.items()}
    why = f"The largest difference of the outputs: {', '.join(f'{unit} {words}' for unit, words in said.items())}."
    return settled(max(found.values()) < ROUNDING, why, differences=found)


def _without_extras(other: Network, unit: str) -> Network:
    """The network with identity shortcuts and the weights of `other`, whose shortcuts are made to be the identity."""
    original = in_float64("preact_cifar_resnet", depth=20, unit="original", shortcut="C" if unit == "conv-shortcut" else "A")
    for ours, theirs in zip(walk(original), walk(other)):
        h = theirs.unit.shortcut
        if isinstance(h, Gated):
            nn.init.zeros_(h.transform.conv.weight)  # type: ignore[union-attr,arg-type]
            nn.init.constant_(h.transform.conv.bias, -1e3)  # type: ignore[union-attr,arg-type]
        elif isinstance(h, nn.Sequential):
            convolution, norm = h.get_submodule("conv"), h.get_submodule("norm")
            assert isinstance(convolution, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            assert norm.running_var is not None
            if convolution.stride == (1, 1) and convolution.in_channels == convolution.out_channels:
                nn.init.dirac_(convolution.weight)
                norm.weight.data.copy_((norm.running_var + norm.eps).sqrt())
                norm.bias.data.copy_(norm.running_mean)  # type: ignore[arg-type]
                ours.unit.shortcut = nn.Identity()
    state = {path: value for path, value in other.state_dict().items() if path in original.state_dict()}
    missing = original.load_state_dict(state, strict=False).missing_keys
    assert not missing, missing
    return original


def _same(one: Network, other: Network, words: str) -> Outcome:
    other.load_state_dict(one.state_dict())
    apart = _apart(one, other)
    return settled(apart < ROUNDING, f"{words} differ by {apart:.1e} of the largest output.", difference=apart)


def _apart(one: nn.Module, other: nn.Module) -> float:
    x = images(4, 3, 32, "apart")
    with torch.no_grad():
        given, found = one(x), other(x)
    return float((given - found).abs().max() / given.abs().max())


def parameters_without_norms() -> Outcome:
    """param_10_2: parameters of the pre-activation net of 1001 layers with and without normalisations."""
    network = on_meta("preact_resnet1001")
    norms = sum(p.numel() for m in network.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    total = cost.num_parameters(network)
    why = f"{total:,} parameters, {total - norms:,} without normalisations; 10.2 million is the second."
    return settled(round((total - norms) / 1e6, 1) == 10.2 != round(total / 1e6, 1), why, all=total, without=total - norms)


# -------------------------------------------------------------------------------------------------- normalised inputs


def inputs_normalised() -> Outcome:
    """branch_input_normalised: the share of the weight layers in branches whose input is a normalisation followed by ReLU."""
    shares = {unit: _normalised_share(unit) for unit in ("full-preactivation", "relu-only-preactivation", "original")}
    said = ", ".join(f"{unit} {good} of {count}" for unit, (good, count) in shares.items())
    holds = shares["full-preactivation"][0] == shares["full-preactivation"][1]
    holds &= 2 * shares["original"][0] <= shares["original"][1] + 2
    return settled(holds, f"Weight layers in branches that read a normalised signal: {said}.", shares=shares)


def _normalised_share(unit: str) -> tuple[int, int]:
    with torch.random.fork_rng(devices=[]):
        network = create_model("preact_cifar_resnet", depth=DEPTH, unit=unit).train()
    made: dict[int, tuple[nn.Module, Tensor, Tensor]] = {}  # by the number of a tensor: what made it, of what; tensors are held

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not list(module.children()) and output is not inputs[0]:
            made[id(output)] = module, inputs[0], output

    read: list[tuple[nn.Module, Tensor]] = []
    handles = [module.register_forward_hook(note) for module in network.modules() if not isinstance(module, Unit)]
    for located in walk(network):
        for layer in located.unit.branch.modules():
            if isinstance(layer, nn.Conv2d):
                handles.append(layer.register_forward_pre_hook(lambda module, inputs: read.append((module, inputs[0]))))
    with torch.no_grad():
        network(images(4, 3, 16, "inputs").float())
    for handle in handles:
        handle.remove()
    good = 0
    for _, x in read:
        maker = made.get(id(x))
        if maker and isinstance(maker[0], nn.ReLU):
            maker = made.get(id(maker[1]))
        good += maker is not None and isinstance(maker[0], nn.BatchNorm2d)
    return good, len(read)
