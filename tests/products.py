"""Parameters and multiply-adds as sums of products of dimensions, written by hand from the tables and figures of a paper."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from residua.layers import Towers
from residua.network import Network
from residua.unit import Unit

# Of a tower: (kernel positions, maps) of each layer; a layer at stride 2 is (positions, maps, "/2").
Layer = tuple[int, int] | tuple[int, int, str]


class Products:
    """`normalized`: each convolution has a scale and an offset a map in the place of its bias."""

    def __init__(self, channels: int, side: int, *, normalized: bool = True) -> None:
        self.channels, self.side, self.normalized = channels, side, normalized
        self.parameters = self.cost = 0

    @property
    def sums(self) -> tuple[int, int]:
        return self.parameters, self.cost

    def weights(self, kernel: int, inputs: int, outputs: int, side: int) -> None:
        """A convolution whose kernel has `kernel` positions, to side x side positions."""
        self.parameters += kernel * inputs * outputs
        self.cost += side * side * kernel * inputs * outputs

    def tower(self, channels: int, layers: Iterable[Layer], after: int) -> int:
        """A chain of convolutions on `channels` maps, `after` being the side behind a stride; gives its last width."""
        side = self.side
        for kernel, width, *stride in layers:
            side = after if stride else side
            self.weights(kernel, channels, width, side)
            self.parameters += 2 * width if self.normalized else width
            channels = width
        return channels

    def chain(self, *layers: Layer, after: int = 0) -> None:
        self.channels = self.tower(self.channels, layers, after)
        self.side = after or self.side

    def module(self, *towers: list[Layer], passed: bool = False, after: int = 0) -> None:
        """Parallel towers; `passed`: and a pooling that passes all maps on."""
        widths = [self.tower(self.channels, tower, after) for tower in towers]
        self.channels = sum(widths) + (self.channels if passed else 0)
        self.side = after or self.side

    def unit(self, *towers: list[Layer]) -> None:
        """A residual unit: towers, and a 1x1 expansion with biases."""
        width = sum(self.tower(self.channels, tower, 0) for tower in towers)
        self.weights(1, width, self.channels, self.side)
        self.parameters += self.channels

    def linear(self, inputs: int, outputs: int, *, in_training: bool = False) -> None:
        self.parameters += inputs * outputs + outputs
        self.cost += 0 if in_training else inputs * outputs


def longest_path(module: nn.Module) -> int:
    """The weight layers on the longest path from the input to the output."""
    if isinstance(module, Network):
        return longest_path(module.stem) + sum(map(longest_path, module.stages)) + longest_path(module.head)
    if isinstance(module, Unit):
        return longest_path(module.branch)
    if isinstance(module, Towers):
        return max(map(longest_path, module.children()))
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        return 1
    return sum(map(longest_path, module.children()))
