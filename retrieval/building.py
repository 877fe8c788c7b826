"""Vectors, documents and terms to an index folder, or into one that is there."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from indexes.errors import InputError
from indexes.index import Index
from indexes.manifest import differences
from indexes.reader import Reader
from indexes.segments import Entry
from indexes.terms import TermStore
from indexes.vectors import VectorStore
from retrieval.analyzer import Analyzer, usual_analyzer
from retrieval.documents import Document, document_bytes
from retrieval.passages import LongDocuments


def build_index(
    vectors: VectorStore,
    folder: str | Path,
    *,
    factory: str = "Flat",
    documents: Iterable[Document] | None = None,
    language: str | None = None,
    terms: TermStore | None = None,
    attributes: Mapping[str, Mapping[str, Any]] | None = None,
    overwrite: bool = False,
) -> Index:
    """Build an index folder over a vectors folder, with the lexical side and the texts if the documents are given.

    Args:
        vectors: From `Encoder.encode_corpus`.
        folder: The index folder to make.
        factory: Any FAISS factory string; `Flat` is exact.
        documents: The documents of the vectors, in the same order; None for a dense index.
        language: Of BM25's stemmer; None: english. Chinese, Japanese and Korean script is read in any: see `Analyzer`.
        terms: Learned weights of the same documents' terms, from `SparseEncoder.encode_corpus`; None: BM25.
        attributes: Of documents by id, to filter by, beside those of the documents themselves; see `Index.build`.
        overwrite: Replace an existing folder.

    Raises:
        InputError: The folder exists, or the documents are not those of the vectors or of the terms.
    """
    if documents is None:
        if terms is not None:
            raise InputError("terms are given and their documents are not; give both")
        return Index.build(vectors, factory, folder, attributes=attributes, overwrite=overwrite)
    if terms is not None and language is not None:
        raise InputError(f"language {language} is of BM25, which the terms take the place of; leave it out")
    bm25 = usual_analyzer(language)
    entries = _entries(documents, vectors, bm25 if terms is None else terms)
    analyzer = bm25.name if terms is None else terms.made_by
    return Index.build(
        vectors, factory, folder, entries=entries, analyzer=analyzer, attributes=attributes, overwrite=overwrite
    )


def add_to_index(
    index: Index,
    vectors: VectorStore,
    *,
    documents: Iterable[Document] | None = None,
    terms: TermStore | None = None,
    attributes: Mapping[str, Mapping[str, Any]] | None = None,
    replace: bool = False,
) -> int:
    """Add the documents of a vectors folder to an index, with what else it keeps of them.

    Args:
        index: Built with a lexical side and texts, or dense only.
        vectors: Made by the index's encoder; long documents are encoded as those of the index were.
        documents: The documents of the vectors, in the same order; None if the index is dense only.
        terms: Their terms' weights, if the index's lexical side is learned, made by its sparse encoder.
        attributes: Of documents by id, beside those of the documents themselves.
        replace: Documents that are there already, instead of refusing all.

    Returns:
        How many were there already.

    Raises:
        InputError: What `Index.add` refuses, or the documents are not those of the vectors. The index is as it was.
    """
    entries = None
    if documents is not None:
        entries = _entries(documents, vectors, _same_terms(index.reader, terms))
    if replace:
        return index.upsert(vectors, entries=entries, attributes=attributes)
    index.add(vectors, entries=entries, attributes=attributes)
    return 0


def long_documents_of(reader: Reader) -> LongDocuments:
    """What was done with long documents when an index was encoded."""
    said = reader.encoding
    return LongDocuments(said.get("long_documents", "truncate"), said.get("passage_tokens"), said.get("overlap"))


def same_corpus(documents: Iterable[Document], corpus: Mapping[str, Any], folder: Path) -> Iterator[Document]:
    """Pass documents on, and refuse them at the end if the vectors were made of others (same ids, other texts).

    Where the vectors were merged from several corpora, each part is refused at its end, by its own fingerprint.
    """
    stream = iter(documents)
    parts = corpus.get("parts")
    for part in parts or [{**corpus, "documents": None}]:
        digest = hashlib.sha256()
        for document in itertools.islice(stream, part["documents"]):
            digest.update(document_bytes(document))
            yield document
        expected, found = part["fingerprint"], digest.hexdigest()
        if expected is not None and found != expected:
            where = f" in the part from {part['source']}" if parts else ""
            raise InputError(
                f"{folder} was made of other texts ({expected[:12]} ≠ {found[:12]}{where}), the corpus changed: "
                "encode it again"
            )
    yield from stream


def _same_terms(reader: Reader, terms: TermStore | None) -> Analyzer | TermStore:
    """What makes the terms of new documents as those of an index were made."""
    made_by = reader.analyzer
    if terms is None and not isinstance(made_by, Mapping):
        return Analyzer(made_by or "none")
    if terms is None or not isinstance(made_by, Mapping):
        held = "weights of terms" if isinstance(made_by, Mapping) else "terms, for BM25"
        raise InputError(f"{reader.folder} holds {held}; give what it holds")
    if terms.made_by["fingerprint"] != made_by["fingerprint"]:
        raise InputError(
            f"{terms.folder} was made by another sparse encoder than the terms of {reader.folder} (index ≠ terms: "
            f"{differences(made_by, terms.made_by)}); encode it by the index's own"
        )
    return terms


def weighted_entries(documents: Iterable[Document], terms: TermStore) -> Iterator[Entry]:
    """Entries of documents with the learned weights of their terms.

    Raises:
        InputError: The terms are of other documents, or of others in between.
    """
    documents = same_corpus(documents, terms.corpus, terms.folder)
    for one, weighted in itertools.zip_longest(documents, terms):
        if one is None or weighted is None or weighted[0] != one.id:
            there, here = weighted and weighted[0], one and one.id
            raise InputError(f"{terms.folder} has document {there!r} where the corpus has {here!r}; encode it again")
        yield Entry(one.id, weighted[1], one.content, one.attributes)


def _entries(documents: Iterable[Document], vectors: VectorStore, terms: Analyzer | TermStore) -> Iterator[Entry]:
    documents = same_corpus(documents, vectors.corpus, vectors.folder)
    if isinstance(terms, TermStore):
        yield from weighted_entries(documents, terms)
        return
    for one in documents:
        yield Entry(one.id, terms.terms(one.content), one.content, one.attributes)
