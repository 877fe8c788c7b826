"""Segments: folders of documents that never change, each with its own FAISS file, inverted lists, ids and texts."""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexes.approximate import Approximate
from indexes.arrays import map_array
from indexes.attributes import Attributes
from indexes.efforts import DEFAULT, Effort
from indexes.errors import InputError
from indexes.faiss_files import Fill, build_faiss, fill, load_faiss, stored_rows
from indexes.hits import Hits
from indexes.layout import order_file
from indexes.names import WHOLE, Id, Names, text_of
from indexes.passages import Passages, check_passages
from indexes.postings import Postings, Terms
from indexes.targets import Targets
from indexes.texts import Texts, TextsWriter
from indexes.vectors import Rows, VectorStore

_DENSE = "dense.faiss"
_VECTORS = "vectors.npy"
_PASSAGES = "passages.npy"
_IDS = "ids"
_LEXICAL = "lexical"
_ATTRIBUTES = "attributes.arrow"


class Entry(NamedTuple):
    """What an index keeps of one document beside its vector."""

    id: Id
    terms: Terms
    """For BM25; or, for learned sparse retrieval, the weight of each term, in all entries or in none."""
    text: str
    """Shown with a hit."""
    attributes: Mapping[str, Any] | None = None
    """To filter by."""


class Segment:
    """An opened segment. Its rows, from 0 to n - 1, are documents.

    Args:
        folder: Where it is.

    Attributes:
        ids: n document ids.
        table: What `Passages` makes documents of the vectors by; None where every vector is a whole document.
        postings: The inverted lists, or None.
        attributes: Typed values of each document, or None.
        texts: The documents' texts, or None.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._device: Any = None
        self.ids = Names.open(folder, _IDS)
        self.table: NDArray[np.int64] | None = None
        if (folder / _PASSAGES).is_file():
            self.table = map_array(folder / _PASSAGES)
            check_passages(self.table, len(self.table), len(self.ids), folder)
        self.postings = Postings.open(folder / _LEXICAL) if (folder / _LEXICAL).is_dir() else None
        named = folder / _ATTRIBUTES
        self.attributes = Attributes.open(named) if named.is_file() else None
        self.texts = Texts.open(folder)
        counts = [] if self.postings is None else [len(self.postings.lengths)]
        counts += [] if self.attributes is None else [len(self.attributes)]
        counts += [] if self.texts is None else [len(self.texts)]
        if set(counts) - {len(self.ids)}:
            raise InputError(f"{folder}: its parts hold {counts} of {len(self.ids)} documents: make the index again")

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def dense(self) -> Approximate:
        """The FAISS part, over vectors, opened when it is first asked for."""
        if not self.file.is_file():
            raise InputError(f"{self.file} is not there any more, as the index was changed; refresh")
        raw = map_array(self.folder / _VECTORS) if (self.folder / _VECTORS).is_file() else None
        opened = Approximate(self.folder / _DENSE, raw)
        rows = len(self.ids if self.table is None else self.table)
        if opened.rows != rows:
            raise InputError(f"{self.file} holds {opened.rows} rows of {rows}; make the index again")
        return opened

    @cached_property
    def passages(self) -> Passages | None:
        """What makes documents of the vectors; None where every vector is a whole document."""
        return None if self.table is None else Passages(self.dense, self.table, len(self.ids))

    @property
    def file(self) -> Path:
        """The FAISS file."""
        return self.folder / _DENSE

    @property
    def targets(self) -> Targets:
        """The raw vectors of the documents."""
        return (self.passages or self.dense).targets

    def search(
        self, queries: NDArray[np.float32], k: int, keep: NDArray[np.bool_] | None = None, effort: Effort = DEFAULT
    ) -> Hits:
        """Find the k best documents for each query (q, d), of those to keep (n,); k is at most their number."""
        return (self.passages or self.dense).search(queries, k, keep, effort)

    def move_to(self, device: Any) -> None:
        """Have a torch device search from now on; see `Approximate.move_to`."""
        if self._device != device:
            (self.passages or self.dense).move_to(device)
            self._device = device

    def vector_rows(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of `dense` that belong to some documents."""
        return documents if self.passages is None else self.passages.targets.rows_of(documents)[0]


