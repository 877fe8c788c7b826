"""Text to hits by words alone: BM25 or a sparse encoder's weights, without an encoder and without vectors."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from indexes.errors import InputError
from indexes.inverted import LexicalIndex
from indexes.segments import Entry
from indexes.terms import TermStore
from retrieval.analyzer import Analyzer, usual_analyzer
from retrieval.building import weighted_entries
from retrieval.documents import Document, document_bytes
from retrieval.retriever import Hit
from retrieval.sparse import SparseEncoder


class LexicalRetriever:
    """Searches a lexical index by text; its one mode is `lexical`. With vectors beside the words, use `Retriever`.

    Args:
        index: From `build_lexical`, or opened.
        sparse: The encoder that made its terms' weights, if it has any; another one is refused.

    Raises:
        InputError: The sparse encoder is missing, is another one, or there are no weights.
    """

    modes = ("lexical",)

    def __init__(self, index: LexicalIndex, sparse: SparseEncoder | None = None) -> None:
        self.index = index
        self.sparse = sparse
        made_by = index.analyzer
        self._analyzer = None if isinstance(made_by, Mapping) else Analyzer(made_by)
        if isinstance(made_by, Mapping):
            if sparse is None:
                raise InputError(f"{index.folder} holds weights of terms; open it with its sparse encoder")
            sparse.check(made_by, index.folder)
        elif sparse is not None:
            raise InputError(f"{index.folder} has no learned weights of terms; leave the sparse encoder out")

    @classmethod
    def open(cls, folder: str | Path, sparse: SparseEncoder | None = None) -> "LexicalRetriever":
        """Open a lexical index folder, with the sparse encoder that made its weights, if it has any."""
        return cls(LexicalIndex.open(folder), sparse)

    def search(self, text: str, k: int = 10, *, mode: str | None = None) -> list[Hit]:
        """Find the k best documents for one query, best first, with their texts."""
        if not text.strip():
            raise InputError("the query is empty; expected words")
        return [hit._replace(text=self.index.texts[hit.row]) for hit in self.search_many([text], k, mode=mode)[0]]

    def search_many(self, texts: Sequence[str], k: int = 10, *, mode: str | None = None) -> list[list[Hit]]:
        """Find the k best documents for each query that share a term with it, best first, without their texts.

        Raises:
            InputError: k < 1, or another mode than `lexical`.
        """
        if k < 1:
            raise InputError(f"k is {k}; expected at least 1")
        if mode not in (None, *self.modes):
            raise InputError(f"{self.index.folder} cannot be searched by {mode!r}; it has {', '.join(self.modes)}")
        if not len(texts):
            return []
        if self._analyzer is None:
            assert self.sparse is not None  # noqa: S101 - `__init__` saw to it
            terms: Sequence[Any] = self.sparse.encode_queries(texts)
        else:
            terms = [self._analyzer.terms(text) for text in texts]
        found = self.index.lexical.search(terms, min(k, len(self.index)))
        lines = zip(found.rows.tolist(), found.scores.tolist(), strict=True)
        return [self._named(rows, scores) for rows, scores in lines]

    def texts(self, ids: Sequence[str]) -> list[str | None]:
        """The texts of documents by their ids; None where there is no such document."""
        return [None if row < 0 else self.index.texts[row] for row in self.index.rows_of(ids).tolist()]

    def _named(self, rows: list[int], scores: list[float]) -> list[Hit]:
        found = [(row, score) for row, score in zip(rows, scores, strict=True) if row >= 0]
        return [Hit(self.index.ids[row], score, rank, row) for rank, (row, score) in enumerate(found, start=1)]


def build_lexical(
    documents: Iterable[Document],
    folder: str | Path,
    *,
    language: str | None = None,
    terms: TermStore | None = None,
    source: str | None = None,
    overwrite: bool = False,
) -> LexicalIndex:
    """Build a lexical index folder over documents: BM25, or learned weights if their terms are given.

    Args:
        documents: Read once, in order.
        folder: The folder to make.
        language: Of BM25's stemmer; None: english.
        terms: Learned weights of the same documents' terms, from `SparseEncoder.encode_corpus`; None: BM25.
        source: What the user calls the corpus.
        overwrite: Replace an existing folder.

    Raises:
        InputError: The folder exists, a document is malformed or there twice, or the terms are of other documents.
    """
    if terms is not None:
        if language is not None:
            raise InputError(f"language {language} is of BM25, which the terms take the place of; leave it out")
        entries = weighted_entries(documents, terms)
        return LexicalIndex.build(entries, folder, analyzer=terms.made_by, corpus=terms.corpus, overwrite=overwrite)
    analyzer, digest = usual_analyzer(language), hashlib.sha256()
    corpus: dict[str, Any] = {"source": source, "fingerprint": None}

    def entries_of() -> Iterator[Entry]:
        for one in documents:
            digest.update(document_bytes(one))
            yield Entry(one.id, analyzer.terms(one.content), one.content)
        corpus["fingerprint"] = digest.hexdigest()

    return LexicalIndex.build(entries_of(), folder, analyzer=analyzer.name, corpus=corpus, overwrite=overwrite)
