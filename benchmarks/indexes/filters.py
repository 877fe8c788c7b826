"""Filters: recall and speed at 50, 10, 1 and 0.1% of the rows, beside FAISS' HNSW with a selector.

Rows are kept at random, or those nearest to one of them: then queries come from among the kept ("near") or from what is
farthest from them ("far"). Queries share a filter and come alone or together. FAISS searches with the same ef as we do
by default, and with the first larger one that finds 95%, where one of up to 4,096 does.
python -m benchmarks.indexes.filters
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.setting import clustered, in_turns, save
from indexes import Index, save_vectors, search_exact

K = 10
TOGETHER = 300
ALONE = 20
EFFORTS = (128, 256, 512, 1024, 2048, 4096)
ENOUGH = 0.95
Search = Callable[[NDArray[np.float32]], NDArray[np.int64]]


def recall(found: NDArray[np.int64], right: NDArray[np.int64]) -> float:
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found.tolist(), right.tolist(), strict=True)]))


def cases(rows: NDArray[np.float32], chance: np.random.Generator) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """What is kept and who asks, by name; queries lie near rows, which they are none of."""
    found = {}
    near_anchor = rows @ rows[7]
    order = np.argsort(-near_anchor)
    for share in (0.5, 0.1, 0.01, 0.001):
        count = round(share * len(rows))
        some, best = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
        some[chance.choice(len(rows), count, replace=False)] = True
        best[order[:count]] = True
        anywhere = rows[chance.choice(len(rows), TOGETHER)]
        inside, outside = (rows[chance.choice(part, TOGETHER)] for part in (order[:count], order[-len(rows) // 2 :]))
        for kind, keep, asking in (("random", some, anywhere), ("near", best, inside), ("far", best, outside)):
            queries = asking + 0.02 * chance.standard_normal(asking.shape, dtype=np.float32)
            queries /= np.linalg.norm(queries, axis=1, keepdims=True)
            found[f"{100 * share:g}%, {kind}"] = keep, queries
    return found


def with_selector(peer: Any, keep: NDArray[np.bool_], ef: int) -> Search:
    selector = faiss.IDSelectorBitmap(np.packbits(keep, bitorder="little"))
    parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=ef)
    return lambda queries: peer.search(queries, K, params=parameters)[1]


def searches(
    indexes: dict[str, Index],
    peer: Any,
    keep: NDArray[np.bool_],
    queries: NDArray[np.float32],
    right: NDArray[np.int64],
) -> dict[str, Search]:
    found: dict[str, Search] = {
        name: lambda queries, one=index: one.search(queries, K, filter=keep).rows for name, index in indexes.items()
    }
    for ef in EFFORTS:
        run = with_selector(peer, keep, ef)
        enough = recall(run(queries), right) >= ENOUGH
        if ef == EFFORTS[0] or enough:
            found[f"FAISS HNSW32 with a selector, ef {ef}"] = run
        if enough:
            break
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--factories", nargs="*", default=["HNSW32", "IVF1024,SQ8", "Flat"])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows = clustered(options.vectors)
    asked = cases(rows, np.random.default_rng(1))
    result: dict[str, Any] = {"vectors": len(rows), "k": K, "queries together": TOGETHER, "cases": {}}
    ids = [str(row) for row in range(len(rows))]
    with tempfile.TemporaryDirectory() as name:
        store = save_vectors(Path(name) / "v", rows, ids, made_by={"normalize": True})
        indexes = {factory: Index.build(store, factory, Path(name) / factory) for factory in options.factories}
        peer = faiss.read_index(str(Path(name) / "HNSW32" / "segment-000001" / "dense.faiss"))
        for case, (keep, queries) in asked.items():
            right = search_exact(queries, rows, K, keep=keep).rows
            sides = searches(indexes, peer, keep, queries, right)
            whole = in_turns(options.rounds, *(partial(run, queries) for run in sides.values()))
            single = in_turns(ALONE, *(partial(run, queries[:1]) for run in sides.values()))
            result["cases"][case] = {
                side: {
                    "recall": round(recall(run(queries), right), 4),
                    "queries/s together": round(TOGETHER / median(together)),
                    "ms alone": round(1e3 * median(alone), 2),
                }
                for (side, run), together, alone in zip(sides.items(), whole, single, strict=True)
            }
            print(case, result["cases"][case], flush=True)
    save(__file__, result)


if __name__ == "__main__":
    main()
