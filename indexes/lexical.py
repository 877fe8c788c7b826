"""BM25 and learned weights over the inverted lists of segments; knows nothing of how texts become terms."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InputError
from indexes.hits import Hits, top
from indexes.postings import Postings, Terms

Parts = Sequence[tuple[Postings, NDArray[np.bool_] | None]]
Found = tuple[int, NDArray[np.bool_] | None, NDArray[np.uint32], NDArray[Any]]
"""A segment's number, which of its documents live, and of a term the rows and their counts or weights."""

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

    def __init__(self, parts: Parts, k1: float = K1, b: float = B) -> None:
        if k1 < 0 or not 0 <= b <= 1:
            raise InputError(f"k1 is {k1} and b is {b}; expected k1 ≥ 0 and 0 ≤ b ≤ 1")
        self.k1, self.b = k1, b
        self._lists = _Lists(parts)
        self.rows = self._lists.rows
        live = [one.lengths if keep is None else one.lengths[keep] for one, keep in parts]
        self.documents = sum(map(len, live))
        self._norms: dict[int, NDArray[np.float32]] = {}
        self.average = (sum(int(lengths.sum()) for lengths in live) or 1) / max(self.documents, 1)

    def scores(self, terms: Terms) -> NDArray[np.float32]:
        """Score every document for one query; (n,), 0 where no term matches. A deleted one's score means nothing."""
        total = np.zeros(self.rows, np.float32)
        for found in self._lists.of_terms(list(terms)):
            holding = sum(len(rows) if keep is None else np.count_nonzero(keep[rows]) for _, keep, rows, _ in found)
            weight = inverse_document_frequency(self.documents, int(holding))
            for part, _, rows, counts in found:
                norms = self._norms_of(part)
                self._lists.part(total, part)[rows] += term_scores(weight, counts, norms[rows])
        return total

    def _norms_of(self, part: int) -> NDArray[np.float32]:
        """The norms of a segment's documents (n,), computed when they are first asked for."""
        if part not in self._norms:
            self._norms[part] = length_norms(self._lists.parts[part][0].lengths, self.average, self.k1, self.b)
        return self._norms[part]

    def search(self, queries: Sequence[Terms], k: int, keep: NDArray[np.bool_] | None = None) -> Hits:
        """Find the k best documents for each query; a document without any of its terms is no hit.

        Args:
            queries: The terms of each query.
            k: Hits for each query.
            keep: (n,) which documents may be hits; None: all. What a term weighs depends on all that live.

        Returns:
            Hits (q, k).
        """
        return _best([self.scores(terms) for terms in queries], k, keep)


class Impacts:
    """Learned sparse retrieval: the inner product of a query's and a document's weights of terms.

    For what encoders such as SPLADE give, or the lexical half of DupMAE: nothing is computed from the collection, so
    that a document's score depends on itself and the query only.

    Args:
        parts: Postings with weights, as for `Lexical`.

    Source: Formal, Piwowarski and Clinchant, "SPLADE" (SIGIR 2021), equation 1; the hybrid score of Xiao, Liu, Shao and
    Cao, "RetroMAE-2: Duplex Masked Auto-Encoder" (ACL 2023) is this one added to the dense one.
    """

    def __init__(self, parts: Parts) -> None:
        self._lists = _Lists(parts)
        self.rows = self._lists.rows

    def scores(self, terms: Terms) -> NDArray[np.float32]:
        """Score every document for one query's weights; (n,), 0 where no term matches.

        Raises:
            InputError: The query has terms without weights.
        """
        if not isinstance(terms, Mapping):
            raise InputError("the query is terms; this index holds weights of terms: give {term: weight}")
        total = np.zeros(self.rows)
        for weight, found in zip(terms.values(), self._lists.of_terms(list(terms)), strict=True):
            for part, _, rows, given in found:
                self._lists.part(total, part)[rows] += float(weight) * given.astype(np.float64)
        return total.astype(np.float32)

    def search(self, queries: Sequence[Terms], k: int, keep: NDArray[np.bool_] | None = None) -> Hits:
        """Find the k best documents for each query, of those to keep (n,); one without any of its terms is no hit."""
        return _best([self.scores(terms) for terms in queries], k, keep)


class _Lists:
    """The inverted lists of several segments, by term.

    Args:
        parts: Postings of each segment, and which of its documents live (n,); None: all.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._starts = np.cumsum([0, *(len(one.lengths) for one, _ in parts)]).tolist()
        self.rows: int = self._starts[-1]

    def of_terms(self, terms: Sequence[str]) -> Iterator[list[Found]]:
        """Where each term is found, segment by segment."""
        lists = [one.vocabulary.numbers(terms).tolist() for one, _ in self.parts]
        for at in range(len(terms)):
            yield [
                (part, keep, *one.of_term(numbers[at]))
                for part, ((one, keep), numbers) in enumerate(zip(self.parts, lists, strict=True))
                if numbers[at] >= 0
            ]

    def part(self, total: NDArray[Any], part: int) -> NDArray[Any]:
        """A segment's part of scores over all rows."""
        return total[self._starts[part] : self._starts[part + 1]]


def _best(scores: Sequence[NDArray[np.float32]], k: int, keep: NDArray[np.bool_] | None) -> Hits:
    """The k best of each query's scores (n,) that are not 0, of those to keep."""
    found = [_best_of_one(one, k, keep) for one in scores]
    if not found:
        return Hits(np.empty((0, k), np.int64), np.empty((0, k), np.float32))
    return Hits(np.concatenate([hits.rows for hits in found]), np.concatenate([hits.scores for hits in found]))


def _best_of_one(scores: NDArray[np.float32], k: int, keep: NDArray[np.bool_] | None) -> Hits:
    if keep is not None:
        scores[~keep] = 0
    # Few reach the k-th best score, and only they need the tie rule.
    least = np.partition(scores, -k)[-k] if k < len(scores) else 0
    rows = np.flatnonzero(scores >= least if least > 0 else scores > 0)
    return top(scores[rows], k, rows)
