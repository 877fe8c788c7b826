"""Tuning: indexes and efforts tried on real queries, against exact search, until a goal is met."""

import contextlib
import math
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from indexes.approximate import Approximate
from indexes.candidates import candidates, structure_bytes
from indexes.efforts import DEFAULT, Effort
from indexes.errors import InputError
from indexes.exact import search_exact
from indexes.faiss_files import build_faiss
from indexes.hits import Hits
from indexes.layout import file_bytes, order_file
from indexes.manifest import sync
from indexes.operating_points import Goal, Point, fastest, least_mean, recalls, refusal
from indexes.passages import Passages
from indexes.segments import JoinedRows, Segment
from indexes.targets import Targets
from indexes.tuned import Tuned, processor
from indexes.vectors import Rows

LEAST_QUERIES = 50
_SAMPLE = 200_000
_CALLS, _LEAST_CALLS = 100, 40
_FINALISTS = 10
_ROUNDS = 3
_PLATEAU = 5e-4
_SLACK = 1.2

Report = Callable[[str], None]
Search = Callable[[NDArray[np.float32], int, Effort], Hits]


class Candidate(NamedTuple):
    """An index that may be chosen."""

    factory: str
    search: Search
    steps: list[list[Effort]]
    """Efforts to try; see `efforts.ladder`."""
    bytes: int
    exact: bool
    """Whether it finds everything, by its kind."""


class Trial(NamedTuple):
    """Queries, and what exact search finds for them."""

    queries: NDArray[np.float32]
    """(q, d)"""
    best: NDArray[np.float32]
    """(q, k) the scores of the k best documents."""
    goal: Goal

    @classmethod
    def of(cls, queries: NDArray[np.float32], targets: Targets, goal: Goal) -> "Trial":
        """Search exactly."""
        return cls(queries, search_exact(queries, targets, goal.k).scores, goal)

    def measure(self, candidate: Candidate, effort: Effort, rounds: int = 1) -> Point:
        """Search with all queries, as many at once as the goal says; exact candidates with some, as they take long."""
        size = self.goal.batch
        queries = self.queries[: _CALLS * size] if candidate.exact else self.queries
        parts = [np.ascontiguousarray(queries[first : first + size]) for first in range(0, len(queries), size)]
        repeats = math.ceil(_LEAST_CALLS / len(parts))
        found: list[NDArray[np.float32]] = []
        seconds: list[list[float]] = []
        with threads(self.goal.threads):
            candidate.search(parts[0], self.goal.k, effort)  # what is opened or computed once is no part of the time
            for _ in range(rounds):
                found.clear()
                seconds.append([])
                for part in parts * repeats:
                    start = time.perf_counter()
                    hits = candidate.search(part, self.goal.k, effort)
                    seconds[-1].append(time.perf_counter() - start)
                    found.append(hits.scores)
        found = found[: len(parts)]
        shares = recalls(np.concatenate(found), self.best[: len(queries)])
        full = len(queries) // size  # the last call may be of fewer
        whole = [[one for at, one in enumerate(times) if at % len(parts) < full] for times in seconds]
        return Point(
            factory=candidate.factory,
            effort=effort,
            recall=float(shares.mean()),
            least_recall=1.0 if candidate.exact else least_mean(shares),
            p50_ms=1e3 * median(float(np.quantile(times, 0.5)) for times in whole),
            p95_ms=1e3 * median(float(np.quantile(times, 0.95)) for times in whole),
            queries_per_s=repeats * len(queries) / median(map(sum, seconds)),
            bytes=candidate.bytes,
        )

    def sweep(self, candidate: Candidate) -> list[Point]:
        """Measure effort by effort, from the least on, until more can only be slower than what meets the goal."""
        points: list[Point] = []
        for depth in candidate.steps:
            here: list[Point] = []
            for effort in depth:
                here.append(self.measure(candidate, effort))
                met = here[-1].finds(self.goal)
                if met or (len(here) > 1 and here[-1].recall - here[-2].recall < _PLATEAU):
                    break
            points += here
            enough = [one.p95_ms for one in points if one.finds(self.goal)]
            if enough and here[0].p95_ms > _SLACK * min(enough):
                break
        return points


