"""Aggregated residual networks (Xie et al. 2016, "Aggregated Residual Transformations for Deep Neural Networks": ResNeXt).

    x_{l+1} = ReLU(h(x_l) + sum_{i=1}^{C} T_i(x_l))        T_i: 1x1 to d maps, 3x3, 1x1;  C the cardinality, C x d the template

The sum has three equivalent forms (figure 3), of equal size and equal outputs for the same weights (unless a group
normalisation mixes the paths); `form` chooses:

    "grouped"        (c)  1x1 to C d maps, 3x3 in C groups, 1x1                      the default, as all re-implementations
    "concatenated"   (b)  C paths 1x1, 3x3 of d maps, concatenated, 1x1
    "paths"          (a)  C paths 1x1, 3x3, 1x1, summed, then the last normalisation (section 4)

The weights of a path are slices of the grouped form's: of its first 1x1 and its 3x3 the output channels i d to (i + 1) d, of its
last 1x1 the input channels i d to (i + 1) d; normalisations go with their channels.

h is option B, and the stride is on the 3x3 of a stage's first unit. Departures from the paper: none known. Its ImageNet-5K
networks are `num_classes=5000`. resnext101_32x8d is not in the paper; it is a later network of its authors (Mahajan et al. 2018).
Initialisation: `residua.layers.he_normal_`, the last 1x1 of the paths divided by sqrt(C), so that all forms begin alike.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from residua import shortcuts
from residua.errors import RequestError
from residua.layers import Towers, activation, conv, he_normal_, norm, sequence
from residua.models.resnet import STEMS
from residua.network import Head, Network, Stage
from residua.published import Published
from residua.unit import Unit

__all__ = [
    "resnext29_8x64d", "resnext29_16x64d",
    "resnext50_1x64d", "resnext50_2x40d", "resnext50_4x24d", "resnext50_8x14d", "resnext50_32x4d",
    "resnext101_1x64d", "resnext101_2x40d", "resnext101_4x24d", "resnext101_8x14d", "resnext101_32x4d",
    "resnext101_1x100d", "resnext101_2x64d", "resnext101_64x4d", "resnext101_32x8d",
    "cifar_resnext", "imagenet_resnext",
]  # fmt: skip

UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
FORMS = ("grouped", "concatenated", "paths")


def imagenet_resnext(
    depth: int,
    *,
    cardinality: int = 32,
    width: int = 4,
    form: str = "grouped",
    num_classes: int = 1000,
    in_channels: int = 3,
    plain: bool = False,
    stem: str = "imagenet",
    normalization: str = "batch",
) -> Network:
    """Table 1: 50, 101 or 152 layers in four stages with outputs of 256 to 2048 maps.

    `cardinality` C and `width` d are those of the first stage; d doubles in every further one. `form` is one of figure 3's
    (see the file's docstring); `plain` leaves the shortcuts out (section 5.1); `stem` is "imagenet" or "small";
    `normalization` "batch", "group" or "none".
    """
    if depth not in UNITS:
        raise RequestError(f"The ImageNet ResNeXts have {', '.join(map(str, UNITS))} layers, not {depth}.")
    return _network(
        UNITS[depth], cardinality, width, form, num_classes=num_classes, in_channels=in_channels, plain=plain, stem=stem,
        normalization=normalization,
    )  # fmt: skip


def cifar_resnext(
    depth: int = 29,
    *,
    cardinality: int = 8,
    width: int = 64,
    form: str = "grouped",
    num_classes: int = 10,
    in_channels: int = 3,
    plain: bool = False,
    outer: int = 256,
    stem: str = "small",
    normalization: str = "batch",
) -> Network:
    """Appendix A: depth = 9n + 2 layers, a stem of 64 maps and three stages of n units with outputs of 256, 512, 1024 maps.

    `outer` are the maps that the first stage's units give, a multiple of 4; the stem has a fourth of them, and the further
    stages two and four times as many. The other options are those of `imagenet_resnext`.
    """
    if not isinstance(outer, int) or outer < 4 or outer % 4:
        raise RequestError(f"outer must be a multiple of 4 of at least 4, such as 256 or 64, not {outer!r}.")
    if not isinstance(depth, int) or depth < 11 or depth % 9 != 2:
        below = max(11, (int(depth) - 2) // 9 * 9 + 2)
        raise RequestError(
            f"The CIFAR ResNeXts have 9n + 2 layers (11, 20, 29, ...), not {depth}; nearest: {below} and {below + 9}."
        )
    return _network(
        ((depth - 2) // 9,) * 3, cardinality, width, form, num_classes=num_classes, in_channels=in_channels, plain=plain,
        stem=stem, normalization=normalization, first_outer=outer,
    )  # fmt: skip


class Sum(nn.Module):
    """Parallel paths over the same input, their outputs summed (equation 2): [N, C, H, W] -> [N, C', H', W']."""

    def __init__(self, *paths: nn.Module) -> None:
        super().__init__()
        for place, path in enumerate(paths, 1):
            self.add_module(f"path{place}", path)

    def forward(self, x: Tensor) -> Tensor:
        return functools.reduce(torch.add, (path(x) for path in self.children()))


def _network(
    units: Sequence[int],
    cardinality: int,
    width: int,
    form: str,
    *,
    num_classes: int,
    in_channels: int,
    plain: bool,
    stem: str,
    normalization: str,
    first_outer: int = 256,
) -> Network:
    """Stages of `units[i]` units with C paths of width d 2**i and 256 * 2**i maps (`first_outer` for 256); every stage but the
    first halves the size."""
    for name, value, valid in (
        ("form", form, FORMS),
        ("stem", stem, tuple(STEMS)),
        ("normalization", normalization, ("batch", "group", "none")),
    ):
        if value not in valid:
            raise RequestError(f"{name} {value!r} is none of {', '.join(map(repr, valid))}.")
    for name, number in (("cardinality", cardinality), ("width", width)):
        if not isinstance(number, int) or number < 1:
            raise RequestError(f"{name} must be a whole number of at least 1, not {number!r}.")
    make_stem, reduction = STEMS[stem]
    channels, stages, features = first_outer // 4, [], []
    for index, count in enumerate(units):
        stage, outer = Stage(), first_outer * 2**index
        for position in range(count):
            stride = 2 if index and not position else 1
            branch = _branch(form, channels, cardinality, width * 2**index, outer, stride, normalization)
            h = None if plain else shortcuts.option("B", channels, outer, stride, normalization=normalization)
            stage.append(Unit(branch, h, post=activation()))
            channels = outer
        stages.append(stage)
        features.append(channels)
    network = Network(
        make_stem(in_channels, first_outer // 4, normalization=normalization),
        stages,
        Head(channels, num_classes),
        feature_channels=features,
        feature_reductions=[reduction * 2**index for index in range(len(units))],
    )
    he_normal_(network)
    for module in network.modules():
        if isinstance(module, Sum):
            for path in module.children():
                last = path.get_submodule("conv3")
                assert isinstance(last, nn.Conv2d)
                last.weight.data.div_(math.sqrt(cardinality))
    return network


def _branch(form: str, in_channels: int, cardinality: int, width: int, outer: int, stride: int, normalization: str) -> nn.Module:
    """F in one of the forms of figure 3. Without normalisation the bias of the sum is the first path's alone."""
    bias = normalization == "none"

    def begin(width: int, groups: int = 1) -> nn.Sequential:
        """1x1, 3x3, each with its normalisation and ReLU."""
        return sequence(
            conv1=conv(in_channels, width, 1, bias=bias),
            norm1=norm(width, kind=normalization),
            act1=activation(),
            conv2=conv(width, width, 3, stride, groups=groups, bias=bias),
            norm2=norm(width, kind=normalization),
            act2=activation(),
        )

    if form == "grouped":
        branch = begin(cardinality * width, cardinality)
        branch.add_module("conv3", conv(cardinality * width, outer, 1, bias=bias))
    elif form == "concatenated":
        paths = Towers(*(begin(width) for _ in range(cardinality)))
        branch = sequence(paths=paths, conv3=conv(cardinality * width, outer, 1, bias=bias))
    else:
        whole = [begin(width) for _ in range(cardinality)]
        for place, path in enumerate(whole):
            path.add_module("conv3", conv(width, outer, 1, bias=bias and not place))
        branch = sequence(paths=Sum(*whole))
    branch.add_module("norm3", norm(outer, kind=normalization))
    return branch


def _imagenet(depth: int, cardinality: int, width: int, table: str, parameters: int, multiply_adds: int) -> Published:
    arguments = {"depth": depth, "cardinality": cardinality, "width": width}
    return Published(imagenet_resnext, arguments, "resnext", table, depth, parameters, multiply_adds, (3, 224, 224))


def _cifar(cardinality: int, width: int, parameters: int, multiply_adds: int) -> Published:
    arguments = {"depth": 29, "cardinality": cardinality, "width": width}
    return Published(cifar_resnext, arguments, "resnext", "Table 7", 29, parameters, multiply_adds, (3, 32, 32))


resnext29_8x64d = _cifar(8, 64, 34_426_698, 5_387_266_048)
resnext29_16x64d = _cifar(16, 64, 68_155_210, 10_688_866_304)
resnext50_1x64d = _imagenet(50, 1, 64, "Table 3", 25_557_032, 4_089_184_256)
resnext50_2x40d = _imagenet(50, 2, 40, "Table 3", 25_425_000, 4_124_508_160)
resnext50_4x24d = _imagenet(50, 4, 24, "Table 3", 25_292_968, 4_159_832_064)
resnext50_8x14d = _imagenet(50, 8, 14, "Table 3", 25_603_016, 4_267_409_408)
resnext50_32x4d = _imagenet(50, 32, 4, "Table 3", 25_028_904, 4_230_479_872)
resnext101_1x64d = _imagenet(101, 1, 64, "Table 3", 44_549_160, 7_801_405_440)
resnext101_2x40d = _imagenet(101, 2, 40, "Table 3", 44_456_296, 7_843_553_280)
resnext101_4x24d = _imagenet(101, 4, 24, "Table 3", 44_363_432, 7_885_701_120)
resnext101_8x14d = _imagenet(101, 8, 14, "Table 3", 45_104_328, 8_076_871_680)
resnext101_32x4d = _imagenet(101, 32, 4, "Table 3", 44_177_704, 7_969_996_800)
resnext101_1x100d = _imagenet(101, 1, 100, "Table 4", 85_611_336, 15_272_862_720)
resnext101_2x64d = _imagenet(101, 2, 64, "Table 4", 84_198_184, 15_123_087_360)
resnext101_64x4d = _imagenet(101, 64, 4, "Table 4", 83_455_272, 15_460_270_080)
resnext101_32x8d = _imagenet(101, 32, 8, "not in the paper", 88_791_336, 16_414_015_488)
