"""Highway networks (Srivastava, Greff and Schmidhuber 2015, "Highway Networks" and "Training Very Deep Networks").

    y = H(x) T(x) + x (1 - T(x)),   T(x) = sigmoid(W_T x + b_T),   b_T < 0 at the start

H is a layer with its activation; T has the form of H's layer. A highway unit keeps the width, a plain layer changes it. Depth is
counted as in each experiment: the fully connected nets without the softmax layer, the convolutional ones with it.

What determines the networks. Fully connected: section 3.1 (a plain layer, then 9, 19, 49 or 99 highway or plain ones, softmax).
Convolutional: the text gives widths and depths only; the rest is the network definitions that the authors released, whose logs
print 151,690 parameters (MNIST, width 32; table 1 says 151k, and 39k for the 38,986 of width 16) and 2,256,838 (CIFAR-10, 19
layers, the form of section 3.3.2; table 2 says 2.3M). Highway A (11 layers, 236k parameters) and C (32 layers, 1.25M) of table 2
are not here: neither the paper nor the release determines them. `cifar_highway(widths=(16, 32, 64), units=(2, 2, 2))`, the
19-layer form on widths like those of the 11-layer FitNet, has 225,078 parameters.

Departures. The papers search for the gate bias (-1 to -10) and do not print what they found. Fully connected it is -4 here, with
which all four depths begin to learn at one rate (the 50-layer net of figure 2 started at -2, which needs more care: 49 gates
of -2 let 0.2 % of the signal pass); convolutional it is the release's, -1 and -2. Fully connected weights start as He et al.
2015b for ReLU, as Glorot and Bengio 2010 for tanh; the convolutional ones as the release's "xavier", uniform within
sqrt(3 / fan_in), on the first layer too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from residua.errors import RequestError
from residua.layers import conv, he_normal_, sequence
from residua.network import Head, Network, Stage
from residua.published import Published
from residua.unit import Gate, Unit, walk

__all__ = [
    "highway_10", "highway_20", "highway_50", "highway_100",
    "highway_plain_10", "highway_plain_20", "highway_plain_50", "highway_plain_100",
    "highway_conv_10_16", "highway_conv_10_32", "highway_conv_19",
    "highway", "mnist_highway", "cifar_highway",
]  # fmt: skip

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


def highway(
    depth: int,
    *,
    width: int = 50,
    plain: bool = False,
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 28,
    activation: str = "relu",
    gate_bias: float = -4.0,
) -> Network:
    """Section 3.1: a plain layer on all pixels, then `depth` - 1 fully connected highway units of `width`.

    `plain` has layers without gate and shortcut in their place; the paper compares width 50 with plain width 71, of nearly as
    many parameters a layer (5,100 and 5,112). It takes square images of side `image_size` only. `activation` of H is "relu" or
    "tanh"; `gate_bias` is b_T at the start (the paper: -1 to -10).
    """
    for name, value, least in (("depth", depth, 2), ("width", width, 1), ("image_size", image_size, 1)):
        if not isinstance(value, int) or value < least:
            raise RequestError(f"{name} of a highway network must be a whole number of at least {least}, not {value!r}.")
    act = _activation(activation)
    network = Network(
        sequence(flatten=nn.Flatten(), layer=nn.Linear(in_channels * image_size**2, width), act=act()),
        [Stage(*(_unit(partial(nn.Linear, width, width), act, plain) for _ in range(depth - 1)))],
        Head(width, num_classes),
        feature_channels=[width],
        feature_reductions=[image_size],
    )
    he_normal_(network)
    if activation == "tanh":
        for layer in _weighted(network):
            nn.init.xavier_uniform_(layer.weight)
    return _with_gate_bias(network, gate_bias)


def mnist_highway(
    *,
    width: int = 32,
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 28,
    activation: str = "relu",
    gate_bias: float = -1.0,
    dropout: Sequence[float] = (0.2, 0.3, 0.4, 0.5),
) -> Network:
    """Section 3.2: nine convolutions of one `width` and a softmax layer on all positions of the last map.

    A plain 5x5 convolution without padding, then two, three and three 3x3 highway units, each group followed by max pooling that
    halves the resolution. It takes square images of side `image_size` (at least 10) only. `dropout`: on the input and after
    each pooling.
    """
    if not isinstance(image_size, int) or image_size < 10:
        raise RequestError(f"image_size of a convolutional highway network must be at least 10 pixels, not {image_size!r}.")
    act, drops = _activation(activation), _dropouts(dropout)
    stages = []
    for units, window, drop in ((2, 3, drops[1:2]), (3, 3, drops[2:3]), (3, 2, [])):
        layers = [_unit(partial(conv, width, width, 3, bias=True), act) for _ in range(units)]
        stages.append(Stage(*layers, nn.MaxPool2d(window, 2, ceil_mode=True), *drop))
    side = -(-((image_size - 4) // 2 // 2) // 2)
    network = Network(
        sequence(dropout=drops[0], layer=nn.Conv2d(in_channels, width, 5), act=act()),
        stages,
        FlatHead(width * side**2, num_classes, drops[3]),
        feature_channels=[width] * 3,
        feature_reductions=[2, 4, 8],
    )
    return _with_gate_bias(_xavier_(network, classifier_std=0.1), gate_bias)


def cifar_highway(
    *,
    widths: Sequence[int] = (32, 80, 128),
    units: Sequence[int] = (4, 5, 5),
    num_classes: int = 10,
    in_channels: int = 3,
    activation: str = "relu",
    gate_bias: float = -2.0,
    dropout: Sequence[float] = (0.2, 0.2, 0.2, 0.2),
) -> Network:
    """Section 3.3.2, "based on FitNets": three groups of a plain 3x3 convolution and `units[i]` 3x3 highway units of `widths[i]`,
    max pooling that halves the resolution between them, a plain 1x1 convolution of 100 channels, global average pooling, softmax.

    `dropout`: on the input, after each max pooling and before the softmax layer.
    """
    if len(widths) != 3 or len(units) != 3:
        raise RequestError(f"widths and units are three numbers each, not {widths!r} and {units!r}.")
    act, drops, last = _activation(activation), _dropouts(dropout), 100
    stages = []
    for index, (width, count) in enumerate(zip(widths, units)):
        stage = Stage()
        if index:
            stage.append(sequence(layer=conv(widths[index - 1], width, 3, bias=True), act=act()))
        stage.extend(_unit(partial(conv, width, width, 3, bias=True), act) for _ in range(count))
        if index < 2:
            stage.extend([nn.MaxPool2d(2, 2, ceil_mode=True), drops[index + 1]])
        else:
            stage.append(sequence(layer=conv(width, last, 1, bias=True), act=act()))
        stages.append(stage)
    head = Head(last, num_classes)
    head.dropout = drops[3]
    network = Network(
        sequence(dropout=drops[0], layer=conv(in_channels, widths[0], 3, bias=True), act=act()),
        stages,
        head,
        feature_channels=[widths[0], widths[1], last],
        feature_reductions=[2, 4, 4],
    )
    return _with_gate_bias(_xavier_(network, classifier_std=0.05), gate_bias)


class FlatHead(nn.Module):
    """Dropout and a linear classifier on all positions: [N, C, H, W] -> [N, num_classes], for one size of image."""

    def __init__(self, features: int, num_classes: int, dropout: nn.Module) -> None:
        super().__init__()
        self.dropout = dropout
        self.classifier = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(x).flatten(1))


def gate_activity(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The mean activity of the transform gates T of each unit over the batch `x` (figure 2): unit's path -> [width], in [0, 1].

    Positions of a map count like samples. The model is run once, in the mode it is in, and left as it was.
    """
    found: dict[str, Tensor] = {}
    with ExitStack() as hooks, torch.no_grad():
        for located in walk(model):
            if isinstance(located.unit.merge, Gate):
                handle = located.unit.merge.transform.register_forward_hook(
                    lambda _m, _i, logits, path=located.path: found.update({path: torch.sigmoid(logits)})
                )
                hooks.callback(handle.remove)
        model(x)
    return {path: gate.transpose(0, 1).flatten(1).mean(1) for path, gate in found.items()}


