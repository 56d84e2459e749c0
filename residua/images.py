"""The one decoder: an image file in, a uint8 tensor [channels, H, W] out. Layer 1.

Train, evaluate and predict all read files here, so that the same file gives the same pixels everywhere. In this order:

1. Formats: BMP, GIF, JPEG, PNG, PPM/PGM/PBM, TIFF and WebP, told by the content and never by the name. Of an animation
   or a file of several pages the first is read.
2. More than `MAX_PIXELS` pixels are refused from the header, before memory is taken for them.
3. To 8 bits. One bit: 0 and 255. Sixteen bits, grey: v / 257, rounded (so 65535 becomes 255 exactly). 32-bit integers
   are taken to hold 16-bit values and are clipped to 0..65535 first. Floats are taken to lie in 0..1 and are multiplied by 255,
   rounded and clipped; NaN is 0. Of sixteen-bit colour and of sixteen-bit grey with alpha Pillow gives the high byte, v // 256.
4. Transparency (an alpha channel or a transparent colour) is laid over white: (v * a + 255 * (255 - a)) / 255, rounded.
5. Colour: CMYK becomes (255 - C)(255 - K) / 255 and so on, YCbCr follows JFIF; colour profiles are not applied. RGB to grey
   is (19595 R + 38470 G + 7471 B + 32768) // 65536 (ITU-R 601-2 luma); grey to RGB repeats the grey.
6. EXIF orientation, all eight, as written ahead of the pixels (a PNG may also carry it behind them: that one is not looked for).
"""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from residua.errors import UnreadableImage

__all__ = ["EXTENSIONS", "MAX_PIXELS", "Header", "decode", "is_image_name", "printable", "read_header", "to_channels"]

MAX_PIXELS = 2**27
"""The most pixels, width times height, that are decoded: 134,217,728, such as 11,585 x 11,585 (400 MB as RGB)."""

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})
"""The ends of names, in lower case, by which a folder's images are told from its other files."""

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "F"})
_NOT_THE_FILE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR})

# Pillow reports oddities (a damaged EXIF block, a large image) through `warnings`, whose filters belong to the whole process:
# only one thread at a time may set them aside, or they would not be put back in order.
_warnings_lock = threading.Lock()


def _renew_lock() -> None:
    global _warnings_lock
    _warnings_lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # a lock that another thread holds at a fork would never be released in the child
    os.register_at_fork(after_in_child=_renew_lock)

Source = str | Path | bytes | bytearray | memoryview | BinaryIO


class Header(NamedTuple):
    """What an image file says of itself: size as seen (after EXIF orientation), Pillow's mode and format, and the channels
    its content calls for: 1 for grey modes, 3 for all others."""

    width: int
    height: int
    mode: str
    format: str
    channels: int


def printable(name: str | Path) -> str:
    """`name` as text that can be shown and saved anywhere: bytes of a file name that are not UTF-8 appear as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def is_image_name(path: str | Path) -> bool:
    """Whether the name ends like an image's (see `EXTENSIONS`; capitals and small letters alike)."""
    return Path(path).suffix.lower() in EXTENSIONS


def read_header(source: Source) -> Header:
    """The `Header` of an image, without decoding it; raises `UnreadableImage` as `decode` does, save for damaged pixels."""
    with _opened(source) as image:
        width, height = image.size
        if _orientation(image) >= 5:
            width, height = height, width
        grey = image.mode in _GREY_MODES or image.mode.startswith("I;")
        return Header(width, height, image.mode, image.format or "", 1 if grey else 3)


