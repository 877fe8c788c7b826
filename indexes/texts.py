"""The documents' texts as JSON lines, memory-mapped."""

import json
import mmap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexes.arrays import map_array
from indexes.errors import InputError

_TEXTS = "texts.jsonl"
_OFFSETS = "texts.offsets.npy"


class Texts:
    """Texts in row order; a line of the file is read when its text is asked for.

    Args:
        lines: The file.
        offsets: (n + 1,) where each line begins, and the size of the file.
    """

    def __init__(self, lines: "mmap.mmap | bytes", offsets: NDArray[np.int64]) -> None:
        self._lines = lines
        self._offsets = np.asarray(offsets)

    @classmethod
    def open(cls, folder: Path) -> "Texts | None":
        """Map what a `TextsWriter` wrote; None where the folder keeps no texts.

        Raises:
            InputError: The two files do not belong together.
        """
        if not (folder / _OFFSETS).is_file():
            return None
        offsets = map_array(folder / _OFFSETS)
        with (folder / _TEXTS).open("rb") as file:
            size = file.seek(0, 2)
            lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        if not len(offsets) or offsets[-1] != size:
            raise InputError(f"{folder / _TEXTS} is not what {_OFFSETS} says; make the index again")
        return cls(lines, offsets)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> str:
        return str(json.loads(self.line(row))["text"])

    def line(self, row: int) -> bytes:
        """The line of a row, its end included."""
        return self._lines[self._offsets[row] : self._offsets[row + 1]]


class TextsWriter:
    """Writes texts into a folder, in row order; use it as a context."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = (folder / _TEXTS).open("wb")
        self._offsets = [0]

    def __enter__(self) -> "TextsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None:
            np.save(self._folder / _OFFSETS, np.asarray(self._offsets, dtype=np.int64), allow_pickle=False)

    def add(self, id_: str, text: str) -> None:
        """Write a document's text."""
        try:
            self.add_line(json.dumps({"id": id_, "text": text}, ensure_ascii=False).encode() + b"\n")
        except UnicodeEncodeError:
            raise InputError(f"the text of document {id_!r} holds half a character; leave it out") from None

    def add_line(self, line: bytes) -> None:
        """Write what `Texts.line` gave."""
        self._offsets.append(self._offsets[-1] + self._file.write(line))

    def add_all(self, texts: Texts, rows: Iterable[int]) -> None:
        """Write texts of another folder."""
        for row in rows:
            self.add_line(texts.line(row))
