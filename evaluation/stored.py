"""Runs that were made before, searched like a retriever: each query gets the hits that it was given then."""

from collections.abc import Iterable, Mapping, Sequence

from evaluation.rankings import Ranking
from evaluation.systems import unmatched
from evaluation.testsets import TestSet
from indexes.errors import InputError
from retrieval.documents import Document
from retrieval.retriever import Hit


class StoredRuns:
    """A searcher over the hits of runs, each a mode of its own.

    Args:
        runs: Mode to run, such as from `read_run`.
        testset: The test collection whose queries they answer; also where texts of documents come from.
        deep: How many hits of each query may be asked for their texts, if any are.

    Raises:
        InputError: There is no run, or a run has no query of the test collection.
    """

    def __init__(self, runs: Mapping[str, Mapping[str, Ranking]], testset: TestSet, deep: int = 100) -> None:
        if not runs:
            raise InputError("no runs are given; expected at least one")
        lines = [line for name, run in runs.items() for line in unmatched(run, testset, name)]
        self.notices = tuple(lines)
        """What of the runs and the test collection does not meet."""
        self.runs = dict(runs)
        self.testset = testset
        self._deep = deep
        self._known: dict[str, str | None] = {}

    @property
    def modes(self) -> tuple[str, ...]:
        """The names of the runs."""
        return tuple(self.runs)

    @property
    def depth(self) -> int:
        """The most hits that a query has."""
        return max((len(one.ids) for run in self.runs.values() for one in run.values()), default=0)

    def search_queries(self, queries: Mapping[str, str], k: int, *, mode: str) -> list[list[Hit]]:
        """The first k stored hits of each query (id to text); none for a query that the run lacks."""
        run = self._run(mode)
        return [_hits(run.get(query), k) for query in queries]

    def search_many(self, texts: Sequence[str], k: int, *, mode: str) -> list[list[Hit]]:
        """The first k stored hits of the queries that have these texts.

        Raises:
            InputError: No query of the test collection has a text, or several have it, whose hits differ.
        """
        run, by_text = self._run(mode), _ids_by_text(self.testset.queries)
        found = []
        for text in texts:
            ids = by_text.get(text)
            if ids is None:
                raise InputError(f"no query of {self.testset.name} is {text[:60]!r}; a run answers only what it has")
            rankings = [_hits(run.get(one), k) for one in ids]
            if any(other != rankings[0] for other in rankings):
                raise InputError(f"queries {', '.join(map(repr, ids[:3]))} have one text and other hits; search by ids")
            found.append(rankings[0])
        return found

    def texts(self, ids: Sequence[str]) -> list[str | None]:
        """The texts of documents, out of the corpus of the test collection; None where it has no such document.

        All that may be asked for is kept from the first reading of the corpus on.
        """
        if missing := {one for one in ids if one not in self._known}:
            first = (
                one for run in self.runs.values() for query in self.testset.qrels for one in self._first(run, query)
            )
            self._known |= dict.fromkeys([*missing, *first])
            self._known |= contents(self.testset.documents(), self._known)
        return [self._known[one] for one in ids]

    def _first(self, run: Mapping[str, Ranking], query: str) -> Sequence[str]:
        return run[query].ids[: self._deep] if query in run else ()

    def _run(self, mode: str) -> Mapping[str, Ranking]:
        if mode not in self.runs:
            raise InputError(f"no run {mode!r}; there are {', '.join(self.runs)}")
        return self.runs[mode]


def contents(documents: Iterable[Document], ids: Iterable[str]) -> dict[str, str]:
    """What encoders read of some documents (title, one space, text), by one reading of their corpus."""
    wanted = set(ids)
    return {one.id: one.content for one in documents if one.id in wanted}


def _hits(ranking: Ranking | None, k: int) -> list[Hit]:
    if ranking is None:
        return []
    both = zip(ranking.ids[:k], ranking.scores[:k].tolist(), strict=True)
    return [Hit(name, score, rank, -1) for rank, (name, score) in enumerate(both, start=1)]


def _ids_by_text(queries: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for query, text in queries.items():
        found.setdefault(text, []).append(query)
    return found
