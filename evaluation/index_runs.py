"""Runs of indexes of our own, as arrays from the search to the measures, and exact search beside approximate."""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, overload, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from evaluation.measures import ann_recall
from evaluation.run_table import RunTable
from evaluation.testsets import TestSet
from indexes.errors import InputError
from indexes.hits import Hits

if TYPE_CHECKING:
    from indexes.reader import Reader

DEPTHS = (10, 100)
"""How deep recall against exact search is measured."""

_QUERIES_AT_ONCE = 256
OnProgress = Callable[[int, int | None], None]


@runtime_checkable
class RowSearcher(Protocol):
    """A searcher that gives its hits as rows of an index of ours (`retrieval.Retriever` is one)."""

    def search_rows(self, texts: Sequence[str], k: int, *, mode: str) -> "tuple[Hits, Reader]":
        """Find at most k rows for each text, and what they are rows of."""


class Recall(NamedTuple):
    """How much of exact search's first k hits an approximate search found, over all queries."""

    mean: float
    least: float
    """Of one query."""


class _Ids(Sequence[str]):
    """The ids of an index's rows as texts, each read when it is asked for."""

    def __init__(self, reader: "Reader") -> None:
        self.reader = reader

    def __len__(self) -> int:
        return self.reader.rows

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [str(one) for one in self.reader.ids[row]]
        return str(self.reader.ids[row])


def search_index(retriever: RowSearcher, testset: TestSet, k: int, mode: str, on_progress: OnProgress) -> RunTable:
    """Search all queries of a test collection, k hits each; self-matches are dropped where its profile says so.

    Raises:
        InputError: The index was changed meanwhile.
    """

    def search(texts: Sequence[str], k: int) -> "tuple[Hits, Reader]":
        return retriever.search_rows(texts, k, mode=mode)

    return _run(search, testset, k, f"mode {mode!r}", on_progress)


def exact_run(retriever: Any, testset: TestSet, k: int, on_progress: OnProgress) -> RunTable:
    """What exact search finds in the raw vectors of a retriever's index, whatever the index is."""
    from indexes.dense import LocalDense  # which loads pyarrow

    reader: Reader = retriever.index.reader
    dense = LocalDense(reader.segments)

    def search(texts: Sequence[str], k: int) -> "tuple[Hits, Reader]":
        vectors = reader.checked(retriever.encoder.encode_queries(texts))
        return dense.exact(vectors, min(k, len(reader)), reader.live), retriever.index.reader

    return _run(search, testset, k, "exact search", on_progress)


def against_exact(
    run: RunTable, retriever: Any, testset: TestSet, depths: Iterable[int], on_progress: OnProgress
) -> dict[str, Recall]:
    """Compare what a retriever's index found by dense search with what exact search finds in the same vectors.

    Returns:
        `recall@10` and so on to its mean and least value over queries.

    Raises:
        InputError: No depth is given.
    """
    depths = sorted(set(depths))
    if not depths:
        raise InputError("no depth to compare at; expected a number of hits, at least 1")
    exact = exact_run(retriever, testset, depths[-1], on_progress)
    found = {}
    for k in depths:
        values = ann_recall(run, exact, k).values()
        found[f"recall@{k}"] = Recall(fmean(values), min(values))
    return found


def recall_line(mode: str, factory: str, found: dict[str, Recall]) -> str:
    """The comparison in one sentence."""
    parts = [f"{name} {one.mean:.4f} (lowest of a query {one.least:.2f})" for name, one in found.items()]
    return (
        f"{mode} search in {factory} against exact search of the same vectors: {', '.join(parts)}; hits that tie with "
        "the k-th count as found."
    )


def _run(
    search: "Callable[[Sequence[str], int], tuple[Hits, Reader]]",
    testset: TestSet,
    k: int,
    place: str,
    on_progress: OnProgress,
) -> RunTable:
    """Search in batches, and put the hits of all queries into one table."""
    drop = testset.profile.drop_self_matches
    queries, texts = list(testset.queries), list(testset.queries.values())
    rows: list[NDArray[np.int64]] = []
    scores: list[NDArray[np.float32]] = []
    counts: list[NDArray[np.int64]] = []
    readers: list[Reader] = []
    for start in range(0, len(texts), _QUERIES_AT_ONCE):
        hits, reader = search(texts[start : start + _QUERIES_AT_ONCE], k + drop)  # one more where one may be dropped
        there = hits.rows >= 0
        rows.append(hits.rows[there])
        scores.append(hits.scores[there])
        counts.append(there.sum(axis=1))
        readers.append(reader)
        if reader is not readers[0]:
            raise InputError(f"{reader.folder} was changed while it was measured; measure it again")
        on_progress(min(start + _QUERIES_AT_ONCE, len(texts)), len(texts))
    reader = readers[0]
    starts = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    ids = _Ids(reader)
    found = (np.concatenate(rows), np.concatenate(scores))
    table = RunTable.of(queries, starts, *found, ids, reader.rows_of_names, place=place)
    return table.without_self_matches().first(k) if drop else table
