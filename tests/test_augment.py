"""Views and transforms against explicit slicing, formulas and torchvision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from residua import augment, keyed, normalizing
from residua.augment import (
    PCA_VALUES,
    PCA_VECTORS,
    Key,
    area_factor,
    colour_change,
    crop_and_flip,
    cutout,
    flip,
    flips,
    mixed,
    normalized,
    resized,
    scale_at,
    transformed,
)
from residua.recipe import Augment

KEY = Key(seed=3, epoch=5)
DRAWS = torch.arange(600)


def pixels(count: int, channels: int = 3, height: int = 6, width: int = 6) -> Tensor:
    shape = (count, channels, height, width)
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def coin(key: Key, draws: Tensor, name: str) -> Tensor:
    return keyed.uniform(key.seed, key.epoch, draws, name) < 0.5


# ------------------------------------------------------------------------------------------------------- crops and flips


@pytest.mark.parametrize("pad", [1, 4, 6])
def test_reflected_padding_is_torchs(pad: int) -> None:
    images = torch.randint(256, (len(DRAWS), 3, 7, 9), dtype=torch.uint8)
    wide = torch.nn.functional.pad(images.float(), (pad,) * 4, mode="reflect").to(torch.uint8)
    found = crop_and_flip(images, pad, None, None, KEY, DRAWS)
    for image, padded in zip(found, wide):
        slices = [padded[:, y : y + 7, x : x + 9] for y in range(2 * pad + 1) for x in range(2 * pad + 1)]
        assert any(torch.equal(image, part) for part in slices)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("pad", "channels", "height", "width"), [(0, 3, 6, 6), (1, 1, 5, 7), (2, 3, 6, 6)])
def test_crop_and_flip_is_a_slice_of_the_padded_image_and_meets_every_offset(
    pad: int, channels: int, height: int, width: int, mirrored: bool
) -> None:
    images = pixels(len(DRAWS), channels, height, width)
    fill = torch.tensor([10, 20, 30][:channels], dtype=torch.uint8)
    found = crop_and_flip(images, pad, coin(KEY, DRAWS, "flip") if mirrored else None, fill, KEY, DRAWS)
    padded = fill.view(1, -1, 1, 1).repeat(len(DRAWS), 1, height + 2 * pad, width + 2 * pad)
    padded[:, :, pad : pad + height, pad : pad + width] = images
    met: set[tuple[int, int, bool]] = set()
    for index, one in enumerate(found):
        places = [
            (top, left, turned)
            for top in range(2 * pad + 1)
            for left in range(2 * pad + 1)
            for turned in ({False, mirrored})
            if torch.equal(turn(padded[index, :, top : top + height, left : left + width], turned), one)
        ]
        assert places, f"image {index} is no crop of its padded form"
        met.update(places)
    assert len(met) == (2 * pad + 1) ** 2 * (1 + mirrored)


def turn(image: Tensor, mirrored: bool) -> Tensor:
    return image.flip(-1) if mirrored else image


def test_the_offsets_and_the_mirror_image_are_the_keyed_ones() -> None:
    images = pixels(50)
    draws = 1_000 + 7 * torch.arange(50)
    found = crop_and_flip(images, 2, coin(KEY, draws, "flip"), torch.zeros(3, dtype=torch.uint8), KEY, draws)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for index, draw in enumerate(draws.tolist()):
        top = int(keyed.uniform(3, 5, draw, "top") * 5)
        left = int(keyed.uniform(3, 5, draw, "left") * 5)
        view = padded[index, :, top : top + 6, left : left + 6]
        assert torch.equal(found[index], turn(view, bool(keyed.uniform(3, 5, draw, "flip") < 0.5)))


def test_half_of_the_images_are_mirrored() -> None:
    images = pixels(len(DRAWS))
    found = flip(images, coin(KEY, DRAWS, "flip"))
    turned = coin(KEY, DRAWS, "flip")
    assert stats.binomtest(int(turned.sum()), len(DRAWS)).pvalue > 1e-3
    assert torch.equal(found[turned], images[turned].flip(-1))
    assert torch.equal(found[~turned], images[~turned])


def test_flipping_alone_and_with_a_crop_of_no_padding_are_the_same() -> None:
    images = pixels(40)
    draws = torch.arange(40)
    coins, fill = coin(KEY, draws, "flip"), torch.zeros(3, dtype=torch.uint8)
    assert torch.equal(flip(images, coins), crop_and_flip(images, 0, coins, fill, KEY, draws))


def test_alternating_mirror_images_take_turns() -> None:
    """Jordan 2024, section 3.6: over two epochs in a row every image is seen both ways, each epoch half of them mirrored."""
    augment = Augment(flip=True, alternate=True)
    epochs = torch.stack([flips(augment, Key(3, epoch), DRAWS) for epoch in range(4)])
    assert torch.equal(epochs[0], coin(Key(3, 0), DRAWS, "flip"))
    assert torch.equal(epochs[0], ~epochs[1])
    assert torch.equal(epochs[0], epochs[2])
    assert torch.equal(epochs[1], epochs[3])
    assert torch.equal(flips(Augment(flip=True), Key(3, 2), DRAWS), coin(Key(3, 2), DRAWS, "flip"))


def test_the_scale_follows_the_share_of_the_run() -> None:
    scales = ((0.25, 0.5), (0.5, 0.75), (0.75, 1.0))
    assert [scale_at(scales, share) for share in (0, 0.2, 0.25, 0.49, 0.5, 0.74, 0.75, 1)] == [1, 1, 0.5, 0.5, 0.75, 0.75, 1, 1]
    assert area_factor(scales) == pytest.approx(0.25 + 0.25 * (1 / 4 + 9 / 16 + 1))
    assert area_factor(()) == 1


def test_resizing_halves_an_image_by_the_mean_under_a_triangle() -> None:
    """Bilinear with smoothing: each new pixel is the mean of the old ones weighted by a triangle two new pixels wide."""
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    weights = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)
    found = resized(images, 0.5)
    inside = torch.einsum("ncij,i,j->nc", images[:, :, 1:5, 3:7], weights, weights) / 64
    torch.testing.assert_close(found[:, :, 1, 2], inside)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert resized(images, 1.0) is images


# ---------------------------------------------------------------------------------------------------- formulas on batches


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 6, 6)])
def test_normalization_subtracts_and_divides(shape: tuple[int, ...]) -> None:
    images, mean, std = pixels(4), torch.rand(shape), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    found = normalized(images, {"mean": mean, "std": std})
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (images / 255 - mean) / std, atol=1e-5, rtol=1e-5)


def test_a_mean_image_of_another_size_counts_as_its_mean_colour() -> None:
    images, mean, std = pixels(2), torch.rand(3, 9, 9), torch.ones(3, 1, 1)
    torch.testing.assert_close(normalized(images, {"mean": mean, "std": std}), images / 255 - mean.mean((1, 2), keepdim=True))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_colour_change_is_the_papers_formula(channels: int) -> None:
    x = torch.randn(5, channels, 4, 4, dtype=torch.float64)
    std = torch.tensor([0.2, 0.3, 0.4][:channels], dtype=torch.float64).view(-1, 1, 1)
    draws = torch.tensor([3, 1, 4, 15, 9])
    found = colour_change(x, 0.1, std, KEY, draws)
    for index, draw in enumerate(draws.tolist()):
        alpha = [0.1 * float(keyed.normal(3, 5, draw, "colour", part)) for part in range(3)]
        change = [sum(PCA_VECTORS[c][part] * alpha[part] * PCA_VALUES[part] for part in range(3)) for c in range(3)]
        if channels == 1:
            change = [sum(change) / 3]
        for c in range(channels):
            torch.testing.assert_close(found[index, c], x[index, c] + change[c] / float(std[c]), rtol=1e-12, atol=1e-12)


def test_the_principal_components_are_orthonormal() -> None:
    vectors = torch.tensor(PCA_VECTORS, dtype=torch.float64)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(3, dtype=torch.float64), atol=2e-3, rtol=0)


@pytest.mark.parametrize("side", [1, 2, 3, 6])
def test_cutout_zeroes_one_square_that_may_reach_over_the_border(side: int) -> None:
    x = torch.ones(len(DRAWS), 2, 6, 7)
    found = cutout(x, side, KEY, DRAWS)
    assert torch.equal(found[:, 0], found[:, 1])
    for index, one in enumerate(found[:, 0]):
        row = int(keyed.integers(0, 6, 3, 5, index, "cutout-row")) - side // 2
        column = int(keyed.integers(0, 7, 3, 5, index, "cutout-column")) - side // 2
        expected = torch.ones(6, 7)
        expected[max(0, row) : max(0, row + side), max(0, column) : max(0, column + side)] = 0
        assert torch.equal(one, expected)


# ----------------------------------------------------------------------------------------------------------------- mixing


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_mixup_is_the_weighted_mean_of_neighbours(count: int) -> None:
    x = torch.randn(count, 3, 4, 4, dtype=torch.float64)
    found, mix = mixed(x, 0.4, 0.0, KEY, torch.arange(100, 100 + count))
    for i in range(count):
        j = i ^ 1 if i ^ 1 < count else i
        w = float(mix.weight[i])
        assert int(mix.partner[i]) == j
        torch.testing.assert_close(found[i], w * x[i] + (1 - w) * x[j])
        if j == i:
            assert w == 1
        else:
            assert w == float(mix.weight[j])


@pytest.mark.parametrize("count", [2, 7, 64])
def test_cutmix_pastes_a_box_and_counts_the_pixels_kept(count: int) -> None:
    x = torch.arange(count, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, 2, 9, 7).clone()
    found, mix = mixed(x, 0.0, 1.0, KEY, torch.arange(count))
    boxes = 0
    for i in range(count):
        j = int(mix.partner[i])
        assert set(found[i].unique().tolist()) <= {float(i), float(j)}
        kept = found[i, 0] == i
        assert float(mix.weight[i]) == pytest.approx(int(kept.sum()) / (9 * 7), rel=1e-12)
        pasted = (~kept).nonzero()
        if len(pasted):
            boxes += 1
            top, left = pasted.amin(0).tolist()
            bottom, right = pasted.amax(0).tolist()
            assert len(pasted) == (bottom - top + 1) * (right - left + 1), "a full box"
    assert boxes > 0


def test_the_mixing_weights_follow_their_beta_distributions() -> None:
    draws = torch.arange(4_000)
    x = torch.zeros(len(draws), 1, 1, 1, dtype=torch.float64)
    for alpha in (0.2, 1.0):
        weight = mixed(x, alpha, 0.0, KEY, draws)[1].weight[::2]
        assert stats.kstest(weight.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_with_both_on_each_pair_is_mixed_in_one_of_the_two_ways() -> None:
    draws = torch.arange(1_000)
    x = torch.arange(len(draws), dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).clone()
    found, _ = mixed(x, 1.0, 1.0, KEY, draws)
    cut = torch.tensor([set(found[i].unique().tolist()) <= {float(i), float(i ^ 1)} for i in range(len(draws))])
    assert torch.equal(cut[::2], cut[1::2])
    assert torch.equal(cut, coin(KEY, draws - draws % 2, "mix"))
    assert stats.binomtest(int(cut[::2].sum()), 500).pvalue > 1e-3


def test_a_pair_is_mixed_alike_wherever_it_stands() -> None:
    x = torch.randn(8, 3, 4, 4)
    draws = torch.tensor([5, 9, 2, 7, 1, 8, 3, 4])
    whole, _ = mixed(x, 0.5, 0.5, KEY, draws)
    parts = torch.cat([mixed(x[i : i + 2], 0.5, 0.5, KEY, draws[i : i + 2])[0] for i in range(0, 8, 2)])
    assert torch.equal(whole, parts)


# ------------------------------------------------------------------------------------------------------------- all of them


STATS = {"mean": torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1), "std": torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)}


def test_all_transforms_are_applied_in_the_documented_order() -> None:
    images, draws = pixels(9), torch.arange(20, 29)
    augment = Augment(crop="pad", pad=2, flip=True, colour=0.1, cutout=3, mixup=0.5)
    x = crop_and_flip(images, 2, coin(KEY, draws, "flip"), torch.tensor([26, 128, 230], dtype=torch.uint8), KEY, draws)
    y = cutout(colour_change(normalized(x, STATS), 0.1, STATS["std"], KEY, draws), 3, KEY, draws)
    expected, mix = mixed(y, 0.5, 0.0, KEY, draws)
    found, found_mix = transformed(images, augment, STATS, KEY, draws)
    assert torch.equal(found, expected)
    assert found_mix is not None
    assert torch.equal(found_mix.weight, mix.weight)


def test_with_everything_off_a_batch_is_only_normalized() -> None:
    images = pixels(5)
    found, mix = transformed(images, Augment(crop="none", flip=False), STATS, KEY, torch.arange(5))
    assert torch.equal(found, normalized(images, STATS))
    assert mix is None


def test_a_sample_is_augmented_alike_in_any_batch_and_differently_in_another_epoch() -> None:
    images, draws = pixels(8), torch.tensor([4, 9, 1, 30, 77, 2, 5, 6])
    augment = Augment(crop="pad", pad=2, flip=True, colour=0.1, cutout=2)
    whole, _ = transformed(images, augment, STATS, KEY, draws)
    order = torch.tensor([3, 0, 7])
    torch.testing.assert_close(transformed(images[order], augment, STATS, KEY, draws[order])[0], whole[order])
    assert not torch.equal(transformed(images, augment, STATS, Key(3, 6), draws)[0], whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_crops_are_equal_on_a_gpu_and_floats_to_rounding() -> None:
    images, draws = pixels(64), torch.arange(64)
    fill = torch.tensor([1, 2, 3], dtype=torch.uint8)
    on_gpu = crop_and_flip(images.cuda(), 2, coin(KEY, draws, "flip").cuda(), fill.cuda(), KEY, draws.cuda())
    assert torch.equal(on_gpu.cpu(), crop_and_flip(images, 2, coin(KEY, draws, "flip"), fill, KEY, draws))
    augment = Augment(crop="pad", pad=2, flip=True, colour=0.1, cutout=2, cutmix=1.0, mixup=1.0)
    torch.testing.assert_close(
        transformed(images.cuda(), augment, STATS, KEY, draws.cuda())[0].cpu(), transformed(images, augment, STATS, KEY, draws)[0]
    )


# ---------------------------------------------------------------------------------------------------------- in one pass


@pytest.mark.skipif(normalizing.obstacle() is not None, reason=str(normalizing.obstacle()))
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
@pytest.mark.parametrize(
    "fields",
    [
        {"crop": "none", "flip": False},
        {"crop": "none", "flip": True},
        {"crop": "pad", "pad": 3, "padding": "mean", "flip": True},
        {"crop": "pad", "pad": 4, "padding": "reflect", "flip": True},
        {"crop": "pad", "pad": 1, "padding": "reflect", "flip": False},
        {"crop": "pad", "pad": 9, "padding": "mean", "flip": False, "cutout": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(7, 3, 9, 16), (5, 1, 8, 8), (3, 4, 6, 11), (2, 3, 224, 224)], ids=str)
def test_one_pass_gives_the_bytes_of_one_step_after_the_other(
    shape: tuple[int, ...], fields: dict[str, Any], order: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pixels(*shape).contiguous(memory_format=order)
    mean = torch.tensor([0.49, 0.48, 0.44, 0.5])[: shape[1], None, None]
    statistics = {"mean": mean, "std": torch.tensor([0.24, 0.25, 0.26, 0.3])[: shape[1], None, None]}
    settings, draws = Augment(**fields), 11 * torch.arange(shape[0])
    assert augment._in_one_pass(images, statistics)
    found, _ = transformed(images, settings, statistics, KEY, draws)
    monkeypatch.setattr(augment, "_in_one_pass", lambda *_: False)
    expected, _ = transformed(images, settings, statistics, KEY, draws)
    assert found.stride() == expected.stride()
    assert torch.equal(found, expected)


def test_a_mean_of_each_pixel_is_subtracted_step_by_step() -> None:
    statistics = {"mean": torch.rand(3, 6, 6), "std": torch.ones(3, 1, 1)}
    assert not augment._in_one_pass(pixels(4), statistics)
    assert not augment._in_one_pass(pixels(4).permute(0, 1, 3, 2), {**statistics, "mean": torch.rand(3, 1, 1)})
