"""Inner products of queries with many rows at once: which may pass a limit, fast, with a bound of the error."""

import time
import warnings
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexes.targets import Scratch, best_of

_BFLOAT16 = np.float32(2.0**-8 * (1 + 2.0**-7))
_TINY = 1e-36
_GREATEST = 1e37
_BFLOAT16_QUERIES = 8
_BFLOAT16_PRODUCTS = 1 << 32
_PARTS = 16


class Pairs(NamedTuple):
    """Pairs of a query and a target, by query, then target, with bounds of their exact scores."""

    lines: NDArray[np.int64]
    columns: NDArray[np.int64]
    low: NDArray[np.float32]
    high: NDArray[np.float32]

    def where(self, chosen: NDArray[Any]) -> "Pairs":
        """Those at some places, or where a mask is true."""
        return Pairs(self.lines[chosen], self.columns[chosen], self.low[chosen], self.high[chosen])


class Float64Products:
    """Scores in float64, rounded to float32: the exact ones.

    Its subclasses leave out nearly all targets for certain by faster products.

    Args:
        queries: (q, d), contiguous.
    """

    def __init__(self, queries: NDArray[np.float32]) -> None:
        self.exact_queries = queries.astype(np.float64)

    def exact(
        self, rows: NDArray[np.float32], begins: NDArray[np.int64] | None, lines: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Scores (lines, m) of some queries with a chunk's rows (r, d), whose targets begin at `begins` (m,)."""
        return best_of(self.exact_queries[lines] @ rows.astype(np.float64).T, begins).astype(np.float32)

    def above(
        self, rows: NDArray[np.float32], begins: NDArray[np.int64] | None, limits: NDArray[np.float32], k: int
    ) -> Pairs:
        """All pairs whose exact score is above the query's limit (q,), and perhaps some more.

        Where a limit is -inf, none is known yet: then the k best of these targets are among the pairs.
        """
        scores = self.exact(rows, begins, np.arange(len(limits)))
        lines, columns, found = _above(scores, _first_limits(limits, scores, k, 0.0))
        return Pairs(lines, columns, found, found)


class Float32Products(Float64Products):
    """Scores by numpy's matrix product in float32.

    Args:
        queries: (q, d), contiguous.
        longest: No row is longer.
    """

    def __init__(self, queries: NDArray[np.float32], longest: float) -> None:
        super().__init__(queries)
        self.queries = queries
        self.slack = _rounded_up(float32_error(queries.shape[1]) * lengths(queries) * longest, longest)
        self.scores = Scratch(np.float32)

    def above(
        self, rows: NDArray[np.float32], begins: NDArray[np.int64] | None, limits: NDArray[np.float32], k: int
    ) -> Pairs:
        """All pairs whose exact score is above the query's limit (q,), and perhaps some more."""
        # Rows first: for 4 to 64 queries a third faster than queries first.
        scores = np.matmul(rows, self.queries.T, out=self.scores.array(len(rows), len(self.queries)))
        scores = best_of(scores.T, begins)
        lines, columns, near = _above(scores, _first_limits(limits, scores, k, self.slack) - self.slack)
        slack = self.slack[lines]
        return Pairs(lines, columns, near - slack, near + slack)


class Bfloat16Products(Float64Products):
    """Scores by torch's matrix product in bfloat16: twice as fast where the processor has it, but 200 times as far.

    All its products are torch's: threads of numpy's and of torch's would get in each other's way.

    Args:
        queries: (q, d), contiguous.
        longest: No row is longer.
    """

    def __init__(self, queries: NDArray[np.float32], longest: float) -> None:
        import torch

        super().__init__(queries)
        self.torch = torch
        self.queries = torch.from_numpy(queries).bfloat16()
        self.rows, self.scores = Scratch(np.int16), Scratch(np.int16)
        rounded = self.queries.float().numpy()
        moved = lengths(queries - rounded)
        self.slack = _rounded_up((moved + bfloat16_error(queries.shape[1]) * lengths(rounded)) * longest, longest)

    def exact(
        self, rows: NDArray[np.float32], begins: NDArray[np.int64] | None, lines: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Scores (lines, m) of some queries with a chunk's rows (r, d), whose targets begin at `begins` (m,)."""
        products = self.torch.from_numpy(self.exact_queries[lines]) @ self._tensor(rows).double().T
        return best_of(products.numpy(), begins).astype(np.float32)

    def above(
        self, rows: NDArray[np.float32], begins: NDArray[np.int64] | None, limits: NDArray[np.float32], k: int
    ) -> Pairs:
        """All pairs whose exact score is above the query's limit (q,), and perhaps some more."""
        near_rows = self._bfloat16(self.rows.array(*rows.shape)).copy_(self._tensor(rows))
        bits = self.scores.array(len(self.queries), len(rows))
        scores = self.torch.mm(self.queries, near_rows.T, out=self._bfloat16(bits))
        if np.isneginf(limits).any():
            limits = _first_limits(limits, best_of(scores.float().numpy(), begins), k, self.slack, _BFLOAT16)
        lowest = limits - self.slack
        lowest -= _BFLOAT16 * np.abs(lowest)  # the scores themselves are rounded
        if begins is None and lowest.min() > 0:
            # numpy has no bfloat16. But positive floating-point numbers are in the order of their bits, and the bits
            # of negative ones, read as integers, are below those; a limit's first 16 bits are the next one below it.
            lines, columns, some = _above(bits, (lowest.view(np.int32) >> 16).astype(np.int16))
            near = (some.astype(np.int32) << 16).view(np.float32)
        else:
            lines, columns, near = _above(best_of(scores.float().numpy(), begins), lowest)
        slack = (self.slack[lines] + _BFLOAT16 * np.abs(near)).astype(np.float32)
        return Pairs(lines, columns, near - slack, near + slack)

    def _tensor(self, rows: NDArray[np.float32]) -> Any:
        with warnings.catch_warnings():  # of maps that are read only: nothing is written here
            warnings.simplefilter("ignore")
            return self.torch.from_numpy(rows)

    def _bfloat16(self, bits: NDArray[np.int16]) -> Any:
        return self.torch.from_numpy(bits).view(self.torch.bfloat16)


def fastest(queries: NDArray[np.float32], longest: float, rows: int) -> Float64Products:
    """What multiplies so many rows of at most such a length fastest."""
    length = lengths(queries).max(initial=0.0)
    if max(longest, length, longest * length) > _GREATEST:
        return Float64Products(queries)
    much = len(queries) >= _BFLOAT16_QUERIES and queries.size * rows >= _BFLOAT16_PRODUCTS
    return (Bfloat16Products if much and bfloat16_pays() else Float32Products)(queries, longest)


@cache
def bfloat16_pays() -> bool:
    """Whether this processor multiplies bfloat16 matrices clearly faster than float32 ones, by trying both."""
    import torch

    def seconds(dtype: Any) -> float:
        matrix = torch.ones(1024, 1024, dtype=dtype)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            matrix @ matrix
            times.append(time.perf_counter() - start)
        return min(times)

    return seconds(torch.bfloat16) < 0.75 * seconds(torch.float32)


def float32_error(dim: int) -> float:
    """How far a float32 inner product may be from the exact one, rounded to float32: a share of |x||y|.

    γ = d u / (1 - d u) with u = 2^-24, whatever the order of summation; Higham, "Accuracy and Stability of Numerical
    Algorithms" (2002), equation 3.5. Four more roundings are those of the exact score and of what is done with bounds.
    """
    terms = (dim + 4) * 2.0**-24
    return terms / (1 - terms)


def bfloat16_error(dim: int) -> float:
    """The same of a product of rows rounded to bfloat16, summed in float32.

    Rounding moves each number, and so each row, by at most 2^-8 of itself. The processor adds products in pairs, which
    may round twice as often.
    """
    return (1 + float(_BFLOAT16)) * (1 + float32_error(2 * dim)) - 1


def lengths(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n,) of (n, d)."""
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))


def _rounded_up(slack: NDArray[np.float64], longest: float) -> NDArray[np.float32]:
    # Besides, processors may take numbers below 2^-126 for 0.
    return np.nextafter((slack + _TINY * (1 + longest)).astype(np.float32), np.float32(np.inf))


def _first_limits(
    limits: NDArray[np.float32], scores: NDArray[np.float32], k: int, slack: Any, share: Any = 0.0
) -> NDArray[np.float32]:
    """Limits (q,), where there are none yet just below what the k-th best of these scores (q, m) is at least.

    Which may be off. By a hair below, so that the k-th itself is above it.
    """
    unknown = np.isneginf(limits)
    if not unknown.any() or scores.shape[1] < k:
        return limits
    kth = _at_least_kth(scores, k)
    low = np.nextafter((kth - slack - share * np.abs(kth)).astype(np.float32), np.float32(-np.inf))
    return np.where(unknown, low, limits)


def _at_least_kth(scores: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """(q,) What the k-th best of each line's scores (q, m) is at least: of many, the k-th best of parts' best ones.

    k parts whose best scores are at least that hold k such scores. Of several parts for each of the k best, few share
    one; and the best of a part is found several times faster than the k-th best of all.
    """
    parts = _PARTS * k
    if scores.shape[1] >= 2 * parts:
        whole = scores.shape[1] // parts * parts
        scores = scores[:, :whole].reshape(len(scores), -1, parts).max(axis=1)
    return np.partition(scores, -k, axis=1)[:, -k]


def _above(scores: NDArray[Any], limits: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
    """Where scores (q, m) are above their line's limit (q,), by line, then column, and the scores there."""
    # Of flat arrays numpy finds the few that are true several times faster than of matrices.
    places = np.flatnonzero((scores > limits[:, None]).ravel())
    lines, columns = np.divmod(places, scores.shape[1])
    return lines, columns, scores[lines, columns]
