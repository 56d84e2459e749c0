"""The decoder: every kind of file gives the pixels its rule says, by closed form, or one readable error."""

from __future__ import annotations

import io
import os
import pickle
import struct
import time
import tracemalloc
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from image_folders import chunk, png_that_claims
from PIL import Image

from residua import jpeg
from residua.errors import UnreadableImage
from residua.images import MAX_PIXELS, decode, is_image_name, printable, read_header, to_channels
from residua.views import CentralView

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = np.random.default_rng(1).integers(0, 256, (5, 7), dtype=np.uint8)
ALPHA = np.random.default_rng(2).integers(0, 256, (5, 7), dtype=np.uint8)
DEEP = np.random.default_rng(3).integers(0, 65536, (5, 7), dtype=np.uint16)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(data: bytes, channels: int = 3) -> np.ndarray:
    """What `decode` gives, as [H, W, C], or [H, W] for grey."""
    array = decode(data, channels).permute(1, 2, 0).numpy()
    return array[..., 0] if channels == 1 else array


def luma(rgb: np.ndarray) -> np.ndarray:
    r, g, b = np.moveaxis(rgb.astype(int), -1, 0)
    return ((19595 * r + 38470 * g + 7471 * b + 32768) // 65536).astype(np.uint8)


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.floor(rgb * share + 255 * (1 - share) + 0.5 + 1e-9).astype(np.uint8)


def test_rgb_comes_back_as_it_was_written() -> None:
    assert (pixels(encoded(Image.fromarray(RGB))) == RGB).all()


def test_a_decoded_image_is_a_writable_uint8_tensor_whose_channels_lie_side_by_side() -> None:
    tensor = decode(encoded(Image.fromarray(RGB)), 3)
    assert tensor.dtype == torch.uint8
    assert tensor.shape == (3, 5, 7)
    assert tensor.permute(1, 2, 0).is_contiguous()
    tensor.zero_()


def test_grey_becomes_rgb_by_repetition_and_rgb_becomes_grey_by_luma() -> None:
    assert (pixels(encoded(Image.fromarray(GREY))) == GREY[..., None]).all()
    assert (pixels(encoded(Image.fromarray(GREY)), 1) == GREY).all()
    assert (pixels(encoded(Image.fromarray(RGB)), 1) == luma(RGB)).all()


def test_channels_are_changed_in_memory_by_the_same_formulas() -> None:
    tensor = torch.from_numpy(RGB).permute(2, 0, 1)
    assert (to_channels(tensor[None], 1)[0, 0].numpy() == luma(RGB)).all()
    grey = torch.from_numpy(GREY)[None]
    assert torch.equal(to_channels(grey, 3), grey.repeat(3, 1, 1))
    assert to_channels(tensor, 3) is tensor


def test_one_bit_becomes_0_and_255() -> None:
    bits = GREY > 127
    assert (pixels(encoded(Image.fromarray(bits)), 1) == 255 * bits).all()


def test_alpha_is_laid_over_white() -> None:
    rgba = np.dstack([RGB, ALPHA])
    assert (pixels(encoded(Image.fromarray(rgba))) == over_white(RGB, ALPHA)).all()
    expected = over_white(GREY[..., None], ALPHA)[..., 0]
    grey_alpha = encoded(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]))
    assert (pixels(grey_alpha, 1) == expected).all()
    assert (pixels(grey_alpha, 3) == expected[..., None]).all()


def test_a_palette_gives_its_colours() -> None:
    palette = Image.new("P", (7, 5))
    palette.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 0, 255, 255, 255])
    palette.paste(1, (0, 0, 3, 5))
    expected = np.broadcast_to(np.array([10, 20, 30], np.uint8), (5, 7, 3)).copy()
    expected[:, :3] = 200, 100, 50
    assert (pixels(encoded(palette)) == expected).all()


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 255, 255])])
@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_transparent_palette_colour_becomes_white(format: str, transparency: object) -> None:
    palette = Image.new("P", (7, 5))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.paste(1, (0, 0, 3, 5))
    if format == "GIF":
        transparency = 1
    result = pixels(encoded(palette, format, transparency=transparency))
    assert (result[:, :3] == 255).all()
    assert (result[:, 3:] == [10, 20, 30]).all()


@pytest.mark.parametrize(("array", "transparent"), [(GREY, int(GREY[2, 2])), (RGB, tuple(int(v) for v in RGB[2, 2]))])
def test_a_transparent_colour_without_a_palette_becomes_white(array: np.ndarray, transparent: object) -> None:
    result = pixels(encoded(Image.fromarray(array), transparency=transparent))
    expected = array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2)
    expected = np.where((expected == expected[2, 2]).all(-1, keepdims=True), 255, expected)
    assert (result == expected).all()


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb_by_the_product_of_the_complements(format: str) -> None:
    c, m, y, k = 30, 60, 120, 40
    image = Image.new("CMYK", (16, 16), (c, m, y, k))
    expected = [round((255 - ink) * (255 - k) / 255) for ink in (c, m, y)]
    assert np.abs(pixels(encoded(image, format)).astype(int) - expected).max() <= (3 if format == "JPEG" else 1)


