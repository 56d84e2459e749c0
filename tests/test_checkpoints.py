"""Checkpoints: what is written comes back, whatever is damaged is refused by name, and an earlier one is never lost."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from residua import checkpoints
from residua.checkpoints import Checkpoint
from residua.errors import RunError

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)


def small(step: int, numbers: int = 40) -> Checkpoint:
    """Three files of a few hundred bytes; the second has the given `numbers`."""
    tensors = {
        "model": {"weight": torch.arange(12.0).view(3, 4) + step, "count": torch.tensor(step)},
        "optimizer": {"0.momentum_buffer": torch.arange(float(numbers))},
        "average": {"weight": torch.ones(3, 4), "count": torch.tensor(step)},
    }
    return Checkpoint(step, tensors, {"seconds": 1.5, "threads": 1})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the checkpoints of steps 1 and 2."""
    path = tmp_path / "checkpoints"
    path.mkdir()
    checkpoints.write(path, small(1))
    checkpoints.write(path, small(2))
    return path


def equal(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors have the same type, shape and bytes (NaN included)."""
    same = left.dtype == right.dtype and left.shape == right.shape
    return same and left.contiguous().flatten().view(torch.uint8).equal(right.contiguous().flatten().view(torch.uint8))


def assert_refused(folder: Path, file: str) -> None:
    """The newest checkpoint is refused, naming `file`, and the one before it is used."""
    found, damaged = checkpoints.latest(folder)
    assert found is not None
    assert found.step == 1
    assert len(damaged) == 1
    assert f"{folder / 'step-00000002'} is damaged: {file} " in damaged[0]


def test_every_flipped_bit_of_the_state_is_refused_by_name(folder: Path) -> None:
    file = folder / "step-00000002" / "state.json"
    whole = file.read_bytes()
    for place in range(len(whole)):
        for mask in (*(1 << bit for bit in range(8)), 0xFF):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
            with pytest.raises(RunError, match=r"step-00000002 is damaged: state\.json"):
                checkpoints.read(file.parent)
    assert_refused(folder, "state.json")


@pytest.mark.parametrize("name", ["model", "optimizer", "average"])
def test_every_flipped_byte_of_a_tensor_file_is_refused_by_name(folder: Path, name: str) -> None:
    file = folder / "step-00000002" / f"{name}.safetensors"
    whole = file.read_bytes()
    for place in range(len(whole)):  # the header's length, the header, and the numbers
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(RunError, match=rf"step-00000002 is damaged: {name}\.safetensors"):
            checkpoints.read(file.parent)
    assert_refused(folder, file.name)


@pytest.mark.parametrize("name", ["state.json", "model.safetensors"])
def test_a_file_cut_short_at_any_length_is_refused_by_name(folder: Path, name: str) -> None:
    file = folder / "step-00000002" / name
    whole = file.read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 200)):
        file.write_bytes(whole[:length])
        assert_refused(folder, name)
    file.write_bytes(whole + b"\n")
    assert_refused(folder, name)


@pytest.mark.parametrize("name", ["state.json", "model.safetensors", "optimizer.safetensors", "average.safetensors"])
def test_a_missing_file_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / "step-00000002" / name).unlink()
    assert_refused(folder, name)


def test_a_folder_that_only_looks_like_a_checkpoint_is_refused(folder: Path) -> None:
    (folder / "step-00000003").mkdir()
    found, damaged = checkpoints.latest(folder)
    assert found is not None
    assert found.step == 2
    assert "step-00000003" in damaged[0]


@pytest.mark.parametrize("text", ["", "[]", "null", "3", '{"self": 1}', '"x"', "[" * 100_000, "\xff"])
def test_any_other_text_in_place_of_the_state_is_refused(folder: Path, text: str) -> None:
    (folder / "step-00000002" / "state.json").write_bytes(text.encode("latin-1"))
    assert_refused(folder, "state.json")


def test_a_checkpoint_of_another_format_is_refused_and_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "FORMAT", 2)
    with pytest.raises(RunError, match="has format 1; this version reads format 2"):
        checkpoints.read(folder / "step-00000002")


def test_where_every_checkpoint_is_damaged_each_is_named(folder: Path) -> None:
    for number in (1, 2):
        (folder / f"step-0000000{number}" / "model.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match="No checkpoint can be used") as caught:
        checkpoints.latest(folder)
    assert "step-00000001" in str(caught.value)
    assert "step-00000002" in str(caught.value)


def test_where_there_is_none_nothing_is_found(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path) == (None, [])


def test_the_newest_are_kept_and_older_ones_removed(folder: Path) -> None:
    for step in (3, 10, 11):
        checkpoints.write(folder, small(step), keep=3)
    assert [path.name for path in checkpoints.available(folder)] == ["step-00000011", "step-00000010", "step-00000003"]


@pytest.mark.parametrize("keep", [1, 2])
def test_what_a_run_goes_back_before_is_removed_and_does_not_count_among_the_kept(folder: Path, keep: int) -> None:
    checkpoints.write(folder, small(10))
    (folder / "step-00000010" / "model.safetensors").write_bytes(b"damaged")
    checkpoints.write(folder, small(5), keep=keep)
    assert [path.name for path in checkpoints.available(folder)] == ["step-00000005", "step-00000002"][:keep]
    found, damaged = checkpoints.latest(folder)
    assert found is not None
    assert (found.step, damaged) == (5, [])


def test_a_save_that_fails_names_no_checkpoint_that_the_run_went_back_before(folder: Path) -> None:
    checkpoints.write(folder, small(10), keep=3)
    (folder / "step-00000010" / "model.safetensors").write_bytes(b"damaged")
    with longest_file(100), pytest.raises(RunError, match=r"The last good checkpoint is .*step-00000002"):
        checkpoints.write(folder, small(5))


def test_a_part_of_an_interrupted_save_is_no_checkpoint_and_is_removed(folder: Path) -> None:
    partial = folder / ".partial-00000003"
    shutil.copytree(folder / "step-00000002", partial)
    found, damaged = checkpoints.latest(folder)
    assert found is not None
    assert (found.step, damaged) == (2, [])
    checkpoints.remove_partial(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000001", "step-00000002"]


def test_a_save_takes_the_place_of_an_interrupted_one(folder: Path) -> None:
    (folder / ".partial-00000003").mkdir()
    (folder / ".partial-00000003" / "foreign.safetensors").write_bytes(b"x")
    target = checkpoints.write(folder, small(3))
    assert sorted(path.name for path in target.iterdir()) == [
        "average.safetensors", "model.safetensors", "optimizer.safetensors", "state.json",
    ]  # fmt: skip


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(folder: Path) -> None:
    (folder / "step-00000002" / "model.safetensors").write_bytes(b"")
    checkpoints.write(folder, small(2))
    found, damaged = checkpoints.latest(folder)
    assert found is not None
    assert (found.step, damaged) == (2, [])


@contextmanager
def longest_file(size: int) -> Iterator[None]:
    """Within the block no file of this process can grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("failing", ["model", "optimizer", "average", "state"])
def test_a_write_that_fails_leaves_the_last_good_checkpoint_and_nothing_else(folder: Path, failing: str) -> None:
    checkpoint = small(3)
    if failing == "state":
        checkpoint = Checkpoint(3, checkpoint.tensors, {"long": "x" * 9_000})
    else:
        checkpoint.tensors[failing]["large"] = torch.zeros(2_000)
    with longest_file(4_096), pytest.raises(RunError, match="could not be saved") as caught:
        checkpoints.write(folder, checkpoint)
    assert f"The last good checkpoint is {folder / 'step-00000002'}" in str(caught.value)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000001", "step-00000002"]
    assert checkpoints.read(folder / "step-00000002").step == 2


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs privileges")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("numbers", [1_000, 4_000, 8_000, 20_000])
def test_on_a_full_disk_the_last_good_checkpoint_stays(tiny_disk: Path, numbers: int) -> None:
    checkpoints.write(tiny_disk, small(1))

    def fill() -> None:
        for step in range(2, 30):
            checkpoints.write(tiny_disk, small(step, numbers), keep=50)

    with pytest.raises(RunError, match="No space left on device") as caught:
        fill()
    last = checkpoints.available(tiny_disk)[0]
    assert f"The last good checkpoint is {last}" in str(caught.value)
    assert checkpoints.read(last).step == int(last.name[-8:])
    assert not list(tiny_disk.glob(".partial-*"))


def test_a_target_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_bytes(b"")
    with pytest.raises(RunError, match="no longer exists"):
        checkpoints.write(tmp_path / "checkpoints", small(1))


def test_a_target_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"checkpoints no longer exists"):
        checkpoints.write(tmp_path / "checkpoints", small(1))


