"""Costs: how fast a system answers and encodes, and what it takes of disk and memory, measured in a fresh process.

`python -m evaluation.costs` measures one system, as its standard input says, and prints the result.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from evaluation.systems import Searcher
from evaluation.testsets import TestSet
from indexes.errors import InputError

K = 10
BATCH = 32
ROUNDS = 3
_QUERIES = 200
_BATCHED_QUERIES = 512
_DOCUMENTS = 128
_WARM_UP = 5


class Cost(NamedTuple):
    """What one system takes on one set; None: it could not be measured, or there is no such part."""

    dataset: str
    """Whose queries were asked."""
    queries: int
    """Different queries that were asked one by one."""
    p50_ms: float
    """Of calls of one query for 10 hits, warmed up: median of three rounds."""
    p95_ms: float
    p99_ms: float
    queries_per_s: float
    """In calls of 32 queries."""
    documents_per_s: float | None
    """Encoding `documents` documents by all encoders of the system, warmed up: median of three rounds."""
    documents: int
    index_bytes: int | None
    """Files that the search reads; stored texts are not among them."""
    peak_bytes: int
    """The most memory that the process had while it opened the system and searched: Python, libraries and model too."""
    gpu_bytes: int | None
    machine: str


def measure_costs(
    searcher: Searcher,
    mode: str,
    queries: Sequence[str],
    documents: Sequence[str] = (),
    *,
    dataset: str = "",
    index_bytes: int | None = None,
) -> Cost:
    """Measure a system in this process.

    Args:
        searcher: What is searched.
        mode: How.
        queries: Of a test set; up to 200 are asked one by one, up to 512 in batches.
        documents: Whose encoding is timed, as encoders read them.
        dataset: Where the queries are from.
        index_bytes: Of the files that the search reads, if that is known.

    Raises:
        InputError: There are no queries.
    """
    if not queries:
        raise InputError("no queries to time; expected at least one")
    single = list(queries[:_QUERIES])
    for text in single[:_WARM_UP]:
        searcher.search_many([text], K, mode=mode)
    rounds = [
        np.percentile([1000 * _seconds(searcher.search_many, [one], K, mode=mode) for one in single], (50, 95, 99))
        for _ in range(ROUNDS)
    ]
    many = list(queries[:_BATCHED_QUERIES])
    batches = [many[start : start + BATCH] for start in range(0, len(many), BATCH)]
    times = [sum(_seconds(searcher.search_many, batch, K, mode=mode) for batch in batches) for _ in range(ROUNDS)]
    peak, gpu = peak_memory(), _gpu_memory()
    p50, p95, p99 = np.median(rounds, axis=0).tolist()
    return Cost(
        dataset=dataset,
        queries=len(single),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        queries_per_s=len(many) / median(times),
        documents_per_s=_documents_per_s(searcher, mode, documents),
        documents=len(documents),
        index_bytes=index_bytes or None,
        peak_bytes=peak,
        gpu_bytes=gpu,
        machine=machine(),
    )


def measure_in_fresh_process(spec: str, dataset: str, split: str, mode: str, cache: Path | None) -> Cost:
    """Open a system in a process of its own, whose memory is its alone, and measure it there.

    Args:
        spec: As `open_system` takes it; what it encodes should be in the cache.
        dataset: A spec of a test set.
        split: Of its qrels.
        mode: How the system is searched.
        cache: Where `open_system` keeps vectors.

    Raises:
        InputError: The process failed; the message is its last line.
    """
    asked = {"spec": spec, "dataset": dataset, "split": split, "mode": mode, "cache": cache and str(cache)}
    done = subprocess.run(
        [sys.executable, "-m", "evaluation.costs"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise InputError(f"the costs of {spec} could not be measured (status {done.returncode}): {said}")
    return Cost(**json.loads(done.stdout.strip().splitlines()[-1]))


def peak_memory() -> int:
    """The most memory that this process has had, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage's figure on Linux begins with that of the process that started this one
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def machine() -> str:
    """Processor, cores and accelerator, and how busy the machine is."""
    from retrieval.devices import cores

    name = platform.processor() or platform.machine()
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        lines = listed.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    torch = sys.modules.get("torch")
    gpu = f", {torch.cuda.get_device_name()}" if torch is not None and torch.cuda.is_available() else ""
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{name}, {cores()} cores{gpu}{load}"


def _gpu_memory() -> int | None:
    torch = sys.modules.get("torch")
    return int(torch.cuda.max_memory_allocated()) if torch is not None and torch.cuda.is_available() else None


def _documents_per_s(searcher: Any, mode: str, documents: Sequence[str]) -> float | None:
    """Documents a second through all encoders that the mode needs; None if it needs none."""
    while (inside := getattr(searcher, "searcher", None)) is not None:  # what a reranker stands behind
        searcher = inside
    names = {"dense": ("encoder",), "lexical": ("sparse",)}.get(mode.partition("+")[0], ("encoder", "sparse"))
    encoders = [found for name in names if (found := getattr(searcher, name, None)) is not None]
    if not documents or not encoders:
        return None
    seconds = 0.0
    for encoder in encoders:
        encoder.encode_documents(documents[:_WARM_UP])
        seconds += median(_seconds(encoder.encode_documents, documents) for _ in range(ROUNDS))
    return len(documents) / seconds


def _seconds(call: Callable[..., object], *given: object, **named: object) -> float:
    start = time.perf_counter()
    call(*given, **named)
    return time.perf_counter() - start


def _sample(testset: TestSet, count: int = _DOCUMENTS) -> list[str]:
    """Documents spread over the corpus, the same ones each time."""
    total = sum(1 for _ in testset.documents())
    step = max(1, total // count)
    return [one.content for row, one in enumerate(testset.documents()) if row % step == 0][:count]


def main() -> None:
    """Measure what standard input asks for and print it as one line of JSON."""
    from evaluation.opening import open_system
    from evaluation.testsets import load_dataset

    asked = json.load(sys.stdin)
    testset = load_dataset(asked["dataset"], asked["split"])
    opened = open_system(asked["spec"], testset, cache=Path(asked["cache"]) if asked["cache"] else None)
    cost = measure_costs(
        opened.searcher,
        asked["mode"],
        list(testset.queries.values()),
        _sample(testset),
        dataset=testset.name,
        index_bytes=opened.index_bytes,
    )
    sys.stdout.write(json.dumps(cost._asdict()) + "\n")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
