"""What runs the shards: this process (or its share of a torchrun or Slurm job), a pool of processes."""

import contextlib
import functools
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from multiprocessing import connection
from typing import Any, NamedTuple, Protocol

import numpy as np

from indexes.errors import InputError
from retrieval.batches import ahead
from retrieval.console import note
from retrieval.devices import cores, devices
from retrieval.documents import Document
from retrieval.encoder import Encoded, Encoder
from retrieval.passages import LongDocuments

_WINDOW = 2048
"""Documents that are tokenised and sorted by length together; part of what decides the bytes of a shard."""
_AT_ONCE = 2
"""Shards given to a worker: one to encode and one to tokenise meanwhile."""
_DEATHS = 3

Made = Generator["tuple[Work, Encoded]", None, None]
"""Shards as they are made; closing it ends the work."""
Report = Callable[[int], None]
"""Called with the documents done of the shard in work."""


class Work(NamedTuple):
    """A shard to make."""

    shard: int
    documents: list[Document]


class Runner(Protocol):
    """Encodes shards, in any order.

    Attributes:
        rank: Which of `world` cooperating processes this one is, from 0.
        world: Shard s is first of all for the process whose rank is s mod world.
    """

    rank: int
    world: int

    def encode(self, encoder: Encoder, works: Iterator[Work], long: LongDocuments, report: Report) -> Made:
        """Encode every shard of `works`, taking the next only when there is someone to make it."""
        ...


class ThisProcess:
    """Encodes in this process, tokenising ahead in a thread.

    Args:
        rank: Of this process among `world` processes that write the same folder without talking to each other.
        world: How many they are.

    Raises:
        InputError: rank is not below world.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        if not 0 <= rank < world:
            raise InputError(f"rank is {rank} of {world} processes; expected 0 to {world - 1}")
        self.rank = rank
        self.world = world

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "ThisProcess":
        """This process's share by what started it: torchrun (RANK, WORLD_SIZE), a Slurm array, srun; else all."""
        return cls(*_rank(environment))

    def encode(self, encoder: Encoder, works: Iterator[Work], long: LongDocuments, report: Report) -> Made:
        """Encode shards one after the other."""
        pieces = (
            (work, start, encoder.tokenize(work.documents[start : start + _WINDOW], long))
            for work in works
            for start in range(0, len(work.documents), _WINDOW)
        )
        parts: list[Encoded] = []
        with contextlib.closing(ahead(pieces)) as tokenized_ahead:
            for work, start, tokenized in tokenized_ahead:
                scale = tokenized.documents / max(len(tokenized.tokens), 1)
                encoded = encoder.run(tokenized, functools.partial(_report, report, start, scale))
                parts.append(_moved(encoded, start))
                if start + _WINDOW >= len(work.documents):
                    yield work, _joined(parts)
                    parts = []


def _report(report: Report, start: int, scale: float, done: int, total: int | None) -> None:
    report(start + int(done * scale))


def _moved(encoded: Encoded, first: int) -> Encoded:
    """Passages count documents from the beginning of the shard, not of the window."""
    if encoded.passages is None or not first:
        return encoded
    return encoded._replace(passages=encoded.passages + np.array([first, 0, 0]))


def _joined(parts: Sequence[Encoded]) -> Encoded:
    if len(parts) == 1:
        return parts[0]
    passages = [part.passages for part in parts if part.passages is not None]
    return Encoded(
        np.concatenate([part.vectors for part in parts]),
        np.concatenate(passages) if passages else None,
        sum(part.truncated for part in parts),
    )


