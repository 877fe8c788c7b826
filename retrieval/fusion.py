"""Fusion of dense and lexical rankings: z-scores, min-max or sums, exact over the whole collection, reciprocal ranks.

The lexical side is BM25, or the learned weights of a sparse encoder wherever BM25 is named below.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InputError
from indexes.hits import Hits, top
from indexes.postings import Terms
from indexes.reader import Reader

WEIGHT = 0.5
"""Weight of BM25's z-score beside the dense one's 1; half of it did best over eight public test collections."""
MIN_MAX_WEIGHT = 0.25
"""Weight of BM25's min-max beside the dense one's 1: α = 0.8 of the paper."""
RRF_K = 60
"""The constant of reciprocal rank fusion in Cormack, Clarke and Büttcher (SIGIR 2009)."""
RRF_DEPTH = 1000


class Scale(NamedTuple):
    """How one side's scores of one query are made comparable with the other's: (s - offset) / unit."""

    offset: float
    unit: float

    def of(self, scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Scores on this scale; 0 for all where a query does not tell documents apart (unit 0)."""
        exact = np.asarray(scores, dtype=np.float64)
        return (exact - self.offset) / self.unit if self.unit > 0 else np.zeros_like(exact)


def reciprocal_ranks(ranks: NDArray[np.int64], k: int = RRF_K) -> NDArray[np.float64]:
    """1 / (k + rank), ranks from 1; Cormack, Clarke and Büttcher (SIGIR 2009)."""
    return 1.0 / (k + ranks)


def search_z_scores(
    reader: Reader,
    queries: NDArray[np.float32],
    terms: Sequence[Terms],
    k: int,
    weight: float = WEIGHT,
    keep: NDArray[np.bool_] | None = None,
) -> Hits:
    """Rank by z(dense) + weight · z(BM25), mean and deviation of each taken over all documents of the index.

    Where the index holds passages, dense mean and deviation are those of all passages' scores, while a document's
    score is its best passage's: most documents then lie above the mean. For one query that is still one and the same
    increasing affine map of every document's score, so that the ranking is as well defined.

    Args:
        reader: An index with a BM25 part.
        queries: (q, d) vectors.
        terms: The same queries' terms.
        k: Hits for each query, at most the number of documents to keep.
        weight: Of BM25's z-score.
        keep: (n,) which documents may be hits; None: all. Scores are those of the search among all.

    Returns:
        Hits (q, k), exact over an exact index: see `search_scaled`.
    """
    means, deviations = reader.moments.of_scores(queries)
    dense = [Scale(*both) for both in zip(means.tolist(), deviations.tolist(), strict=True)]

    def lexical(scores: NDArray[np.float64]) -> Scale:
        return Scale(float(scores.mean()), float(scores.std()))

    return search_scaled(reader, queries, terms, k, dense, lexical, weight, keep)


def search_min_max(
    reader: Reader,
    queries: NDArray[np.float32],
    terms: Sequence[Terms],
    k: int,
    weight: float = MIN_MAX_WEIGHT,
    keep: NDArray[np.bool_] | None = None,
) -> Hits:
    """Rank by m(dense) + weight · m(BM25), where m maps the least possible score to 0 and the best document's to 1.

    The least cosine is -1, the least BM25 score 0, whatever was found: so the ranking does not depend on how many
    candidates were fetched, as it does where the least of them is mapped to 0. A weight w is α / (1 - α) turned
    round: w = (1 - α) / α for the convex combination α · dense + (1 - α) · BM25.

    Args: as `search_z_scores`.

    Raises:
        InputError: The index compares inner products, which have no least value.

    Source: TM2C2 in Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval" (TOIS 2023).
    """
    if reader.metric != "cosine":
        raise InputError(
            f"{reader.folder} compares inner products, which have no least value to scale from; fuse by zscore or rrf"
        )
    best = reader.search(queries, 1).scores
    dense = [Scale(-1.0, float(one.max(initial=-1.0)) + 1.0) for one in best]
    return search_scaled(reader, queries, terms, k, dense, lambda scores: Scale(0.0, scores.max()), weight, keep)


def search_sums(
    reader: Reader,
    queries: NDArray[np.float32],
    terms: Sequence[Terms],
    k: int,
    weight: float = 1.0,
    keep: NDArray[np.bool_] | None = None,
) -> Hits:
    """Rank by dense + weight · lexical, as they are: for learned weights that were trained to be added to dense scores.

    Args: as `search_z_scores`; the terms are {term: weight} for an index of learned weights.

    Source: the hybrid score of DupMAE, Xiao, Liu, Shao and Cao, "RetroMAE-2" (ACL 2023).
    """
    plain = Scale(0.0, 1.0)
    return search_scaled(reader, queries, terms, k, [plain] * len(queries), lambda scores: plain, weight, keep)


