"""The sources of data: what each named set hands over, from files in their owners' own formats; names, places, downloads."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torchvision.datasets as owners
from image_folders import write_classes, write_splits
from sklearn import datasets as sklearn_datasets

from residua.data import CATALOG, open_data
from residua.data.imagenet import class_names
from residua.dataset import ArraySamples, Dataset
from residua.errors import RequestError

COUNTS = {"train": 12, "test": 6}


@dataclass(frozen=True)
class Made:
    """A small set written in its owners' format: the pixels [N, C, H, W] and labels of each split."""

    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]


def make(channels: int, side: int, num_classes: int) -> Made:
    random = np.random.default_rng(side)
    shape = (channels, side, side)
    images = {split: random.integers(0, 256, (count, *shape), dtype=np.uint8) for split, count in COUNTS.items()}
    return Made(images, {split: np.arange(count) % num_classes for split, count in COUNTS.items()})


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, source: type, key: str, names_key: str, classes: list[str]) -> Made:
    """Pickled batches as CIFAR's makers write them; torchvision is told their MD5."""
    made = make(3, 32, len(classes))
    folder = root / source.base_folder
    folder.mkdir(parents=True)
    for split, name in (("train", "train_part"), ("test", "test_part")):
        batch = {"data": made.images[split].reshape(COUNTS[split], -1), key: made.labels[split].tolist()}
        (folder / name).write_bytes(pickle.dumps(batch))
        monkeypatch.setattr(source, f"{split}_list", [[name, md5(folder / name)]])
    (folder / "names").write_bytes(pickle.dumps({names_key: classes}))
    monkeypatch.setattr(source, "meta", {"filename": "names", "key": names_key, "md5": md5(folder / "names")})
    return made


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    return write_cifar(root, monkeypatch, owners.CIFAR10, "labels", "label_names", [f"ten {i}" for i in range(10)])


def write_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    classes = [f"hundred {i}" for i in range(100)]
    return write_cifar(root, monkeypatch, owners.CIFAR100, "fine_labels", "fine_label_names", classes)


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """MATLAB files with the images [32, 32, 3, N] and the label 10 for the digit 0."""
    made = make(3, 32, 10)
    root.mkdir(parents=True, exist_ok=True)
    files = {}
    for split in COUNTS:
        path = root / f"{split}_32x32.mat"
        labels = np.where(made.labels[split] == 0, 10, made.labels[split]).astype(np.uint8)[:, None]
        scipy.io.savemat(path, {"X": made.images[split].transpose(2, 3, 1, 0), "y": labels})
        files[split] = ["http://127.0.0.1:9/" + path.name, path.name, md5(path)]
    monkeypatch.setattr(owners.SVHN, "split_list", files)
    return made


def write_idx(root: Path, name: str) -> Made:
    """The idx files of MNIST and its likes: big-endian header, then bytes."""
    made = make(1, 28, 10)
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        count = COUNTS[split]
        images = struct.pack(">IIII", 0x803, count, 28, 28) + made.images[split].tobytes()
        labels = struct.pack(">II", 0x801, count) + made.labels[split].astype(np.uint8).tobytes()
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    return made


def write_mnist(root: Path, monkeypatch: pytest.MonkeyPatch) -> Made:  # noqa: ARG001
    return write_idx(root, "MNIST")


def write_fashion_mnist(root: Path, monkeypatch: pytest.MonkeyPatch) -> Made:  # noqa: ARG001
    return write_idx(root, "FashionMNIST")


WRITERS = {
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "svhn": write_svhn,
    "mnist": write_mnist,
    "fashion_mnist": write_fashion_mnist,
}


def keeps_its_contract(dataset: Dataset) -> None:
    """What every opened source promises to all that follows."""
    assert len(set(dataset.classes)) == len(dataset.classes) >= 2
    assert {"train", dataset.watched, dataset.final} == set(dataset.splits)
    assert dataset.note
    assert dataset.findings.headers == dataset.findings.total
    for samples in dataset.splits.values():
        assert len(samples) == len(samples.names) == len(samples.labels)
        assert samples.labels.dtype == torch.int64
        assert 0 <= int(samples.labels.min()) <= int(samples.labels.max()) < len(dataset.classes)
        image = samples.load(len(samples) - 1)
        assert image.dtype == torch.uint8
        assert image.shape[0] == dataset.facts.channels
        assert dataset.facts.size is None or image.shape[1:] == dataset.facts.size
        assert image.is_contiguous() or image.permute(1, 2, 0).is_contiguous()  # decoded images have their channels last
        if isinstance(samples, ArraySamples):
            assert samples.images.is_contiguous()
    assert dataset.facts.size is None or 1 <= dataset.facts.pad <= min(dataset.facts.size) // 2


