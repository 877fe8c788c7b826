"""The mean and the deviation of a query's scores over a whole collection, without computing the scores."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


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
