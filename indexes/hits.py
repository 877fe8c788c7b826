"""Hits: rows and scores, the one top-k and the one tie rule."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_LAST = 0xFFFFFFFE
_FEW = 1024


class Hits(NamedTuple):
    """The best rows for each query, best first.

    Where fewer than k rows answer a query, the rest of its line is padded with row -1 and score -inf.
    """

    rows: NDArray[np.int64]
    """(q, k) row numbers."""
    scores: NDArray[np.float32]
    """(q, k) scores, higher is better."""


class Within(NamedTuple):
    """All rows for each query whose score is at least a limit, best first: those of query i from starts[i] on."""

    starts: NDArray[np.int64]
    """(q + 1,)"""
    rows: NDArray[np.int64]
    """(any,) row numbers."""
    scores: NDArray[np.float32]
    """(any,) scores."""

    @classmethod
    def of(
        cls, queries: int, lines: NDArray[np.int64], rows: NDArray[np.int64], scores: NDArray[np.float32]
    ) -> "Within":
        """Put pairs of a query and a row (any,) in order."""
        order = np.lexsort((rows, -scores, lines))
        return cls(np.searchsorted(lines[order], np.arange(queries + 1)), rows[order], scores[order])

    @classmethod
    def joined(cls, queries: int, parts: "list[tuple[int, Within]]") -> "Within":
        """Those of several parts, each with the number of its first row."""
        lines = [np.repeat(np.arange(queries), np.diff(part.starts)) for _, part in parts]
        rows = [part.rows + first for first, part in parts]
        scores = [part.scores for _, part in parts]
        empty = np.empty(0, np.int64)
        return cls.of(
            queries,
            np.concatenate([empty, *lines]),
            np.concatenate([empty, *rows]),
            np.concatenate([empty.astype(np.float32), *scores]),
        )


def top(scores: NDArray[np.floating[Any]], k: int, rows: NDArray[np.int64] | None = None) -> Hits:
    """Take the k best of each line: by score, descending; ties by row number, ascending. -inf never counts.

    Args:
        scores: (q, n), or (n,) for one query.
        k: How many; fewer columns than k are padded.
        rows: (q, n) or (n,) row numbers of the columns; without them a column is its own row number.

    Returns:
        Hits of shape (q, k).
    """
    if scores.ndim == 1:
        scores = scores[None]
    if rows is None:
        rows = np.arange(scores.shape[1], dtype=np.int64)
    if rows.shape != scores.shape:
        rows = np.broadcast_to(rows, scores.shape)
    if scores.shape[1] <= k and (scores[:, 1:] < scores[:, :-1]).all():
        return _padded(Hits(np.array(rows), scores.astype(np.float32)), k)  # they are in order already
    if scores.size > _FEW and scores.dtype == np.float32 and rows.max(initial=0) <= _LAST:
        return _padded(_top_by_keys(scores, rows, k), k)
    lines = np.arange(len(scores))[:, None]
    if scores.shape[1] > k:
        best = _best_columns(scores, k)
        scores, rows = scores[lines, best], rows[lines, best]
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return _padded(Hits(rows[lines, order], scores[lines, order].astype(np.float32, copy=False)), k)


def merge(parts: list[Hits], k: int) -> Hits:
    """Join hits over disjoint rows, each (q, any), to the k best."""
    rows = np.concatenate([part.rows for part in parts], axis=1)
    scores = np.concatenate([part.scores for part in parts], axis=1)
    return top(scores, k, rows)


def _top_by_keys(scores: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Hits:
    """The k best of each line: one integer of 64 bits holds a score and a row, and processors sort those fastest.

    Its upper half orders as scores do: the bits of positive numbers are in their order, those of negative ones in the
    opposite. Its lower half is the row, inverted.
    """
    bits = (scores + np.float32(0)).view(np.int32)  # without -0, which would come after 0
    ordered = np.where(bits < 0, ~bits, bits | np.int32(-(1 << 31))).view(np.uint32)
    keys = ordered.astype(np.uint64) << np.uint64(32) | (_LAST - rows).astype(np.uint64)
    if keys.shape[1] > k:
        keys = np.partition(keys, keys.shape[1] - k, axis=1)[:, keys.shape[1] - k :]
    keys = np.sort(keys, axis=1)[:, ::-1]
    bits = (keys >> np.uint64(32)).astype(np.uint32).view(np.int32)
    found = np.where(bits < 0, bits & np.int32(0x7FFFFFFF), ~bits).view(np.float32)
    return Hits(_LAST - (keys & np.uint64(0xFFFFFFFF)).astype(np.int64), found)


def _best_columns(scores: NDArray[np.floating[Any]], k: int) -> NDArray[np.int64]:
    """Columns (q, ≥ k) that hold the k best of each line and everything that equals the k-th best."""
    n = scores.shape[1]
    best = np.argpartition(scores, n - k, axis=1)[:, n - k :]  # (q, k), chosen by chance among equals at the border
    border = np.take_along_axis(scores, best, axis=1).min(axis=1, keepdims=True)  # (q, 1)
    width = int((scores >= border).sum(axis=1).max(initial=k))
    return best if width == k else np.argsort(-scores, axis=1, kind="stable")[:, :width]


def _padded(found: Hits, k: int) -> Hits:
    missing = k - found.rows.shape[1]
    if missing <= 0 and (not found.scores.size or found.scores.min() > -np.inf):
        return found
    fill = np.full((len(found.rows), max(missing, 0)), -np.inf, np.float32)
    scores = np.concatenate([found.scores, fill], axis=1)
    rows = np.concatenate([found.rows, np.full(fill.shape, -1)], axis=1)
    rows[np.isneginf(scores)] = -1
    return Hits(rows, scores)
