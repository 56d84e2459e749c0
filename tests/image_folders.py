"""Small folders of images for tests: every image is told from all others by its seed."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, seed: int, size: tuple[int, int] = (8, 8), grey: bool = False) -> Path:
    """Writes random pixels, (H, W), in the format of the path's ending; the same for the same seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, size if grey else (*size, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def write_classes(root: Path, counts: dict[str, int], seed: int = 0, grey: bool = False) -> Path:
    """Writes `counts[name]` images into each folder `name` below `root`."""
    for place, (name, count) in enumerate(sorted(counts.items())):
        for index in range(count):
            write_image(root / name / f"{index:03d}.png", seed + 1000 * place + index, grey=grey)
    return root


def write_splits(root: Path, **splits: dict[str, int]) -> Path:
    """Writes split folders, such as train={"cat": 3, "dog": 2}, in which no two images are equal."""
    for place, (split, counts) in enumerate(splits.items()):
        write_classes(root / split, counts, seed=100_000 * (place + 1))
    return root


def truncate(path: Path, share: float = 0.5) -> Path:
    """Cuts the end of a file off."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_that_claims(width: int, height: int) -> bytes:
    """A tiny PNG whose header promises an image of any size."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
