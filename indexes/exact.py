"""Exact search: inner products against every row, block by block, in bounded memory."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from indexes.hits import Hits, merge, top

_SLAB = 2048
_QUERIES_AT_ONCE = 512


def search_exact(queries: NDArray[np.float32], blocks: Iterable[tuple[int, NDArray[np.float32]]], k: int) -> Hits:
    """Find the k rows of the largest inner product for each query.

    Args:
        queries: (q, d) float32.
        blocks: (first row, (rows, d)) blocks that together hold every row once, such as `VectorStore.blocks()`.
        k: Hits for each query.

    Returns:
        Hits (q, k). At any time the scores of one block with at most 512 queries are in memory.
    """
    found = Hits(np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32))
    for first, block in blocks:
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            some = slice(start, start + _QUERIES_AT_ONCE)
            here = top(_inner_products(queries[some], block), min(k, len(block)))
            before = Hits(found.rows[some], found.scores[some])
            found.rows[some], found.scores[some] = merge([before, Hits(here.rows + first, here.scores)], k)
    return found


def _inner_products(queries: NDArray[np.float32], block: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores (q, rows) of a block, a cache-sized slab at a time.

    Rows inside a FAISS file do not lie at a multiple of 4 bytes, so that numpy copies them before it multiplies: a
    slab's copy stays in the cache, a block's would go through memory twice more.
    """
    scores = np.empty((len(queries), len(block)), dtype=np.float32)
    for start in range(0, len(block), _SLAB):
        slab = np.require(block[start : start + _SLAB], np.float32, ["ALIGNED"])
        scores[:, start : start + _SLAB] = queries @ slab.T
    return scores


class ScoreMoments:
    """Mean and deviation of a query's inner products with all rows, exactly, without computing them.

    The scores of query x over n rows v are x·v; their mean is x·m and their mean square is xᵀ S x, with
    m = Σ v / n (d,) and S = Σ v vᵀ / n (d, d). So fusion can standardise scores "over the whole collection" at the
    price of one d × d product a query, whatever n is and whatever index answers.
    """

    def __init__(self, mean: NDArray[np.float64], second: NDArray[np.float64]) -> None:
        self.mean = mean
        self.second = second

    @classmethod
    def of(cls, blocks: Iterable[tuple[int, NDArray[np.float32]]], dim: int) -> "ScoreMoments":
        """Sum the moments of all rows in float64."""
        n, mean, second = 0, np.zeros(dim), np.zeros((dim, dim))
        for _, block in blocks:
            rows = np.asarray(block, dtype=np.float64)
            n, mean, second = n + len(rows), mean + rows.sum(axis=0), second + rows.T @ rows
        return cls(mean / max(n, 1), second / max(n, 1))

    def of_scores(self, queries: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean (q,) and standard deviation (q,) of each query's scores over all rows."""
        exact = queries.astype(np.float64)
        mean = exact @ self.mean
        square = np.einsum("qd,de,qe->q", exact, self.second, exact, optimize=True)
        return mean, np.sqrt(np.maximum(square - mean**2, 0.0))
