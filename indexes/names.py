"""Texts by number and numbers by text, such as document ids or a vocabulary, memory-mapped."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from indexes.arrays import map_array
from indexes.errors import InputError

_TEXTS = "{}.txt"
_ENDS = "{}.ends.npy"
_HASHES = "{}.hashes.npy"
_NUMBERS = "{}.numbers.npy"


Id = str | int
"""What a document is called: a text, or a whole number where all ids of an index are numbers."""
WHOLE = "integer"
"""What the record of vectors says of ids that are numbers; they are kept as texts."""


def text_of(id_: object, *, whole: bool) -> str:
    """An id as it is kept.

    Args:
        id_: The id.
        whole: Whether ids are numbers.

    Raises:
        InputError: It is of another kind.
    """
    if whole and isinstance(id_, int | np.integer) and not isinstance(id_, bool):
        return str(int(id_))
    if not whole and isinstance(id_, str):
        return id_
    raise InputError(f"an id is {id_!r}; expected a {'whole number' if whole else 'text'}, as the others are")


class Names(Sequence[str]):
    """n texts in a fixed order, each found by its number and its number by the text; nothing is read until asked for.

    On disk: the texts in UTF-8, end to end; where each ends; and their hashes, sorted, with the numbers beside them.

    Args:
        texts: All bytes (any,), one text after the other.
        ends: (n + 1,) int64: 0, and where each text ends.
        hashes: (n,) uint64, ascending.
        numbers: (n,) the number of the text that has the hash.
    """

    def __init__(
        self,
        texts: NDArray[np.uint8],
        ends: NDArray[np.int64],
        hashes: NDArray[np.uint64],
        numbers: NDArray[np.int64],
    ) -> None:
        # Plain views: slices of memory maps take several times as long.
        self._texts, self._ends = np.asarray(texts), np.asarray(ends)
        self._hashes, self._numbers = np.asarray(hashes), np.asarray(numbers)

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Names":
        """Names of texts; of a text that comes twice, either number may be found."""
        encoded = [text.encode() for text in texts]
        ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        hashes = np.fromiter(map(_hash, encoded), dtype=np.uint64, count=len(encoded))
        order = np.argsort(hashes, kind="stable").astype(np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends, hashes[order], order)

    def save(self, folder: Path, name: str) -> None:
        """Write the files, which all begin with a name."""
        (folder / _TEXTS.format(name)).write_bytes(self._texts.tobytes())
        arrays = {_ENDS: self._ends, _HASHES: self._hashes, _NUMBERS: self._numbers}
        for pattern, array in arrays.items():
            np.save(folder / pattern.format(name), array, allow_pickle=False)

    @classmethod
    def open(cls, folder: Path, name: str) -> "Names":
        """Map the files that `save` wrote.

        Raises:
            InputError: They do not belong together.
        """
        ends, hashes, numbers = (map_array(folder / pattern.format(name)) for pattern in (_ENDS, _HASHES, _NUMBERS))
        path = folder / _TEXTS.format(name)
        texts = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
        if not (len(ends) - 1 == len(hashes) == len(numbers) and ends[-1] == len(texts)):
            raise InputError(f"{path} and the files beside it do not belong together; make the index again")
        return cls(texts, ends, hashes, numbers)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> list[str]: ...
    def __getitem__(self, number: int | slice) -> str | list[str]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"number {number} of {len(self)} names")
        first, last = self._ends[number % len(self)], self._ends[number % len(self) + 1]
        return self._texts[first:last].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        step = 65_536
        for first in range(0, len(self), step):
            ends = self._ends[first : first + step + 1].tolist()
            block = self._texts[ends[0] : ends[-1]].tobytes()
            for begin, end in itertools.pairwise(ends):
                yield block[begin - ends[0] : end - ends[0]].decode()

    def numbers(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """The number of each text (m,); -1 where there is none."""
        encoded = [text.encode(errors="surrogatepass") for text in texts]
        hashes = np.fromiter(map(_hash, encoded), dtype=np.uint64, count=len(encoded))
        places = np.searchsorted(self._hashes, hashes)
        return np.fromiter(map(self._number, encoded, hashes, places.tolist()), np.int64, count=len(encoded))

    def _number(self, text: bytes, hashed: np.uint64, place: int) -> int:
        while place < len(self._hashes) and self._hashes[place] == hashed:
            number = int(self._numbers[place])
            if self._texts[self._ends[number] : self._ends[number + 1]].tobytes() == text:
                return number
            place += 1
        return -1


def _hash(text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
