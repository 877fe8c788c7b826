"""A whole run held against its judgements at once: where the judged hits of every query are."""

from collections.abc import Mapping
from itertools import chain, compress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.rankings import LARGEST, Ranking
from evaluation.run_table import RunTable
from indexes.errors import InputError

_AT_ONCE = 128

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

    def judged(self, ranks: NDArray[np.int64], grades: NDArray[np.int64], counts: list[int], hits: list[int]) -> Judged:
        """Put together what was found: ranks and grades (j,) of judged hits, so many of each query."""
        starts = np.cumsum([0, *counts])
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

    For each query its judgements are marked at their documents' numbers (n,), and the marks of its hits are read.
    Marks of earlier queries stay where they are: they are smaller.
    """
    judgements = _Judgements.of(qrels)
    names = list(chain.from_iterable(qrels.values()))
    numbers = table.numbers(names)  # (m,)
    there = numbers >= 0
    places = np.flatnonzero(there).astype(np.int32)  # the judgements of documents that the run may hold
    numbers, edges = numbers[there], np.concatenate([[0], np.cumsum(there)])[judgements.starts].tolist()
    marks = np.full(len(table.ids), -1, np.int32)
    marked: list[NDArray[np.int32]] = []
    ranks: list[NDArray[np.int64]] = []
    hits: list[int] = []
    starts = table.starts.tolist()
    for number, (query, first) in enumerate(zip(qrels, judgements.starts.tolist(), strict=False)):
        line = table.line(query)
        begin, end = (starts[line], starts[line + 1]) if line >= 0 else (0, 0)
        mine = slice(edges[number], edges[number + 1])
        marks[numbers[mine]] = places[mine]
        seen = marks[table.rows[begin : min(end, begin + depth)]]
        found = np.flatnonzero(seen >= first)
        ranks.append(found)
        marked.append(seen[found])
        hits.append(end - begin)
    every = np.concatenate([np.empty(0, np.int32), *marked])
    flat = np.concatenate([np.empty(0, np.int64), *ranks]) + 1
    return judgements.judged(flat, judgements.grades[every], [len(one) for one in ranks], hits)


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
