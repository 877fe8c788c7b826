"""Shards on a Ray cluster: an actor a worker, started again elsewhere if it or its node dies."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from indexes.errors import InputError
from indexes.ray_cluster import connected_ray
from retrieval.encoder import Encoded, Encoder
from retrieval.passages import LongDocuments
from retrieval.runners import Made, Report, ThisProcess, Work, WorkerDied, dispatch, load_worker_encoder

_SECONDS = 1.0


class RayActors:
    """Encodes in actors on a Ray cluster (extra `ray`).

    The calling process reads the corpus and writes the shards, so that the nodes need no common file system; they need
    the model under the same name. An actor whose process or node dies is replaced wherever there is room, and its
    shards are made again.

    Args:
        workers: How many actors; None: one for each GPU of the cluster, or for each node where it has none.
        address: Of a running cluster, such as `auto` or `ray://host:10001`; None: the one this process is connected to,
            else a new one on this machine.

    Raises:
        InputError: Ray is not installed, there is no such cluster, or workers < 1.
    """

    rank = 0
    world = 1

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        self.ray = connected_ray(address)
        if workers is not None and workers < 1:
            raise InputError(f"workers are {workers}; expected at least 1")
        resources = self.ray.cluster_resources()
        self.gpus = int(resources.get("GPU", 0))
        nodes = sum(node["Alive"] for node in self.ray.nodes())
        self.workers = workers or self.gpus or nodes
        self.threads = max(1, int(resources.get("CPU", 1)) // self.workers)

    def encode(self, encoder: Encoder, works: Iterator[Work], long: LongDocuments, report: Report) -> Made:
        """Encode shards in the actors."""
        ray = self.ray
        on_gpu = self.gpus > 0 and encoder.backend.name == "torch"
        # No processor is reserved: the actors of a node that dies must find room on those that live.
        actor = ray.remote(num_gpus=int(on_gpu), num_cpus=0, max_restarts=0, scheduling_strategy="SPREAD")(_Encoding)
        device = "cuda" if on_gpu else "cpu"

        def start(number: int) -> _Actor:
            handle = actor.remote(encoder.options, encoder.fingerprint, long, device, self.threads)
            return _Actor(ray, handle)

        def wait(workers: list[_Actor]) -> list[int]:
            first = {worker.results[0]: number for number, worker in enumerate(workers) if worker.results}
            ready: list[Any] = []
            while not ready:
                ready, _ = ray.wait(list(first), num_returns=1, timeout=_SECONDS)
                if not ready:
                    self._check_node()
            return [first[one] for one in ready]

        return dispatch(start, wait, self.workers, works)

    def _check_node(self) -> None:
        # Without the node that this process is connected to, Ray starts no actor and says nothing of it.
        mine = self.ray.get_runtime_context().get_node_id()
        if not any(node["NodeID"] == mine and node["Alive"] for node in self.ray.nodes()):
            raise InputError(
                f"the Ray node {mine[:8]} that this process is connected to is gone; finished shards are kept: "
                "run the same command again"
            )


class _Encoding:
    """What runs in an actor."""

    def __init__(
        self, options: Mapping[str, Any], fingerprint: str, long: LongDocuments, device: str, threads: int
    ) -> None:
        self.task = (options, fingerprint, device, threads)
        self.long = long
        self.encoder: Encoder | None = None

    def encode(self, work: Work) -> tuple[str, Any]:
        """A shard's vectors, or why it was refused."""
        try:
            self.encoder = self.encoder or load_worker_encoder(*self.task)
            made = ThisProcess().encode(self.encoder, iter([work]), self.long, lambda done: None)
            return "made", next(iter(made))[1]
        except InputError as error:
            return "refused", str(error)


class _Actor:
    """An actor and what it was given."""

    def __init__(self, ray: Any, handle: Any) -> None:
        self.ray = ray
        self.handle = handle
        self.given: deque[Work] = deque()
        self.results: deque[Any] = deque()

    def give(self, work: Work) -> None:
        self.given.append(work)
        self.results.append(self.handle.encode.remote(work))

    def take(self) -> tuple[Work, Encoded]:
        try:
            kind, value = self.ray.get(self.results[0])
        except (self.ray.exceptions.RayActorError, self.ray.exceptions.ObjectLostError) as error:
            raise WorkerDied(f"of the Ray cluster is gone ({type(error).__name__})") from None
        if kind == "refused":
            raise InputError(value)
        self.results.popleft()
        return self.given.popleft(), value

    def stop(self) -> None:
        self.ray.kill(self.handle)
