"""Runs as arrays: all hits of all queries side by side, documents by number."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import chain, compress, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.rankings import LARGEST, Ranking
from indexes.errors import InputError
from indexes.hits import Hits

Find = Callable[[Sequence[str]], NDArray[np.int64]]
"""Takes m ids and gives their numbers (m,); -1 where there is no such document."""


class RunTable(Mapping[str, Ranking]):
    """A run in arrays: the hits of one query after those of the other, each in trec_eval's order.

    It is a mapping from query to ranking, as every run is, but makes a ranking, and the ids in it, only when it is
    asked for one; `score_run` reads the arrays. Make one with `of`, `of_hits` or `of_run`, which check and order.

    Attributes:
        queries: q query ids, each once.
        starts: (q + 1,) int64 where the hits of each query begin, and h.
        rows: (h,) int32 numbers of documents.
        scores: (h,) float32, finite.
        ids: The documents' ids by number, n of them; they may be more than the run holds.
    """

    def __init__(
        self,
        queries: Sequence[str],
        starts: NDArray[np.int64],
        rows: NDArray[np.int32],
        scores: NDArray[np.float32],
        ids: Sequence[str],
        find: Find | None = None,
    ) -> None:
        self.queries = list(queries)
        self.starts, self.rows, self.scores = starts, rows, scores
        self.ids = ids
        self._find = find or partial(_looked_up, dict(zip(ids, range(len(ids)), strict=True)))

    @classmethod
    def of(
        cls,
        queries: Sequence[str],
        starts: NDArray[np.integer[Any]],
        rows: NDArray[np.integer[Any]],
        scores: NDArray[np.floating[Any]],
        ids: Sequence[str],
        find: Find | None = None,
        *,
        place: str = "a run",
    ) -> "RunTable":
        """Check arrays and put each query's hits into trec_eval's order.

        Args:
            queries: q ids.
            starts: (q + 1,)
            rows: (h,)
            scores: (h,) the higher the better; kept as float32.
            ids: n ids, each once.
            find: What finds the numbers of ids; None: a dictionary of them all.
            place: Where the run is from, for error messages.

        Raises:
            InputError: The arrays do not fit together, a query or document occurs twice, or a score is not a finite
                float32.
        """
        begins: NDArray[np.int64] = np.asarray(starts, dtype=np.int64)
        _refuse_misfits(queries, begins, rows, scores, len(ids), place)
        if find is None:
            number = dict(zip(ids, range(len(ids)), strict=True))
            if len(number) != len(ids):
                raise InputError(f"{place}: {len(ids):,} document ids, {len(number):,} different ones; give each once")
            find = partial(_looked_up, number)
        lines = np.repeat(np.arange(len(queries)), np.diff(begins))  # (h,)
        wrong = np.flatnonzero(~(np.abs(scores) <= LARGEST))
        if len(wrong):
            first = int(wrong[0])
            raise InputError(
                f"{place}, query {queries[lines[first]]!r}: document {ids[int(rows[first])]!r} has score "
                f"{scores[first]}; expected a finite float32"
            )
        keys = np.sort(lines * max(len(ids), 1) + rows)
        twice = np.flatnonzero(keys[1:] == keys[:-1])
        if len(twice):
            line, row = divmod(int(keys[twice[0]]), len(ids))
            raise InputError(
                f"{place}, query {queries[line]!r}: document {ids[row]!r} occurs twice; a ranking holds every "
                "document once"
            )
        ordered = _in_order(lines, rows.astype(np.int32), scores.astype(np.float32), ids)
        return cls(queries, begins, *ordered, ids, find)

    @classmethod
    def of_hits(
        cls, queries: Sequence[str], hits: Hits, ids: Sequence[str], find: Find | None = None, *, place: str = "a run"
    ) -> "RunTable":
        """Take hits (q, k) of an index, without what pads them; see `of`."""
        there = hits.rows >= 0
        starts = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
        return cls.of(queries, starts, hits.rows[there], hits.scores[there], ids, find, place=place)

    @classmethod
    def of_run(cls, run: Mapping[str, Ranking]) -> "RunTable":
        """Take rankings, which are in order already; documents are numbered as they occur first."""
        if isinstance(run, RunTable):
            return run
        lengths = [len(ranking.ids) for ranking in run.values()]
        names = list(dict.fromkeys(chain.from_iterable(ranking.ids for ranking in run.values())))
        number = dict(zip(names, range(len(names)), strict=True))
        every = chain.from_iterable(ranking.ids for ranking in run.values())
        rows = np.fromiter(map(number.__getitem__, every), np.int32, sum(lengths))
        scores = np.concatenate([np.empty(0, np.float32), *(ranking.scores for ranking in run.values())])
        return cls(list(run), np.cumsum([0, *lengths]), rows, scores, names, partial(_looked_up, number))

    def __len__(self) -> int:
        return len(self.queries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.queries)

    def __contains__(self, query: object) -> bool:
        return query in self._lines

    def __getitem__(self, query: str) -> Ranking:
        line = self._lines[query]
        some = slice(self.starts[line], self.starts[line + 1])
        return Ranking([self.ids[row] for row in self.rows[some].tolist()], self.scores[some])

    @cached_property
    def _lines(self) -> dict[str, int]:
        return dict(zip(self.queries, range(len(self.queries)), strict=True))

    @property
    def counts(self) -> NDArray[np.int64]:
        """(q,) how many hits each query has."""
        return np.diff(self.starts)

    def line(self, query: str) -> int:
        """The number of a query; -1 if it is not there."""
        return self._lines.get(query, -1)

    def numbers(self, names: Sequence[str]) -> NDArray[np.int64]:
        """The numbers of ids (m,); -1 where there is no such document."""
        return self._find(names)

    def only(self, queries: Container[str]) -> "RunTable":
        """The same of some queries only."""
        kept = np.fromiter((query in queries for query in self.queries), bool, len(self.queries))
        chosen = list(compress(self.queries, kept))
        hits = np.repeat(kept, self.counts)
        starts = np.concatenate([[0], np.cumsum(self.counts[kept])])
        return RunTable(chosen, starts, self.rows[hits], self.scores[hits], self.ids, self._find)

    def first(self, k: int) -> "RunTable":
        """The same with at most k hits of each query."""
        if self.counts.max(initial=0) <= k:
            return self
        return self._where(np.arange(len(self.rows)) - np.repeat(self.starts[:-1], self.counts) < k)

    def without_self_matches(self) -> "RunTable":
        """The same without hits whose id is the query's."""
        own = np.repeat(self.numbers(self.queries), self.counts)
        return self._where(self.rows != own)

    def compact(self) -> "RunTable":
        """The same with the ids of its own documents only, each of them looked up once."""
        used, rows = np.unique(self.rows, return_inverse=True)
        names = [self.ids[row] for row in used.tolist()]
        return RunTable(self.queries, self.starts, rows.astype(np.int32), self.scores, names)

    def _where(self, kept: NDArray[np.bool_]) -> "RunTable":
        starts = np.concatenate([[0], np.cumsum(kept)])[self.starts]
        return RunTable(self.queries, starts, self.rows[kept], self.scores[kept], self.ids, self._find)


