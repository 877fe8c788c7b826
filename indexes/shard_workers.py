"""Workers that search a share of an index's segments: processes of this machine, or actors of a Ray cluster."""

import contextlib
import itertools
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from indexes.dense import LocalDense
from indexes.efforts import Effort
from indexes.errors import InputError, ShardLost
from indexes.faiss_files import load_faiss
from indexes.hits import Hits, Within
from indexes.segments import Segment


class Share(NamedTuple):
    """What a worker searches: neighbouring segments of a generation."""

    folder: str
    """The index folder."""
    segments: tuple[str, ...]
    """Their names."""
    first: int
    """The first of their rows."""
    rows: int
    """How many."""
    live: NDArray[np.uint8] | None
    """Which of them are not deleted, as packed bits; None: all."""
    threads: int | None
    """Of the worker; None: as many as it takes."""

    def of(self, keep: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """The part of a mask over all rows (n,), as packed bits."""
        return np.packbits(keep[self.first : self.first + self.rows])


class Worker(Protocol):
    """One worker."""

    opened: Future[Any]
    """Done when its segments are open."""

    def ask(self, what: str, *arguments: Any) -> Future[Any]:
        """Have it call a method of `Shard`; the result, or `ShardLost` if it dies before."""
        ...

    def stop(self) -> None:
        """End it."""
        ...


class Shard:
    """A share, opened in the worker. Rows count from its first one.

    Raises:
        InputError: A segment is not there any more, or damaged.
    """

    def __init__(self, share: Share) -> None:
        paths = [Path(share.folder) / name for name in share.segments]
        if missing := [path for path in paths if not path.is_dir()]:
            raise InputError(f"{missing[0]} is not there any more, as the index was changed; refresh")
        segments = [Segment(path) for path in paths]
        for segment in segments:
            segment.dense  # noqa: B018 - opened now, not when the first query comes
        self._dense = LocalDense(segments)
        self._rows = share.rows
        self._live = self._unpacked(share.live)

    def search(self, queries: NDArray[np.float32], k: int, keep: NDArray[np.uint8] | None, effort: Effort) -> Hits:
        """See `Dense`; None: all that are not deleted."""
        return self._dense.search(queries, k, self._live if keep is None else self._unpacked(keep), effort)

    def within(self, queries: NDArray[np.float32], least: float, keep: NDArray[np.uint8] | None) -> Within:
        """See `Dense`; None: all that are not deleted."""
        return self._dense.within(queries, least, self._live if keep is None else self._unpacked(keep))

    def scores(self, queries: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Dense`."""
        return self._dense.scores(queries, rows)

    def _unpacked(self, packed: NDArray[np.uint8] | None) -> NDArray[np.bool_] | None:
        return None if packed is None else np.unpackbits(packed, count=self._rows).astype(bool)


def limit_threads(count: int) -> None:
    """Have FAISS and matrix products of this process take so many threads from now on."""
    import torch
    from threadpoolctl import threadpool_limits

    load_faiss()  # what is loaded later is not limited
    torch.set_num_threads(count)
    threadpool_limits(count)


class ProcessWorker:
    """A worker process and the pipe to it.

    It is a fresh interpreter: nothing of the calling program is imported in it again, and no lock of a forked thread
    is held in it for ever. It ends when the calling process does.
    """

    def __init__(self, share: Share) -> None:
        self._waiting: dict[int, Future[Any]] = {}
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._pipe, theirs = connection.Pipe()
        start = "import sys; sys.path[:] = sys.argv[2:]; from indexes.shard_workers import serve"
        self.process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-c", f"{start}; serve(int(sys.argv[1]))", str(theirs.fileno()), *sys.path],
            env={**os.environ, **_of_threads(share.threads)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is for the calling process, which ends its workers
        )
        theirs.close()
        self._gone: ShardLost | None = None
        self.opened = self.ask("open", share)
        for work in (self._send, self._receive):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()

    def ask(self, what: str, *arguments: Any) -> Future[Any]:
        """See `Worker`."""
        answer: Future[Any] = Future()
        with self._lock:
            if self._gone is not None:
                answer.set_exception(self._gone)
                return answer
            number = next(self._numbers)
            self._waiting[number] = answer
        self._requests.put((number, what, arguments))
        return answer

    def stop(self) -> None:
        """See `Worker`."""
        self.process.kill()
        self.process.wait()

    def _send(self) -> None:
        """Hand requests to the worker: by a thread, as the pipe takes no more while the worker is busy or silent."""
        with contextlib.suppress(OSError):  # if it is gone, the receiving thread says so
            while (request := self._requests.get()) is not None:
                self._pipe.send(request)

    def _receive(self) -> None:
        """Hand answers to those who wait for them, until the worker is gone."""
        while True:
            try:
                number, kind, value = self._pipe.recv()
            except (EOFError, OSError):
                return self._end()
            with self._lock:
                answer = self._waiting.pop(number)
            if kind == "done":
                answer.set_result(value)
            else:
                answer.set_exception(InputError(value) if kind == "refused" else RuntimeError(value))

    def _end(self) -> None:
        status = self.process.wait()
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        with self._lock:
            self._gone = ShardLost(f"the worker process {self.process.pid} {how}")
            waiting, self._waiting = self._waiting, {}
        self._requests.put(None)
        for answer in waiting.values():
            answer.set_exception(self._gone)
        self._pipe.close()


def _of_threads(count: int | None) -> dict[str, str]:
    """What tells a new process how many threads FAISS and matrix products take."""
    return {} if count is None else dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(count))


def serve(descriptor: int) -> None:
    """The life of a worker process: answer what comes through the pipe, until the calling process is gone."""
    pipe = connection.Connection(descriptor)
    share: Share | None = None
    shard: Shard | None = None
    while True:
        try:
            number, what, arguments = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        try:
            share = share or arguments[0]  # of the first request, to open it
            shard = shard or Shard(share)
            value = None if what == "open" else getattr(shard, what)(*arguments)
            pipe.send((number, "done", value))
        except InputError as error:
            pipe.send((number, "refused", str(error)))
        except Exception as error:
            pipe.send((number, "failed", f"{type(error).__name__}: {error}"))


class RayWorker:
    """An actor on a Ray cluster, whose nodes all see the index folder under the same path."""

    def __init__(self, ray: Any, share: Share) -> None:
        # No processor is reserved: the actors of a node that dies must find room on those that live.
        actor = ray.remote(num_cpus=0, max_restarts=0, scheduling_strategy="SPREAD")(_Actor)
        self._ray = ray
        self._handle = actor.remote(share)
        self.opened = self.ask("open")

    def ask(self, what: str, *arguments: Any) -> Future[Any]:
        """See `Worker`."""
        answer: Future[Any] = Future()
        self._handle.answer.remote(what, *arguments).future().add_done_callback(
            lambda done: self._pass_on(done, answer)
        )
        return answer

    def stop(self) -> None:
        """See `Worker`."""
        self._ray.kill(self._handle)

    def _pass_on(self, done: Future[Any], answer: Future[Any]) -> None:
        error = done.exception()
        lost = (self._ray.exceptions.RayActorError, self._ray.exceptions.ObjectLostError)
        if isinstance(error, lost):
            answer.set_exception(ShardLost(f"an actor of the Ray cluster is gone ({type(error).__name__})"))
        elif error is not None:
            answer.set_exception(error)
        else:
            kind, value = done.result()
            if kind == "done":
                answer.set_result(value)
            else:
                answer.set_exception(InputError(value))


class _Actor:
    """What runs in an actor."""

    def __init__(self, share: Share) -> None:
        if share.threads is not None:
            limit_threads(share.threads)  # Ray sets what a new process would be told by
        self._share = share
        self._shard: Shard | None = None

    def answer(self, what: str, *arguments: Any) -> tuple[str, Any]:
        """What a method of `Shard` gives, or why it was refused."""
        try:
            self._shard = self._shard or Shard(self._share)
            return "done", None if what == "open" else getattr(self._shard, what)(*arguments)
        except InputError as error:
            return "refused", str(error)


def shares(
    folder: Path, segments: Sequence[tuple[str, int]], live: NDArray[np.bool_] | None, count: int, threads: int | None
) -> list[Share]:
    """Deal segments out to at most so many workers, neighbours together, so that they have about as many rows each.

    Args:
        folder: The index folder.
        segments: Of each its name and how many documents it has, in the order of their rows.
        live: (n,) which documents are not deleted; None: all.
        count: How many workers; fewer if there are fewer segments.
        threads: Of each worker.
    """
    count = min(count, len(segments))
    total = sum(size for _, size in segments)
    made: list[Share] = []
    names: list[str] = []
    first = rows = 0
    for number, (name, size) in enumerate(segments):
        names.append(name)
        rows += size
        left = len(segments) - number - 1
        enough = first + rows >= total * (len(made) + 1) / count or left == count - len(made) - 1
        if enough and (len(made) < count - 1 or not left):
            packed = None if live is None else np.packbits(live[first : first + rows])
            made.append(Share(str(folder.resolve()), tuple(names), first, rows, packed, threads))
            names, first, rows = [], first + rows, 0
    return made
