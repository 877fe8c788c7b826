"""Systems: retrievers and runs measured on a test collection, and the report that this gives."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from evaluation.depths import shallow_lines, unequal_lines
from evaluation.index_runs import RowSearcher, search_index
from evaluation.measures import DEFAULT_MEASURES, means, parse_measures, score_run
from evaluation.qrels import Qrels
from evaluation.rankings import Ranking, Run, make_ranking
from evaluation.run_table import RunTable, only, without_self_matches
from evaluation.testsets import Profile, TestSet
from indexes.errors import InputError
from retrieval.documents import Document

OnProgress = Callable[[int, int | None], None]
"""Called with the queries done so far and their total."""

MODES = ("lexical", "dense", "hybrid")
"""The order of a retriever's systems in a report: the last one is the main one."""

_QUERIES_AT_ONCE = 256


class Found(Protocol):
    """A hit: what of it is read here."""

    @property
    def id(self) -> str:
        """The document's id."""

    @property
    def score(self) -> float:
        """The higher the better."""


class Searcher(Protocol):
    """What can be evaluated: texts in, hits out, in one or several modes (`retrieval.Retriever` is one).

    More is used where a searcher has it: `search_queries(queries, k, *, mode)`, which takes {query id: text} in place
    of texts; `notices`, sentences about itself for the report; `queries_at_once`, how many to search together.
    """

    @property
    def modes(self) -> tuple[str, ...]:
        """The ways to search, such as "lexical", "dense" and "hybrid"."""

    def search_many(self, texts: Sequence[str], k: int, *, mode: str) -> Sequence[Sequence[Found]]:
        """Find at most k hits for each text."""


@dataclass(frozen=True)
class SystemResult:
    """How one system did."""

    metrics: dict[str, float]
    """Measure to its mean over all queries of the qrels."""
    per_query: dict[str, dict[str, float]] = field(repr=False)
    """Query id to measure to value."""
    run: Mapping[str, Ranking] = field(repr=False)
    against_exact: dict[str, float] = field(default_factory=dict)
    """Of an approximate index, by `evaluation.index_runs.against_exact`: `recall@10` to its mean over all queries."""


