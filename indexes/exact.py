"""Exact search: the best rows of all, block by block in bounded memory, certified in float64."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexes.hits import Hits, Within, merge, top
from indexes.products import Float64Products, Pairs, fastest
from indexes.targets import Chunk, Targets

_ROWS_AT_ONCE = 4096
_QUERIES_AT_ONCE = 512
_DENSE = 1 / 16
_PENDING = 4
_TIED = 4
_NEARLY_ALL = 0.8


def search_exact(
    queries: NDArray[np.float32],
    vectors: NDArray[np.float32] | Targets,
    k: int,
    *,
    keep: NDArray[np.bool_] | None = None,
) -> Hits:
    """Find the k targets of the largest inner product for each query.

    Fast products in bfloat16 or float32, whose error is bounded, leave out what cannot be among the k best; what is
    left is scored in float64. So the hits are those of float64 products at the price of the fastest ones.

    Args:
        queries: (q, d) float32, finite.
        vectors: (n, d) float32, finite, in memory or mapped; or targets of several rows each.
        k: Hits for each query.
        keep: (n,) which targets may be hits; None: all.

    Returns:
        Hits (q, k), ordered by score, then row; scores are float64 inner products rounded to float32. At any time the
        scores of 4,096 rows with at most 512 queries are in memory.
    """
    targets = vectors if isinstance(vectors, Targets) else Targets(vectors)
    queries = np.require(queries, np.float32, ("C", "W"))  # torch warns of arrays that cannot be written
    groups = range(0, len(queries), _QUERIES_AT_ONCE)
    found = [_search(queries[first : first + _QUERIES_AT_ONCE], targets, k, keep) for first in groups]
    return Hits(*(np.concatenate(parts) for parts in zip(nothing(0, k), *found, strict=True)))


def _search(queries: NDArray[np.float32], targets: Targets, k: int, keep: NDArray[np.bool_] | None) -> Hits:
    count = len(targets.vectors) if keep is None else int(keep.sum())
    products = fastest(queries, targets.longest, count)
    best = _Best(queries, targets, k, products)
    for chunk, left_out in _chunks(targets, keep):
        first = bool(np.isneginf(best.limits).any())
        if first and (left_out is not None or k > _DENSE * len(chunk.numbers)):
            best.add_all(chunk, np.arange(len(queries)), left_out)
            continue
        pairs = products.above(chunk.rows, chunk.begins, best.limits, k)
        dense = np.bincount(pairs.lines, minlength=len(queries)) > _DENSE * len(chunk.numbers)
        if dense.any():
            best.add_all(chunk, np.flatnonzero(dense), left_out)
            pairs = pairs.where(~dense[pairs.lines])
        if left_out is not None:
            pairs = pairs.where(~left_out[pairs.columns])
        best.add(pairs._replace(columns=chunk.numbers[pairs.columns]), at_once=first)
    return best.finish()


def _chunks(targets: Targets, keep: NDArray[np.bool_] | None) -> Iterator[tuple[Chunk, NDArray[np.bool_] | None]]:
    """Chunks of targets, and which of each (m,) are to be left out, if any.

    Where nearly all are kept, they are gone through as they lie: gathering the kept ones would take longer.
    """
    if keep is None or np.count_nonzero(keep) < _NEARLY_ALL * len(targets):
        yield from ((chunk, None) for chunk in targets.chunks(_ROWS_AT_ONCE, keep))
        return
    for chunk in targets.chunks(_ROWS_AT_ONCE):
        left_out = ~keep[chunk.numbers]
        yield chunk, left_out if left_out.any() else None


def search_within(
    queries: NDArray[np.float32], targets: Targets, least: float, *, keep: NDArray[np.bool_] | None = None
) -> Within:
    """Find all targets whose inner product with a query is at least so much: `search_exact` by score, not by number.

    Args:
        queries: (q, d) float32, finite.
        targets: n of them.
        least: The least score, finite; it is rounded to float32, as scores are.
        keep: (n,) which targets may be found; None: all.
    """
    queries = np.require(queries, np.float32, ("C", "W"))  # torch warns of arrays that cannot be written
    greatest = np.finfo(np.float32).max
    limit = np.nextafter(np.float32(np.clip(least, -greatest / 2, greatest)), np.float32(-np.inf))
    found = []
    for first in range(0, len(queries), _QUERIES_AT_ONCE):
        some = queries[first : first + _QUERIES_AT_ONCE]
        products = fastest(some, targets.longest, len(targets.vectors) if keep is None else int(keep.sum()))
        for chunk, left_out in _chunks(targets, keep):
            pairs = products.above(chunk.rows, chunk.begins, np.full(len(some), limit), 1)
            if left_out is not None:
                pairs = pairs.where(~left_out[pairs.columns])
            numbers = chunk.numbers[pairs.columns]
            scores = targets.scores_of_pairs(products.exact_queries, pairs.lines, numbers)
            enough = scores > limit
            found.append((pairs.lines[enough] + first, numbers[enough], scores[enough]))
    empty = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    lines, rows, scores = (np.concatenate(column) for column in zip(empty, *found, strict=True))
    return Within.of(len(queries), lines, rows, scores)


class _Best:
    """The best targets of each query so far, by exact score, and those that may be among them.

    Attributes:
        limits: (q,) what the k-th best score is at least: who comes later must be above it.
    """

    def __init__(self, queries: NDArray[np.float32], targets: Targets, k: int, products: Float64Products) -> None:
        self.targets = targets
        self.k = k
        self.products = products
        self.found = nothing(len(queries), k)
        self.limits = self.found.scores[:, -1]
        self.pending: list[Pairs] = []
        self.counts = np.zeros(len(queries), np.int64)
        self.least_room = _PENDING * k + _ROWS_AT_ONCE // 4  # of one query
        self.room, self.room_of_all = self.least_room, _PENDING * k * len(queries)

    def add_all(self, chunk: Chunk, lines: NDArray[np.int64], left_out: NDArray[np.bool_] | None) -> None:
        """Score a whole chunk exactly, for some queries, but for those targets (m,) that are left out."""
        scores = self.products.exact(chunk.rows, chunk.begins, lines)
        if left_out is not None:
            scores[:, left_out] = -np.inf
        better = scores > self.limits[lines, None]
        if better.any():
            scores[~better] = -np.inf
            self._have(lines, top(scores, min(self.k, len(chunk.numbers)), chunk.numbers))

    def add(self, pairs: Pairs, *, at_once: bool = False) -> None:
        """Keep pairs in mind, their columns being targets' numbers; raise the limits at once, or when they are many."""
        if len(pairs.lines):
            self.pending.append(pairs)
            self.counts += np.bincount(pairs.lines, minlength=len(self.counts))
        if at_once or self.counts.sum() > self.room_of_all or self.counts.max() > self.room:
            self._raise_limits()

    def finish(self) -> Hits:
        """Score what is kept in mind."""
        self._raise_limits()
        self._score()
        return self.found

    def _have(self, lines: NDArray[np.int64], hits: Hits) -> None:
        rows, scores = merge([Hits(self.found.rows[lines], self.found.scores[lines]), hits], self.k)
        self.found.rows[lines], self.found.scores[lines] = rows, scores
        self.limits = np.maximum(self.limits, self.found.scores[:, -1])

    def _sorted(self) -> Pairs:
        """What is kept in mind, by line."""
        parts: Any = zip(*self.pending, strict=True)
        pairs = Pairs(*map(np.concatenate, parts))
        return pairs.where(np.argsort(pairs.lines.astype(np.uint16), kind="stable"))  # by radix, which is for 16 bits

    def _raise_limits(self) -> None:
        """Find the k-th largest of the lower bounds, and forget whose upper bound is below it."""
        if not self.pending:
            return
        pairs = self._sorted()
        low = np.concatenate([self.found.scores, _table(len(self.counts), pairs.lines, pairs.low, -np.inf)], axis=1)
        self.limits = np.maximum(self.limits, np.partition(low, -self.k, axis=1)[:, -self.k])
        pairs = pairs.where(pairs.high >= self.limits[pairs.lines])
        self.pending = [pairs]
        self.counts = np.bincount(pairs.lines, minlength=len(self.counts))
        if self.counts.max() > _TIED * self.least_room:  # whom bounds cannot tell apart
            self._score()
        self.room = max(self.least_room, 2 * int(self.counts.max()))
        self.room_of_all = max(_PENDING * self.k * len(self.counts), 2 * int(self.counts.sum()))

    def _score(self) -> None:
        if not self.pending:
            return
        lines, numbers, _, _ = self._sorted()
        scores = self.targets.scores_of_pairs(self.products.exact_queries, lines, numbers)
        self.pending = []
        self.counts[:] = 0
        best = Hits(_table(len(self.counts), lines, numbers, -1), _table(len(self.counts), lines, scores, -np.inf))
        self._have(np.arange(len(self.counts)), best)


def _table(count: int, lines: NDArray[np.int64], values: NDArray[Any], fill: float) -> NDArray[Any]:
    """The values of each line, which ascend, side by side (count, longest), filled up."""
    begins = np.searchsorted(lines, np.arange(count + 1))
    table = np.full((count, int(np.diff(begins).max())), fill, dtype=values.dtype)
    table[lines, np.arange(len(lines)) - begins[lines]] = values
    return table


def nothing(queries: int, k: int) -> Hits:
    """No hits, (q, k)."""
    return Hits(np.full((queries, k), -1, np.int64), np.full((queries, k), -np.inf, np.float32))
