"""Mining over 100,000 documents, beside sentence-transformers' `mine_hard_negatives`: seconds, memory, same negatives.

To measure mining and not encoding, both sides get the same vectors, made beforehand: ours by an index over them and an
encoder that looks queries up, theirs by a model whose `encode_…` looks texts up. Both are asked for the same: of the
first hits by exact search, the best 8 that score at most 95% of the positive's score (TopK-PercPos), from a corpus
without copies, with one positive a query. Each side runs in a process of its own, in turns. Timed is what follows the
imports and the making of the inputs (for us: an opened index, whose building is timed apart; theirs adds the vectors to
FAISS each time); memory is told before that, and at its peak. Ours is also run again with another filter, its hits
being kept, and for 1,000 queries in the mode hybrid, which theirs has not.

python -m benchmarks.mining.mine
"""

import argparse
import hashlib
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.setting import clustered, save

DIM = 384
NEGATIVES = 8
PERCENTAGE = 0.95
HITS = 10 * NEGATIVES + 2  # what theirs looks through: 10 for each negative, and the positive twice
MADE_BY = {"normalize": True, "fingerprint": "benchmark"}
WORDS_OF_A_DOCUMENT, WORDS_OF_A_QUERY = 60, 8
VOCABULARY = 30_000
HYBRID_QUERIES = 1000


def words(number: int, count: int) -> str:
    """Words that follow from a number, as frequent as those of languages are (Zipf)."""
    drawn = np.random.default_rng(number).zipf(1.2, count) % VOCABULARY
    return " ".join(f"w{one}" for one in drawn.tolist())


def document_text(number: int) -> str:
    """A text of its own for each document."""
    return f"d{number} {words(number, WORDS_OF_A_DOCUMENT)}"


def query_text(number: int) -> str:
    """A text of its own for each query."""
    return f"q{number} {words(number, WORDS_OF_A_QUERY)}"


def prepare(folder: Path, documents: int, queries: int) -> None:
    """Vectors of documents, and queries that lie near a document, which is their positive."""
    rows = clustered(documents, DIM)
    rng = np.random.default_rng(1)
    positives = rng.choice(documents, queries, replace=False)
    asked = rows[positives] + 0.04 * rng.standard_normal((queries, DIM), dtype=np.float32)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    for name, array in (("rows", rows), ("queries", asked), ("positives", positives)):
        np.save(folder / f"{name}.npy", array)
    pairs = [
        json.dumps({"query": query_text(number), "document": f"d{positive}"}) + "\n"
        for number, positive in enumerate(positives.tolist())
    ]
    (folder / "pairs.jsonl").write_text("".join(pairs))
    (folder / "few.jsonl").write_text("".join(pairs[:HYBRID_QUERIES]))


