"""The Inception networks that Inception-ResNet is compared with: BN-Inception, Inception-v3, Inception-v4.

    x_{l+1} = [tower 1(x), tower 2(x), ...],   a tower being a chain of convolutions, each with its normalisation and ReLU

- BN-Inception (Ioffe and Szegedy 2015, "Batch Normalization", figure 5): 5x5 becomes two 3x3; the first layer is a separable
  convolution with 8 maps an input channel (`first="separable"`; "plain" is the ordinary 7x7 of the re-implementations).
- Inception-v3 (Szegedy et al. 2015, "Rethinking the Inception Architecture", figures 5 to 8, 10): kernels 1xn and nx1, an
  auxiliary head with normalisation on the 17 x 17 maps. `variant="paper"` is the network of the authors' release, which has
  the widths inside the modules, which the paper does not print, and differs from its Table 1 (see below).
- Inception-v4 (Szegedy et al. 2016, figures 3 to 9). Where figures and release order 1xn and nx1 differently, the release
  is followed (the counts are the same).

No tower is a shortcut. As in the authors' release the eps of the normalisations is 1e-3 and an average at the border does not
count the padding. Departures of Inception-v3 from Table 1 and section 6: these have, after the first pooling, 3x3 to 80 maps,
3x3 at stride 2 to 192, 3x3 to 288 and no second pooling; then three modules of 288 maps at 35 x 35 and five factorised ones at
17 x 17. Here, as in the release, it is 1x1 to 80 maps, 3x3 to 192 and a second pooling; then modules of 256, 288 and 288 maps,
and four factorised ones after the reduction to 17 x 17. Departures of all: the running statistics forget with momentum 0.1 and
not with the release's 0.0003, which assumes some hundred thousand steps; padding of strided layers is the same on both sides;
`residua.layers.he_normal_` is the initialisation; the auxiliary head of Inception-v3 takes images smaller than 299 pixels too.
`variant="torchvision"` of Inception-v3 counts the padding and has dropout 0.5. `depth` counts the weight layers of the longest
path; of Inception-v3 the paper says 42 and not how it counts.
"""

from __future__ import annotations

from torch import nn

from residua.errors import RequestError
from residua.layers import AtLeast, conv_norm_act, he_normal_, norm, sequence
from residua.network import Auxiliary, Head, Network, Stage
from residua.published import Published
from residua.towers import at_full_size, series, with_width

__all__ = ["bn_inception", "inception_v3", "inception_v4"]

NORMALIZATIONS = ("batch", "group", "none")
STEMS = ("imagenet", "small")
Modules = tuple[str, ...]

# Figures 3 to 9 of Szegedy et al. 2016.
STEM_V4: tuple[str | Modules, ...] = (
    "3x3 32 /2 V, 3x3 32 V, 3x3 64",
    ("max 3x3 /2 V", "3x3 96 /2 V"),
    ("1x1 64, 3x3 96 V", "1x1 64, 1x7 64, 7x1 64, 3x3 96 V"),
    ("3x3 192 /2 V", "max 3x3 /2 V"),
)
_A4 = ("1x1 96", "1x1 64, 3x3 96", "1x1 64, 3x3 96, 3x3 96", "avg 3x3, 1x1 96")
_B4 = (
    "1x1 384",
    "1x1 192, 1x7 224, 7x1 256",
    "1x1 192, 7x1 192, 1x7 224, 7x1 224, 1x7 256",
    "avg 3x3, 1x1 128",
)
_C4 = (
    "1x1 256",
    "1x1 384, 1x3 256 | 3x1 256",
    "1x1 384, 3x1 448, 1x3 512, 1x3 256 | 3x1 256",
    "avg 3x3, 1x1 256",
)
_REDUCTION_B4 = ("1x1 192, 3x3 192 /2 V", "1x1 256, 1x7 256, 7x1 320, 3x3 320 /2 V", "max 3x3 /2 V")


def reduction_a(k: int, l: int, m: int, n: int) -> Modules:
    """Figure 7 of Szegedy et al. 2016: 35 x 35 to 17 x 17, with the widths of its Table 1."""
    return (f"3x3 {n} /2 V", f"1x1 {k}, 3x3 {l}, 3x3 {m} /2 V", "max 3x3 /2 V")


def _bn(one: int, reduce: int, three: int, double_reduce: int, double: int, pool: str, proj: int) -> Modules:
    """A row of figure 5 of Ioffe and Szegedy 2015."""
    return (
        f"1x1 {one}",
        f"1x1 {reduce}, 3x3 {three}",
        f"1x1 {double_reduce}, 3x3 {double}, 3x3 {double}",
        f"{pool} 3x3, 1x1 {proj}",
    )


def _bn_reduction(reduce: int, three: int, double_reduce: int, double: int) -> Modules:
    return (f"1x1 {reduce}, 3x3 {three} /2", f"1x1 {double_reduce}, 3x3 {double}, 3x3 {double} /2", "max 3x3 /2")