def test_ycbcr_becomes_rgb() -> None:
    image = Image.new("YCbCr", (16, 16), (100, 128, 128))
    assert (pixels(encoded(image, "TIFF", compression="raw")) == 100).all()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_become_eight_by_dividing_by_257(format: str) -> None:
    expected = np.floor(DEEP / 257 + 0.5)
    assert (pixels(encoded(Image.fromarray(DEEP), format), 1) == expected).all()
    assert (pixels(encoded(Image.fromarray(DEEP), format), 3) == expected[..., None]).all()


def test_sixteen_bits_in_the_other_byte_order_give_the_same() -> None:
    image = Image.frombytes("I;16B", (7, 5), DEEP.astype(">u2").tobytes())
    assert (pixels(encoded(image, "TIFF"), 1) == np.floor(DEEP / 257 + 0.5)).all()


def test_a_transparent_sixteen_bit_grey_becomes_white() -> None:
    value = int(DEEP[1, 1])
    png = encoded(Image.fromarray(DEEP))
    head, rest = png[:33], png[33:]
    result = pixels(head + chunk(b"tRNS", struct.pack(">H", value)) + rest, 1)
    assert (result == np.where(value == DEEP, 255, np.floor(DEEP / 257 + 0.5))).all()


def test_32_bit_integers_are_sixteen_bit_values_and_clipped() -> None:
    values = np.array([[-5, 0, 257, 65535, 70000]], np.int32)
    assert pixels(encoded(Image.fromarray(values), "TIFF"), 1).tolist() == [[0, 0, 1, 255, 255]]


def test_floats_are_fractions_of_white_and_clipped() -> None:
    values = np.array([[-1, 0, 0.5, 1, 7, np.nan, np.inf, -np.inf]], np.float32)
    assert pixels(encoded(Image.fromarray(values), "TIFF"), 1).tolist() == [[0, 0, 128, 255, 255, 0, 255, 0]]


@pytest.mark.parametrize("format", ["GIF", "TIFF"])
def test_of_several_pages_the_first_is_read(format: str) -> None:
    first, second = Image.new("L", (4, 3), 10), Image.new("L", (4, 3), 200)
    assert (pixels(encoded(first, format, save_all=True, append_images=[second]), 1) == 10).all()