def test_a_target_that_cannot_be_written_is_an_error(folder: Path) -> None:
    if (
        shutil.which("chattr") is None
        or subprocess.run(["chattr", "+i", str(folder)], capture_output=True, check=False).returncode
    ):
        pytest.skip("a folder that not even root can write needs chattr and privileges")
    try:
        with pytest.raises(RunError, match="could not be saved") as caught:
            checkpoints.write(folder, small(3))
        assert "The last good checkpoint is" in str(caught.value)
        assert checkpoints.read(folder / "step-00000002").step == 2
    finally:
        subprocess.run(["chattr", "-i", str(folder)], check=True)


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12).filter(
    lambda name: name != "__metadata__"
)
arrays = st.builds(
    lambda dtype, shape, seed: torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 4), max_size=4).map(tuple),
    st.integers(0, 2**31),
)
plain = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), st.lists, max_leaves=5)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**8 - 1),
    st.dictionaries(names, arrays, max_size=5),
    st.dictionaries(st.text(max_size=8), plain, max_size=4),
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, step: int, tensors: dict[str, Tensor], extra: dict[str, object]
) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoints.write(folder, Checkpoint(step, {"model": tensors}, extra))
    found, damaged = checkpoints.latest(folder)
    assert found is not None
    assert (found.step, found.extra, damaged) == (step, extra, [])
    assert found.tensors["model"].keys() == tensors.keys()
    assert all(equal(found.tensors["model"][name], tensor) for name, tensor in tensors.items())
    shutil.rmtree(folder)


def test_numbers_that_are_not_finite_keep_their_bits(tmp_path: Path) -> None:
    strange = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0])
    checkpoints.write(tmp_path, Checkpoint(1, {"model": {"x": strange}}, {}))
    assert equal(checkpoints.read(tmp_path / "step-00000001").tensors["model"]["x"], strange)


def test_a_transposed_tensor_and_one_in_another_memory_format_keep_their_values(tmp_path: Path) -> None:
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    checkpoints.write(tmp_path, Checkpoint(1, {"model": {"image": image, "turned": image[0, 0].T}}, {}))
    tensors = checkpoints.read(tmp_path / "step-00000001").tensors["model"]
    assert tensors["image"].equal(image)
    assert tensors["turned"].equal(image[0, 0].T)
