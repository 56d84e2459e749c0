"""A network on one page: its units, its layers, what they cost. Layer 4."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from residua.cost import layer_table, num_parameters
from residua.models import CATALOG, create_model
from residua.published import Published
from residua.unit import walk

__all__ = ["inspect_model"]


def inspect_model(name: str, options: Mapping[str, Any], image_size: int | None = None) -> dict[str, Any]:
    """Units and layers of the catalogue's network `name`, built with `options`, for one square image of `image_size` pixels
    (None: the paper's input)."""
    entry = CATALOG.get(name)
    builder, arguments = (entry.builder, entry.arguments) if isinstance(entry, Published) else (entry, {})
    defaults = {parameter.name: parameter.default for parameter in inspect.signature(builder).parameters.values()}
    if image_size and "image_size" in defaults:  # a network that takes one size only
        options = {"image_size": image_size, **options}
    network = create_model(name, **options)
    built = {**defaults, **arguments, **options}
    side = image_size or built.get("image_size") or (entry.input_shape[-1] if isinstance(entry, Published) else 32)
    shape = (int(built["in_channels"]), int(side), int(side))
    layers = [asdict(row) for row in layer_table(network, shape)]
    units = [
        {
            "path": found.path,
            "depth": found.depth,
            "removable": found.removable,
            "shortcut": type(found.unit.shortcut).__name__ if found.unit.shortcut is not None else None,
            "merge": type(found.unit.merge).__name__,
            "branch": [type(layer).__name__ for layer in found.unit.branch.children()],
            "parameters": num_parameters(found.unit),
        }
        for found in walk(network)
    ]
    return {
        "name": name,
        "input_shape": list(shape),
        "parameters": num_parameters(network),
        "multiply_adds": sum(row["multiply_adds"] for row in layers),
        "feature_channels": list(network.feature_channels),
        "feature_reductions": list(network.feature_reductions),
        "units": units,
        "layers": layers,
    }
