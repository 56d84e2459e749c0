"""The check before training: what it finds, by name, and when it stops; what it remembers, and that it can do without."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from image_folders import png_that_claims, truncate, write_classes, write_image, write_splits

from residua import filecheck
from residua.data.folder import open_folder
from residua.datacheck import split_of
from residua.dataset import Dataset
from residua.errors import RequestError, UnreadableImage


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """train/ and val/ with 30 and 4 images of cats and as many of dogs."""
    return write_splits(tmp_path / "pets", train={"cat": 30, "dog": 30}, val={"cat": 4, "dog": 4})


def found(dataset: Dataset, kind: str) -> list[str]:
    return [item.what for item in dataset.findings.items if item.kind == kind]


def names(dataset: Dataset, split: str) -> list[str]:
    return list(dataset.splits[split].names)


def test_a_sound_folder_has_no_findings_and_all_of_it_is_decoded(pets: Path) -> None:
    findings = open_folder(pets).findings
    assert (findings.items, findings.total, findings.headers, findings.decoded) == ([], 68, 68, 68)


def test_an_unreadable_file_is_left_out_and_listed_with_its_reason(pets: Path) -> None:
    (pets / "train/cat/renamed.jpg").write_text("words")
    dataset = open_folder(pets)
    assert "train/cat/renamed.jpg" not in names(dataset, "train")
    assert len(found(dataset, "unreadable")) == 1
    assert "train/cat/renamed.jpg: not an image" in found(dataset, "unreadable")[0]


def test_an_empty_file_and_a_link_to_nothing_are_left_out_and_listed(pets: Path) -> None:
    (pets / "train/cat/zero.jpg").touch()
    (pets / "train/dog/link.jpg").symlink_to("nowhere.jpg")
    dataset = open_folder(pets)
    assert found(dataset, "empty file") == ["train/cat/zero.jpg: an empty file (0 bytes)"]
    assert found(dataset, "unreadable") == ["train/dog/link.jpg: no such file"]
    assert len(dataset.splits["train"]) == 60


def test_a_pixel_bomb_is_left_out_and_listed(pets: Path) -> None:
    (pets / "train/cat/bomb.png").write_bytes(png_that_claims(50_000, 50_000))
    assert "bomb.png" in found(open_folder(pets), "unreadable")[0]


def test_a_file_that_cannot_be_decoded_keeps_its_place_and_is_listed(pets: Path) -> None:
    truncate(pets / "train/cat/005.png")
    before = names(open_folder(pets, seconds=0), "train")
    dataset = open_folder(pets)
    assert names(dataset, "train") == before
    assert len(found(dataset, "undecodable")) == 1
    assert found(dataset, "undecodable")[0].startswith("train/cat/005.png: damaged")
    with pytest.raises(UnreadableImage, match=r"005.png"):
        dataset.splits["train"].load(5)


def test_places_do_not_depend_on_how_far_the_check_got(pets: Path) -> None:
    for index in range(10):
        truncate(pets / f"train/dog/{index:03d}.png")
    hurried, thorough = open_folder(pets, seconds=0), open_folder(pets)
    assert hurried.fingerprint() == thorough.fingerprint()
    assert hurried.findings.decoded == 0
    assert thorough.findings.decoded == 68


def test_too_many_unreadable_files_stop_with_numbers_and_names(pets: Path) -> None:
    for index in range(7):
        (pets / f"train/cat/{index:03d}.png").write_text("words")
    with pytest.raises(RequestError, match=r"7 of the 60 files of train .* 5%") as caught:
        open_folder(pets)
    message = str(caught.value)
    assert all(f"train/cat/00{index}.png" in message for index in range(5))
    assert "train/cat/005.png" not in message
    assert len(open_folder(pets, max_bad=0.2).splits["train"]) == 53


def test_a_split_is_judged_by_its_own_files(pets: Path) -> None:
    (pets / "val/cat/000.png").write_text("words")  # 1 of 68 files, but 1 of 8 in val
    with pytest.raises(RequestError, match="1 of the 8 files of val"):
        open_folder(pets)


def test_if_no_file_can_be_decoded_it_stops(tmp_path: Path) -> None:
    root = write_splits(tmp_path, train={"a": 2, "b": 2}, val={"a": 1, "b": 1})
    for path in root.rglob("*.png"):
        truncate(path, 0.7)
    with pytest.raises(RequestError, match="Not one of the 4 files of train"):
        open_folder(root)


def test_a_split_of_which_no_file_can_be_decoded_stops(pets: Path) -> None:
    for path in (pets / "val").glob("*/*"):
        truncate(path, 0.7)
    with pytest.raises(RequestError, match="Not one of the 8 files of val that were tried can be decoded"):
        open_folder(pets)


def test_duplicates_across_splits_are_listed_and_kept(pets: Path) -> None:
    shutil.copy(pets / "train/cat/000.png", pets / "val/cat/copy.png")
    shutil.copy(pets / "train/cat/001.png", pets / "val/dog/copy.png")
    dataset = open_folder(pets)
    assert found(dataset, "duplicate across splits") == [
        "val/cat/copy.png in val is the same file as train/cat/000.png in train",
        "val/dog/copy.png in val is the same file as train/cat/001.png in train, labelled 'dog' and 'cat'",
    ]
    assert len(dataset.splits["val"]) == 10


def test_duplicates_under_different_labels_are_listed_and_under_one_label_are_not(pets: Path) -> None:
    shutil.copy(pets / "train/cat/000.png", pets / "train/cat/again.png")
    assert open_folder(pets).findings.items == []
    shutil.copy(pets / "train/cat/000.png", pets / "train/dog/copy.png")
    what = "train/dog/copy.png is the same file as train/cat/000.png, labelled 'dog' and 'cat'"
    assert found(open_folder(pets), "duplicate under different labels") == [what]


def test_files_of_equal_length_that_differ_are_no_duplicates(tmp_path: Path) -> None:
    root = tmp_path / "bitmaps"  # all files of 8 x 8 BMP have the same length
    for place, name in enumerate(("train/a", "train/b", "val/a", "val/b")):
        for index in range(3):
            write_image(root / name / f"{index}.bmp", 10 * place + index)
    assert open_folder(root).findings.items == []


def test_an_empty_class_is_listed_and_gets_no_id(pets: Path) -> None:
    (pets / "train/bird").mkdir()
    dataset = open_folder(pets)
    assert dataset.classes == ("cat", "dog")
    assert found(dataset, "empty class") == ["class 'bird' has no readable image"]


def test_a_class_without_held_out_images_is_listed_and_goes_on(pets: Path) -> None:
    write_classes(pets / "train", {"fox": 5}, seed=9_000_000)
    dataset = open_folder(pets)
    assert dataset.classes == ("cat", "dog", "fox")
    assert found(dataset, "class without images in a split") == ["class 'fox' has no image in val"]


def test_a_class_only_in_val_stops_and_names_the_nearest(pets: Path) -> None:
    (pets / "val/dog").rename(pets / "val/dogs")
    with pytest.raises(RequestError, match=r"Class 'dogs' has images \(4 in val\) but none in train.* Did you mean 'dog'\?"):
        open_folder(pets)


def test_one_class_only_stops_and_names_it(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 9})
    with pytest.raises(RequestError, match=r"at least two classes; here is only the class 'cat'"):
        open_folder(tmp_path)


def test_one_image_only_stops(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 1, "dog": 0})
    with pytest.raises(RequestError, match="only the class 'cat'"):
        open_folder(tmp_path)


def test_too_few_training_images_stop_with_what_to_do(tmp_path: Path) -> None:
    write_splits(tmp_path, train={"cat": 1}, val={"cat": 1, "dog": 1})
    with pytest.raises(RequestError, match="Class 'dog'"):
        open_folder(tmp_path)


def test_a_split_by_content_that_leaves_a_side_empty_stops_with_what_to_do(tmp_path: Path) -> None:
    wanted = {"train": 0, "val": 2}
    seed = 0
    while sum(wanted.values()):
        path = write_image(tmp_path / ("cat" if sum(wanted.values()) == 2 else "dog") / f"{seed}.png", seed)
        split = split_of(hashlib.sha256(path.read_bytes()).digest())
        if wanted[split]:
            wanted[split] -= 1
        else:
            path.unlink()
        seed += 1
    with pytest.raises(RequestError, match=r"train has no readable images after 2 were divided by their content.*by hand"):
        open_folder(tmp_path)


def test_a_split_folder_without_images_stops(tmp_path: Path) -> None:
    write_splits(tmp_path, train={"cat": 3, "dog": 3})
    (tmp_path / "val/cat").mkdir(parents=True)
    with pytest.raises(RequestError, match="split val has no readable images"):
        open_folder(tmp_path)


def test_other_and_hidden_files_are_counted_in_one_line(pets: Path) -> None:
    for name in ("notes.txt", "train/cat/.hidden.jpg", "train/cat/__MACOSX"):
        (pets / name).write_text("")
    what = "3 files are not images (2 of them hidden): notes.txt, train/cat/.hidden.jpg, train/cat/__MACOSX"
    assert found(open_folder(pets), "ignored files") == [what]


def test_the_second_check_opens_no_file_again(pets: Path) -> None:
    first = open_folder(pets)
    for path in pets.rglob("*.png"):  # the same length and time, but no longer images
        stamp = path.stat()
        path.write_bytes(b"x" * stamp.st_size)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    second = open_folder(pets)
    assert second.findings == first.findings
    assert second.fingerprint() == first.fingerprint()


def test_a_changed_file_is_looked_at_again(pets: Path) -> None:
    open_folder(pets)
    path = pets / "train/cat/000.png"
    truncate(path)
    assert len(found(open_folder(pets), "undecodable")) == 1
    write_image(path, 7)
    assert found(open_folder(pets), "undecodable") == []


def test_what_first_use_shows_is_listed_by_later_checks(pets: Path) -> None:
    path = truncate(pets / "train/cat/000.png")
    open_folder(pets, seconds=0)
    filecheck.remember_pixels({path: "cut off"})
    dataset = open_folder(pets, seconds=0)
    assert found(dataset, "undecodable") == ["train/cat/000.png: cut off"]
    assert dataset.findings.decoded == 1


def read_only(cache: Path) -> None:
    cache.rmdir()
    cache.write_text("a file where a folder should be")


def damaged(cache: Path) -> None:
    (cache / "residua").mkdir()
    (cache / "residua/files.sqlite3").write_bytes(b"no data base at all " * 100)


def foreign(cache: Path) -> None:
    (cache / "residua").mkdir()
    with sqlite3.connect(cache / "residua/files.sqlite3") as connection:
        connection.execute("CREATE TABLE files (something TEXT)")
    connection.close()


@pytest.mark.parametrize("spoil", [read_only, damaged, foreign])
def test_a_memory_that_cannot_be_used_is_done_without(pets: Path, own_cache: Path, spoil: Callable[[Path], None]) -> None:
    spoil(own_cache)
    assert open_folder(pets).findings.decoded == 68
    assert open_folder(pets).findings.decoded == 68


def test_a_damaged_memory_is_begun_anew(pets: Path, own_cache: Path) -> None:
    damaged(own_cache)
    open_folder(pets)
    open_folder(pets)
    with sqlite3.connect(own_cache / "residua/files.sqlite3") as connection:
        assert connection.execute("SELECT count(*) FROM files").fetchone() == (68,)
    connection.close()


def test_a_check_starts_no_file_after_its_time() -> None:
    done: list[int] = []

    def work(index: int) -> None:
        time.sleep(0.02)
        done.append(index)

    start = time.monotonic()
    filecheck._each(work, range(100_000), deadline=start + 0.2)
    assert time.monotonic() - start < 5
    assert 0 < len(done) < 1000


def test_an_interruption_ends_the_check_at_once() -> None:
    def work(index: int) -> None:
        time.sleep(0.01)
        if index == 3:
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        filecheck._each(work, range(100_000))
    assert time.monotonic() - start < 5
