"""Exact search: the best rows of all, block by block in bounded memory, certified in float64."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexes.hits import Hits, merge, top
from indexes.products import Float64Products, Pairs, fastest
from indexes.targets import Chunk, Targets

_ROWS_AT_ONCE = 4096
_QUERIES_AT_ONCE = 512
_DENSE = 1 / 16
_PENDING = 4
_TIED = 32


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
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    groups = range(0, len(queries), _QUERIES_AT_ONCE)
    found = [_search(queries[first : first + _QUERIES_AT_ONCE], targets, k, keep) for first in groups]
    return Hits(*(np.concatenate(parts) for parts in zip(nothing(0, k), *found, strict=True)))


def _search(queries: NDArray[np.float32], targets: Targets, k: int, keep: NDArray[np.bool_] | None) -> Hits:
    count = len(targets.vectors) if keep is None else int(keep.sum())
    products = fastest(queries, targets.longest, count)
    best = _Best(queries, targets, k, products)
    for chunk in targets.chunks(_ROWS_AT_ONCE, keep):
        if np.isneginf(best.limits).any():
            best.add_all(chunk)
            continue
        pairs = products.above(chunk.rows, chunk.begins, best.limits)
        if len(pairs.lines) > _DENSE * len(queries) * len(chunk.numbers):
            best.add_all(chunk)
        else:
            best.add(pairs._replace(columns=chunk.numbers[pairs.columns]))
    return best.resolve()


class _Best:
    """The best targets of each query so far, by exact score, and those that may be among them.

    Attributes:
        limits: (q,) what the k-th best score is at least: who comes later must be above it.
    """

    def __init__(self, queries: NDArray[np.float32], targets: Targets, k: int, products: Float64Products) -> None:
        self.queries = queries
        self.targets = targets
        self.k = k
        self.products = products
        self.found = nothing(len(queries), k)
        self.limits = self.found.scores[:, -1]
        self.pending: list[Pairs] = []
        self.count = 0
        self.room = _PENDING * k * len(queries)

    def add_all(self, chunk: Chunk) -> None:
        """Score a whole chunk exactly."""
        scores = self.products.exact(chunk.rows, chunk.begins)
        better = scores > self.limits[:, None]
        if better.any():
            scores[~better] = -np.inf
            self._have(top(scores, min(self.k, len(chunk.numbers)), chunk.numbers))

    def add(self, pairs: Pairs) -> None:
        """Keep pairs in mind, their columns being targets' numbers; raise the limits when they are many."""
        if len(pairs.lines):
            self.pending.append(pairs)
            self.count += len(pairs.lines)
        if self.count > self.room:
            self._raise_limits()

    def resolve(self) -> Hits:
        """Score what is kept in mind."""
        self._raise_limits()
        self._score()
        return self.found

    def _have(self, hits: Hits) -> None:
        self.found = merge([self.found, hits], self.k)
        self.limits = np.maximum(self.limits, self.found.scores[:, -1])

    def _all(self) -> Pairs:
        parts: Any = zip(*self.pending, strict=True)
        return Pairs(*map(np.concatenate, parts))

    def _raise_limits(self) -> None:
        """Find the k-th largest of the lower bounds, and forget whose upper bound is below it."""
        if not self.count:
            return
        pairs = self._all()
        low = _table(len(self.queries), pairs.lines, pairs.low, -np.inf)
        low = np.concatenate([self.found.scores, low], axis=1)
        self.limits = np.maximum(self.limits, np.partition(low, -self.k, axis=1)[:, -self.k])
        near = pairs.high >= self.limits[pairs.lines]
        parts: Any = (part[near] for part in pairs)
        self.pending = [Pairs(*parts)]
        self.count = int(near.sum())
        if self.count > _TIED * self.k * len(self.queries):  # whom bounds cannot tell apart
            self._score()
        self.room = max(_PENDING * self.k * len(self.queries), 2 * self.count)

    def _score(self) -> None:
        if self.count:
            pairs = self._all()
            self.pending, self.count = [], 0
            numbers = _table(len(self.queries), pairs.lines, pairs.columns, -1)
            self._have(Hits(numbers, self.targets.scores(self.queries, numbers)))


def _table(count: int, lines: NDArray[np.int64], values: NDArray[Any], fill: float) -> NDArray[Any]:
    """The values of each line (count, longest), in their order, filled up."""
    order = np.argsort(lines.astype(np.uint16), kind="stable")  # (by radix, which is for 16 bits)
    lines, values = lines[order], values[order]
    begins = np.searchsorted(lines, np.arange(count + 1))
    table = np.full((count, int(np.diff(begins).max())), fill, dtype=values.dtype)
    table[lines, np.arange(len(lines)) - begins[lines]] = values
    return table


def nothing(queries: int, k: int) -> Hits:
    """No hits, (q, k)."""
    return Hits(np.full((queries, k), -1, np.int64), np.full((queries, k), -np.inf, np.float32))
