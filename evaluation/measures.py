"""Measures: nDCG, MRR, MAP, Recall, P, Success and more of a run, number for number as trec_eval computes them.

Conventions (trec_eval 9): a document with a positive grade is relevant; gains are linear; a negative grade
counts as 0; documents without a judgement are not relevant; a query of the qrels that the run lacks counts 0,
and so does one without a relevant document; queries that are not in the qrels are left out.

Each formula takes the judged hits of all q queries and a cut-off, and gives one value a query (q,).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.rankings import Ranking
from evaluation.run_table import RunTable
from evaluation.scoring import Judged, judge_hits, judge_run, judge_table
from indexes.errors import InputError

DEFAULT_MEASURES = ("nDCG@10", "MRR@10", "MAP", "Recall@10", "Recall@100", "Recall@1000")

WHOLE = 2**31 - 1
"""The cut-off that cuts nothing off."""

Values = NDArray[np.float64]


class Measure(NamedTuple):
    """One measure: its canonical name, its formula and its cut-off (`WHOLE`: none)."""

    name: str
    formula: Callable[[Judged, int], Values]
    k: int


def ndcg(judged: Judged, k: int) -> Values:
    """Normalised discounted cumulative gain of the first k hits: linear gain, discount log2(rank + 1).

    Source:
        Järvelin & Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 20(4), 2002; the
        discount of trec_eval's m_ndcg_cut.c. The ideal ranking holds all judged documents, also those the
        corpus lacks.
    """
    within = judged.ranks.values <= k
    ranks = judged.ranks.values[within]
    best = judged.ideal.where(judged.ideal.places <= k)
    gain = judged.gains.where(within).over(np.log2(ranks + 1)).sums()
    return _share(gain, best.over(np.log2(best.places + 1)).sums())


def reciprocal_rank(judged: Judged, k: int) -> Values:
    """One over the rank of the first relevant hit; 0 if it is not among the first k.

    Source:
        Voorhees, "The TREC-8 question answering track report", 1999; trec_eval's m_recip_rank.c, which has no
        cut-off.
    """
    firsts = judged.ranks.where((judged.ranks.places == 1) & (judged.ranks.values <= k))
    return firsts._replace(values=1.0 / firsts.values).sums()


def average_precision(judged: Judged, k: int) -> Values:
    """Mean over all relevant documents of the precision at their rank; 0 for those not among the first k.

    Source:
        Buckley & Voorhees, "Evaluating evaluation measure stability", SIGIR 2000; trec_eval's m_map.c,
        m_map_cut.c.
    """
    ranks = judged.ranks.where(judged.ranks.values <= k)
    precisions = ranks._replace(values=ranks.places / ranks.values)
    return _share(precisions.sums(), judged.ideal.counts)


def recall(judged: Judged, k: int) -> Values:
    """Share of all relevant documents that are among the first k hits (m_recall.c; never capped)."""
    return _share(_found(judged, k), judged.ideal.counts)


def capped_recall(judged: Judged, k: int) -> Values:
    """Share of the relevant documents found among the first k hits, of as many as k hits can hold.

    Source:
        Thakur et al., "BEIR", NeurIPS Datasets and Benchmarks 2021, section 4.2: what its table calls recall@100
        of TREC-COVID; beir's `recall_cap`, but ties are broken as everywhere here.
    """
    return _share(_found(judged, k), np.minimum(judged.ideal.counts, k))


def precision(judged: Judged, k: int) -> Values:
    """Share of the first k ranks that hold a relevant document; empty ranks count too (m_P.c)."""
    return _found(judged, k) / k


def r_precision(judged: Judged, k: int) -> Values:
    """Precision at the rank that is the number of relevant documents (m_Rprec.c); it takes no cut-off."""
    relevant = judged.ideal.counts
    within = judged.ranks.values <= np.repeat(relevant, judged.ranks.counts)
    return _share(judged.ranks.where(within).counts, relevant)


def success(judged: Judged, k: int) -> Values:
    """1 if a relevant document is among the first k hits, else 0 (m_success.c)."""
    return (_found(judged, k) > 0).astype(np.float64)


def judged_share(judged: Judged, k: int) -> Values:
    """Share of the first k hits that have a judgement of this query, whatever its grade, a negative one too.

    Of fewer than k hits, the share of those there are; 0 where there are none. What is not judged counts as not
    relevant, so a low share says that other measures tell little about a system that was not pooled.
    """
    return _share(judged.known.where(judged.known.values <= k).counts, np.minimum(judged.hits, k))


def hole(judged: Judged, k: int) -> Values:
    """Share of the first k hits without a judgement of this query: 1 - Judged@k, but 0 where there are no hits.

    beir's `hole` is another: it counts a document as judged if any query has a judgement of it, and divides by k
    where there are fewer hits.
    """
    hits = np.minimum(judged.hits, k)
    return _share(hits - judged.known.where(judged.known.values <= k).counts, hits)


def _found(judged: Judged, k: int) -> NDArray[np.int64]:
    """(q,) how many of the first k hits are relevant."""
    return judged.ranks.where(judged.ranks.values <= k).counts


def _share(parts: NDArray[Any], wholes: NDArray[Any]) -> Values:
    """Parts (q,) of wholes (q,); 0 of nothing."""
    return np.divide(parts, wholes, out=np.zeros(len(parts)), where=wholes > 0)


_FORMULAS: dict[str, Callable[[Judged, int], Values]] = {
    "nDCG": ndcg,
    "MRR": reciprocal_rank,
    "MAP": average_precision,
    "Recall": recall,
    "P": precision,
    "Success": success,
    "CappedRecall": capped_recall,
    "Rprec": r_precision,
    "Judged": judged_share,
    "Hole": hole,
}
_WHOLE_ONLY = ("Rprec",)
_NEED_CUTOFF = ("Recall", "P", "Success", "CappedRecall", "Judged", "Hole")
_KNOWN = (
    "nDCG@k, MRR@k, MAP@k, Recall@k, P@k, Success@k, CappedRecall@k, Judged@k, Hole@k with a whole number k from 1, "
    "or nDCG, MRR, MAP, Rprec"
)


def parse_measure(name: str) -> Measure:
    """Read the name of a measure such as `nDCG@10` or `MAP`; upper and lower case are the same.

    Raises:
        InputError: No such measure; the message names those there are.
    """
    family, at, cutoff = name.strip().partition("@")
    known = {known.lower(): known for known in _FORMULAS}.get(family.lower())
    k = int(cutoff) if cutoff.isascii() and cutoff.isdigit() else 0
    wrong = (at and not 0 < k < WHOLE) or known in (_WHOLE_ONLY if at else _NEED_CUTOFF)
    if known is None or wrong:
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
        run: Query id to ranking; the arrays of a `RunTable` are read as they are.
        qrels: Query id to document id to grade.
        measures: Names such as `nDCG@10`.

    Returns:
        For every query of the qrels, in their order: the canonical name of each measure to its value, 0 to 1.

    Raises:
        InputError: A measure is unknown.
    """
    chosen = parse_measures(measures)
    depth = max(measure.k for measure in chosen)
    if isinstance(run, RunTable):
        return _values(qrels, chosen, judge_table(run, qrels, depth))
    return _values(qrels, chosen, judge_run(run, qrels, depth))