def decode(source: Source, channels: int) -> Tensor:
    """The image as a uint8 tensor [channels, H, W], values 0 to 255, by the rules at the head of this file.

    `source` is a path, the bytes of a file, or a binary file that can seek; `channels` is 1 (grey) or 3 (RGB).
    Raises `UnreadableImage`, naming the file and the reason: no such file, a directory, empty, not an image, truncated or
    damaged, more than `MAX_PIXELS` pixels.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), not {channels!r}.")
    with _opened(source) as image:
        orientation = _orientation(image)  # before the pixels: loading a TIFF turns it and loading a PNG reads on past them
        _load(image)
        eight_bit = _to_eight_bits(image)
        wanted = "L" if channels == 1 else "RGB"
        if eight_bit.mode != wanted:
            eight_bit = eight_bit.convert(wanted)
        pixels_hwc: NDArray[np.uint8] = np.asarray(eight_bit).reshape(eight_bit.height, eight_bit.width, channels)
        return torch.from_numpy(np.array(_turned(pixels_hwc, orientation).transpose(2, 0, 1), order="C"))


def to_channels(images: Tensor, channels: int) -> Tensor:
    """uint8 images [..., C, H, W] with `channels` (1 or 3) in place of C, by the same formulas as `decode`."""
    if images.shape[-3] == channels:
        return images
    if channels == 3:
        return images.expand(*images.shape[:-3], 3, *images.shape[-2:]).contiguous()
    red, green, blue = images.int().unbind(-3)
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16).to(torch.uint8).unsqueeze(-3)


@contextmanager
def _opened(source: Source) -> Iterator[Image.Image]:
    """The image opened but not decoded; everything that goes wrong in here or in the body becomes an `UnreadableImage`."""
    name = printable(source) if isinstance(source, (str, Path)) else "The image"
    try:
        with _file(source) as file, _open_quietly(file) as image:
            _refuse_too_large(*image.size)
            yield image
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NOT_THE_FILE:
            raise
        raise UnreadableImage(f"{name}: {_reason(error)}.") from error


@contextmanager
def _file(source: Source) -> Iterator[BinaryIO]:
    """A binary file to read from, at its start and known not to be empty; a given one is left open."""
    if isinstance(source, (str, Path)):
        if not stat.S_ISREG(Path(source).stat().st_mode) and not Path(source).is_dir():
            raise UnreadableImage("not a file but a device or a pipe")  # opening a pipe would wait for ever
        with Path(source).open("rb") as file:
            yield _not_empty(file)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        yield _not_empty(io.BytesIO(source))
    else:
        yield _not_empty(source)


def _not_empty(file: BinaryIO) -> BinaryIO:
    file.seek(0)
    if not file.read(1):
        raise UnreadableImage("an empty file (0 bytes)")
    file.seek(0)
    return file


@contextmanager
def _quiet() -> Iterator[None]:
    """Lets no warning out."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open_quietly(file: BinaryIO) -> Image.Image:
    """Reads the header and the EXIF block, which Pillow then keeps."""
    with _quiet():
        image = Image.open(file, formats=_FORMATS)
        _orientation(image)
        return image


def _load(image: Image.Image) -> None:
    """Decodes the pixels, outside the lock so that threads do it side by side; only TIFF may still warn at this point."""
    with _quiet() if image.format == "TIFF" else nullcontext():
        image.load()


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none, where it is damaged, and for TIFF, which Pillow turns by itself."""
    if image.format == "TIFF":
        return 1
    try:
        # the base class's method: that of PNG would decode the whole image in search of an EXIF block behind the pixels
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged EXIF block is no reason to lose the image
        return 1
    return orientation if orientation in range(1, 9) else 1


def _refuse_too_large(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"{width} x {height} pixels, more than the {MAX_PIXELS:,} that are decoded")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """The loaded image as an opaque one in mode L or RGB."""
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
    eight_bit = (np.clip(values, 0, 65535) + 128) // 257
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        eight_bit[values == transparent] = 255
    return Image.fromarray(eight_bit.astype(np.uint8))


def _over_white(image: Image.Image) -> Image.Image:
    rgba = np.asarray(image).astype(np.uint16)  # 255 * 255 + 127 fits
    alpha = rgba[..., 3:]
    return Image.fromarray(((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8))


def _turned(pixels_hwc: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The array as EXIF orientation 1 to 8 wants it shown: 5 to 8 swap the axes first, then each mirrors one, both or none."""
    if orientation >= 5:
        pixels_hwc = pixels_hwc.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels_hwc = pixels_hwc[::-1]
    if orientation in (2, 3, 6, 7):
        pixels_hwc = pixels_hwc[:, ::-1]
    return pixels_hwc


def _reason(error: Exception) -> str:
    """Why a file cannot be used, as the end of a sentence."""
    if isinstance(error, UnreadableImage):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"more than the {MAX_PIXELS:,} pixels that are decoded"
    if isinstance(error, UnidentifiedImageError):
        return "not an image (or not one of " + ", ".join(_FORMATS) + ")"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "a directory, not a file"
    if isinstance(error, OSError) and error.strerror:
        return f"it cannot be read ({error.strerror})"
    text = printable(str(error)).strip().rstrip(".") or type(error).__name__
    return f"damaged or not supported ({text})"