def check_asked(queries: int, goal: Goal, documents: int) -> None:
    """Refuse to tune.

    Raises:
        InputError: There are too few queries, k is larger than the number of documents, or the goal is none.
    """
    goal.check()
    least = max(LEAST_QUERIES, goal.batch)
    if queries < least:
        raise InputError(f"there are {queries} queries to tune with; expected at least {least}")
    if goal.k > documents:
        raise InputError(f"k is {goal.k}; there are {documents} documents")


class Tuning:
    """Candidates over the documents of a segment, built, measured and compared.

    Of more than 200,000 vectors, a sample says in which order candidates are built over all of them; the first that
    meets the goal there is taken.

    Args:
        queries: (q, d) that were not made of the documents.
        goal: What is to be met.
        base: The documents.
        factory: Of the segment.
        work: A folder for FAISS files, used again if it holds some.
        report: Called with a line about each step.

    """

    def __init__(
        self, queries: NDArray[np.float32], goal: Goal, base: Segment, factory: str, work: Path, report: Report
    ) -> None:
        self.queries, self.goal, self.base, self.factory = queries, goal, base, factory
        self._work, self._report = work, report
        self._candidates: dict[str, Candidate] = {}

    def run(self, factories: Sequence[str] | None, source: str) -> Tuned:
        """Measure candidates and choose the fastest point that meets the goal.

        Args:
            factories: To try; None: `candidates`.
            source: Where the queries are from, for the record.

        Raises:
            InputError: FAISS refuses a factory, or nothing meets the goal; the message says what comes nearest.
        """
        start = time.perf_counter()
        names = factories or candidates(self.base.dense.rows, self.base.dense.dim)
        points = self._measured(self._affordable(list(dict.fromkeys(names))), lenient=factories is None)
        chosen = fastest(points, self.goal, 1)
        if not chosen:
            raise InputError(refusal(points, self.goal))
        seconds = round(time.perf_counter() - start, 1)
        queries, documents = len(self.queries), len(self.base)
        return Tuned(self.goal, chosen[0], points, queries, source, documents, processor(), seconds)

    def file(self, factory: str) -> Path:
        """The FAISS file of a candidate, built if it is not there yet."""
        path = self._work / f"{_file_name(factory)}.faiss"
        rows = np.arange(self.base.dense.rows)
        return self._built(path, factory, JoinedRows([(self.base.dense.targets, rows)]))

    def candidate(self, factory: str) -> Candidate:
        """An index of these documents, built if it is not there yet."""
        if factory not in self._candidates:
            self._candidates[factory] = self._opened(factory)
        return self._candidates[factory]

    def _affordable(self, factories: list[str]) -> list[str]:
        """Those that will fit into memory, as far as one can know."""
        if self.goal.memory_gb is None:
            return factories
        sizes = {one: structure_bytes(one, self.base.dense.rows, self.base.dense.dim) or 0 for one in factories}
        left = [one for one, size in sizes.items() if size <= 1e9 * self.goal.memory_gb]
        if not left:
            least = min(sizes, key=lambda one: sizes[one])
            raise InputError(
                f"memory_gb is {self.goal.memory_gb:g}; the smallest candidate, {least}, takes "
                f"{sizes[least] / 1e9:.3g}: allow more, or name a factory that compresses more"
            )
        if len(left) < len(factories):
            self._report(f"too large for {self.goal.memory_gb:g} GB: {', '.join(set(factories) - set(left))}")
        return left

    def _measured(self, factories: Sequence[str], *, lenient: bool) -> list[Point]:
        """Measure one after the other, or pass over what FAISS cannot build (lenient)."""
        rows = self.base.dense.rows
        trial = Trial.of(self.queries, self.base.targets, self.goal)
        if rows > _SAMPLE:
            factories = self._in_order(factories)
        points: list[Point] = []
        for factory in factories:
            try:
                candidate = self.candidate(factory)
            except InputError as refused:
                if not lenient:
                    raise
                self._report(f"passed over: {refused}")
                continue
            here = trial.sweep(candidate)
            self._report(_summary(factory, here, self.goal))
            points += here
            if rows > _SAMPLE and any(one.meets(self.goal) for one in here):
                break
        sure: set[Point] = set()  # one lucky or unlucky moment is not to decide
        while len(sure) < _FINALISTS and (best := fastest(points, self.goal, 1)) and best[0] not in sure:
            again = trial.measure(self.candidate(best[0].factory), best[0].effort, _ROUNDS)
            points[points.index(best[0])] = again
            sure.add(again)
        return points

    def _in_order(self, factories: Sequence[str]) -> list[str]:
        """The factories, those that met the goal fastest over a sample first."""
        rows = self.base.dense.rows
        chosen = np.sort(np.random.default_rng(0).choice(rows, _SAMPLE, replace=False))
        sample = Targets(self.base.dense.targets.rows(chosen))
        trial = Trial.of(self.queries, sample, self.goal)
        best: dict[str, float] = {}
        for factory in factories:
            if factory == "Flat":
                candidate = _exact(sample)
            else:
                path = self._work / f"sample-{_file_name(factory)}.faiss"
                everything = np.arange(len(sample))
                self._built(path, factory, JoinedRows([(sample, everything)]))
                candidate = _approximate(factory, Approximate(path, sample.vectors), path)
            points = trial.sweep(candidate)
            self._report(f"of {_SAMPLE:,} vectors: {_summary(factory, points, self.goal)}")
            times = [one.p95_ms for one in points if one.finds(self.goal)]
            best[factory] = min(times, default=math.inf) * (rows / _SAMPLE if candidate.exact else 1)
        return sorted(factories, key=lambda one: best[one])

    def _opened(self, factory: str) -> Candidate:
        if factory == "Flat":
            return _exact(self.base.targets)
        own = factory == self.factory
        path = self.base.file if own else self.file(factory)
        dense = self.base.dense if own else Approximate(path, self.base.dense.targets.vectors)
        table = self.base.table
        return _approximate(factory, dense if table is None else Passages(dense, table, len(self.base)), path, dense)

    def _built(self, path: Path, factory: str, rows: Rows) -> Path:
        if not path.is_file():
            start = time.perf_counter()
            new = path.with_suffix(".new")
            build_faiss(rows, factory, new)
            for made, place in ((order_file(new), order_file(path)), (new, path)):  # the file itself last
                if made.is_file():
                    sync(made)
                    made.rename(place)
            self._report(f"{factory} built over {len(rows):,} vectors in {time.perf_counter() - start:.1f} s")
        return path


