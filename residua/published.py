"""A network as published: a builder, the arguments that make it this network, and facts that tests hold it to. Layer 1."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from residua.errors import RequestError, unknown
from residua.network import Network

__all__ = ["PAPERS", "Published"]

PAPERS = {
    "he2015": "He et al. 2015, Deep Residual Learning for Image Recognition",
    "he2016": "He et al. 2016, Identity Mappings in Deep Residual Networks",
    "wrn": "Zagoruyko and Komodakis 2016, Wide Residual Networks",
    "resnext": "Xie et al. 2016, Aggregated Residual Transformations for Deep Neural Networks",
    "densenet": "Huang et al. 2016, Densely Connected Convolutional Networks",
    "highway": "Srivastava et al. 2015, Highway Networks",
    "inception_resnet": "Szegedy et al. 2016, Inception-v4, Inception-ResNet and the Impact of Residual Connections",
    "alexnet": "Krizhevsky et al. 2012, ImageNet Classification with Deep Convolutional Neural Networks",
    "vgg": "Simonyan and Zisserman 2014, Very Deep Convolutional Networks for Large-Scale Image Recognition",
    "googlenet": "Szegedy et al. 2014, Going Deeper with Convolutions",
}
"""The papers that describe the networks, by the key that `Published.paper` gives."""


@dataclass(frozen=True)
class Published:
    """One network of a paper; calling it builds it.

    `depth` counts weight layers as the paper does; `parameters` and `multiply_adds` are exact, for `input_shape`
    (channels, height, width) and the paper's number of classes, a projection counted and a normalisation not;
    `table` says where the paper describes it. `least_side` is the smallest side of a square image that it takes, in pixels
    (that of `input_shape` where it takes no other).
    """

    builder: Callable[..., Network]
    arguments: Mapping[str, Any]
    paper: str
    table: str
    depth: int
    parameters: int
    multiply_adds: int
    input_shape: tuple[int, int, int]
    least_side: int = 1

    def __call__(self, **options: Any) -> Network:
        return self.builder(**{**self.arguments, **options})

    def options(self) -> dict[str, inspect.Parameter]:
        """The options that can be given, by name."""
        return {n: p for n, p in inspect.signature(self.builder).parameters.items() if n != "depth"}

    def check(self, name: str, options: Mapping[str, Any], others: Iterable[str] = ()) -> None:
        """Raises `RequestError` for an option that is neither one of the network called `name` nor one of `others`, and for a
        value that is not of the option's kind (a text for a number)."""
        known = [*self.options(), *others]
        for option in options:
            if option not in known:
                raise unknown(f"option of {name}", option, known)
        for count in ("num_classes", "in_channels"):
            if count in options and (not isinstance(options[count], int) or options[count] < 1):
                raise RequestError(f"{count} of {name} must be a whole number of at least 1, not {options[count]!r}.")
        signature = inspect.signature(self.builder).parameters
        for option, value in options.items():
            if option in signature and (wanted := _wanted(signature[option], value)):
                quoted = _is_number(value) and "number" in wanted
                given = f"the text {value!r}: give it without quotation marks" if quoted else repr(value)
                raise RequestError(f"{option} of {name} must be {wanted}, not {given}.")


_KINDS: dict[str, tuple[str, type | tuple[type, ...]]] = {
    "int": ("a whole number", int),
    "float": ("a number", (int, float)),
    "bool": ("true or false", bool),
}


def _wanted(parameter: inspect.Parameter, value: Any) -> str:
    """What `value` would have to be for a parameter that takes numbers or truth values; "" where it is that, or where the
    annotation asks for something else, which the builder checks."""
    kind, _, rest = str(parameter.annotation).partition(" | ")
    if kind not in _KINDS or rest not in ("", "None") or (rest and value is None):
        return ""
    words, types = _KINDS[kind]
    fits = isinstance(value, types) and (kind == "bool" or not isinstance(value, bool))
    return "" if fits else f"{words} or None" if rest else words


def _is_number(value: Any) -> bool:
    """Whether `value` is a text that reads as a number."""
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False