_BN_STAGES: tuple[tuple[Modules, ...], ...] = (
    (_bn(64, 64, 64, 64, 96, "avg", 32), _bn(64, 64, 96, 64, 96, "avg", 64)),
    (
        _bn_reduction(128, 160, 64, 96),
        _bn(224, 64, 96, 96, 128, "avg", 128),
        _bn(192, 96, 128, 96, 128, "avg", 128),
        _bn(160, 128, 160, 128, 160, "avg", 96),
        _bn(96, 128, 192, 160, 192, "avg", 96),
    ),
    (
        _bn_reduction(128, 192, 192, 256),
        _bn(352, 192, 320, 160, 224, "avg", 128),
        _bn(352, 192, 320, 192, 224, "max", 128),
    ),
)


def _a3(proj: int) -> Modules:
    return ("1x1 64", "1x1 48, 5x5 64", "1x1 64, 3x3 96, 3x3 96", f"avg 3x3, 1x1 {proj}")


def _b3(width: int) -> Modules:
    short = f"1x1 {width}, 1x7 {width}, 7x1 192"
    return ("1x1 192", short, f"1x1 {width}, 7x1 {width}, 1x7 {width}, 7x1 {width}, 1x7 192", "avg 3x3, 1x1 192")


_C3 = ("1x1 320", "1x1 384, 1x3 384 | 3x1 384", "1x1 448, 3x3 384, 1x3 384 | 3x1 384", "avg 3x3, 1x1 192")
_STAGES_V3: tuple[tuple[Modules, ...], ...] = (
    (_a3(32), _a3(64), _a3(64)),
    (("3x3 384 /2 V", "1x1 64, 3x3 96, 3x3 96 /2 V", "max 3x3 /2 V"), _b3(128), _b3(160), _b3(160), _b3(192)),
    (("1x1 192, 3x3 320 /2 V", "1x1 192, 1x7 192, 7x1 192, 3x3 192 /2 V", "max 3x3 /2 V"), _C3, _C3),
)
STEM_V3 = "3x3 32 /2 V, 3x3 32 V, 3x3 64, max 3x3 /2 V, 1x1 80, 3x3 192 V, max 3x3 /2 V"
_STAGES_V4: tuple[tuple[Modules, ...], ...] = (
    (_A4,) * 4,
    (reduction_a(192, 224, 256, 384), *(_B4,) * 7),
    (_REDUCTION_B4, *(_C4,) * 3),
)


def build_bn_inception(
    *,
    first: str = "separable",
    stem: str = "imagenet",
    num_classes: int = 1000,
    in_channels: int = 3,
    normalization: str = "batch",
    dropout: float = 0.0,
) -> Network:
    """Figure 5 of Ioffe and Szegedy 2015. `first` is "separable" or "plain"; `stem` is that of `build_inception_v3`;
    `normalization` "batch", "group" or "none"; `dropout` acts before the classifier (the paper removes it)."""
    check(stem, normalization, dropout)
    if first not in ("separable", "plain"):
        raise RequestError(f"first {first!r} is none of 'separable', 'plain'.")
    stride = 2 if stem == "imagenet" else 1
    layer = conv_norm_act(in_channels, 64, 7, stride, normalization=normalization, eps=1e-3)
    if first == "separable":
        wide = nn.Conv2d(in_channels, 8 * in_channels, 7, stride, 3, groups=in_channels, bias=False)
        point = nn.Conv2d(8 * in_channels, 64, 1, bias=normalization == "none")
        layer = sequence(depthwise=wide, pointwise=point, norm=norm(64, kind=normalization, eps=1e-3), act=nn.ReLU())
    (rest,), channels = series(64, stem_parts(("max 3x3 /2, 1x1 64, 3x3 192, max 3x3 /2",), stem), normalization=normalization)
    network = _network(sequence(first=layer, rest=rest), channels, _BN_STAGES, num_classes, normalization, dropout, stem)
    he_normal_(network)
    return network


def build_inception_v3(
    *,
    variant: str = "paper",
    stem: str = "imagenet",
    num_classes: int = 1000,
    in_channels: int = 3,
    normalization: str = "batch",
    auxiliary: bool = True,
    dropout: float | None = None,
    width: float = 1,
) -> Network:
    """Inception-v3 as its authors released it (what differs from Table 1 of Szegedy et al. 2015 stands at the head of this file),
    for 299 pixels (at least 75). `variant` is "paper" or "torchvision"; `stem` "imagenet" or "small" (the same layers at stride
    1, for images of 15 to some 64 pixels); `normalization` "batch", "group" or "none"; `auxiliary` builds the auxiliary head,
    whose loss counts with the factor 0.4; `dropout` acts before the classifier (None: 0.2 as in the release, 0.5 in torchvision's
    form); `width` is that of `build_inception_v4`."""
    if variant not in ("paper", "torchvision"):
        raise RequestError(f"variant {variant!r} is none of 'paper', 'torchvision'.")
    torchvision = variant == "torchvision"
    dropout = dropout if dropout is not None else 0.5 if torchvision else 0.2
    check(stem, normalization, dropout)
    check_width(width)
    heads = [Auxiliary(_auxiliary_head(width, num_classes, normalization), 1, 4, 0.4)] if auxiliary else []
    parts, channels = series(in_channels, stem_parts((STEM_V3,), stem, width), normalization=normalization)
    stages = _narrowed(_STAGES_V3, width)
    network = _network(nn.Sequential(*parts), channels, stages, num_classes, normalization, dropout, stem, heads, torchvision)
    he_normal_(network)
    return network


