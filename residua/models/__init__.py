"""The catalogue of networks: one family a file, found by name on request."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from residua import variations
from residua.catalog import Catalog
from residua.errors import RequestError
from residua.network import Network
from residua.published import Published

CATALOG = Catalog("residua.models", "model", "`residua models` lists them.")


def list_models(pattern: str = "*") -> list[str]:
    """The names of the published networks that match the shell pattern, in the order of the families. A hyphen in it means an
    underscore, as in names."""
    pattern = pattern.replace("-", "_")
    return [name for name, entry in CATALOG.items() if isinstance(entry, Published) and fnmatch.fnmatch(name, pattern)]


def create_model(name: str, **options: Any) -> Network:
    """The network called `name`, freshly initialised from torch's generator.

    `options` are those of its family (`num_classes`, `in_channels`, `shortcut`, `stem`, ...; a family's builder such as
    `cifar_resnet` also takes `depth`) and those of `residua.variations.vary`, which any network built of units takes
    (`initializer`, `start`, `stochastic_depth`). Raises `RequestError` for an unknown name or option, with the nearest
    ones, and for a value that the family does not have.
    """
    entry = CATALOG.get(name)
    check_options(name, entry, options)
    varied = {option: options.pop(option) for option in variations.OPTIONS if option in options}
    try:
        network = entry(**options)
        variations.vary(network, **varied)
        return network
    except (TypeError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{name} cannot be built with {options}: {error}.") from error


def outlined(name: str, **options: Any) -> Network:
    """The network with shapes but without values, on the meta device, where its initialisers do not look at values; built for
    counting, and without a trace in torch's generator."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"), _Undrawn():
                return create_model(name, **options)
        except (NotImplementedError, RuntimeError):
            return create_model(name, **options)


DRAWS = frozenset({
    torch.Tensor.normal_, torch.Tensor.uniform_, torch.nn.init.normal_, torch.nn.init.uniform_,
    torch.nn.init.kaiming_normal_, torch.nn.init.kaiming_uniform_,
})  # fmt: skip


class _Undrawn(TorchFunctionMode):
    """Within it tensors are not filled with draws: on the meta device they have no values, and to draw them takes longest."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        return (args[0] if args else given["tensor"]) if function in DRAWS else function(*args, **given)


def check_options(name: str, entry: Callable[..., Network], options: dict[str, Any]) -> None:
    """Raises `RequestError` for options that do not exist."""
    if isinstance(entry, Published):
        entry.check(name, options, variations.OPTIONS)
    else:
        Published(entry, {}, "", "", 0, 0, 0, (3, 32, 32)).check(name, options, ["depth", *variations.OPTIONS])
