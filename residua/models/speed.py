"""A residual network for small images that reaches a given accuracy in little time. Layer 2.

After Page 2018, "How to train your ResNet", and Jordan 2024, "94 % on CIFAR-10 in 3.29 seconds on a single GPU":

    stem      whitening: fixed 2x2 filters from the data, both signs, then GELU
    stage i   widen: 3x3 convolution, 2x2 max pooling, norm, GELU    (a plain unit: its width changes)
              x_{l+1} = GELU(x_l + F(x_l)), F = 3x3-norm             (`units` of them), or 3x3-norm-GELU-3x3-norm
    head      maximum over all positions, linear layer without bias, of standard deviation 1 / features at the start

What makes it fast: the first layer has nothing to learn; few layers, each wide enough that a matrix unit is busy; the identity
past each convolution behind the pooling lets rates be high from the first update; a head near zero, so that nothing has to be
unlearned first. It is our own network: there are no published entries here, only the builder.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from residua.errors import RequestError
from residua.layers import Whitening, conv, he_normal_, norm, sequence
from residua.network import Network, Stage
from residua.unit import Unit

__all__ = ["speed_resnet"]


def speed_resnet(
    *,
    widths: Sequence[int] = (64, 256, 384),
    units: Sequence[int] = (1, 1, 1),
    convolutions: int = 1,
    num_classes: int = 10,
    in_channels: int = 3,
    plain: bool = False,
    normalization: str = "batch",
) -> Network:
    """`units[i]` residual units of `widths[i]` channels in stage i, `convolutions` in each branch, behind a plain one that
    widens and halves the map.

    Images of at least 2^stages + 1 pixels a side. `plain` leaves the shortcuts out; `normalization` is "batch" or "group".
    """
    if len(widths) != len(units) or not widths or min(widths) < 1 or min(units) < 0:
        raise RequestError(f"speed_resnet takes as many widths as numbers of units, all positive, not {widths} and {units}.")
    if convolutions < 1:
        raise RequestError(f"speed_resnet takes branches of at least one convolution, not {convolutions}.")
    if normalization not in ("batch", "group"):
        raise RequestError(
            f"normalization {normalization!r} is none of batch and group: an update without one would not be bounded."
        )
    stages, channels = [], 8 * in_channels
    for width, count in zip(widths, units):
        stage = Stage(_widening(channels, width, normalization))
        for _ in range(count):
            branch = _branch(width, convolutions, normalization)
            stage.append(Unit(branch, None if plain else nn.Identity(), post=nn.GELU()))
        stages.append(stage)
        channels = width
    head = PeakHead(channels, num_classes)
    network = Network(
        sequence(whitening=Whitening(in_channels), act=nn.GELU()),
        stages,
        head,
        feature_channels=list(widths),
        feature_reductions=[2 ** (index + 1) for index in range(len(widths))],
    )
    he_normal_(network)
    nn.init.normal_(head.classifier.weight, std=1 / channels)
    return network


def _widening(in_channels: int, out_channels: int, normalization: str) -> Unit:
    layers = sequence(conv=conv(in_channels, out_channels, 3), pool=nn.MaxPool2d(2), norm=norm(out_channels, kind=normalization))
    return Unit(layers, post=nn.GELU())


def _branch(width: int, convolutions: int, normalization: str) -> nn.Sequential:
    layers: dict[str, nn.Module] = {}
    for place in range(1, convolutions + 1):
        number = str(place) if convolutions > 1 else ""
        if place > 1:
            layers[f"act{place - 1}"] = nn.GELU()
        layers[f"conv{number}"] = conv(width, width, 3)
        layers[f"norm{number}"] = norm(width, kind=normalization)
    return sequence(**layers)


class PeakHead(nn.Module):
    """The maximum over all positions, and a linear classifier without bias: [N, C, H, W] -> [N, num_classes]."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(channels, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x.amax((2, 3)))
