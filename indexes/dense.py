"""The dense part of several segments, searched as one: best of all, all above a limit, scores of chosen rows."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from indexes.efforts import Effort
from indexes.exact import nothing, search_exact, search_within
from indexes.hits import Hits, Within, merge
from indexes.segments import Segment


class Dense(Protocol):
    """What searches the vectors of a generation, in this process or in others; queries (q, d) were checked before."""

    def search(self, queries: NDArray[np.float32], k: int, keep: NDArray[np.bool_] | None, effort: Effort) -> Hits:
        """The best k of the documents to keep (n,), None being all, or as many as there are: (q, at most k)."""
        ...

    def within(self, queries: NDArray[np.float32], least: float, keep: NDArray[np.bool_] | None) -> Within:
        """All documents to keep whose score is at least so much."""
        ...

    def scores(self, queries: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Exact scores of each query with its own documents, by row (q, m); -inf where a row is -1."""
        ...


class LocalDense:
    """Searches segments in this process, one after the other; see `Dense`.

    Args:
        segments: In the order of their rows.
        device: A torch device that searches; None: the processor.
    """

    def __init__(self, segments: Sequence[Segment], device: Any = None) -> None:
        if device is not None:
            for segment in segments:
                segment.move_to(device)
        self._segments = segments
        self._starts = list(itertools.accumulate(map(len, segments), initial=0))

    def search(self, queries: NDArray[np.float32], k: int, keep: NDArray[np.bool_] | None, effort: Effort) -> Hits:
        """The best k of the documents to keep (n,), None being all, or as many as there are: (q, at most k)."""
        if len(self._segments) == 1 and keep is None:
            return self._segments[0].search(queries, min(k, self._starts[-1]), None, effort)
        found, count = [], 0
        for first, segment, some in self._parts(keep):
            here = len(segment) if some is None else int(np.count_nonzero(some))
            count += here
            if here:
                rows, scores = segment.search(queries, min(k, here), some, effort)
                found.append(Hits(np.where(rows < 0, -1, rows + first) if first else rows, scores))
        if len(found) == 1:
            return found[0]
        return merge(found, min(k, count)) if found else nothing(len(queries), 0)

    def exact(self, queries: NDArray[np.float32], k: int, keep: NDArray[np.bool_] | None) -> Hits:
        """The best k by exact search over the raw vectors, whatever FAISS indexes there are: what recall is told by."""
        found = [nothing(len(queries), k)]
        for first, segment, some in self._parts(keep):
            rows, scores = search_exact(queries, segment.targets, k, keep=some)
            found.append(Hits(np.where(rows < 0, -1, rows + first), scores))
        return merge(found, k)

    def within(self, queries: NDArray[np.float32], least: float, keep: NDArray[np.bool_] | None) -> Within:
        """All documents to keep whose score is at least so much."""
        parts = [
            (first, search_within(queries, one.targets, least, keep=some)) for first, one, some in self._parts(keep)
        ]
        return Within.joined(len(queries), parts)

    def scores(self, queries: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Exact scores of each query with its own documents, by row (q, m); -inf where a row is -1."""
        if len(self._segments) == 1:
            return self._segments[0].targets.scores(queries, rows)
        out = np.full(rows.shape, -np.inf, np.float32)
        for first, segment, _ in self._parts(None):
            here = (first <= rows) & (rows < first + len(segment))
            if here.any():
                np.maximum(out, segment.targets.scores(queries, np.where(here, rows - first, -1)), out=out)
        return out

    def _parts(self, keep: NDArray[np.bool_] | None) -> Iterator[tuple[int, Segment, NDArray[np.bool_] | None]]:
        """The first row of each segment, it, and which of its documents to keep."""
        for first, last, segment in zip(self._starts, self._starts[1:], self._segments, strict=False):
            yield first, segment, None if keep is None else keep[first:last]
