"""Text to hits: an index folder opened together with the encoder that made it."""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InputError
from indexes.exact import nothing
from indexes.hits import Hits
from indexes.index import Index
from indexes.postings import Terms
from indexes.reader import Reader
from retrieval.analyzer import Analyzer
from retrieval.building import add_to_index, long_documents_of
from retrieval.documents import as_documents
from retrieval.encoder import Encoder, load_options
from retrieval.fusion import (
    MIN_MAX_WEIGHT,
    WEIGHT,
    search_min_max,
    search_reciprocal_ranks,
    search_sums,
    search_z_scores,
)
from retrieval.sparse import SparseEncoder
from retrieval.sparse import load_options as sparse_load_options

MODES = ("lexical", "dense", "hybrid")
FUSIONS: dict[str, Any] = {
    "zscore": (search_z_scores, WEIGHT),
    "minmax": (search_min_max, MIN_MAX_WEIGHT),
    "rrf": (search_reciprocal_ranks, 1.0),
    "sum": (search_sums, 1.0),
}
"""How hybrid search fuses, and the weight of the lexical side by default."""


class Hit(NamedTuple):
    """One answer to a query."""

    id: str
    score: float
    rank: int
    """From 1."""
    row: int
    """Its row in the index."""
    text: str | None = None
    """The whole document's; None if the index keeps no texts, or they were not asked for."""
    passage: tuple[int, int] | None = None
    """Where in the text the passage begins and ends that answers best, in characters; None if the index holds whole
    documents, in lexical mode, or if texts were not asked for."""

    attributes: Mapping[str, Any] | None = None
    """The document's attributes; None if the index keeps none, or they were not asked for."""

    @property
    def shown(self) -> str | None:
        """What to show of the document: its best passage if there is one, else its text."""
        if self.text is None or self.passage is None:
            return self.text
        begin, end = self.passage
        return self.text[begin:end]