def search_scaled(
    reader: Reader,
    queries: NDArray[np.float32],
    terms: Sequence[Terms],
    k: int,
    dense_scales: Sequence[Scale],
    lexical_scale: Callable[[NDArray[np.float64]], Scale],
    weight: float,
    keep: NDArray[np.bool_] | None,
) -> Hits:
    """Rank by the sum of both sides' scores, each on a scale of its own.

    Exact over an exact index: no document can be missed. Candidates are the best of both rankings to some depth;
    whatever lies below has at most the last candidates' scores, and if that bound does not fall below the k-th fused
    score, the depth grows (Fagin's threshold algorithm). Over an approximate index the dense bound is what it found.

    Args:
        reader: An index with a BM25 part.
        queries: (q, d) vectors.
        terms: The same queries' terms.
        k: Hits for each query, at most the number of documents to keep.
        dense_scales: Of each query's dense scores.
        lexical_scale: Gives that of a query's BM25 scores from those of all documents that live.
        weight: Of BM25.
        keep: (n,) which documents may be hits; None: all.

    Returns:
        Hits (q, k).
    """
    found = Hits(np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32))
    open_queries = np.arange(len(queries))
    count = len(reader) if keep is None else int(np.count_nonzero(keep))
    depth = min(count, max(4 * k, 100))
    while open_queries.size:
        dense = reader.search(queries[open_queries], depth, filter=keep)
        again = []
        for query, rows, scores in zip(open_queries.tolist(), dense.rows, dense.scores, strict=True):
            lexical = _lexical_scores(reader, terms[query])
            scale = lexical_scale(lexical if reader.live is None else lexical[reader.live])
            one, certain = _fuse_one(
                reader, queries[query], lexical, Hits(rows, scores), (dense_scales[query], scale), k, weight, keep
            )
            found.rows[query], found.scores[query] = one.rows[0], one.scores[0]
            if not certain:
                again.append(query)
        open_queries = np.asarray(again, dtype=np.int64)
        depth = min(count, 4 * depth)
    return found


def search_reciprocal_ranks(
    reader: Reader,
    queries: NDArray[np.float32],
    terms: Sequence[Terms],
    k: int,
    weight: float = 1.0,
    keep: NDArray[np.bool_] | None = None,
) -> Hits:
    """Rank by 1/(60 + dense rank) + weight/(60 + BM25 rank), each ranking cut at 1,000 (or k, if that is more).

    With documents to keep (n,), ranks are those among them.
    """
    depth = min(len(reader) if keep is None else int(np.count_nonzero(keep)), max(RRF_DEPTH, k))
    assert reader.lexical is not None  # noqa: S101 - the retriever offers this mode only with a BM25 part
    dense, lexical = reader.search(queries, depth, filter=keep), reader.lexical.search(terms, depth, keep)
    gains = reciprocal_ranks(np.arange(1, depth + 1))
    found = []
    for dense_rows, lexical_rows in zip(dense.rows, lexical.rows, strict=True):
        total = np.zeros(reader.rows + 1)  # the last place takes the padding, row -1
        total[dense_rows] += gains
        total[lexical_rows] += weight * gains
        rows = np.union1d(dense_rows, lexical_rows)
        rows = rows[rows >= 0]
        found.append(top(total[rows].astype(np.float32), k, rows))
    return Hits(np.concatenate([one.rows for one in found]), np.concatenate([one.scores for one in found]))


def _fuse_one(
    reader: Reader,
    query: NDArray[np.float32],
    lexical: NDArray[np.float64],
    dense: Hits,
    scales: tuple[Scale, Scale],
    k: int,
    weight: float,
    keep: NDArray[np.bool_] | None,
) -> tuple[Hits, bool]:
    """Fuse one query's candidates; and say whether no document outside them can belong to the k best.

    A document outside has at most the dense score of the last dense candidate and the BM25 score of the last lexical
    one. If their fused score equals the k-th best, such a document could still come before it by its row.
    """
    depth = len(dense.rows)
    allowed = lexical if keep is None else np.where(keep, lexical, -np.inf)
    best_lexical = np.argpartition(-allowed, depth - 1)[:depth]
    rows = np.union1d(dense.rows[dense.rows >= 0], best_lexical)
    for_dense, for_lexical = scales
    exact = reader.scores(query[None], rows[None])[0]
    fused = for_dense.of(exact) + weight * for_lexical.of(lexical[rows])
    best = top(fused, k, rows)
    if depth == (len(reader) if keep is None else np.count_nonzero(keep)):
        return best, True
    last = for_dense.of(dense.scores[-1:])[0] + weight * for_lexical.of(lexical[best_lexical].min(keepdims=True))[0]
    return best, bool(np.partition(fused, -k)[-k] > last)


def _lexical_scores(reader: Reader, terms: Terms) -> NDArray[np.float64]:
    assert reader.lexical is not None  # noqa: S101 - the retriever offers this mode only with a BM25 part
    return reader.lexical.scores(terms).astype(np.float64)
