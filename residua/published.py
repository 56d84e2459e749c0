"""A network as published: a builder, the arguments that make it this network, and facts that tests hold it to. Layer 1."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from residua.errors import RequestError, unknown
from residua.network import Network

__all__ = ["Published"]


@dataclass(frozen=True)
class Published:
    """One network of a paper; calling it builds it.

    `depth` counts weight layers as the paper does; `parameters` and `multiply_adds` are exact, for `input_shape`
    (channels, height, width) and the paper's number of classes, a projection counted and a normalisation not;
    `table` says where the paper describes it.
    """

    builder: Callable[..., Network]
    arguments: Mapping[str, Any]
    paper: str
    table: str
    depth: int
    parameters: int
    multiply_adds: int
    input_shape: tuple[int, int, int]

    def __call__(self, **options: Any) -> Network:
        return self.builder(**{**self.arguments, **options})

    def options(self) -> dict[str, inspect.Parameter]:
        """The options that can be given, by name."""
        return {n: p for n, p in inspect.signature(self.builder).parameters.items() if n != "depth"}

    def check(self, name: str, options: Mapping[str, Any]) -> None:
        """Raises `RequestError` for an option that the network called `name` does not have."""
        for option in options:
            if option not in self.options():
                raise unknown(f"option of {name}", option, self.options())
        for count in ("num_classes", "in_channels"):
            if count in options and (not isinstance(options[count], int) or options[count] < 1):
                raise RequestError(f"{count} of {name} must be a whole number of at least 1, not {options[count]!r}.")