def threads(count: int | None) -> AbstractContextManager[object]:
    """So many threads of FAISS and of matrix products; None: as many as they take."""
    if count is None:
        return contextlib.nullcontext()
    import torch  # noqa: F401 - what is loaded later would not be limited

    return threadpool_limits(count)


def _exact(targets: Targets) -> Candidate:
    size = targets.vectors.nbytes
    return Candidate("Flat", lambda queries, k, _: search_exact(queries, targets, k), [[DEFAULT]], size, True)


def _approximate(
    factory: str, searched: Approximate | Passages, path: Path, dense: Approximate | None = None
) -> Candidate:
    def search(queries: NDArray[np.float32], k: int, effort: Effort) -> Hits:
        return searched.search(queries, k, effort=effort)

    inner = dense or searched
    assert isinstance(inner, Approximate)  # noqa: S101 - for the type checker
    return Candidate(factory, search, inner.ladder(), file_bytes(path), inner.exhaustive)


def _summary(factory: str, points: Sequence[Point], goal: Goal) -> str:
    met = fastest(points, goal, 1)
    if not met:
        most = max(points, key=lambda one: one.least_recall)
        found = f"{most.name}: recall {most.recall:.4f}, p95 {most.p95_ms:.3g} ms"
        return f"{factory} does not meet the goal; it finds most as {found}"
    (one,) = met
    return f"{one.name}: recall {one.recall:.4f} (at least {one.least_recall:.4f}), p95 {one.p95_ms:.3g} ms"


def _file_name(factory: str) -> str:
    return re.sub(r"[^\w.+-]", lambda found: f"%{ord(found[0]):02x}", factory)
