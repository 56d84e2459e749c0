"""Densely connected networks (Huang et al. 2016, "Densely Connected Convolutional Networks": DenseNet).

    x_{l+1} = [x_l, H(x_l)]            H: norm-ReLU-3x3 to k maps, k the growth;  so x_l = [x_0, H_1, ..., H_{l-1}] in a block
                                       DenseNet-B: norm-ReLU-1x1 to 4k maps, norm-ReLU-3x3 to k maps

The merge is concatenation. Between two blocks, at the beginning of a stage, stands a transition: norm-ReLU-1x1, 2x2 average
pooling; its 1x1 multiplies the number of maps by the compression theta (DenseNet-C: 0.5; BC: both). A norm-ReLU ends the last
stage. Dropout follows every convolution but the first (section 4.2, "Training").

`light=True` is the memory-light mode (Pleiss et al. 2017, "Memory-Efficient Implementation of DenseNets"): in training the maps
of a block go from unit to unit in parts, and a unit's concatenation and first norm-ReLU are computed again in the backward
pass, so that what is kept grows linearly with a block's length. Weights, outputs, gradients and statistics are those of the
ordinary mode. Compiled, both modes are the same network: then the compiler chooses what to keep.

Departures from the paper: it prints the transition as norm, 1x1, pooling; the ReLU between is the authors' code's (and all
re-implementations'). The 3x3 stem of the CIFAR networks has no norm-ReLU, as in the authors' code. densenet161 (k = 48) and the
wide BC networks with 40 layers are the authors' repository's. DenseNet-264 of Table 1 has 265 layers by the count that gives all
other names. Initialisation: `residua.layers.he_normal_`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from residua.errors import RequestError
from residua.layers import activation, conv, he_normal_, norm, sequence
from residua.models.resnet import STEMS
from residua.network import Head, Network, Stage, recomputed
from residua.published import Published
from residua.unit import Concat, Unit

__all__ = [
    "densenet_40_12", "densenet_100_12", "densenet_100_24",
    "densenet_bc_100_12", "densenet_bc_250_24", "densenet_bc_190_40",
    "densenet_bc_40_36", "densenet_bc_40_48", "densenet_bc_40_60",
    "densenet121", "densenet169", "densenet201", "densenet264", "densenet161",
    "cifar_densenet", "imagenet_densenet",
]  # fmt: skip

UNITS = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32), 264: (6, 12, 64, 48), 161: (6, 12, 36, 24)}


def imagenet_densenet(
    depth: int,
    *,
    growth: int | None = None,
    compression: float = 0.5,
    num_classes: int = 1000,
    in_channels: int = 3,
    dropout: float = 0.0,
    light: bool = False,
    stem: str = "imagenet",
    normalization: str = "batch",
) -> Network:
    """Table 1: 121, 169, 201, 264 or 161 layers in four blocks of bottlenecks, behind a stem of 2k maps.

    `growth` is k, by default 32 and, with 161 layers, 48; `compression` theta in (0, 1]; `dropout` a probability in [0, 1);
    `light` the memory-light mode; `stem` "imagenet" or "small"; `normalization` "batch", "group" or "none".
    """
    if depth not in UNITS:
        raise RequestError(f"The ImageNet DenseNets have {', '.join(map(str, UNITS))} layers, not {depth}.")
    if stem not in STEMS:
        raise RequestError(f"stem {stem!r} is none of {', '.join(map(repr, STEMS))}.")
    growth = growth if growth is not None else 48 if depth == 161 else 32
    _check(growth, compression, dropout, normalization)
    make_stem, reduction = STEMS[stem]
    return _network(
        make_stem(in_channels, 2 * growth, normalization=normalization), reduction, 2 * growth, UNITS[depth], growth,
        bottleneck=True, compression=compression, num_classes=num_classes, dropout=dropout, light=light,
        normalization=normalization,
    )  # fmt: skip


def cifar_densenet(
    depth: int,
    *,
    growth: int = 12,
    bottleneck: bool = False,
    compression: float = 1.0,
    num_classes: int = 10,
    in_channels: int = 3,
    dropout: float = 0.0,
    light: bool = False,
    normalization: str = "batch",
) -> Network:
    """Section 3: three blocks of n units, depth = 3n + 4 layers, or 6n + 4 with bottlenecks.

    The 3x3 stem has 16 maps, or 2k in the BC form, that is with `bottleneck` and a `compression` below 1. The other options
    are those of `imagenet_densenet`.
    """
    step = 6 if bottleneck else 3
    if not isinstance(depth, int) or depth < 4 + step or depth % step != 4 % step:
        below = max(4 + step, (int(depth) - 4) // step * step + 4)
        raise RequestError(
            f"The CIFAR DenseNets {'with' if bottleneck else 'without'} bottlenecks have {step}n + 4 layers, not {depth}; "
            f"nearest: {below} and {below + step}."
        )
    _check(growth, compression, dropout, normalization)
    channels = 2 * growth if bottleneck and compression < 1 else 16
    return _network(
        sequence(conv=conv(in_channels, channels, 3, bias=normalization == "none")), 1, channels, ((depth - 4) // step,) * 3,
        growth, bottleneck=bottleneck, compression=compression, num_classes=num_classes, dropout=dropout, light=light,
        normalization=normalization,
    )  # fmt: skip


class Recomputed(nn.Sequential):
    """A branch on maps in parts; in training its concatenation and its layers up to the first convolution run again backward."""

    chain_in_evaluation = True  # on a single map it is then an ordinary chain of its layers
    norm1: nn.Module
    act1: nn.Module
    conv1: nn.Module

    def forward(self, x: Tensor | tuple[Tensor, ...]) -> Tensor:
        maps = x if isinstance(x, tuple) else (x,)
        if self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            y = recomputed(self._first, self.norm1, *maps)
        else:
            y = self._first(*maps)
        for layer in list(self)[3:]:
            y = layer(y)
        return y

    def _first(self, *maps: Tensor) -> Tensor:
        """The convolution itself is not run again: the backward pass needs its input only."""
        return self.conv1(self.act1(self.norm1(_joined(maps))))


class Deferred(Concat):
    """[h, F] in parts: in training a tuple of maps, which the block's last unit (`last`) joins; in evaluation Concat."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last = last

    def forward(self, h: Any, f: Tensor) -> Any:
        maps = (*h, f) if isinstance(h, tuple) else (h, f)
        return maps if self.training and not self.last else _joined(maps)

    def extra_repr(self) -> str:
        return f"last={self.last}"


