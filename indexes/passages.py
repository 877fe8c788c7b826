"""Documents of several rows: search among passages, where the best passage's score is the document's (max-score)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexes.approximate import Approximate
from indexes.errors import InputError
from indexes.hits import Hits, merge, top

_BLOCK = 65_536
_SLAB = 2048
_QUERIES_AT_ONCE = 512
_LEAST_DEPTH = 100
_DEEPER = 4


class Passages:
    """Searches documents over an index of their passages: a document's score is the largest of its passages' scores.

    To its callers it is what `Approximate` is, with document numbers for row numbers: `search` gives every document at
    most once and min(k, n) of them, and `scores` are exact. Over an exhaustive index `search` is exact, in one pass
    that takes the maximum over each document's passages before it looks for the best. Over others the passages found
    say which documents are scored again from all their passages; too few documents, and it looks deeper.

    Args:
        dense: The index of all passages.
        table: (rows, 3) int64: for each row its document, and the characters of its content where the passage begins
            and ends; as `VectorStore.passages` gives it and `check_passages` lets it pass.
        documents: How many documents there are.

    Source: MaxP in Dai and Callan, "Deeper Text Understanding for IR with Contextual Neural Language Modeling"
    (SIGIR 2019).
    """

    def __init__(self, dense: Approximate, table: NDArray[np.int64], documents: int) -> None:
        self._dense = dense
        self._table = table
        self._documents = documents
        self._document_of = np.ascontiguousarray(table[:, 0])  # (rows,)
        self._starts = np.searchsorted(self._document_of, np.arange(documents + 1))  # (n + 1,)

    def search(self, queries: NDArray[np.float32], k: int) -> Hits:
        """Find the k best documents for each query (q, d), k being at most n; hits are ordered by exact score."""
        if self._dense.exhaustive:
            return self._search_all(queries, k)
        found = Hits(np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32))
        missing = np.arange(len(queries))
        depth = max(2 * k, _LEAST_DEPTH)
        while missing.size and depth < self._dense.rows:
            documents = self._distinct(self._dense.search(queries[missing], depth).rows)  # (q, depth)
            enough = (documents >= 0).sum(axis=1) >= k
            if enough.any():
                done = missing[enough]
                best = top(self.scores(queries[done], documents[enough]), k, documents[enough])
                found.rows[done], found.scores[done] = best
            missing, depth = missing[~enough], _DEEPER * depth
        if missing.size:
            found.rows[missing], found.scores[missing] = self._search_all(queries[missing], k)
        return found

    def scores(self, queries: NDArray[np.float32], documents: NDArray[np.int64]) -> NDArray[np.float32]:
        """Exact scores of each query (q, d) with its own documents (q, m); -inf where a document is -1."""
        out = np.full(documents.shape, -np.inf, dtype=np.float32)
        for query, mine, line in zip(queries, documents, out, strict=True):
            known = mine >= 0
            if known.any():
                firsts, counts = self._starts[mine[known]], self._starts[mine[known] + 1] - self._starts[mine[known]]
                begins = np.cumsum(counts) - counts  # where each document's passages begin among those of all
                rows = np.repeat(firsts - begins, counts) + np.arange(counts.sum())
                line[known] = np.maximum.reduceat(self._dense.vectors[rows] @ query, begins)
        return out

    def best(self, query: NDArray[np.float32], document: int) -> tuple[int, int]:
        """The characters of a document's content where its best passage for a query (d,) begins and ends."""
        first, last = self._starts[document : document + 2]
        row = first + int(np.argmax(self._dense.vectors[first:last] @ query))
        return int(self._table[row, 1]), int(self._table[row, 2])

    def _distinct(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The documents of found rows (q, any), each once; -1 for the rest."""
        documents = np.sort(np.where(rows < 0, -1, self._document_of[rows]), axis=1)
        documents[:, 1:][documents[:, 1:] == documents[:, :-1]] = -1
        return documents

    def _search_all(self, queries: NDArray[np.float32], k: int) -> Hits:
        """The k best of all documents, exactly; the scores of one block of documents are in memory at a time."""
        found = Hits(np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32))
        for first, last in self._runs(0, self._documents, _BLOCK):
            for start in range(0, len(queries), _QUERIES_AT_ONCE):
                some = slice(start, start + _QUERIES_AT_ONCE)
                here = top(self._scores_between(queries[some], first, last), min(k, last - first))
                before = Hits(found.rows[some], found.scores[some])
                found.rows[some], found.scores[some] = merge([before, Hits(here.rows + first, here.scores)], k)
        return found

    def _scores_between(self, queries: NDArray[np.float32], first: int, last: int) -> NDArray[np.float32]:
        """Scores (q, last - first) of neighbouring documents, a cache-sized slab of passages at a time."""
        scores = np.empty((len(queries), last - first), dtype=np.float32)
        for one, other in self._runs(first, last, _SLAB):
            rows = self._dense.vectors[self._starts[one] : self._starts[other]]
            products = queries @ np.require(rows, np.float32, ["ALIGNED"]).T  # (q, passages); see `search_exact`
            begins = self._starts[one:other] - self._starts[one]
            scores[:, one - first : other - first] = np.maximum.reduceat(products, begins, axis=1)
        return scores

    def _runs(self, first: int, last: int, rows: int) -> Iterator[tuple[int, int]]:
        """Part the documents from first to last into runs of at most so many passages, or of one longer document."""
        while first < last:
            end = int(np.searchsorted(self._starts, self._starts[first] + rows, side="right")) - 1
            end = min(max(end, first + 1), last)
            yield first, end
            first = end


def check_passages(table: NDArray[np.int64], rows: int, documents: int, folder: Path) -> None:
    """Refuse a table of passages that has not one line a row, and all documents in order, each with a passage or more.

    Raises:
        InputError: The message names the folder it is from.
    """
    if table.shape != (rows, 3):
        raise InputError(f"{folder}: passages have shape {table.shape}; expected ({rows}, 3): make the vectors again")
    steps = np.diff(table[:, 0], prepend=-1, append=documents)  # 1 where a document begins, and at the end; else 0
    wrong = (steps < 0) | (steps > 1)
    wrong[[0, -1]] = steps[[0, -1]] != 1
    if wrong.any():
        found = "nothing" if (row := int(wrong.argmax())) == rows else f"document {table[row, 0]}"
        raise InputError(
            f"{folder}: passages hold {found} at row {row}; expected {documents} documents in their order, each with "
            "one passage or more: make the vectors again"
        )
