"""Documents of several rows: search among passages, where the best passage's score is the document's (max-score)."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexes.approximate import Approximate, ExactSearch
from indexes.device import DeviceSearch
from indexes.efforts import DEFAULT, Effort
from indexes.errors import InputError
from indexes.exact import nothing, search_exact
from indexes.hits import Hits, top
from indexes.targets import Targets

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
        self._document_of = np.ascontiguousarray(table[:, 0])  # (rows,)
        starts = np.searchsorted(self._document_of, np.arange(documents + 1))  # (n + 1,)
        self._starts = starts.astype(np.int64)
        self.targets = Targets(dense.targets.vectors, self._starts)
        self._exact: ExactSearch = self._search_exact

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        keep: NDArray[np.bool_] | None = None,
        effort: Effort = DEFAULT,
    ) -> Hits:
        """Find the k best documents for each query (q, d), of those to keep (n,); hits are ordered by exact score.

        k is at most the number of documents to keep.
        """
        if self._dense.exhaustive:
            return self._exact(queries, k, keep)
        kept = None if keep is None else keep[self._document_of]
        rows = self._dense.rows if kept is None else int(np.count_nonzero(kept))
        found = nothing(len(queries), k)
        missing = np.arange(len(queries))
        depth = max(2 * k, _LEAST_DEPTH)
        while missing.size and depth < rows:
            documents = self._distinct(self._dense.search(queries[missing], depth, kept, effort).rows)  # (q, depth)
            enough = (documents >= 0).sum(axis=1) >= k
            if enough.any():
                done = missing[enough]
                best = top(self.scores(queries[done], documents[enough]), k, documents[enough])
                found.rows[done], found.scores[done] = best
            missing, depth = missing[~enough], _DEEPER * depth
        if missing.size:
            found.rows[missing], found.scores[missing] = search_exact(queries[missing], self.targets, k, keep=keep)
        return found

    def move_to(self, device: Any) -> None:
        """Have a torch device search; see `Approximate.move_to`."""
        if self._dense.exhaustive:
            self._exact = DeviceSearch(self.targets, device).search
        else:
            self._dense.move_to(device)

    def _search_exact(self, queries: NDArray[np.float32], k: int, keep: NDArray[np.bool_] | None) -> Hits:
        return search_exact(queries, self.targets, k, keep=keep)

    def scores(self, queries: NDArray[np.float32], documents: NDArray[np.int64]) -> NDArray[np.float32]:
        """Exact scores of each query (q, d) with its own documents (q, m); -inf where a document is -1."""
        return self.targets.scores(queries, documents)

    def best(self, query: NDArray[np.float32], document: int) -> tuple[int, int]:
        """The characters of a document's content where its best passage for a query (d,) begins and ends."""
        first, last = self._starts[document : document + 2]
        row = first + int(np.argmax(self.targets.vectors[first:last].astype(np.float64) @ query))
        return int(self._table[row, 1]), int(self._table[row, 2])

    def _distinct(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The documents of found rows (q, any), each once; -1 for the rest."""
        documents = np.sort(np.where(rows < 0, -1, self._document_of[rows]), axis=1)
        documents[:, 1:][documents[:, 1:] == documents[:, :-1]] = -1
        return documents


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
