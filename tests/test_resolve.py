"""From recipe and data to the recipe that is run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from residua.dataset import ArraySamples, Dataset, Facts, FileSamples
from residua.errors import RequestError, UnreadableImage
from residua.images import View
from residua.models import create_model
from residua.recipe import Recipe, replaced
from residua.resolve import DEFAULT_EPOCHS, DEFAULT_STEPS, class_weights, held_out, make_order, normalization, resolve


def images(count: int, side: int = 8, channels: int = 3) -> ArraySamples:
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(256, (count, channels, side, side), generator=generator, dtype=torch.uint8)
    return ArraySamples(pixels, torch.arange(count) % 3, [f"image {n}" for n in range(count)])


def dataset(count: int = 100, side: int = 8, channels: int = 3, *, uniform: bool = True, flip: bool = True) -> Dataset:
    splits = {"train": images(count, side, channels), "test": images(6, side, channels)}
    facts = Facts(channels, (side, side) if uniform else None, flip, pad=max(1, side // 8))
    return Dataset("toy", "made for the test", ("a", "b", "c"), splits, facts)


def resolved(changes: dict[str, Any], data: Dataset) -> Recipe:
    return resolve(replaced(Recipe(), changes), data)[0]


def test_small_uniform_images_are_padded_and_cropped_at_their_own_size() -> None:
    recipe = resolved({"steps": 1}, dataset(side=32))
    assert (recipe.data.image_size, recipe.augment.crop, recipe.augment.pad, recipe.augment.flip) == (32, "pad", 4, True)
    assert recipe.model.name == "resnet20"
    assert recipe.model.options == {"num_classes": 3, "in_channels": 3}


@pytest.mark.parametrize(("side", "uniform"), [(200, True), (32, False)])
def test_large_images_and_those_of_many_sizes_are_cut_to_224(side: int, uniform: bool) -> None:
    recipe = resolved({"steps": 1}, dataset(side=side, uniform=uniform))
    assert (recipe.data.image_size, recipe.augment.crop, recipe.model.name) == (224, "random-resized", "resnet18")
    assert "stem" not in recipe.model.options


def test_the_data_says_whether_to_flip_and_the_recipe_may_say_otherwise() -> None:
    assert resolved({"steps": 1}, dataset(flip=False)).augment.flip is False
    assert resolved({"steps": 1, "augment.flip": True}, dataset(flip=False)).augment.flip is True


def test_an_imagenet_network_gets_the_small_stem_on_small_images_unless_told() -> None:
    recipe, notes = resolve(replaced(Recipe(), {"steps": 1, "model.name": "resnet18"}), dataset())
    assert recipe.model.options["stem"] == "small"
    assert any("stem for small images" in note for note in notes)
    kept = resolved({"steps": 1, "model.name": "resnet18", "model.stem": "imagenet"}, dataset())
    assert kept.model.options["stem"] == "imagenet"


def test_a_batch_larger_than_the_data_is_cut_and_said() -> None:
    recipe, notes = resolve(replaced(Recipe(), {"steps": 1, "micro_batch": 64}), dataset(count=10))
    assert (recipe.batch_size, recipe.micro_batch) == (10, 10)
    assert any("larger than the data" in note for note in notes)


@pytest.mark.parametrize(("count", "batch"), [(300, 100), (100_000, 10)])
def test_without_a_length_there_is_a_default_one_and_it_is_said(count: int, batch: int) -> None:
    data = dataset(count=6)
    data.splits["train"] = ArraySamples(
        torch.empty(1, 3, 8, 8, dtype=torch.uint8).expand(count, -1, -1, -1), torch.zeros(count), []
    )
    recipe, notes = resolve(replaced(Recipe(), {"batch_size": batch}), data)
    assert recipe.epochs == max(DEFAULT_EPOCHS, -(-DEFAULT_STEPS // (count // batch)))
    assert any("No length is given" in note for note in notes)


def test_what_is_resolved_stays_as_it_is() -> None:
    data = dataset()
    once = resolve(Recipe(), data)[0]
    assert resolve(once, data) == (once, [])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.num_classes": 4}, "num_classes = 4, but the data has 3 classes"),
        ({"model.in_channels": 1}, "in_channels = 1, but the data has 3 channels"),
        ({"model.name": "resnet21"}, "resnet20"),
        ({"model.shortcat": "A"}, "shortcut"),
        ({"augment.crop": "scale-jitter", "augment.min_side": 4}, "crop of 8 pixels is larger than the image"),
        ({"augment.cutout": 9}, "cutout = 9 is larger"),
        ({"augment.pad": 8}, "out of sight"),
    ],
)
def test_a_recipe_that_contradicts_the_data_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        resolved(changes, dataset())


@pytest.mark.parametrize("name", ["highway_10", "highway_conv_10_16", "residual_mlp"])
def test_a_network_that_takes_one_size_only_is_built_for_the_images_size(name: str) -> None:
    recipe = resolved({"model.name": name}, dataset(side=12))
    assert recipe.model.options == {"num_classes": 3, "in_channels": 3, "image_size": 12}
    assert create_model(name, **recipe.model.options)(torch.zeros(2, 3, 12, 12)).shape == (2, 3)
    assert "image_size" not in resolved({"model.name": "highway_conv_19"}, dataset(side=12)).model.options
    with pytest.raises(RequestError, match="image_size = 28, but the data has 12 pixels a side"):
        resolved({"model.name": name, "model.image_size": 28}, dataset(side=12))


def test_a_holdout_is_set_aside_the_same_every_time_and_watched() -> None:
    data = dataset(count=50)
    recipe = replaced(Recipe(), {"data.holdout": 20})
    first, second = held_out(data, recipe), held_out(data, recipe)
    assert (len(first.splits["train"]), len(first.splits["val"]), first.watched, first.final) == (30, 20, "val", "test")
    assert list(first.splits["val"].names) == list(second.splits["val"].names)
    assert sorted([*first.splits["train"].names, *first.splits["val"].names]) == sorted(data.splits["train"].names)
    assert held_out(data, Recipe()) is data
    with pytest.raises(RequestError, match="leave nothing of 50"):
        held_out(data, replaced(Recipe(), {"data.holdout": 50}))


def test_no_holdout_takes_the_place_of_a_val_that_there_is() -> None:
    data = dataset(count=50)
    with_val = replace(data, splits={"train": data.splits["train"], "val": data.splits["test"]})
    with pytest.raises(RequestError, match="in val already"):
        held_out(with_val, replaced(Recipe(), {"data.holdout": 20}))
    assert held_out(with_val, Recipe()) is with_val


@pytest.mark.parametrize("count", [40, 5_000])
@pytest.mark.parametrize("channels", [1, 3])
def test_mean_and_deviation_are_those_of_all_pixels(count: int, channels: int) -> None:
    samples = images(count, channels=channels)
    recipe = replaced(Recipe(), {"data.image_size": 8})
    stats = normalization(samples, recipe, channels)
    pixels = samples.images.double().transpose(0, 1).flatten(1) / 255
    torch.testing.assert_close(stats["mean"].double().flatten(), pixels.mean(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(stats["std"].double().flatten(), pixels.std(1, unbiased=False), atol=1e-6, rtol=0)
    assert stats["mean"].shape == stats["std"].shape == (channels, 1, 1)
    each = normalization(samples, replaced(recipe, {"data.normalize": "pixel"}), channels)
    torch.testing.assert_close(each["mean"].double(), samples.images.double().mean(0) / 255, atol=1e-6, rtol=0)
    assert torch.equal(each["std"], torch.ones(channels, 1, 1))


def test_images_of_one_colour_do_not_divide_by_zero() -> None:
    samples = ArraySamples(torch.full((4, 1, 8, 8), 7, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), list("abcd"))
    assert float(normalization(samples, replaced(Recipe(), {"data.image_size": 8}), 1)["std"]) == pytest.approx(1e-3)


def test_statistics_of_files_leave_out_what_cannot_be_decoded() -> None:
    def decode(path: Path, *, view: View | None = None) -> torch.Tensor:
        if path.name == "bad":
            raise UnreadableImage("bad")
        image = torch.full((1, 8, 8), 100, dtype=torch.uint8)
        return image if view is None else view.show(image, 8, 8)

    recipe = replaced(Recipe(), {"data.image_size": 8})
    samples = FileSamples(Path(), ["good", "bad", "fine"], torch.zeros(3, dtype=torch.int64), [1, 1, 1], decode)
    assert float(normalization(samples, recipe, 1)["mean"]) == pytest.approx(100 / 255)
    with pytest.raises(RequestError, match="None of the 1 training images"):
        normalization(FileSamples(Path(), ["bad"], torch.zeros(1, dtype=torch.int64), [1], decode), recipe, 1)


def test_class_weights_are_n_over_k_times_the_class_and_one_on_average() -> None:
    data = dataset(count=6)
    labels = torch.tensor([0, 0, 0, 0, 1, 2])
    data.splits["train"] = ArraySamples(data.splits["train"].images, labels, list("abcdef"))
    weights = class_weights(data, replaced(Recipe(), {"data.balance": "weights"}))
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([6 / (3 * 4), 6 / (3 * 1), 6 / (3 * 1)]))
    assert float(weights[labels].mean()) == pytest.approx(1)
    assert class_weights(data, Recipe()) is None
    assert make_order(data, replaced(Recipe(), {"data.balance": "sampler"})).balanced


@pytest.mark.parametrize(("name", "side", "words"), [("alexnet", 32, "at least 63 pixels"), ("vgg16", 8, "at least 32 pixels")])
def test_images_that_are_too_small_for_the_network_are_refused_with_the_size_it_takes(name: str, side: int, words: str) -> None:
    with pytest.raises(RequestError, match=rf"{words}, and these have {side}\. --set data\.image_size="):
        resolved({"steps": 1, "model.name": name}, dataset(side=side))


def test_a_network_of_one_size_is_built_for_that_of_the_images_and_one_without_a_stem_gets_none() -> None:
    assert resolved({"steps": 1, "model.name": "residual_mlp"}, dataset(side=8)).model.options["image_size"] == 8
    with pytest.raises(RequestError, match=r"model\.image_size = 28, but the data has 8"):
        resolved({"steps": 1, "model.name": "residual_mlp", "model.image_size": 28}, dataset(side=8))
    assert resolved({"steps": 1, "model.name": "inception_v3"}, dataset(side=32)).model.options["stem"] == "small"
    assert "stem" not in resolved({"steps": 1, "model.name": "vgg11"}, dataset(side=32)).model.options


def test_pixels_may_be_divided_by_255_only() -> None:
    data = dataset()
    stats = normalization(data.splits["train"], resolved({"steps": 1, "data.normalize": "none"}, data), 3)
    assert (stats["mean"].tolist(), stats["std"].tolist()) == ([[[0.0]]] * 3, [[[1.0]]] * 3)
