"""A folder of images: one sub-folder a class, divided into splits by hand or by content. Not an entry of the catalogue.

Two layouts, told apart by their folders' names (capitals and small letters alike):

- `train/` (also `training/`) beside `val/` (also `valid/`, `validation/`) or `test/` (also `testing/`) or both, each with one
  sub-folder a class;
- one sub-folder a class, divided into train and val by content (see `datacheck`). A `train/` with sub-folders and neither
  `val/` nor `test/` beside it is read like this too.

Class names are the sub-folders' names in Unicode's composed form, sorted; folders below a class's belong to it. Hidden files and
`__MACOSX` are left out. Links are followed, each real folder once a class, so that loops end.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from residua.data._listing import SPLIT_RULE, SPLIT_WORDS, assemble, counted
from residua.datacheck import BY_CONTENT, Listed
from residua.dataset import Dataset, Findings
from residua.errors import RequestError
from residua.images import is_image_name, printable

__all__: list[str] = []

_EXPECTED = "Expected: train/ and val/ (or test/) with a sub-folder for each class, or one sub-folder for each class."


@dataclass
class _Ignored:
    """What a walk leaves out, by relative names."""

    files: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    image_named: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)

    def note(self, findings: Findings) -> None:
        """Lists each kind in one finding, with its count."""
        if self.files or self.hidden:
            hidden = f" ({len(self.hidden)} of them hidden)" if self.hidden else ""
            names = [*self.files, *self.hidden]
            what = f"{_number(names, 'file')} not images{hidden}: {counted(names)}"
            findings.add("ignored files", what, "left out")
        for kind, names, what in (
            ("images outside a class", self.outside, "lying in no class folder"),
            ("ignored folders", self.folders, "beside the split folders"),
            ("folders named like images", self.image_named, "named like images"),
            ("unreadable folders", self.closed, "that cannot be opened"),
        ):
            if names:
                findings.add(kind, f"{len(names)} {what}: {counted(names)}", "left out")


def _number(names: list[str], noun: str) -> str:
    return f"1 {noun} is" if len(names) == 1 else f"{len(names)} {noun}s are"


def open_folder(root: Path, *, channels: int | None = None, max_bad: float = 0.05, seconds: float = 60.0) -> Dataset:
    """The data set in the folder `root`, checked by the rules of `datacheck`.

    `channels`: 1 or 3; without it 1 if every image is grey, else 3. `facts.size` is the (H, W) that all images share, or None.
    Raises `RequestError` if there is no such folder, nothing in it, no known layout, or if the check says stop.
    """
    if not root.is_dir():
        what = "is a file, not a folder or a .csv file" if root.exists() else "does not exist"
        raise RequestError(f"There is no folder {printable(root)!r}: it {what}.")
    source, root = root, Path(os.path.abspath(root))  # noqa: PTH100 (links stay as they are)
    ignored, findings = _Ignored(), Findings()
    top = _sub_folders(root, "", ignored)
    splits = _split_folders(root, top)
    if len(splits) > 1:
        layout = f"{' and '.join(f'{folder}/' for folder in splits.values())} with one sub-folder a class"
        labels, listed = _list_splits(root, splits, ignored)
    else:
        inner = splits.get("train", "")
        layout = f"one sub-folder a class{f' in {inner}/' if inner else ''}, split by content: {SPLIT_RULE}"
        folders = _sub_folders(root / inner, f"{inner}/", ignored) if inner else top
        labels, listed = _list_classes(root, inner, folders, BY_CONTENT, ignored)
    if splits:
        ignored.folders += [name for name in top if name not in splits.values()]
    ignored.note(findings)
    if not listed:
        raise _nothing(source, ignored)
    expected = tuple(splits) if len(splits) > 1 else ("train", "val")
    return assemble(
        source,
        root,
        listed,
        expected,
        findings,
        layout=layout,
        labels=labels,
        channels=channels,
        max_bad=max_bad,
        seconds=seconds,
    )


def _split_folders(root: Path, top: list[str]) -> dict[str, str]:
    """Split -> its folder, in the order train, val, test; empty where there is no train/ with sub-folders."""
    found: dict[str, str] = {}
    for name in top:
        split = SPLIT_WORDS.get(name.lower())
        if split is None or not _has_folders(root / name):
            continue
        if split in found:
            raise RequestError(f"{printable(root)} has both {found[split]}/ and {name}/ for the split {split}; keep one of them.")
        found[split] = name
    if "train" in found:
        return {split: found[split] for split in ("train", "val", "test") if split in found}
    if found and len(found) == len(top):
        raise RequestError(f"{printable(root)} has {' and '.join(found.values())} but no train/ with images. {_EXPECTED}")
    return {}


def _has_folders(folder: Path) -> bool:
    return bool(_sub_folders(folder, "", _Ignored()))


def _list_splits(root: Path, splits: dict[str, str], ignored: _Ignored) -> tuple[set[str], list[Listed]]:
    labels: set[str] = set()
    listed: list[Listed] = []
    for split, folder in splits.items():
        folders = _sub_folders(root / folder, f"{folder}/", ignored)
        of_split, files = _list_classes(root, folder, folders, split, ignored)
        labels |= of_split
        listed += files
    return labels, listed


def _list_classes(root: Path, below: str, folders: list[str], split: str, ignored: _Ignored) -> tuple[set[str], list[Listed]]:
    """(class names, files) of the folder `below` (relative, may be empty), whose sub-folders, `folders`, are the classes."""
    labels: set[str] = set()
    listed: list[Listed] = []
    for folder in folders:
        label = unicodedata.normalize("NFC", printable(folder))
        labels.add(label)
        name = f"{below}/{folder}" if below else folder
        listed += [Listed(image, label, split) for image in _images(root, name, ignored)]
    return labels, listed


def _sub_folders(folder: Path, prefix: str, ignored: _Ignored) -> list[str]:
    """The names of a folder's sub-folders that are not hidden, sorted; its files are noted as ignored."""
    folders: list[str] = []
    for entry in _entries(str(folder), prefix, ignored):
        if entry.is_dir():
            folders.append(entry.name)
        elif is_image_name(entry.name):
            ignored.outside.append(prefix + entry.name)
        else:
            ignored.files.append(prefix + entry.name)
    return sorted(folders)


