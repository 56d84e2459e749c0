"""Folders and tables of images: layouts, names, the split by content, rows."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_folders import write_classes, write_image, write_splits
from PIL import Image

from residua.data import open_data
from residua.data.folder import open_folder
from residua.data.table import open_csv
from residua.dataset import Dataset
from residua.errors import RequestError


def names(dataset: Dataset, split: str) -> list[str]:
    return list(dataset.splits[split].names)


def kinds(dataset: Dataset) -> dict[str, int]:
    return dataset.findings.counts()


@pytest.mark.parametrize(
    ("folder", "split"), [("val", "val"), ("valid", "val"), ("Validation", "val"), ("test", "test"), ("TEST", "test")]
)
def test_split_folders_are_known_by_their_names(tmp_path: Path, folder: str, split: str) -> None:
    write_splits(tmp_path, train={"cat": 3, "dog": 2}, **{folder: {"cat": 1, "dog": 2}})
    dataset = open_folder(tmp_path)
    assert {name: len(samples) for name, samples in dataset.splits.items()} == {"train": 5, split: 3}
    assert dataset.classes == ("cat", "dog")
    assert names(dataset, "train") == [
        "train/cat/000.png",
        "train/cat/001.png",
        "train/cat/002.png",
        "train/dog/000.png",
        "train/dog/001.png",
    ]
    assert dataset.splits["train"].labels.tolist() == [0, 0, 0, 1, 1]
    assert f"train/ and {folder}/" in dataset.note
    assert "5 in train" in dataset.note


def test_training_and_testing_are_splits_in_capitals_and_small_letters_and_keep_their_names(tmp_path: Path) -> None:
    write_splits(tmp_path, Training={"cat": 3, "dog": 2}, testing={"cat": 1, "dog": 2})
    dataset = open_folder(tmp_path)
    assert {name: len(samples) for name, samples in dataset.splits.items()} == {"train": 5, "test": 3}
    assert dataset.classes == ("cat", "dog")
    assert names(dataset, "test") == ["testing/cat/000.png", "testing/dog/000.png", "testing/dog/001.png"]
    assert "Training/ and testing/" in dataset.note


def test_train_val_and_test_are_all_read(tmp_path: Path) -> None:
    write_splits(tmp_path, train={"a": 3, "b": 3}, val={"a": 1, "b": 1}, test={"a": 2, "b": 1})
    dataset = open_folder(tmp_path)
    assert (dataset.watched, dataset.final) == ("val", "test")
    assert [len(samples) for samples in dataset.splits.values()] == [6, 2, 3]


def test_two_folders_for_one_split_stop(tmp_path: Path) -> None:
    write_splits(tmp_path, train={"a": 3, "b": 3}, val={"a": 1}, valid={"b": 1})
    with pytest.raises(RequestError, match="both val/ and valid/"):
        open_folder(tmp_path)


def test_val_without_train_stops(tmp_path: Path) -> None:
    write_splits(tmp_path, val={"a": 3, "b": 3})
    with pytest.raises(RequestError, match="val but no train/"):
        open_folder(tmp_path)


def test_a_lone_train_folder_is_split_by_content(tmp_path: Path) -> None:
    write_splits(tmp_path, train={"a": 40, "b": 40})
    (tmp_path / "test").mkdir()
    write_image(tmp_path / "test/unlabelled.png", 1)
    dataset = open_folder(tmp_path)
    assert set(dataset.splits) == {"train", "val"}
    assert dataset.classes == ("a", "b")
    assert kinds(dataset) == {"ignored folders": 1}


def test_folders_beside_the_splits_are_ignored_and_listed(tmp_path: Path) -> None:
    write_splits(tmp_path, train={"a": 3, "b": 3}, val={"a": 1, "b": 1}, extra={"a": 9})
    dataset = open_folder(tmp_path)
    assert [(item.kind, item.what) for item in dataset.findings.items] == [
        ("ignored folders", "1 beside the split folders: extra")
    ]


@pytest.mark.parametrize("below", ["", "train"])
def test_stray_files_beside_the_classes_are_counted_once(tmp_path: Path, below: str) -> None:
    write_classes(tmp_path / below, {"a": 20, "b": 20})
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".hidden").touch()
    write_image(tmp_path / "stray.png", 1)
    assert [(item.kind, item.what) for item in open_folder(tmp_path).findings.items] == [
        ("ignored files", "2 files are not images (1 of them hidden): notes.txt, .hidden"),
        ("images outside a class", "1 lying in no class folder: stray.png"),
    ]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_classes(tmp_path, {"bus": 20, "train": 20})
    assert open_folder(tmp_path).classes == ("bus", "train")


def test_folders_below_a_class_belong_to_it(tmp_path: Path) -> None:
    write_splits(tmp_path, train={"a/2019/may": 2, "a/2020": 1, "b": 2}, val={"a": 1, "b/x": 1})
    dataset = open_folder(tmp_path)
    assert dataset.classes == ("a", "b")
    assert dataset.splits["train"].labels.tolist() == [0, 0, 0, 1, 1]


def test_a_link_that_loops_ends_and_a_linked_class_is_read(tmp_path: Path) -> None:
    root = write_splits(tmp_path / "data", train={"a": 3, "b": 3}, val={"a": 1, "b": 1})
    (root / "train/a/loop").symlink_to(root)
    (root / "train/b/self").symlink_to(root / "train/b")
    write_classes(tmp_path / "elsewhere", {"c": 4}, seed=5_000_000)
    (root / "train/c").symlink_to(tmp_path / "elsewhere/c")
    dataset = open_folder(root)
    assert dataset.splits["train"].labels.bincount().tolist() == [3, 3, 4]


def test_a_directory_named_like_an_image_is_listed_and_not_entered(tmp_path: Path) -> None:
    write_splits(tmp_path, train={"a": 3, "b": 3, "a/x.jpg": 2}, val={"a": 1, "b": 1})
    dataset = open_folder(tmp_path)
    assert len(dataset.splits["train"]) == 6
    assert [item.what for item in dataset.findings.items] == ["1 named like images: train/a/x.jpg"]


def test_class_names_may_be_in_any_script_and_are_composed(tmp_path: Path) -> None:
    write_splits(tmp_path, train={"ñandú": 2, "猫": 2, "cafe\u0301": 2}, val={"ñandú": 1, "猫": 1, "caf\u00e9": 1})
    dataset = open_folder(tmp_path)
    assert dataset.classes == ("caf\u00e9", "ñandú", "猫")
    assert dataset.splits["val"].load(0).shape == (3, 8, 8)


def test_names_that_are_not_utf8_are_read_and_can_be_shown(tmp_path: Path) -> None:
    strange = os.fsdecode(b"caf\xe9")
    try:
        write_splits(tmp_path, train={strange: 2, "b": 2}, val={strange: 1, "b": 1})
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    write_image(tmp_path / "train" / strange / f"{strange}.png", 3)
    (tmp_path / "train" / strange / f"{strange}.jpg").touch()
    dataset = open_folder(tmp_path, max_bad=0.5)
    assert dataset.classes == ("b", "caf\\xe9")
    assert dataset.splits["train"].load(len(dataset.splits["train"]) - 1).shape == (3, 8, 8)
    "".join((*dataset.classes, dataset.note, *(item.what for item in dataset.findings.items))).encode()
    assert len(dataset.fingerprint()) == 64


@pytest.mark.parametrize(("grey", "channels"), [(True, 1), (False, 3)])
def test_the_facts_are_those_of_the_files(tmp_path: Path, grey: bool, channels: int) -> None:
    write_classes(tmp_path, {"a": 20, "b": 20}, grey=grey)
    dataset = open_folder(tmp_path)
    assert (dataset.facts.channels, dataset.facts.size, dataset.facts.flip, dataset.facts.pad) == (channels, (8, 8), True, 1)
    assert dataset.splits["train"].load(0).shape == (channels, 8, 8)


def test_one_colour_image_makes_all_rgb_and_one_other_size_makes_the_size_unknown(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 20, "b": 20}, grey=True)
    write_image(tmp_path / "a/colour.png", 1, size=(9, 8))
    facts = open_folder(tmp_path).facts
    assert (facts.channels, facts.size, facts.pad) == (3, None, 0)


def test_the_size_is_the_one_that_is_seen(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for place in range(40):
        path = tmp_path / "ab"[place % 2] / f"{place}.png"
        path.parent.mkdir(exist_ok=True)
        values = np.random.default_rng(place).integers(0, 256, (8, 16) if place % 3 else (16, 8), dtype=np.uint8)
        Image.fromarray(values).save(path, **({"exif": exif} if place % 3 else {}))
    assert open_folder(tmp_path).facts.size == (16, 8)


def test_an_empty_folder_stops_and_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"has no images in it. Expected: train/ and val/"):
        open_folder(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RequestError, match=r"has no images in it, only notes.txt"):
        open_folder(tmp_path)


def test_images_without_class_folders_stop(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 1)
    with pytest.raises(RequestError, match=r"has images \(a.png\) but no sub-folders"):
        open_folder(tmp_path)


def test_equal_images_fall_on_one_side(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 30, "b": 30})
    for index in range(30):
        shutil.copy(tmp_path / f"a/{index:03d}.png", tmp_path / f"a/copy-{index:03d}.png")
    dataset = open_folder(tmp_path)
    for split in ("train", "val"):
        copied = {name.replace("copy-", "") for name in names(dataset, split) if "copy-" in name}
        assert copied == {name for name in names(dataset, split) if name.startswith("a/") and "copy-" not in name}
    assert "duplicate across splits" not in kinds(dataset)


def test_a_class_that_falls_to_val_by_chance_is_listed_and_goes_on(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 30, "b": 30})
    held_out = names(open_folder(tmp_path), "val")[0]
    (tmp_path / "c").mkdir()
    (tmp_path / held_out).rename(tmp_path / "c/only.png")
    dataset = open_folder(tmp_path)
    assert dataset.classes == ("a", "b", "c")
    assert kinds(dataset) == {"class without training images": 1}


def membership(dataset: Dataset) -> dict[str, str]:
    return {name: split for split, samples in dataset.splits.items() for name in samples.names}


@settings(max_examples=8, deadline=None)
@given(added=st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(10**6, 10**9)), max_size=12, unique=True))
def test_adding_files_moves_no_other(added: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = write_classes(Path(folder), {"a": 15, "b": 15})
        before = membership(open_folder(root, seconds=0))
        for label, seed in added:
            write_image(root / label / f"0-{seed}.png", seed)
        after = membership(open_folder(root, seconds=0))
        assert {name: after[name] for name in before} == before
        assert len(after) == len(before) + len(added)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with 40 images, 0.png to 39.png."""
    for index in range(40):
        write_image(tmp_path / "pictures" / f"{index}.png", index)
    return tmp_path


