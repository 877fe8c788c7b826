"""Inverted lists of one segment: for each term the documents that hold it, memory-mapped."""

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexes.arrays import map_array
from indexes.errors import InputError
from indexes.names import Names

_VOCABULARY = "terms"
_STARTS, _ROWS, _COUNTS, _LENGTHS = "starts.npy", "rows.npy", "counts.npy", "lengths.npy"

_KINDS = ("terms to be counted", "weights of terms")

Terms = Sequence[str] | Mapping[str, float]
"""Of a document: what BM25 counts, or what a learned sparse encoder gives each term for weight."""


class Postings(NamedTuple):
    """Which documents hold each of v terms, and how often, or with which learned weight.

    n documents, p pairs of a term and a document.
    """

    vocabulary: Names
    """The v terms."""
    starts: NDArray[np.int64]
    """(v + 1,) where the pairs of each term begin, and p."""
    rows: NDArray[np.uint32]
    """(p,) the document of each pair, ascending within a term."""
    counts: NDArray[Any]
    """(p,) how often the document holds the term: unsigned; or the term's weight in it: float32."""
    lengths: NDArray[np.uint32]
    """(n,) how many terms each document has, repeated ones counted."""

    @property
    def weighted(self) -> bool:
        """Whether terms have learned weights, and not counts."""
        return bool(self.counts.dtype == np.float32)

    @classmethod
    def of(cls, documents: Iterable[Terms]) -> "Postings":
        """Count the terms of each document, in row order, or take their weights.

        Raises:
            InputError: Some have terms and others weights, or a weight is negative or not finite.
        """
        vocabulary: dict[str, int] = {}
        terms, held, lengths = array("I"), array("I"), array("I")
        counts: array[Any] = array("I")
        weighted: bool | None = None
        for row, document in enumerate(documents):
            if weighted is None:
                weighted = isinstance(document, Mapping)
                counts = array("f") if weighted else counts
            found: Mapping[str, Any] = _weights(document, row) if isinstance(document, Mapping) else Counter(document)
            if isinstance(document, Mapping) != weighted:
                raise InputError(f"document {row + 1} has {_KINDS[not weighted]}, those before it {_KINDS[weighted]}")
            terms.extend(vocabulary.setdefault(term, len(vocabulary)) for term in found)
            counts.extend(found.values())
            held.append(len(found))
            lengths.append(len(document))
        rows = np.repeat(np.arange(len(held), dtype=np.uint32), np.asarray(held, dtype=np.int64))
        columns = (np.asarray(terms, np.uint32), rows, np.asarray(counts, np.float32 if weighted else np.uint32))
        return _sorted(list(vocabulary), *columns, np.asarray(lengths, np.uint32))

    @classmethod
    def joined(cls, parts: Sequence[tuple["Postings", NDArray[np.bool_] | None]]) -> "Postings":
        """Those of several segments as one, without documents that are not to be kept.

        Args:
            parts: Postings, and which of their documents to keep (n,); None: all.
        """
        vocabulary: dict[str, int] = {}
        columns: list[tuple[NDArray[np.uint32], ...]] = []
        done = 0
        for one, keep in parts:
            known = np.array([vocabulary.setdefault(term, len(vocabulary)) for term in one.vocabulary], np.uint32)
            terms = np.repeat(known, np.diff(one.starts))
            kept = np.ones(len(one.lengths), bool) if keep is None else keep
            places = (np.cumsum(kept) - 1 + done).astype(np.uint32)
            wanted = kept[one.rows]
            columns.append((terms[wanted], places[one.rows[wanted]], one.counts[wanted], one.lengths[kept]))
            done += int(kept.sum())
        terms, rows, counts, lengths = (np.concatenate(column) for column in zip(*columns, strict=True))
        held = np.bincount(terms, minlength=len(vocabulary)) > 0
        names = [name for name, still in zip(vocabulary, held.tolist(), strict=True) if still]
        return _sorted(names, (np.cumsum(held) - 1)[terms], rows, counts, lengths)

    def of_term(self, number: int) -> tuple[NDArray[np.uint32], NDArray[Any]]:
        """The documents that hold a term, and how often, or with which weight."""
        some = slice(int(self.starts[number]), int(self.starts[number + 1]))
        return self.rows[some], self.counts[some]

    def save(self, folder: Path) -> None:
        """Write a folder of arrays."""
        folder.mkdir()
        self.vocabulary.save(folder, _VOCABULARY)
        columns: dict[str, NDArray[Any]] = {
            _STARTS: self.starts,
            _ROWS: self.rows,
            _COUNTS: self.counts,
            _LENGTHS: self.lengths,
        }
        for name, column in columns.items():
            np.save(folder / name, column, allow_pickle=False)

    @classmethod
    def open(cls, folder: Path) -> "Postings":
        """Map a folder that `save` wrote.

        Raises:
            InputError: Its arrays do not belong together.
        """
        columns = (map_array(folder / name) for name in (_STARTS, _ROWS, _COUNTS, _LENGTHS))
        postings = cls(Names.open(folder, _VOCABULARY), *columns)
        sizes = len(postings.vocabulary) + 1, len(postings.rows)
        if sizes != (len(postings.starts), len(postings.counts)) or postings.starts[-1] != len(postings.rows):
            raise InputError(f"{folder}: its arrays do not belong together; make the index again")
        return postings


def _weights(document: Mapping[str, float], row: int) -> dict[str, float]:
    """The weights that are not 0."""
    for term, weight in document.items():
        if not 0 <= weight < math.inf:
            raise InputError(f"document {row + 1} has weight {weight} for {term!r}; expected 0 or more, and finite")
    return {term: weight for term, weight in document.items() if weight}


def _sorted(
    names: list[str],
    terms: NDArray[np.integer],
    rows: NDArray[np.uint32],
    counts: NDArray[Any],
    lengths: NDArray[np.uint32],
) -> Postings:
    """Postings of pairs (p,) in any order of terms; of one term they keep their order."""
    order = np.argsort(terms, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(terms, minlength=len(names)))]).astype(np.int64)
    small: Any = np.uint16 if counts.max(initial=0) <= np.iinfo(np.uint16).max else np.uint32
    small = np.float32 if counts.dtype == np.float32 else small
    return Postings(Names.of(names), starts, rows[order], counts[order].astype(small), lengths)
