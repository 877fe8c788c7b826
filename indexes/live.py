"""What a generation of an index consists of: segments, and which of their documents live."""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InputError
from indexes.faiss_files import Fill, fill
from indexes.generations import PLOT, Change, file_name, work_folder
from indexes.lexical import K1, B, Impacts
from indexes.manifest import differences, sync
from indexes.moments import ScoreMoments
from indexes.names import WHOLE
from indexes.operating_points import Goal
from indexes.plots import plot
from indexes.reader import Reader
from indexes.segments import Entry, Segment, joined_attributes, merge_segments, over_another_file, write_segment
from indexes.tune import Report, Tuning, check_asked
from indexes.vectors import VectorStore, joined_corpus

SMALL = 20_000
"""Documents: fewer are searched exactly about as fast as with FAISS' help."""
_LIKE = 2
_KEPT = ("build", "made_by", "encoding", "metric", "factory", "analyzer", "bm25", "impacts", "dim", "tuned")
_BLOCK = 65_536
_LONG = ("long_documents", "passage_tokens", "overlap")
_CANCELS = 1e3
"""Where what is taken away is so many times what is left, the difference of the sums has lost too many digits."""


class LiveSegment(NamedTuple):
    """A segment and what is deleted of it."""

    record: dict[str, Any]
    """In the manifest: name, documents, rows, factory."""
    segment: Segment
    live: NDArray[np.bool_] | None
    """(n,) which of its documents are not deleted; None: all."""

    @property
    def documents(self) -> int:
        """How many are not deleted."""
        return len(self.segment) if self.live is None else int(np.count_nonzero(self.live))


def record(name: str, segment: Segment, factory: str) -> dict[str, Any]:
    """What the manifest says of a segment."""
    return {"name": name, "documents": len(segment), "rows": segment.dense.rows, "factory": factory}


def lexical_record(segment: Segment) -> dict[str, Any]:
    """What the manifest says of the inverted lists of an index: of BM25 its parameters, or that they hold weights."""
    postings = segment.postings
    if postings is None or postings.weighted:
        return {"bm25": None, "impacts": postings is not None}
    return {"bm25": {"k1": K1, "b": B}, "impacts": False}


def live_segments(reader: Reader, live: NDArray[np.bool_] | None = None) -> list[LiveSegment]:
    """The segments of a generation.

    Args:
        reader: The generation.
        live: (n,) which of its rows are not deleted; None: as the generation says.
    """
    masks = reader.of_segments(reader.live if live is None else live)
    parts = zip(reader.manifest["segments"], reader.segments, masks, strict=True)
    return [LiveSegment(said, one, None if some is None or some.all() else some) for said, one, some in parts]


def without(reader: Reader, doomed: NDArray[np.bool_]) -> list[LiveSegment]:
    """The segments of a generation without some documents (n,); a segment without any is left out."""
    live = ~doomed if reader.live is None else reader.live & ~doomed
    return [one for one in live_segments(reader, live) if one.documents]


def moments_without(reader: Reader, doomed: NDArray[np.bool_]) -> ScoreMoments:
    """Those of the vectors of all live documents but some (n,)."""
    gone = _moments_of(reader, doomed)
    left = reader.moments - gone
    if np.trace(gone.sums[1:, 1:]) < _CANCELS * np.trace(left.sums[1:, 1:]):
        return left
    return _moments_of(reader, ~doomed if reader.live is None else reader.live & ~doomed)


def _moments_of(reader: Reader, chosen: NDArray[np.bool_]) -> ScoreMoments:
    """Those of the vectors of some documents (n,)."""

    def blocks() -> Iterator[tuple[int, NDArray[np.float32]]]:
        for segment, mask in zip(reader.segments, reader.of_segments(chosen), strict=True):
            assert mask is not None  # noqa: S101 - it is a part of `chosen`
            rows = segment.vector_rows(np.flatnonzero(mask))
            for first in range(0, len(rows), _BLOCK):
                yield first, segment.dense.targets.rows(rows[first : first + _BLOCK])

    return ScoreMoments.of(blocks(), reader.dim)


def first_to_merge(held: Sequence[LiveSegment], new: int) -> int:
    """From which segment on to merge with so many new documents, so that adding little by little leaves few segments.

    A segment is merged with what comes after it if it is small, searched exactly, and not much larger than that is
    together: so each document is written again only as often as its segment doubles.
    """
    first, total = len(held), new
    while first > 0:
        before = held[first - 1]
        if before.record["factory"] != "Flat" or before.documents >= SMALL or before.documents > _LIKE * total:
            break
        first -= 1
        total += before.documents
    return first


