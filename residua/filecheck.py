"""What is known of each image file: its header, its hash, whether its pixels decode. Remembered between runs. Layer 1.

The memory is one sqlite3 file, `files.sqlite3`, in the folder `residua` under $XDG_CACHE_HOME (else ~/.cache). A file is known
again by absolute path, length and time of modification, under the same version of the decoder. Problems are looked at anew
each time, so that a file that was mended or given back its permissions is not held back. A memory that cannot be read or
written is done without.
"""

from __future__ import annotations

import hashlib
import math
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL

from residua.errors import UnreadableImage
from residua.images import Header, decode, printable, read_header
from residua.machine import cache_folder

__all__ = ["FileFacts", "decode_files", "hash_files", "read_headers", "remember_pixels"]

_READER = f"1/{PIL.__version__}"  # raise the first number when the rules of `images` change
_TAIL = 512
_TABLE = """CREATE TABLE IF NOT EXISTS files (
    path BLOB PRIMARY KEY, reader TEXT, size INTEGER, mtime_ns INTEGER, tail INTEGER, width INTEGER, height INTEGER, mode TEXT,
    format TEXT, channels INTEGER, pixels TEXT, sha256 BLOB) WITHOUT ROWID"""


@dataclass(slots=True)
class FileFacts:
    """What is known of one file.

    `size` in bytes; `problem`: why the header cannot be read, empty if it can; `tail`: a checksum of the last bytes, which with
    `size` tells most different files apart without reading them whole; `pixels`: None as long as decoding was not tried,
    empty if it worked, else the reason; `sha256` of the whole file, None as long as it was not needed.
    """

    size: int = 0
    mtime_ns: int = 0
    tail: int = 0
    header: Header | None = None
    problem: str = ""
    pixels: str | None = None
    sha256: bytes | None = None


def read_headers(paths: Sequence[str]) -> list[FileFacts]:
    """The facts of every file of `paths` (absolute), in order: from memory where the file is unchanged, else from its header."""
    known = _recall(paths)
    facts = [FileFacts() for _ in paths]
    fresh: list[int] = []

    def work(index: int) -> None:
        facts[index], is_fresh = _inspect(paths[index], known.get(os.fsencode(paths[index])))
        if is_fresh:
            fresh.append(index)

    _each(work, range(len(paths)))
    _remember(paths, facts, fresh)
    return facts


def hash_files(paths: Sequence[str], facts: Sequence[FileFacts], which: Iterable[int]) -> None:
    """Fills in `sha256` for the files at the places `which`; a file that cannot be read to its end gets a `problem`."""
    wanted = [index for index in which if facts[index].sha256 is None and not facts[index].problem]

    def work(index: int) -> None:
        try:
            with Path(paths[index]).open("rb") as file:
                facts[index].sha256 = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            facts[index].problem = f"it cannot be read ({error.strerror})"

    _each(work, wanted)
    _remember(paths, facts, wanted)


def decode_files(paths: Sequence[str], facts: Sequence[FileFacts], order: Iterable[int], seconds: float) -> None:
    """Fills in `pixels`, file by file in the given order, until `seconds` have passed.

    Files that failed before come first; those that are known to decode are passed over.
    """
    waiting = [index for index in order if facts[index].pixels != ""]
    waiting.sort(key=lambda index: facts[index].pixels is None)
    done: list[int] = []

    def work(index: int) -> None:
        header = facts[index].header
        facts[index].pixels = _problem_of(lambda: decode(paths[index], header.channels if header else 3), paths[index])
        done.append(index)

    _each(work, waiting, deadline=time.monotonic() + seconds)
    _remember(paths, facts, done)


def remember_pixels(results: Mapping[Path, str]) -> None:
    """Notes for later checks what the first use of some files showed: "" for a file that decoded, else the reason."""
    rows = []
    for path, reason in results.items():
        try:
            found = path.stat()
        except OSError:
            continue
        rows.append((reason, os.fsencode(path.absolute()), found.st_size, found.st_mtime_ns, _READER))
    _write("UPDATE files SET pixels = ? WHERE path = ? AND size = ? AND mtime_ns = ? AND reader = ?", rows)


