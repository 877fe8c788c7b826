"""Exact search over a million clustered vectors, beside FAISS' flat index as it comes and with its threshold lowered.

The sides take turns; hits are compared with those of float64 products. python -m benchmarks.indexes.exact
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.setting import clustered, in_turns, save
from indexes import Index, save_vectors
from indexes.products import bfloat16_pays

DIM = 384
K = 10


def truth(queries: NDArray[np.float32], rows: NDArray[np.float32]) -> NDArray[np.int64]:
    """The K best rows (q, K) by float64 products rounded to float32, ties by row."""
    best = np.empty((len(queries), K), dtype=np.int64)
    for line, query in enumerate(queries.astype(np.float64)):
        blocks = [rows[at : at + 65_536].astype(np.float64) @ query for at in range(0, len(rows), 65_536)]
        scores = np.concatenate(blocks).astype(np.float32)
        near = np.flatnonzero(scores >= np.partition(scores, -K)[-K])
        best[line] = near[np.lexsort((near, -scores[near]))][:K]
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    everything = clustered(options.vectors + 256)
    rows, queries = everything[:-256], everything[-256:]
    right = truth(queries[:32], rows)
    peer = faiss.IndexFlatIP(DIM)
    peer.add(rows)
    threshold = faiss.cvar.distance_compute_blas_threshold
    result: dict[str, Any] = {"vectors": len(rows), "dimensions": DIM, "k": K, "bfloat16 pays": bfloat16_pays()}
    with tempfile.TemporaryDirectory() as name:
        ids = [str(row) for row in range(len(rows))]
        store = save_vectors(Path(name) / "v", rows, ids, made_by={"normalize": True})
        index = Index.build(store, "Flat", Path(name) / "i")
        for batch in (1, 4, 8, 32, 256):
            some = queries[:batch]

            def lowered(some: NDArray[np.float32] = some) -> None:
                faiss.cvar.distance_compute_blas_threshold = 4 * DIM
                peer.search(some, K)
                faiss.cvar.distance_compute_blas_threshold = threshold

            found = index.search(some, K).rows
            sides = (lambda: index.search(some, K), lambda: peer.search(some, K), lowered)  # noqa: B023
            ours, default, low = (median(times) for times in in_turns(options.rounds, *sides))
            result[f"batch {batch}"] = {
                "queries/s": round(batch / ours, 1),
                "FAISS as it comes, queries/s": round(batch / default, 1),
                "FAISS with its threshold lowered, queries/s": round(batch / low, 1),
                "times FAISS as it comes": round(default / ours, 2),
                "times FAISS with its threshold lowered": round(low / ours, 2),
                "hits that are those of float64": float((found[:32] == right[:batch]).mean()),
                "hits that are FAISS'": float((found == peer.search(some, K)[1]).mean()),
            }
            print(batch, result[f"batch {batch}"], flush=True)
    save(__file__, result)


if __name__ == "__main__":
    main()
