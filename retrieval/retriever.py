"""Text to hits: an index folder opened together with the encoder that made it."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from indexes.errors import InputError
from indexes.hits import Hits
from indexes.index import Entry, Index
from indexes.vectors import VectorStore
from retrieval.analyzer import Analyzer
from retrieval.documents import Document, document_bytes
from retrieval.encoder import Encoder
from retrieval.fusion import WEIGHT, search_reciprocal_ranks, search_z_scores

MODES = ("lexical", "dense", "hybrid")
FUSIONS = ("zscore", "rrf")


class Hit(NamedTuple):
    """One answer to a query."""

    id: str
    score: float
    rank: int
    """From 1."""
    row: int
    """Its row in the index."""
    text: str | None = None
    """None if the index keeps no texts, or they were not asked for."""


def build_index(
    vectors: VectorStore,
    folder: str | Path,
    *,
    factory: str = "Flat",
    documents: Iterable[Document] | None = None,
    language: str = "english",
    overwrite: bool = False,
) -> Index:
    """Build an index folder over a vectors folder, with BM25 and the texts if the documents are given.

    Args:
        vectors: From `Encoder.encode_corpus`.
        folder: The index folder to make.
        factory: Any FAISS factory string; `Flat` is exact.
        documents: The documents of the vectors, in the same order; None for a dense index.
        language: Of BM25's stemmer.
        overwrite: Replace an existing folder.

    Raises:
        InputError: The folder exists, or the documents are not those of the vectors.
    """
    if documents is None:
        return Index.build(vectors, factory, folder, overwrite=overwrite)
    analyzer = Analyzer(language)
    entries = (
        Entry(document.id, analyzer.terms(document.content), document.content)
        for document in _same_corpus(documents, vectors.corpus["fingerprint"], vectors.folder)
    )
    return Index.build(vectors, factory, folder, entries=entries, analyzer=language, overwrite=overwrite)


def _same_corpus(documents: Iterable[Document], expected: str | None, folder: Path) -> Iterator[Document]:
    """Pass documents on, and refuse them at the end if the vectors were made of others (same ids, other texts)."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document_bytes(document))
        yield document
    if expected is not None and digest.hexdigest() != expected:
        raise InputError(
            f"{folder} was made of other texts ({expected[:12]} ≠ {digest.hexdigest()[:12]}), the corpus changed: "
            "encode it again"
        )


class Retriever:
    """Searches an index by text: `lexical` (BM25), `dense`, or `hybrid`, both fused.

    Args:
        index: An opened index.
        encoder: The encoder that made its vectors; another one is refused.
        fusion: `zscore`: dense z-score + weight × BM25 z-score; `rrf`: reciprocal ranks.
        weight: Of BM25 in the fusion; None: 0.5 for z-scores, 1 for reciprocal ranks.

    Raises:
        InputError: The index was made by another encoder (both sides are named), or an argument is out of range.
    """

    def __init__(self, index: Index, encoder: Encoder, *, fusion: str = "zscore", weight: float | None = None) -> None:
        if fusion not in FUSIONS:
            raise InputError(f"fusion is {fusion!r}; expected one of {', '.join(FUSIONS)}")
        if weight is not None and not 0 <= weight < float("inf"):
            raise InputError(f"the weight of BM25 is {weight}; expected 0 or more")
        index.check_encoder(encoder.made_by, encoder.name)
        self.index = index
        self.encoder = encoder
        self.fusion = fusion
        self.weight = weight if weight is not None else (WEIGHT if fusion == "zscore" else 1.0)
        self._analyzer = Analyzer(index.analyzer) if index.analyzer else None

    @classmethod
    def open(
        cls,
        folder: str | Path,
        encoder: Encoder | str | None = None,
        *,
        fusion: str = "zscore",
        weight: float | None = None,
    ) -> "Retriever":
        """Open an index folder and its encoder: the one it names, or the one given, which must be the same."""
        index = Index.open(folder)
        if not isinstance(encoder, Encoder):
            name = encoder or index.made_by.get("encoder")
            if not name:
                raise InputError(
                    f"{folder} does not name its encoder (its vectors were made elsewhere); pass --encoder"
                )
            recorded = {key: index.made_by[key] for key in ("pooling", "max_length", "dtype") if key in index.made_by}
            try:
                encoder = Encoder.load(name, **recorded)
            except InputError:
                # It cannot be the same encoder: load it as it is, so that both can be named side by side.
                encoder = Encoder.load(name)
        return cls(index, encoder, fusion=fusion, weight=weight)

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes this index can be searched in."""
        return MODES if self.index.lexical else ("dense",)

    def search(self, text: str, k: int = 10, *, mode: str | None = None) -> list[Hit]:
        """Find the k best documents for one query, best first, with their texts; see `search_many`."""
        if not text.strip():
            raise InputError("the query is empty; expected words")
        return [hit._replace(text=self.index.text(hit.row)) for hit in self.search_many([text], k, mode=mode)[0]]

    def search_many(self, texts: Sequence[str], k: int = 10, *, mode: str | None = None) -> list[list[Hit]]:
        """Find the k best documents for each query, best first, without their texts.

        Args:
            texts: Queries.
            k: Hits for each query; fewer come back where there are fewer documents, or fewer that share a term with
                the query (lexical).
            mode: `lexical`, `dense` or `hybrid`; the last of `modes` by default.

        Raises:
            InputError: k < 1, or a mode this index does not have.
        """
        if k < 1:
            raise InputError(f"k is {k}; expected at least 1")
        if not len(texts):
            return []
        hits = self._hits(texts, min(k, len(self.index)), mode or self.modes[-1])
        return [
            self._named(rows.tolist(), scores.tolist()) for rows, scores in zip(hits.rows, hits.scores, strict=True)
        ]

    def _hits(self, texts: Sequence[str], k: int, mode: str) -> Hits:
        if mode not in self.modes:
            raise InputError(f"{self.index.folder} cannot be searched by {mode!r}; it has {', '.join(self.modes)}")
        if mode == "dense":
            return self.index.search(self.encoder.encode_queries(texts), k)
        assert self._analyzer is not None  # noqa: S101 - else the mode would not be offered
        assert self.index.lexical is not None  # noqa: S101
        terms = [self._analyzer.terms(text) for text in texts]
        if mode == "lexical":
            return self.index.lexical.search(terms, k)
        fuse = search_z_scores if self.fusion == "zscore" else search_reciprocal_ranks
        return fuse(self.index, self.encoder.encode_queries(texts), terms, k, self.weight)

    def _named(self, rows: list[int], scores: list[float]) -> list[Hit]:
        found = [(row, score) for row, score in zip(rows, scores, strict=True) if row >= 0]
        return [Hit(self.index.ids[row], score, rank, row) for rank, (row, score) in enumerate(found, start=1)]
