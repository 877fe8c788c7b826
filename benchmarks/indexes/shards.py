"""Sharded search by 4 workers, Ray actors and processes: hit for hit the unsharded answer, and one killed under load.

Three threads ask all the time; half a second later one worker is killed. `fail` must give whole answers only, `degrade`
must go on at once with the others and say so; both must be whole again when the worker is back.

    python -m benchmarks.indexes.shards --vectors 200000
"""

import argparse
import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.setting import clustered, in_turns, save
from indexes import Index, save_vectors
from indexes.shard_workers import ProcessWorker, RayWorker
from indexes.shards import ShardedIndex

WORKERS, K, QUERIES = 4, 10, 500
CASES: dict[str, Any] = {"all": {}, "a tenth": {"filter": "group < 10"}, "1%": {"filter": "group == 7"}}


def same(found: Any, expected: Any) -> bool:
    return bool((found.rows == expected.rows).all() and (found.scores == expected.scores).all())


def kill(worker: Any) -> None:
    if isinstance(worker, ProcessWorker):
        os.kill(worker.process.pid, signal.SIGKILL)
    elif isinstance(worker, RayWorker):
        worker._ray.kill(worker._handle, no_restart=False)


def under_load(folder: Path, expected: Any, partly: Any, queries: Any, **how: Any) -> dict[str, Any]:
    """Ask with three threads while one worker is killed; what they got, before it was back and after."""
    answers: list[tuple[float, float, float, bool]] = []
    errors: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            start = time.monotonic()
            try:
                found = sharded.search(queries, K)
            except Exception as error:
                errors.append(repr(error))
                return
            right = same(found, expected if found.coverage == 1 else partly)
            answers.append((start, time.monotonic(), found.coverage, right))

    with ShardedIndex(folder, workers=WORKERS, **how) as sharded:
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        killed = time.monotonic()
        victim = sharded.reader.dense._workers[1]
        kill(victim)
        while sharded.reader.dense._workers[1] is victim or sharded.coverage < 1:
            time.sleep(0.01)
        back = time.monotonic()
        time.sleep(1.0)
        stop.set()
        for thread in threads:
            thread.join()
    meanwhile = [one for one in answers if killed <= one[0] and one[1] <= back]
    return {
        "errors": errors,
        "answers before": sum(one[1] < killed for one in answers),
        "seconds until it was back": round(back - killed, 2),
        "answers meanwhile": len(meanwhile),
        "of them partial": sum(one[2] < 1 for one in meanwhile),
        "longest answer, s": round(max(one[1] - one[0] for one in answers), 2),
        "answers after": sum(one[0] > back for one in answers),
        "wrong answers": sum(not one[3] for one in answers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=200_000)
    options = parser.parse_args()
    everything = clustered(options.vectors + QUERIES)
    rows, queries = np.split(everything, [options.vectors])
    result: dict[str, Any] = {"vectors": len(rows), "workers": WORKERS, "k": K, "queries": QUERIES}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        attributes = {str(row): {"group": row % 100} for row in range(len(rows))}
        store = save_vectors(root / "v", rows, list(attributes), made_by={"normalize": True})
        whole = Index.build(store, "Flat", root / "whole", attributes=attributes)
        for factory in ("Flat", "HNSW32"):
            index = Index.build(store, factory, root / factory, attributes=attributes, segments=WORKERS)
            for kind, where in (("processes", {}), ("Ray actors", {"ray": True})):
                said: dict[str, Any] = {}
                with ShardedIndex(index.folder, workers=WORKERS, **where) as sharded:
                    for case, how in (
                        ("all", {}),
                        ("a tenth", {"filter": "group < 10"}),
                        ("1%", {"filter": "group == 7"}),
                    ):
                        found = sharded.search(queries, K, **how)
                        said[f"equal, {case}"] = same(found, index.search(queries, K, **how))
                        if factory == "Flat":
                            said[f"equal to one segment, {case}"] = same(found, whole.search(queries, K, **how))
                    one, all_ = queries[:1], queries
                    for label, asked, rounds in (("one query", one, 50), (f"{QUERIES} queries", all_, 5)):
                        ours, theirs = in_turns(
                            rounds,
                            lambda sharded=sharded, asked=asked: sharded.search(asked, K),
                            lambda index=index, asked=asked: index.search(asked, K),
                        )
                        said[f"ms, {label}"] = round(1e3 * median(ours), 2)
                        said[f"ms unsharded, {label}"] = round(1e3 * median(theirs), 2)
                expected = index.search(queries[:8], K)
                others = np.arange(len(rows)) * WORKERS // len(rows) != 1
                partly = index.search(queries[:8], K, filter=others)
                for policy in ("fail", "degrade"):
                    said[f"one killed, {policy}"] = under_load(
                        index.folder, expected, partly, queries[:8], on_loss=policy, **where
                    )
                result[f"{factory}, {kind}"] = said
                print(factory, kind, said, flush=True)
    save(__file__, result)


if __name__ == "__main__":
    main()
