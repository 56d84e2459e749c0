"""Fully connected residual networks (He et al. 2015, section 3.2).

    y = F(x, {W_i}) + x           (equation 1; two layers: F = W_2 s(W_1 x), s the ReLU)
    y = F(x, {W_i}) + W_s x       (equation 2)

and s(y) is what the next unit gets. W_s is rectangular where the width changes; where it does not, it may be a square matrix. The
paper prints no fully connected network: there are no published entries here, only the builder.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from residua.errors import RequestError
from residua.layers import activation, he_normal_, norm, sequence
from residua.network import Head, Network, Stage
from residua.shortcuts import ZeroPad
from residua.unit import Unit

__all__ = ["residual_mlp"]


def residual_mlp(
    *,
    widths: Sequence[int] = (64,),
    units: Sequence[int] = (8,),
    layers: int = 2,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    plain: bool = False,
    shortcut: str = "B",
    normalization: str = "none",
) -> Network:
    """A plain layer on all pixels, then `units[i]` units of `layers` layers of `widths[i]` in stage i, and a classifier.

    `shortcut` where the width changes: "A" (zero padding; widths may only grow) or "B" (a rectangular W_s), the identity
    elsewhere; "C" has a W_s everywhere, square where the width stays. `plain` has none. `normalization` follows every layer
    ("none" as in the equations, "batch" or "group"), ReLU every layer but a unit's last, where it follows the addition. With
    one layer F = W_1 x is linear, and the paper sees no advantage. It takes square images of side `image_size` only.
    """
    _check(widths, units, layers, image_size, shortcut, normalization)
    shortcut = "plain" if plain else shortcut
    stages, features = [], widths[0]
    for width, count in zip(widths, units):
        stage = Stage()
        for _ in range(count):
            stage.append(_unit(features, width, layers, shortcut, normalization))
            features = width
        stages.append(stage)
    network = Network(
        sequence(
            flatten=nn.Flatten(),
            layer=nn.Linear(in_channels * image_size**2, widths[0]),
            norm=norm(widths[0], kind=normalization, dims=1),
            act=activation(),
        ),
        stages,
        Head(features, num_classes),
        feature_channels=list(widths),
        feature_reductions=[image_size] * len(widths),
    )
    he_normal_(network)
    return network


def _unit(features: int, width: int, layers: int, shortcut: str, normalization: str) -> Unit:
    branch = nn.Sequential()
    for index in range(layers):
        if index:
            branch.add_module(f"act{index}", activation())
        branch.add_module(f"layer{index + 1}", nn.Linear(width if index else features, width))
        branch.add_module(f"norm{index + 1}", norm(width, kind=normalization, dims=1))
    if shortcut == "plain":
        return Unit(branch, post=activation())
    if shortcut == "C" or (shortcut == "B" and features != width):
        return Unit(branch, nn.Linear(features, width, bias=False), post=activation())
    return Unit(branch, ZeroPad(features, width, 1) if features != width else nn.Identity(), post=activation())


def _check(widths: Sequence[int], units: Sequence[int], layers: int, image_size: int, shortcut: str, normalization: str) -> None:
    for name, values in (("widths", widths), ("units", units), ("layers", [layers]), ("image_size", [image_size])):
        if not isinstance(values, (list, tuple)) or not values or not all(isinstance(v, int) and v >= 1 for v in values):
            raise RequestError(f"{name} of a fully connected residual network must be at least 1 each, not {values!r}.")
    if len(widths) != len(units):
        raise RequestError(f"widths and units describe the same stages, but {widths!r} and {units!r} differ in number.")
    if shortcut not in ("A", "B", "C"):
        raise RequestError(f"shortcut {shortcut!r} is none of 'A', 'B', 'C'.")
    if normalization not in ("none", "batch", "group"):
        raise RequestError(f"normalization {normalization!r} is none of 'none', 'batch', 'group'.")
    if shortcut == "A" and list(widths) != sorted(widths):
        raise RequestError(f"Zero padding (shortcut 'A') cannot make a signal narrower: widths {widths!r} must not fall.")