def _joined(maps: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(maps), dim=1) if len(maps) > 1 else maps[0]


def _check(growth: int, compression: float, dropout: float, normalization: str) -> None:
    if not isinstance(growth, int) or growth < 1:
        raise RequestError(f"growth must be a whole number of at least 1, not {growth!r}.")
    if not 0 < compression <= 1:
        raise RequestError(f"compression is a factor above 0 and at most 1, not {compression}.")
    if not 0 <= dropout < 1:
        raise RequestError(f"dropout is a probability in [0, 1), not {dropout}.")
    if normalization not in ("batch", "group", "none"):
        raise RequestError(f"normalization {normalization!r} is none of 'batch', 'group', 'none'.")


def _network(
    stem: nn.Module,
    reduction: int,
    channels: int,
    units: Sequence[int],
    growth: int,
    *,
    bottleneck: bool,
    compression: float,
    num_classes: int,
    dropout: float,
    light: bool,
    normalization: str,
) -> Network:
    """Blocks of `units[i]` units behind a stem of `channels` maps; every block but the first stands behind a transition."""
    stages, features = [], []
    for index, count in enumerate(units):
        stage = Stage()
        if index:
            narrowed = int(channels * compression)
            if narrowed < 1:
                raise RequestError(f"compression {compression} leaves none of {channels} maps.")
            stage.append(_transition(channels, narrowed, dropout, normalization))
            channels = narrowed
        for position in range(count):
            branch = Recomputed() if light else nn.Sequential()
            _fill(branch, channels, growth, bottleneck, dropout, normalization)
            merge = Deferred(position == count - 1) if light else Concat()
            stage.append(Unit(branch, nn.Identity(), merge))
            channels += growth
        stages.append(stage)
        features.append(channels)
    stages[-1].append(sequence(norm=norm(channels, kind=normalization), act=activation()))
    network = Network(
        stem,
        stages,
        Head(channels, num_classes),
        feature_channels=features,
        feature_reductions=[reduction * 2**index for index in range(len(units))],
    )
    he_normal_(network)
    return network


