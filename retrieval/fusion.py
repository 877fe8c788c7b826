"""Fusion of dense and BM25 rankings: weighted z-scores (exact over the whole collection) and reciprocal ranks."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from indexes.hits import Hits, top
from indexes.reader import Reader

WEIGHT = 0.5
"""Weight of BM25's z-score beside the dense one's 1; half of it did best over eight public test collections."""
RRF_K = 60
"""The constant of reciprocal rank fusion in Cormack, Clarke and Büttcher (SIGIR 2009)."""
RRF_DEPTH = 1000


def z_score(scores: NDArray[np.float64], mean: float, deviation: float) -> NDArray[np.float64]:
    """(s - mean) / deviation; 0 for all where a query does not tell documents apart (deviation 0)."""
    return (scores - mean) / deviation if deviation > 0 else np.zeros_like(scores, dtype=np.float64)


def reciprocal_ranks(ranks: NDArray[np.int64], k: int = RRF_K) -> NDArray[np.float64]:
    """1 / (k + rank), ranks from 1; Cormack, Clarke and Büttcher (SIGIR 2009)."""
    return 1.0 / (k + ranks)


def search_z_scores(
    reader: Reader,
    queries: NDArray[np.float32],
    terms: Sequence[Sequence[str]],
    k: int,
    weight: float = WEIGHT,
    keep: NDArray[np.bool_] | None = None,
) -> Hits:
    """Rank by z(dense) + weight · z(BM25), mean and deviation of each taken over all documents of the index.

    Where the index holds passages, dense mean and deviation are those of all passages' scores, while a document's
    score is its best passage's: most documents then lie above the mean. For one query that is still one and the same
    increasing affine map of every document's score, so that the ranking is as well defined.

    Exact over an exact index: no document can be missed. Candidates are the best of both rankings to some depth;
    whatever lies below has at most the last candidates' scores, and if that bound does not fall below the k-th fused
    score, the depth grows (Fagin's threshold algorithm). Over an approximate index the dense bound is what it found.

    Args:
        reader: An index with a BM25 part.
        queries: (q, d) vectors.
        terms: The same queries' terms.
        k: Hits for each query, at most the number of documents to keep.
        weight: Of BM25's z-score.
        keep: (n,) which documents may be hits; None: all. Scores are those of the search among all.

    Returns:
        Hits (q, k).
    """
    means, deviations = reader.moments.of_scores(queries)
    found = Hits(np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32))
    open_queries = np.arange(len(queries))
    count = len(reader) if keep is None else int(np.count_nonzero(keep))
    depth = min(count, max(4 * k, 100))
    while open_queries.size:
        dense = reader.search(queries[open_queries], depth, filter=keep)
        again = []
        for query, rows, scores in zip(open_queries.tolist(), dense.rows, dense.scores, strict=True):
            one, certain = _fuse_one(
                reader,
                queries[query],
                _lexical_scores(reader, terms[query]),
                Hits(rows, scores),
                (float(means[query]), float(deviations[query])),
                k,
                weight,
                keep,
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
    terms: Sequence[Sequence[str]],
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
    moments: tuple[float, float],
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
    counted = lexical if reader.live is None else lexical[reader.live]
    mean, deviation = float(counted.mean()), float(counted.std())
    dense_z = z_score(reader.scores(query[None], rows[None])[0].astype(np.float64), *moments)
    fused = dense_z + weight * z_score(lexical[rows], mean, deviation)
    best = top(fused, k, rows)
    if depth == (len(reader) if keep is None else np.count_nonzero(keep)):
        return best, True
    last_dense = z_score(np.asarray([dense.scores[-1]], dtype=np.float64), *moments)[0]
    last_lexical = z_score(np.asarray([lexical[best_lexical].min()]), mean, deviation)[0]
    return best, bool(np.partition(fused, -k)[-k] > last_dense + weight * last_lexical)


def _lexical_scores(reader: Reader, terms: Sequence[str]) -> NDArray[np.float64]:
    assert reader.lexical is not None  # noqa: S101 - the retriever offers this mode only with a BM25 part
    return reader.lexical.scores(terms).astype(np.float64)