def _unit(layer: Callable[[], nn.Module], act: Callable[[], nn.Module], plain: bool = False) -> Unit:
    branch = sequence(layer=layer(), act=act())
    return Unit(branch) if plain else Unit(branch, nn.Identity(), Gate(layer()))


def _activation(name: str) -> Callable[[], nn.Module]:
    if name not in ACTIVATIONS:
        raise RequestError(f"activation {name!r} is none of {', '.join(map(repr, ACTIVATIONS))}.")
    return ACTIVATIONS[name]


def _dropouts(rates: Sequence[float]) -> list[nn.Dropout | nn.Identity]:
    if not isinstance(rates, (list, tuple)) or len(rates) != 4 or not all(0 <= rate < 1 for rate in rates):
        raise RequestError(f"dropout of a convolutional highway network is four probabilities in [0, 1), not {rates!r}.")
    return [nn.Dropout(rate) if rate else nn.Identity() for rate in rates]


def _weighted(network: Network) -> Iterator[nn.Linear | nn.Conv2d]:
    return (module for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d)))


def _xavier_(network: Network, classifier_std: float) -> Network:
    """Uniform weights within sqrt(3 / fan_in), a Gaussian classifier, biases 0: the fillers of the authors' release."""
    for layer in _weighted(network):
        bound = math.sqrt(3 / layer.weight[0].numel())
        nn.init.uniform_(layer.weight, -bound, bound)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    assert isinstance(network.head.classifier, nn.Linear)
    nn.init.normal_(network.head.classifier.weight, std=classifier_std)
    return network


def _with_gate_bias(network: Network, value: float) -> Network:
    for located in walk(network):
        if isinstance(located.unit.merge, Gate):
            bias = located.unit.merge.transform.bias
            assert isinstance(bias, nn.Parameter)
            nn.init.constant_(bias, value)
    return network


def _mnist(depth: int, parameters: int, multiply_adds: int, *, plain: bool = False) -> Published:
    arguments = {"depth": depth, "plain": plain, "width": 71 if plain else 50}
    return Published(highway, arguments, "highway", "Figure 1", depth, parameters, multiply_adds, (1, 28, 28), least_side=28)


def _mnist_conv(width: int, parameters: int, multiply_adds: int) -> Published:
    return Published(
        mnist_highway, {"width": width}, "highway", "NIPS table 1", 10, parameters, multiply_adds, (1, 28, 28), least_side=28
    )


highway_10 = _mnist(10, 85_660, 84_700)
highway_20 = _mnist(20, 136_660, 134_700)
highway_50 = _mnist(50, 289_660, 284_700)
highway_100 = _mnist(100, 544_660, 534_700)
highway_plain_10 = _mnist(10, 102_463, 101_743, plain=True)
highway_plain_20 = _mnist(20, 153_583, 152_153, plain=True)
highway_plain_50 = _mnist(50, 306_943, 303_383, plain=True)
highway_plain_100 = _mnist(100, 562_543, 555_433, plain=True)
highway_conv_10_16 = _mnist_conv(16, 38_986, 8_028_576)
highway_conv_10_32 = _mnist_conv(32, 151_690, 31_650_624)
highway_conv_19 = Published(cifar_highway, {}, "highway", "NIPS table 3", 19, 2_256_838, 330_826_728, (3, 32, 32))
