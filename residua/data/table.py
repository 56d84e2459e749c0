"""A table of images: a CSV file of path, label and, if it has one, split. Not an entry of the catalogue.

With a header: the path's column is called path, file, filename, image or image_path; the label's label, class, target or
category; the split's, which may be missing, split or set. Without a header: two columns, path and label. Paths are relative to
the table's folder. The separator is the comma, or the semicolon or tab if the first line has more of them; text is UTF-8, with or
without a byte order mark, quoted as usual. Labels are text; classes are their sorted names. Without a split column the files are
divided by content (see `datacheck`).

Rows without a label are left out, rows that repeat an earlier one too, both listed by their numbers (the header is row 1); rows
without a label count as unreadable for the rule of `max_bad`, and so do missing files.
"""

from __future__ import annotations

import csv
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from residua.data._listing import SPLIT_RULE, SPLIT_WORDS, assemble
from residua.datacheck import BY_CONTENT, Listed
from residua.dataset import Dataset, Findings
from residua.errors import RequestError, nearest
from residua.images import is_image_name, printable

__all__: list[str] = []

_PATH_WORDS = ("path", "file", "filename", "image", "image_path")
_LABEL_WORDS = ("label", "class", "target", "category")
_SPLIT_COLUMNS = ("split", "set")
_LONGEST_LINE = 65536
_KNOWN = f"a path column ({', '.join(_PATH_WORDS)}) and a label column ({', '.join(_LABEL_WORDS)})"


class _Columns(NamedTuple):
    """The places of the columns; `split` is None where there is none; `header`: whether the first row names them."""

    path: int
    label: int
    split: int | None
    header: bool


def open_csv(path: Path, *, channels: int | None = None, max_bad: float = 0.05, seconds: float = 60.0) -> Dataset:
    """The data set in the table `path`, checked by the rules of `datacheck`.

    Raises `RequestError` if there is no such file, if its columns are not known, a line is longer than 65,536 characters, a
    split is misspelt, or if the check says stop; rows are named by number.
    """
    if not path.is_file():
        raise RequestError(f"There is no table {printable(path)!r} (seen from {Path.cwd()}).")
    findings = Findings()
    rows = _rows(path)
    if not rows:
        raise RequestError(f"The table {printable(path)} is empty. Expected: {_KNOWN}.")
    columns = _columns(path, rows[0][1])
    listed = _listed(path, rows[1:] if columns.header else rows, columns, findings, max_bad)
    splits = [split for split in ("train", "val", "test") if any(file.split == split for file in listed)]
    if columns.split is None:
        splits = ["train", "val"]
    elif listed and (len(splits) < 2 or "train" not in splits):
        raise RequestError(
            f"The split column of {printable(path)} names only {', '.join(splits)}; it must name train and val or test."
        )
    how = f"split by content: {SPLIT_RULE}" if columns.split is None else "split by its column"
    named = "" if columns.header else " without a header (path, label)"
    root = Path(os.path.abspath(path)).parent  # noqa: PTH100 (links stay as they are)
    return assemble(
        path, root, listed, splits, findings, layout=f"a table{named}, {how}", channels=channels, max_bad=max_bad, seconds=seconds
    )


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """(row number, cells) of all rows that are not blank."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        first = file.readline(_LONGEST_LINE)
        file.seek(0)
        reader = csv.reader(_lines(path, file), delimiter=max(",;\t", key=first.count))
        try:
            return [(number, cells) for number, cells in enumerate(reader, 1) if any(cell.strip() for cell in cells)]
        except csv.Error as error:
            raise RequestError(f"{printable(path)}, line {reader.line_num}: {error}.") from error


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    """The lines of the file, none longer than may be held in memory without harm."""
    number = 0
    while line := file.readline(_LONGEST_LINE + 1):
        number += 1
        if len(line) > _LONGEST_LINE:
            raise RequestError(
                f"{printable(path)}, line {number}: more than {_LONGEST_LINE:,} characters. Is this a table of images?"
            )
        yield line


def _columns(path: Path, first: list[str]) -> _Columns:
    names = [cell.strip().lower() for cell in first]
    found = [
        next((names.index(word) for word in words if word in names), None)
        for words in (_PATH_WORDS, _LABEL_WORDS, _SPLIT_COLUMNS)
    ]
    if found[0] is not None and found[1] is not None:
        return _Columns(found[0], found[1], found[2], header=True)
    if len(first) == 2 and is_image_name(first[0].strip()):
        return _Columns(0, 1, None, header=False)
    shown = ", ".join(repr(printable(cell)) for cell in first[:8])
    raise RequestError(
        f"The first row of {printable(path)} is {shown}. Expected: {_KNOWN}; or, without a header, path and label."
    )


def _listed(path: Path, rows: list[tuple[int, list[str]]], columns: _Columns, findings: Findings, max_bad: float) -> list[Listed]:
    """The rows as files; those without a label and repeated ones are listed in `findings` and left out."""
    listed: list[Listed] = []
    unlabelled: list[int] = []
    seen: dict[tuple[str, str, str], int] = {}
    for number, cells in rows:
        name, label = _cell(cells, columns.path), unicodedata.normalize("NFC", printable(_cell(cells, columns.label)))
        if not label or not name:
            findings.add("row without a label" if name else "row without a path", f"row {number}: {printable(name)}", "left out")
            unlabelled.append(number)
            continue
        split = BY_CONTENT if columns.split is None else _split(path, number, _cell(cells, columns.split))
        name = os.path.normpath(name)
        earlier = seen.setdefault((name, label, split), number)
        if earlier != number:
            findings.add("duplicate row", f"row {number}: {printable(name)}, as row {earlier}", "left out")
            continue
        listed.append(Listed(name, label, split, number))
    if len(unlabelled) > max_bad * len(rows):
        numbers = ", ".join(map(str, unlabelled[:5])) + (", ..." if len(unlabelled) > 5 else "")
        raise RequestError(
            f"{len(unlabelled)} of the {len(rows)} rows of {printable(path)} lack a path or a label, more than the {max_bad:.0%} "
            f"that are let pass: rows {numbers}. Fill them in or remove them, or allow more."
        )
    return listed


def _cell(cells: list[str], place: int) -> str:
    return cells[place].strip() if place < len(cells) else ""


def _split(path: Path, number: int, word: str) -> str:
    if word.lower() not in SPLIT_WORDS:
        close = nearest(word, SPLIT_WORDS)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise RequestError(
            f"{printable(path)}, row {number}: the split {printable(word)!r} is none of {', '.join(SPLIT_WORDS)}.{hint}"
        )
    return SPLIT_WORDS[word.lower()]