def write_segment(
    folder: Path,
    store: VectorStore,
    factory: str,
    entries: Iterable[Entry] | None,
    attributes: Mapping[Any, Mapping[str, Any]] | None,
    *,
    known: Attributes | None = None,
    lenient: bool = False,
    how: Fill = fill,
) -> str:
    """Write a new segment of a vectors folder.

    Args:
        folder: An empty folder.
        store: The vectors.
        factory: A FAISS factory string.
        entries: The documents of the vectors, in their order; None: neither BM25 nor texts.
        attributes: Of documents by id, beside the entries' own; None: no others.
        known: Those of the documents that are there already.
        lenient: Take `Flat` where FAISS cannot build the factory over so few vectors.
        how: See `build_faiss`.

    Returns:
        The factory that was built.

    Raises:
        InputError: The entries are not those of the vectors, an attribute is of another kind or of no document, or
            FAISS refuses the string.
    """
    ids = store.ids
    if len(set(ids)) < len(ids):
        twice, _ = Counter(ids).most_common(1)[0]
        raise InputError(
            f"{store.folder} has document {twice!r} twice; make it anew of documents with ids of their own"
        )
    whole = store.encoding.get("ids") == WHOLE
    if attributes is not None:
        attributes = {text_of(one, whole=whole): values for one, values in attributes.items()}
    own: list[Mapping[str, Any] | None] = []
    if entries is not None:
        _write_entries(folder, _same_rows(ids, entries, whole=whole), own).save(folder / _LEXICAL)
    if attributes is not None or any(one is not None for one in own):
        _attributes_of(ids, own, attributes or {}, known).save(folder / _ATTRIBUTES)
    passages = store.passages
    if passages is not None:
        check_passages(passages, len(store), len(ids), store.folder)
    return _write_dense(folder, store, ids, passages, factory, lenient=lenient, how=how)


def merge_segments(
    folder: Path,
    segments: Sequence[Segment],
    keep: Sequence[NDArray[np.bool_] | None],
    factory: str,
    *,
    lenient: bool = True,
    how: Fill = fill,
) -> str:
    """Write a new segment of the documents of others, in their order, without those that are not to be kept.

    Args:
        folder: An empty folder.
        segments: One or more; either all have inverted lists and texts, or none has.
        keep: Of each segment, which documents to keep (n,); None: all. At least one document is kept.
        factory: A FAISS factory string.
        lenient: Take `Flat` where FAISS cannot build the factory over so few vectors.
        how: See `build_faiss`.

    Returns:
        The factory that was built.
    """
    kept = [
        np.arange(len(one)) if some is None else np.flatnonzero(some) for one, some in zip(segments, keep, strict=True)
    ]
    both = list(zip(segments, kept, strict=True))
    ids = [names[row] for names, rows in ((list(one.ids), rows) for one, rows in both) for row in rows.tolist()]
    vectors = JoinedRows([(one.dense.targets, one.vector_rows(rows)) for one, rows in both])
    used = _write_dense(folder, vectors, ids, _joined_passages(both), factory, lenient=lenient, how=how)
    postings = [(one.postings, some) for one, some in zip(segments, keep, strict=True) if one.postings is not None]
    if postings:
        Postings.joined(postings).save(folder / _LEXICAL)
    if any(one.texts is not None for one in segments):
        with TextsWriter(folder) as writer:
            for one, rows in both:
                assert one.texts is not None  # noqa: S101 - all have texts, or none
                writer.add_all(one.texts, rows.tolist())
    if any(one.attributes is not None for one in segments):
        chosen = np.concatenate([rows + first for first, rows in _counted(both)])
        joined_attributes(segments).take(chosen).save(folder / _ATTRIBUTES)
    return used


def over_another_file(folder: Path, segment: Segment, file: Path) -> None:
    """Write a new segment of the same documents over another FAISS file.

    Args:
        folder: An empty folder; on the same disk files are linked, else copied.
        segment: Of which no vector is left out.
        file: What `build_faiss` wrote over its rows.
    """
    for path in segment.folder.rglob("*"):
        place = folder / path.relative_to(segment.folder)
        if path.is_file() and path not in (segment.file, order_file(segment.file), segment.folder / _VECTORS):
            place.parent.mkdir(exist_ok=True)
            _link(path, place)
    _link(file, folder / _DENSE)
    if order_file(file).is_file():
        _link(order_file(file), order_file(folder / _DENSE))
    vectors = segment.dense.targets
    _keep_raw_rows(JoinedRows([(vectors, np.arange(len(vectors)))]), folder)