class Retriever:
    """Searches an index by text: `lexical` (BM25 or learned weights), `dense`, or `hybrid`, both fused.

    Args:
        index: An opened index.
        encoder: The encoder that made its vectors; another one is refused.
        sparse: The encoder that made its terms' weights, if it has any, or what loads it when it is first needed;
            another one is refused. None: the lexical side of such an index is left out.
        fusion: `zscore`: dense z-score + weight × lexical z-score; `minmax`: both from the least possible score to the
            best one; `rrf`: reciprocal ranks; `sum`: of the scores as they are, for learned weights only.
        weight: Of the lexical side in the fusion; None: 0.5 for z-scores, 0.25 for min-max, 1 for ranks and sums.

    Raises:
        InputError: The index was made by another encoder (both sides are named), or an argument is out of range.
    """

    def __init__(
        self,
        index: Index,
        encoder: Encoder,
        *,
        sparse: SparseEncoder | Callable[[], SparseEncoder] | None = None,
        fusion: str = "zscore",
        weight: float | None = None,
    ) -> None:
        if fusion not in FUSIONS:
            raise InputError(f"fusion is {fusion!r}; expected one of {', '.join(FUSIONS)}")
        if weight is not None and not 0 <= weight < float("inf"):
            raise InputError(f"the weight of the lexical side is {weight}; expected 0 or more")
        index.reader.check_encoder(encoder.made_by, encoder.name)
        if fusion == "sum" and not isinstance(index.reader.analyzer, Mapping):
            raise InputError(f"{index.folder} has no learned weights to add to dense scores; fuse by zscore or rrf")
        if sparse is not None and not isinstance(index.reader.analyzer, Mapping):
            raise InputError(f"{index.folder} has no learned weights of terms; leave the sparse encoder out")
        self.index = index
        self.encoder = encoder
        self._sparse = sparse
        self.fusion = fusion
        self._fuse, usual = FUSIONS[fusion]
        self.weight = usual if weight is None else weight
        self._checked = index.reader
        self._analyzer = self._analyzer_of(index.reader)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        encoder: Encoder | str | None = None,
        *,
        sparse: SparseEncoder | str | None = None,
        fusion: str = "zscore",
        weight: float | None = None,
        device: str | None = None,
    ) -> "Retriever":
        """Open an index folder and its encoders: those it names, or those given, which must be the same.

        `device` is where they compute, such as cuda:1; None: the best there is.
        """
        index = Index.open(folder)
        if not isinstance(encoder, Encoder):
            encoder = encoder_of(index, encoder, device)
        if isinstance(sparse, SparseEncoder):
            return cls(index, encoder, sparse=sparse, fusion=fusion, weight=weight)
        loads = None
        if sparse is not None or isinstance(index.reader.analyzer, Mapping):
            loads = partial(sparse_encoder_of, index, sparse, device)
        return cls(index, encoder, sparse=loads, fusion=fusion, weight=weight)

    @property
    def sparse(self) -> SparseEncoder | None:
        """The sparse encoder, loaded when it is first asked for."""
        if not isinstance(self._sparse, SparseEncoder) and self._sparse is not None:
            self._sparse = self._sparse()
        return self._sparse

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes this index can be searched in."""
        return MODES if self._analyzer is not None else ("dense",)

    def add(self, documents: Iterable[Any], *, attributes: Sequence[str] = ()) -> None:
        """Encode documents and add them to the index.

        They are held in memory: encode many of them to a vectors folder first, which goes on where it was killed, and
        pass that to `add_to_index`.

        Args:
            documents: Whatever `as_documents` takes: `Document`s, mappings, (id, text) pairs.
            attributes: Fields of mappings to filter by.

        Raises:
            InputError: A document is malformed, or there already. The index is as it was.
        """
        self._put(documents, attributes, replace=False)

    def upsert(self, documents: Iterable[Any], *, attributes: Sequence[str] = ()) -> int:
        """Encode documents, add them, and replace those that are there already; say how many were. See `add`."""
        return self._put(documents, attributes, replace=True)

    def _put(self, documents: Iterable[Any], attributes: Sequence[str], *, replace: bool) -> int:
        new = list(as_documents(documents, "documents", attributes))
        if not new:
            return 0
        long = long_documents_of(self.index.reader)
        with tempfile.TemporaryDirectory(prefix="retrokit-") as place:
            vectors = self.encoder.encode_corpus(new, Path(place) / "vectors", long_documents=long)
            texts = None if self.index.reader.lexical is None else new
            terms = None
            if texts and isinstance(self.index.reader.analyzer, Mapping):
                if self.sparse is None:
                    raise InputError(f"{self.index.folder} holds weights of terms; open it with its sparse encoder")
                terms = self.sparse.encode_corpus(new, Path(place) / "terms")
            alone = None if texts else {one.id: one.attributes for one in new if one.attributes}
            return add_to_index(
                self.index, vectors, documents=texts, terms=terms, attributes=alone or None, replace=replace
            )

    def search(
        self, text: str, k: int = 10, *, mode: str | None = None, filter: str | NDArray[np.bool_] | None = None
    ) -> list[Hit]:
        """Find the k best documents for one query, best first, with all that is kept of them; see `search_many`."""
        if not text.strip():
            raise InputError("the query is empty; expected words")
        reader = self._reader()
        hits, vectors = self._search(reader, [text], k, mode, filter)
        return [
            hit._replace(
                text=reader.text(hit.row),
                attributes=None if reader.attributes is None else reader.attributes.row(hit.row),
                passage=None if vectors is None else reader.passage(vectors[0], hit.row),
            )
            for hit in hits[0]
        ]

    def search_many(
        self,
        texts: Sequence[str],
        k: int = 10,
        *,
        mode: str | None = None,
        filter: str | NDArray[np.bool_] | None = None,
    ) -> list[list[Hit]]:
        """Find the k best documents for each query, best first, without their texts.

        Args:
            texts: Queries.
            k: Hits for each query; fewer come back where there are fewer documents, or fewer that share a term with
                the query (lexical).
            mode: `lexical`, `dense` or `hybrid`; the last of `modes` by default.
            filter: Only documents whose attributes meet it are hits, such as `year >= 2020 and lang in ["en", "de"]`;
                see `indexes.filters`. Scores are those of the search among all documents; reciprocal ranks are those
                among the documents that meet it.

        Raises:
            InputError: k < 1, a mode this index does not have, or a filter that is none for its attributes.
        """
        return self._search(self._reader(), texts, k, mode, filter)[0]

    def texts(self, ids: Sequence[str]) -> list[str | None]:
        """The texts of documents by their ids; None where the index keeps none, or has no such document."""
        reader = self._reader()
        return [None if row < 0 else reader.text(row) for row in reader.rows_of_names(ids).tolist()]

    def search_rows(
        self,
        texts: Sequence[str],
        k: int = 10,
        *,
        mode: str | None = None,
        filter: str | NDArray[np.bool_] | None = None,
    ) -> tuple[Hits, Reader]:
        """The same as arrays (q, at most k), for many queries with many hits: no object is made for a hit.

        Returns:
            Hits, and what they are rows of: `reader.ids` has the documents' ids.
        """
        reader = self._reader()
        return self._found(reader, texts, k, mode, filter)[0], reader

    def _analyzer_of(self, reader: Reader) -> Callable[[Sequence[str]], Sequence[Terms]] | None:
        """What makes terms of queries; None: the index has none, or its sparse encoder is not here."""
        if not isinstance(reader.analyzer, Mapping):
            analyzer = Analyzer(reader.analyzer) if reader.analyzer else None
            return None if analyzer is None else lambda texts: [analyzer.terms(text) for text in texts]
        if self._sparse is None:
            return None
        if isinstance(self._sparse, SparseEncoder):
            self._sparse.check(reader.analyzer, reader.folder)
        return self._weights

    def _weights(self, texts: Sequence[str]) -> Sequence[Terms]:
        assert self.sparse is not None  # noqa: S101 - else the mode would not be offered
        return self.sparse.encode_queries(texts)

    def _reader(self) -> Reader:
        """What the index shows; if that is new, once it is certain that the encoder is still the right one."""
        reader = self.index.reader
        if reader is not self._checked:
            reader.check_encoder(self.encoder.made_by, self.encoder.name)
            self._analyzer = self._analyzer_of(reader)
            self._checked = reader
        return reader

    def _search(
        self,
        reader: Reader,
        texts: Sequence[str],
        k: int,
        mode: str | None,
        condition: str | NDArray[np.bool_] | None,
    ) -> tuple[list[list[Hit]], NDArray[np.float32] | None]:
        """The hits, and the queries' vectors (q, d) where the mode needs them."""
        hits, vectors = self._found(reader, texts, k, mode, condition)
        lines = zip(hits.rows, hits.scores, strict=True)
        return [_named(reader, rows.tolist(), scores.tolist()) for rows, scores in lines], vectors

    def _found(
        self,
        reader: Reader,
        texts: Sequence[str],
        k: int,
        mode: str | None,
        condition: str | NDArray[np.bool_] | None,
    ) -> tuple[Hits, NDArray[np.float32] | None]:
        mode = mode or self.modes[-1]
        if k < 1:
            raise InputError(f"k is {k}; expected at least 1")
        if mode not in self.modes:
            raise InputError(f"{reader.folder} cannot be searched by {mode!r}; it has {', '.join(self.modes)}")
        if not len(texts):
            return nothing(0, k), None
        keep = reader.matching(condition)
        k = min(k, len(reader) if keep is None else int(np.count_nonzero(keep)))
        if k == 0:
            return nothing(len(texts), 0), None
        vectors = None if mode == "lexical" else self.encoder.encode_queries(texts)
        return self._hits(reader, texts, vectors, k, mode, keep), vectors

    def _hits(
        self,
        reader: Reader,
        texts: Sequence[str],
        vectors: NDArray[np.float32] | None,
        k: int,
        mode: str,
        keep: NDArray[np.bool_] | None,
    ) -> Hits:
        if mode == "dense":
            assert vectors is not None  # noqa: S101
            return reader.search(vectors, k, filter=keep)
        assert self._analyzer is not None  # noqa: S101 - else the mode would not be offered
        assert reader.lexical is not None  # noqa: S101
        terms = self._analyzer(texts)
        if vectors is None:
            return reader.lexical.search(terms, k, keep)
        return self._fuse(reader, vectors, terms, k, self.weight, keep)