def table(root: Path, lines: list[str], encoding: str = "utf-8", end: str = "\n") -> Path:
    path = root / "labels.csv"
    path.write_bytes((end.join(lines) + end).encode(encoding, "surrogateescape"))
    return path


def rows(count: int = 40) -> list[str]:
    return [f"pictures/{index}.png,{'cat' if index % 2 else 'dog'}" for index in range(count)]


@pytest.mark.parametrize(
    "header", ["path,label", "file,class", "Filename,Target", " image , category ", "image_path,label", None]
)
def test_a_table_is_read_with_any_known_header_or_none(pictures: Path, header: str | None) -> None:
    path = table(pictures, [header, *rows()] if header else rows())
    dataset = open_data(str(path))
    assert dataset.classes == ("cat", "dog")
    assert sum(len(samples) for samples in dataset.splits.values()) == 40
    for samples in dataset.splits.values():
        for name, label in zip(samples.names, samples.labels.tolist()):
            assert label == 1 - int(Path(name).stem) % 2


@pytest.mark.parametrize(("encoding", "end"), [("utf-8-sig", "\n"), ("utf-8", "\r\n"), ("utf-8-sig", "\r\n")])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_may_come_from_a_spreadsheet(pictures: Path, encoding: str, end: str, separator: str) -> None:
    lines = ["path,label", *(f'"pictures/{i}.png",{"Katze, süß" if i % 2 else "犬"}' for i in range(40))]
    lines = [line.replace(",", separator, 1).replace("Katze, süß", '"Katze, süß"') for line in lines]
    assert open_csv(table(pictures, lines, encoding, end)).classes == ("Katze, süß", "犬")