def merged(change: Change, held: Sequence[LiveSegment], factory: str, path: Path | None = None) -> LiveSegment:
    """One new segment of all live documents, of which there is at least one.

    Its factory is `Flat` if FAISS cannot build the one that was asked for over so few documents.
    """
    path = path or change.path("segment")
    path.mkdir()
    used = merge_segments(path, [one.segment for one in held], [one.live for one in held], factory)
    segment = Segment(path)
    return LiveSegment(record(path.name, segment, used), segment, None)


def added(
    change: Change,
    reader: Reader,
    vectors: VectorStore,
    entries: Iterable[Entry] | None,
    attributes: Mapping[Any, Mapping[str, Any]] | None,
    *,
    replace: bool,
) -> tuple[Reader, int]:
    """Publish a generation with more documents, and give it and how many were there already. See `Index.add`."""
    refuse_misfit(reader, vectors, entries is not None)
    rows = reader.rows_of_names(vectors.ids)
    doomed = np.zeros(reader.rows, bool)
    doomed[rows[rows >= 0]] = True
    if doomed.any() and not replace:
        first = next(id_ for id_, row in zip(vectors.ids, rows.tolist(), strict=True) if row >= 0)
        raise InputError(
            f"{np.count_nonzero(doomed)} of the documents are in {reader.folder} already, such as {first!r}; "
            "upsert replaces them"
        )
    held = without(reader, doomed)
    begin = first_to_merge(held, vectors.documents)
    path = change.path("segment")
    path = path.with_name(f"{path.name}.new") if begin < len(held) else path
    path.mkdir()
    factory = "Flat" if len(vectors) < SMALL else reader.factory
    factory = write_segment(path, vectors, factory, entries, attributes, known=reader.attributes, lenient=True)
    segment = Segment(path)
    if segment.postings is not None and segment.postings.weighted != isinstance(reader.lexical, Impacts):
        kinds = ("terms, for BM25", "weights of terms")
        mine, yours = kinds[not segment.postings.weighted], kinds[segment.postings.weighted]
        raise InputError(f"{reader.folder} holds {mine}; the entries have {yours}: give what it holds")
    held.append(LiveSegment(record(path.name, segment, factory), segment, None))
    if begin < len(held) - 1:  # what is added little by little is merged now and then
        count = sum(one.documents for one in held[begin:])
        held[begin:] = [merged(change, held[begin:], "Flat" if count < SMALL else reader.factory)]
    moments = moments_without(reader, doomed) if doomed.any() else reader.moments
    moments += ScoreMoments.of(vectors.blocks(), reader.dim)
    gone = bool(doomed.any()) or len(reader) < reader.rows
    corpus = joined_corpus([(reader.corpus, len(reader)), (vectors.corpus, vectors.documents)], known=not gone)
    return publish(change, reader, held, moments, corpus), int(np.count_nonzero(doomed))


