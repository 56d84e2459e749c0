"""Pre-activation ResNets and the units they are compared with (He et al. 2016, "Identity Mappings in Deep Residual Networks").

    x_{l+1} = f(h(x_l) + F(x_l));   with h and f the identity   x_L = x_l + sum_{i=l}^{L-1} F(x_i)   (equations 1, 2 and 4)

`unit` chooses h, f and the order of the layers in F, at any depth. Table 1, figure 2 (h varies, f is ReLU):

    original              h = x                        he2015
    constant-scaling      a x + b F                    `scaling` = (a, b); printed: (0.5, 0.5), (0.5, 1), (0, 1)
    exclusive-gating      (1 - g(x)) x + g(x) F        g = sigmoid of a 1x1 convolution of bias `gate_bias`; printed: 0 to -10
    shortcut-only-gating  (1 - g(x)) x + F
    conv-shortcut         a 1x1 convolution (option C)
    dropout-shortcut      x dropped at the rate `drop`, in the form `drop_form`: "unscaled", "inverted", "whole"

Table 2, figure 4 (the order varies, h = x):

    original                  conv norm ReLU conv norm,       add, ReLU
    bn-after-addition         conv norm ReLU conv,            add, norm, ReLU
    relu-before-addition      conv norm ReLU conv norm ReLU,  add
    relu-only-preactivation   ReLU conv norm ReLU conv norm,  add
    full-preactivation        norm ReLU conv norm ReLU conv,  add

The ends are those of the appendix. Where F begins with an activation, that of the first unit stands after the stem's
convolution, before the two paths part, and one more follows the last addition. At a change of shape it stands before the unit
too, so that a projection starts from the activated signal ("projection shortcuts are also with pre-activation", section 4.1).

Where the paper is silent. A zero-padded shortcut starts from the activated signal as a projection does. A projection has a
normalisation if the branch ends with one (under bn-after-addition and full-preactivation it has none). Shortcuts are modified at
a change of shape too; the gate of a padded one reads the channels that carry a signal. The bottleneck's stride is on the first
1x1 for CIFAR, as in the authors' code, and on the 3x3 for ImageNet, as in fb.resnet.torch, which trained the published
ResNet-200 (`stride_on`). Initialisation: `residua.layers.he_normal_`, then the gates' biases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from residua import branches, shortcuts
from residua.errors import RequestError
from residua.layers import Scale, activation, conv, he_normal_, max_pool, norm, sequence
from residua.models import resnet
from residua.network import Head, Network, Stage
from residua.published import Published
from residua.unit import Gate, Unit

__all__ = [
    "preact_resnet110", "preact_resnet164", "preact_resnet1001", "preact_resnet110_1layer",
    "preact_resnet101", "preact_resnet152", "preact_resnet200",
    "resnet164", "resnet1001", "resnet110_1layer", "resnet200",
    "preact_cifar_resnet", "preact_imagenet_resnet",
]  # fmt: skip

UNITS = {**resnet.UNITS, 200: (3, 24, 36, 3)}
# The units of Table 1, each with the options that it alone takes.
SHORTCUTS: dict[str, dict[str, Any]] = {
    "constant-scaling": {"scaling": (0.5, 0.5)},
    "exclusive-gating": {"gate_bias": -6.0},
    "shortcut-only-gating": {"gate_bias": -6.0},
    "conv-shortcut": {},
    "dropout-shortcut": {"drop": 0.5, "drop_form": "unscaled"},
}
VALID: dict[str, tuple[Callable[[Any], bool], str]] = {
    "scaling": (
        lambda pair: (
            isinstance(pair, (list, tuple)) and len(pair) == 2 and all(map(_is_number, pair)) and all(map(math.isfinite, pair))
        ),
        "two finite numbers, the factors of shortcut and branch",
    ),
    "gate_bias": (lambda bias: _is_number(bias) and not math.isnan(bias), "a number (the paper tries 0 to -10)"),
    "drop": (lambda rate: _is_number(rate) and 0 <= rate < 1, "a rate in [0, 1)"),
    "drop_form": (lambda form: form in ("unscaled", "inverted", "whole"), "'unscaled', 'inverted' or 'whole'"),
}


def preact_cifar_resnet(
    depth: int,
    *,
    unit: str = "full-preactivation",
    branch: str = "basic",
    layers: int = 2,
    width: float = 1,
    num_classes: int = 10,
    in_channels: int = 3,
    shortcut: str | None = None,
    stem: str = "small",
    stride_on: str = "1x1",
    normalization: str = "batch",
    scaling: Sequence[float] | None = None,
    gate_bias: float | None = None,
    drop: float | None = None,
    drop_form: str | None = None,
) -> Network:
    """Three stages of n units: "basic" ones of `layers` 3x3 convolutions (1 to 4) and width 16, 32, 64, depth = 3 layers n + 2;
    or, with `branch="bottleneck"`, 1x1, 3x3, 1x1 of width 16-16-64, 32-32-128, 64-64-256, depth = 9n + 2 (section 4.1).

    `width` is a factor of all channels but the input's. `unit` is a row of Tables 1 and 2 (see the file's docstring). Options
    of one unit: `scaling`, two numbers (default 0.5, 0.5); `gate_bias` (default -6); `drop`, a rate in [0, 1) (default 0.5);
    `drop_form`, "unscaled" (the paper's: the expectation is 1 - drop of the signal; the default), "inverted" (the usual
    dropout: it is the signal), or "whole" (the whole connection of a sample is dropped, unscaled). `shortcut` is the option at
    a change of shape, "A" (default of basic units), "B" (of bottlenecks) or "C". `stem`: "small", "imagenet", or "pool-first"
    (normalisation and ReLU after the pooling: timm's ResNetV2). `stride_on`: the convolution of a bottleneck that strides,
    "1x1" or "3x3". `normalization`: "batch", "group" or "none".
    """
    _one_of("branch", branch, ("basic", "bottleneck"))
    basic = branch == "basic"
    kind = _Kind(
        unit, basic, layers, shortcut or ("A" if basic else "B"), stride_on, normalization,
        _options(unit, scaling=scaling, gate_bias=gate_bias, drop=drop, drop_form=drop_form),
    )  # fmt: skip
    count = resnet.cifar_units(depth, layers if basic else 3)
    return _network((count,) * 3, resnet.widened(16, width), kind, stem, in_channels, num_classes)


def preact_imagenet_resnet(
    depth: int,
    *,
    unit: str = "full-preactivation",
    layers: int = 2,
    width: float = 1,
    num_classes: int = 1000,
    in_channels: int = 3,
    shortcut: str = "B",
    stem: str = "imagenet",
    stride_on: str = "3x3",
    normalization: str = "batch",
    scaling: Sequence[float] | None = None,
    gate_bias: float | None = None,
    drop: float | None = None,
    drop_form: str | None = None,
) -> Network:
    """Four stages of width 64 to 512: 18 and 34 layers of basic units, 50, 101, 152 and 200 layers of bottlenecks (section 5).

    ResNet-200 has 16 bottlenecks more than ResNet-152, all on the maps of 28 x 28. The options are those of
    `preact_cifar_resnet`; `layers` must divide the layers of every stage.
    """
    if depth not in UNITS:
        raise RequestError(f"The ImageNet ResNets have {', '.join(map(str, UNITS))} layers, not {depth}.")
    kind = _Kind(
        unit, depth < 50, layers, shortcut, stride_on, normalization,
        _options(unit, scaling=scaling, gate_bias=gate_bias, drop=drop, drop_form=drop_form),
    )  # fmt: skip
    units = resnet.regrouped(UNITS[depth], layers) if kind.basic else UNITS[depth]
    return _network(units, resnet.widened(64, width), kind, stem, in_channels, num_classes)


@dataclass(frozen=True)
class _Kind:
    """What makes a unit, apart from its shape."""

    unit: str
    basic: bool
    layers: int
    shortcut: str
    stride_on: str
    normalization: str
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        _one_of("shortcut", self.shortcut, ("A", "B", "C"))
        _one_of("stride_on", self.stride_on, ("1x1", "3x3"))
        _one_of("normalization", self.normalization, ("batch", "group", "none"))
        if not self.basic and self.layers != 2:
            raise RequestError(f"A bottleneck has three layers; only basic units take layers={self.layers}.")

    @property
    def order(self) -> branches.Order:
        return branches.ORDERS["original" if self.unit in SHORTCUTS else self.unit]

    def chain(self, names: Sequence[str], channels: int) -> nn.Module:
        """Normalisation ("norm") and activation ("act") in the order of `names`; the identity if there is none."""
        parts = {"norm": norm(channels, kind=self.normalization), "act": activation()}
        chain = {name: parts[name] for name in names}
        return sequence(**chain) if len(chain) > 1 else chain.get("act", nn.Identity())


def _network(units: Sequence[int], width: int, kind: _Kind, stem: str, in_channels: int, num_classes: int) -> Network:
    """`units[i]` units of width `width * 2**i` in stage i; every stage but the first halves the resolution."""
    stems = {**resnet.STEMS, "pool-first": (_pool_first_stem, 4)}
    _one_of("stem", stem, tuple(stems))
    make_stem, reduction = stems[stem]
    before, stages, channels, features = kind.order.before, [], width, []
    activated = True  # The stem ends with the first unit's activation.
    for index, count in enumerate(units):
        stage = Stage()
        for position in range(count):
            inner, stride = width * 2**index, 2 if index and not position else 1
            outer = inner if kind.basic else 4 * inner
            h = _shortcut(kind, channels, outer, stride)
            if before and not activated and not isinstance(h, nn.Identity):
                stage.append(kind.chain(before, channels))
                activated = True
            stage.append(_unit(kind, h, channels, inner, outer, stride, activated))
            channels, activated = outer, False
        stages.append(stage)
        features.append(channels)
    if before:
        stages[-1].append(kind.chain(before, channels))
    network = Network(
        make_stem(in_channels, width, normalization=kind.normalization),
        stages,
        Head(channels, num_classes),
        feature_channels=features,
        feature_reductions=[reduction * 2**index for index in range(len(units))],
    )
    he_normal_(network)
    for module in network.modules():
        if isinstance(module, (Gate, shortcuts.Gated)):
            nn.init.constant_(module.transform.get_parameter("conv.bias"), kind.options["gate_bias"])
    return network


def _pool_first_stem(in_channels: int, channels: int, *, normalization: str = "batch") -> nn.Module:
    """The ImageNet stem with the pooling before normalisation and ReLU."""
    return sequence(
        conv=conv(in_channels, channels, 7, 2, bias=normalization == "none"),
        pool=max_pool(3, 2),
        norm=norm(channels, kind=normalization),
        act=activation(),
    )


def _shortcut(kind: _Kind, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """h at this shape, before it is scaled, gated or dropped."""
    option = "C" if kind.unit == "conv-shortcut" else kind.shortcut
    h = shortcuts.option(option, in_channels, out_channels, stride, normalization=kind.normalization)
    if isinstance(h, nn.Sequential) and "norm" not in kind.order.last:
        return sequence(conv=conv(in_channels, out_channels, 1, stride, bias=kind.normalization == "none"))
    return h


def _unit(kind: _Kind, h: nn.Module, in_channels: int, width: int, out_channels: int, stride: int, activated: bool) -> Unit:
    if kind.basic:
        shapes = branches.basic_shapes(in_channels, width, stride, layers=kind.layers)
    else:
        shapes = branches.bottleneck_shapes(in_channels, width, stride, stride_on=kind.stride_on)
    branch = branches.ordered(shapes, kind.order, activated=activated, normalization=kind.normalization)
    post = kind.chain(kind.order.post, out_channels)
    if kind.unit == "constant-scaling":
        on_shortcut, on_branch = (Scale(factor, learned=False) for factor in kind.options["scaling"])
        branch.add_module("constant", on_branch)
        return Unit(branch, _followed(h, on_shortcut), post=post)
    if kind.unit == "exclusive-gating":
        padded = isinstance(h, shortcuts.ZeroPad)
        read = Leading(in_channels) if padded else nn.Identity()
        gate = conv(in_channels if padded else out_channels, out_channels, 1, bias=True)
        return Unit(branch, h, Gate(sequence(read=read, conv=gate)), post)
    if kind.unit == "shortcut-only-gating":
        gate = conv(in_channels, out_channels, 1, stride, bias=True)
        return Unit(branch, shortcuts.Gated(h, sequence(conv=gate)), post=post)
    if kind.unit == "dropout-shortcut":
        form = kind.options["drop_form"]
        dropped = shortcuts.Dropped(kind.options["drop"], inverted=form == "inverted", whole=form == "whole")
        return Unit(branch, _followed(h, dropped), post=post)
    return Unit(branch, h, post=post)


def _followed(h: nn.Module, change: nn.Module) -> nn.Module:
    return change if isinstance(h, nn.Identity) else sequence(h=h, change=change)


class Leading(nn.Module):
    """The first `channels` channels: those of a zero-padded shortcut that carry a signal."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.channels]


def _options(unit: str, **given: Any) -> dict[str, Any]:
    """The options that the unit takes; refuses those of other units and values out of range."""
    _one_of("unit", unit, tuple(dict.fromkeys((*branches.ORDERS, *SHORTCUTS))))
    taken = dict(SHORTCUTS.get(unit, {}))
    for name, value in given.items():
        if value is None:
            continue
        if name not in taken:
            takers = " and ".join(taker for taker, names in SHORTCUTS.items() if name in names)
            raise RequestError(f"{name} is an option of {takers}, not of unit {unit!r}.")
        fits, description = VALID[name]
        if not fits(value):
            raise RequestError(f"{name} is {description}, not {value!r}.")
        taken[name] = value
    return taken


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _one_of(name: str, value: object, valid: Sequence[str]) -> None:
    if value not in valid:
        raise RequestError(f"{name} {value!r} is none of {', '.join(map(repr, valid))}.")


def _cifar(depth: int, table: str, parameters: int, multiply_adds: int, **arguments: object) -> Published:
    arguments = {"depth": depth, **arguments}
    return Published(preact_cifar_resnet, arguments, "he2016", table, depth, parameters, multiply_adds, (3, 32, 32))


def _imagenet(depth: int, table: str, parameters: int, multiply_adds: int, **arguments: object) -> Published:
    arguments = {"depth": depth, **arguments}
    return Published(preact_imagenet_resnet, arguments, "he2016", table, depth, parameters, multiply_adds, (3, 224, 224))


preact_resnet110 = _cifar(110, "Table 2", 1_727_962, 252_887_680)
preact_resnet164 = _cifar(164, "Table 3", 1_703_258, 244_500_992, branch="bottleneck")
preact_resnet1001 = _cifar(1001, "Table 3", 10_327_706, 1_487_849_984, branch="bottleneck")
preact_resnet110_1layer = _cifar(110, "Table 3", 1_727_962, 252_887_680, layers=1)
preact_resnet101 = _imagenet(101, "Section 5", 44_541_480, 7_801_405_440)
preact_resnet152 = _imagenet(152, "Table 5", 60_185_128, 11_513_626_624)
preact_resnet200 = _imagenet(200, "Table 5", 64_666_152, 15_007_481_856)
resnet164 = _cifar(164, "Table 3", 1_704_154, 244_500_992, branch="bottleneck", unit="original")
resnet1001 = _cifar(1001, "Table 3", 10_328_602, 1_487_849_984, branch="bottleneck", unit="original")
resnet110_1layer = _cifar(110, "Table 3", 1_727_962, 252_887_680, layers=1, unit="original")
resnet200 = _imagenet(200, "Table 5", 64_673_832, 15_007_481_856, unit="original")
