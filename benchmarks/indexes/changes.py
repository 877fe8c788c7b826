"""What opening and changing a large index costs: seconds, over 1,000,000 x 384 vectors (1.5 GB), files in memory.

Opening by each of the checks, ready to search; adding, replacing and deleting 1 and 1,000 documents; exact search of
32 queries before and after a hundredth of the documents is deleted, and in one segment or ten. There are no texts.

    python -m benchmarks.indexes.changes
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.setting import clustered, save
from indexes import Index, VectorStore, save_vectors
from indexes.checksums import CHECKS

MADE_BY = {"normalize": True, "fingerprint": "0" * 64}
ROUNDS = 9


def seconds(run: Callable[[], Any], rounds: int = ROUNDS) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return round(median(times), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    count = parser.parse_args().vectors
    everything = clustered(count + 1_032)
    rows, new, queries = everything[:count], everything[count : count + 1000], everything[-32:]
    result: dict[str, Any] = {"vectors": count}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)

        def store(part: np.ndarray, first: int, label: str) -> VectorStore:
            ids = [f"{label}{row}" for row in range(first, first + len(part))]
            return save_vectors(root / f"v{label}{first}", part, ids, made_by=MADE_BY, overwrite=True)

        whole = store(rows, 0, "d")
        index = Index.build(whole, "Flat", root / "i")
        result["bytes"] = index.stats()["bytes"]
        result["open"] = {check: seconds(lambda check=check: Index.open(root / "i", check)) for check in CHECKS}
        print(result, flush=True)
        search: dict[str, float] = {"one segment": seconds(lambda: index.search(queries, 10))}
        changes: dict[str, float] = {}
        for size in (1, 1000):
            some = store(new[:size], 0, "n")
            start = time.perf_counter()
            index.add(some)
            changes[f"add {size}"] = round(time.perf_counter() - start, 4)
            changes[f"replace {size}"] = seconds(lambda some=some: index.upsert(some), 3)
            start = time.perf_counter()
            index.delete(some.ids)
            changes[f"delete {size}"] = round(time.perf_counter() - start, 4)
        index.delete(whole.ids[::100])
        search["a hundredth deleted"] = seconds(lambda: index.search(queries, 10))
        result |= {"changes": changes}
        parts = [store(rows[first : first + count // 10], first, "p") for first in range(0, count, count // 10)]
        several = Index.build(parts[0], "Flat", root / "several")
        for part in parts[1:]:
            several.add(part)
        result["segments"] = len(several.stats()["segments"])
        search["several segments"] = seconds(lambda: several.search(queries, 10))
        result["exact search of 32"] = search
        start = time.perf_counter()
        several.compact()
        result["compact"] = round(time.perf_counter() - start, 1)
    save(__file__, result)


if __name__ == "__main__":
    main()