def test_the_catalogue_has_the_named_sets_and_no_more() -> None:
    assert set(CATALOG.names()) == {"digits", "imagenet", *WRITERS}


@pytest.mark.parametrize("name", WRITERS)
def test_a_set_in_its_owners_format_is_read_as_it_was_written(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = WRITERS[name](tmp_path, monkeypatch)
    dataset = open_data(name, data_dir=tmp_path, download=False)
    keeps_its_contract(dataset)
    for split, count in COUNTS.items():
        assert len(dataset.splits[split]) == count
        assert torch.equal(dataset.splits[split].images, torch.from_numpy(made.images[split]))
        assert dataset.splits[split].labels.tolist() == made.labels[split].tolist()


@pytest.mark.parametrize("name", WRITERS)
def test_a_set_that_is_missing_says_where_it_was_looked_for_and_how_to_get_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"^{name} cannot be had: .*not found.*Looked in .*Get it from http") as caught:
        open_data(name, data_dir=tmp_path / "none", download=False)
    assert str(tmp_path / "none") in str(caught.value)
    assert not (tmp_path / "none").exists()


def test_flips_are_not_offered_for_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flips = {"cifar10": True, "cifar100": True, "svhn": False, "mnist": False, "fashion_mnist": True}
    for name, flip in flips.items():
        WRITERS[name](tmp_path / name, monkeypatch)
        assert open_data(name, data_dir=tmp_path / name, download=False).facts.flip is flip
    assert open_data("digits").facts.flip is False


def test_damaged_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path, monkeypatch)
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RequestError, match="mnist cannot be had"):
        open_data("mnist", data_dir=tmp_path, download=False)


def test_labels_that_are_no_class_ids_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path, monkeypatch)
    labels = tmp_path / "MNIST/raw/train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x0b")
    with pytest.raises(RequestError, match="train is damaged"):
        open_data("mnist", data_dir=tmp_path, download=False)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(address, folder) of a web server for this test."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/", folder
        running.shutdown()
        thread.join()


