"""BM25 over the inverted lists of one segment or several; knows nothing of how texts become terms."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InputError
from indexes.hits import Hits, top
from indexes.postings import Postings

K1 = 0.9
B = 0.4


def inverse_document_frequency(documents: int, holding: int) -> float:
    """ln(1 + (n - h + 0.5) / (h + 0.5)): Lucene's, never negative.

    Source: Kamphuis et al., "Which BM25 Do You Mean?" (ECIR 2020), table 1.
    """
    return float(np.log1p((documents - holding + 0.5) / (holding + 0.5)))


def length_norms(lengths: NDArray[np.unsignedinteger], average: float, k1: float, b: float) -> NDArray[np.float32]:
    """k1 (1 - b + b l / l̄) of each document: how many times a term must be held to say half of what it can."""
    return (k1 * (1 - b + b * (lengths / average))).astype(np.float32)


def term_scores(weight: float, counts: NDArray[np.unsignedinteger], norms: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a term of weight w gives to documents that hold it tf times: w · tf / (tf + norm).

    The same source; like Lucene since version 8, without the constant factor k1 + 1.
    """
    times = counts.astype(np.float32)
    return np.float32(weight) * times / (times + norms)


class Lexical:
    """BM25 over documents of one segment or several, by the statistics of those that are not deleted.

    Weights are computed when they are asked for. So it makes no difference to any score in which segments documents
    lie, nor whether deleted ones are still there.

    Defaults k1 = 0.9 and b = 0.4 are Anserini's for passages (Lucene's own are 1.2 and 0.75): a published BM25 figure
    means little without them.

    Args:
        parts: Postings of each segment, and which of its documents live (n,); None: all. Rows count on from segment
            to segment.
        k1: How slowly repeated terms lose weight, 0 or more.
        b: How much the length of a document counts, from 0 to 1.

    Raises:
        InputError: k1 or b is out of range.
    """

    def __init__(
        self, parts: Sequence[tuple[Postings, NDArray[np.bool_] | None]], k1: float = K1, b: float = B
    ) -> None:
        if k1 < 0 or not 0 <= b <= 1:
            raise InputError(f"k1 is {k1} and b is {b}; expected k1 ≥ 0 and 0 ≤ b ≤ 1")
        self.k1, self.b = k1, b
        self._parts = parts
        self._starts = np.cumsum([0, *(len(one.lengths) for one, _ in parts)]).tolist()
        self.rows: int = self._starts[-1]
        live = [one.lengths if keep is None else one.lengths[keep] for one, keep in parts]
        self.documents = sum(map(len, live))
        self._norms: dict[int, NDArray[np.float32]] = {}
        self.average = (sum(int(lengths.sum()) for lengths in live) or 1) / max(self.documents, 1)

    def scores(self, terms: Sequence[str]) -> NDArray[np.float32]:
        """Score every document for one query; (n,), 0 where no term matches. A deleted one's score means nothing."""
        total = np.zeros(self.rows, np.float32)
        lists = [one.vocabulary.numbers(terms).tolist() for one, _ in self._parts]
        for numbers in zip(*lists, strict=True):  # of one term in each segment
            self._add(total, numbers)
        return total

    def _add(self, total: NDArray[np.float32], numbers: Sequence[int]) -> None:
        found = [
            (part, keep, *one.of_term(number))
            for part, ((one, keep), number) in enumerate(zip(self._parts, numbers, strict=True))
            if number >= 0
        ]
        holding = sum(len(rows) if keep is None else np.count_nonzero(keep[rows]) for _, keep, rows, _ in found)
        weight = inverse_document_frequency(self.documents, int(holding))
        for part, _, rows, counts in found:
            norms = self._norms_of(part)
            here = total[self._starts[part] : self._starts[part + 1]]
            here[rows] += term_scores(weight, counts, norms[rows])

    def _norms_of(self, part: int) -> NDArray[np.float32]:
        """The norms of a segment's documents (n,), computed when they are first asked for."""
        if part not in self._norms:
            self._norms[part] = length_norms(self._parts[part][0].lengths, self.average, self.k1, self.b)
        return self._norms[part]

    def search(self, queries: Sequence[Sequence[str]], k: int, keep: NDArray[np.bool_] | None = None) -> Hits:
        """Find the k best documents for each query; a document without any of its terms is no hit.

        Args:
            queries: The terms of each query.
            k: Hits for each query.
            keep: (n,) which documents may be hits; None: all. What a term weighs depends on all that live.

        Returns:
            Hits (q, k).
        """
        found = [self._search_one(terms, k, keep) for terms in queries]
        if not found:
            return Hits(np.empty((0, k), np.int64), np.empty((0, k), np.float32))
        return Hits(np.concatenate([hits.rows for hits in found]), np.concatenate([hits.scores for hits in found]))

    def _search_one(self, terms: Sequence[str], k: int, keep: NDArray[np.bool_] | None) -> Hits:
        scores = self.scores(terms)
        if keep is not None:
            scores[~keep] = 0
        # Few reach the k-th best score, and only they need the tie rule.
        least = np.partition(scores, -k)[-k] if k < len(scores) else 0
        rows = np.flatnonzero(scores >= least if least > 0 else scores > 0)
        return top(scores[rows], k, rows)
