"""Approximate indexes against hnswlib at recall@10 of 0.95 or more: queries a second, memory, by one thread.

Each index is searched with growing effort until its recall is there; hnswlib and our indexes then take turns with all
queries at once, and one by one. M = 32 and efConstruction = 40 (FAISS' own) in all graphs. Memory is what the structure
takes: FAISS' file, or hnswlib's; our raw vectors, from which candidates are scored again, are mapped from the disk.

    pip install hnswlib; python -m benchmarks.indexes.approximate --real --vectors 100000 1000000
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import hnswlib
import numpy as np
from numpy.typing import NDArray

from benchmarks.setting import clustered, in_turns, save, scifact
from indexes import Effort, Index, VectorStore, save_vectors, search_exact

K, RECALL = 10, 0.95
M, CONSTRUCTION = 32, 40
EFS = (10, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)
Search = Callable[[NDArray[np.float32]], NDArray[np.int64]]
"""Queries (q, d) to rows (q, k)."""


def recall(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found.tolist(), truth.tolist(), strict=True)]))


def first_enough(searches: list[tuple[str, Search]], queries: NDArray[Any], truth: NDArray[Any]) -> Any:
    """The first search whose recall is there, with it."""
    for said, search in searches:
        found = recall(search(queries), truth)
        if found >= RECALL:
            return said, search, found
    raise AssertionError(f"recall {RECALL} is not reached")


def of_hnswlib(rows: NDArray[np.float32], folder: Path) -> tuple[int, list[tuple[str, Search]]]:
    graph = hnswlib.Index("ip", rows.shape[1])
    graph.init_index(len(rows), ef_construction=CONSTRUCTION, M=M)
    graph.set_num_threads(1)
    graph.add_items(rows)
    graph.save_index(str(folder / "hnswlib"))

    def with_ef(ef: int) -> Search:
        def search(queries: NDArray[np.float32]) -> NDArray[np.int64]:
            graph.set_ef(ef)
            return graph.knn_query(queries, K, num_threads=1)[0].astype(np.int64)

        return search

    return (folder / "hnswlib").stat().st_size, [(f"ef {ef}", with_ef(ef)) for ef in EFS]


def of_ours(store: VectorStore, factory: str, folder: Path) -> tuple[int, list[tuple[str, Search]]]:
    index = Index.build(store, factory, folder / "ours", overwrite=True)
    (segment,) = index.reader.segments

    def at(effort: Effort) -> Search:
        return lambda queries: index.search(queries, K, effort=effort).rows

    if factory.startswith("HNSW"):
        times = (1,) if factory == f"HNSW{M}" else (1, 2)
        steps = [Effort(ef=ef, candidates=c) for ef in EFS for c in times]
    else:
        steps = [Effort(nprobe=n, candidates=c) for n in (8, 16, 24, 32, 48, 64, 96, 128, 192) for c in (4, 8, 16, 32)]
    said = [", ".join(f"{name} {value}" for name, value in one._asdict().items() if value) for one in steps]
    searches = [(words, at(step)) for words, step in zip(said, steps, strict=True)]
    return (segment.folder / "dense.faiss").stat().st_size, searches


def fastest_enough(searches: list[tuple[str, Search]], queries: NDArray[Any], truth: NDArray[Any]) -> Any:
    """Of all efforts whose recall is there the one that takes the least time."""
    best = None
    for said, search in searches:
        start = time.perf_counter()
        found = recall(search(queries), truth)
        seconds = time.perf_counter() - start
        if found >= RECALL and (best is None or seconds < best[0]):
            best = (seconds, said, search, found)
    return None if best is None else best[1:]


def compare(rows: NDArray[np.float32], queries: NDArray[np.float32]) -> dict[str, Any]:
    truth = search_exact(queries, rows, K).rows
    lists = 2 ** round(np.log2(4 * np.sqrt(len(rows))))
    factories = (f"HNSW{M}", f"HNSW{M}_SQ8", f"IVF{lists},PQ{rows.shape[1] // 4}x4fs")
    result: dict[str, Any] = {"vectors": len(rows), "dim": rows.shape[1], "queries": len(queries)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        memory, searches = of_hnswlib(rows, folder)
        built = time.perf_counter() - start
        said, peer, found = first_enough(searches, queries, truth)
        result["hnswlib"] = {"effort": said, "recall": round(found, 4), "bytes": memory, "build s": round(built, 1)}
        ids = [str(row) for row in range(len(rows))]
        store = save_vectors(folder / "v", rows, ids, made_by={"normalize": True})
        for factory in factories:
            start = time.perf_counter()
            size, searches = of_ours(store, factory, folder)
            built = time.perf_counter() - start
            met = fastest_enough(searches, queries, truth)
            if met is None:
                result[factory] = f"recall {RECALL} not reached"
                continue
            effort, ours, found = met
            together = in_turns(7, lambda ours=ours: ours(queries), lambda: peer(queries))
            some = [queries[n : n + 1] for n in range(min(300, len(queries)))]
            alone = in_turns(3, *[lambda s=s, one=one: s(one) for one in some for s in (ours, peer)])
            rate, theirs = (len(queries) / median(times) for times in together)
            result[factory] = {
                "effort": effort,
                "recall": round(found, 4),
                "queries/s": round(rate),
                "hnswlib's": round(theirs),
                "times hnswlib": round(rate / theirs, 2),
                "times hnswlib, one by one": round(median(map(min, alone[1::2])) / median(map(min, alone[::2])), 2),
                "memory, times hnswlib's": round(size / memory, 2),
                "build s": round(built, 1),
            }
            print(factory, result[factory], flush=True)
    return result


def real() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Documents and queries of all shared test collections, encoded by all-MiniLM-L6-v2."""
    from evaluation import load_dataset
    from retrieval import Encoder

    encoder = Encoder.load("all-MiniLM-L6-v2", backend="auto", dtype="bfloat16")
    testsets = [load_dataset(str(folder)) for folder in sorted(scifact().parent.iterdir()) if folder.is_dir()]
    documents = [document.content for testset in testsets for document in testset.documents()]
    queries = [query for testset in testsets for query in testset.queries.values()]
    return encoder.encode_documents(documents), encoder.encode_queries(queries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, nargs="*", default=[100_000])
    parser.add_argument("--real", action="store_true")
    options = parser.parse_args()
    result = {}
    if options.real:
        result["MiniLM vectors of the shared collections"] = compare(*real())
    for count in options.vectors:
        everything = clustered(count + 1000)
        result[f"{count} clustered vectors"] = compare(everything[:count], everything[count:])
    save(__file__, result)


if __name__ == "__main__":
    main()
