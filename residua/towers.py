"""Chains and parallel towers of layers, written as the figures of the Inception papers write them. Layer 1.

A chain is a text of steps, "1x1 64, 3x3 96, 3x3 96 /2 V":

    3x3 96          convolution with a kernel of height x width and 96 maps, its normalisation, ReLU
    max 3x3         max pooling; "avg 3x3" average pooling
    ... /2          at stride 2 (else 1)
    ... V           without padding ("valid"; else the size is kept at stride 1)
    a 8 | b 8       at the end of a chain: both on the same input, concatenated

Parallel towers are a tuple of chains: ("1x1 64", "1x1 96, 3x3 128", "max 3x3, 1x1 32").
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from residua.layers import Towers, conv_norm_act

__all__ = ["at_full_size", "chain", "series", "towers", "with_width"]

_STEP = re.compile(r"(?:(max|avg) )?(\d+)x(\d+)(?: (\d+))?( /2)?( V)?")


def chain(
    in_channels: int, steps: str, *, normalization: str = "batch", eps: float = 1e-3, count_padding: bool = False
) -> tuple[nn.Sequential, int]:
    """The layers of one chain and the number of maps that they give.

    `normalization` and `eps` are those of `residua.layers.norm`; `count_padding` says whether an average at the border counts
    the padding as zeros.
    """
    layers, channels = nn.Sequential(), in_channels
    *single, last = steps.split(", ")
    for place, step in enumerate([*single, *([] if "|" in last else [last])], 1):
        layer, channels = _step(channels, step, normalization, eps, count_padding)
        layers.add_module(f"step{place}", layer)
    if "|" in last:
        split, channels = towers(channels, last.split(" | "), normalization=normalization, eps=eps, count_padding=count_padding)
        layers.add_module("split", split)
    return layers, channels


def towers(
    in_channels: int, chains: Iterable[str], *, normalization: str = "batch", eps: float = 1e-3, count_padding: bool = False
) -> tuple[Towers, int]:
    """Parallel towers, one a chain, and the number of maps that they give together; the options are those of `chain`."""
    built = [chain(in_channels, steps, normalization=normalization, eps=eps, count_padding=count_padding) for steps in chains]
    return Towers(*(tower for tower, _ in built)), sum(channels for _, channels in built)


def series(
    in_channels: int,
    parts: Iterable[str | tuple[str, ...]],
    *,
    normalization: str = "batch",
    eps: float = 1e-3,
    count_padding: bool = False,
) -> tuple[list[nn.Module], int]:
    """Chains (texts) and parallel towers (tuples) one after another, and the number of maps of the last."""
    built: list[nn.Module] = []
    channels = in_channels
    for part in parts:
        module: nn.Module
        if isinstance(part, str):
            module, channels = chain(channels, part, normalization=normalization, eps=eps, count_padding=count_padding)
        else:
            module, channels = towers(channels, part, normalization=normalization, eps=eps, count_padding=count_padding)
        built.append(module)
    return built, channels


def at_full_size(part: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """The same layers at stride 1 and with padding; a pooling is left out where other steps remain.

    It makes of a stem for large images one for small images, with weights of the same shapes.
    """
    if isinstance(part, tuple):
        return tuple(str(at_full_size(steps)) for steps in part)
    steps = part.replace(" /2", "").replace(" V", "").split(", ")
    return ", ".join([step for step in steps if not step.startswith("max")] or steps)


def with_width(part: str | tuple[str, ...], width: float) -> str | tuple[str, ...]:
    """The same layers with `width` times as many maps, rounded and at least 1."""
    if isinstance(part, tuple):
        return tuple(str(with_width(steps, width)) for steps in part)
    return re.sub(r"(?<=x)(\d+) (\d+)", lambda found: f"{found[1]} {max(1, round(width * int(found[2])))}", part)


def _step(channels: int, step: str, normalization: str, eps: float, count_padding: bool) -> tuple[nn.Module, int]:
    found = _STEP.fullmatch(step)
    assert found is not None, step
    pooling, height, width, maps = found[1], int(found[2]), int(found[3]), found[4]
    stride, pad = 2 if found[5] else 1, not found[6]
    padding = (height // 2, width // 2) if pad else 0
    if pooling == "max":
        return nn.MaxPool2d((height, width), stride, padding), channels
    if pooling == "avg":
        return nn.AvgPool2d((height, width), stride, padding, count_include_pad=count_padding), channels
    out_channels = int(maps)
    layer = conv_norm_act(channels, out_channels, (height, width), stride, pad=pad, normalization=normalization, eps=eps)
    return layer, out_channels
