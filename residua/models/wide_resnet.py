"""Wide residual networks (Zagoruyko and Komodakis 2016, "Wide Residual Networks").

    x_{l+1} = h(x_l) + F(x_l)            CIFAR: pre-activation, F = B(3,3) = norm-ReLU-3x3, norm-ReLU-(dropout)-3x3
    x_{l+1} = ReLU(h(x_l) + F(x_l))      ImageNet: the units of he2015, wider

WRN-d-k has d layers and k times the width of the thin network. h is the identity, and a 1x1 convolution at a change of shape;
such a unit of the CIFAR networks takes the norm-ReLU that stands before it in the stage, for shortcut and branch alike.

Departures from the paper: none known. What it leaves open: a block of any type reduces the resolution in its first
convolution ("downsampling is performed by the first layers" of Table 1), also where that is a 1x1; dropout stands before every
convolution of a block but the first; weights start by `residua.layers.he_normal_`. wrn_101_2 is not in the paper; it is the
network that the re-implementations added.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from residua import branches, shortcuts
from residua.errors import RequestError
from residua.layers import activation, conv, he_normal_, norm, sequence
from residua.models.resnet import STEMS, UNITS, widened
from residua.network import Head, Network, Stage
from residua.published import Published
from residua.unit import Unit

__all__ = [
    "wrn_40_1", "wrn_40_2", "wrn_40_4", "wrn_40_8", "wrn_40_10",
    "wrn_28_2", "wrn_28_10", "wrn_28_12", "wrn_22_8", "wrn_22_10",
    "wrn_16_4", "wrn_16_8", "wrn_16_10", "wrn_52_1",
    "wrn_18_1_5", "wrn_18_2", "wrn_18_3", "wrn_34_1_5", "wrn_34_2", "wrn_50_2", "wrn_101_2",
    "cifar_wide_resnet", "imagenet_wide_resnet",
]  # fmt: skip


def cifar_wide_resnet(
    depth: int,
    *,
    width: float = 1,
    block: str = "B(3,3)",
    num_classes: int = 10,
    in_channels: int = 3,
    dropout: float = 0.0,
    normalization: str = "batch",
) -> Network:
    """Table 1: a 3x3 convolution to 16 channels, then three stages of N units of width 16k, 32k, 64k with k = `width`.

    `block` is the unit's branch B(M) of section 3, M its kernels: "B(3,3)", "B(3,1)", "B(1,3)", "B(3,1,1)", "B(3,1,3)",
    "B(1,3,1)" or any other list of 1 and 3. N follows from the depth: depth = 6N + 4, which counts two convolutions a unit
    and three 1x1 shortcuts, and which Table 2 keeps for blocks of three convolutions too (its parameter counts say so);
    blocks of l 3x3 convolutions, "B(3)" to "B(3,3,3,3)", have depth = 3 l N + 4 (Table 3: equal sizes).

    `dropout` in [0, 1) is the probability inside the branch (section 2.4); `normalization` "batch", "group" or "none".
    """
    _check_normalization(normalization)
    kernels = _kernels(block)
    layers = len(kernels) if set(kernels) == {3} else 2
    count, rest = divmod(int(depth) - 4, 3 * layers)
    if not isinstance(depth, int) or rest or count < 1:
        step = 3 * layers
        below = 4 + step * max(1, count)
        raise RequestError(
            f"A wide ResNet of {block} blocks has {step}N + 4 layers, not {depth}; nearest: {below} and {below + step}."
        )
    if not 0 <= dropout < 1:
        raise RequestError(f"dropout is a probability in [0, 1), not {dropout}.")
    channels, stages, features = 16, [], []
    for index, inner in enumerate(_widths(width, 16, 3)):
        stage = Stage()
        for position in range(count):
            stride = 2 if index and not position else 1
            _append_unit(stage, kernels, channels, inner, stride, dropout, normalization)
            channels = inner
        stages.append(stage)
        features.append(channels)
    stages[-1].append(_norm_relu(channels, normalization))
    network = Network(
        sequence(conv=conv(in_channels, 16, 3, bias=normalization == "none")),
        stages,
        Head(channels, num_classes),
        feature_channels=features,
        feature_reductions=(1, 2, 4),
    )
    he_normal_(network)
    return network


def imagenet_wide_resnet(
    depth: int,
    *,
    width: float = 2,
    num_classes: int = 1000,
    in_channels: int = 3,
    stem: str = "imagenet",
    normalization: str = "batch",
    base: int = 64,
) -> Network:
    """Section 3 (ImageNet): the ResNets of he2015 with k = `width` times the channels, behind the same stem of 64.

    18 and 34 layers: both convolutions of each basic unit are wider. 50, 101 and 152 layers (k of 1, 2 or 4): only the inner
    width of the bottlenecks is; their outputs stay at 256 to 2048 channels, and the stride is on the 3x3. `stem` is
    "imagenet" or "small"; `normalization` "batch", "group" or "none". `base` are the channels of the stem, of which all others
    are multiples: 8 makes the same network an eighth as wide.
    """
    if depth not in UNITS:
        raise RequestError(f"The wide ResNets for ImageNet have {', '.join(map(str, UNITS))} layers, not {depth}.")
    if depth >= 50 and width not in (1, 2, 4):
        raise RequestError(f"The bottlenecks of {depth} layers can be 1, 2 or 4 times as wide, not {width}.")
    if stem not in STEMS:
        raise RequestError(f"stem {stem!r} is none of {', '.join(map(repr, STEMS))}.")
    _check_normalization(normalization)
    if not isinstance(base, int) or base < 1:
        raise RequestError(f"base is a whole number of channels of at least 1, such as 8 or 64, not {base!r}.")
    make_stem, reduction = STEMS[stem]
    channels, stages, features = base, [], []
    for index, (count, inner) in enumerate(zip(UNITS[depth], _widths(width, base, 4))):
        stage = Stage()
        for position in range(count):
            stride = 2 if index and not position else 1
            if depth < 50:
                branch, outer = branches.basic(channels, inner, stride, normalization=normalization), inner
            else:
                expansion = int(4 / width)
                branch = branches.bottleneck(channels, inner, stride, expansion=expansion, normalization=normalization)
                outer = expansion * inner
            h = shortcuts.option("B", channels, outer, stride, normalization=normalization)
            stage.append(Unit(branch, h, post=activation()))
            channels = outer
        stages.append(stage)
        features.append(channels)
    network = Network(
        make_stem(in_channels, base, normalization=normalization),
        stages,
        Head(channels, num_classes),
        feature_channels=features,
        feature_reductions=[reduction * 2**index for index in range(4)],
    )
    he_normal_(network)
    return network


def _kernels(block: str) -> list[int]:
    """The kernel sizes of B(M)."""
    found = re.fullmatch(r"B\(([13](?:, ?[13])*)\)", block)
    if not found:
        raise RequestError(
            f"block {block!r} is not B and a list of 1 and 3, such as 'B(3,3)', 'B(3,1)', 'B(1,3,1)' or 'B(3,3,3)'."
        )
    return [int(kernel) for kernel in found[1].split(",")]


def _widths(factor: float, base: int, stages: int) -> list[int]:
    """Widths base * factor * 2**i, which must be whole numbers."""
    first = widened(base, factor)
    return [first * 2**index for index in range(stages)]


def _check_normalization(kind: str) -> None:
    if kind not in ("batch", "group", "none"):
        raise RequestError(f"normalization {kind!r} is none of 'batch', 'group', 'none'.")


def _norm_relu(channels: int, normalization: str) -> nn.Sequential:
    return sequence(norm=norm(channels, kind=normalization), act=activation())


def _append_unit(
    stage: Stage, kernels: Sequence[int], in_channels: int, width: int, stride: int, dropout: float, normalization: str
) -> None:
    """A pre-activation unit; where it changes the shape, its first norm-ReLU goes before it, into the stage."""
    changes = stride != 1 or in_channels != width
    branch, bias = nn.Sequential(), normalization == "none"
    for number, kernel in enumerate(kernels, start=1):
        fan_in, first = (in_channels, True) if number == 1 else (width, False)
        if not (first and changes):
            branch.add_module(f"norm{number}", norm(fan_in, kind=normalization))
            branch.add_module(f"act{number}", activation())
        if dropout and not first:
            branch.add_module(f"drop{number}", nn.Dropout(dropout))
        branch.add_module(f"conv{number}", conv(fan_in, width, kernel, stride if first else 1, bias=bias))
    if changes:
        stage.append(_norm_relu(in_channels, normalization))
        stage.append(Unit(branch, conv(in_channels, width, 1, stride, bias=bias)))
    else:
        stage.append(Unit(branch, nn.Identity()))


def _cifar(depth: int, width: int, table: str, parameters: int, multiply_adds: int) -> Published:
    return Published(
        cifar_wide_resnet, {"depth": depth, "width": width}, "wrn", table, depth, parameters, multiply_adds, (3, 32, 32)
    )


def _imagenet(depth: int, width: float, table: str, parameters: int, multiply_adds: int) -> Published:
    return Published(
        imagenet_wide_resnet, {"depth": depth, "width": width}, "wrn", table, depth, parameters, multiply_adds, (3, 224, 224)
    )


wrn_40_1 = _cifar(40, 1, "Table 4", 563_930, 83_280_512)
wrn_40_2 = _cifar(40, 2, "Table 4", 2_243_546, 327_599_360)
wrn_40_4 = _cifar(40, 4, "Table 4", 8_949_210, 1_298_582_016)
wrn_40_8 = _cifar(40, 8, "Table 4", 35_748_314, 5_172_024_320)
wrn_40_10 = _cifar(40, 10, "Table 9", 55_841_754, 8_074_483_968)
wrn_28_2 = _cifar(28, 2, "Table 2", 1_467_610, 214_353_152)
wrn_28_10 = _cifar(28, 10, "Table 4", 36_479_194, 5_243_328_768)
wrn_28_12 = _cifar(28, 12, "Table 4", 52_517_850, 7_543_905_792)
wrn_22_8 = _cifar(22, 8, "Table 4", 17_158_106, 2_454_115_328)
wrn_22_10 = _cifar(22, 10, "Table 4", 26_797_914, 3_827_751_168)
wrn_16_4 = _cifar(16, 4, "Table 6", 2_748_890, 392_612_352)
wrn_16_8 = _cifar(16, 8, "Table 4", 10_961_370, 1_548_145_664)
wrn_16_10 = _cifar(16, 10, "Table 4", 17_116_634, 2_412_173_568)
wrn_52_1 = _cifar(52, 1, "Table 6", 758_362, 111_592_064)
wrn_18_1_5 = _imagenet(18, 1.5, "Table 7", 25_875_816, 3_866_327_040)
wrn_18_2 = _imagenet(18, 2, "Table 7", 45_618_216, 6_695_706_624)
wrn_18_3 = _imagenet(18, 3, "Table 7", 101_783_976, 14_724_378_624)
wrn_34_1_5 = _imagenet(34, 1.5, "Table 7", 48_613_608, 8_028_125_184)
wrn_34_2 = _imagenet(34, 2, "Table 7", 86_036_008, 14_094_458_880)
wrn_50_2 = _imagenet(50, 2, "Table 8", 68_883_240, 11_398_021_120)
wrn_101_2 = _imagenet(101, 2, "not in the paper", 126_886_696, 22_753_050_624)
