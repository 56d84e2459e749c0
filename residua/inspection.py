"""Any network taken apart: its skips, its paths, which sort of connections it has, and what it costs. Layer 4."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from residua.census import Census, Skip, Unknown, census
from residua.cost import Kept, LayerCost, kept_bytes, layer_costs, num_parameters
from residua.errors import RequestError, RunError
from residua.flow import Flow
from residua.graph import capture
from residua.network import Network
from residua.origins import Origin, open_network
from residua.paths import Lengths, num_paths, path_lengths
from residua.receptive import Effective, Receptive, Whole, effective_field, receptive_field
from residua.unit import walk
from residua.verdict import Verdict, verdict

__all__ = ["Cost", "Inspection", "inspect", "inspect_model"]


@dataclass(frozen=True)
class Cost:
    """What a network costs for all the inputs it was looked at with (networks by name: a batch of one, unless a file's factory
    gives more).

    `multiply_adds` are those of convolutions and matrix products, by torch's own counter, in `layers` a layer at a time;
    `skip_additions` the single additions at the merges of additive skips, which are not among them. `kept_bytes` is what a
    training step keeps for its backward pass, the input included; None where the network cannot run in training mode.
    """

    parameters: int
    multiply_adds: int
    skip_additions: int
    kept_bytes: int | None
    layers: tuple[LayerCost, ...]


@dataclass(frozen=True)
class Inspection:
    """A network taken apart.

    `skips` and `unknown` are those of the census (each skip with kind, way, source, merge, span, proven); `num_paths` is exact,
    and `path_lengths` are distributions in weight "layers" and in "units"; None where the paths cross in too many ways.
    `receptive` tells the receptive field in theory or why there is none, `effective` in effect (None: not measured). `how`
    and `unseen` say how the graph was captured and what that could not see, `note` what to know of where the network is from.
    """

    name: str
    model: nn.Module
    inputs: tuple[Any, ...]
    note: str
    census: Census
    verdict: Verdict
    num_paths: int | None
    path_lengths: Mapping[str, Lengths] | None
    cost: Cost
    receptive: Receptive | Whole
    effective: Effective | None

    @property
    def skips(self) -> tuple[Skip, ...]:
        return self.census.skips

    @property
    def unknown(self) -> tuple[Unknown, ...]:
        return self.census.unknown

    @property
    def flow(self) -> Flow:
        return self.census.flow

    @property
    def how(self) -> str:
        return self.census.captured.how

    @property
    def unseen(self) -> tuple[str, ...]:
        return self.census.captured.unseen

    def svg(self, fold: bool | None = None) -> str:
        """The drawing of the network as an SVG document; series of equal blocks are folded if `fold` (None: where it is long)."""
        from residua.draw import network_svg

        return network_svg(self.flow, self.skips, self.name, fold=fold)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; docs/json-output.md lists the fields."""
        shape = next((list(value.shape) for value in self.inputs if isinstance(value, Tensor)), [])
        network = self.model if isinstance(self.model, Network) else None
        return {
            "name": self.name,
            "note": self.note,
            "batch": shape[0] if shape else 1,
            "input_shape": shape[1:],
            "parameters": self.cost.parameters,
            "multiply_adds": self.cost.multiply_adds,
            "feature_channels": list(network.feature_channels) if network else [],
            "feature_reductions": list(network.feature_reductions) if network else [],
            "verdict": {"answer": self.verdict.answer, "reasons": list(self.verdict.reasons)},
            "skips": [_skip(skip) for skip in self.skips],
            "unknown": [{"merge": merge.merge, "reason": merge.reason} for merge in self.unknown],
            "dense_connections": self.census.dense_connections,
            "num_paths": self.num_paths,
            "path_lengths": {key: _lengths(value) for key, value in self.path_lengths.items()} if self.path_lengths else None,
            "cost": {key: value for key, value in vars(self.cost).items() if key != "layers"},
            "receptive_field": _field(self.receptive, self.effective),
            "capture": {"how": self.how, "unseen": list(self.unseen)},
            "units": _units(self.model),
            "layers": [asdict(row) for row in self.cost.layers],
        }


