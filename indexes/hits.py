"""Hits: rows and scores, the one top-k and the one tie rule."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Hits(NamedTuple):
    """The best rows for each query, best first.

    Where fewer than k rows answer a query, the rest of its line is padded with row -1 and score -inf.
    """

    rows: NDArray[np.int64]
    """(q, k) row numbers."""
    scores: NDArray[np.float32]
    """(q, k) scores, higher is better."""


def top(scores: NDArray[np.floating[Any]], k: int, rows: NDArray[np.int64] | None = None) -> Hits:
    """Take the k best of each line: by score, descending; ties by row number, ascending. -inf never counts.

    Args:
        scores: (q, n), or (n,) for one query.
        k: How many; fewer columns than k are padded.
        rows: (q, n) or (n,) row numbers of the columns; without them a column is its own row number.

    Returns:
        Hits of shape (q, k).
    """
    scores = np.atleast_2d(scores)  # (q, n)
    columns = np.arange(scores.shape[1], dtype=np.int64) if rows is None else rows
    rows = np.broadcast_to(columns, scores.shape)
    if scores.shape[1] > k:
        best = _best_columns(scores, k)
        scores, rows = np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    found = Hits(np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1))
    return _pad(found, k)


def merge(parts: list[Hits], k: int) -> Hits:
    """Join hits over disjoint rows, each (q, any), to the k best."""
    rows = np.concatenate([part.rows for part in parts], axis=1)
    scores = np.concatenate([part.scores for part in parts], axis=1)
    return top(scores, k, rows)


def _best_columns(scores: NDArray[np.floating[Any]], k: int) -> NDArray[np.int64]:
    """Columns (q, ≥ k) that hold the k best of each line and everything that equals the k-th best."""
    n = scores.shape[1]
    best = np.argpartition(scores, n - k, axis=1)[:, n - k :]  # (q, k), chosen by chance among equals at the border
    border = np.take_along_axis(scores, best, axis=1).min(axis=1, keepdims=True)  # (q, 1)
    width = int((scores >= border).sum(axis=1).max(initial=k))
    return best if width == k else np.argsort(-scores, axis=1, kind="stable")[:, :width]


def _pad(found: Hits, k: int) -> Hits:
    nothing = np.isneginf(found.scores)
    missing = max(k - found.rows.shape[1], 0)
    rows = np.pad(np.where(nothing, -1, found.rows), ((0, 0), (0, missing)), constant_values=-1)
    scores = np.pad(found.scores, ((0, 0), (0, missing)), constant_values=-np.inf)
    return Hits(rows, scores.astype(np.float32, copy=False))
