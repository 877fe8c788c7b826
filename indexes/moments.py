"""The mean and the deviation of a query's scores over a whole collection, without computing the scores."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexes.arrays import read_array


class ScoreMoments:
    """Mean and deviation of a query's inner products with all rows, exactly, without computing them.

    The scores of query x over n rows v are x·v; their mean is x·m and their mean square is xᵀ S x, with
    m = Σ v / n (d,) and S = Σ v vᵀ / n (d, d). So fusion can standardise scores "over the whole collection" at the
    price of one d × d product a query, whatever n is and whatever index answers.

    Args:
        sums: (1 + d, 1 + d) float64: Σ w wᵀ over the rows, where w is a row with a 1 before it; its corner is n.
    """

    def __init__(self, sums: NDArray[np.float64]) -> None:
        self.sums = sums

    @classmethod
    def of(cls, blocks: Iterable[tuple[int, NDArray[np.float32]]], dim: int) -> "ScoreMoments":
        """Sum over all rows in float64."""
        sums = np.zeros((1 + dim, 1 + dim))
        for _, block in blocks:
            rows = np.insert(block.astype(np.float64), 0, 1, axis=1)
            sums += rows.T @ rows
        return cls(sums)

    @classmethod
    def open(cls, path: Path) -> "ScoreMoments":
        """Read what `save` wrote."""
        return cls(read_array(path))

    def save(self, path: Path) -> None:
        """Write the sums to an `.npy` file."""
        np.save(path, self.sums, allow_pickle=False)

    @property
    def rows(self) -> int:
        """N."""
        return int(self.sums[0, 0])

    def __add__(self, other: "ScoreMoments") -> "ScoreMoments":
        return ScoreMoments(self.sums + other.sums)

    def __sub__(self, other: "ScoreMoments") -> "ScoreMoments":
        return ScoreMoments(self.sums - other.sums)

    def of_scores(self, queries: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean (q,) and standard deviation (q,) of each query's scores over all rows."""
        exact = queries.astype(np.float64)
        mean = exact @ self.sums[0, 1:] / max(self.rows, 1)
        square = np.einsum("qd,de,qe->q", exact, self.sums[1:, 1:], exact, optimize=True) / max(self.rows, 1)
        return mean, np.sqrt(np.maximum(square - mean**2, 0.0))
