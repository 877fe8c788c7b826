"""Index folders: one object over the FAISS part, the BM25 part, ids and texts of the same documents."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexes.approximate import Approximate, build_faiss, load_faiss, stored_rows
from indexes.attributes import Attributes
from indexes.errors import InputError
from indexes.exact import nothing
from indexes.hits import Hits
from indexes.lexical import Lexical
from indexes.manifest import MANIFEST, differences, new_folder, open_manifest, seal, verify, write_json
from indexes.moments import ScoreMoments
from indexes.passages import Passages, check_passages
from indexes.vectors import UNIT_TOLERANCE, VectorStore

KIND = "index"
_DENSE = "dense.faiss"
_VECTORS = "vectors.npy"
_PASSAGES = "passages.npy"
_MOMENTS = "moments.npy"
_IDS = "ids.json"
_LEXICAL = "lexical"
_ATTRIBUTES = "attributes.arrow"
_TEXTS = "texts.jsonl"
_OFFSETS = "texts.offsets.npy"


class Entry(NamedTuple):
    """What an index keeps of one document beside its vector."""

    id: str
    terms: Sequence[str]
    """For BM25."""
    text: str
    """Shown with a hit."""
    attributes: Mapping[str, Any] | None = None
    """To filter by."""


class Index:
    """An opened index folder.

    Everything in it speaks of documents by their row, a position in `ids`. Where long documents were encoded in
    passages, FAISS holds the passages and a document's dense score is its best passage's.

    Attributes:
        ids: The document id of each row.
        made_by: The record of the encoder that made the vectors, with its `fingerprint`.
        encoding: What else decided the vectors: `storage`, `long_documents` …
        metric: `cosine` (unit vectors) or `ip` (inner product).
        factory: The FAISS factory string.
        analyzer: The name of what made the terms of the BM25 part.
        dense: The FAISS part.
        passages: What makes documents of its rows; None where every row is a whole document.
        lexical: The BM25 part, or None.
        attributes: Typed values of each document to filter by, or None.
        moments: Mean and covariance of the vectors, for fusion; those of all passages, where there are passages.
        corpus: `source` and `fingerprint` of the corpus.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.made_by: dict[str, Any] = manifest["made_by"]
        self.encoding: dict[str, Any] = manifest["encoding"]
        self.metric: str = manifest["metric"]
        self.factory: str = manifest["factory"]
        self.analyzer: str | None = manifest["analyzer"]
        self.corpus: dict[str, Any] = manifest["corpus"]
        self.ids: list[str] = json.loads((folder / _IDS).read_text(encoding="utf-8"))
        raw = np.load(folder / _VECTORS, mmap_mode="r") if (folder / _VECTORS).is_file() else None
        self.dense = Approximate(folder / _DENSE, raw)
        table = np.load(folder / _PASSAGES, mmap_mode="r") if (folder / _PASSAGES).is_file() else None
        self.passages: Passages | None = None
        if table is not None:
            check_passages(table, self.dense.rows, len(self.ids), folder)
            self.passages = Passages(self.dense, table, len(self.ids))
        self.lexical = Lexical.open(folder / _LEXICAL) if (folder / _LEXICAL).is_dir() else None
        named = folder / _ATTRIBUTES
        self.attributes = Attributes.open(named) if named.is_file() else None
        mean_and_second = np.load(folder / _MOMENTS)
        self.moments = ScoreMoments(mean_and_second[0], mean_and_second[1:])
        self._offsets = np.load(folder / _OFFSETS, mmap_mode="r") if (folder / _OFFSETS).is_file() else None

    @classmethod
    def build(
        cls,
        vectors: VectorStore,
        factory: str,
        folder: str | Path,
        *,
        entries: Iterable[Entry] | None = None,
        analyzer: str | None = None,
        attributes: Mapping[str, Mapping[str, Any]] | None = None,
        overwrite: bool = False,
    ) -> "Index":
        """Build an index folder from a vectors folder.

        Args:
            vectors: The vectors; cosine is the metric if their encoder normalises, else inner product.
            factory: A FAISS factory string, such as `Flat` (exact), `HNSW32`, `IVF256,PQ48x4fs`.
            folder: The folder to make; it appears whole or not at all.
            entries: The documents of the vectors in the same order, for BM25 and to show texts; none: dense only.
            analyzer: The name of what made the terms, kept so that queries are analysed alike.
            attributes: Of documents by id, to filter by, beside those of the entries: bool, int, float, str, date, or
                lists of one of these. Those not given are null.
            overwrite: Replace an existing folder.

        Raises:
            InputError: The folder exists, the entries are not those of the vectors, an attribute is of another kind or
                of no document, or FAISS refuses the string.
        """
        folder = Path(folder)
        ids, passages = vectors.ids, vectors.passages
        with new_folder(folder, overwrite=overwrite) as temporary:
            if passages is not None:
                check_passages(passages, len(vectors), len(ids), vectors.folder)
                np.save(temporary / _PASSAGES, passages, allow_pickle=False)
            moments = ScoreMoments.of(vectors.blocks(), vectors.dim)
            np.save(temporary / _MOMENTS, np.vstack([moments.mean, moments.second]), allow_pickle=False)
            write_json(temporary / _IDS, ids)
            own: list[Mapping[str, Any] | None] = []
            table: Attributes | None = None
            if entries is not None:
                terms = _write_texts(temporary, _same_rows(ids, entries), own)
                Lexical.build(terms).save(temporary / _LEXICAL)
            if attributes is not None or any(one is not None for one in own):
                table = _attributes_of(ids, own, attributes or {})
                table.save(temporary / _ATTRIBUTES)
            build_faiss(vectors, factory, temporary / _DENSE)
            _keep_raw_rows(vectors, temporary)
            content = {
                "made_by": vectors.made_by,
                "encoding": vectors.encoding,
                "corpus": vectors.corpus,
                "metric": "cosine" if vectors.made_by.get("normalize") else "ip",
                "factory": factory,
                "analyzer": analyzer,
                "attributes": None if table is None else table.types,
                "documents": len(ids),
                "rows": len(vectors),
                "dim": vectors.dim,
            }
            seal(temporary, KIND, content)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | Path) -> "Index":
        """Open an index folder, memory-mapped where FAISS can.

        Raises:
            InputError: There is none, a file is missing or truncated, or its parts do not agree.
        """
        folder = Path(folder)
        manifest = open_manifest(folder, KIND)
        index = cls(folder, manifest)
        found = (len(index.ids), index.dense.rows, index.dense.dim, index.dense.metric)
        said = (manifest["documents"], manifest["rows"], manifest["dim"], "ip")
        if index.attributes is not None and len(index.attributes) != len(index.ids):
            raise InputError(
                f"{folder}: {len(index.attributes)} of {len(index.ids)} documents have attributes: make it again"
            )
        if found != said:
            raise InputError(
                f"{folder}: documents, rows, dimension, metric are {found}; {MANIFEST} says {said}: make it again"
            )
        return index

    def __len__(self) -> int:
        return len(self.ids)

    def matching(self, condition: str | NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        """Which documents (n,) meet a filter; None: all, for there is none.

        Args:
            condition: In the language of `indexes.filters`, such as `year >= 2020 and lang in ["en", "de"]`, or the
                documents themselves, (n,) bool.

        Raises:
            InputError: It is no filter, not one for these attributes, or the index has none.
        """
        if condition is None:
            return None
        if isinstance(condition, str):
            if self.attributes is None:
                raise InputError(f"{self.folder} has no attributes to filter by; build it with them (--attributes)")
            return self.attributes.matching(condition)
        if condition.dtype != bool or condition.shape != (len(self),):
            raise InputError(
                f"a filter is {condition.dtype} of shape {condition.shape}; expected a text, or bool of ({len(self)},)"
            )
        return condition

    def search(self, queries: NDArray[np.float32], k: int, *, filter: str | NDArray[np.bool_] | None = None) -> Hits:
        """Find the k documents of the largest inner product for each query.

        Args:
            queries: (q, d) float32, made by the encoder that made the index.
            k: Hits for each query.
            filter: Only documents that meet it are hits; see `matching`.

        Returns:
            Hits (q, min(k, documents that meet the filter)), each at most once, ordered by score, then row.

        Raises:
            InputError: k < 1, another dimension, NaN, vectors that are not unit length under cosine, or no such filter.
        """
        if k < 1:
            raise InputError(f"k is {k}; expected at least 1")
        if queries.ndim != 2 or queries.shape[1] != self.dense.dim:
            raise InputError(f"queries have shape {queries.shape}; {self.folder} expects (queries, {self.dense.dim})")
        squares = np.vecdot(queries, queries, dtype=np.float64)  # (q,)
        if not np.isfinite(squares).all():
            raise InputError("a query vector holds NaN or infinity; encode the query again")
        if self.metric == "cosine" and len(squares):
            lengths = np.sqrt(squares)
            if lengths.min() < 1 - UNIT_TOLERANCE or lengths.max() > 1 + UNIT_TOLERANCE:
                far = f"{lengths[np.abs(lengths - 1).argmax()]:.3f}"
                raise InputError(f"a query vector has length {far}; {self.folder} compares unit vectors (cosine)")
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        keep = self.matching(filter)
        k = min(k, len(self) if keep is None else int(np.count_nonzero(keep)))
        return (self.passages or self.dense).search(queries, k, keep) if k else nothing(len(queries), 0)

    def scores(self, queries: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Exact dense scores of each query (q, d) with its own documents, by row (q, m); -inf where a row is -1."""
        return (self.passages or self.dense).scores(queries, rows)

    def passage(self, query: NDArray[np.float32], row: int) -> tuple[int, int] | None:
        """Where a document's best passage for a query (d,) begins and ends, in characters of its content.

        None where the index holds whole documents.
        """
        return self.passages.best(query, row) if self.passages else None

    def check_encoder(self, made_by: Mapping[str, Any], name: str) -> None:
        """Refuse an encoder other than the one that made the vectors.

        Raises:
            InputError: The fingerprints differ; both sides are named, field by field.
        """
        if made_by["fingerprint"] != self.made_by["fingerprint"]:
            raise InputError(
                f"{self.folder} was made by another encoder than {name} (index ≠ encoder: "
                f"{differences(self.made_by, made_by)}); search it with its own encoder or encode the corpus again"
            )

    def text(self, row: int) -> str | None:
        """The stored text of a row; None if the index keeps no texts."""
        if self._offsets is None:
            return None
        with (self.folder / _TEXTS).open("rb") as file:
            file.seek(int(self._offsets[row]))
            return json.loads(file.readline())["text"]

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            InputError: A file is damaged; the message names it.
        """
        verify(self.folder, self.manifest)


def _keep_raw_rows(vectors: VectorStore, folder: Path) -> None:
    """Keep the raw vectors beside a FAISS file that holds them only compressed.

    They are float32 whatever the vectors folder keeps: beside vectors kept as float16, int8 or binary they take 2, 4
    or 32 times its space, and hold no more than was read back from it.
    """
    faiss = load_faiss()
    if stored_rows(faiss.read_index(str(folder / _DENSE), faiss.IO_FLAG_MMAP_IFC)) is not None:
        return
    shape = (len(vectors), vectors.dim)
    raw = np.lib.format.open_memmap(folder / _VECTORS, mode="w+", dtype=np.float32, shape=shape)
    for first, block in vectors.blocks():
        raw[first : first + len(block)] = block
    raw.flush()


def _attributes_of(
    ids: Sequence[str], own: Sequence[Mapping[str, Any] | None], attributes: Mapping[str, Mapping[str, Any]]
) -> Attributes:
    if unknown := attributes.keys() - set(ids):
        raise InputError(
            f"attributes are given for {len(unknown)} documents that the vectors lack, such as {min(unknown)!r}; "
            "leave them out"
        )
    rows = [
        {**(mine or {}), **attributes.get(one, {})} for one, mine in zip(ids, own or [None] * len(ids), strict=True)
    ]
    return Attributes.of(rows, ids)


def _same_rows(ids: Sequence[str], entries: Iterable[Entry]) -> Iterable[Entry]:
    row = -1
    for row, entry in enumerate(entries):
        expected = ids[row] if row < len(ids) else None
        if entry.id != expected:
            raise InputError(
                f"document {row + 1} of the corpus is {entry.id!r}; the vectors have {expected!r} there: "
                "index the corpus that was encoded"
            )
        yield entry
    if row + 1 != len(ids):
        raise InputError(f"the corpus has {row + 1} documents; the vectors have {len(ids)}: index what was encoded")


def _write_texts(
    folder: Path, entries: Iterable[Entry], attributes: list[Mapping[str, Any] | None]
) -> Iterable[Sequence[str]]:
    """Write the texts and where each begins, passing the terms on, and add each entry's attributes to the list."""
    offsets: list[int] = []
    with (folder / _TEXTS).open("wb") as file:
        for entry in entries:
            offsets.append(file.tell())
            file.write(json.dumps({"id": entry.id, "text": entry.text}, ensure_ascii=False).encode() + b"\n")
            attributes.append(entry.attributes)
            yield entry.terms
    np.save(folder / _OFFSETS, np.asarray(offsets, dtype=np.int64), allow_pickle=False)
