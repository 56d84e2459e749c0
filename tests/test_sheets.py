"""Contact sheets come back as they were written, and tiny images are enlarged by whole factors."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from residua.errors import RunError
from residua.sheets import read_sheet, write_sheet


def pixels(uri: str) -> Tensor:
    with Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))) as image:
        array = np.asarray(image)
    return torch.from_numpy(array.copy()).view(*array.shape[:2], -1).permute(2, 0, 1)


@pytest.mark.parametrize(("side", "tile"), [(8, 96), (28, 84), (32, 96), (45, 90), (63, 126), (64, 64), (96, 96), (128, 128)])
def test_each_pixel_becomes_a_square_and_tiles_are_64_to_128_wide(tmp_path: Path, side: int, tile: int) -> None:
    images = torch.randint(0, 256, (11, 3, side, side), dtype=torch.uint8)
    write_sheet(tmp_path / "samples" / "a.png", images, [f"class {i}" for i in range(11)], seed=3)
    sheet = read_sheet(tmp_path / "samples" / "a.png")
    assert sheet is not None
    assert sheet.described["tile"] == tile
    assert sheet.described["seed"] == 3
    assert [caption for _, caption in sheet.tiles] == [f"class {i}" for i in range(11)]
    for (uri, _), image in zip(sheet.tiles, images):
        assert torch.equal(pixels(uri)[:, :: tile // side, :: tile // side], image)


def test_large_images_are_reduced_to_128(tmp_path: Path) -> None:
    write_sheet(tmp_path / "a.png", torch.full((2, 3, 224, 224), 7, dtype=torch.uint8), ["a", "b"])
    sheet = read_sheet(tmp_path / "a.png")
    assert sheet is not None
    assert pixels(sheet.tiles[1][0]).shape == (3, 128, 128)
    assert pixels(sheet.tiles[1][0]).unique().tolist() == [7]


def test_grey_images_stay_grey_and_captions_may_be_tables(tmp_path: Path) -> None:
    image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    write_sheet(tmp_path / "a.png", image, [{"name": "x.png", "label": "日本"}])
    sheet = read_sheet(tmp_path / "a.png")
    assert sheet is not None
    assert sheet.tiles[0][1] == {"name": "x.png", "label": "日本"}
    assert torch.equal(pixels(sheet.tiles[0][0])[:, ::12, ::12], image[0])


def test_no_images_make_an_empty_sheet(tmp_path: Path) -> None:
    write_sheet(tmp_path / "a.png", torch.zeros(0, 3, 8, 8, dtype=torch.uint8), [])
    sheet = read_sheet(tmp_path / "a.png")
    assert sheet is not None
    assert sheet.tiles == []


def test_a_file_name_that_is_not_utf8_can_be_a_caption(tmp_path: Path) -> None:
    write_sheet(tmp_path / "a.png", torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ["caf\udce9.png"])
    sheet = read_sheet(tmp_path / "a.png")
    assert sheet is not None
    assert sheet.tiles[0][1] == "caf\udce9.png"


def test_every_image_needs_a_caption(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one caption an image"):
        write_sheet(tmp_path / "a.png", torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ["a"])


def test_a_target_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "samples").write_text("a file, not a folder")
    with pytest.raises(RunError, match=r"samples/a\.png cannot be written"):
        write_sheet(tmp_path / "samples" / "a.png", torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ["a"])


@pytest.mark.parametrize("damage", ["no json", "json is a list", "no tile", "columns 0", "not an image", "missing"])
def test_a_missing_or_damaged_sheet_reads_as_none(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.png"
    write_sheet(path, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ["a"])
    described = json.loads(path.with_suffix(".json").read_text())
    if damage == "not an image":
        path.write_bytes(b"GIF89a")
    elif damage == "missing":
        path.unlink()
    else:
        described = {"no json": "", "json is a list": "[]", "no tile": json.dumps({**described, "tile": None}),
                     "columns 0": json.dumps({**described, "columns": 0})}[damage]  # fmt: skip
        path.with_suffix(".json").write_text(described)
    assert read_sheet(path) is None