def parted(held: Sequence[LiveSegment], count: int) -> list[list[LiveSegment]]:
    """Part live documents, in their order, into so many parts of about the same size; fewer if they are fewer."""
    total = sum(one.documents for one in held)
    count = min(count, total)
    borders = [total * part // count for part in range(count + 1)]
    parts: list[list[LiveSegment]] = [[] for _ in range(count)]
    done = 0
    for one in held:
        live = np.ones(len(one.segment), bool) if one.live is None else one.live
        places = np.cumsum(live) - 1 + done  # of each live document among all
        for part, first, last in zip(parts, borders, borders[1:], strict=False):
            mine = live & (places >= first) & (places < last)
            if mine.any():
                part.append(one._replace(live=None if mine.all() else mine))
        done += one.documents
    return parts


def split(folder: Path, whole: LiveSegment, factory: str, count: int, how: Fill = fill) -> list[dict[str, Any]]:
    """Replace the segment of a new folder by several, and give their records.

    Raises:
        InputError: FAISS cannot build the factory over so few vectors.
    """
    records = []
    for number, part in enumerate(parted([whole], count), start=1):
        path = folder / file_name("segment", 1, number)
        path.mkdir()
        merge_segments(path, [one.segment for one in part], [one.live for one in part], factory, lenient=False, how=how)
        records.append(record(path.name, Segment(path), factory))
    shutil.rmtree(folder / whole.record["name"])
    return records


def retuned(
    change: Change,
    reader: Reader,
    queries: NDArray[np.float32],
    goal: Goal,
    *,
    factories: Sequence[str] | None,
    source: str,
    report: Report,
) -> Reader:
    """Tune a generation, publish the next one, built and searched as was chosen, and give it. See `Index.tune`."""
    if reader.device is not None:
        raise InputError(f"{reader.folder} is opened on {reader.device}; tuning is on the processor: open it without")
    check_asked(len(queries), goal, len(reader))
    held = live_segments(reader)
    path, work = change.path("segment"), work_folder(reader.folder, reader.manifest)
    work.mkdir(parents=True, exist_ok=True)
    whole = len(held) == 1 and held[0].live is None
    base = held[0] if whole else _kept_merge(held, work / "all")
    tuning = Tuning(queries, goal, base.segment, base.record["factory"], work, report)
    tuned = tuning.run(factories, source)
    factory = tuned.chosen.factory
    if not whole or factory != base.record["factory"]:
        path.mkdir()
        over_another_file(path, base.segment, tuning.file(factory))
        segment = Segment(path)
        base = LiveSegment(record(path.name, segment, factory), segment, None)
    table = change.path("tuned")
    tuned = tuned._replace(segment=base.record["name"])
    tuned.save(table)
    plot(tuned, table.with_name(PLOT.format(table.name)))
    published = publish(change, reader, [base], reader.moments, factory=factory, tuned=table.name)
    shutil.rmtree(work.parent, ignore_errors=True)
    return published


def _kept_merge(held: Sequence[LiveSegment], path: Path) -> LiveSegment:
    """All live documents as one exact segment, written to a place where it is found next time."""
    if not path.is_dir():
        new = path.with_name(f"{path.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        merge_segments(new, [one.segment for one in held], [one.live for one in held], "Flat")
        for file in (*new.rglob("*"), new):  # or a power cut could leave a whole folder of empty files
            sync(file)
        new.rename(path)
    segment = Segment(path)
    return LiveSegment(record(path.name, segment, "Flat"), segment, None)


def publish(
    change: Change,
    reader: Reader,
    held: Sequence[LiveSegment],
    moments: ScoreMoments,
    corpus: Mapping[str, Any] | None = None,
    **changed: Any,
) -> Reader:
    """Publish segments as the next generation of an index, once it has been opened, and give it.

    Args:
        change: The generation in the making.
        reader: The one before.
        held: The segments.
        moments: Those of the live documents' vectors.
        corpus: What the documents were made of; None: what they were, unless some are missing now.
        changed: What else the manifest says otherwise: `factory`, `tuned`.
    """
    documents = sum(one.documents for one in held)
    known = documents == len(reader)
    moments.save(change.path("moments"))
    deleted = None
    if any(one.live is not None for one in held):
        live = [np.ones(len(one.segment), bool) if one.live is None else one.live for one in held]
        deleted = change.path("deleted")
        np.save(deleted, np.packbits(~np.concatenate(live)), allow_pickle=False)
    types = reader.manifest["attributes"]
    if any(one.segment.attributes is not None for one in held):
        types = joined_attributes([one.segment for one in held], types).types
    manifest = change.describe(
        {
            **{name: reader.manifest.get(name) for name in _KEPT},
            "corpus": corpus or (reader.corpus if known else joined_corpus([], known=False)),
            "attributes": types,
            "documents": documents,
            "rows": sum(one.record["rows"] for one in held),
            "segments": [one.record for one in held],
            "moments": change.path("moments").name,
            "deleted": None if deleted is None else deleted.name,
            **changed,
        }
    )
    opened = Reader(reader.folder, manifest, reader, device=reader.device)  # what cannot be opened is not published
    change.commit(manifest)
    return opened


def refuse_misfit(reader: Reader, vectors: VectorStore, entries: bool) -> None:
    """Refuse vectors that mean something else than those of the index, or come with more or less than it keeps."""
    reader.check_encoder(vectors.made_by, str(vectors.folder))
    if vectors.dim != reader.dim:
        raise InputError(f"{vectors.folder} has {vectors.dim} dimensions; {reader.folder} has {reader.dim}")
    ours, theirs = ({"long_documents": "truncate", **_some(one.encoding, _LONG)} for one in (reader, vectors))
    if ours != theirs or any((one.passages is not None) != vectors.has_passages for one in reader.segments):
        raise InputError(
            f"{reader.folder} and {vectors.folder} treat long documents otherwise ({differences(ours, theirs)}); "
            "encode as the index was encoded"
        )
    if (vectors.encoding.get("ids") == WHOLE) != reader.whole_ids:
        kinds = ("texts", "whole numbers")
        mine, yours = kinds[reader.whole_ids], kinds[not reader.whole_ids]
        raise InputError(f"the ids of {reader.folder} are {mine}, those of {vectors.folder} {yours}: use one kind")
    if entries != (reader.lexical is not None):
        has, pass_ = ("has BM25 and texts", "pass entries") if reader.lexical else ("has no BM25", "pass no entries")
        raise InputError(f"{reader.folder} {has}: {pass_} with the vectors")


def _some(record: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: record[name] for name in names if record.get(name) is not None}
