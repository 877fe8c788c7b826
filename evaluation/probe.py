"""A test collection as a judge of encoders in training: pretraining calls it and does not know what it looks into."""

from pathlib import Path
from typing import Any

import numpy as np

from evaluation.measures import means, score_run
from evaluation.rankings import Run, make_ranking
from evaluation.testsets import load_dataset
from indexes.exact import search_exact

_DEPTH = 10


class DatasetProbe:
    """Mean nDCG@10 of an encoder on a small test collection, by exact search over cosines.

    The corpus is kept in memory and encoded anew for every call: thousands of documents, not millions.

    Args:
        spec: What `load_dataset` takes.
        split: Which qrels; None: the usual ones.

    Attributes:
        name: The collection's, with its size.
        fingerprint: SHA-256 over corpus, queries and qrels.

    Raises:
        InputError: The folder is no test collection.
    """

    def __init__(self, spec: str | Path, split: str | None = None) -> None:
        self.dataset = load_dataset(spec, split)
        documents = list(self.dataset.documents())
        self.ids, self.texts = [one.id for one in documents], [one.content for one in documents]
        self.fingerprint = self.dataset.fingerprint
        self.name = (
            f"{len(self.dataset.queries):,} queries of {self.dataset.name} ({self.dataset.split}) "
            f"among {len(documents):,} documents"
        )

    def __call__(self, encoder: Any) -> float:
        """Encode and rank.

        Args:
            encoder: A SentenceTransformer; its `encode_query` and `encode_document` are called.
        """
        options = {"batch_size": 64, "normalize_embeddings": True, "show_progress_bar": False}
        queries = np.asarray(encoder.encode_query(list(self.dataset.queries.values()), **options), dtype=np.float32)
        vectors = np.asarray(encoder.encode_document(self.texts, **options), dtype=np.float32)
        hits = search_exact(queries, vectors, min(_DEPTH + 1, len(self.ids)))  # one more: a query may find itself
        run: Run = {}
        for query, rows, scores in zip(self.dataset.queries, hits.rows, hits.scores, strict=True):
            drop = query if self.dataset.profile.drop_self_matches else None
            kept = [place for place, row in enumerate(rows) if self.ids[row] != drop]
            run[query] = make_ranking([self.ids[rows[one]] for one in kept], scores[kept], place=f"query {query!r}")
        return means(score_run(run, self.dataset.qrels, ["nDCG@10"]))["nDCG@10"]
