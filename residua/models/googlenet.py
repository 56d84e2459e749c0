"""GoogLeNet (Szegedy et al. 2014, "Going Deeper with Convolutions"): nine Inception modules, two auxiliary heads.

    x_{l+1} = [1x1(x), 3x3(1x1(x)), 5x5(1x1(x)), 1x1(maxpool(x))],   each convolution followed by ReLU

Section 5 and Table 1; the towers are concatenated (figure 2b). No tower is a shortcut: all carry weights. The auxiliary heads
stand on modules 4a and 4d; in training their losses count with the factor 0.3.

Departures from the paper: the local response normalisation that figure 3 draws without numbers has those of Krizhevsky et al.
2012; the initialisation, which the paper does not give, is `residua.layers.he_normal_`; the heads average (or repeat) the maps
of images of other sizes to those of 224 pixels. `variant="torchvision"` is torchvision's network: batch normalisation, no local
response normalisation, 3x3 in the place of 5x5, a last pooling of 2x2, adaptive pooling in the auxiliary heads.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from residua.errors import RequestError
from residua.layers import AtLeast, conv_norm_act, he_normal_, sequence
from residua.network import Auxiliary, Head, Network, Stage, fully_connected_head
from residua.published import Published
from residua.towers import series

__all__ = ["googlenet"]

VARIANTS = ("paper", "torchvision")
# Table 1: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj of the modules at each resolution.
MODULES = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


def build_googlenet(
    *,
    variant: str = "paper",
    stem: str = "imagenet",
    num_classes: int = 1000,
    in_channels: int = 3,
    normalization: str | None = None,
    auxiliary: bool = True,
    dropout: float | None = None,
) -> Network:
    """Table 1. `variant` is "paper" or "torchvision"; `normalization` "none", "batch" or "group" (None: "none" in the paper's
    form, "batch" in torchvision's); `auxiliary` builds the two auxiliary heads; `dropout` acts before the classifier (None:
    0.4 in the paper's form, 0.2 in torchvision's; 0.7 in the auxiliary heads, or 0 if this is 0).

    Images have at least 31 pixels. `stem` is "imagenet" or "small": the same layers at stride 1 and without pooling, for images
    of some 8 to 64 pixels.
    """
    paper = variant == "paper"
    normalization = normalization if normalization is not None else "none" if paper else "batch"
    for name, value, valid in (
        ("variant", variant, VARIANTS),
        ("stem", stem, ("imagenet", "small")),
        ("normalization", normalization, ("none", "batch", "group")),
    ):
        if value not in valid:
            raise RequestError(f"{name} {value!r} is none of {', '.join(map(repr, valid))}.")
    dropout = dropout if dropout is not None else 0.4 if paper else 0.2
    if not 0 <= dropout < 1:
        raise RequestError(f"dropout is a probability in [0, 1), not {dropout}.")
    layer = partial(conv_norm_act, normalization=normalization, eps=1e-3)
    small = stem == "small"
    layers = sequence(
        conv1=layer(in_channels, 64, 7, 1 if small else 2),
        pool1=nn.Identity() if small else nn.MaxPool2d(3, 2, ceil_mode=True),
        response1=_response_norm() if paper else nn.Identity(),
        conv2=layer(64, 64, 1),
        conv3=layer(64, 192, 3),
        response2=_response_norm() if paper else nn.Identity(),
        pool2=nn.Identity() if small else nn.MaxPool2d(3, 2, ceil_mode=True),
    )
    stages, features, channels, fifth = [], [], 192, "5x5" if paper else "3x3"
    for index, modules in enumerate(MODULES):
        parts = [(f"1x1 {a}", f"1x1 {b}, 3x3 {c}", f"1x1 {d}, {fifth} {e}", f"max 3x3, 1x1 {f}") for a, b, c, d, e, f in modules]
        built, channels = series(channels, parts, normalization=normalization)
        pool = [nn.MaxPool2d(2 if index == 2 and not paper else 3, 2, ceil_mode=True)] if index else []
        stages.append(Stage(*pool, *built))
        features.append(channels)
    network = Network(
        layers,
        stages,
        Head(channels, num_classes, dropout),
        feature_channels=features,
        feature_reductions=(1, 2, 4) if small else (8, 16, 32),
        auxiliaries=[
            Auxiliary(_auxiliary_head(layer(width, 128, 1), num_classes, paper, 0.7 if dropout else 0.0), 1, unit, 0.3)
            for width, unit in ((512, 1), (528, 4))  # the first of the stage is its pooling
            if auxiliary
        ],
    )
    he_normal_(network)
    return network


def _response_norm() -> nn.Module:
    """Krizhevsky et al. 2012, section 3.3; torch divides alpha by the 5 maps."""
    return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)


def _auxiliary_head(to_128: nn.Module, num_classes: int, paper: bool, dropout: float) -> nn.Module:
    """Section 5: 5x5 average pooling at stride 3 (to 4 x 4 positions), 1x1 to 128 maps, 1024 units, dropout 0.7, classifier."""
    pool = sequence(least=AtLeast(5), average=nn.AvgPool2d(5, 3)) if paper else nn.AdaptiveAvgPool2d(4)
    connected = fully_connected_head(128, 4, (1024,), num_classes, dropout)
    return sequence(reduce=pool, conv=to_128, **dict(connected.named_children()))


googlenet = Published(build_googlenet, {}, "googlenet", "Table 1", 22, 13_378_280, 1_582_671_872, (3, 224, 224), 31)