def test_a_split_column_decides(pictures: Path) -> None:
    words = ["train", "Train", "valid", "test"]
    lines = ["label,split,path", *(f"{'cat' if i % 8 < 4 else 'dog'},{words[i % 4]},pictures/{i}.png" for i in range(40))]
    dataset = open_csv(table(pictures, lines))
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"train": 20, "val": 10, "test": 10}


def test_a_misspelt_split_stops_with_the_row_and_the_nearest(pictures: Path) -> None:
    lines = ["path,label,split", "pictures/0.png,cat,train", "pictures/1.png,dog,tset"]
    with pytest.raises(RequestError, match=r"row 3: the split 'tset' is none of .* Did you mean 'test'\?"):
        open_csv(table(pictures, lines))


def test_a_split_column_without_training_rows_stops(pictures: Path) -> None:
    with pytest.raises(RequestError, match="names only test; it must name train"):
        open_csv(table(pictures, ["path,label,split", "pictures/0.png,cat,test", "pictures/1.png,dog,test"]))


def test_missing_files_empty_labels_and_repeated_rows_are_listed_by_number(pictures: Path) -> None:
    lines = ["path,label", *rows(), "pictures/none.png,cat", "pictures/3.png,", "./pictures/3.png,cat"]
    dataset = open_csv(table(pictures, lines), max_bad=0.05)
    assert [(item.kind, item.what) for item in dataset.findings.items] == [
        ("row without a label", "row 43: pictures/3.png"),
        ("duplicate row", "row 44: pictures/3.png, as row 5"),
        ("unreadable", "row 42: pictures/none.png: no such file"),
    ]
    assert sum(len(samples) for samples in dataset.splits.values()) == 40


