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
6. EXIF orientation, all eight, as written ahead of the pixels (a PNG may also carry it behind them: that one is not looked for);
   where there is none, the orientation that an XMP packet gives.
7. Reduced scale: where a view says how large the whole image must be at the least, a JPEG is decoded at the smallest of the
   scales 1/8, 1/4, 1/2 and 1 that gives ceil(H / r) x ceil(W / r) pixels of at least that size (libjpeg's scaled inverse
   cosine transform). The scale follows from the size of the image and the size that is asked for, and from nothing else; every
   other kind of file is decoded whole.

JPEGs at scale 1 that need no change of colour are decoded by torchvision, all else by Pillow. Both carry libjpeg-turbo and call
it in the same way (exact integer transform, smooth upsampling), so they agree in every pixel; Pillow has the last word on what is
damaged. torchvision's hands its pixels over without a copy and lets other threads work meanwhile; its decoders are to leave
it in time (deprecated since 0.29), and where they are missing Pillow decodes everything, to the same pixels.
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
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from residua import jpeg
from residua.errors import UnreadableImage
from residua.pixels import eight_bit, to_channels, turned

__all__ = ["EXTENSIONS", "MAX_PIXELS", "Header", "View", "decode", "is_image_name", "printable", "read_header", "to_channels"]

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
    """What an image file says of itself: size as seen (after orientation), Pillow's mode and format, and the channels
    its content calls for: 1 for grey modes, 3 for all others."""

    width: int
    height: int
    mode: str
    format: str
    channels: int


class View(Protocol):
    """What is to be seen of an image, whatever its size."""

    def least(self, height: int, width: int) -> tuple[int, int]:
        """The smallest (height, width) of the whole image from which the view is made without enlarging anything, for an image
        whose full size is `height` x `width`."""

    def show(self, image: Tensor, height: int, width: int) -> Tensor:
        """The view of `image`, uint8 [C, h, w], which is one of `height` x `width` or that one at a reduced scale."""


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


def decode(source: Source, channels: int, view: View | None = None) -> Tensor:
    """The image as a uint8 tensor [channels, H, W], values 0 to 255, by the rules at the head of this file; or `view` of it.

    `source` is a path, the bytes of a file, or a binary file that can seek; `channels` is 1 (grey) or 3 (RGB). The tensor owns
    its memory, in which the channels of a pixel lie side by side ("channels last"). Raises `UnreadableImage`, naming the file
    and the reason: no such file, a directory, empty, not an image, truncated or damaged, more than `MAX_PIXELS` pixels.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), not {channels!r}.")
    if (plain := _plain(source, channels, view)) is not None:
        return plain
    with _opened(source) as image:
        orientation = _orientation(image)  # before the pixels: loading a TIFF turns it and loading a PNG reads on past them
        width, height = image.size if orientation < 5 else image.size[::-1]
        scale = _reduction(height, width, view.least(height, width)) if view is not None and image.format == "JPEG" else 1
        if scale > 1:
            image.draft(None, (image.width // scale, image.height // scale))
        pixels_hwc = _by_torchvision(image, channels) if scale == 1 else None
        if pixels_hwc is None:
            _load(image)
            eight = eight_bit(image, channels)
            pixels_hwc = np.array(eight).reshape(eight.height, eight.width, channels)
    if image.format == "TIFF":
        height, width = pixels_hwc.shape[:2]  # turned by now
    pixels = torch.from_numpy(np.ascontiguousarray(turned(pixels_hwc, orientation))).permute(2, 0, 1)
    return pixels if view is None else view.show(pixels, height, width)


def _reduction(height: int, width: int, least: tuple[int, int]) -> int:
    """By how much a JPEG of this size, seen upright, is reduced (point 7)."""
    return next((r for r in (8, 4, 2) if -(-height // r) >= least[0] and -(-width // r) >= least[1]), 1)


def _plain(source: Source, channels: int, view: View | None) -> Tensor | None:
    """What `decode` gives for a JPEG that is to be decoded at full scale and then is as it should be; None for all else."""
    if isinstance(source, (str, Path)):
        try:
            if not stat.S_ISREG(os.stat(source).st_mode):  # noqa: PTH116 (this is called for every image, and Path is slow)
                return None
            with open(source, "rb", buffering=0) as file:  # noqa: PTH123
                data = bytearray(file.read())
        except OSError:  # is met again, and reported, when Pillow opens the file
            return None
    elif isinstance(source, (bytes, bytearray, memoryview)):
        data = bytearray(source)
    else:
        return None
    frame = jpeg.plain_frame(data)
    if frame is None or frame.components != channels or frame.height * frame.width > MAX_PIXELS:
        return None
    if view is not None and _reduction(frame.height, frame.width, view.least(frame.height, frame.width)) > 1:
        return None
    pixels_hwc = jpeg.decoded(data)
    if pixels_hwc is None or tuple(pixels_hwc.shape) != tuple(frame):
        return None
    pixels = pixels_hwc.permute(2, 0, 1)
    return pixels if view is None else view.show(pixels, frame.height, frame.width)


def _by_torchvision(image: ImageFile.ImageFile, channels: int) -> NDArray[np.uint8] | None:
    """The pixels [H, W, C] of an opened JPEG at full scale, or None where Pillow is to decode it."""
    if image.format != "JPEG" or image.mode != ("L" if channels == 1 else "RGB") or image.fp is None:
        return None
    image.fp.seek(0)
    pixels_hwc = jpeg.decoded(bytearray(image.fp.read()))
    image.fp.seek(0)
    return pixels_hwc.numpy() if pixels_hwc is not None else None


@contextmanager
def _opened(source: Source) -> Iterator[ImageFile.ImageFile]:
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


def _open_quietly(file: BinaryIO) -> ImageFile.ImageFile:
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
    """The orientation by EXIF or else XMP, 1 to 8; 1 without one, if damaged, and for TIFF, which Pillow turns by itself."""
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