# the EXIF standard's own words: where row 0 and column 0 of the stored array are when the image is seen upright
SHOWN = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored.swapaxes(0, 1), 2),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", SHOWN)
def test_every_exif_orientation_is_shown_upright(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(RGB), format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    expected = SHOWN[orientation](RGB)
    assert (pixels(data) == expected).all()
    assert (pixels(data, 1) == luma(expected)).all()
    header = read_header(data)
    assert (header.height, header.width) == expected.shape[:2]


@pytest.mark.parametrize("orientation", SHOWN)
def test_every_exif_orientation_of_a_jpeg_equals_the_turned_image(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = pixels(encoded(Image.fromarray(RGB), "JPEG"))
    assert (pixels(encoded(Image.fromarray(RGB), "JPEG", exif=exif)) == SHOWN[orientation](plain)).all()


@pytest.mark.parametrize("orientation", SHOWN)
def test_a_jpeg_turned_by_xmp_alone_is_shown_upright_by_every_way_of_decoding(orientation: int) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % orientation
    image = Image.fromarray(SMOOTH[:40, :80])
    plain, data = encoded(image, "JPEG"), encoded(image, "JPEG", xmp=xmp)
    expected = SHOWN[orientation](pixels(plain))
    assert (pixels(data) == expected).all()
    assert (pixels(data, 1) == SHOWN[orientation](pixels(plain, 1))).all()
    header, least = read_header(data), [-(-side // 2) for side in expected.shape[:2]]
    assert (header.height, header.width) == expected.shape[:2]
    reduced = decode(plain, 3, Whole(20, 40)).permute(1, 2, 0).numpy()
    assert (decode(data, 3, Whole(*least)).permute(1, 2, 0).numpy() == SHOWN[orientation](reduced)).all()


def test_a_damaged_exif_block_does_not_lose_the_image() -> None:
    data = encoded(Image.fromarray(RGB), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert (pixels(data) == RGB).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 100_000), (100_000, 1)])
def test_dots_and_strips_are_images(size: tuple[int, int]) -> None:
    assert decode(encoded(Image.new("RGB", size)), 3).shape == (3, size[1], size[0])


@pytest.mark.parametrize(
    ("image", "mode", "channels"),
    [
        (Image.fromarray(GREY), "L", 1),
        (Image.fromarray(RGB), "RGB", 3),
        (Image.fromarray(DEEP), "I;16", 1),
        (Image.new("1", (7, 5)), "1", 1),
    ],
)
def test_a_header_tells_size_mode_format_and_channels(image: Image.Image, mode: str, channels: int) -> None:
    assert read_header(encoded(image)) == (7, 5, mode, "PNG", channels)


def test_path_bytes_and_file_give_the_same(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(RGB), "JPEG")
    path = tmp_path / "a.png"  # the content decides, not the name
    path.write_bytes(data)
    assert torch.equal(decode(path, 3), decode(data, 3))
    assert torch.equal(decode(io.BytesIO(data), 3), decode(memoryview(data), 3))


def test_the_decoder_can_be_sent_to_workers(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    sent = pickle.loads(pickle.dumps(partial(decode, channels=1)))
    assert torch.equal(sent(path), decode(path, 1))


def test_no_warning_comes_out_and_no_setting_of_pillow_changes(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    width = 90_000  # with 1000 rows large enough for Pillow to warn, small enough for us
    path = tmp_path / "large.png"
    path.write_bytes(png_that_claims(width, 1000))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read_header(path).width == width
    assert not caught
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("read", [partial(decode, channels=3), read_header])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"these are words, not pixels", "not an image"),
        (b"<html>404</html>", "not an image"),
        (b"\xff\xd8", "not an image"),
    ],
)
def test_what_is_no_image_is_refused_by_name_and_reason(tmp_path: Path, content: bytes, reason: str, read: partial) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=f"photo.jpg: .*{reason}") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_directory_a_pipe_and_nothing_at_all_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, reason in (("x.jpg", "a directory"), ("pipe.jpg", "a pipe"), ("none.jpg", "no such file")):
        with pytest.raises(UnreadableImage, match=f"{name}: .*{reason}"):
            decode(tmp_path / name, 3)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "TIFF", "GIF", "WEBP", "PPM"])
