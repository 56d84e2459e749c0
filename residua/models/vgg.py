"""VGG networks (Simonyan and Zisserman 2014, "Very Deep Convolutional Networks for Large-Scale Image Recognition").

    x_{l+1} = ReLU(W_l * x_l + b_l),   all kernels 3x3: the plain networks that he2015 compares with and builds on.

Departures from the paper: none in the networks of Table 1. The forms with batch normalisation (`vgg16_bn`, ...) are those of
the re-implementations, which keep the biases of the convolutions. The paper starts the deeper networks from a trained network
A; its section 3.1 adds that the random initialisation of Glorot and Bengio (2010) does without, and that is used here. Images
of other sizes than 224 pixels are taken by averaging the last map to 7 x 7 (the paper's dense evaluation makes the first fully
connected layer a 7x7 convolution instead).
"""

from __future__ import annotations

from torch import nn

from residua.errors import RequestError
from residua.layers import conv_norm_act
from residua.network import Head, Network, Stage, fully_connected_head
from residua.published import Published

__all__ = [
    "vgg11", "vgg11_lrn", "vgg13", "vgg16_c", "vgg16", "vgg19",
    "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn",
    "vgg",
]  # fmt: skip

WIDTHS = (64, 128, 256, 512, 512)
# Table 1: the number of layers at each resolution.
CONFIGURATIONS = {
    "A": (1, 1, 2, 2, 2),
    "A-LRN": (1, 1, 2, 2, 2),
    "B": (2, 2, 2, 2, 2),
    "C": (2, 2, 3, 3, 3),
    "D": (2, 2, 3, 3, 3),
    "E": (2, 2, 4, 4, 4),
}
HEADS = ("fully-connected", "linear")


def vgg(
    configuration: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    normalization: str = "none",
    head: str = "fully-connected",
    dropout: float = 0.5,
    width: float = 1,
) -> Network:
    """Table 1: `configuration` "A", "A-LRN" (local response normalisation after the first layer), "B", "C" (the third layer of a
    group is 1x1), "D" or "E".

    The stem is the first group of layers and its pooling, the stages are the other four. `normalization` "none", "batch" or
    "group" acts between convolution and ReLU. `head` is "fully-connected" (4096, 4096, `num_classes`; 90 % of the weights of
    VGG-16) or "linear" (global average pooling and one layer, the usual choice for images of 32 pixels). `dropout` acts in the
    head. `width` is a factor of the channels of the convolutions, which it must leave whole numbers (64 and 512 of them at 1).
    """
    for name, value, valid in (
        ("configuration", configuration, tuple(CONFIGURATIONS)),
        ("normalization", normalization, ("none", "batch", "group")),
        ("head", head, HEADS),
    ):
        if value not in valid:
            raise RequestError(f"{name} {value!r} is none of {', '.join(map(repr, valid))}.")
    if not 0 <= dropout < 1:
        raise RequestError(f"dropout is a probability in [0, 1), not {dropout}.")
    widths = [int(width * full) for full in WIDTHS]
    if widths[0] < 1 or widths[0] != width * WIDTHS[0]:
        raise RequestError(f"width must make 64 times itself a whole number of channels, such as 0.25, 0.5 or 1, not {width!r}.")
    stages, channels = [], in_channels
    for maps, count in zip(widths, CONFIGURATIONS[configuration]):
        stage = Stage()
        for place in range(count):
            kernel = 1 if configuration == "C" and place == 2 else 3
            stage.append(conv_norm_act(channels, maps, kernel, bias=True, normalization=normalization))
            if configuration == "A-LRN" and channels == in_channels:
                stage.append(nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0))  # torch divides alpha by the 5 channels
            channels = maps
        stage.append(nn.MaxPool2d(2, 2))
        stages.append(stage)
    hidden = (4096, 4096) if head == "fully-connected" else ()
    network = Network(
        stages[0],
        stages[1:],
        fully_connected_head(channels, 7, hidden, num_classes, dropout) if hidden else Head(channels, num_classes, dropout),
        feature_channels=widths[1:],
        feature_reductions=(4, 8, 16, 32),
    )
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def _published(configuration: str, depth: int, parameters: int, multiply_adds: int, normalization: str = "none") -> Published:
    return Published(
        vgg, {"configuration": configuration, "normalization": normalization}, "vgg", f"Table 1, {configuration}", depth,
        parameters, multiply_adds, (3, 224, 224), 32,
    )  # fmt: skip


vgg11 = _published("A", 11, 132_863_336, 7_609_090_048)
vgg11_lrn = _published("A-LRN", 11, 132_863_336, 7_609_090_048)
vgg13 = _published("B", 13, 133_047_848, 11_308_466_176)
vgg16_c = _published("C", 16, 133_638_952, 11_770_888_192)
vgg16 = _published("D", 16, 138_357_544, 15_470_264_320)
vgg19 = _published("E", 19, 143_667_240, 19_632_062_464)
vgg11_bn = _published("A", 11, 132_868_840, 7_609_090_048, "batch")
vgg13_bn = _published("B", 13, 133_053_736, 11_308_466_176, "batch")
vgg16_bn = _published("D", 16, 138_365_992, 15_470_264_320, "batch")
vgg19_bn = _published("E", 19, 143_678_248, 19_632_062_464, "batch")
