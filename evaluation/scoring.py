"""A whole run held against its judgements at once: where the judged hits of every query are."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, compress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.rankings import LARGEST, Ranking
from evaluation.run_table import RunTable
from indexes.errors import InputError

_AT_ONCE = 128
_QUERIES_AT_ONCE = 256

Grades = Mapping[str, int]
"""Document id to grade, of one query."""


class Ragged(NamedTuple):
    """Numbers of q queries, those of one query after those of the other."""

    values: NDArray[Any]
    """(n,)"""
    starts: NDArray[np.int64]
    """(q + 1,) where each query's begin, and n."""

    @property
    def counts(self) -> NDArray[np.int64]:
        """(q,) how many each query has."""
        return np.diff(self.starts)

    @property
    def places(self) -> NDArray[np.int64]:
        """(n,) the place of each among its query's, from 1."""
        return np.arange(1, len(self.values) + 1) - np.repeat(self.starts[:-1], self.counts)

    def where(self, kept: NDArray[np.bool_]) -> "Ragged":
        """Those where a mask (n,) is true."""
        return Ragged(self.values[kept], np.concatenate([[0], np.cumsum(kept)])[self.starts])

    def over(self, divisors: NDArray[Any]) -> "Ragged":
        """Each divided by its own (n,)."""
        return Ragged(self.values / divisors, self.starts)

    def sums(self) -> NDArray[np.float64]:
        """(q,) the sum of each query's, 0 where there are none.

        A zero before each query's numbers makes `reduceat` take stretches without any for 0, and add the others in
        the order in which `np.sum` does: to the same last digit.
        """
        begins = self.starts[:-1]
        padded = np.insert(self.values.astype(np.float64, copy=False), begins, 0.0)
        return np.add.reduceat(padded, begins + np.arange(len(begins)))


class Judged(NamedTuple):
    """All that the measures need to know of q queries: ranks and worth of their judged hits, and what there is."""

    ranks: Ragged
    """Ranks of the relevant hits, from 1, ascending."""
    gains: Ragged
    """Their grades."""
    ideal: Ragged
    """The grades of all relevant documents, found or not, descending."""
    known: Ragged
    """Ranks of all hits that have a judgement, whatever it is."""
    hits: NDArray[np.int64]
    """(q,) how many hits each query has."""


class _Judgements(NamedTuple):
    """The judgements of q queries, side by side."""

    grades: NDArray[np.int64]
    """(m,)"""
    starts: NDArray[np.int64]
    """(q + 1,)"""

    @classmethod
    def of(cls, qrels: Mapping[str, Grades]) -> "_Judgements":
        counts = [len(grades) for grades in qrels.values()]
        every = chain.from_iterable(grades.values() for grades in qrels.values())
        return cls(np.fromiter(every, np.int64, sum(counts)), np.cumsum([0, *counts]))

    def ideal(self) -> Ragged:
        """The positive grades of each query, descending."""
        lines = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        order = np.lexsort((-self.grades, lines))
        grades = self.grades[order]
        return Ragged(grades.astype(np.float64), self.starts).where(grades > 0)

    def judged(
        self,
        ranks: NDArray[np.int64],
        grades: NDArray[np.int64],
        counts: Sequence[int] | NDArray[np.integer[Any]],
        hits: Sequence[int] | NDArray[np.int64],
    ) -> Judged:
        """Put together what was found: ranks and grades (j,) of judged hits, so many of each query."""
        starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        relevant = grades > 0
        known = Ragged(ranks, starts)
        gains = Ragged(grades.astype(np.float64), starts).where(relevant)
        return Judged(known.where(relevant), gains, self.ideal(), known, np.asarray(hits, np.int64))


def judge_run(run: Mapping[str, Ranking], qrels: Mapping[str, Grades], depth: int) -> Judged:
    """Look the first `depth` hits of each query of the qrels up in its judgements."""
    ranks: list[int] = []
    grades: list[int] = []
    counts, hits = [], []
    for query, judgements in qrels.items():
        ids = run[query].ids if query in run else []
        found = _judged_places(ids, judgements, min(len(ids), depth))
        grades += [judgements[ids[place]] for place in found]
        ranks += found
        counts.append(len(found))
        hits.append(len(ids))
    return _Judgements.of(qrels).judged(np.asarray(ranks, np.int64) + 1, np.asarray(grades, np.int64), counts, hits)


def _judged_places(ids: list[str], judgements: Grades, depth: int) -> list[int]:
    """The places of judged documents among the first `depth`, from 0, ascending.

    A set is asked for all it shares with so many hits at once, which is several times as fast as asking hit by hit,
    until nothing that is judged is left to be found.
    """
    wanted = set(judgements)
    places: list[int] = []
    for begin in range(0, depth, _AT_ONCE):
        some = ids[begin : min(begin + _AT_ONCE, depth)]
        shared = wanted.intersection(some)
        if shared:
            places += sorted(begin + some.index(name) for name in shared)
            if len(places) == len(wanted):
                break
    return places