def test_a_file_cut_at_any_length_is_refused_or_whole(format: str) -> None:
    data = encoded(Image.fromarray(np.tile(RGB, (8, 8, 1))), format)
    for length in range(0, len(data), max(1, len(data) // 25)):
        with suppress(UnreadableImage):  # and no other error
            assert decode(data[:length], 3).shape == (3, 40, 56)


def test_a_jpeg_cut_after_any_byte_has_pixels_or_is_refused() -> None:
    for channels, mode in ((3, "RGB"), (1, "L")):
        data = encoded(Image.fromarray(RGB).convert(mode), "JPEG")
        for length in range(len(data)):
            with suppress(UnreadableImage):  # and no other error
                assert decode(data[:length], channels).shape == (channels, 5, 7)
    with pytest.raises(UnreadableImage):
        decode(b"\xff\xd8\xff\xc0\x00\x11", 3)


def test_a_truncated_jpeg_has_a_header_but_no_pixels(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    data = encoded(Image.fromarray(np.tile(RGB, (8, 8, 1))), "JPEG")
    path.write_bytes(data[: len(data) // 2])
    assert read_header(path).format == "JPEG"
    with pytest.raises(UnreadableImage, match=r"cut.jpg: damaged .*truncated"):
        decode(path, 3)


@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (MAX_PIXELS // 1000 + 1, 1000)])
def test_a_pixel_bomb_is_refused_at_once_and_in_little_memory(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_that_claims(width, height))
    for read in (partial(decode, channels=3), read_header):
        tracemalloc.start()
        start = time.perf_counter()
        with pytest.raises(UnreadableImage, match=r"bomb.png: .*134,217,728"):
            read(path)
        assert time.perf_counter() - start < 1
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
        tracemalloc.stop()


def test_a_name_that_is_not_utf8_can_be_shown(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    assert printable(name) == "caf\\xe9.jpg"
    with pytest.raises(UnreadableImage) as caught:
        decode(tmp_path / name, 3)
    str(caught.value).encode()


def test_images_are_known_by_their_names() -> None:
    assert all(is_image_name(name) for name in ("a.jpg", "b.JPEG", "c/d.Png", "e.tiff", "f.webp", "g.pbm"))
    assert not any(is_image_name(name) for name in ("a.txt", "jpg", ".jpg", "a.jpg.bak", "a"))


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_channels_than_1_and_3_are_refused(channels: int) -> None:
    with pytest.raises(ValueError, match=r"1 .* or 3"):
        decode(encoded(Image.fromarray(RGB)), channels)


# --------------------------------------------------------------------------------------------- JPEG: two ways, and reduced

COARSE = Image.fromarray(np.random.default_rng(4).integers(0, 256, (9, 12, 3), dtype=np.uint8))
SMOOTH = np.asarray(COARSE.resize((187, 141), Image.Resampling.BICUBIC))


class Whole:
    """A view that asks for `least` and shows all that it is given; it notes the full size that it is told."""

    def __init__(self, *least: int) -> None:
        self.asked, self.told = least, (0, 0)

    def least(self, height: int, width: int) -> tuple[int, ...]:
        return self.asked

    def show(self, image: torch.Tensor, height: int, width: int) -> torch.Tensor:
        self.told = (height, width)
        return image


def damaged(data: bytes, seed: int) -> bytes:
    """Some bytes of the coded pixels changed."""
    changed, generator = bytearray(data), np.random.default_rng(seed)
    for place in generator.integers(len(data) // 2, len(data) - 2, 5):
        changed[place] = int(generator.integers(0, 255))
    return bytes(changed)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_every_jpeg_has_pillows_pixels(channels: int, subsampling: int, progressive: bool) -> None:
    for source in (SMOOTH, RGB, SMOOTH[:, :1]):
        for image in (Image.fromarray(np.ascontiguousarray(source)), Image.fromarray(np.ascontiguousarray(source[..., 0]))):
            data = encoded(image, "JPEG", quality=85, subsampling=subsampling, progressive=progressive)
            theirs = np.asarray(Image.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB"))
            assert (pixels(data, channels) == theirs).all()


def test_without_torchvisions_decoder_the_pixels_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(SMOOTH), "JPEG")
    expected = decode(data, 3)
    monkeypatch.setattr(jpeg, "decoded", lambda _: None)
    assert torch.equal(decode(data, 3), expected)


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_jpeg_has_pillows_pixels_or_is_refused_as_pillow_refuses_it(seed: int) -> None:
    data = damaged(encoded(Image.fromarray(SMOOTH), "JPEG"), seed)
    try:
        theirs = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except OSError:
        with pytest.raises(UnreadableImage):
            decode(data, 3)
        return
    assert (pixels(data) == theirs).all()


@pytest.mark.parametrize(
    ("least", "scale"),
    [
        ((141, 187), 1),
        ((72, 94), 1),
        ((71, 94), 2),
        ((71, 95), 1),
        ((36, 47), 4),
        ((37, 20), 2),
        ((18, 24), 8),
        ((1, 1), 8),
        ((500, 1), 1),
    ],
)
def test_a_jpeg_is_decoded_at_the_smallest_scale_that_is_at_least_what_is_asked_for(least: tuple[int, int], scale: int) -> None:
    data, view = encoded(Image.fromarray(SMOOTH), "JPEG", quality=95), Whole(*least)
    found = decode(data, 3, view)
    assert found.shape == (3, -(-141 // scale), -(-187 // scale))
    assert view.told == (141, 187)
    image = Image.open(io.BytesIO(data))
    image.draft(None, (187 // scale, 141 // scale))
    assert (found.permute(1, 2, 0).numpy() == np.asarray(image)).all()
    grey = np.asarray(Image.fromarray(found.permute(1, 2, 0).numpy()).convert("L"))
    assert (decode(data, 1, view)[0].numpy() == grey).all()


@pytest.mark.parametrize("orientation", SHOWN)
def test_a_turned_jpeg_is_reduced_by_its_size_as_seen(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(SMOOTH), "JPEG", exif=exif)
    upright = SHOWN[orientation](SMOOTH).shape[:2]
    view = Whole(*(-(-side // 2) for side in upright))
    plain = decode(encoded(Image.fromarray(SMOOTH), "JPEG"), 3, Whole(71, 94)).permute(1, 2, 0).numpy()
    assert (decode(data, 3, view).permute(1, 2, 0).numpy() == SHOWN[orientation](plain)).all()
    assert view.told == upright


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM"])
def test_other_files_are_decoded_whole(format: str) -> None:
    data, view = encoded(Image.fromarray(SMOOTH), format), Whole(1, 1)
    assert torch.equal(decode(data, 3, view), decode(data, 3))
    assert view.told == (141, 187)


def test_a_reduced_jpeg_shows_what_the_whole_one_shows() -> None:
    """What is seen from half scale lies within half a pixel of what is seen of the whole image."""
    data, view = encoded(Image.fromarray(SMOOTH), "JPEG", quality=95), CentralView(64)
    reduced, whole = decode(data, 3, view).float(), view(decode(data, 3)).float()
    slope = whole.diff(dim=1).abs().mean() + whole.diff(dim=2).abs().mean()
    assert 0 < float((reduced - whole).abs().mean()) < 0.5 * float(slope)
