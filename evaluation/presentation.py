"""What every form of a report says: headline, best values, conventions, differences."""

from collections.abc import Iterable
from typing import NamedTuple

from evaluation.run_table import longest
from evaluation.significance import Interval, bootstrap_interval
from evaluation.systems import Report
from indexes.errors import InputError

HEADLINE_MEASURE = "nDCG@10"


class Difference(NamedTuple):
    """One query on which the first and the last system differ."""

    query: str
    first: float
    last: float


def headline_measure(report: Report) -> str:
    """nDCG@10, or the report's first measure if it has none."""
    return HEADLINE_MEASURE if HEADLINE_MEASURE in report.measures else report.measures[0]


def interval(report: Report, system: str) -> Interval | None:
    """95% bootstrap interval of a system's headline measure over the queries; None for one query."""
    measure = headline_measure(report)
    return bootstrap_interval([values[measure] for values in report.systems[system].per_query.values()])


def ends(interval: Interval | None, form: str = ".3f", between: str = " to ") -> str:
    """Both ends of an interval, or that there is none."""
    return "no interval" if interval is None else between.join(f"{end:{form}}" for end in interval)


def headline(report: Report) -> str:
    """The main result in one sentence, without its full stop."""
    measure = headline_measure(report)
    system = next(reversed(report.systems))
    found, count = interval(report, system), len(report.qrels)
    over = "one query: there is no interval" if found is None else f"95% interval {ends(found)} over {count:,} queries"
    return f"{system} reaches {measure} {report.main.metrics[measure]:.4f} ({over})"


def best_values(report: Report) -> dict[str, float]:
    """The best value of each measure; none where there is nothing to compare."""
    if len(report.systems) < 2:
        return {}
    return {name: max(result.metrics[name] for result in report.systems.values()) for name in report.measures}


def conventions(report: Report) -> dict[str, str]:
    """The rules by which the numbers were made; two numbers made by different rules must not be compared."""
    depth = max((longest(result.run) for result in report.systems.values()), default=0)
    self_matches = (
        "a hit whose id is the query's id is dropped"
        if report.profile.drop_self_matches
        else "a hit whose id is the query's id is kept"
    )
    return {
        "ties": "equal scores (as float32) are ordered by document id, descending, as in trec_eval",
        "gain": "linear, discount log2(rank + 1); ideal over all judged documents; grades below 0 count as 0",
        "document text": "title, one space, text",
        "self matches": self_matches,
        "missing queries": "queries of the qrels without hits or without a relevant document count 0",
        "depth": f"at most {depth:,} hits a query; measures without a cut-off read them all",
        "mean": "over all queries of the qrels",
    }


def largest_differences(report: Report, count: int = 10) -> list[Difference]:
    """The queries on which the headline measures of the first and last system differ most, if at all."""
    if len(report.systems) < 2:
        return []
    measure = headline_measure(report)
    first, *_, last = report.systems.values()
    pairs = [
        Difference(query, first.per_query[query][measure], last.per_query[query][measure]) for query in report.qrels
    ]
    apart = [pair for pair in pairs if pair.first != pair.last]
    return sorted(apart, key=lambda pair: (-abs(pair.last - pair.first), pair.query))[:count]


def document_texts(report: Report, ids: Iterable[str]) -> tuple[dict[str, str], str]:
    """Title and text of some documents, by one reading of the corpus, and why there are none, if it cannot be read.

    A report without a corpus gives no texts, and no reason.
    """
    wanted = set(ids)
    if report.documents is None or not wanted:
        return {}, ""
    try:
        return {one.id: one.content for one in report.documents() if one.id in wanted}, ""
    except (InputError, OSError) as error:  # moved or changed since it was searched: the measures are as they were
        return {}, " ".join(str(error).split())