def _images(root: Path, name: str, ignored: _Ignored) -> Iterator[str]:
    """The relative names of all images in the folder `name` and below it."""
    seen = {_identity(path) for path in (root / name, *(root / name).parents)}
    waiting = [name]
    while waiting:
        below = waiting.pop()
        for entry in _entries(str(root / below), f"{below}/", ignored):
            relative = f"{below}/{entry.name}"
            if not entry.is_dir():
                if is_image_name(entry.name):
                    yield relative
                else:
                    ignored.files.append(relative)
            elif is_image_name(entry.name):
                ignored.image_named.append(relative)
            elif (identity := _identity(Path(entry.path))) not in seen:
                seen.add(identity)
                waiting.append(relative)


def images_below(folder: Path) -> list[str]:
    """The paths of all images in a folder and below it, sorted, found as in a data set: links are followed, what is hidden is
    left out. Raises `RequestError` naming a folder that cannot be opened."""
    ignored = _Ignored()
    found = sorted(os.path.normpath(name) for name in _images(folder, ".", ignored))
    if ignored.closed:
        raise RequestError(f"The folder {printable(folder / os.path.normpath(ignored.closed[0]))} cannot be opened.")
    return [str(folder / name) for name in found]


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _entries(folder: str, prefix: str, ignored: _Ignored) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted by name, without what is hidden."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:
        ignored.closed.append(prefix or folder)
        return []
    shown = [entry for entry in entries if not entry.name.startswith(".") and entry.name != "__MACOSX"]
    ignored.hidden += [prefix + entry.name for entry in entries if entry not in shown]
    return shown


def _nothing(source: Path, ignored: _Ignored) -> RequestError:
    if ignored.outside:
        what = f"has images ({counted(ignored.outside)}) but no sub-folders that say their classes"
    elif ignored.closed:
        what = f"cannot be opened ({counted(ignored.closed)})"
    else:
        what = f"has no images in it{f', only {counted(ignored.files)}' if ignored.files else ''}"
    return RequestError(f"The folder {printable(source)!r} {what}. {_EXPECTED}")