def build_inception_v4(
    *,
    stem: str = "imagenet",
    num_classes: int = 1000,
    in_channels: int = 3,
    normalization: str = "batch",
    dropout: float = 0.2,
    width: float = 1,
) -> Network:
    """Figure 9 of Szegedy et al. 2016, for 299 pixels (at least 75). `stem` is that of `build_inception_v3`; `normalization` is
    "batch", "group" or "none"; `dropout` acts before the classifier; `width` is a factor above 0 of the maps of all layers, which
    are rounded."""
    check(stem, normalization, dropout)
    check_width(width)
    parts, channels = series(in_channels, stem_parts(STEM_V4, stem, width), normalization=normalization)
    stages = _narrowed(_STAGES_V4, width)
    network = _network(nn.Sequential(*parts), channels, stages, num_classes, normalization, dropout, stem)
    he_normal_(network)
    return network


def check(stem: str, normalization: str, dropout: float) -> None:
    """Raises `RequestError` for a value that these networks do not have."""
    for name, value, valid in (("stem", stem, STEMS), ("normalization", normalization, NORMALIZATIONS)):
        if value not in valid:
            raise RequestError(f"{name} {value!r} is none of {', '.join(map(repr, valid))}.")
    if not 0 <= dropout < 1:
        raise RequestError(f"dropout is a probability in [0, 1), not {dropout}.")


def check_width(width: float) -> None:
    """Raises `RequestError` for a factor that is not above 0."""
    if not isinstance(width, (int, float)) or not 0 < width <= 16:
        raise RequestError(f"width is a factor above 0 and at most 16, such as 0.25 or 1, not {width!r}.")


def stem_parts(parts: tuple[str | Modules, ...], stem: str, width: float = 1) -> tuple[str | Modules, ...]:
    """The parts of the stem as the paper has them, or at stride 1 for small images; with `width` times as many maps."""
    narrowed = tuple(with_width(part, width) for part in parts)
    return narrowed if stem == "imagenet" else tuple(map(at_full_size, narrowed))


def _network(
    stem: nn.Module,
    channels: int,
    stages: tuple[tuple[Modules, ...], ...],
    num_classes: int,
    normalization: str,
    dropout: float,
    stem_kind: str,
    auxiliaries: list[Auxiliary] | None = None,
    count_padding: bool = False,
) -> Network:
    built, features = [], []
    for modules in stages:
        parts, channels = series(channels, modules, normalization=normalization, count_padding=count_padding)
        built.append(Stage(*parts))
        features.append(channels)
    return Network(
        stem,
        built,
        Head(channels, num_classes, dropout),
        feature_channels=features,
        feature_reductions=(8, 16, 32) if stem_kind == "imagenet" else (1, 2, 4),
        auxiliaries=auxiliaries or [],
    )


def _narrowed(stages: tuple[tuple[Modules, ...], ...], width: float) -> tuple[tuple[Modules, ...], ...]:
    return tuple(tuple(tuple(with_width(module, width)) for module in modules) for modules in stages)


def _auxiliary_head(width: float, num_classes: int, normalization: str) -> nn.Module:
    """Figure 8 of Szegedy et al. 2015: 5x5 average pooling at stride 3, 1x1 to 128 maps, 5x5 to 768, classifier."""
    channels, inner, outer = 4 * max(1, round(width * 192)), max(1, round(width * 128)), max(1, round(width * 768))
    return sequence(
        least1=AtLeast(5),
        pool=nn.AvgPool2d(5, 3),
        conv1=conv_norm_act(channels, inner, 1, normalization=normalization, eps=1e-3),
        least2=AtLeast(5),
        conv2=conv_norm_act(inner, outer, 5, pad=False, normalization=normalization, eps=1e-3),
        average=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        classifier=nn.Linear(outer, num_classes),
    )


bn_inception = Published(
    build_bn_inception, {}, "inception_resnet", "Ioffe and Szegedy 2015, figure 5", 34, 11_188_288, 1_934_857_216, (3, 224, 224)
)
inception_v3 = Published(
    build_inception_v3, {}, "inception_resnet", "Szegedy et al. 2015, released", 48, 27_161_264, 5_713_216_096, (3, 299, 299), 75
)
inception_v4 = Published(
    build_inception_v4, {}, "inception_resnet", "Figure 9", 76, 42_679_816, 12_253_974_624, (3, 299, 299), 75
)
