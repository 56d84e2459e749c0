"""The census of networks whose skips were counted by hand, in census_table.toml: ours, torchvision's, timm's, transformers'."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import test_vocabulary as written
import torch
import torchvision
from torch import Tensor, nn

from residua.census import Census, census
from residua.graph import capture
from residua.models import create_model

TABLE: list[dict[str, Any]] = tomllib.loads(Path(__file__).with_name("census_table.toml").read_text())["network"]


class Named(nn.Module):
    """A model of transformers, called with its inputs in order."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Any:
        return self.model(**dict(zip(self.names, inputs)))


def build(row: dict[str, Any]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network of a row, without weights, and its inputs."""
    origin, _, name = row["name"].partition(":")
    inputs = (torch.randn(1, *row.get("input", ())),)
    match origin:
        case "ours":
            options = {} if row["input"] != [3, 32, 32] else {"num_classes": 10}
            return create_model(name, **options), inputs
        case "written":
            case = getattr(written, name)()
            return case.model, (*inputs, *case.extra)
        case "timm":
            return pytest.importorskip("timm").create_model(name, pretrained=False), inputs
        case "transformers":
            return _transformer(pytest.importorskip("transformers"), name, row, inputs)
    options: dict[str, Any] = {"weights_backbone": None} if origin.endswith("segmentation") else {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    return torchvision.models.get_model(name, weights=None, **options), inputs


def _transformer(
    library: Any, name: str, row: dict[str, Any], inputs: tuple[Tensor, ...]
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = getattr(library, name)(getattr(library, name.replace("Model", "Config"))(**row["options"]))
    given: dict[str, Tensor] = {}
    if "tokens" in row:
        given["input_ids"] = torch.randint(3, 50, (1, row["tokens"]))
    if "decoder" in row:
        given["decoder_input_ids"] = torch.randint(3, 50, (1, row["decoder"]))
    if "samples" in row:
        given["input_values"] = torch.randn(1, row["samples"])
    if "input" in row:
        given["pixel_values"] = inputs[0]
    return Named(model, tuple(given)), tuple(given.values())


def marked(row: dict[str, Any]) -> Any:
    return pytest.param(row, id=row["name"], marks=() if row.get("quick") else pytest.mark.slow)


@pytest.mark.parametrize("row", [marked(row) for row in TABLE])
def test_the_census_counts_what_was_counted_by_hand(row: dict[str, Any]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = build(row)
        found = census(capture(model.eval(), inputs))
    assert counted(found, row) == expected(row)
    assert all(skip.proven for skip in found.skips)


def expected(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("skips", "kinds", "nested", "dense") if key in row} | {"unknown": row.get("unknown", 0)}


def counted(found: Census, row: dict[str, Any]) -> dict[str, Any]:
    every: dict[str, Any] = {
        "skips": {f"{kind}, {way}": number for (kind, way), number in found.by_kind.items()},
        "kinds": dict(Counter(skip.kind for skip in found.skips)),
        "nested": sum(skip.level > 0 for skip in found.skips),
        "dense": found.dense_connections,
        "unknown": len(found.unknown),
    }
    return {key: every[key] for key in expected(row)}


def test_the_table_has_sixty_networks_of_every_origin_each_with_its_reason() -> None:
    assert len(TABLE) == len({row["name"] for row in TABLE}) >= 60
    assert {row["name"].partition(":")[0] for row in TABLE} >= {"ours", "written", "torchvision", "timm", "transformers"}
    assert all(row["why"] and ("skips" in row or "kinds" in row) for row in TABLE)