def encoder_of(index: Index, name: str | None = None, device: str | None = None) -> Encoder:
    """Load the encoder that made an index's vectors: the one that it names, or one of this name, if it is the same.

    Raises:
        InputError: It is another one, both sides being named, or none is named.
    """
    encoder = encoder_by_record(index.reader.made_by, index.folder, name, device)
    index.reader.check_encoder(encoder.made_by, encoder.name)
    return encoder


def encoder_by_record(
    made_by: Mapping[str, Any], folder: Path, name: str | None = None, device: str | None = None
) -> Encoder:
    """Load the encoder that a folder's record names, or one of this name, by the record's options where they fit it.

    The caller compares fingerprints.

    Raises:
        InputError: None is named.
    """
    name = name or made_by.get("encoder")
    if not name:
        raise InputError(f"{folder} does not name its encoder (its vectors were made elsewhere); pass --encoder")
    try:
        return Encoder.load(name, **load_options(made_by), device=device)
    except InputError:
        # It cannot be the same encoder: load it as it is, so that both can be named side by side.
        return Encoder.load(name, device=device)


def sparse_encoder_of(index: Index, name: str | None = None, device: str | None = None) -> SparseEncoder:
    """Load the sparse encoder that made an index's terms: the one that it names, or this one, if it is the same.

    Raises:
        InputError: It is another one, both sides being named; it is not to be had, or none is named.
    """
    made_by = index.reader.analyzer
    assert isinstance(made_by, Mapping)  # noqa: S101 - a retriever asks for it only then
    name = name or made_by.get("encoder")
    if not name:
        raise InputError(f"{index.folder} does not name its sparse encoder; open it with it")
    try:
        sparse = SparseEncoder.load(name, **sparse_load_options(made_by), device=device)
    except InputError as error:
        raise InputError(f"the sparse encoder of {index.folder} cannot be loaded; pass --sparse: {error}") from None
    sparse.check(made_by, index.folder)
    return sparse


def _named(reader: Reader, rows: list[int], scores: list[float]) -> list[Hit]:
    found = [(row, score) for row, score in zip(rows, scores, strict=True) if row >= 0]
    return [Hit(str(reader.ids[row]), score, rank, row) for rank, (row, score) in enumerate(found, start=1)]
