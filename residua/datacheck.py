"""The check of a list of image files before training: what is found, and whether the run goes on or stops. Layer 1.

All headers are read, always, so that what is kept depends on the files alone; as many files are decoded as fit in the time that
is given, the rest at first use, and the results are remembered (`filecheck`). No file is ever changed or deleted. The rules:

- A file whose header cannot be read (empty, not an image, missing, too large) is left out before training and listed.
  More than `max_bad` of a split's files (of the whole folder, where the split is made by content): stop.
- A file whose header can be read but whose pixels cannot be decoded keeps its place, so that no place depends on how far the
  check got. It weighs nothing in training and is not counted in evaluation; it is listed as soon as it is known. If all
  files of a split fail, or all of the 20 or more of it that were tried: stop.
- A class folder without a readable image is listed and gets no class id. A class that has images in train but none in another
  split is listed, and the run goes on. A class that has images only outside train, in folders or a table that give the
  split, is most likely misspelt: stop. Where the split is made by content it is chance: listed, and the run goes on.
- Fewer than two classes, fewer than two training images, or a split without an image: stop.
- The same bytes in two splits, or in one split under two labels: listed and kept.
- Files that are not images, by their names, and hidden files are counted and left out.

Split by content: a file belongs to val where the first 8 bytes of its SHA-256, read as a fraction, lie below 0.2, else to train.
So the same image is never on both sides, and adding files moves no other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from residua import keyed
from residua.dataset import Findings
from residua.errors import RequestError, nearest
from residua.filecheck import FileFacts, decode_files, hash_files, read_headers
from residua.images import printable

__all__ = ["BY_CONTENT", "Checked", "Listed", "check", "split_of"]

BY_CONTENT = ""
"""In place of the name of a split: this file's split follows from its content."""

_HELD_OUT = 0.2
_ENOUGH = 20  # so many failures and no success are no chance
_LAYOUT = "sort the images into train/ and val/ by hand"


class Listed(NamedTuple):
    """A file as its source names it: `name` below the root, `label`, `split` (or `BY_CONTENT`), its `row` in a table or 0."""

    name: str
    label: str
    split: str
    row: int = 0

    @property
    def called(self) -> str:
        """How lists and messages name this file."""
        return f"row {self.row}: {printable(self.name)}" if self.row else printable(self.name)


@dataclass(frozen=True)
class Checked:
    """The files that are kept, each in its split, with their facts, and the class names in the order of their ids."""

    classes: tuple[str, ...]
    files: Sequence[Listed]
    facts: Sequence[FileFacts]


def split_of(sha256: bytes) -> str:
    """ "val" or "train", from the first 8 bytes of a file's SHA-256."""
    return "val" if int.from_bytes(sha256[:8], "big") / 2**64 < _HELD_OUT else "train"


def check(
    root: Path,
    listed: Sequence[Listed],
    splits: Sequence[str],
    findings: Findings,
    *,
    labels: Iterable[str] = (),
    max_bad: float = 0.05,
    seconds: float = 60.0,
) -> Checked:
    """Checks the files `listed` below `root` (absolute), by the rules at the head of this file, and notes `findings`.

    `splits`: those there must be in the end, "train" first; `labels`: all class names known, so that empty ones are found.
    Raises `RequestError` where a rule says stop.
    """
    by_content = any(file.split == BY_CONTENT for file in listed)
    paths = [str(root / file.name) for file in listed]
    facts = read_headers(paths)
    if by_content:
        hash_files(paths, facts, range(len(paths)))
    findings.total = findings.headers = len(listed)
    _leave_out(listed, facts, findings, max_bad)

    places = [place for place, known in enumerate(facts) if not known.problem]
    facts, paths = [facts[place] for place in places], [paths[place] for place in places]
    files = [_placed(listed[place], known) for place, known in zip(places, facts)]
    classes = _classes(files, splits, labels, findings, by_content)
    _require_images(files, splits, by_content)
    _list_duplicates(files, paths, facts, findings)
    _decode(files, paths, facts, findings, seconds)
    return Checked(classes, files, facts)


def _placed(file: Listed, known: FileFacts) -> Listed:
    if file.split != BY_CONTENT:
        return file
    assert known.sha256 is not None
    return file._replace(split=split_of(known.sha256))


def _leave_out(listed: Sequence[Listed], facts: Sequence[FileFacts], findings: Findings, max_bad: float) -> None:
    """Lists the files whose headers cannot be read; stops where a split has too many of them."""
    bad: dict[str, list[str]] = defaultdict(list)
    total: dict[str, int] = defaultdict(int)
    for file, known in zip(listed, facts):
        total[file.split] += 1
        if known.problem:
            bad[file.split].append(f"{file.called} ({known.problem})")
            kind = "empty file" if known.problem.startswith("an empty file") else "unreadable"
            about = {"name": printable(file.name), "split": file.split, "reason": known.problem}
            findings.add(kind, f"{file.called}: {known.problem}", "left out", **about)
    for split, names in bad.items():
        if len(names) > max_bad * total[split]:
            where = f" of {split}" if split else ""
            more = ", ..." if len(names) > 5 else ""
            raise RequestError(
                f"{len(names)} of the {total[split]} files{where} cannot be read as images, more than the {max_bad:.0%} that are "
                f"let pass: {', '.join(names[:5])}{more}. Mend or remove them, or allow more."
            )


