"""The catalogue of networks: one family a file, found by name on request."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from typing import Any

from residua.catalog import Catalog
from residua.errors import RequestError, unknown
from residua.network import Network
from residua.published import Published

CATALOG = Catalog("residua.models", "model", "`residua models` lists them.")


def list_models(pattern: str = "*") -> list[str]:
    """The names of the published networks that match the shell pattern, in the order of the families."""
    return [name for name, entry in CATALOG.items() if isinstance(entry, Published) and fnmatch.fnmatch(name, pattern)]


def create_model(name: str, **options: Any) -> Network:
    """The network called `name`, freshly initialised from torch's generator.

    `options` are those of its family (`num_classes`, `in_channels`, `shortcut`, `stem`, ...; a family's builder such as
    `cifar_resnet` also takes `depth`). Raises `RequestError` for an unknown name or option, with the nearest ones, and for
    a value that the family does not have.
    """
    entry = CATALOG.get(name)
    check_options(name, entry, options)
    try:
        return entry(**options)
    except (TypeError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{name} cannot be built with {options}: {error}.") from error


def check_options(name: str, entry: Callable[..., Network], options: dict[str, Any]) -> None:
    """Raises `RequestError` for options that do not exist."""
    if not isinstance(entry, Published):
        entry = Published(entry, {}, "", "", 0, 0, 0, (3, 32, 32))
        names = {**entry.options(), "depth": None}
        for option in options:
            if option not in names:
                raise unknown(f"option of {name}", option, names)
        options = {option: value for option, value in options.items() if option != "depth"}
    entry.check(name, options)