def inspect(
    model: nn.Module | str,
    example_inputs: tuple[Any, ...] | Tensor | None = None,
    *,
    image_size: int | None = None,
    **options: Any,
) -> Inspection:
    """Takes a network apart: any module with the inputs that it is called with, or a network by its name.

    `example_inputs` are the positional arguments of a call (or its one tensor). A name is one of our catalogue,
    `torchvision:NAME`, `timm:NAME`, `transformers:CONFIG_CLASS` or `FILE.py:FACTORY` (which runs that file); `image_size`
    (pixels) and `options` are for names only. Their weights are random, on which neither skips nor paths depend; the effective
    receptive field does. The module is not changed. Raises `RequestError` where it cannot be captured.
    """
    if isinstance(model, str):
        if example_inputs is not None:
            raise RequestError(f"Example inputs are for modules; {model} is a name, for which `image_size` says the size.")
        origin = open_network(model, options, image_size)
        try:
            return _inspected(origin)
        except RequestError as error:
            raise RequestError(f"{error} {origin.advice}".rstrip()) from error
    if example_inputs is None or image_size is not None or options:
        raise RequestError("A module is looked at with example inputs: residua.inspect(model, (x,)). Nothing else can be set.")
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    return _inspected(Origin(type(model).__name__, model, inputs))


def inspect_model(name: str, options: Mapping[str, Any], image_size: int | None = None) -> dict[str, Any]:
    """What `inspect` says of the network called `name`, as plain JSON values."""
    return _inspected(open_network(name, options, image_size)).to_dict()


def _inspected(origin: Origin) -> Inspection:
    found = census(capture(origin.model, origin.inputs))
    receptive = receptive_field(found.captured, {skip.merge_node for skip in found.skips})
    count: int | None = None
    lengths: dict[str, Lengths] | None = None
    with suppress(RunError):  # the paths cross in too many ways
        count = num_paths(found.flow)
        lengths = {measure: path_lengths(found.flow, measure) for measure in ("layers", "units")}
    return Inspection(
        name=origin.name, model=origin.model, inputs=origin.inputs, note=origin.note, census=found,
        verdict=verdict(found.skips, found.flow, len(found.unknown)), num_paths=count, path_lengths=lengths,
        cost=_cost(origin, found), receptive=receptive, effective=_effective(found, receptive),
    )  # fmt: skip


def _cost(origin: Origin, found: Census) -> Cost:
    kept = _kept(origin)
    layers = layer_costs(origin.model, origin.inputs, kept)
    shapes = [skip.merge_node.meta["val"].shape for skip in found.skips if skip.kind == "add" and "val" in skip.merge_node.meta]
    return Cost(
        parameters=num_parameters(origin.model),
        multiply_adds=sum(row.multiply_adds for row in layers),
        skip_additions=sum(map(math.prod, shapes)),
        kept_bytes=sum(kept.values()) if kept is not None else None,
        layers=tuple(layers),
    )


def _kept(origin: Origin) -> Kept | None:
    """What a training step keeps; where a batch norm refuses a single value, half of what a batch of two keeps."""
    kept = kept_bytes(origin.model, origin.inputs)
    if kept is None and all(not isinstance(value, Tensor) or value.shape[:1] == (1,) for value in origin.inputs):
        twice = [torch.cat((value, value)) if isinstance(value, Tensor) else value for value in origin.inputs]
        kept = kept_bytes(origin.model, twice)
        return {key: count // 2 for key, count in kept.items()} if kept is not None else None
    return kept


def _effective(found: Census, receptive: Receptive | Whole) -> Effective | None:
    first = next(value for value in found.captured.example_inputs if isinstance(value, Tensor))
    if not isinstance(receptive, Receptive) or not first.is_floating_point():
        return None
    try:
        return effective_field(found.captured, receptive)
    except RuntimeError:  # an operation without a derivative
        return None


def _skip(skip: Skip) -> dict[str, Any]:
    fields = ("index", "kind", "way", "source", "merge", "span", "level", "proven", "reason")
    return {name: getattr(skip, name) for name in fields}


def _lengths(lengths: Lengths) -> dict[str, Any]:
    return {
        "mean": lengths.mean,
        "standard_deviation": lengths.standard_deviation,
        "shortest": lengths.shortest,
        "longest": lengths.longest,
        "counts": [{"length": length, "count": count} for length, count in lengths.counts.items()],
    }


def _field(field: Receptive | Whole, effective: Effective | None) -> dict[str, Any]:
    if isinstance(field, Whole):
        return {"path": None, "jump": [], "shortest": [], "longest": [], "effective": None, "then": field.why, "gates": []}
    return {
        "path": field.path, "jump": list(field.jump), "shortest": list(field.shortest), "longest": list(field.longest),
        "effective": effective.side if effective else None,
        "then": f"{field.whole.path}: {field.whole.why}" if field.whole else None, "gates": list(field.gates),
    }  # fmt: skip


def _units(model: nn.Module) -> list[dict[str, Any]]:
    return [
        {
            "path": found.path,
            "depth": found.depth,
            "removable": found.removable,
            "shortcut": type(found.unit.shortcut).__name__ if found.unit.shortcut is not None else None,
            "merge": type(found.unit.merge).__name__,
            "branch": [type(layer).__name__ for layer in found.unit.branch.children()],
            "parameters": num_parameters(found.unit),
        }
        for found in walk(model)
    ]
