"""One generation of an index folder, opened for reading: its segments searched as one."""

import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from indexes.arrays import read_array
from indexes.attributes import Attributes
from indexes.dense import Dense, LocalDense
from indexes.efforts import DEFAULT, Effort
from indexes.errors import InputError
from indexes.hits import Hits, Within
from indexes.lexical import Impacts, Lexical
from indexes.manifest import differences
from indexes.moments import ScoreMoments
from indexes.names import WHOLE, Id, text_of
from indexes.segments import Segment, joined_attributes
from indexes.tuned import Tuned
from indexes.vectors import UNIT_TOLERANCE

_UNIT = (1 - UNIT_TOLERANCE) ** 2, (1 + UNIT_TOLERANCE) ** 2
_FINITE = np.finfo(np.float64).max
_SURELY = 1 + 1e-3
"""So far are squared lengths off in float32, of up to 8,000 dimensions."""


class Stored(NamedTuple):
    """A document as an index keeps it."""

    id: Id
    row: int
    """Its row in this generation."""
    vectors: NDArray[np.float32]
    """(1, d), or those of its passages (p, d)."""
    text: str | None
    """None if the index keeps no texts."""
    attributes: dict[str, Any] | None
    """None if the index keeps none."""


class Reader:
    """One generation of an index: it never changes, and no change of the folder takes anything away from it.

    Everything in it speaks of documents by their row; rows count on from segment to segment, deleted documents
    included. Where long documents were encoded in passages, a document's dense score is its best passage's.

    Attributes:
        ids: The document id of each row.
        live: (n,) which rows are not deleted; None: all.
        made_by: The record of the encoder that made the vectors, with its `fingerprint`.
        encoding: What else decided the vectors: `storage`, `long_documents` …
        whole_ids: Whether ids are whole numbers; else they are texts.
        metric: `cosine` (unit vectors) or `ip` (inner product).
        factory: The FAISS factory string.
        analyzer: The name of what made BM25's terms; or the record of the encoder that gave terms their weights.
        segments: The segments, in the order of their rows.
        dense: What searches their vectors.
        device: Where; None: the processor.
        lexical: The inverted lists: BM25, or learned weights (`Impacts`); or None.
        attributes: Typed values of each document to filter by, or None.
        moments: Mean and covariance of the vectors that are not deleted, for fusion.
        corpus: `source` and `fingerprint` of the corpus.
        generation: How many changes made it, the first one included.
        dim: d.
        tuned: What tuning measured and chose; None: it was not tuned.
        effort: How far it is searched if a search does not say so: as tuned, if it was.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Mapping[str, Any],
        before: "Reader | None" = None,
        dense: Dense | None = None,
        device: Any = None,
    ) -> None:
        """Open a generation.

        Args:
            folder: The index folder.
            manifest: What `read_manifest` gave.
            before: Another generation, whose segments are taken over where they are the same.
            dense: What searches the vectors; None: this process, which then opens the FAISS files.
            device: A torch device that searches them; None: the processor.
        """
        self.folder = folder
        self.device = device
        self.manifest = manifest
        self.generation: int = manifest["generation"]
        self.made_by: dict[str, Any] = manifest["made_by"]
        self.encoding: dict[str, Any] = manifest["encoding"]
        self.whole_ids = self.encoding.get("ids") == WHOLE
        self.metric: str = manifest["metric"]
        self.factory: str = manifest["factory"]
        self.analyzer: str | dict[str, Any] | None = manifest["analyzer"]
        self.corpus: dict[str, Any] = manifest["corpus"]
        self.dim: int = manifest["dim"]
        self.tuned = Tuned.open(folder / manifest["tuned"]) if manifest.get("tuned") else None
        self.effort = self.tuned.chosen.effort if self.tuned else DEFAULT
        self.segments = [
            _same_segment(before, one["name"], manifest) or Segment(folder / one["name"])
            for one in manifest["segments"]
        ]
        self.starts: list[int] = np.cumsum([0, *map(len, self.segments)]).tolist()
        self.dense: Dense = dense or LocalDense(self.segments, device)
        self.ids = _Ids(self)
        self.live = self._read_live(manifest["deleted"])
        self.moments = ScoreMoments.open(folder / manifest["moments"])
        self.lexical: Lexical | Impacts | None = None
        if manifest["bm25"] is not None or manifest.get("impacts"):
            parts = [(one.postings, some) for one, some in zip(self.segments, self.of_segments(self.live), strict=True)]
            lists = [(one, some) for one, some in parts if one is not None]
            self.lexical = Impacts(lists) if manifest.get("impacts") else Lexical(lists, **manifest["bm25"])
        self.attributes: Attributes | None = None
        if manifest["attributes"] is not None:
            self.attributes = joined_attributes(self.segments, manifest["attributes"])
        self._check(here=dense is None)

    def _read_live(self, name: str | None) -> NDArray[np.bool_] | None:
        if name is None:
            return None
        packed = read_array(self.folder / name)
        if packed.dtype != np.uint8 or len(packed) != -(-self.rows // 8):
            raise InputError(f"{self.folder / name} is not of {self.rows} rows; make the index again")
        live = np.unpackbits(packed, count=self.rows) == 0
        live.setflags(write=False)  # `matching` hands it out
        return live

    def _check(self, *, here: bool) -> None:
        opened = [one.dense for one in self.segments] if here else []
        dims = {one.dim for one in opened} | {len(self.moments.sums) - 1}
        metrics = {one.metric for one in opened} - {"ip"}
        lexical = self.rows if self.lexical is None else self.lexical.rows
        if dims != {self.dim} or metrics or len(self) != self.manifest["documents"] or lexical != self.rows:
            raise InputError(f"{self.folder}: its segments are not what its manifest says; make the index again")

    def __len__(self) -> int:
        """How many documents there are, deleted ones not counted."""
        return self.rows if self.live is None else int(np.count_nonzero(self.live))

    @property
    def rows(self) -> int:
        """n: documents, deleted ones counted."""
        return self.starts[-1]

    def of_segments(self, mask: NDArray[np.bool_] | None) -> list[NDArray[np.bool_] | None]:
        """The part of a mask over all rows (n,) that belongs to each segment."""
        if mask is None:
            return [None] * len(self.segments)
        return [mask[first:last] for first, last in zip(self.starts, self.starts[1:], strict=False)]

    def matching(self, condition: str | NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        """Which rows (n,) meet a filter and are not deleted; None: all.

        Args:
            condition: In the language of `indexes.filters`, such as `year >= 2020 and lang in ["en", "de"]`, or the
                rows themselves, (n,) bool.

        Raises:
            InputError: It is no filter, not one for these attributes, or the index has none.
        """
        if condition is None:
            return self.live
        if isinstance(condition, str):
            if self.attributes is None:
                raise InputError(f"{self.folder} has no attributes to filter by; build it with them (--attributes)")
            found = self.attributes.matching(condition)
        elif not isinstance(condition, np.ndarray):
            raise InputError(f"a filter is {condition!r}; expected a text, or an array of bool")
        elif condition.dtype != bool or condition.shape != (self.rows,):
            raise InputError(
                f"a filter is {condition.dtype} of shape {condition.shape}; expected a text, or bool of ({self.rows},)"
            )
        else:
            found = condition
        return found if self.live is None else found & self.live

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        filter: str | NDArray[np.bool_] | None = None,
        effort: Effort = DEFAULT,
    ) -> Hits:
        """Find the k documents of the largest inner product for each query.

        Args:
            queries: (q, d) float32, made by the encoder that made the index.
            k: Hits for each query.
            filter: Only documents that meet it are hits; see `matching`.
            effort: How far an approximate index is searched; None in it: as tuned, or as by default.

        Returns:
            Hits (q, min(k, documents that meet the filter)), each at most once, ordered by score, then row.

        Raises:
            InputError: k < 1, another dimension, NaN, vectors that are not unit length under cosine, or no such filter.
        """
        return self.dense.search(*self.asked(queries, k, filter, effort))

    def asked(
        self, queries: NDArray[np.float32], k: int, filter: str | NDArray[np.bool_] | None, effort: Effort
    ) -> tuple[NDArray[np.float32], int, NDArray[np.bool_] | None, Effort]:
        """What `search` is asked, checked: queries, k, which rows to keep, and how far to go."""
        if not isinstance(k, int | np.integer) or k < 1:
            raise InputError(f"k is {k}; expected a whole number, at least 1")
        if effort is not self.effort:
            effort.check()
            effort = effort.over(self.effort)
        return self.checked(queries), k, self.matching(filter), effort

    def search_within(
        self, queries: NDArray[np.float32], least: float, *, filter: str | NDArray[np.bool_] | None = None
    ) -> Within:
        """Find all documents whose score is at least so much, exactly, for each query (q, d).

        Raises:
            InputError: `least` is not finite, and what `search` refuses.
        """
        if not isinstance(least, float | int | np.number) or not np.isfinite(least):
            raise InputError(f"the least score is {least}; expected a number")
        queries = self.checked(queries)
        return self.dense.within(queries, least, self.matching(filter))

    def scores(self, queries: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Exact dense scores of each query (q, d) with its own documents, by row (q, m); -inf where a row is -1."""
        return self.dense.scores(queries, rows)

    def rows_of(self, ids: Sequence[Id]) -> NDArray[np.int64]:
        """The row of each document (m,) that is not deleted; -1 where there is none."""
        return self.rows_of_names([text_of(id_, whole=self.whole_ids) for id_ in ids])

    def rows_of_names(self, names: Sequence[str]) -> NDArray[np.int64]:
        """The same of ids as they are kept: as texts."""
        out = np.full(len(names), -1, np.int64)
        for first, segment in zip(self.starts, self.segments, strict=False):
            numbers = segment.ids.numbers(names)
            rows = np.where(numbers < 0, -1, numbers + first)
            found = rows >= 0 if self.live is None else (rows >= 0) & self.live[rows]
            out[found] = rows[found]
        return out

    def __iter__(self) -> Iterator[Stored]:
        rows = range(self.rows) if self.live is None else np.flatnonzero(self.live).tolist()
        return (self.stored(row) for row in rows)

    def stored(self, row: int) -> Stored:
        """What is kept of the document of a row."""
        segment, number = self._place(row)
        vectors = segment.dense.targets.rows(segment.vector_rows(np.array([number])))
        attributes = None if self.attributes is None else self.attributes.row(row)
        return Stored(self.ids[row], row, vectors, self.text(row), attributes)

    def text(self, row: int) -> str | None:
        """The stored text of a row; None if the index keeps no texts."""
        segment, number = self._place(row)
        return None if segment.texts is None else segment.texts[number]

    def passage(self, query: NDArray[np.float32], row: int) -> tuple[int, int] | None:
        """Where a document's best passage for a query (d,) begins and ends, in characters of its content.

        None where the index holds whole documents.
        """
        segment, number = self._place(row)
        return segment.passages.best(query, number) if segment.passages else None

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

    def stats(self) -> dict[str, Any]:
        """What there is: generation, documents, deleted, bytes on disk, and the same of each segment."""
        masks = self.of_segments(self.live)
        deleted = [0 if some is None else int(np.count_nonzero(~some)) for some in masks]
        sizes = {name: entry["bytes"] for name, entry in self.manifest["files"].items()}
        segments = [
            {
                **one,
                "deleted": gone,
                "bytes": sum(size for name, size in sizes.items() if name.startswith(f"{one['name']}/")),
            }
            for one, gone in zip(self.manifest["segments"], deleted, strict=True)
        ]
        return {
            "generation": self.generation,
            "documents": len(self),
            "deleted": sum(deleted),
            "dim": self.dim,
            "metric": self.metric,
            "factory": self.factory,
            "lexical": self.lexical is not None,
            "attributes": self.manifest["attributes"],
            "bytes": sum(sizes.values()),
            "segments": segments,
        }

    def explain(self) -> str:
        """Why it is searched as it is: what tuning measured, and what has changed since; some lines."""
        if self.tuned is None:
            return f"{self.factory}, as it was asked for; its recall and its times were not measured (retrokit tune)"
        masks = self.of_segments(self.live)
        live = [len(one) if some is None else int(some.sum()) for one, some in zip(self.segments, masks, strict=True)]
        return self.tuned.explain(len(self), dict(zip((one.folder.name for one in self.segments), live, strict=True)))

    def _place(self, row: int) -> tuple[Segment, int]:
        """The segment of a row, and its row there."""
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} of {self.rows}")
        number = bisect.bisect_right(self.starts, row) - 1
        return self.segments[number], row - self.starts[number]

    def checked(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Queries (q, d), contiguous, if they can be searched with.

        Raises:
            InputError: Another dimension, NaN, or vectors that are not unit length under cosine.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise InputError(f"queries have shape {queries.shape}; {self.folder} expects (queries, {self.dim})")
        low, high = _UNIT if self.metric == "cosine" else (0.0, _FINITE)
        if queries.dtype == np.float32 and len(queries):  # most of the time, and in a quarter of the time
            with np.errstate(over="ignore"):
                near = np.vecdot(queries, queries)
            least, most = (near[0], near[0]) if len(near) == 1 else (near.min(), near.max())
            if least >= low * _SURELY and most <= high / _SURELY:
                return np.ascontiguousarray(queries)
        squares = np.vecdot(queries, queries, dtype=np.float64)
        if len(squares) and not (squares.min() >= low and squares.max() <= high):  # NaN is neither
            if not np.isfinite(squares).all():
                raise InputError("a query vector holds NaN or infinity; encode the query again")
            lengths = np.sqrt(squares)
            far = f"{lengths[np.abs(lengths - 1).argmax()]:.3f}"
            raise InputError(f"a query vector has length {far}; {self.folder} compares unit vectors (cosine)")
        return np.ascontiguousarray(queries, dtype=np.float32)


def _same_segment(before: Reader | None, name: str, manifest: Mapping[str, Any]) -> Segment | None:
    """A segment of another generation, if it has the files that the manifest lists under this name."""
    if before is None:
        return None
    ours, theirs = (
        {file: entry for file, entry in one["files"].items() if file.startswith(f"{name}/")}
        for one in (manifest, before.manifest)
    )
    return next((one for one in before.segments if one.folder.name == name and ours == theirs), None)


class _Ids(Sequence[Id]):
    """The ids of all rows, deleted ones included."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._of_text: Callable[[str], Id] = int if reader.whole_ids else str

    def __len__(self) -> int:
        return self._reader.rows

    @overload
    def __getitem__(self, row: int) -> Id: ...
    @overload
    def __getitem__(self, row: slice) -> list[Id]: ...
    def __getitem__(self, row: int | slice) -> Id | list[Id]:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        segment, number = self._reader._place(row if row >= 0 else row + len(self))
        return self._of_text(segment.ids[number])

    def __iter__(self) -> Iterator[Id]:
        for segment in self._reader.segments:
            yield from map(self._of_text, segment.ids)