def _rank(environment: Mapping[str, str]) -> tuple[int, int]:
    def number(name: str, default: int) -> int:
        value = environment.get(name, "")
        if value and not value.isdigit():
            raise InputError(f"the environment says {name}={value}; expected a whole number")
        return int(value) if value else default

    if "RANK" in environment and "WORLD_SIZE" in environment:
        return number("RANK", 0), number("WORLD_SIZE", 1)
    tasks, task = number("SLURM_NTASKS", 1), number("SLURM_PROCID", 0)
    if "SLURM_ARRAY_TASK_ID" in environment:
        step = number("SLURM_ARRAY_TASK_STEP", 1)
        place = (number("SLURM_ARRAY_TASK_ID", 0) - number("SLURM_ARRAY_TASK_MIN", 0)) // step
        return place * tasks + task, number("SLURM_ARRAY_TASK_COUNT", 1) * tasks
    return task, tasks


def local_device(environment: Mapping[str, str] = os.environ) -> str | None:
    """The device of this process on its machine, where torchrun or srun started several; None: the best there is."""
    place = environment.get("LOCAL_RANK") or environment.get("SLURM_LOCALID")
    there = devices()
    return there[int(place) % len(there)] if place and place.isdigit() and len(there) > 1 else None


class WorkerDied(Exception):
    """A worker of a pool is gone; the message says how."""


class Worker(Protocol):
    """One worker of a pool.

    Attributes:
        given: The shards it has been given and has not made yet, in order.
    """

    given: deque[Work]

    def give(self, work: Work) -> None:
        """Hand it a shard, without waiting for it."""
        ...

    def take(self) -> tuple[Work, Encoded]:
        """What it has made; raises WorkerDied if it is gone."""
        ...

    def stop(self) -> None:
        """End it, whatever it is doing."""
        ...


def dispatch(
    start: Callable[[int], Worker], wait: Callable[[list[Any]], list[int]], count: int, works: Iterator[Work]
) -> Made:
    """Give shards to whichever worker has room, and to another the shards of one that dies.

    Args:
        start: Starts the worker of a number below `count`, anew if it died.
        wait: Waits until workers of the list have something to take, and says which.
        count: How many workers.
        works: The shards; the next one is asked for when a worker has room.

    Raises:
        InputError: Three workers died over one shard.
    """
    redo: deque[Work] = deque()
    deaths: Counter[int] = Counter()
    workers: list[Any] = []
    try:
        workers += map(start, range(count))
        while True:
            for worker in workers:
                while len(worker.given) < _AT_ONCE and (work := redo.popleft() if redo else next(works, None)):
                    worker.give(work)
            if not any(worker.given for worker in workers):
                return
            for number in wait(workers):
                try:
                    made = workers[number].take()
                except WorkerDied as death:
                    lost = workers[number].given
                    _count_death(deaths, lost, death)
                    workers[number].stop()
                    redo.extendleft(reversed(lost))
                    workers[number] = start(number)
                else:
                    yield made
    finally:
        for worker in workers:
            worker.stop()


def _count_death(deaths: Counter[int], lost: deque[Work], death: WorkerDied) -> None:
    if not lost:
        return note(f"a worker {death}; another takes its place")
    shard = lost[0].shard
    deaths[shard] += 1
    if deaths[shard] == _DEATHS:
        raise InputError(
            f"{_DEATHS} workers died over shard {shard}, the last one {death}; finished shards are kept: "
            "give each more memory (fewer workers, a smaller max_length) and run the same command again"
        )
    return note(f"a worker {death}; another one makes its shards again")


