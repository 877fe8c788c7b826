"""Sharded search: the segments of one index searched by several workers, of this machine or of a Ray cluster."""

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexes.efforts import DEFAULT, Effort
from indexes.errors import InputError
from indexes.exact import nothing
from indexes.generations import opened
from indexes.hits import Hits, Within, merge
from indexes.index import Index
from indexes.ray_cluster import connected_ray
from indexes.reader import Reader
from indexes.shard_workers import ProcessWorker, RayWorker, ShardLost, Share, Worker, shares

POLICIES = ("fail", "degrade")
_PAUSE = 0.05

Asked = Callable[[Worker, Share], Future[Any]]


class Answer(NamedTuple):
    """Hits, and of how many documents: see `Hits` for rows and scores."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    coverage: float
    """The share of the documents that was searched; 1 is all."""


class ShardedDense:
    """Searches a generation's vectors by workers, each of which has some of its segments; see `Dense`.

    A worker that dies is started again. Until it has opened its segments, `fail` makes searches wait for it, and fail
    if it takes too long; `degrade` has them answer without it, and say so.

    Args:
        parts: What the workers search, together everything.
        live: (n,) which documents are not deleted, as the parts say too; None: all.
        start: Starts a worker.
        on_loss: `fail` or `degrade`.
        patience: Seconds that a search waits for a worker: for one that is started again or, with `degrade` too, for
            an answer.
    """

    def __init__(
        self,
        parts: Sequence[Share],
        live: NDArray[np.bool_] | None,
        start: Callable[[Share], Worker],
        on_loss: str,
        patience: float,
    ) -> None:
        self._shares, self._live, self._start = list(parts), live, start
        self._degrade, self._patience = on_loss == "degrade", patience
        self._lock = threading.Condition()
        self._closed = False
        self._searching = 0
        self._rows = sum(share.rows for share in parts)
        self._workers: list[Worker] = []
        self._end = weakref.finalize(self, _stop_all, self._workers)
        try:
            self._workers += map(start, parts)
            for worker, share in zip(self._workers, parts, strict=True):
                self._opened(worker, share)
        except BaseException:
            self.close()
            raise

    @property
    def coverage(self) -> float:
        """The share of the documents whose worker can be asked now."""
        with self._lock:
            ready = [share.rows for worker, share in zip(self._workers, self._shares, strict=True) if _is_ready(worker)]
        return sum(ready) / max(self._rows, 1)

    def search(self, queries: NDArray[np.float32], k: int, keep: NDArray[np.bool_] | None, effort: Effort) -> Hits:
        """The best k of the documents to keep (n,), None being all that live, or as many as there are."""
        rows, scores, _ = self.answer(queries, k, keep, effort, degrade=False)
        return Hits(rows, scores)

    def answer(
        self,
        queries: NDArray[np.float32],
        k: int,
        keep: NDArray[np.bool_] | None,
        effort: Effort,
        *,
        degrade: bool | None = None,
    ) -> Answer:
        """The same, and of which share of the documents; of all, where it must not degrade."""
        degrade = self._degrade if degrade is None else degrade

        def ask(worker: Worker, share: Share) -> Future[Any]:
            return worker.ask("search", queries, k, self._kept(share, keep), effort)

        found, rows = [], 0
        for share, hits in self._all(ask, degrade=degrade):
            rows += share.rows
            found.append(Hits(_moved(hits.rows, share), hits.scores))
        count = min(k, sum(one.rows.shape[1] for one in found))
        hits = merge(found, count) if count else nothing(len(queries), 0)
        return Answer(hits.rows, hits.scores, rows / self._rows if self._rows else 1.0)

    def within(self, queries: NDArray[np.float32], least: float, keep: NDArray[np.bool_] | None) -> Within:
        """All documents to keep whose score is at least so much."""

        def ask(worker: Worker, share: Share) -> Future[Any]:
            return worker.ask("within", queries, least, self._kept(share, keep))

        return Within.joined(len(queries), [(share.first, found) for share, found in self._all(ask)])

    def scores(self, queries: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Exact scores of each query with its own documents, by row (q, m); -inf where a row is -1."""

        def ask(worker: Worker, share: Share) -> Future[Any]:
            here = (share.first <= rows) & (rows < share.first + share.rows)
            return worker.ask("scores", queries, np.where(here, rows - share.first, -1))

        out = np.full(rows.shape, -np.inf, np.float32)
        for _, found in self._all(ask):
            np.maximum(out, found, out=out)
        return out

    def close(self) -> None:
        """End the workers, once the searches that are under way have ended; else they end with this object."""
        with self._lock:
            self._closed = True
            self._lock.wait_for(lambda: not self._searching, self._patience)
            self._end()

    def _kept(self, share: Share, keep: NDArray[np.bool_] | None) -> NDArray[np.uint8] | None:
        """What a worker is to keep; None: all that live, which it knows."""
        return None if keep is self._live else share.of(np.ones(self._rows, bool) if keep is None else keep)

    def _all(self, ask: Asked, *, degrade: bool = False) -> Iterator[tuple[Share, Any]]:
        """What every worker answers, or with `degrade` those that can.

        Raises:
            ShardLost: A worker is, or does not answer in time; with `degrade`: all are.
        """
        with self._lock:
            if self._closed:
                raise ShardLost("the workers were ended; open the index again")
            self._searching += 1
        try:
            yield from self._answers(ask, degrade=degrade)
        finally:
            with self._lock:
                self._searching -= 1
                self._lock.notify_all()

    def _answers(self, ask: Asked, *, degrade: bool) -> Iterator[tuple[Share, Any]]:
        end = time.monotonic() + self._patience
        asked = [(number, *self._ask(number, ask, degrade=degrade)) for number in range(len(self._shares))]
        wait([future for *_, future in asked], self._patience)
        answered, why = 0, ""
        for number, worker, future in asked:
            share = self._shares[number]
            try:
                answer = self._answer(number, worker, future, ask, end, degrade=degrade)
            except ShardLost as lost:
                if not degrade:
                    raise
                why = str(lost)
            else:
                answered += 1
                yield share, answer
        if asked and not answered:
            raise ShardLost(f"no worker answers ({why})")

    def _ask(self, number: int, ask: Asked, *, degrade: bool) -> tuple[Worker, Future[Any]]:
        with self._lock:
            worker = self._workers[number]
        if degrade and not worker.opened.done():
            opening: Future[Any] = Future()
            opening.set_exception(_Opening("it is being opened"))
            return worker, opening
        return worker, ask(worker, self._shares[number])

    def _answer(
        self, number: int, worker: Worker, future: Future[Any], ask: Asked, end: float, *, degrade: bool
    ) -> Any:
        name = f"shard {number + 1} of {len(self._shares)} ({', '.join(self._shares[number].segments)})"
        while True:
            try:
                return future.result(max(0.0, end - time.monotonic()))
            except TimeoutError:
                self._replace(number, worker)
                said = f"{name} has not answered in {self._patience:g} s; it is started again"
                raise ShardLost(said) from None
            except ShardLost as lost:
                if not isinstance(lost, _Opening):
                    self._replace(number, worker)
                if degrade or time.monotonic() > end:
                    raise ShardLost(f"{name}: {lost}; it is started again") from None
                time.sleep(_PAUSE)
                worker, future = self._ask(number, ask, degrade=degrade)

    def _replace(self, number: int, lost: Worker) -> None:
        """Start a worker anew, unless that was done already."""
        with self._lock:
            if self._workers[number] is lost and not self._closed:
                with contextlib.suppress(Exception):
                    lost.stop()
                self._workers[number] = self._start(self._shares[number])

    def _opened(self, worker: Worker, share: Share) -> None:
        try:
            worker.opened.result(self._patience)
        except TimeoutError:
            said = f"a worker has not opened {', '.join(share.segments)} in {self._patience:g} s; allow more (patience)"
            raise ShardLost(said) from None


