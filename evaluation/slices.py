"""Slices: how systems do on short and on long queries, on those with many words in common with what they ask for."""

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from evaluation.comparison import Comparison, Mean
from evaluation.significance import bootstrap_interval
from evaluation.systems import Report
from retrieval.shingles import normalised

PARTS = 3


class Slice(NamedTuple):
    """Some of the queries of a set, those that are alike in one feature."""

    feature: str
    """What they are alike in."""
    label: str
    queries: tuple[str, ...]
    means: dict[str, float]
    """System to the mean of the measure over these queries."""
    differences: dict[str, Mean]
    """System to its mean difference from the baseline, with its interval; not tested."""


def query_length(report: Report) -> dict[str, float]:
    """Words of each query."""
    return {query: float(len(normalised(report.queries[query]).split())) for query in report.qrels}


def relevant_documents(report: Report) -> dict[str, float]:
    """Documents of each query whose grade is above 0."""
    return {query: float(sum(grade > 0 for grade in grades.values())) for query, grades in report.qrels.items()}


def lexical_overlap(report: Report, texts: Mapping[str, str]) -> dict[str, float]:
    """The share of each query's different terms that a relevant document has, on average over these documents.

    Terms are BM25's: stems without stop words. Queries without a term, or without a relevant document among the
    texts, are left out.

    Args:
        report: Queries and qrels.
        texts: Relevant documents, as encoders read them.
    """
    from retrieval.analyzer import Analyzer

    analyzer = Analyzer()
    wanted = {one for grades in report.qrels.values() for one, grade in grades.items() if grade > 0}
    terms_of = {one: frozenset(analyzer.terms(text)) for one, text in texts.items() if one in wanted}
    found = {}
    for query, grades in report.qrels.items():
        terms = set(analyzer.terms(report.queries[query]))
        shares = [
            len(terms & terms_of[one]) / len(terms)
            for one, grade in grades.items()
            if grade > 0 and one in terms_of and terms
        ]
        if shares:
            found[query] = sum(shares) / len(shares)
    return found


def groups(values: Mapping[str, float], parts: int = PARTS) -> list[list[str]]:
    """Put queries into at most so many groups of about the same size, by rising value; equal values stay together.

    Args:
        values: Query to value.
        parts: Of them.
    """
    if not values:
        return []
    ordered = np.sort(np.fromiter(values.values(), dtype=np.float64, count=len(values)))
    cuts = {float(ordered[max(0, -(-len(ordered) * part // parts) - 1)]) for part in range(1, parts)}
    below = ordered[ordered < ordered[-1]]
    cuts = {cut if cut < ordered[-1] else float(below[-1]) for cut in cuts if cut < ordered[-1] or below.size}
    edges = [-np.inf, *sorted(cuts), np.inf]
    found = [
        [query for query, value in values.items() if low < value <= high] for low, high in itertools.pairwise(edges)
    ]
    return [queries for queries in found if queries]


def slices_of(comparison: Comparison, dataset: str, texts: Mapping[str, str], *, parts: int = PARTS) -> list[Slice]:
    """How all systems do on the slices of one set; a feature in which all queries are alike gives none.

    Args:
        comparison: The systems and their values.
        dataset: Which set.
        texts: Its relevant documents by id, as encoders read them; those that are missing are not in the corpus.
        parts: Into how many a feature divides the queries.
    """
    report = comparison.reports[dataset]
    features: list[tuple[str, dict[str, float], Callable[[float], str], str]] = [
        ("query length", query_length(report), lambda value: f"{value:.0f}", "words"),
        (
            "words in common",
            lexical_overlap(report, texts),
            lambda value: f"{100 * value:.0f}%",
            "of the terms",
        ),
        ("relevant documents", relevant_documents(report), lambda value: f"{value:.0f}", "documents"),
    ]
    found = []
    for feature, values, written, unit in features:
        parted = [(_label(values, queries, written, unit), queries) for queries in groups(values, parts)]
        if rest := [query for query in report.qrels if query not in values]:
            parted.append(("no terms, or no relevant document in the corpus", rest))
        if len(parted) > 1:
            found += [_slice(comparison, dataset, feature, *one) for one in parted]
    return found


def _label(values: Mapping[str, float], queries: list[str], written: Callable[[float], str], unit: str) -> str:
    low, high = (written(end(values[query] for query in queries)) for end in (min, max))
    if low == high:
        return f"{low} {unit.removesuffix('s') if low == '1' else unit}"
    return f"{low} to {high} {unit}"


def _slice(comparison: Comparison, dataset: str, feature: str, label: str, queries: list[str]) -> Slice:
    report = comparison.reports[dataset]
    values = {
        system: np.array([report.systems[system].per_query[query][comparison.measure] for query in queries])
        for system in comparison.systems
    }
    base = values[comparison.baseline]
    return Slice(
        feature,
        label,
        tuple(queries),
        {system: float(one.mean()) for system, one in values.items()},
        {
            system: Mean(
                float((values[system] - base).mean()), bootstrap_interval(values[system] - base, seed=comparison.seed)
            )
            for system in comparison.others
        },
    )
