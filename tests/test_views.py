"""Views against explicit slicing, formulas and torchvision; and of images that were decoded at a reduced scale."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2

from residua import keyed
from residua.augment import Key
from residua.recipe import Augment
from residua.views import CentralView, SideView, central_view, shorter_side, train_view, train_views

KEY = Key(seed=3, epoch=5)


def pixels(count: int, channels: int = 3, height: int = 6, width: int = 6) -> Tensor:
    shape = (count, channels, height, width)
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 80), (96, 48), (64, 80), (17, 34)])
@pytest.mark.parametrize(("size", "fraction"), [(16, 1.0), (28, 0.875), (32, 1.0)])
def test_the_central_view_is_torchvisions_resize_and_centre_crop(height: int, width: int, size: int, fraction: float) -> None:
    image = pixels(1, 3, height, width)[0]
    theirs = v2.Compose([v2.Resize(round(size / fraction), antialias=True), v2.CenterCrop(size)])
    assert torch.equal(central_view(image, size, fraction), theirs(image))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_the_shorter_side_becomes_what_is_asked_for_and_the_ratio_stays(height: int, width: int, side: int) -> None:
    found = shorter_side(torch.zeros(1, height, width, dtype=torch.uint8), side)
    assert min(found.shape[1:]) == side
    if max(height, width) <= 8 * min(height, width):
        scale = side / min(height, width)
        assert abs(found.shape[1] - height * scale) <= 0.5
        assert abs(found.shape[2] - width * scale) <= 0.5
    else:
        assert max(found.shape[1:]) == 8 * side, "of a strip the middle is seen"


CROPS = {
    "scale-jitter": Augment(crop="scale-jitter", min_side=12, max_side=20),
    "random-resized": Augment(crop="random-resized", min_area=0.25),
}


@pytest.mark.parametrize("crop", CROPS)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 2**40), st.sampled_from([1, 3]))
@settings(max_examples=40, deadline=None)
def test_every_view_has_the_size_asked_for_and_is_a_function_of_its_key(
    crop: str, height: int, width: int, draw: int, channels: int
) -> None:
    image = pixels(1, channels, height, width)[0]
    view = train_view(image, CROPS[crop], 12, KEY, draw)
    assert view.shape == (channels, 12, 12)
    assert view.dtype == torch.uint8
    assert torch.equal(view, train_view(image, CROPS[crop], 12, KEY, draw))


@pytest.mark.parametrize("crop", CROPS)
def test_views_differ_between_samples_epochs_and_seeds(crop: str) -> None:
    image = pixels(1, 3, 40, 40)[0]
    views = [
        train_view(image, CROPS[crop], 12, Key(seed, epoch), draw)
        for seed, epoch, draw in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(views) for b in views[:i])


def test_scale_jitter_draws_every_side_of_its_range_and_cuts_inside() -> None:
    """On an image whose pixels tell their place, the view tells its scale and its corner."""
    ramp = torch.arange(0, 240, 12, dtype=torch.uint8)
    image = torch.stack((ramp[:, None].expand(20, 20), ramp[None].expand(20, 20)))
    augment = dataclasses.replace(CROPS["scale-jitter"], min_side=20, max_side=20)
    corners = set()
    for draw in range(400):
        view = train_view(image, augment, 18, KEY, draw)
        top, left = int(view[0, 0, 0]) // 12, int(view[1, 0, 0]) // 12
        assert torch.equal(view, image[:, top : top + 18, left : left + 18])
        corners.add((top, left))
    assert corners == {(top, left) for top in range(3) for left in range(3)}
    sides = {int(keyed.integers(12, 21, 3, 5, draw, "side")) for draw in range(400)}
    assert sides == set(range(12, 21))


def test_random_resized_crops_keep_to_their_areas_and_ratios() -> None:
    """The slope of a ramp in the resized view tells how much of the image it shows."""
    side = 120
    ramp = torch.linspace(0, 255, side)
    image = torch.stack((ramp[:, None].expand(side, side), ramp[None].expand(side, side))).round().to(torch.uint8)
    shares = []
    for draw in range(300):
        view = train_view(image, CROPS["random-resized"], 24, KEY, draw).double()
        height = (view[0, -1].mean() - view[0, 0].mean()) * 24 / 23 / 255
        width = (view[1, :, -1].mean() - view[1, :, 0].mean()) * 24 / 23 / 255
        shares.append((float(height * width), float(width / height)))
    areas, ratios = torch.tensor(shares).T
    assert 0.25 * 0.9 <= float(areas.min()) <= 0.35
    assert 0.9 <= float(areas.max()) <= 1.05
    assert 0.75 * 0.95 <= float(ratios.min()) <= 0.85
    assert 1.2 <= float(ratios.max()) <= 4 / 3 * 1.05


def test_an_image_too_long_for_any_crop_shows_its_centre() -> None:
    image = torch.zeros(1, 4, 400, dtype=torch.uint8)
    image[:, :, 198:203] = 200
    view = train_view(image, Augment(crop="random-resized", min_area=1.0), 12, KEY, 0)
    assert int(view.max()) > 150


def test_without_a_random_crop_the_view_is_the_central_one() -> None:
    image = pixels(1, 3, 20, 30)[0]
    for crop in ("none", "pad"):
        assert torch.equal(train_view(image, Augment(crop=crop), 12, KEY, 0), central_view(image, 12))


# ------------------------------------------------------------------------------------------- images at a reduced scale


ANY_VIEW = {
    "side": SideView(20),
    "centre": CentralView(14, 0.875),
    "scale-jitter": train_views(CROPS["scale-jitter"], 12, KEY, torch.tensor([7]))[0],
    "random-resized": train_views(CROPS["random-resized"], 12, KEY, torch.tensor([7]))[0],
}


@pytest.mark.parametrize("name", ANY_VIEW)
@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([2, 4, 8]))
@settings(max_examples=60, deadline=None)
def test_a_view_has_one_shape_whatever_the_scale(name: str, height: int, width: int, scale: int) -> None:
    view = ANY_VIEW[name]
    whole = torch.zeros(3, height, width, dtype=torch.uint8)
    part = torch.zeros(3, -(-height // scale), -(-width // scale), dtype=torch.uint8)
    assert view.show(part, height, width).shape == view.show(whole, height, width).shape


@pytest.mark.parametrize("name", ANY_VIEW)
def test_a_view_shows_the_same_place_whatever_the_scale(name: str) -> None:
    """On a smooth image, reduced by averaging, what is seen differs by rounding and by a fraction of a pixel's slope."""
    down, across = torch.meshgrid(torch.linspace(0, 255, 192), torch.linspace(0, 255, 256), indexing="ij")
    image = torch.stack((down, across, (down + across) / 2))
    reduced = torch.nn.functional.avg_pool2d(image, 2).round().to(torch.uint8)
    view = ANY_VIEW[name]
    whole = view.show(image.round().to(torch.uint8), 192, 256).int()
    assert int((view.show(reduced, 192, 256).int() - whole).abs().max()) <= 3


