"""Lines of text files, plain, gzip or zstd: one reader, which knows how far it is, and whole files written at once."""

import contextlib
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from indexes.errors import InputError
from indexes.manifest import named


class Meter:
    """How far a reader is in the bytes of its files: those on disk, compressed ones as they are.

    Args:
        total: Bytes of all the files that will be read.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._before = 0  # bytes of the files that are closed
        self._file: BinaryIO | None = None

    @property
    def fraction(self) -> float:
        """The share of the bytes that was read so far, between 0 and 1."""
        done, file = self._before, self._file
        if file:
            with contextlib.suppress(ValueError):  # closed this moment by the thread that reads
                done += file.tell()
        return min(done / self.total, 1.0) if self.total else 1.0

    @contextlib.contextmanager
    def reading(self, file: BinaryIO) -> Iterator[None]:
        """Follow a file while it is read."""
        self._file = file
        try:
            yield
        finally:
            self._file = None
            self._before += file.tell()


def read_lines(path: Path, meter: Meter | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read JSON lines (plain, gzip or zstd) as (line number, object); blank lines are passed over.

    Raises:
        InputError: A line is not a JSON object, or the file is not readable as UTF-8 text.
    """
    for number, line in text_lines(path, "JSON lines", meter):
        yield number, _parse(line, f"{path}, line {number}")


def text_lines(
    path: Path, expected: str, meter: Meter | None = None, *, blank_lines: bool = False
) -> Iterator[tuple[int, str]]:
    """Read a text file (plain, gzip or zstd) as (line number, line).

    Args:
        path: The file; gzip if its name ends with `.gz`, zstd (of one or many frames) if with `.zst`.
        expected: What it should hold, for the message.
        meter: Told how much of the file was read.
        blank_lines: Give blank lines too, which are passed over otherwise.

    Raises:
        InputError: It is missing, cut off, or not readable as UTF-8 text.
    """
    number = 0
    if path.is_dir():
        raise InputError(f"{path}: a folder; expected {expected}")
    try:
        with path.open("rb") as file, _decompressed(file, path) as text, (meter or Meter(0)).reading(file):
            for number, line in enumerate(text, start=1):
                if blank_lines or line.strip():
                    yield number, line
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected {expected}") from None
    except UnicodeDecodeError as error:
        number += 1 + error.object[: error.start].count(b"\n")  # what is decoded is ahead of the lines that were given
        raise InputError(f"{path}, line {number}: not readable as text ({error}); expected {expected}") from None
    except (EOFError, zlib.error, OSError) as error:
        place = f", after line {number}" if number else ""
        raise InputError(f"{path}{place}: not readable as text ({error}); expected {expected}") from None


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Give a text file to fill under a temporary name; it takes the place of `path` when the block ends well.

    Raises:
        InputError: The path is a folder, or its name says that it is compressed, which this file is not.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected the name of a file")
    if path.suffix.lower() in (".gz", ".zst"):
        raise InputError(f"{path} would be read as compressed, and is written plain; give a name such as {path.stem}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = named(path).with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _decompressed(file: BinaryIO, path: Path) -> io.TextIOWrapper:
    """The text; a byte-order mark, which some editors put first, is no part of it."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return io.TextIOWrapper(gzip.GzipFile(fileobj=file), encoding="utf-8-sig")
    if suffix == ".zst":
        import pyarrow

        return io.TextIOWrapper(pyarrow.CompressedInputStream(file, "zstd"), encoding="utf-8-sig")
    return io.TextIOWrapper(file, encoding="utf-8-sig")


def _parse(line: str, place: str) -> dict[str, Any]:
    expected = "expected one JSON object a line"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        reason, found = getattr(error, "msg", error), line.strip()
        raise InputError(f"{place}: not JSON ({reason}): {found[:60]!r}; {expected}") from None
    if not isinstance(record, dict):
        raise InputError(f"{place}: found a {type(record).__name__}; {expected}")
    return record