def joined_attributes(segments: Sequence[Segment], types: Mapping[str, str] | None = None) -> Attributes:
    """The attributes of all segments' documents, and those of some types that none of them has."""
    return Attributes.joined([one.attributes or Attributes.none(len(one)) for one in segments], types)


class JoinedRows(Rows):
    """Chosen rows of several matrices, as one.

    Args:
        parts: The matrices, and the numbers of the rows of each.
    """

    def __init__(self, parts: Sequence[tuple[Targets, NDArray[np.int64]]]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *(len(rows) for _, rows in parts)])
        self.dim = parts[0][0].vectors.shape[1]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def blocks(self, rows: int = 65_536) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield (first row, (≤ rows, d)) over all."""
        for first in range(0, len(self), rows):
            yield first, self[first : first + rows]

    def __getitem__(self, rows: slice | Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        wanted = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
        out = np.empty((len(wanted), self.dim), np.float32)
        for start, (targets, numbers) in zip(self._starts, self._parts, strict=False):
            here = (wanted >= start) & (wanted < start + len(numbers))
            out[here] = targets.rows(numbers[wanted[here] - start])
        return out


def _write_dense(
    folder: Path,
    vectors: Rows,
    ids: Sequence[str],
    passages: NDArray[np.int64] | None,
    factory: str,
    *,
    lenient: bool,
    how: Fill = fill,
) -> str:
    if passages is not None:
        np.save(folder / _PASSAGES, passages, allow_pickle=False)
    Names.of(ids).save(folder, _IDS)
    try:
        build_faiss(vectors, factory, folder / _DENSE, how)
    except InputError:
        if not lenient or factory == "Flat":
            raise
        factory = "Flat"
        build_faiss(vectors, factory, folder / _DENSE)
    _keep_raw_rows(vectors, folder)
    return factory


def _keep_raw_rows(vectors: Rows, folder: Path) -> None:
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


def _link(path: Path, place: Path) -> None:
    try:
        place.hardlink_to(path)
    except OSError:  # some file systems have no links
        shutil.copyfile(path, place)


def _write_entries(folder: Path, entries: Iterable[Entry], attributes: list[Mapping[str, Any] | None]) -> Postings:
    """Write the texts, add each entry's attributes to the list, and give the inverted lists."""
    with TextsWriter(folder) as writer:

        def terms() -> Iterator[Terms]:
            for entry in entries:
                writer.add(str(entry.id), entry.text)
                attributes.append(entry.attributes)
                yield entry.terms

        return Postings.of(terms())


def _attributes_of(
    ids: Sequence[str],
    own: Sequence[Mapping[str, Any] | None],
    attributes: Mapping[str, Mapping[str, Any]],
    known: Attributes | None,
) -> Attributes:
    if unknown := attributes.keys() - set(ids):
        raise InputError(
            f"attributes are given for {len(unknown)} documents that the vectors lack, such as {min(unknown)!r}; "
            "leave them out"
        )
    rows = [
        {**(mine or {}), **attributes.get(one, {})} for one, mine in zip(ids, own or [None] * len(ids), strict=True)
    ]
    return Attributes.of(rows, ids, known)


def _same_rows(ids: Sequence[str], entries: Iterable[Entry], *, whole: bool) -> Iterable[Entry]:
    row = -1
    for row, given in enumerate(entries):
        entry = given._replace(id=text_of(given.id, whole=whole))
        expected = ids[row] if row < len(ids) else None
        if entry.id != expected:
            raise InputError(
                f"document {row + 1} of the corpus is {entry.id!r}; the vectors have {expected!r} there: "
                "index the corpus that was encoded"
            )
        yield entry
    if row + 1 != len(ids):
        raise InputError(f"the corpus has {row + 1} documents; the vectors have {len(ids)}: index what was encoded")


def _joined_passages(both: Sequence[tuple[Segment, NDArray[np.int64]]]) -> NDArray[np.int64] | None:
    """The passages table of chosen documents of several segments; None if all have whole documents."""
    if all(one.table is None for one, _ in both):
        return None
    tables = []
    done = 0
    for one, rows in both:
        assert one.table is not None  # noqa: S101 - an index takes whole documents or passages, not both
        table = np.array(one.table[one.vector_rows(rows)])
        table[:, 0] = np.searchsorted(rows, table[:, 0]) + done
        tables.append(table)
        done += len(rows)
    return np.concatenate(tables)


def _counted(both: Sequence[tuple[Segment, NDArray[np.int64]]]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    first = 0
    for one, rows in both:
        yield first, rows
        first += len(one)