@pytest.mark.parametrize("name", ANY_VIEW)
@given(st.integers(8, 400), st.integers(8, 400))
@settings(max_examples=60, deadline=None)
def test_the_least_size_asks_for_no_enlargement_and_for_no_more_than_the_image_where_that_suffices(
    name: str, height: int, width: int
) -> None:
    """At the least size what is seen of the image has as many pixels as the view, so an image that is large enough is asked
    for at most at its own size."""
    view = ANY_VIEW[name]
    least = view.least(height, width)
    if isinstance(view, SideView):
        seen = min(height, 8 * width), min(width, 8 * height)
        shown = view.show(torch.zeros(1, height, width, dtype=torch.uint8), height, width).shape[-2:]
        assert all(small * part >= out * size for small, part, out, size in zip(least, seen, shown, (height, width)))
    if name == "random-resized":
        _, _, h, w = view._box(height, width)
        assert least[0] * h >= 12 * height
        assert least[1] * w >= 12 * width
        assert (least[0] <= height) == (h >= 12)
        assert (least[1] <= width) == (w >= 12)


def test_all_views_of_a_batch_are_those_of_their_draws() -> None:
    image, draws = pixels(1, 3, 40, 50)[0], torch.tensor([3, 99, 12345])
    for augment in CROPS.values():
        for view, draw in zip(train_views(augment, 12, KEY, draws), draws.tolist()):
            assert torch.equal(view.show(image, 40, 50), train_view(image, augment, 12, KEY, draw))


@pytest.mark.parametrize("name", ANY_VIEW)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_order_of_channels_in_memory_changes_no_pixel(name: str, channels: int) -> None:
    image = pixels(1, channels, 60, 45)[0]
    apart = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(ANY_VIEW[name].show(image, 60, 45), ANY_VIEW[name].show(apart, 60, 45))
