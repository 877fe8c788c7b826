"""BM25 over lists of terms, by bm25s; knows nothing of how texts become terms."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import bm25s
import numpy as np
from bm25s.tokenization import Tokenized
from numpy.typing import NDArray

from indexes.errors import InputError
from indexes.hits import Hits, top

K1 = 0.9
B = 0.4


class Lexical:
    """A BM25 index: Lucene's variant, every term's weight computed when the index is built.

    Defaults k1 = 0.9 and b = 0.4 are Anserini's for passages (bm25s' own are 1.5 and 0.75): a published BM25 figure
    means little without them.
    """

    def __init__(self, scorer: bm25s.BM25) -> None:
        self._scorer = scorer
        self.rows = int(scorer.scores["num_docs"])
        self.k1 = float(scorer.k1)
        self.b = float(scorer.b)

    @classmethod
    def build(cls, terms: Iterable[Sequence[str]], *, k1: float = K1, b: float = B) -> "Lexical":
        """Index the terms of each document, in row order.

        Raises:
            InputError: No document holds any term, or k1 or b is out of range.
        """
        if k1 < 0 or not 0 <= b <= 1:
            raise InputError(f"k1 is {k1} and b is {b}; expected k1 ≥ 0 and 0 ≤ b ≤ 1")
        vocabulary: dict[str, int] = {}
        ids = [[vocabulary.setdefault(term, len(vocabulary)) for term in document] for document in terms]
        if not vocabulary:
            raise InputError(
                f"none of the {len(ids)} documents holds a term; BM25 needs words: index without it (--dense-only)"
            )
        scorer = bm25s.BM25(k1=k1, b=b, method="lucene")
        scorer.index(Tokenized(ids=ids, vocab=vocabulary), create_empty_token=False, show_progress=False)
        return cls(scorer)

    def save(self, folder: Path) -> None:
        """Write the index as bm25s does: `.npy` arrays and JSON."""
        self._scorer.save(folder, show_progress=False, allow_pickle=False)

    @classmethod
    def open(cls, folder: Path) -> "Lexical":
        """Open a saved index, its arrays memory-mapped."""
        return cls(bm25s.BM25.load(folder, mmap=True, show_progress=False, allow_pickle=False))

    def scores(self, terms: Sequence[str]) -> NDArray[np.float32]:
        """Score every document for one query; (n,), 0 where no term matches."""
        known = self._scorer.get_tokens_ids(list(terms))
        if not known:
            return np.zeros(self.rows, dtype=np.float32)
        return np.asarray(self._scorer.get_scores_from_ids(known), dtype=np.float32)

    def search(self, queries: Sequence[Sequence[str]], k: int, keep: NDArray[np.bool_] | None = None) -> Hits:
        """Find the k best documents for each query; a document without any of its terms is no hit.

        Args:
            queries: The terms of each query.
            k: Hits for each query.
            keep: (n,) which documents may be hits; None: all. What a term weighs depends on all of them.

        Returns:
            Hits (q, k).
        """
        found = [self._search_one(terms, k, keep) for terms in queries]
        if not found:
            return Hits(np.empty((0, k), np.int64), np.empty((0, k), np.float32))
        return Hits(np.concatenate([hits.rows for hits in found]), np.concatenate([hits.scores for hits in found]))

    def _search_one(self, terms: Sequence[str], k: int, keep: NDArray[np.bool_] | None) -> Hits:
        scores = self.scores(terms)
        hits = scores > 0 if keep is None else (scores > 0) & keep
        return top(np.where(hits, scores, -np.inf).astype(np.float32), k)
