"""Pixels of any kind as 8-bit grey or RGB: depths, transparency, colour, turning. Layer 1.

The formulas of points 3 to 6 of `residua.images`. Arrays are [H, W] or [H, W, C].
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

__all__ = ["eight_bit", "to_channels", "turned"]


def to_channels(images: Tensor, channels: int) -> Tensor:
    """uint8 images [..., C, H, W] with `channels` (1 or 3) in place of C, by the same formulas as `images.decode`."""
    if images.shape[-3] == channels:
        return images
    if channels == 3:
        return images.expand(*images.shape[:-3], 3, *images.shape[-2:]).contiguous()
    red, green, blue = images.int().unbind(-3)
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16).to(torch.uint8).unsqueeze(-3)


def eight_bit(image: Image.Image, channels: int) -> Image.Image:
    """The loaded image as an opaque one in mode L (`channels` 1) or RGB (3)."""
    opaque, wanted = _opaque(image), "L" if channels == 1 else "RGB"
    return opaque if opaque.mode == wanted else opaque.convert(wanted)


def turned(pixels_hwc: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The array as EXIF orientation 1 to 8 wants it shown: 5 to 8 swap the axes first, then each mirrors one, both or none."""
    if orientation >= 5:
        pixels_hwc = pixels_hwc.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels_hwc = pixels_hwc[::-1]
    if orientation in (2, 3, 6, 7):
        pixels_hwc = pixels_hwc[:, ::-1]
    return pixels_hwc


def _opaque(image: Image.Image) -> Image.Image:
    """The loaded image without alpha, in mode L or RGB."""
    if image.mode == "I" or image.mode.startswith("I;"):
        return _from_sixteen_bits(image)
    if image.mode == "F":
        floats = np.nan_to_num(np.asarray(image), nan=0.0, posinf=1.0, neginf=0.0)
        return Image.fromarray(np.rint(np.clip(floats, 0, 1) * 255).astype(np.uint8))
    if image.mode in ("RGBa", "La"):
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    if image.has_transparency_data:
        return _over_white(image.convert("RGBA"))
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    shades = (np.clip(values, 0, 65535) + 128) // 257
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        shades[values == transparent] = 255
    return Image.fromarray(shades.astype(np.uint8))


def _over_white(image: Image.Image) -> Image.Image:
    rgba = np.asarray(image).astype(np.uint16)  # 255 * 255 + 127 fits
    alpha = rgba[..., 3:]
    return Image.fromarray(((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8))
