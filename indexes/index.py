"""Index folders: one object to build, search and change an index of vectors, BM25, ids, attributes and texts."""

import contextlib
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexes.candidates import AUTO, usual_factory
from indexes.device import checked_device
from indexes.efforts import DEFAULT, Effort
from indexes.errors import InputError
from indexes.faiss_files import fill
from indexes.generations import KIND, Change, changing, file_name, opened
from indexes.gpu import filling_on
from indexes.hits import Hits, Within
from indexes.live import (
    LiveSegment,
    added,
    lexical_record,
    live_segments,
    merged,
    moments_without,
    parted,
    publish,
    record,
    retuned,
    split,
    without,
)
from indexes.manifest import MANIFEST, new_folder, read_manifest, seal, sole_writer
from indexes.moments import ScoreMoments
from indexes.names import Id
from indexes.operating_points import DEFAULT_GOAL, Goal
from indexes.reader import Reader, Stored
from indexes.segments import Entry, Segment, write_segment
from indexes.tune import Report
from indexes.tuned import Tuned
from indexes.vectors import VectorStore


class Index:
    """An index folder that can be searched and changed.

    It consists of segments that never change, each with a FAISS file of its own. `add` and `upsert` write another one,
    `delete` marks documents, `compact` makes one segment of all. Each change is there as a whole or not at all,
    whatever happens to the process; one process at a time changes a folder, any number read it. An opened index shows
    the folder as it was when it was opened, or changed or refreshed by this object; it can be searched by many threads.

    Attributes:
        folder: Where it is.
        reader: The generation that it shows, which has everything that can be read.
    """

    def __init__(self, folder: Path, reader: Reader) -> None:
        self.folder = folder
        self.reader = reader
        self._showing = threading.Lock()

    @classmethod
    def build(
        cls,
        vectors: VectorStore,
        factory: str,
        folder: str | Path,
        *,
        entries: Iterable[Entry] | None = None,
        analyzer: str | Mapping[str, Any] | None = None,
        attributes: Mapping[Any, Mapping[str, Any]] | None = None,
        segments: int = 1,
        device: str | None = None,
        overwrite: bool = False,
    ) -> "Index":
        """Build an index folder from a vectors folder.

        Args:
            vectors: The vectors; cosine is the metric if their encoder normalises, else inner product.
            factory: A FAISS factory string, such as `Flat` (exact), `HNSW32`, `IVF256,PQ48x4fs`; `auto`: by the number
                of vectors, see `usual_factory`; `tune` then finds a better one.
            folder: The folder to make; it appears whole or not at all.
            entries: The documents of the vectors in the same order, for BM25 and to show texts; none: dense only.
            analyzer: The name of what made the terms, or the record of the encoder that gave them weights, with its
                `fingerprint`; kept so that queries are analysed alike.
            attributes: Of documents by id, to filter by, beside those of the entries: bool, int, float, str, date, or
                lists of one of these. Those not given are null.
            segments: How many; more than one for `ShardedIndex`.
            device: `cuda`: FAISS clusters the vectors of inverted lists (IVF…) there, if its wheel is for GPUs, and
                makes the graph of HNSW over whole rows there (by CAGRA), if it is the one with cuVS (extra `cuvs`).
            overwrite: Replace an existing folder.

        Raises:
            InputError: The folder exists, the entries are not those of the vectors, an attribute is of another kind or
                of no document, or FAISS refuses the string.
        """
        folder = Path(folder)
        _check_segments(segments)
        segments = max(1, min(segments, vectors.documents))
        how = fill if device is None else filling_on(checked_device(device))
        factory = usual_factory(len(vectors)) if factory == AUTO else factory
        with contextlib.ExitStack() as stack:
            if overwrite and (folder / MANIFEST).is_file():
                stack.enter_context(sole_writer(folder))
            temporary = stack.enter_context(new_folder(folder, overwrite=overwrite))
            name = file_name("segment", 1)
            (temporary / name).mkdir()
            ScoreMoments.of(vectors.blocks(), vectors.dim).save(temporary / file_name("moments", 1))
            first, by = ("Flat", fill) if segments > 1 else (factory, how)
            write_segment(temporary / name, vectors, first, entries, attributes, how=by)
            segment = Segment(temporary / name)
            if segment.postings is not None and not segment.postings.rows.size:
                raise InputError(
                    f"none of the {len(segment)} documents holds a term; there is nothing to search by words: index "
                    "without them (--dense-only)"
                )
            records = [record(name, segment, factory)]
            if segments > 1:
                records = split(temporary, LiveSegment(records[0], segment, None), factory, segments, how)
            content = {
                "made_by": vectors.made_by,
                "encoding": vectors.encoding,
                "corpus": vectors.corpus,
                "metric": "cosine" if vectors.made_by.get("normalize") else "ip",
                "factory": factory,
                "analyzer": analyzer,
                **lexical_record(segment),
                "attributes": None if segment.attributes is None else segment.attributes.types,
                "dim": vectors.dim,
                "documents": len(segment),
                "rows": segment.dense.rows,
                "segments": records,
                "moments": file_name("moments", 1),
                "deleted": None,
                "tuned": None,
                "generation": 1,
                "build": uuid.uuid4().hex,
            }
            del segment  # nothing of the folder is mapped when it is renamed
            seal(temporary, KIND, content)
        return cls.open(folder, "size")

    @classmethod
    def open(cls, folder: str | Path, check: str | None = None, *, device: str | None = None) -> "Index":
        """Open an index folder, memory-mapped where FAISS can.

        Args:
            folder: Where it is.
            check: `full` compares every byte with the checksums, about a second per GB; `sample` some blocks of the
                larger files; `size` only the files' sizes: in a file that is damaged where nobody looked, FAISS may
                find anything, or crash. None: full up to 8 GB, else sample.

            device: A torch device that searches, such as `cuda`: `Flat` by products there, with the same hits and any
                k; `IVF…` of whole, SQ or 8-bit PQ rows by FAISS, if its wheel is one for GPUs. Documents that are
                added later go there too. None: the processor.

        Raises:
            InputError: There is none, a file is missing or damaged, its parts do not agree, or the device is not there
                or cannot search this index.
        """
        folder, place = Path(folder), None if device is None else checked_device(device)
        return cls(folder, opened(folder, lambda manifest: Reader(folder, manifest, device=place), check))

    def refresh(self) -> bool:
        """Show the folder's present generation, if another process or object changed it; say whether one did."""
        with self._showing:
            before = self.reader
            if read_manifest(self.folder, KIND) == before.manifest:
                return False
            self.reader = opened(
                self.folder,
                lambda manifest: self._read(self.folder, manifest, before),
                "size",
                before.manifest["files"] if before.manifest["build"] == _build_of(self.folder) else None,
            )
            return True

    def __len__(self) -> int:
        """How many documents there are."""
        return len(self.reader)

    def __iter__(self) -> Iterator[Stored]:
        """All documents with what is kept of them, in the order in which they were added."""
        return iter(self.reader)

    def __contains__(self, id_: Id) -> bool:
        return bool(self.reader.rows_of([id_])[0] >= 0)

    def get(self, ids: Sequence[Id]) -> list[Stored | None]:
        """What is kept of each document: vectors, text, attributes; None where there is no such id."""
        if isinstance(ids, str):
            raise InputError(f"found one id, {ids!r}; expected a list of ids")
        reader = self.reader
        return [None if row < 0 else reader.stored(row) for row in reader.rows_of(ids).tolist()]

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        filter: str | NDArray[np.bool_] | None = None,
        effort: Effort = DEFAULT,
    ) -> Hits:
        """Find the k documents of the largest inner product for each query; see `Reader.search`."""
        return self.reader.search(queries, k, filter=filter, effort=effort)

    def search_within(
        self, queries: NDArray[np.float32], least: float, *, filter: str | NDArray[np.bool_] | None = None
    ) -> Within:
        """Find all documents whose score is at least so much, exactly (FAISS' range_search); see `Reader`."""
        return self.reader.search_within(queries, least, filter=filter)

    def stats(self) -> dict[str, Any]:
        """What there is: generation, documents, deleted, bytes on disk, and the same of each segment."""
        return self.reader.stats()

    def verify(self) -> None:
        """Compare every file of the folder's present generation with its checksum.

        Raises:
            InputError: A file is damaged; the message names it.
        """
        opened(self.folder, lambda _: None, "full")

    def add(
        self,
        vectors: VectorStore,
        *,
        entries: Iterable[Entry] | None = None,
        attributes: Mapping[Any, Mapping[str, Any]] | None = None,
    ) -> None:
        """Add documents, none of which is there yet.

        Args:
            vectors: Their vectors, made by the index's encoder.
            entries: The documents in the same order, if the index has BM25 and texts, else none; their terms are made
                by what `analyzer` names.
            attributes: Of documents by id, beside those of the entries.

        Raises:
            InputError: A document is there already, the vectors are of another encoder, entries are missing or too
                many, an attribute is of another kind than in the index, or another process changes the folder. The
                index is as it was.
        """
        self._add(vectors, entries, attributes, replace=False)

    def upsert(
        self,
        vectors: VectorStore,
        *,
        entries: Iterable[Entry] | None = None,
        attributes: Mapping[Any, Mapping[str, Any]] | None = None,
    ) -> int:
        """Add documents, and replace those that are there already; say how many were. See `add`."""
        return self._add(vectors, entries, attributes, replace=True)

    def delete(
        self, ids: Sequence[Id] = (), *, filter: str | NDArray[np.bool_] | None = None, missing_ok: bool = False
    ) -> int:
        """Delete documents by id, by filter, or both; say how many.

        Their space is given back by `compact`.

        Raises:
            InputError: An id is not there and `missing_ok` is false, the filter is none for this index, or another
                process changes the folder. The index is as it was.
        """
        if isinstance(ids, str):
            raise InputError(f"found one id, {ids!r}; expected a list of ids")
        ids, shown = list(ids), self.reader.manifest
        with self._changing() as (change, reader):
            if isinstance(filter, np.ndarray) and reader.manifest != shown:
                raise InputError(f"{self.folder} has changed since the filter was made; refresh, and make it again")
            rows = reader.rows_of(ids)
            if not missing_ok and rows.min(initial=0) < 0:
                missing = [id_ for id_, row in zip(ids, rows.tolist(), strict=True) if row < 0]
                raise InputError(
                    f"{len(missing)} of these documents are not in {self.folder}, such as {missing[0]!r}; "
                    "leave them out or pass over what is missing (missing_ok, --missing-ok)"
                )
            doomed = np.zeros(reader.rows, bool) if filter is None else np.array(reader.matching(filter))
            doomed[rows[rows >= 0]] = True
            if doomed.any():
                self._show(publish(change, reader, without(reader, doomed), moments_without(reader, doomed)))
        return int(np.count_nonzero(doomed))

    def compact(self, segments: int = 1) -> None:
        """Make one segment of all documents, built by the index's factory, and give the space of deleted ones back.

        Or several, for `ShardedIndex`.

        Answers stay the same, except that an approximate index may find other candidates. A factory that cannot be
        built over so few documents as are left gives way to `Flat`; `stats` says so.

        Raises:
            InputError: Another process changes the folder.
        """
        _check_segments(segments)
        with self._changing() as (change, reader):
            held = live_segments(reader)
            other = any(one.live is not None or one.record["factory"] != reader.factory for one in held)
            if held and (other or len(held) != min(segments, len(reader))):
                whole = [
                    merged(change, part, reader.factory, change.path("segment", number if segments > 1 else None))
                    for number, part in enumerate(parted(held, segments), start=1)
                ]
                blocks = (block for one in whole for block in one.segment.dense.targets.blocks())
                self._show(publish(change, reader, whole, ScoreMoments.of(blocks, reader.dim)))

    def tune(
        self,
        queries: NDArray[np.float32],
        goal: Goal = DEFAULT_GOAL,
        *,
        factories: Sequence[str] | None = None,
        source: str = "held out",
        report: Report = lambda _: None,
    ) -> Tuned:
        """Choose the factory and the effort that meet a goal fastest, measured against exact search.

        Candidates are built and searched with more and more effort. One meets the goal if the lower 95% bound of its
        mean recall is high enough, its calls end in time and it fits into memory. The fastest becomes the index's own
        factory, and its effort what `search` takes by default; `explain` says why it was that one. Table and plot of
        all that was measured are kept in the folder. The index becomes one segment. If tuning is interrupted, or
        nothing meets the goal, what was built is there next time, until the index changes.

        Args:
            queries: (q, d), at least 50, better 500, of the index's encoder, such as users ask; not made of the
                documents: documents are easier to find than what asks for them.
            goal: Recall, and limits of time and memory.
            factories: To try, any FAISS factory strings; None: graphs and inverted lists of several precisions.
            source: Where the queries are from, for the record.
            report: Called with a line about each step.

        Raises:
            InputError: Nothing meets the goal (the message says what comes nearest), queries are too few or do not fit,
                or another process changes the folder. The index is as it was.
        """
        with self._changing() as (change, reader):
            queries = reader.checked(queries)
            self._show(retuned(change, reader, queries, goal, factories=factories, source=source, report=report))
            tuned = self.reader.tuned
        assert tuned is not None  # noqa: S101 - it was just published
        return tuned

    def explain(self) -> str:
        """Why it is searched as it is: what tuning measured, and what has changed since; some lines."""
        return self.reader.explain()

    def _add(
        self,
        vectors: VectorStore,
        entries: Iterable[Entry] | None,
        attributes: Mapping[Any, Mapping[str, Any]] | None,
        *,
        replace: bool,
    ) -> int:
        with self._changing() as (change, reader):
            published, replaced = added(change, reader, vectors, entries, attributes, replace=replace)
            self._show(published)
        return replaced

    def _read(self, folder: Path, manifest: Mapping[str, Any], before: Reader | None = None) -> Reader:
        """Open a generation, with what is the same in another one that is open."""
        return Reader(folder, manifest, before, device=None if before is None else before.device)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[tuple[Change, Reader]]:
        """Hold the folder for a change of its present generation."""
        self._refuse_changes()
        with changing(self.folder) as change:
            reader = self.reader
            if reader.manifest != change.manifest:
                reader = self._read(self.folder, change.manifest, reader)
            yield change, reader

    def _refuse_changes(self) -> None:
        """Refuse where this object is only for searching."""

    def _show(self, reader: Reader) -> None:
        """Show a generation that was just published, while the folder is held."""
        with self._showing:
            self.reader = reader


def _build_of(folder: Path) -> Any:
    return read_manifest(folder, KIND)["build"]


def _check_segments(count: int) -> None:
    if count < 1:
        raise InputError(f"segments are {count}; expected at least 1")
