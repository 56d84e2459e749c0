"""Inception-ResNet (Szegedy et al. 2016, "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning").

    x_{l+1} = ReLU(x_l + s E([tower 1(x_l), tower 2(x_l), ...])),   E a 1x1 expansion without normalisation or activation

The residual units keep the shape (h is the identity); the reductions between the stages are parallel towers without a shortcut.
s is the residual scaling of section 3.3, `scale`: 0.1 to 0.3 in the paper, by default 0.17, 0.10 and 0.20 in the three stages,
as in the authors' release. The plain twin (`plain`, our own) leaves out the shortcut and nothing else: its units are
ReLU(s E([...])), with the scaling, though there is nothing that it is added to.

Departures from the paper: the expansions of figures 17 and 19 are printed with 1154 and 2048 maps where the addition needs 1152
and 2144. `variant="tensorflow"` of v2 is the network of the authors' release and of timm: the stem of Inception-v3 and one
module behind it, 10, 20 and 10 units instead of 5, 10 and 5, other widths, a last unit without activation and scaling, and a
1x1 convolution to 1536 maps before the head. Normalisations, their eps and momentum, padding and initialisation are those of
`residua.models.inception`. `depth` counts the weight layers of the longest path.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from residua.errors import RequestError
from residua.layers import Scale, activation, he_normal_, sequence
from residua.models.inception import STEM_V3, STEM_V4, Modules, check, check_width, reduction_a, stem_parts
from residua.network import Head, Network, Stage
from residua.published import Published
from residua.towers import series, towers, with_width
from residua.unit import Unit

__all__ = ["inception_resnet_v1", "inception_resnet_v2", "inception_resnet"]

SCALES = (0.17, 0.10, 0.20)


@dataclass(frozen=True)
class Form:
    """`stem` and `last` are chains and towers; `towers`, `units` and `reductions` belong to the stages, the first of which has
    no reduction; `bare_last` leaves the last unit without scaling and activation."""

    stem: tuple[str | Modules, ...]
    towers: tuple[Modules, Modules, Modules]
    units: tuple[int, int, int]
    reductions: tuple[Modules, Modules]
    last: tuple[str, ...] = ()
    bare_last: bool = False


def _reduction_b(second: int, third: int, fourth: int) -> Modules:
    """Figures 12 (v1) and 18 (v2)."""
    return (
        "1x1 256, 3x3 384 /2 V",
        f"1x1 256, 3x3 {second} /2 V",
        f"1x1 256, 3x3 {third}, 3x3 {fourth} /2 V",
        "max 3x3 /2 V",
    )


_A2 = ("1x1 32", "1x1 32, 3x3 32", "1x1 32, 3x3 48, 3x3 64")
_B2 = ("1x1 192", "1x1 128, 1x7 160, 7x1 192")
_C2 = ("1x1 192", "1x1 192, 1x3 224, 3x1 256")
FORMS = {
    ("v1", "paper"): Form(  # figures 10 to 14
        stem=("3x3 32 /2 V, 3x3 32 V, 3x3 64, max 3x3 /2 V, 1x1 80, 3x3 192 V, 3x3 256 /2 V",),
        towers=(
            ("1x1 32", "1x1 32, 3x3 32", "1x1 32, 3x3 32, 3x3 32"),
            ("1x1 128", "1x1 128, 1x7 128, 7x1 128"),
            ("1x1 192", "1x1 192, 1x3 192, 3x1 192"),
        ),
        units=(5, 10, 5),
        reductions=(reduction_a(192, 192, 256, 384), _reduction_b(256, 256, 256)),
    ),
    ("v2", "paper"): Form(  # figures 3 and 16 to 19
        stem=STEM_V4,
        towers=(_A2, _B2, _C2),
        units=(5, 10, 5),
        reductions=(reduction_a(256, 256, 384, 384), _reduction_b(288, 288, 320)),
    ),
    ("v2", "tensorflow"): Form(
        stem=(STEM_V3, ("1x1 96", "1x1 48, 5x5 64", "1x1 64, 3x3 96, 3x3 96", "avg 3x3, 1x1 64")),
        towers=(_A2, _B2, _C2),
        units=(10, 20, 10),
        reductions=(reduction_a(256, 256, 384, 384), _reduction_b(288, 288, 320)),
        last=("1x1 1536",),
        bare_last=True,
    ),
}


def inception_resnet(
    version: str,
    *,
    variant: str = "paper",
    scale: float | Sequence[float] = SCALES,
    stem: str = "imagenet",
    num_classes: int = 1000,
    in_channels: int = 3,
    plain: bool = False,
    normalization: str = "batch",
    dropout: float = 0.2,
    width: float = 1,
) -> Network:
    """Figure 15, for 299 pixels (at least 75). `version` is "v1" or "v2"; `variant` "paper" or, of v2, "tensorflow".

    `scale` is the residual scaling, one number or one for each of the three stages (0: each unit is its shortcut; 1: none).
    `stem` is "imagenet" or "small" (the same layers at stride 1, for images of 15 to some 64 pixels).
    `plain` leaves out the shortcuts and keeps the scaling; `normalization` is "batch", "group" or "none"; `dropout` acts before
    the classifier. `width` is a factor above 0 of the maps of all layers, which are rounded.
    """
    form = FORMS.get((version, variant))
    if form is None:
        known = ", ".join(f"{version!r} with {variant!r}" for version, variant in FORMS)
        raise RequestError(f"There is no Inception-ResNet {version!r} with variant {variant!r}: there is {known}.")
    check(stem, normalization, dropout)
    check_width(width)
    scales = tuple(scale) if isinstance(scale, Sequence) else (scale,) * 3
    if len(scales) != 3:
        raise RequestError(f"scale is one number or one for each of the three stages, not {len(scales)} numbers.")
    parts, channels = series(in_channels, stem_parts(form.stem, stem, width), normalization=normalization)
    stages, features = [], []
    for index, (chains, count, factor) in enumerate(zip(form.towers, form.units, scales)):
        stage = Stage()
        if index:
            (reduction,), channels = series(
                channels, [with_width(form.reductions[index - 1], width)], normalization=normalization
            )
            stage.append(reduction)
        for place in range(count):
            bare = form.bare_last and index == 2 and place == count - 1
            stage.append(_unit(channels, with_width(chains, width), None if bare else factor, plain, normalization))
        stages.append(stage)
        if index == 2:
            last, channels = series(channels, [with_width(part, width) for part in form.last], normalization=normalization)
            stage.extend(last)
        features.append(channels)
    network = Network(
        nn.Sequential(*parts),
        stages,
        Head(channels, num_classes, dropout),
        feature_channels=features,
        feature_reductions=(8, 16, 32) if stem == "imagenet" else (1, 2, 4),
    )
    he_normal_(network)
    return network


def _unit(channels: int, chains: Iterable[str], factor: float | None, plain: bool, normalization: str) -> Unit:
    """`factor` None: neither scaling nor activation."""
    parallel, width = towers(channels, chains, normalization=normalization)
    branch = sequence(towers=parallel, expand=nn.Conv2d(width, channels, 1))
    if factor is not None:
        branch.add_module("scaling", Scale(factor, learned=False))
    post = nn.Identity() if factor is None else activation()
    return Unit(branch, None if plain else nn.Identity(), post=post)


def _published(version: str, table: str, depth: int, parameters: int, multiply_adds: int) -> Published:
    return Published(
        inception_resnet, {"version": version}, "inception_resnet", table, depth, parameters, multiply_adds, (3, 299, 299), 75
    )


inception_resnet_v1 = _published("v1", "Figure 15, figures 10 to 14", 93, 22_756_328, 6_206_361_696)
inception_resnet_v2 = _published("v2", "Figure 15, figures 16 to 19", 96, 32_433_928, 9_257_953_632)
