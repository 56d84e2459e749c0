"""JPEGs that need no more than decoding: told by their first segments, decoded by torchvision's libjpeg-turbo. Layer 1.

A shortcut of `residua.images`, which has the rules: the pixels are those that Pillow gives (ITU-T T.81 annex B for the segments).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torchvision  # noqa: F401 (it registers torch.ops.image)
from torch import Tensor

__all__ = ["Frame", "decoded", "plain_frame"]

_START, _END_OF_HEADER = 0xD8, 0xDA
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended and progressive, by Huffman codes
_ODD_FRAMES = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xC8, 0xCC}
_APPLICATION = {0xE1: (b"Exif", b"http"), 0xE2: (b"MPF",)}  # which may say that the image is turned (XMP too), or one of several
_FRAME_BYTES = 6  # of a frame header, as far as it is read here: bits a value, height, width, components


class Frame(NamedTuple):
    """Size in pixels and number of colour components."""

    height: int
    width: int
    components: int


def plain_frame(data: bytes | bytearray) -> Frame | None:
    """The frame of a JPEG of 8 bits a value without an EXIF or XMP block, the first of one image; None for anything else."""
    if data[:2] != bytes((0xFF, _START)):
        return None
    place, found = 2, None
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == _END_OF_HEADER:
            return found
        content = place + 4
        if marker in _ODD_FRAMES or data[content : content + 4].startswith(_APPLICATION.get(marker, ())):
            return None
        if marker in _FRAMES:
            if found is not None or len(data) < content + _FRAME_BYTES or data[content] != 8:
                return None
            height, width = (int.from_bytes(data[at : at + 2], "big") for at in (content + 1, content + 3))
            found = Frame(height, width, data[content + 5]) if height and width else None
        place += 2 + length
    return None


def decoded(data: bytearray) -> Tensor | None:
    """The pixels as stored, uint8 [H, W, C]; None where torchvision refuses the file or has no decoder."""
    try:
        pixels: Tensor = torch.ops.image.decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), 0, False)
    except (AttributeError, RuntimeError):
        return None
    return pixels.permute(1, 2, 0)