def score_hits(
    hits: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    measures: Iterable[str] = DEFAULT_MEASURES,
) -> dict[str, dict[str, float]]:
    """Measure unordered hits, query id to document id to score, as other tools have them; see `score_run`.

    They are not put in order: only the ranks of judged documents are found.

    Raises:
        InputError: A measure is unknown, or a score is not a finite float32.
    """
    chosen = parse_measures(measures)
    return _values(qrels, chosen, judge_hits(hits, qrels, max(measure.k for measure in chosen)))


def _values(qrels: Iterable[str], measures: list[Measure], judged: Judged) -> dict[str, dict[str, float]]:
    names = [measure.name for measure in measures]
    columns = [measure.formula(judged, measure.k).tolist() for measure in measures]
    return {query: dict(zip(names, line, strict=True)) for query, *line in zip(qrels, *columns, strict=True)}


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


def ann_recall(run: Mapping[str, Ranking], exact: Mapping[str, Ranking], k: int) -> dict[str, float]:
    """Recall of an approximate search: the share of exact search's first k hits that are among its own first k.

    Run against run, without judgements. A hit that ties with exact search's k-th (the same score as float32) counts
    as found, whether exact search's list is long enough to hold it or not.

    Args:
        run: What the approximate search found.
        exact: What exact search found, at least k hits a query, or as many as there are documents.
        k: How deep both are read.

    Returns:
        For every query of the exact run its recall; 0 where the approximate run has no hits, 1 where exact search
        found nothing.

    Raises:
        InputError: k is less than 1.

    Source:
        Aumüller et al., "ANN-Benchmarks", Information Systems 87, 2020, equation 1: recall by the k-th distance.
    """
    if k < 1:
        raise InputError(f"k is {k}; expected at least 1")
    values = {}
    shallow = run.first(k) if isinstance(run, RunTable) else run
    for query, best in exact.items():
        wanted = min(k, len(best.ids))
        if not wanted:
            values[query] = 1.0
            continue
        limit = best.scores[wanted - 1]
        right = {name for name, good in zip(best.ids, (best.scores >= limit).tolist(), strict=True) if good}
        ids, scores = shallow[query] if query in shallow else ([], np.empty(0, np.float32))
        ties = (scores[:k] == limit).tolist()
        found = sum(name in right or tie for name, tie in zip(ids, ties, strict=False))
        values[query] = min(found, wanted) / wanted
    return values
