"""Cases: the queries on which a system loses or gains most, with texts, and with ranks in both systems side by side."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from evaluation.comparison import Comparison
from evaluation.qrels import Qrels
from evaluation.systems import SystemResult

CASES = 3
"""Losses, and gains, that are shown of each system on each set."""
HITS = 5
RELEVANT = 5
_TEXT = 400
_HIT_TEXT = 110


class Hit(NamedTuple):
    """One of the first hits of a system."""

    document: str
    text: str
    """The beginning of it; empty if the corpus has no such document."""
    grade: int | None
    """Its judgement; None: it was not judged, and so counts as not relevant."""


class Relevant(NamedTuple):
    """A document that the query asks for, and where the systems put it."""

    document: str
    text: str
    grade: int
    first: int | None
    """Its rank in the baseline, from 1; None: not found."""
    second: int | None
    """Its rank in the other system."""


class Case(NamedTuple):
    """One query in the baseline (`first`) and in another system (`second`)."""

    system: str
    query: str
    text: str
    first: float
    second: float
    relevant: tuple[Relevant, ...]
    """The first ones, highest grades first; all count."""
    relevant_count: int
    first_hits: tuple[Hit, ...]
    second_hits: tuple[Hit, ...]

    @property
    def difference(self) -> float:
        """Below 0 where the system loses."""
        return self.second - self.first


def largest(comparison: Comparison, dataset: str, system: str, count: int = CASES) -> list[str]:
    """The queries with the largest losses, the worst first, and then those with the largest gains.

    Args:
        comparison: The systems and their values.
        dataset: Which set.
        system: Beside the baseline.
        count: Of losses, and of gains; fewer where fewer queries lose or gain.
    """
    report = comparison.reports[dataset]
    pairs = zip(comparison.values(dataset, comparison.baseline), comparison.values(dataset, system), strict=True)
    moved = sorted(
        (second - first, query) for query, (first, second) in zip(report.qrels, pairs, strict=True) if first != second
    )
    losses = [query for difference, query in moved if difference < 0][:count]
    gains = [query for difference, query in reversed(moved) if difference > 0][:count]
    return losses + gains


def documents_shown(comparison: Comparison, dataset: str, count: int = CASES) -> set[str]:
    """The documents whose texts the cases of a set need."""
    report = comparison.reports[dataset]
    found: set[str] = set()
    for system in comparison.others:
        for query in largest(comparison, dataset, system, count):
            found.update(one for one, _ in _relevant(report.qrels[query]))
            for name in (comparison.baseline, system):
                found.update(_ids(report.systems[name], query)[:HITS])
    return found


def cases_of(comparison: Comparison, dataset: str, texts: Mapping[str, str], count: int = CASES) -> list[Case]:
    """The cases of all systems on one set.

    Args:
        comparison: The systems and their values.
        dataset: Which set.
        texts: Of at least `documents_shown`, by id.
        count: As for `largest`.
    """
    return [
        _case(comparison, dataset, system, query, texts)
        for system in comparison.others
        for query in largest(comparison, dataset, system, count)
    ]


def _case(comparison: Comparison, dataset: str, system: str, query: str, texts: Mapping[str, str]) -> Case:
    report = comparison.reports[dataset]
    first, second = report.systems[comparison.baseline], report.systems[system]
    ranks = [{one: rank for rank, one in enumerate(_ids(result, query), start=1)} for result in (first, second)]
    grades = report.qrels[query]
    return Case(
        system=system,
        query=query,
        text=cut(report.queries[query], _TEXT),
        first=first.per_query[query][comparison.measure],
        second=second.per_query[query][comparison.measure],
        relevant=tuple(
            Relevant(one, cut(texts.get(one, ""), _TEXT), grade, ranks[0].get(one), ranks[1].get(one))
            for one, grade in _relevant(grades)
        ),
        relevant_count=sum(grade > 0 for grade in grades.values()),
        first_hits=_hits(first, query, report.qrels, texts),
        second_hits=_hits(second, query, report.qrels, texts),
    )


def _relevant(grades: Mapping[str, int]) -> list[tuple[str, int]]:
    found = [(one, grade) for one, grade in grades.items() if grade > 0]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:RELEVANT]


def _hits(result: SystemResult, query: str, qrels: Qrels, texts: Mapping[str, str]) -> tuple[Hit, ...]:
    return tuple(
        Hit(one, cut(texts.get(one, ""), _HIT_TEXT), qrels[query].get(one)) for one in _ids(result, query)[:HITS]
    )


def _ids(result: SystemResult, query: str) -> list[str]:
    return result.run[query].ids if query in result.run else []


def texts_of(documents: Iterable[tuple[str, str]], wanted: Iterable[str]) -> dict[str, str]:
    """The texts of the documents that are wanted, by id, in one pass over all.

    Args:
        documents: Ids and texts.
        wanted: Ids.
    """
    named = set(wanted)
    return {one: text for one, text in documents if one in named}


def cut(text: str, length: int) -> str:
    """A text on one line, of at most so many characters."""
    plain = " ".join(text.split())
    return plain if len(plain) <= length else plain[: length - 1].rstrip() + "…"
