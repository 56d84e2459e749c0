"""Order, shares and batches as pure functions of position."""

from __future__ import annotations

import dataclasses
import threading
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from residua.augment import Key, mixed
from residua.batches import Batch, CentralView, Order, Share, evaluation_batches, even_cuts, train_batches
from residua.dataset import ArraySamples, FileSamples, Samples
from residua.images import View, decode
from residua.recipe import Augment
from residua.views import central_view, train_view

COUNT, SIDE = 23, 8
LABELS = torch.arange(COUNT) % 4


def in_memory() -> ArraySamples:
    pixels = torch.arange(COUNT, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, SIDE, SIDE).clone()
    return ArraySamples(pixels, LABELS, [f"image {n}" for n in range(COUNT)])


@pytest.fixture(scope="module")
def in_files(tmp_path_factory: pytest.TempPathFactory) -> FileSamples:
    """Images of random pixels and differing sizes; number 5 is text."""
    root = tmp_path_factory.mktemp("files")
    generator = torch.Generator().manual_seed(0)
    names = [f"{n:02}.png" for n in range(COUNT)]
    for number, name in enumerate(names):
        pixels = torch.randint(256, (12 + number % 3, 10 + number % 4, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(root / name)
    (root / names[5]).write_text("no image")
    return FileSamples(root, names, LABELS, [1] * COUNT, partial(decode, channels=3))


def batches(
    samples: Samples, augment: Augment, order: Order, first: int, last: int, share: Share | None = None, workers: int = 0
) -> list[Batch]:
    return list(train_batches(samples, order, augment, SIDE, first, last, share or Share(), workers))


def equal(a: Batch, b: Batch) -> bool:
    tensors = all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("images", "labels", "draws", "valid"))
    return tensors and (a.step, a.epoch, a.unreadable) == (b.step, b.epoch, b.unreadable)


# ------------------------------------------------------------------------------------------------------------------ order


def test_the_order_is_a_permutation_another_one_in_each_epoch_and_seed() -> None:
    orders = [Order(LABELS, 4, seed).epoch(epoch) for seed in (0, 1) for epoch in range(5)]
    assert all(sorted(order.tolist()) == list(range(COUNT)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 10


def test_an_epoch_shows_full_batches_and_leaves_out_the_remainder() -> None:
    order = Order(LABELS, 5, 0)
    assert order.steps_per_epoch == 4
    steps = list(order.steps(0, 12, Share()))
    assert [(step, epoch) for step, epoch, _ in steps] == [(step, step // 4) for step in range(12)]
    for epoch in range(3):
        seen = torch.cat([draws for _, e, draws in steps if e == epoch])
        assert torch.equal(seen, order.epoch(epoch)[:20])


def test_a_batch_larger_than_the_data_is_all_of_it() -> None:
    assert [len(draws) for _, _, draws in Order(LABELS, 100, 0).steps(0, 3, Share())] == [COUNT] * 3


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 5, 7, 8])
def test_the_shares_of_all_processes_are_the_global_batch(world: int, size: int) -> None:
    order = Order(LABELS, size, 3)
    shares = [list(order.steps(0, 9, Share(rank, world))) for rank in range(world)]
    for parts, (step, epoch, whole) in zip(zip(*shares), order.steps(0, 9, Share())):
        assert torch.equal(torch.cat([draws for _, _, draws in parts]), whole)
        assert {(part[0], part[1]) for part in parts} == {(step, epoch)}


@given(st.integers(0, 300), st.integers(1, 20))
def test_cuts_are_even_ordered_and_fair(count: int, parts: int) -> None:
    cuts = even_cuts(count, parts)
    assert len(cuts) == parts + 1
    assert (cuts[0], cuts[-1]) == (0, count)
    assert all(a <= b for a, b in pairwise(cuts))
    assert all(cut % 2 == 0 or cut == count for cut in cuts)
    assert all(abs((b - a) - count / parts) <= 2 for a, b in pairwise(cuts))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_pairs_that_are_mixed_are_never_split(world: int) -> None:
    """Mixing the shares one by one, cut further into micro-batches, gives what mixing the whole batch gives."""
    size = 15
    order = Order(LABELS, size, 3)
    _, epoch, whole = next(order.steps(0, 1, Share()))
    x = torch.randn(COUNT, 1, 4, 4)
    expected, _ = mixed(x[whole], 0.5, 0.5, Key(3, epoch), whole)
    found = []
    for rank in range(world):
        _, _, draws = next(order.steps(0, 1, Share(rank, world)))
        for start, end in pairwise(even_cuts(len(draws), 3)):
            part = draws[start:end]
            found.append(mixed(x[part], 0.5, 0.5, Key(3, epoch), part)[0] if len(part) else x[:0])
    assert torch.equal(torch.cat(found), expected)


def test_the_balanced_sampler_draws_all_classes_equally_and_a_repeat_is_a_draw_of_its_own() -> None:
    labels = torch.tensor([0] * 40 + [1] * 9 + [2] * 3)
    order = Order(labels, 13, 0, balanced=True)
    met: set[int] = set()
    for epoch in range(25):
        draws = order.epoch(epoch)
        counts = torch.bincount(labels[draws % len(labels)], minlength=3)
        assert int(counts.sum()) == len(labels) == len(set(draws.tolist()))
        assert int(counts.max() - counts.min()) <= 2
        rare = [int((draws % len(labels) == place).sum()) for place in (49, 50, 51)]
        assert max(rare) - min(rare) <= 2, "a class's samples are repeated evenly"
        met.update((draws % len(labels)).tolist())
    assert met == set(range(len(labels))), "in time every sample is seen"
    assert not torch.equal(order.epoch(0), order.epoch(1))


# ---------------------------------------------------------------------------------------------------------------- batches

VIEWS = {
    "pad": Augment(crop="pad", pad=1, flip=True),
    "scale-jitter": Augment(crop="scale-jitter", min_side=SIDE, max_side=12, flip=True),
    "random-resized": Augment(crop="random-resized", flip=True),
}


def test_images_in_memory_are_taken_by_index() -> None:
    for batch in batches(in_memory(), VIEWS["pad"], Order(LABELS, 5, 0), 0, 9):
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.draws)
        assert torch.equal(batch.labels, LABELS[batch.draws])
        assert bool(batch.valid.all())


@pytest.mark.parametrize("crop", VIEWS)
def test_resuming_at_any_step_gives_the_same_batches(crop: str, in_files: FileSamples) -> None:
    order = Order(LABELS, 5, 0)
    for samples in (in_memory(), in_files):
        whole = batches(samples, VIEWS[crop], order, 0, 9)
        for first in (1, 3, 4, 8):
            resumed = batches(samples, VIEWS[crop], order, first, 9)
            assert len(resumed) == 9 - first
            assert all(equal(a, b) for a, b in zip(whole[first:], resumed))


def test_workers_change_nothing(in_files: FileSamples) -> None:
    order = Order(LABELS, 5, 0)
    alone = batches(in_files, VIEWS["random-resized"], order, 2, 9, Share(1, 2))
    helped = batches(in_files, VIEWS["random-resized"], order, 2, 9, Share(1, 2), workers=2)
    assert len(alone) == len(helped) == 7
    assert all(equal(a, b) for a, b in zip(alone, helped))


def test_the_shares_of_processes_hold_the_same_pixels_as_the_whole(in_files: FileSamples) -> None:
    order = Order(LABELS, 7, 0)
    parts = [batches(in_files, VIEWS["random-resized"], order, 0, 4, Share(rank, 3)) for rank in range(3)]
    for index, whole in enumerate(batches(in_files, VIEWS["random-resized"], order, 0, 4)):
        assert torch.equal(torch.cat([part[index].images for part in parts]), whole.images)


def test_views_are_those_of_their_key(in_files: FileSamples) -> None:
    for batch in batches(in_files, VIEWS["scale-jitter"], Order(LABELS, 5, 9), 0, 8):
        for image, draw, valid in zip(batch.images, batch.draws.tolist(), batch.valid.tolist()):
            if valid:
                assert torch.equal(image, train_view(in_files.load(draw), VIEWS["scale-jitter"], SIDE, Key(9, batch.epoch), draw))


def check_unreadable(found: list[Batch], bad: int, name: str) -> None:
    seen = 0
    for batch in found:
        wrong = (batch.draws == bad).nonzero().flatten().tolist()
        assert (~batch.valid).nonzero().flatten().tolist() == wrong
        assert [entry[0] for entry in batch.unreadable] == [name] * len(wrong)
        assert all(reason for _, reason in batch.unreadable)
        for place in wrong:
            assert not bool(batch.images[place].any())
            seen += 1
    assert seen


def test_a_file_that_cannot_be_decoded_is_not_valid_and_is_named(in_files: FileSamples) -> None:
    check_unreadable(batches(in_files, VIEWS["random-resized"], Order(LABELS, 4, 0), 0, 10), 5, "05.png")
    held = ArraySamples(in_memory().images * 0, LABELS, in_memory().names, {5: "broken"})
    check_unreadable(batches(held, VIEWS["pad"], Order(LABELS, 4, 0), 0, 10), 5, "image 5")


def test_a_batch_of_nothing_but_unreadable_files_is_all_invalid(in_files: FileSamples) -> None:
    only = FileSamples(in_files.root, ["05.png"] * 3, LABELS[:3], [1] * 3, in_files.decode)
    (batch,) = batches(only, VIEWS["random-resized"], Order(LABELS[:3], 3, 0), 0, 1)
    assert not bool(batch.valid.any())
    assert len(batch.unreadable) == 3


def test_evaluation_shows_every_sample_once_in_order(in_files: FileSamples) -> None:
    indices = torch.tensor([7, 0, 5, 22, 3])
    view = CentralView(SIDE, 0.8)
    found = list(evaluation_batches(in_files, indices, view, 2))
    assert torch.equal(torch.cat([batch.draws for batch in found]), indices)
    assert torch.equal(torch.cat([batch.labels for batch in found]), LABELS[indices])
    assert torch.cat([batch.valid for batch in found]).tolist() == [True, True, False, True, True]
    for batch in found:
        for image, place, valid in zip(batch.images, batch.draws.tolist(), batch.valid.tolist()):
            if valid:
                assert torch.equal(image, central_view(in_files.load(place), SIDE, 0.8))
    assert list(evaluation_batches(in_files, indices[:0], view, 2)) == []


def test_evaluation_of_images_in_memory_takes_them_as_they_are() -> None:
    samples = in_memory()
    whole = torch.cat([batch.images for batch in evaluation_batches(samples, torch.arange(COUNT), CentralView(SIDE), 4)])
    assert torch.equal(whole, samples.images)
    smaller = torch.cat([batch.images for batch in evaluation_batches(samples, torch.arange(COUNT), CentralView(4), 4)])
    assert smaller.shape[-2:] == (4, 4)
    assert torch.equal(smaller, central_view(samples.images, 4))


def test_reading_batches_leaves_torchs_generator_alone(in_files: FileSamples) -> None:
    before = torch.random.get_rng_state()
    batches(in_files, VIEWS["random-resized"], Order(LABELS, 5, 0), 0, 4)
    assert torch.equal(torch.random.get_rng_state(), before)


# ------------------------------------------------------------------------------------------- JPEGs, decoded for their view


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> FileSamples:
    """JPEGs that are large enough for half and quarter scale; number 3 is cut short."""
    root = tmp_path_factory.mktemp("photographs")
    generator = torch.Generator().manual_seed(0)
    names = [f"{n:02}.jpg" for n in range(COUNT)]
    for number, name in enumerate(names):
        coarse = torch.randint(256, (6, 5, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(coarse.numpy()).resize((40 + number, 60), Image.Resampling.BICUBIC).save(root / name)
    cut = (root / names[3]).read_bytes()
    (root / names[3]).write_bytes(cut[: len(cut) // 2])
    return FileSamples(root, names, LABELS, [1] * COUNT, partial(decode, channels=3))


@pytest.mark.parametrize("crop", VIEWS)
def test_threads_and_resumption_change_no_pixel_of_photographs(crop: str, photographs: FileSamples) -> None:
    order = Order(LABELS, 5, 0)
    whole = batches(photographs, VIEWS[crop], order, 0, 9)
    assert any(batch.unreadable for batch in whole)
    for first, workers in ((0, 1), (2, 2), (5, 5)):
        assert all(equal(a, b) for a, b in zip(whole[first:], batches(photographs, VIEWS[crop], order, first, 9, None, workers)))


def test_training_without_a_random_crop_and_evaluation_see_the_same(photographs: FileSamples) -> None:
    (trained,) = batches(photographs, Augment(crop="none"), Order(LABELS, COUNT, 0), 0, 1, None, 2)
    (measured,) = evaluation_batches(photographs, trained.draws, CentralView(SIDE), COUNT)
    assert torch.equal(trained.images, measured.images)
    assert torch.equal(trained.valid, measured.valid)
    reduced = [not torch.equal(measured.images[row], central_view(photographs.load(place), SIDE))
               for row, place in enumerate(trained.draws.tolist()) if place != 3]  # fmt: skip
    assert sum(reduced) > COUNT // 2, "these are decoded at a reduced scale"


def test_an_error_that_is_not_the_files_fault_reaches_the_loop(photographs: FileSamples) -> None:
    def broken(_: Path, *, view: View | None = None) -> torch.Tensor:
        raise MemoryError(f"none left for {view}")

    failing, order = dataclasses.replace(photographs, decode=broken), Order(LABELS, 5, 0)
    for workers in (0, 2):
        with pytest.raises(MemoryError, match="none left"):
            batches(failing, VIEWS["random-resized"], order, 0, 2, None, workers)


def test_an_iteration_that_is_left_ends_its_threads(photographs: FileSamples) -> None:
    before = threading.active_count()
    found = train_batches(photographs, Order(LABELS, 5, 0), VIEWS["random-resized"], SIDE, 0, 10**6, Share(), 3)
    next(found)
    assert threading.active_count() > before
    found.close()
    assert threading.active_count() == before