def _inspect(path: str, known: FileFacts | None) -> tuple[FileFacts, bool]:
    """(facts, whether the file was opened for them)."""
    facts = FileFacts()
    try:
        found = Path(path).stat()
    except OSError:
        found = None
    if found is not None:
        facts.size, facts.mtime_ns = found.st_size, found.st_mtime_ns
        if known is not None and (known.size, known.mtime_ns) == (facts.size, facts.mtime_ns):
            return known, False
    facts.problem = _problem_of(lambda: _read(path, facts), path)
    return facts, not facts.problem


def _read(path: str, facts: FileFacts) -> None:
    facts.header = read_header(path)
    with Path(path).open("rb") as file:
        file.seek(max(0, facts.size - _TAIL))
        facts.tail = zlib.crc32(file.read(_TAIL))


def _problem_of(attempt: Callable[[], object], path: str) -> str:
    """Why `attempt` found the image unusable, without the name in front; empty if it did not."""
    try:
        attempt()
    except UnreadableImage as error:
        return str(error).removeprefix(f"{printable(path)}: ").rstrip(".")
    return ""


def _each(work: Callable[[int], None], items: Iterable[int], deadline: float = math.inf) -> None:
    """Calls `work` with each item, in threads, starting none after `deadline`; an error or an interruption ends it at once."""
    pending, lock, stop = iter(items), threading.Lock(), threading.Event()

    def drain() -> None:
        while not stop.is_set() and time.monotonic() < deadline:
            with lock:
                item = next(pending, None)
            if item is None:
                return
            try:
                work(item)
            except BaseException:
                stop.set()
                raise

    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        running = [pool.submit(drain) for _ in range(threads)]
        try:
            for future in running:
                future.result()
        finally:
            stop.set()


def _memory() -> Path:
    return cache_folder() / "files.sqlite3"


def _recall(paths: Sequence[str]) -> dict[bytes, FileFacts]:
    """What is remembered of the files below the folder that `paths` share; empty where nothing can be read."""
    if not paths:
        return {}
    try:
        if not _memory().exists():
            return {}
        folder = os.fsencode(os.path.commonpath([os.path.dirname(path) for path in paths])).rstrip(b"/")  # noqa: PTH120
        with closing(sqlite3.connect(_memory(), timeout=5)) as connection:
            rows = connection.execute(
                "SELECT path, size, mtime_ns, tail, width, height, mode, format, channels, pixels, sha256 FROM files "
                "WHERE path > ? AND path < ? AND reader = ?",
                (folder + b"/", folder + b"0", _READER),
            )
            return {row[0]: _from_row(row) for row in rows}
    except (sqlite3.Error, OSError, RuntimeError, ValueError, TypeError):
        return {}


def _from_row(row: tuple[Any, ...]) -> FileFacts:
    _, size, mtime_ns, tail, width, height, mode, format_, channels, pixels, sha256 = row
    return FileFacts(size, mtime_ns, tail, Header(width, height, mode, format_, channels), "", pixels, sha256)


def _remember(paths: Sequence[str], facts: Sequence[FileFacts], which: Iterable[int]) -> None:
    rows = []
    for index in which:
        known, header = facts[index], facts[index].header
        if header is not None and not known.problem:
            stamp = (os.fsencode(paths[index]), _READER, known.size, known.mtime_ns, known.tail)
            rows.append((*stamp, *header, known.pixels, known.sha256))
    _write("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)


def _write(statement: str, rows: Sequence[tuple[object, ...]]) -> None:
    """Carries out `statement` for all rows or for none; a memory that cannot be written stays as it is."""
    if not rows:
        return
    try:
        path = _memory()
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=5)) as connection, connection:
            connection.execute(_TABLE)
            connection.executemany(statement, rows)
    except (sqlite3.Error, OSError, RuntimeError) as error:
        if type(error) is sqlite3.DatabaseError:  # damaged (a lock or a full disk is a subclass): begin a new one next time
            with suppress(OSError):
                path.unlink()