def _stop_all(workers: list[Worker]) -> None:
    for worker in workers:
        with contextlib.suppress(Exception):
            worker.stop()


class _Opening(ShardLost):
    """A worker was started again and has not opened its segments yet."""


class Unsearched:
    """Stands for the workers of a generation until they are started."""

    def _refuse(self, *_: Any) -> Any:
        raise ShardLost("the workers are not started yet")

    search = within = scores = _refuse


class ShardedIndex(Index):
    """An index whose segments are searched by several workers: processes of this machine, or actors of a Ray cluster.

    It is searched as an `Index` is, by a `Retriever` too, and gives the same hits. Workers take neighbouring segments,
    each at least one: build the index with several (`Index.build(…, segments=4)`). All must see the folder under the
    same path. This process opens no FAISS file to search, but to give vectors back (`get`). Use it as a context, or
    `close` it.

    Args:
        folder: The index folder.
        workers: How many.
        ray: The address of a Ray cluster, or true for the one this process is connected to, else a new one here; None:
            processes of this machine.
        on_loss: What `search` does while a worker that was lost is started again. `fail`: wait, and fail if that takes
            too long. `degrade`: answer without its part, and say with which coverage; all else, and a `Retriever`, has
            nothing to say it by, and waits.
        patience: Seconds that a search waits for a worker.
        threads: Of each worker; None: the cores, divided among them.
        check: How much of the files is compared with their checksums, here and once; see `Index.open`.

    Raises:
        InputError: What `Index.open` refuses, an option is out of range, or there is no such cluster.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        workers: int = 2,
        ray: str | bool | None = None,
        on_loss: str = "fail",
        patience: float = 60.0,
        threads: int | None = None,
        check: str | None = None,
    ) -> None:
        if on_loss not in POLICIES:
            raise InputError(f"on_loss is {on_loss!r}; expected one of {', '.join(POLICIES)}")
        for name, value in (("workers", workers), ("threads", threads)):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; expected at least 1")
        if not patience > 0:
            raise InputError(f"patience is {patience} s; expected more than 0")
        self._start, self._cores = _starter(ray)
        self._workers, self._threads = workers, threads
        self._on_loss, self._patience = on_loss, patience
        folder = Path(folder)
        super().__init__(folder, opened(folder, lambda manifest: self._read(folder, manifest), check))

    @classmethod
    def open(cls, folder: str | Path, check: str | None = None, *, device: str | None = None) -> "ShardedIndex":
        """Open an index folder with two worker processes; they search on the processor."""
        if device is not None:
            raise InputError(f"device is {device!r}; sharded search is on processors: leave it out")
        return cls(folder, check=check)

    def __enter__(self) -> "ShardedIndex":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        self._dense.close()

    @property
    def coverage(self) -> float:
        """The share of the documents that can be searched now; below 1 while a lost worker is started again."""
        return self._dense.coverage

    def search(  # type: ignore[override] # its answer is what Hits are, and one field more
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        filter: str | NDArray[np.bool_] | None = None,
        effort: Effort = DEFAULT,
    ) -> Answer:
        """Find the k documents of the largest inner product for each query; see `Reader.search`.

        Raises:
            ShardLost: A worker is lost or silent for too long; with `degrade`: all are.
        """
        reader = self.reader
        dense = reader.dense
        assert isinstance(dense, ShardedDense)  # noqa: S101 - for the type checker
        return dense.answer(*reader.asked(queries, k, filter, effort))

    @property
    def _dense(self) -> ShardedDense:
        dense = self.reader.dense
        assert isinstance(dense, ShardedDense)  # noqa: S101 - for the type checker
        return dense

    def _read(self, folder: Path, manifest: Mapping[str, Any], before: Reader | None = None) -> Reader:
        reader = Reader(folder, manifest, before, dense=Unsearched())
        segments = [(one["name"], one["documents"]) for one in manifest["segments"]]
        each = self._threads or max(1, self._cores // max(1, min(self._workers, len(segments))))
        parts = shares(folder, segments, reader.live, self._workers, each)
        reader.dense = ShardedDense(parts, reader.live, self._start, self._on_loss, self._patience)
        return reader

    def _refuse_changes(self) -> None:
        raise InputError(f"{self.folder} is opened for sharded search; change it by Index.open, then refresh this one")


def _starter(ray: str | bool | None) -> tuple[Callable[[Share], Worker], int]:
    """What starts a worker, and how many cores there are for all of them."""
    if ray is None or ray is False:
        mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return ProcessWorker, mine or 1
    module = connected_ray(None if ray is True else ray)
    return lambda share: RayWorker(module, share), int(module.cluster_resources().get("CPU", 1))


def _is_ready(worker: Worker) -> bool:
    return worker.opened.done() and worker.opened.exception() is None


def _moved(rows: NDArray[np.int64], share: Share) -> NDArray[np.int64]:
    return np.where(rows < 0, -1, rows + share.first)