def only(run: Mapping[str, Ranking], queries: Container[str]) -> Mapping[str, Ranking]:
    """A run's rankings of some queries only."""
    if isinstance(run, RunTable):
        return run.only(queries)
    return {query: ranking for query, ranking in run.items() if query in queries}


def without_self_matches(run: Mapping[str, Ranking]) -> Mapping[str, Ranking]:
    """A run without hits whose id is the query's."""
    if isinstance(run, RunTable):
        return run.without_self_matches()
    return {query: _without(ranking, query) for query, ranking in run.items()}


def longest(run: Mapping[str, Ranking]) -> int:
    """How many hits the query with the most of them has."""
    if isinstance(run, RunTable):
        return int(run.counts.max(initial=0))
    return max((len(ranking.ids) for ranking in run.values()), default=0)


def _without(ranking: Ranking, document: str) -> Ranking:
    if document not in ranking.ids:
        return ranking
    row = ranking.ids.index(document)
    keep = [*range(row), *range(row + 1, len(ranking.ids))]
    return Ranking([ranking.ids[other] for other in keep], ranking.scores[keep])


def _looked_up(number: Mapping[str, int], names: Sequence[str]) -> NDArray[np.int64]:
    return np.fromiter(map(number.get, names, repeat(-1)), np.int64, len(names))


def _refuse_misfits(
    queries: Sequence[str],
    starts: NDArray[np.int64],
    rows: NDArray[np.integer[Any]],
    scores: NDArray[np.floating[Any]],
    documents: int,
    place: str,
) -> None:
    if len(set(queries)) != len(queries):
        raise InputError(f"{place}: {len(queries):,} queries, {len(set(queries)):,} different ones; give each once")
    fits = starts.shape == (len(queries) + 1,) and starts[0] == 0 and (np.diff(starts) >= 0).all()
    if not fits or not len(rows) == len(scores) == starts[-1]:
        raise InputError(
            f"{place}: {len(rows):,} documents and {len(scores):,} scores of {len(queries):,} queries do not fit "
            "together; expected q + 1 ascending starts from 0 to their number"
        )
    if len(rows) and not (0 <= rows.min() and rows.max() < min(documents, 2**31)):
        beyond = int(rows.max() if rows.max() >= documents else rows.min())
        raise InputError(f"{place}: document number {beyond}; expected 0 to {documents - 1:,}")


def _in_order(
    lines: NDArray[np.int64], rows: NDArray[np.int32], scores: NDArray[np.float32], ids: Sequence[str]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Rows and scores (h,) of each line in the order of trec_eval: score descending, then id descending."""
    together = lines[1:] == lines[:-1]
    if (together & (scores[1:] > scores[:-1])).any():
        order = np.lexsort((-scores, lines))
        rows, scores = rows[order], scores[order]
    equal = together & (scores[1:] == scores[:-1])
    if not equal.any():
        return rows, scores
    tied = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
    stretch = np.cumsum(np.append(True, ~equal))[tied]
    used, names = np.unique(rows[tied], return_inverse=True)
    texts = [ids[row] for row in used.tolist()]
    place = np.empty(len(texts), np.int64)  # among the ids, descending
    place[sorted(range(len(texts)), key=texts.__getitem__, reverse=True)] = np.arange(len(texts))
    order = tied[np.lexsort((place[names], stretch))]
    rows[tied], scores[tied] = rows[order], scores[order]
    return rows, scores