def test_one_file_under_two_labels_is_listed_with_its_rows(pictures: Path) -> None:
    dataset = open_csv(table(pictures, ["path,label", *rows(), "pictures/3.png,dog"]))
    assert [item.kind for item in dataset.findings.items] == ["duplicate under different labels"]
    assert dataset.findings.items[0].what.startswith("row 42: pictures/3.png is the same file as row 5: pictures/3.png")


def test_too_many_missing_files_or_labels_stop(pictures: Path) -> None:
    with pytest.raises(RequestError, match=r"5 of the 45 files cannot be read .*row 42: pictures/no0.png \(no such file\)"):
        open_csv(table(pictures, ["path,label", *rows(), *(f"pictures/no{i}.png,cat" for i in range(5))]))
    with pytest.raises(RequestError, match=r"3 of the 43 rows .* lack a path or a label.*rows 42, 43, 44"):
        open_csv(table(pictures, ["path,label", *rows(), *(f"pictures/{i}.png," for i in range(3))]))


def test_an_unknown_header_stops_and_shows_the_known_ones(pictures: Path) -> None:
    with pytest.raises(RequestError, match=r"first row .* is 'id', 'what'. Expected: a path column \(path, file"):
        open_csv(table(pictures, ["id,what", *rows()]))


def test_an_empty_table_and_a_header_alone_stop(pictures: Path) -> None:
    with pytest.raises(RequestError, match="is empty"):
        open_csv(table(pictures, [""]))
    with pytest.raises(RequestError, match="no image at all"):
        open_csv(table(pictures, ["path,label"]))


def test_a_line_without_end_is_refused_before_it_fills_the_memory(pictures: Path) -> None:
    with pytest.raises(RequestError, match="line 2: more than 65,536 characters"):
        open_csv(table(pictures, ["path,label", "x" * 1_000_000]))


def test_an_open_quote_is_an_error_and_not_a_label(pictures: Path) -> None:
    lines = ["path,label", 'pictures/0.png,"cat', *rows() * 200]
    with pytest.raises(RequestError, match=r"labels.csv"):
        open_csv(table(pictures, lines))