def _fill(branch: nn.Sequential, in_channels: int, growth: int, bottleneck: bool, dropout: float, normalization: str) -> None:
    """The layers of H."""
    shapes = [(in_channels, 4 * growth, 1), (4 * growth, growth, 3)] if bottleneck else [(in_channels, growth, 3)]
    for place, (fan_in, fan_out, kernel) in enumerate(shapes, start=1):
        branch.add_module(f"norm{place}", norm(fan_in, kind=normalization))
        branch.add_module(f"act{place}", activation())
        branch.add_module(f"conv{place}", conv(fan_in, fan_out, kernel, bias=normalization == "none"))
        if dropout:
            branch.add_module(f"drop{place}", nn.Dropout(dropout))


def _transition(in_channels: int, out_channels: int, dropout: float, normalization: str) -> nn.Sequential:
    layers = sequence(
        norm=norm(in_channels, kind=normalization),
        act=activation(),
        conv=conv(in_channels, out_channels, 1, bias=normalization == "none"),
    )
    if dropout:
        layers.add_module("drop", nn.Dropout(dropout))
    layers.add_module("pool", nn.AvgPool2d(2))
    return layers


def _imagenet(depth: int, table: str, parameters: int, multiply_adds: int) -> Published:
    """The least side leaves one position of the last map: the stem divides by 4 and rounds up, each transition rounds down."""
    return Published(
        imagenet_densenet, {"depth": depth}, "densenet", table, depth, parameters, multiply_adds, (3, 224, 224), least_side=29
    )


def _cifar(depth: int, growth: int, parameters: int, multiply_adds: int, *, bc: bool, table: str = "Table 2") -> Published:
    arguments = {"depth": depth, "growth": growth, "bottleneck": bc, "compression": 0.5 if bc else 1.0}
    return Published(cifar_densenet, arguments, "densenet", table, depth, parameters, multiply_adds, (3, 32, 32), least_side=4)


densenet_40_12 = _cifar(40, 12, 1_019_722, 264_812_928, bc=False)
densenet_100_12 = _cifar(100, 12, 6_979_642, 1_769_516_448, bc=False)
densenet_100_24 = _cifar(100, 24, 27_249_082, 6_889_347_744, bc=False)
densenet_bc_100_12 = _cifar(100, 12, 769_162, 287_929_692, bc=True)
densenet_bc_250_24 = _cifar(250, 24, 15_324_406, 5_418_785_724, bc=True)
densenet_bc_190_40 = _cifar(190, 40, 25_624_430, 9_301_945_740, bc=True)
densenet_bc_40_36 = _cifar(40, 36, 1_542_682, 647_298_936, bc=True, table="the authors' repository")
densenet_bc_40_48 = _cifar(40, 48, 2_733_130, 1_149_867_168, bc=True, table="the authors' repository")
densenet_bc_40_60 = _cifar(40, 60, 4_261_690, 1_795_836_360, bc=True, table="the authors' repository")
densenet121 = _imagenet(121, "Table 1", 7_978_856, 2_834_161_664)
densenet169 = _imagenet(169, "Table 1", 14_149_480, 3_359_843_328)
densenet201 = _imagenet(201, "Table 1", 20_013_928, 4_291_365_888)
densenet264 = _imagenet(264, "Table 1", 33_337_704, 5_751_653_376)
densenet161 = _imagenet(161, "the authors' repository", 28_681_000, 7_727_907_072)