def judge_table(table: RunTable, qrels: Mapping[str, Grades], depth: int) -> Judged:
    """The same of a run in arrays, without an id made of a number: judged ids are looked up, and no others.

    Processors compare numbers by the dozen: each judged document is compared with all hits of its query.
    """
    judgements = _Judgements.of(qrels)
    names = list(chain.from_iterable(qrels.values()))
    numbers = table.numbers(names).astype(np.int32)  # (m,) -1 where the run has no such document
    lines = np.fromiter(map(table.line, qrels), np.int64, len(qrels))
    there = np.flatnonzero(lines >= 0)
    hits = np.zeros(len(qrels), np.int64)
    hits[there] = table.counts[lines[there]]
    many = np.diff(judgements.starts)
    order = there[np.argsort(-many[there], kind="stable")]  # those with the most judgements first
    none = np.empty(0, np.int64)
    places, ranks = [none], [none]
    for first in range(0, len(order), _QUERIES_AT_ONCE):
        some = order[first : first + _QUERIES_AT_ONCE]
        rows = _side_by_side(table, lines[some], depth)
        for place, rank in _matches(rows, numbers, judgements.starts[some], many[some]):
            places.append(place)
            ranks.append(rank)
    place, rank = np.concatenate(places), np.concatenate(ranks)
    owner = np.repeat(np.arange(len(qrels)), many)[place]
    by_rank = np.lexsort((rank, owner))
    counts = np.bincount(owner, minlength=len(qrels))
    return judgements.judged(rank[by_rank], judgements.grades[place[by_rank]], counts, hits)


def _side_by_side(table: RunTable, lines: NDArray[np.int64], depth: int) -> NDArray[np.int32]:
    """The first hits of some queries as a matrix (b, k), filled up with what is no document."""
    counts = np.minimum(table.counts[lines], depth)
    rows = np.full((len(lines), int(counts.max(initial=0))), -2, np.int32)
    for line, start, count in zip(range(len(lines)), table.starts[lines].tolist(), counts.tolist(), strict=True):
        rows[line, :count] = table.rows[start : start + count]
    return rows


def _matches(
    rows: NDArray[np.int32], numbers: NDArray[np.int32], starts: NDArray[np.int64], many: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Where the judgements of some queries are among their hits: the places of judgements, and ranks.

    Args:
        rows: (b, k) hits.
        numbers: (m,) the documents of all judgements.
        starts: (b,) where each query's judgements begin.
        many: (b,) how many it has, descending.
    """
    width = rows.shape[1]
    equal = np.empty(rows.shape, np.bool_)
    for nth in range(int(many.max(initial=0)) if width else 0):
        count = int(np.count_nonzero(many > nth))
        wanted = starts[:count] + nth
        np.equal(rows[:count], numbers[wanted, None], out=equal[:count])
        lines, columns = np.divmod(np.flatnonzero(equal[:count]), width)
        yield wanted[lines], columns + 1


def judge_hits(hits: Mapping[str, Mapping[str, float]], qrels: Mapping[str, Grades], depth: int) -> Judged:
    """The same of unordered hits, document id to score: no hit is put in order but the judged ones.

    A hit's rank is one more than the number of hits that come before it.

    Raises:
        InputError: A score is not a finite float32.
    """
    ranks: list[int] = []
    grades: list[int] = []
    counts, lengths = [], []
    for query, judgements in qrels.items():
        scores = hits.get(query, {})
        found = sorted((rank, judgements[name]) for name, rank in _ranks(query, scores, judgements) if rank <= depth)
        ranks += [rank for rank, _ in found]
        grades += [grade for _, grade in found]
        counts.append(len(found))
        lengths.append(len(scores))
    return _Judgements.of(qrels).judged(np.asarray(ranks, np.int64), np.asarray(grades, np.int64), counts, lengths)


def _ranks(query: str, scores: Mapping[str, float], judgements: Grades) -> list[tuple[str, int]]:
    """The judged documents among the hits of a query, and their ranks, in any order."""
    with np.errstate(over="ignore"):
        narrow = np.fromiter(scores.values(), np.float32, len(scores))
    if not np.isfinite(narrow).all():
        name, score = next((name, score) for name, score in scores.items() if not abs(score) <= LARGEST)
        raise InputError(f"query {query!r}: document {name!r} has score {score}; expected a finite float32")
    names = [name for name in judgements if name in scores]
    if not names:
        return []
    mine = np.array([scores[name] for name in names], np.float32)
    ordered = np.sort(narrow)
    upto = np.searchsorted(ordered, mine, side="right")  # (j,) hits that score as much or less
    ties = upto - np.searchsorted(ordered, mine, side="left")
    ranks = (len(ordered) - upto + 1).tolist()
    for place in np.flatnonzero(ties > 1).tolist():
        equals = compress(scores, (narrow == mine[place]).tolist())
        ranks[place] += sum(other > names[place] for other in equals)
    return list(zip(names, ranks, strict=True))
