"""Contact sheets: a few images in one PNG with their captions in a JSON file beside it. Layer 1.

A sheet is what the run directory keeps of images, so that a report can be written where the data set no longer is. Tiles
lie in rows; tiny images are enlarged by a whole factor (each pixel stays a square), large ones reduced.

`NAME.json`: "tile" (side in pixels), "columns", "labels" (captions that are texts) or "items" (captions that are tables of
values), and whatever else the writer states, such as "seed" and "note".
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from residua.errors import RunError

__all__ = ["Sheet", "read_sheet", "write_sheet"]

SMALLEST, LARGEST = 64, 128
COLUMNS = 8


@dataclass(frozen=True)
class Sheet:
    """A sheet read back: each tile as the data URI of a PNG, with its caption; `described` is all that its JSON file says."""

    tiles: list[tuple[str, Any]]
    described: Mapping[str, Any]


def write_sheet(path: Path, images: Tensor, captions: Sequence[str | Mapping[str, Any]], **extra: Any) -> None:
    """Writes `images`, uint8 [N, C, S, S] with C = 1 or 3, as the PNG `path`, and the captions beside it as JSON.

    Raises `RunError` if the target cannot be written.
    """
    if len(images) != len(captions):
        raise ValueError(f"a sheet takes one caption an image, not {len(captions)} captions for {len(images)} images")
    tiles = _scaled(images.cpu())
    kind = "items" if captions and isinstance(captions[0], Mapping) else "labels"
    described = {"tile": tiles.shape[-1], "columns": COLUMNS, kind: list(captions), **extra}
    picture = io.BytesIO()
    Image.fromarray(_grid(tiles).numpy()).save(picture, "PNG")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps(described, indent=1, ensure_ascii=True), encoding="utf-8")
        aside = path.with_name(f".{path.name}")
        aside.write_bytes(picture.getvalue())
        aside.replace(path)  # a sheet whose picture is there is whole
    except OSError as error:
        raise RunError(f"The sample images {path} cannot be written: {error.strerror or error}.") from error


def read_sheet(path: Path) -> Sheet | None:
    """The sheet whose PNG is `path`, or None if it is missing or damaged."""
    try:
        described = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        captions = described["items"] if "items" in described else described["labels"]
        side, columns = int(described["tile"]), int(described["columns"])
        with Image.open(path) as picture:
            sheet = picture.convert("L" if picture.mode == "L" else "RGB")
        places = [(number // columns * side, number % columns * side) for number in range(len(captions))]
        tiles = [_data_uri(sheet.crop((left, top, left + side, top + side))) for top, left in places]
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, Warning, Image.DecompressionBombError):
        return None
    return Sheet(list(zip(tiles, captions)), described)


def _scaled(images: Tensor) -> Tensor:
    """[N, C, S, S] with S brought into [64, 128]."""
    side = images.shape[-1]
    if side > LARGEST:
        smaller = F.interpolate(images.float(), size=(LARGEST, LARGEST), mode="bilinear", antialias=True)
        return smaller.round().clamp(0, 255).to(torch.uint8)
    factor = max(1, -(-SMALLEST // side), LARGEST * 3 // 4 // side)
    return images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def _grid(tiles: Tensor) -> Tensor:
    """[N, C, S, S] -> [rows S, columns S] or [rows S, columns S, 3]; places without a tile are black."""
    number, channels, side, _ = tiles.shape
    rows = max(1, -(-number // COLUMNS))
    grid = torch.zeros(rows * COLUMNS, channels, side, side, dtype=torch.uint8)
    grid[:number] = tiles
    grid = grid.view(rows, COLUMNS, channels, side, side).permute(0, 3, 1, 4, 2).reshape(rows * side, COLUMNS * side, channels)
    return (grid[..., 0] if channels == 1 else grid).contiguous()


def _data_uri(tile: Image.Image) -> str:
    png = io.BytesIO()
    tile.save(png, "PNG")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode("ascii")
