"""Taking units out of a network for good. Layer 1.

What is removed leaves an identity in its place, which costs nothing, so that all other units keep their names and with them their
weights. Only units whose input can stand in for their output can go (`residua.unit.Located.removable`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from residua.errors import RequestError, unknown
from residua.network import Network
from residua.unit import Concat, Located, Unit, shape_changed, walk

__all__ = ["outermost", "remove", "taken_out", "why_kept"]


def outermost(model: nn.Module) -> list[Located]:
    """The units of `model` that stand in no other, in order."""
    return [found for found in walk(model) if not found.depth]


def why_kept(unit: Unit) -> str:
    """Why a unit cannot be removed, "" if it can."""
    if next(walk(unit)).removable:
        return ""
    if isinstance(unit.merge, Concat):
        return "it concatenates, and what follows reads its maps"
    if unit.shortcut is not None:
        return "its shortcut is not the identity"
    return shape_changed(unit.branch)


def remove(network: Network, paths: Sequence[str]) -> None:
    """Takes the units called `paths` ("stages.0.2") out of `network`, in place, and notes them in `network.removed_units`.

    Raises `RequestError` for a path that names no unit, with the nearest ones, and for a unit that cannot go, with the reason.
    """
    if isinstance(paths, str) or not all(isinstance(path, str) for path in paths):
        raise RequestError(f"removed_units is a list of units' paths such as ['stages.0.2'], not {paths!r}.")
    units = {found.path: found.unit for found in walk(network)}
    for place, path in enumerate(paths):
        if path not in units or path in paths[:place]:
            raise unknown("unit", path, [name for name in units if name not in paths[:place]])
        if reason := why_kept(units[path]):
            raise RequestError(f"The unit {path} cannot be removed: {reason}.")
    for path in paths:
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, nn.Identity())
    network.removed_units = (*network.removed_units, *paths)


@contextmanager
def taken_out(*units: Unit) -> Iterator[None]:
    """Within the block the input of each of `units` stands in for its output, as if it were removed; the model is not edited."""

    def pass_by(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> Tensor:
        return inputs[0]

    handles = [unit.register_forward_hook(pass_by) for unit in units]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