def _classes(
    files: Sequence[Listed], splits: Sequence[str], labels: Iterable[str], findings: Findings, by_content: bool
) -> tuple[str, ...]:
    """The names of all classes that have images, sorted; lists the empty and the one-sided ones."""
    counts: dict[str, dict[str, int]] = {split: defaultdict(int) for split in splits}
    for file in files:
        counts[file.split][file.label] += 1
    classes = sorted({label for of_split in counts.values() for label in of_split})
    for label in sorted(set(labels) - set(classes)):
        findings.add("empty class", f"class {label!r} has no readable image", "it gets no class id")
    if len(classes) < 2:
        found = f"only the class {classes[0]!r}" if classes else "no image at all"
        raise RequestError(f"A classifier needs images of at least two classes; here is {found}.")
    for label in classes:
        if label not in counts["train"]:
            _only_outside_train(label, counts, findings, by_content)
        for split in splits[1:]:
            if counts[split] and label not in counts[split] and label in counts["train"]:
                findings.add("class without images in a split", f"class {label!r} has no image in {split}", "goes on")
    return tuple(classes)


def _only_outside_train(label: str, counts: dict[str, dict[str, int]], findings: Findings, by_content: bool) -> None:
    held = {split: of_split[label] for split, of_split in counts.items() if label in of_split}
    where = " and ".join(f"{count} in {split}" for split, count in held.items())
    if by_content:
        what = f"class {label!r} has no training image: by their content, its images fell to val ({where})"
        findings.add("class without training images", what, "goes on; they count as wrong unless guessed")
        return
    close = nearest(label, counts["train"])
    hint = f" Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
    raise RequestError(
        f"Class {label!r} has images ({where}) but none in train, so that it can never be learnt; perhaps it is misspelt.{hint} "
        f"Classes in train: {', '.join(sorted(counts['train'])[:12])}."
    )


def _require_images(files: Sequence[Listed], splits: Sequence[str], by_content: bool) -> None:
    """Stops where training or a split that is measured would have nothing to work on."""
    for split in splits:
        found, needed = sum(file.split == split for file in files), 2 if split == "train" else 1
        if found < needed:
            how = f"Add images, or {_LAYOUT}." if by_content else "Add images there."
            rule = f" after {len(files)} were divided by their content (about one in five goes to val)" if by_content else ""
            raise RequestError(f"The split {split} has {found or 'no'} readable image{'' if found == 1 else 's'}{rule}. {how}")


def _list_duplicates(files: Sequence[Listed], paths: Sequence[str], facts: Sequence[FileFacts], findings: Findings) -> None:
    """Lists equal files that lie in two splits or under two labels. Only files of equal length and tail are hashed for it."""
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place, known in enumerate(facts):
        alike[known.size, known.tail].append(place)
    suspects = [place for group in alike.values() if len(group) > 1 for place in group]
    hash_files(paths, facts, suspects)
    equal: dict[bytes, list[Listed]] = defaultdict(list)
    for place in suspects:
        if (digest := facts[place].sha256) is not None:
            equal[digest].append(files[place])
    for group in equal.values():
        _list_equal(group, findings)


def _list_equal(group: list[Listed], findings: Findings) -> None:
    """Findings for files of the same content: each that an earlier split has too, and each second label within a split."""
    order = ("train", "val", "test")
    first: dict[str, dict[str, Listed]] = {}
    for file in sorted(group, key=lambda file: order.index(file.split)):
        earlier = [split for split in order[: order.index(file.split)] if split in first]
        if earlier:
            other = next(iter(first[earlier[0]].values()))
            what = f"{file.called} in {file.split} is the same file as {other.called} in {other.split}"
            findings.add("duplicate across splits", what + _labels(file, other), "kept")
        of_split = first.setdefault(file.split, {})
        if of_split and file.label not in of_split:
            other = next(iter(of_split.values()))
            what = f"{file.called} is the same file as {other.called}{_labels(file, other)}"
            findings.add("duplicate under different labels", what, "kept")
        of_split.setdefault(file.label, file)


def _labels(file: Listed, other: Listed) -> str:
    return f", labelled {file.label!r} and {other.label!r}" if file.label != other.label else ""


def _decode(
    files: Sequence[Listed], paths: Sequence[str], facts: Sequence[FileFacts], findings: Findings, seconds: float
) -> None:
    """Decodes what fits in the time, in an order that samples the whole list evenly, and lists what failed."""
    decode_files(paths, facts, keyed.permutation(len(paths), "datacheck").tolist(), seconds)
    tried: dict[str, list[tuple[Listed, str]]] = defaultdict(list)
    for file, known in zip(files, facts):
        if known.pixels is not None:
            tried[file.split].append((file, known.pixels))
    findings.decoded = sum(map(len, tried.values()))
    for file, reason in (item for of_split in tried.values() for item in of_split if item[1]):
        done = "keeps its place; weighs nothing in training, not counted in evaluation"
        about = {"name": printable(file.name), "split": file.split, "reason": reason}
        findings.add("undecodable", f"{file.called}: {reason}", done, **about)
    for split, of_split in tried.items():
        enough = min(_ENOUGH, sum(file.split == split for file in files))
        if len(of_split) >= enough and all(reason for _, reason in of_split):
            names = ", ".join(f"{file.called} ({reason})" for file, reason in of_split[:5])
            raise RequestError(
                f"Not one of the {len(of_split)} files of {split} that were tried can be decoded: {names}. Replace them."
            )
