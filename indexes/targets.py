"""What is searched: the rows of a matrix, or documents of several neighbouring rows, and their exact scores."""

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_GATHERED = 1 << 17


class Chunk(NamedTuple):
    """Some targets and their rows, valid until the next chunk."""

    numbers: NDArray[np.int64]
    """(m,) the targets' numbers, ascending."""
    rows: NDArray[np.float32]
    """(r, d) their rows, aligned."""
    begins: NDArray[np.int64] | None
    """(m,) where each target's rows begin in `rows`; None: each target is one row."""


class Scratch:
    """Memory that is used again and again.

    Arrays of some megabytes, made anew for every block, can cost the system more time (it clears their pages) than what
    is done with them.
    """

    def __init__(self, dtype: Any) -> None:
        self.flat = np.empty(0, dtype)

    def array(self, *shape: int) -> NDArray[Any]:
        """An array of a shape, holding anything; it is valid until the next is asked for."""
        size = math.prod(shape)
        if size > len(self.flat):
            self.flat = np.empty(size, self.flat.dtype)
        return self.flat[:size].reshape(shape)


class Targets:
    """n targets over a matrix: its rows, or documents of neighbouring rows, whose best row's score counts.

    A score is the inner product in float64, rounded to float32. How many rows or queries are computed together, in
    which file they lie and on what machine shows at most where float64's own rounding decides float32's: about once in
    ten million scores, or where the terms of a product cancel out almost entirely.

    Args:
        vectors: (r, d) float32, such as a memory map, aligned or not.
        starts: (n + 1,) int64: the row where each document begins, and r; None: each row is a target, n = r.
    """

    def __init__(self, vectors: NDArray[np.float32], starts: NDArray[np.int64] | None = None) -> None:
        self.vectors = vectors
        self.starts = starts

    def __len__(self) -> int:
        return len(self.vectors) if self.starts is None else len(self.starts) - 1

    @cached_property
    def bytes(self) -> NDArray[np.uint8]:
        """The rows as bytes."""
        return (self.vectors if self.vectors.flags.c_contiguous else np.ascontiguousarray(self.vectors)).view(np.uint8)

    @cached_property
    def longest(self) -> float:
        """The length of the longest row, rounded up; all rows are read for it, once."""
        squares = [0.0]
        for chunk in Targets(self.vectors).chunks(4096):
            squares.append(float(np.einsum("rd,rd->r", chunk.rows, chunk.rows).max()))
        lost = self.vectors.shape[1] * 2.0**-126  # by squares that are too small for float32
        return float(np.sqrt(max(squares) + lost)) * (1 + 1e-4)

    def chunks(self, most: int, keep: NDArray[np.bool_] | None = None) -> Iterator[Chunk]:
        """All targets in order, of at most so many rows at a time (or of one longer document).

        Args:
            most: Rows. Those inside a FAISS file do not lie at a multiple of 4 bytes and are copied before they can be
                multiplied; a few thousand stay in the processor's cache.
            keep: (n,) which targets are wanted; None: all.
        """
        scratch = Scratch(np.float32)
        if keep is not None:
            yield from self._chunks_of(np.flatnonzero(keep), most, scratch)
        elif self.starts is None:
            for first in range(0, len(self.vectors), most):
                rows = self._aligned(first, min(first + most, len(self)), scratch)
                yield Chunk(np.arange(first, first + len(rows)), rows, None)
        else:
            for first, last in _runs(self.starts, most):
                rows = self._aligned(int(self.starts[first]), int(self.starts[last]), scratch)
                yield Chunk(np.arange(first, last), rows, self.starts[first:last] - self.starts[first])

    def _aligned(self, first: int, last: int, scratch: Scratch) -> NDArray[np.float32]:
        rows = self.vectors[first:last]
        if rows.flags.aligned and rows.flags.c_contiguous:
            return rows
        copy = scratch.array(*rows.shape)
        copy[:] = rows
        return copy

    def _chunks_of(self, numbers: NDArray[np.int64], most: int, scratch: Scratch) -> Iterator[Chunk]:
        if self.starts is None:
            for first in range(0, len(numbers), most):
                some = numbers[first : first + most]
                yield Chunk(some, self._taken(some, scratch), None)
        else:
            counts = self.starts[numbers + 1] - self.starts[numbers]
            for first, last in _runs(np.concatenate([[0], np.cumsum(counts)]), most):
                some = numbers[first:last]
                rows, begins = self.rows_of(some)
                yield Chunk(some, self._taken(rows, scratch), begins)

    def rows_of(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The row numbers (r,) of some documents (m,), and where each document's begin (m,) among them."""
        assert self.starts is not None  # noqa: S101 - only documents have several rows
        firsts = self.starts[numbers]
        counts = self.starts[numbers + 1] - firsts
        begins = np.cumsum(counts) - counts
        return np.repeat(firsts - begins, counts) + np.arange(counts.sum()), begins

    def _taken(self, rows: NDArray[np.int64], scratch: Scratch) -> NDArray[np.float32]:
        """Copies (…, d) of rows; -1 takes the last one."""
        taken = scratch.array(*rows.shape, self.vectors.shape[1])
        if len(self.vectors):
            # As bytes: of numbers that are not aligned numpy would first copy all there are.
            np.take(self.bytes, rows, axis=0, out=taken.view(np.uint8), mode="wrap")
        return taken

    def blocks(self, rows: int = 65_536) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield (first row, (≤ rows, d)) over the whole matrix."""
        for first in range(0, len(self.vectors), rows):
            yield first, self.vectors[first : first + rows]

    def rows(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Copies (m, d) of rows of the matrix."""
        return self._taken(numbers, Scratch(np.float32))

    def scores(self, queries: NDArray[np.float32], numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores of each query (q, d) with its own targets (q, m); -inf where a number is -1."""
        exact = queries.astype(np.float64)
        if self.starts is None and numbers.size * queries.shape[1] <= _GATHERED:
            near = np.take(self.bytes, numbers, axis=0, mode="wrap").view(np.float32)  # (q, m, d)
            return np.where(numbers < 0, -np.inf, np.vecdot(near, exact[:, None])).astype(np.float32)
        if self.starts is None:
            scratch = Scratch(np.float32)
            out = np.full(numbers.shape, -np.inf, dtype=np.float32)
            step = max(1, _GATHERED // max(numbers.shape[1] * queries.shape[1], 1))
            for first in range(0, len(queries), step):
                some = slice(first, first + step)
                near = self._taken(numbers[some], scratch)  # (s, m, d)
                scores = np.vecdot(near, exact[some, None])  # in float64, without a copy of the rows in it
                np.copyto(out[some], scores, where=numbers[some] >= 0, casting="same_kind")
            return out
        out = np.full(numbers.shape, -np.inf, dtype=np.float32)
        lines, columns = np.nonzero(numbers >= 0)
        out[lines, columns] = self.scores_of_pairs(exact, lines, numbers[lines, columns])
        return out

    def scores_of_pairs(
        self, queries: NDArray[np.float64], lines: NDArray[np.int64], numbers: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Scores (p,) of the queries (q, d) of some lines (p,), ascending, with targets (p,)."""
        scratch = Scratch(np.float32)
        out = np.empty(len(lines), dtype=np.float32)
        begins = np.searchsorted(lines, np.arange(len(queries) + 1))
        step = max(1, _GATHERED // self.vectors.shape[1])
        for query, begin, end in zip(queries, begins[:-1].tolist(), begins[1:].tolist(), strict=True):
            for first in range(begin, end, step):
                some = slice(first, min(first + step, end))
                rows, starts = (numbers[some], None) if self.starts is None else self.rows_of(numbers[some])
                out[some] = best_of(self._taken(rows, scratch).astype(np.float64) @ query, starts)
        return out


def best_of(products: NDArray[np.floating[Any]], begins: NDArray[np.int64] | None) -> NDArray[np.floating[Any]]:
    """The targets' scores (…, m) from their rows' (…, r): the largest of each target's."""
    return products if begins is None else np.maximum.reduceat(products, begins, axis=-1)


def _runs(starts: NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Part documents into runs of at most so many rows, or of one longer document."""
    first, end = 0, len(starts) - 1
    while first < end:
        last = int(np.searchsorted(starts, starts[first] + most, side="right")) - 1
        last = min(max(last, first + 1), end)
        yield first, last
        first = last
