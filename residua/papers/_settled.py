"""What structure and arithmetic settle: networks built without memory, counts beside printed ones. Layer 4."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from residua import cost, keyed
from residua.census import Census, census
from residua.evidence import Outcome
from residua.graph import capture
from residua.models import create_model, outlined
from residua.network import Network
from residua.printed import published

__all__ = ["counts_printed", "in_float64", "multiply_adds", "on_meta", "parameters", "settled", "skips_of"]

Built = tuple[str, Mapping[str, Any]]


def settled(holds: bool, why: str, **numbers: Any) -> Outcome:
    """The outcome of a claim that nothing is left to chance in."""
    return Outcome("shown" if holds else "refuted", why, numbers)


def on_meta(name: str, **options: Any) -> Network:
    """A network of the catalogue with shapes and no values."""
    return outlined(name, **options)


def parameters(name: str, **options: Any) -> int:
    """Its parameters, exactly."""
    return cost.num_parameters(on_meta(name, **options))


def multiply_adds(name: str, side: int, **options: Any) -> int:
    """Its multiply-adds for one colour image of `side` pixels."""
    return cost.multiply_adds(on_meta(name, **options), (3, side, side))


def in_float64(name: str, **options: Any) -> Network:
    """A network with reproducible values in float64, in evaluation mode. Its running statistics are no longer those of a fresh
    network, so that a normalisation that was left out or doubled shows. The global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed.generator_seed(0, "papers", name))
        network = create_model(name, **options).double().eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(std=0.3)
    return network


def images(count: int, channels: int, side: int, *keys: int | str) -> Tensor:
    """float64 [count, channels, side, side] from a standard normal distribution, the same for the same keys."""
    generator = torch.Generator().manual_seed(keyed.generator_seed(0, "papers", *keys))
    return torch.randn(count, channels, side, side, generator=generator, dtype=torch.float64)


def skips_of(name: str, channels: int, side: int, **options: Any) -> Census:
    """The census of a network of the catalogue: its skips by their structure."""
    network = create_model(name, **options).eval()
    return census(capture(network, torch.zeros(1, channels, side, side)), proof=False)


def counts_printed(key: str, cells: Mapping[str, Built], count: Callable[..., int] = parameters, unit: float = 1e6) -> Outcome:
    """Whether every printed count, "table/row/column" of paper `key`, is that of the network built, rounded as it is printed."""
    rows, wrong = [], []
    for address, (name, options) in cells.items():
        printed = float(published(key).cell(address).value)
        exact = count(name, **options)
        decimals = len(repr(printed).partition(".")[2])
        fits = abs(exact / unit - printed) <= 0.5 * 10**-decimals * (1 + 1e-9)
        rows.append({"cell": address, "printed": printed, "built": exact, "fits": fits})
        if not fits:
            wrong.append(f"{address} prints {printed:g}, built it is {exact / unit:.4g}")
    fitting = len(rows) - len(wrong)
    why = f"{fitting} of {len(rows)} printed counts are those of the networks built" + (
        f"; {'; '.join(wrong)}." if wrong else "."
    )
    return settled(not wrong, why, counts=rows)
