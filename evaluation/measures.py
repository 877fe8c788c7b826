"""Measures: nDCG, MRR, MAP, Recall, P and Success of a run, number for number as trec_eval computes them.

Conventions (trec_eval 9): a document with a positive grade is relevant; gains are linear; a negative grade
counts as 0; documents without a judgement are not relevant; a query of the qrels that the run lacks counts 0,
and so does one without a relevant document; queries that are not in the qrels are left out.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import repeat
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.runs import Ranking
from indexes.errors import InputError

DEFAULT_MEASURES = ("nDCG@10", "MRR@10", "MAP", "Recall@10", "Recall@100", "Recall@1000")

WHOLE = 2**31 - 1
"""The cut-off that cuts nothing off."""


class Judged(NamedTuple):
    """All that the measures need to know of one query: ranks and worth of its relevant documents."""

    ranks: NDArray[np.int64]  # (r,) ranks of the relevant hits, from 1, ascending
    gains: NDArray[np.float64]  # (r,) their grades
    ideal: NDArray[np.float64]  # (n,) the grades of all relevant documents, found or not, descending


class Measure(NamedTuple):
    """One measure: its canonical name, its formula and its cut-off (`WHOLE`: none)."""

    name: str
    formula: Callable[[Judged, int], float]
    k: int


def judge(ranking: Ranking, grades: Mapping[str, int]) -> Judged:
    """Look the hits of one query up in its judgements."""
    found = np.fromiter(map(grades.get, ranking.ids, repeat(0)), dtype=np.int64, count=len(ranking.ids))  # (k,)
    rows = np.flatnonzero(found > 0)
    ideal = sorted((grade for grade in grades.values() if grade > 0), reverse=True)
    return Judged(rows + 1, found[rows].astype(np.float64), np.asarray(ideal, dtype=np.float64))


def ndcg(judged: Judged, k: int) -> float:
    """Normalised discounted cumulative gain of the first k hits: linear gain, discount log2(rank + 1).

    Source:
        Järvelin & Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 20(4), 2002; the
        discount of trec_eval's m_ndcg_cut.c. The ideal ranking holds all judged documents, also those the
        corpus lacks.
    """
    if not len(judged.ideal):
        return 0.0
    within = judged.ranks <= k
    ideal = judged.ideal[:k]
    gain = (judged.gains[within] / np.log2(judged.ranks[within] + 1)).sum()
    return float(gain / (ideal / np.log2(np.arange(2, len(ideal) + 2))).sum())


def reciprocal_rank(judged: Judged, k: int) -> float:
    """One over the rank of the first relevant hit; 0 if it is not among the first k.

    Source:
        Voorhees, "The TREC-8 question answering track report", 1999; trec_eval's m_recip_rank.c, which has no
        cut-off.
    """
    return 1.0 / float(judged.ranks[0]) if len(judged.ranks) and judged.ranks[0] <= k else 0.0


def average_precision(judged: Judged, k: int) -> float:
    """Mean over all relevant documents of the precision at their rank; 0 for those not among the first k.

    Source:
        Buckley & Voorhees, "Evaluating evaluation measure stability", SIGIR 2000; trec_eval's m_map.c,
        m_map_cut.c.
    """
    if not len(judged.ideal):
        return 0.0
    ranks = judged.ranks[judged.ranks <= k]
    return float((np.arange(1, len(ranks) + 1) / ranks).sum() / len(judged.ideal))


def recall(judged: Judged, k: int) -> float:
    """Share of all relevant documents that are among the first k hits (m_recall.c; never capped)."""
    return _found(judged, k) / len(judged.ideal) if len(judged.ideal) else 0.0


def precision(judged: Judged, k: int) -> float:
    """Share of the first k ranks that hold a relevant document; empty ranks count too (m_P.c)."""
    return _found(judged, k) / k


def success(judged: Judged, k: int) -> float:
    """1 if a relevant document is among the first k hits, else 0 (m_success.c)."""
    return float(_found(judged, k) > 0)


def _found(judged: Judged, k: int) -> int:
    return int(np.searchsorted(judged.ranks, k, side="right"))


_FORMULAS: dict[str, Callable[[Judged, int], float]] = {
    "nDCG": ndcg,
    "MRR": reciprocal_rank,
    "MAP": average_precision,
    "Recall": recall,
    "P": precision,
    "Success": success,
}
_NEED_CUTOFF = ("Recall", "P", "Success")
_KNOWN = "nDCG@k, MRR@k, MAP@k, Recall@k, P@k, Success@k with a whole number k from 1, or nDCG, MRR, MAP"


def parse_measure(name: str) -> Measure:
    """Read the name of a measure such as `nDCG@10` or `MAP`; upper and lower case are the same.

    Raises:
        InputError: No such measure; the message names those there are.
    """
    family, at, cutoff = name.strip().partition("@")
    known = {known.lower(): known for known in _FORMULAS}.get(family.lower())
    k = int(cutoff) if cutoff.isascii() and cutoff.isdigit() else 0
    if known is None or (at and not 0 < k < WHOLE) or (not at and known in _NEED_CUTOFF):
        raise InputError(f"unknown measure {name!r}; known are {_KNOWN}")
    return Measure(f"{known}@{k}" if at else known, _FORMULAS[known], k if at else WHOLE)


def parse_measures(names: Iterable[str]) -> list[Measure]:
    """Read several names, each once, in their order.

    Raises:
        InputError: A name is unknown, or there is none.
    """
    measures = list({measure.name: measure for measure in map(parse_measure, names)}.values())
    if not measures:
        raise InputError(f"no measure given; known are {_KNOWN}")
    return measures


def score_run(
    run: Mapping[str, Ranking],
    qrels: Mapping[str, Mapping[str, int]],
    measures: Iterable[str] = DEFAULT_MEASURES,
) -> dict[str, dict[str, float]]:
    """Measure a run query by query.

    Args:
        run: Query id to ranking.
        qrels: Query id to document id to grade.
        measures: Names such as `nDCG@10`.

    Returns:
        For every query of the qrels, in their order: the canonical name of each measure to its value, 0 to 1.

    Raises:
        InputError: A measure is unknown.
    """
    chosen = parse_measures(measures)
    nothing = Ranking([], np.empty(0, dtype=np.float32))
    values = {}
    for query, grades in qrels.items():
        judged = judge(run.get(query, nothing), grades)
        values[query] = {measure.name: measure.formula(judged, measure.k) for measure in chosen}
    return values


def means(per_query: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Average each measure over the queries.

    The sum is correctly rounded (`math.fsum`), so the order of the queries does not show in the last digit.

    Raises:
        InputError: There are no queries, so there is no mean.
    """
    if not per_query:
        raise InputError("no queries to average over; expected judgements for at least one")
    names = next(iter(per_query.values()))
    return {name: math.fsum(values[name] for values in per_query.values()) / len(per_query) for name in names}