@dataclass(frozen=True)
class Report:
    """One or more systems measured on the same queries; the last system is the main one."""

    dataset: str
    split: str
    fingerprint: str
    profile: Profile
    notices: tuple[str, ...]
    systems: dict[str, SystemResult]
    queries: dict[str, str] = field(repr=False)
    """Query id to text."""
    qrels: Qrels = field(repr=False)
    made_by: dict[str, str] = field(default_factory=dict)
    """What made the runs: fingerprints and package versions, as the caller gave them."""
    documents: Callable[[], Iterable[Document]] | None = field(default=None, repr=False, compare=False)
    """Reads the corpus from its start, for the texts of documents that a report shows."""

    @property
    def main(self) -> SystemResult:
        """The main system: the last."""
        return next(reversed(self.systems.values()))

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the measures, in the order asked for."""
        return tuple(self.main.metrics)


def evaluate(
    retriever: Searcher,
    testset: TestSet,
    *,
    measures: Iterable[str] = DEFAULT_MEASURES,
    k: int = 1000,
    modes: Sequence[str] | None = None,
    made_by: Mapping[str, str] | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """Search every query of a test collection and measure what was found.

    Args:
        retriever: What is evaluated.
        testset: From `load_dataset`.
        measures: Names such as `nDCG@10`.
        k: How many hits each query gets; MAP and other measures without a cut-off read them all.
        modes: Each mode is one system of the report, and the last one the main one; None: all that the
            retriever has, in the order lexical, dense, hybrid.
        made_by: What to record in the report about the retriever.
        on_progress: Called after each batch of queries.

    Raises:
        InputError: A mode or measure is unknown, a measure reads more than k hits, or the retriever gave a
            document twice or a score that is not finite.
    """
    names = deep_enough(measures, k)
    chosen = _choose_modes(retriever.modes, modes)
    total = len(testset.queries) * len(chosen)
    runs: dict[str, Mapping[str, Ranking]] = {}
    for number, mode in enumerate(chosen):
        done = number * len(testset.queries)
        report_on = _shifted(on_progress, done, total)
        if isinstance(retriever, RowSearcher):
            runs[mode] = search_index(retriever, testset, k, mode, report_on)
        else:
            runs[mode] = _search(retriever, testset, k, mode, report_on)
    empty = [line for mode, run in runs.items() for line in _empty_lines(mode, run)]
    notices = [*testset.notices, *empty, *getattr(retriever, "notices", ())]
    return _report(runs, testset, names, notices, made_by)


def evaluate_run(
    run: Mapping[str, Ranking],
    testset: TestSet,
    *,
    name: str = "run",
    measures: Iterable[str] = DEFAULT_MEASURES,
    made_by: Mapping[str, str] | None = None,
    k: int | None = None,
    check_documents: bool = False,
) -> Report:
    """Measure a run that some system made, for example one from `read_run`.

    Hits whose id is the query's are dropped where the test collection's profile says so, as in `evaluate`. What is
    odd about the run is in the notices: missing and foreign queries, queries without hits, a measure that reads deeper
    than the run goes, and, if they are looked for, documents that the corpus lacks.

    Args:
        run: From `read_run`, or a `RunTable`.
        testset: From `load_dataset`.
        name: The system's.
        measures: Names such as `nDCG@10`.
        made_by: What to record in the report about the run.
        k: How many hits each query was searched for, if that is known; None: no more than a query has.
        check_documents: Whether to read the corpus through for documents of the run that it lacks, and count them.

    Raises:
        InputError: A measure is unknown, or the run and the test collection have no query in common.
    """
    known, wanted = only(run, testset.qrels), list(measures)
    notices = [*testset.notices, *unmatched(run, testset, name), *_empty_lines(name, known)]
    if check_documents:
        notices += _stranger_lines(name, known, testset)
    if k is None:
        notices += shallow_lines(name, known, wanted, testset.size)
    if testset.profile.drop_self_matches:
        known = without_self_matches(known)
    return _report({name: known}, testset, wanted, notices, made_by)


def unmatched(run: Mapping[str, Ranking], testset: TestSet, name: str = "run") -> list[str]:
    """Sentences about queries of the qrels that a run lacks, and about queries of it that have no qrels.

    Raises:
        InputError: They have no query in common.
    """
    known = sum(query in testset.qrels for query in run)
    if not known:
        ours, theirs = next(iter(testset.qrels)), next(iter(run), "nothing")
        raise InputError(
            f"run {name!r} has no query of {testset.name} ({testset.split}): its ids are like {theirs!r}, "
            f"the test collection's like {ours!r}; expected a run of this split"
        )
    notices = []
    if missing := len(testset.qrels) - known:
        notices.append(f"{missing:,} of {len(testset.qrels):,} queries are missing in run {name!r}; they count 0.")
    if foreign := len(run) - known:
        notices.append(f"{foreign:,} queries of run {name!r} have no judgements; they were left out.")
    return notices


def merge(reports: Mapping[str, Report]) -> Report:
    """Put systems that were measured apart into one report, the last report's last system being the main one.

    A report with one system gives it the name it has in `reports`; one with several puts that name before
    theirs.

    Raises:
        InputError: The reports are not of the same dataset, split and profile, or not of the same measures.
    """
    if not reports:
        raise InputError("no reports to merge; expected at least one")
    first_name, first = next(iter(reports.items()))
    for name, report in reports.items():
        for what, ours, theirs in (
            ("dataset fingerprint", first.fingerprint[:12], report.fingerprint[:12]),
            ("drop_self_matches", first.profile.drop_self_matches, report.profile.drop_self_matches),
            ("measures", ", ".join(first.measures), ", ".join(report.measures)),
        ):
            if ours != theirs:
                raise InputError(
                    f"reports {first_name!r} and {name!r} cannot be compared: {what} {ours} ≠ {theirs}; "
                    "measure both on the same dataset with the same measures"
                )
    systems: dict[str, SystemResult] = {}
    made_by: dict[str, str] = {}
    for name, report in reports.items():
        for system, result in report.systems.items():
            systems[name if len(report.systems) == 1 else f"{name} {system}"] = result
        made_by |= {key: value for key, value in report.made_by.items() if made_by.get(key, value) == value}
        made_by |= {f"{name}: {key}": value for key, value in report.made_by.items() if made_by[key] != value}
    unequal = unequal_lines({name: result.run for name, result in systems.items()}, first.measures)
    said = [notice for report in reports.values() for notice in report.notices]
    notices = tuple(dict.fromkeys([*said, *unequal]))
    return Report(
        first.dataset,
        first.split,
        first.fingerprint,
        first.profile,
        notices,
        systems,
        first.queries,
        first.qrels,
        made_by,
        first.documents,
    )


def deep_enough(measures: Iterable[str], k: int) -> list[str]:
    """The canonical names of the measures, if k hits are enough to compute them.

    Raises:
        InputError: One reads more, is unknown, or there is none.
    """
    if k < 1:
        raise InputError(f"k is {k}; expected at least 1 hit for each query")
    chosen = parse_measures(measures)
    for measure in chosen:
        if "@" in measure.name and measure.k > k:
            raise InputError(f"{measure.name} reads {measure.k:,} hits, but k is {k:,}; raise k or leave it out")
    return [measure.name for measure in chosen]


def _choose_modes(there: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    from retrieval.reranker import SUFFIX

    if wanted is None:
        return sorted(there, key=lambda mode: (mode.endswith(SUFFIX), _place(mode.removesuffix(SUFFIX))))
    unknown = next((mode for mode in wanted if mode not in there), None)
    if unknown is not None or not wanted:
        raise InputError(f"no mode {unknown!r} in this retriever; it has {', '.join(there)}")
    return list(dict.fromkeys(wanted))


def _place(mode: str) -> int:
    return MODES.index(mode) if mode in MODES else -1


def _search(retriever: Searcher, testset: TestSet, k: int, mode: str, on_progress: OnProgress) -> Run:
    """Search all queries, in batches that bound how many hits are held with their texts."""
    drop = testset.profile.drop_self_matches
    queries = list(testset.queries.items())
    run: Run = {}
    step = min(_QUERIES_AT_ONCE, getattr(retriever, "queries_at_once", _QUERIES_AT_ONCE))
    for start in range(0, len(queries), step):
        batch = queries[start : start + step]
        # One hit more where one may be dropped, so that k remain.
        found = _find(retriever, dict(batch), k + drop, mode)
        for (query, _), hits in zip(batch, found, strict=True):
            kept = [hit for hit in hits if not (drop and hit.id == query)][:k]
            place = f"mode {mode!r}, query {query!r}"
            run[query] = make_ranking([hit.id for hit in kept], [hit.score for hit in kept], place=place)
        on_progress(start + len(batch), len(queries))
    return run


def _find(retriever: Searcher, queries: dict[str, str], k: int, mode: str) -> Sequence[Sequence[Found]]:
    by_id = getattr(retriever, "search_queries", None)
    if by_id is not None:
        return by_id(queries, k, mode=mode)
    return retriever.search_many(list(queries.values()), k, mode=mode)


def _shifted(on_progress: OnProgress | None, done_before: int, total: int) -> OnProgress:
    def report(done: int, _: int | None) -> None:
        if on_progress is not None:
            on_progress(done_before + done, total)

    return report


def _empty_lines(name: str, run: Mapping[str, Ranking]) -> list[str]:
    """What to say of queries that found nothing."""
    empty = np.count_nonzero(run.counts == 0) if isinstance(run, RunTable) else sum(not one.ids for one in run.values())
    return [f"{empty:,} of {len(run):,} queries have no hits in {name!r}; they count 0."] if empty else []


def _stranger_lines(name: str, run: Mapping[str, Ranking], testset: TestSet) -> list[str]:
    """What to say of documents that the corpus lacks, which is read through for it."""
    table = RunTable.of_run(run).compact()
    unknown = set(table.ids)
    for document in testset.documents():
        unknown.discard(document.id)
    if not unknown:
        return []
    hits = np.isin(table.rows, table.numbers(list(unknown))).sum()
    return [
        f"{len(unknown):,} documents of run {name!r} are not in the corpus, such as {min(unknown)!r}; their {hits:,} "
        "hits keep their ranks and are not relevant unless judged so."
    ]


def _report(
    runs: Mapping[str, Mapping[str, Ranking]],
    testset: TestSet,
    measures: Iterable[str],
    notices: Sequence[str],
    made_by: Mapping[str, str] | None,
) -> Report:
    names = [measure.name for measure in parse_measures(measures)]
    systems = {}
    for system, run in runs.items():
        per_query = score_run(run, testset.qrels, names)
        systems[system] = SystemResult(means(per_query), per_query, run)
    return Report(
        testset.name,
        testset.split,
        testset.fingerprint,
        testset.profile,
        (*notices, *unequal_lines(runs, names)),
        systems,
        testset.queries,
        testset.qrels,
        dict(made_by or {}),
        testset.documents,
    )