def serve_cifar100(server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    address, folder = server
    made = write_cifar100(tmp_path / "made", monkeypatch)
    archive = folder / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-100-python", "cifar-100-python")
    monkeypatch.setattr(owners.CIFAR100, "url", address + archive.name)
    monkeypatch.setattr(owners.CIFAR100, "tgz_md5", md5(archive))
    return made


def test_a_missing_set_is_downloaded_once(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = serve_cifar100(server, tmp_path, monkeypatch)
    first = open_data("cifar100", data_dir=tmp_path / "data")
    assert torch.equal(first.splits["train"].images, torch.from_numpy(made.images["train"]))
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar-100-python"]
    assert capsys.readouterr().out == ""
    (server[1] / "cifar-100-python.tar.gz").unlink()
    assert open_data("cifar100", data_dir=tmp_path / "data").fingerprint() == first.fingerprint()


def test_idx_files_are_downloaded_and_unpacked(server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address, folder = server
    made = write_mnist(tmp_path / "made", monkeypatch)
    resources = []
    for path in sorted((tmp_path / "made/MNIST/raw").iterdir()):
        packed = folder / f"{path.name}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        resources.append((packed.name, md5(packed)))
    monkeypatch.setattr(owners.MNIST, "mirrors", [address])
    monkeypatch.setattr(owners.MNIST, "resources", resources)
    dataset = open_data("mnist", data_dir=tmp_path / "data")
    assert torch.equal(dataset.splits["test"].images, torch.from_numpy(made.images["test"]))


def test_a_matlab_file_is_downloaded(server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address, folder = server
    made = write_svhn(folder, monkeypatch)
    files = {split: [address + name, name, digest] for split, (_, name, digest) in owners.SVHN.split_list.items()}
    monkeypatch.setattr(owners.SVHN, "split_list", files)
    dataset = open_data("svhn", data_dir=tmp_path / "data")
    assert torch.equal(dataset.splits["train"].images, torch.from_numpy(made.images["train"]))


def test_a_download_that_is_damaged_on_the_way_leaves_nothing_behind(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_cifar100(server, tmp_path, monkeypatch)
    archive = server[1] / "cifar-100-python.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(RequestError, match="cifar100 cannot be had: the download failed"):
        open_data("cifar100", data_dir=tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_digits_are_scaled_to_bytes_and_divided_in_each_class() -> None:
    dataset = open_data("digits")
    keeps_its_contract(dataset)
    train, test = dataset.splits["train"], dataset.splits["test"]
    bunch = sklearn_datasets.load_digits()
    assert len(train) + len(test) == 1797
    per_class = np.bincount(bunch.target)
    assert test.labels.bincount().tolist() == [round(count / 5) for count in per_class]
    assert (train.labels.bincount() + test.labels.bincount()).tolist() == per_class.tolist()
    levels = torch.cat([train.images, test.images]).unique().tolist()
    assert levels == [int(value * 255 / 16 + 0.5) for value in range(17)]
    wanted = sorted(zip(np.floor(bunch.images * 255 / 16 + 0.5).reshape(-1, 64).tolist(), bunch.target.tolist()))
    got = zip(torch.cat([train.images, test.images]).reshape(-1, 64).tolist(), torch.cat([train.labels, test.labels]).tolist())
    assert sorted(got) == wanted


def test_the_digits_do_not_depend_on_the_order_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_data("digits").fingerprint()
    bunch = sklearn_datasets.load_digits()
    order = np.random.default_rng(0).permutation(1797)
    bunch.images, bunch.target = bunch.images[order], bunch.target[order]
    monkeypatch.setattr(sklearn_datasets, "load_digits", lambda: bunch)
    assert open_data("digits").fingerprint() == before


def test_cifar10_as_its_makers_give_it() -> None:
    folder = Path(os.environ.get("RESIDUA_DATA", ""))
    if not (folder / "cifar-10-batches-py").is_dir():
        pytest.skip("RESIDUA_DATA names no folder with cifar-10-batches-py")
    dataset = open_data("cifar10", data_dir=folder, download=False)
    keeps_its_contract(dataset)
    assert dataset.classes[:3] == ("airplane", "automobile", "bird")
    assert dataset.splits["train"].labels.bincount().tolist() == [5000] * 10
    assert dataset.splits["test"].labels.bincount().tolist() == [1000] * 10
    means = dataset.splits["train"].images.sum((0, 2, 3)) / (50_000 * 32 * 32 * 255)
    assert means.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)  # the figures all recipes quote


def test_imagenet_is_read_from_its_folders(tmp_path: Path) -> None:
    write_splits(tmp_path / "imagenet", train={"n01": 3, "n02": 3}, val={"n01": 1, "n02": 1})
    dataset = open_data("imagenet", data_dir=tmp_path)
    keeps_its_contract(dataset)
    assert dataset.classes == ("n01", "n02")
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"train": 6, "val": 2}


def test_the_thousand_classes_of_imagenet_are_called_by_what_they_show() -> None:
    names = class_names([f"n{place:08d}" for place in range(1000)])
    assert names[0] == "tench"
    assert names[999] == "toilet tissue"
    assert len(set(names)) == 1000


def test_a_missing_imagenet_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"imagenet cannot be had.*train/ and val/.*ILSVRC2012_img_train.tar.*image-net.org"):
        open_data("imagenet", data_dir=tmp_path)


def test_a_misspelt_data_set_shows_the_nearest_names() -> None:
    with pytest.raises(RequestError, match=r"no data set called 'digitz'. Did you mean 'digits'\?.*folder"):
        open_data("digitz")


@pytest.mark.parametrize("source", ["./pictures", "some/where", "/no/such/place"])
def test_a_missing_folder_is_named(source: str) -> None:
    with pytest.raises(RequestError, match=f"There is no folder '{source}'"):
        open_data(source)


def test_a_missing_table_is_named() -> None:
    with pytest.raises(RequestError, match=r"There is no table 'labels.csv'"):
        open_data("labels.csv")


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("words")
    with pytest.raises(RequestError, match=r"it is a file, not a folder or a .csv file"):
        open_data(str(tmp_path / "words.txt"))


def test_hyphen_and_underscore_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fashion_mnist(tmp_path, monkeypatch)
    monkeypatch.setenv("RESIDUA_DATA", str(tmp_path))
    assert open_data("fashion-mnist", download=False).source == open_data("fashion_mnist", download=False).source


def test_a_catalogue_name_goes_before_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path / "digits", {"a": 9, "b": 9})
    monkeypatch.chdir(tmp_path)
    assert len(open_data("digits").classes) == 10
    assert open_data("./digits").classes == ("a", "b")


@pytest.mark.parametrize(("channels", "wrong"), [(1, 2), (3, 4)])
def test_channels_can_be_asked_for(channels: int, wrong: int, tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 20, "b": 20})
    for source in ("digits", str(tmp_path)):
        keeps_its_contract(dataset := open_data(source, channels=channels))
        assert dataset.facts.channels == channels
        with pytest.raises(RequestError, match=r"1 .grey. or 3"):
            open_data(source, channels=wrong)


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(RequestError, match="from 0 to 1"):
        open_data("digits", max_bad=5)