class Processes:
    """Encodes in worker processes of this machine, by default one for each of its GPUs.

    The calling process reads the corpus and writes the shards. A worker that dies is noticed at once: its shards go to
    the others and a new worker takes its place. If the calling process dies, so do the workers.

    Args:
        workers: How many; None: one a device, two on a machine without GPUs.
        names: Their devices, in turn; None: all of the best kind.

    Raises:
        InputError: workers < 1.
    """

    rank = 0
    world = 1

    def __init__(self, workers: int | None = None, names: Sequence[str] | None = None) -> None:
        self.devices = list(names or devices())
        self.workers = workers if workers is not None else max(len(self.devices), 2)
        if self.workers < 1:
            raise InputError(f"workers are {self.workers}; expected at least 1")

    def encode(self, encoder: Encoder, works: Iterator[Work], long: LongDocuments, report: Report) -> Made:
        """Encode shards in the pool; each worker tokenises one while it encodes another."""
        threads = max(1, cores() // self.workers)
        places = ["cpu"] if encoder.backend.name == "openvino" else self.devices

        def start(number: int) -> _Process:
            return _Process(encoder, long, places[number % len(places)], threads)

        return dispatch(start, _wait, self.workers, works)


class _Process:
    """A worker process and the pipe to it.

    It is a fresh interpreter: nothing of the calling program is imported in it again, and no lock of a forked thread
    is held in it for ever.
    """

    def __init__(self, encoder: Encoder, long: LongDocuments, device: str, threads: int) -> None:
        self.given: deque[Work] = deque()
        self.pipe, theirs = connection.Pipe()
        program = "import sys; sys.path[:] = sys.argv[2:]; from retrieval.runners import serve; serve(int(sys.argv[1]))"
        self.process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-c", program, str(theirs.fileno()), *sys.path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is for the calling process, which ends its workers
        )
        theirs.close()
        self._send((encoder.options, encoder.fingerprint, long, device, threads))

    def give(self, work: Work) -> None:
        self.given.append(work)
        self._send(work)

    def _send(self, value: Any) -> None:
        with contextlib.suppress(OSError):  # if it is gone, `take` says so
            self.pipe.send(value)

    def take(self) -> tuple[Work, Encoded]:
        try:
            kind, value = self.pipe.recv()
        except (EOFError, OSError):
            raise WorkerDied(_cause(self.process.wait())) from None
        if kind == "refused":
            raise InputError(value)
        if kind == "failed":
            raise RuntimeError(f"a worker failed: {value}")
        return self.given.popleft(), value

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()


def _wait(workers: list[_Process]) -> list[int]:
    ready = connection.wait([worker.pipe for worker in workers])  # a pipe is ready too when its worker is gone
    return [number for number, worker in enumerate(workers) if worker.pipe in ready]


def _cause(status: int) -> str:
    if status < 0:
        name = signal.Signals(-status).name
        return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"ended with status {status}"


def serve(descriptor: int) -> None:
    """The life of a worker process: encode what comes through the pipe."""
    pipe = connection.Connection(descriptor)
    options, fingerprint, long, device, threads = pipe.recv()
    works = _received(pipe)
    try:
        encoder = load_worker_encoder(options, fingerprint, device, threads)
        for _, encoded in ThisProcess().encode(encoder, works, long, lambda done: None):
            pipe.send(("made", encoded))
    except InputError as error:
        pipe.send(("refused", str(error)))
    except Exception as error:
        pipe.send(("failed", f"{type(error).__name__}: {error}"))


def load_worker_encoder(options: Mapping[str, Any], fingerprint: str, device: str, threads: int) -> Encoder:
    """The same encoder in another process.

    Raises:
        InputError: What is found there under its name is another one.
    """
    import torch

    torch.set_num_threads(threads)
    encoder = Encoder.load(**options, device=device)
    if encoder.fingerprint != fingerprint:
        raise InputError(
            f"a worker found another model under {options['name']} ({encoder.fingerprint[:12]} ≠ {fingerprint[:12]}); "
            "give all workers the same files"
        )
    return encoder


def _received(pipe: connection.Connection) -> Iterator[Work]:
    """Shards from the pipe, read by a thread from the start.

    So the calling process never waits for this one to load its model, and this one ends at once when that one does.
    """
    arrived: queue.SimpleQueue[Work] = queue.SimpleQueue()

    def receive() -> None:
        while True:
            try:
                arrived.put(pipe.recv())
            except (EOFError, OSError):
                os._exit(1)

    threading.Thread(target=receive, name="receive", daemon=True).start()
    while True:
        yield arrived.get()