def memory(field: str) -> float:
    """MB that this process has now (VmRSS), or had at most so far (VmHWM); mapped files count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


class Rows:
    """What encodes nothing: vectors (n, d) by text."""

    name = "benchmark"
    made_by = MADE_BY
    fingerprint = MADE_BY["fingerprint"]

    def __init__(self, vectors: NDArray[np.float32], texts: list[str]) -> None:
        self.vectors = vectors
        self.numbers = {one: number for number, one in enumerate(texts)}

    def encode_queries(self, texts: list[str]) -> NDArray[np.float32]:
        """Ours."""
        return self.vectors[[self.numbers[one] for one in texts]]


def build(folder: Path) -> None:
    """Our index over the documents, their words and texts."""
    from indexes import save_vectors
    from retrieval import Document, build_index

    rows = np.load(folder / "rows.npy")
    ids = [f"d{number}" for number in range(len(rows))]
    store = save_vectors(folder / "vectors", rows, ids, made_by=MADE_BY)
    documents = (Document(id_, document_text(number)) for number, id_ in enumerate(ids))
    build_index(store, folder / "index", documents=documents, language="none")


def ours(folder: Path, again: bool = False, pairs: str = "pairs", **options: Any) -> Callable[[], dict[str, list[str]]]:
    """Mine with our index."""
    import torch  # noqa: F401 - as on their side, its import is no part of what is measured

    from indexes import Index
    from retrieval import Retriever, mine, read_examples

    queries = np.load(folder / "queries.npy")
    encoder: Any = Rows(queries, [query_text(number) for number in range(len(queries))])
    retriever = Retriever(Index.open(folder / "index", "size"), encoder)
    output = Path(tempfile.mkdtemp(dir=folder)) / "mined.jsonl"
    cache = folder / "cache" if again else output.parent / "cache"
    how = {"mode": "dense", "negatives": NEGATIVES, "percentage": PERCENTAGE, "to_rank": HITS, **options}

    def run() -> dict[str, list[str]]:
        mine(folder / f"{pairs}.jsonl", retriever, output, cache=cache, **how)
        return {}

    def read() -> dict[str, list[str]]:
        return {one.query: [some.text for some in one.negatives] for one in read_examples(output)}

    run.read = read  # type: ignore[attr-defined]
    return run


def theirs(folder: Path, use_faiss: bool) -> Callable[[], dict[str, list[str]]]:
    """Mine with sentence-transformers."""
    import torch
    from datasets import Dataset
    from sentence_transformers.util import cos_sim, mine_hard_negatives, pairwise_cos_sim

    rows, queries = np.load(folder / "rows.npy"), np.load(folder / "queries.npy")
    positives = np.load(folder / "positives.npy").tolist()
    corpus = [document_text(number) for number in range(len(rows))]
    asked = [query_text(number) for number in range(len(queries))]

    by_document, by_query = Rows(rows, corpus), Rows(queries, asked)

    class Model:
        device = torch.device("cpu")
        similarity = staticmethod(cos_sim)
        similarity_pairwise = staticmethod(pairwise_cos_sim)

        def encode_document(self, texts: list[str], **_: Any) -> NDArray[np.float32]:
            return by_document.encode_queries(texts)

        def encode_query(self, texts: list[str], **_: Any) -> NDArray[np.float32]:
            return by_query.encode_queries(texts)

        def get_embedding_dimension(self) -> int:
            return DIM

    model: Any = Model()
    dataset = Dataset.from_dict({"query": asked, "positive": [corpus[number] for number in positives]})
    found: list[Any] = []

    def run() -> dict[str, list[str]]:
        found.append(
            mine_hard_negatives(
                dataset,
                model,
                corpus=corpus,
                relative_margin=1 - PERCENTAGE,
                num_negatives=NEGATIVES,
                use_faiss=use_faiss,
                verbose=False,
            )
        )
        return {}

    def read() -> dict[str, list[str]]:
        negatives: dict[str, list[str]] = {one: [] for one in asked}
        for query, negative in zip(found[-1]["query"], found[-1]["negative"], strict=True):
            negatives[query].append(negative)
        return negatives

    run.read = read  # type: ignore[attr-defined]
    return run


def _side(send: Any, make: Callable[..., Any], folder: Path, options: dict[str, Any]) -> None:
    run = make(folder, **options)
    before = memory("VmRSS")
    start = time.perf_counter()
    run()
    spent = time.perf_counter() - start
    most = memory("VmHWM")
    negatives = {query: [hashlib.md5(one.encode()).digest() for one in some] for query, some in run.read().items()}
    send.send((spent, before, most, negatives))


def measured(make: Callable[..., Any], folder: Path, **options: Any) -> tuple[float, float, float, dict[str, Any]]:
    """Seconds, MB before, peak MB, and digests of the negatives of each query, of a side in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_side, args=(send, make, folder, options))
    process.start()
    send.close()
    result = receive.recv()
    process.join()
    return result  # type: ignore[no-any-return]


def compared(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """How many queries have the same negatives in the same order, and how many negatives both sides have."""
    common = sum(len(set(some) & set(theirs[query])) for query, some in ours.items())
    return {
        "queries with the same negatives in the same order": sum(theirs[one] == some for one, some in ours.items()),
        "negatives of ours": sum(map(len, ours.values())),
        "negatives of theirs": sum(map(len, theirs.values())),
        "in both": common,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sides: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "retrokit": (ours, {}),
        "sentence-transformers": (theirs, {"use_faiss": False}),
        "sentence-transformers, use_faiss": (theirs, {"use_faiss": True}),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.documents, options.queries)
        start = time.perf_counter()
        build(folder)
        built = time.perf_counter() - start
        rounds: dict[str, list[Any]] = {side: [] for side in sides}
        for _ in range(options.rounds):
            for side, (make, how) in sides.items():
                rounds[side].append(measured(make, folder, **how))
                print(side, round(rounds[side][-1][0], 2), "s", round(rounds[side][-1][2]), "MB", flush=True)
        measured(ours, folder, again=True)
        kept = measured(ours, folder, again=True, percentage=0.9)
        hybrid = measured(ours, folder, pairs="few", mode="hybrid")
    mine_s = median(one[0] for one in rounds["retrokit"])
    result: dict[str, Any] = {
        "documents": options.documents,
        "queries": options.queries,
        "dimensions": DIM,
        "negatives": NEGATIVES,
        "hits looked through": HITS,
        "seconds to build our index (FAISS' file, BM25, texts)": round(built, 2),
    }
    for side, some in rounds.items():
        result[side] = {
            "seconds": [round(one[0], 2) for one in some],
            "MB before": round(median(one[1] for one in some)),
            "peak MB": round(median(one[2] for one in some)),
        }
        if side != "retrokit":
            result[side]["times as long as retrokit"] = round(median(one[0] for one in some) / mine_s, 2)
            result[side] |= compared(rounds["retrokit"][0][3], some[0][3])
    result["retrokit with another percentage, hits kept: seconds"] = round(kept[0], 2)
    few = min(options.queries, HYBRID_QUERIES)
    result[f"retrokit, hybrid, {few:,} queries: seconds"] = round(hybrid[0], 2)
    save(__file__, result)


if __name__ == "__main__":
    main()
