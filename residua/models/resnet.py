"""Residual networks and their plain twins (He et al. 2015, "Deep Residual Learning for Image Recognition").

    x_{l+1} = ReLU(h(x_l) + F(x_l)),   h the identity, or option A, B or C at a change of shape;   plain: no h.

Departures from the paper: the bottleneck's stride sits on the 3x3 by default, as in all later re-implementations
(`stride_on="1x1"` is the form whose multiply-adds the paper prints); the ImageNet forms use option B by default, as the
published weights do (the paper's table 2 uses A). Initialisation: `residua.layers.he_normal_`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from residua import branches, shortcuts
from residua.errors import RequestError
from residua.layers import activation, he_normal_
from residua.network import Head, Network, Stage, imagenet_stem, small_stem
from residua.published import Published
from residua.unit import Unit

__all__ = [
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "plain18", "plain34", "plain50", "plain101", "plain152",
    "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet1202",
    "plain20", "plain32", "plain44", "plain56", "plain110", "plain1202",
    "cifar_resnet", "imagenet_resnet",
]  # fmt: skip

UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
STEMS = {"imagenet": (imagenet_stem, 4), "small": (small_stem, 1)}


def imagenet_resnet(
    depth: int,
    *,
    width: float = 1,
    num_classes: int = 1000,
    in_channels: int = 3,
    plain: bool = False,
    layers: int = 2,
    shortcut: str = "B",
    stem: str = "imagenet",
    stride_on: str = "3x3",
    normalization: str = "batch",
    dropout: float = 0.0,
) -> Network:
    """Table 1: 18 and 34 layers of basic units, 50, 101 and 152 layers of bottlenecks, in four stages of width 64 to 512.

    `width` is a factor of all channels but the input's and must leave whole numbers (0.5: 32 to 256). `shortcut` is the option
    "A", "B" or "C"; `stem` "imagenet" or "small"; `normalization` "batch", "group" or "none"; `dropout` acts before the
    classifier. `layers` is the number of layers of a basic unit; there are fewer units as each has more, so that it must divide
    the layers of every stage.
    """
    if depth not in UNITS:
        raise RequestError(f"The ImageNet ResNets have {', '.join(map(str, UNITS))} layers, not {depth}.")
    kind = "basic" if depth < 50 else stride_on
    return resnet(
        regrouped(UNITS[depth], layers) if kind == "basic" else UNITS[depth], widened(64, width), kind,
        layers=layers, shortcut="plain" if plain else shortcut, stem=stem, in_channels=in_channels,
        num_classes=num_classes, normalization=normalization, dropout=dropout,
    )  # fmt: skip


def cifar_resnet(
    depth: int,
    *,
    width: float = 1,
    num_classes: int = 10,
    in_channels: int = 3,
    plain: bool = False,
    layers: int = 2,
    shortcut: str = "A",
    stem: str = "small",
    normalization: str = "batch",
    dropout: float = 0.0,
) -> Network:
    """Section 4.2: depth = 6n + 2 layers, three stages of n basic units of width 16, 32, 64, option A.

    `layers` is the number of layers of a unit, 1 to 4 (section 3.2; he2016 table 3 has one of one layer); the depth is then
    3 layers n + 2. The other options are those of `imagenet_resnet`.
    """
    return resnet(
        (cifar_units(depth, layers),) * 3, widened(16, width), "basic", layers=layers,
        shortcut="plain" if plain else shortcut, stem=stem, in_channels=in_channels, num_classes=num_classes,
        normalization=normalization, dropout=dropout,
    )  # fmt: skip


def cifar_units(depth: int, layers: int) -> int:
    """The number n of units in each of the three stages of depth = 3 layers n + 2; refuses a depth of another form."""
    _check_layers(layers)
    step = 3 * layers
    least = step + 2
    if not isinstance(depth, int) or depth < least or (depth - 2) % step:
        below = max(least, (int(depth) - 2) // step * step + 2)
        raise RequestError(
            f"The CIFAR ResNets have {step}n + 2 layers ({least}, {least + step}, {least + 2 * step}, ...), not {depth}; "
            f"nearest: {below} and {below + step}."
        )
    return (depth - 2) // step


def widened(base: int, factor: float) -> int:
    """`factor` times `base` channels; refuses what is not a whole number of at least 1."""
    channels = float(base * factor) if isinstance(factor, (int, float)) else 0.0
    if channels < 1 or not channels.is_integer():
        raise RequestError(f"width must make {base} times itself a whole number of channels, such as 1, 1.5 or 2, not {factor}.")
    return int(channels)


def regrouped(units: Sequence[int], layers: int) -> tuple[int, ...]:
    """The number of units a stage with the same layers, two a unit before and `layers` now; refuses what does not divide."""
    _check_layers(layers)
    if any(2 * count % layers for count in units):
        counts = ", ".join(str(2 * count) for count in units)
        raise RequestError(f"The stages of this depth have {counts} layers, which units of {layers} layers do not divide.")
    return tuple(2 * count // layers for count in units)


def _check_layers(layers: int) -> None:
    if layers not in (1, 2, 3, 4):
        raise RequestError(f"A unit has 1, 2, 3 or 4 layers, not {layers!r}.")


def resnet(
    units: Sequence[int],
    width: int,
    kind: str,
    *,
    layers: int = 2,
    shortcut: str,
    stem: str,
    in_channels: int,
    num_classes: int,
    normalization: str = "batch",
    dropout: float = 0.0,
) -> Network:
    """A network of `units[i]` units of width `width * 2**i` in stage i; every stage but the first halves the resolution.

    `kind`: "basic", or the place of the bottleneck's stride, "3x3" or "1x1". `shortcut`: "A", "B", "C", or "plain" for none.
    `layers`: those of a basic unit, 1 to 4.
    """
    _check_layers(layers)
    if kind != "basic" and layers != 2:
        raise RequestError(f"A bottleneck has three layers; only basic units take layers={layers}.")
    for name, value, valid in (
        ("shortcut", shortcut, ("A", "B", "C", "plain")),
        ("stem", stem, tuple(STEMS)),
        ("stride_on", kind, ("basic", "3x3", "1x1")),
        ("normalization", normalization, ("batch", "group", "none")),
    ):
        if value not in valid:
            raise RequestError(f"{name} {value!r} is none of {', '.join(map(repr, valid))}.")
    make_stem, reduction = STEMS[stem]
    stages, channels, features = [], width, []
    for index, count in enumerate(units):
        stage = Stage()
        for position in range(count):
            stride = 2 if index and not position else 1
            stage.append(_unit(kind, layers, shortcut, channels, width * 2**index, stride, normalization))
            channels = width * 2**index * (1 if kind == "basic" else 4)
        stages.append(stage)
        features.append(channels)
    network = Network(
        make_stem(in_channels, width, normalization=normalization),
        stages,
        Head(channels, num_classes, dropout),
        feature_channels=features,
        feature_reductions=[reduction * 2**index for index in range(len(units))],
    )
    he_normal_(network)
    return network


def _unit(kind: str, layers: int, shortcut: str, in_channels: int, width: int, stride: int, normalization: str) -> Unit:
    if kind == "basic":
        branch, out_channels = branches.basic(in_channels, width, stride, layers=layers, normalization=normalization), width
    else:
        branch = branches.bottleneck(in_channels, width, stride, stride_on=kind, normalization=normalization)
        out_channels = 4 * width
    if shortcut == "plain":
        return Unit(branch, post=activation())
    h: nn.Module = shortcuts.option(shortcut, in_channels, out_channels, stride, normalization=normalization)
    return Unit(branch, h, post=activation())


def _imagenet(depth: int, parameters: int, multiply_adds: int, *, plain: bool = False) -> Published:
    return Published(
        imagenet_resnet, {"depth": depth, "plain": plain}, "he2015", "Table 1", depth, parameters, multiply_adds, (3, 224, 224)
    )


def _cifar(depth: int, parameters: int, multiply_adds: int, *, plain: bool = False) -> Published:
    return Published(
        cifar_resnet, {"depth": depth, "plain": plain}, "he2015", "Table 6", depth, parameters, multiply_adds, (3, 32, 32)
    )


resnet18 = _imagenet(18, 11_689_512, 1_814_073_344)
resnet34 = _imagenet(34, 21_797_672, 3_663_761_408)
resnet50 = _imagenet(50, 25_557_032, 4_089_184_256)
resnet101 = _imagenet(101, 44_549_160, 7_801_405_440)
resnet152 = _imagenet(152, 60_192_808, 11_513_626_624)
plain18 = _imagenet(18, 11_515_688, 1_794_805_760, plain=True)
plain34 = _imagenet(34, 21_623_848, 3_644_493_824, plain=True)
plain50 = _imagenet(50, 22_780_456, 3_729_522_688, plain=True)
plain101 = _imagenet(101, 41_772_584, 7_441_743_872, plain=True)
plain152 = _imagenet(152, 57_416_232, 11_153_965_056, plain=True)
resnet20 = _cifar(20, 269_722, 40_551_040)
resnet32 = _cifar(32, 464_154, 68_862_592)
resnet44 = _cifar(44, 658_586, 97_174_144)
resnet56 = _cifar(56, 853_018, 125_485_696)
resnet110 = _cifar(110, 1_727_962, 252_887_680)
resnet1202 = _cifar(1202, 19_421_274, 2_829_238_912)
plain20 = _cifar(20, 269_722, 40_551_040, plain=True)
plain32 = _cifar(32, 464_154, 68_862_592, plain=True)
plain44 = _cifar(44, 658_586, 97_174_144, plain=True)
plain56 = _cifar(56, 853_018, 125_485_696, plain=True)
plain110 = _cifar(110, 1_727_962, 252_887_680, plain=True)
plain1202 = _cifar(1202, 19_421_274, 2_829_238_912, plain=True)
