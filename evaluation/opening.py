"""Opening a system by its spec: an encoder, `bm25`, `hybrid:MODEL`, an index folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluation.systems import Searcher
from evaluation.testsets import TestSet
from indexes.manifest import MANIFEST
from retrieval.cache import cache_home


class Opened(NamedTuple):
    """A system that is ready to search."""

    name: str
    searcher: Searcher
    made_by: dict[str, str]
    modes: tuple[str, ...]
    index_bytes: int = 0


def open_system(spec: str, testset: TestSet, *, cache: Path | None = None) -> Opened:
    """Open a system over the corpus of a test set, encoding it first if need be.

    Args:
        spec: An encoder (model folder or hub name), an index folder, `bm25` or `hybrid:MODEL`.
        testset: Whose corpus is searched.
        cache: Where vectors and indexes are kept by fingerprint; None: `~/.cache/retrokit`.
    """
    from evaluation.commands import _open_encoder, _open_index

    if spec == "bm25":
        return _bm25(testset, cache)
    if (Path(spec) / MANIFEST).is_file():
        opened = _open_index(Path(spec), testset)
        return Opened(Path(spec).name, opened.searcher, opened.made_by, opened.searcher.modes)
    kind, colon, model = spec.partition(":")
    hybrid = bool(colon) and kind == "hybrid"
    opened = _open_encoder(model if hybrid else spec, testset, cache)
    modes = ("hybrid",) if hybrid else ("dense",)
    return Opened(spec, opened.searcher, opened.made_by, modes, _bytes(opened.searcher))


def _bm25(testset: TestSet, cache: Path | None) -> Opened:
    """BM25 alone, in an index whose vectors say nothing."""
    from indexes.transfer import save_vectors
    from retrieval.analyzer import Analyzer
    from retrieval.building import build_index
    from retrieval.retriever import Hit

    class Bm25:
        modes = ("lexical",)

        def __init__(self) -> None:
            folder = (cache or cache_home()) / f"{testset.corpus_fingerprint[:24]}-bm25"
            if not (folder / "index").is_dir():
                ids = [one.id for one in testset.documents()]
                ones = np.ones((len(ids), 1), np.float32)
                vectors = save_vectors(folder / "vectors", ones, ids, made_by={"normalize": True}, overwrite=True)
                build_index(vectors, folder / "index", documents=testset.documents())
            from indexes.index import Index

            self.index = Index.open(folder / "index")
            self._analyzer = Analyzer("english")

        def search_many(self, texts: Sequence[str], k: int, *, mode: str) -> list[list[Hit]]:
            reader = self.index.reader
            assert reader.lexical is not None  # noqa: S101
            hits = reader.lexical.search([self._analyzer.terms(text) for text in texts], min(k, len(reader)))
            return [
                [Hit(str(reader.ids[row]), float(score), rank, int(row)) for rank, (row, score) in enumerate(pairs, 1)]
                for pairs in (
                    [(row, score) for row, score in zip(rows, scores, strict=True) if row >= 0]
                    for rows, scores in zip(hits.rows, hits.scores, strict=True)
                )
            ]

    searcher = Bm25()
    return Opened(
        "bm25", searcher, {"BM25": "k1 0.9, b 0.4, English stems and stop words"}, ("lexical",), _bytes(searcher)
    )


def _bytes(searcher: Any) -> int:
    """Of an index folder's files, stored texts not among them."""
    return sum(one["bytes"] for name, one in searcher.index.reader.manifest["files"].items() if "texts." not in name)
