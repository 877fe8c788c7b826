"""What trimming all-MiniLM-L6-v2's vocabulary to SciFact saves, and that nothing changes by it.

Every document's pieces stay, so that its vector is the same bit for bit: compared on 300 documents. The rankings are
those of one set of document vectors, by the queries of each model, some of whose pieces may lack. Documents' vectors
are kept in a folder, so that a stopped run goes on: python -m benchmarks.pretraining.reshape FOLDER
"""

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.setting import save, scifact
from evaluation import evaluate_run, load_dataset
from evaluation.runs import make_ranking
from pretraining import reshape
from retrieval import Encoder
from retrieval.model_folder import PACKAGED

COMPARED = 300


def ndcg(documents: np.ndarray, ids: list[str], queries: np.ndarray, testset: Any) -> float:
    """nDCG@10 of exact search, float64 inner products."""
    scores = queries.astype(np.float64) @ documents.astype(np.float64).T  # (q, n)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    ranked = zip(testset.queries, best, scores, strict=True)
    run = {name: make_ranking([ids[row] for row in rows], own[rows], place=name) for name, rows, own in ranked}
    report = evaluate_run(run, testset, measures=["nDCG@10"])
    return round(next(iter(report.systems.values())).metrics["nDCG@10"], 4)


def main() -> None:
    folder = Path(sys.argv[1])
    testset = load_dataset(scifact())
    base = Encoder.load(PACKAGED)
    card = reshape(PACKAGED, folder / "trimmed", trim_vocabulary=scifact()).card
    trimmed = Encoder.load(str(folder / "trimmed"))
    models = {"base": base, "trimmed": trimmed}
    store = base.encode_corpus(testset.documents(), folder / "documents", shard_rows=256)
    vectors = store[:]
    texts = [document.content for document in itertools.islice(testset.documents(), COMPARED)]
    alike = bool(np.array_equal(base.encode_documents(texts), trimmed.encode_documents(texts)))
    queries = {name: one.encode_queries(list(testset.queries.values())) for name, one in models.items()}
    same = np.all(queries["base"] == queries["trimmed"], axis=1)
    result = {
        "before": card["before"],
        "after": card["after"],
        "documents_equal_bit_for_bit": alike,
        "queries": len(same),
        "queries_equal_bit_for_bit": int(same.sum()),
        "ndcg@10": {name: ndcg(vectors, store.ids, queries[name], testset) for name in models},
    }
    save(__file__, result)


if __name__ == "__main__":
    main()
