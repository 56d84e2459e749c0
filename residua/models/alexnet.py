"""AlexNet (Krizhevsky, Sutskever and Hinton 2012, "ImageNet Classification with Deep Convolutional Neural Networks").

    x_{l+1} = ReLU(W_l * x_l + b_l)

Section 3.5: five convolutions and three fully connected layers. The paper's two processors each hold half of the maps and
exchange them before the third layer only: these are convolutions in two groups. Local response normalisation and overlapping
pooling follow the first two layers, overlapping pooling the fifth.

Departures from the paper: its 224 pixels do not give the 55 x 55 positions that its 253,440 neurons of the first layer mean; as
in the re-implementations the image is padded by 2. `variant="torchvision"` is the network that torchvision calls AlexNet, the
one tower of Krizhevsky 2014 ("One weird trick for parallelizing convolutional neural networks"): 64, 192, 384, 256, 256 maps,
no groups, no local response normalisation, dropout before the fully connected layers.
"""

from __future__ import annotations

from torch import nn

from residua.errors import RequestError
from residua.layers import activation, sequence
from residua.network import Network, Stage, fully_connected_head
from residua.published import Published

__all__ = ["alexnet"]

# (kernel, maps, groups) of the five convolutions.
FORMS = {
    "paper": ((11, 96, 1), (5, 256, 2), (3, 384, 1), (3, 384, 2), (3, 256, 2)),
    "torchvision": ((11, 64, 1), (5, 192, 1), (3, 384, 1), (3, 256, 1), (3, 256, 1)),
}


def build_alexnet(*, variant: str = "paper", num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> Network:
    """Figure 2. `variant` is "paper" or "torchvision"; `dropout` acts on the two hidden fully connected layers.

    Images have at least 63 pixels; the last map of other sizes than 224 pixels is averaged to 6 x 6. The stem is the first
    convolution to its pooling, the stages go to the second and to the last pooling.

    Initialisation (section 5): weights Gaussian of standard deviation 0.01; biases 1 in the second, fourth and fifth
    convolution and in the hidden fully connected layers, else 0.
    """
    if variant not in FORMS:
        raise RequestError(f"variant {variant!r} is none of {', '.join(map(repr, FORMS))}.")
    if not 0 <= dropout < 1:
        raise RequestError(f"dropout is a probability in [0, 1), not {dropout}.")
    normalized = variant == "paper"
    form, channels, layers = FORMS[variant], in_channels, []
    for place, (kernel, width, groups) in enumerate(form, 1):
        stride, padding = (4, 2) if place == 1 else (1, kernel // 2)
        layer = sequence(conv=nn.Conv2d(channels, width, kernel, stride, padding, groups=groups), act=activation())
        if normalized and place <= 2:
            # torch divides alpha by the 5 maps: 1e-4 of section 3.3.
            layer.add_module("norm", nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0))
        if place in (1, 2, 5):
            layer.add_module("pool", nn.MaxPool2d(3, 2))
        layers.append(layer)
        channels = width
    network = Network(
        layers[0],
        [Stage(layers[1]), Stage(*layers[2:])],
        fully_connected_head(channels, 6, (4096, 4096), num_classes, dropout, dropout_first=variant == "torchvision"),
        feature_channels=(form[1][1], form[4][1]),
        feature_reductions=(16, 32),
    )
    weighted = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    for place, module in enumerate(weighted, 1):
        assert module.bias is not None
        nn.init.normal_(module.weight, std=0.01)
        nn.init.constant_(module.bias, 1.0 if place in (2, 4, 5, 6, 7) else 0.0)
    return network


alexnet = Published(build_alexnet, {}, "alexnet", "Figure 2", 8, 60_965_224, 724_406_816, (3, 224, 224), 63)
