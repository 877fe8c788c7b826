"""Scores of chosen documents of an index for a query, in each of the modes it can be searched in."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InputError
from indexes.hits import Hits
from indexes.postings import Terms
from indexes.reader import Reader
from retrieval.analyzer import Analyzer
from retrieval.fusion import Scale
from retrieval.retriever import FUSIONS, Retriever

FUSIONS_OF_SCORES = ("zscore", "minmax", "sum")
"""Those that give any document a score; reciprocal ranks need the whole ranking."""


class QueryScores:
    """Searches one generation of an index for some queries, and scores documents of choice for them.

    What is made of the queries is made once.

    Args:
        retriever: Its encoders, its fusion, and what its index shows.
        reader: The generation.
        queries: q texts.
    """

    def __init__(self, retriever: Retriever, reader: Reader, queries: Sequence[str]) -> None:
        self._retriever, self._reader = retriever, reader
        self.queries = queries
        self._made: dict[str, Any] = {}

    @property
    def vectors(self) -> NDArray[np.float32]:
        """Those of the queries, (q, d)."""
        if "vectors" not in self._made:
            self._made["vectors"] = self._reader.checked(self._retriever.encoder.encode_queries(self.queries))
        return self._made["vectors"]

    @property
    def terms(self) -> Sequence[Terms]:
        """Those of each query."""
        if "terms" not in self._made:
            made_by, sparse = self._reader.analyzer, self._retriever.sparse
            if isinstance(made_by, Mapping):
                assert sparse is not None  # noqa: S101 - else the mode would not be offered
                self._made["terms"] = sparse.encode_queries(self.queries)
            else:
                assert made_by is not None  # noqa: S101
                analyzer = Analyzer(made_by)
                self._made["terms"] = [analyzer.terms(text) for text in self.queries]
        return self._made["terms"]

    def search(self, mode: str, k: int) -> Hits:
        """The best k documents (q, min(k, n)), as the retriever finds them."""
        k = min(k, len(self._reader))
        if mode == "dense":
            return self._reader.search(self.vectors, k)
        if mode == "lexical":
            assert self._reader.lexical is not None  # noqa: S101
            return self._reader.lexical.search(self.terms, k, self._reader.live)
        fuse, _ = FUSIONS[self._retriever.fusion]
        return fuse(self._reader, self.vectors, self.terms, k, self._retriever.weight, self._reader.live)

    def of_rows(self, mode: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores (q, m) of each query's own documents, by row (q, m), as a search would give them; NaN for row -1.

        Raises:
            InputError: The mode is hybrid, and fuses by ranks.
        """
        if mode == "dense":
            scores = self._reader.scores(self.vectors, rows)
        elif mode == "lexical":
            scores = self._lexical(rows)
        elif self._retriever.fusion in FUSIONS_OF_SCORES:
            scores = self._fused(rows)
        else:
            refuse_ranks(self._retriever.fusion)
        return np.where(rows < 0, np.float32(np.nan), scores)

    def _lexical(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        assert self._reader.lexical is not None  # noqa: S101
        out = np.zeros(rows.shape, np.float32)
        for line in np.flatnonzero((rows >= 0).any(axis=1)).tolist():
            out[line] = self._reader.lexical.scores(self.terms[line])[rows[line]]
        return out

    def _fused(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The sums of both sides' scores on the scales of `retrieval.fusion`."""
        reader, weight = self._reader, self._retriever.weight
        assert reader.lexical is not None  # noqa: S101
        out = np.zeros(rows.shape, np.float32)
        lines = np.flatnonzero((rows >= 0).any(axis=1)).tolist()
        scales = self._dense_scales() if lines else []
        dense = reader.scores(self.vectors, rows) if lines else out
        for line in lines:
            there = rows[line] >= 0
            all_scores = reader.lexical.scores(self.terms[line]).astype(np.float64)
            scale = self._lexical_scale(all_scores if reader.live is None else all_scores[reader.live])
            some = all_scores[rows[line, there]]
            out[line, there] = scales[line].of(dense[line, there]) + weight * scale.of(some)
        return out

    def _dense_scales(self) -> list[Scale]:
        if self._retriever.fusion == "sum":
            return [Scale(0.0, 1.0)] * len(self.queries)
        if self._retriever.fusion == "minmax":
            best = self._reader.search(self.vectors, 1).scores
            return [Scale(-1.0, float(one.max(initial=-1.0)) + 1.0) for one in best]
        means, deviations = self._reader.moments.of_scores(self.vectors)
        return [Scale(*both) for both in zip(means.tolist(), deviations.tolist(), strict=True)]

    def _lexical_scale(self, scores: NDArray[np.float64]) -> Scale:
        if self._retriever.fusion == "sum":
            return Scale(0.0, 1.0)
        if self._retriever.fusion == "minmax":
            return Scale(0.0, float(scores.max()))
        return Scale(float(scores.mean()), float(scores.std()))


def refuse_ranks(fusion: str) -> None:
    """Refuse a fusion by ranks where scores of single documents are needed.

    Raises:
        InputError: It is one.
    """
    if fusion not in FUSIONS_OF_SCORES:
        raise InputError(
            f"fusion {fusion} gives scores to hits alone, and those of positives are needed; fuse by "
            f"{', '.join(FUSIONS_OF_SCORES)}"
        )


def padded(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Row numbers of each query side by side (q, longest), filled up with -1."""
    out = np.full((len(rows), max(map(len, rows), default=0)), -1, np.int64)
    for line, some in enumerate(rows):
        out[line, : len(some)] = some
    return out
