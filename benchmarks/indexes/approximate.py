"""Approximate indexes against hnswlib at recall@10 of 0.95 or more: queries a second, memory, by one thread.

Each index is searched with growing effort until its recall is there; hnswlib and our indexes then take turns with all
queries at once, and one by one. M = 32 and efConstruction = 40 (FAISS' own) in all graphs. Memory is what the structure
takes: FAISS' file, or hnswlib's; our raw vectors, from which candidates are scored again, are mapped from the disk.

    pip install hnswlib; python -m benchmarks.indexes.approximate --real --vectors 1000000

Building takes most of the time, by all cores: --only-build FOLDER does that alone, --built FOLDER measures it.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import hnswlib
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.setting import clustered, in_turns, save, scifact
from indexes import Effort, Index, save_vectors, search_exact
from indexes.layout import file_bytes

K, RECALL = 10, 0.95
M, CONSTRUCTION = 32, 40
EFS = (10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 768)
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
    path, graph = folder / "hnswlib", hnswlib.Index("ip", rows.shape[1])
    if not path.exists():
        graph.init_index(len(rows), ef_construction=CONSTRUCTION, M=M)
        timed(path, lambda: graph.add_items(rows))
        graph.save_index(str(path))
    graph.load_index(str(path), len(rows))

    def with_ef(ef: int) -> Search:
        def search(queries: NDArray[np.float32]) -> NDArray[np.int64]:
            graph.set_ef(ef)
            return graph.knn_query(queries, K, num_threads=1)[0].astype(np.int64)

        return search

    return path.stat().st_size, [(f"ef {ef}", with_ef(ef)) for ef in EFS]


def of_ours(rows: NDArray[np.float32], factory: str, folder: Path) -> tuple[int, list[tuple[str, Search]]]:
    path = folder / f"{factory}.index"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as name:
            ids = [str(row) for row in range(len(rows))]
            store = save_vectors(Path(name) / "v", rows, ids, made_by={"normalize": True})
            timed(path, lambda: Index.build(store, factory, path))
    index = Index.open(path, "size")
    (segment,) = index.reader.segments

    def at(effort: Effort) -> Search:
        return lambda queries: index.search(queries, K, effort=effort).rows

    steps = [effort for efforts in segment.dense.ladder() for effort in efforts]
    said = [", ".join(f"{name} {value}" for name, value in one._asdict().items() if value) for one in steps]
    return file_bytes(segment.file), [(words, at(step)) for words, step in zip(said, steps, strict=True)]


def timed(path: Path, build: Callable[[], object]) -> None:
    start = time.perf_counter()
    build()
    path.with_name(f"{path.name}.json").write_text(json.dumps(round(time.perf_counter() - start, 1)))


def build_seconds(path: Path) -> float:
    return json.loads(path.with_name(f"{path.name}.json").read_text())


def fastest_enough(searches: list[tuple[str, Search]], queries: NDArray[Any], truth: NDArray[Any]) -> Any:
    """Of all efforts whose recall is there the one that takes the least time; from the least on, while that may be."""
    met = []
    for said, search in searches:
        found = recall(search(queries), truth)
        if found >= RECALL:
            seconds = min(in_turns(3, lambda search=search: search(queries))[0])
            met.append((seconds, said, search, found))
            if seconds > 2 * min(met)[0]:
                break
    return min(met)[1:] if met else None


def factories_for(rows: NDArray[np.float32]) -> list[str]:
    lists, parts = 2 ** round(np.log2(4 * np.sqrt(len(rows)))), rows.shape[1] // 4
    inverted = [f"IVF{lists},PQ{parts}x4fsr{more}" for more in ("", ",Refine(SQ8)")]
    return [f"HNSW{M}", f"HNSW{M}_SQ8", *inverted]


def compare(rows: NDArray[np.float32], queries: NDArray[np.float32], folder: Path) -> dict[str, Any]:
    truth = search_exact(queries, rows, K).rows
    result: dict[str, Any] = {"vectors": len(rows), "dim": rows.shape[1], "queries": len(queries)}
    memory, searches = of_hnswlib(rows, folder)
    said, peer, found = first_enough(searches, queries, truth)
    built = build_seconds(folder / "hnswlib")
    result["hnswlib"] = {"effort": said, "recall": round(found, 4), "bytes": memory, "build s": built}
    for factory in factories_for(rows):
        size, searches = of_ours(rows, factory, folder)
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
            "times hnswlib": round(median(b / a for a, b in zip(*together, strict=True)), 2),
            "times hnswlib, one by one": round(median(map(min, alone[1::2])) / median(map(min, alone[::2])), 2),
            "memory, times hnswlib's": round(size / memory, 2),
            "build s": build_seconds(folder / f"{factory}.index"),
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
    parser.add_argument("--only-build", type=Path, metavar="FOLDER")
    parser.add_argument("--built", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    result = {}
    cases: list[tuple[str, Callable[[], tuple[NDArray[np.float32], NDArray[np.float32]]]]] = []
    if options.real:
        cases.append(("MiniLM vectors of the shared collections", real))
    for count in options.vectors:
        cases.append((f"{count} clustered vectors", lambda count=count: np.split(clustered(count + 1000), [count])))
    with tempfile.TemporaryDirectory() as name:
        for case, make in cases:
            folder = (options.only_build or options.built or Path(name)) / case
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "queries.npy").is_file():
                for part, made in zip(("rows", "queries"), make(), strict=True):
                    np.save(folder / f"{part}.npy", made)
            rows, queries = (np.load(folder / f"{part}.npy") for part in ("rows", "queries"))
            of_hnswlib(rows, folder)
            for factory in factories_for(rows):
                of_ours(rows, factory, folder)
                print(case, factory, build_seconds(folder / f"{factory}.index"), "s", flush=True)
            if not options.only_build:
                with threadpool_limits(1):
                    result[case] = compare(rows, queries, folder)
    if not options.only_build:
        save(__file__, result)


if __name__ == "__main__":
    main()
