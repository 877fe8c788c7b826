"""Exact search over a vectors folder, block by block in bounded memory; a killed one goes on where it was."""

import hashlib
import json
import math
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.run_table import RunTable
from evaluation.runs import read_table, replaced, write_run
from indexes.checksums import fingerprint
from indexes.device import DeviceSearch, checked_device
from indexes.errors import InputError
from indexes.exact import nothing, search_exact
from indexes.hits import Hits, merge
from indexes.manifest import read_json, sole_writer, write_json
from indexes.targets import Targets
from indexes.vectors import VectorStore

MEMORY_GB = 2.0
"""What a search may take by default, in 10^9 bytes."""

OnProgress = Callable[[int, int | None], None]

_KIND = "exact search"
_PLAN, _QUERIES = "plan.json", "queries.npy"
_GROUP, _DEVICE_GROUP = 512, 2048
_CHUNK_ROWS = 4096
_READ_ROWS = 8192
_LEAST_ROWS = 1024
_SECONDS_BETWEEN_SAVES = 10.0


class Pieces(NamedTuple):
    """How a search is cut up: so many queries, and so many vectors, at a time."""

    queries: int
    rows: int


class Block(NamedTuple):
    """A stretch of a vectors folder that is searched at once."""

    first: int
    """Its first row."""
    last: int
    """The row after its last."""
    document: int
    """The number of its first document."""
    starts: NDArray[np.int64] | None
    """(m + 1,) where each document's rows begin, counted from `first`; None: each row is a document."""


def fixed_bytes(queries: int, dim: int, k: int, *, device: bool = False) -> int:
    """About what `search_exact` or `DeviceSearch` takes for some queries at once: products, candidates, merging."""
    group = min(queries, _DEVICE_GROUP if device else _GROUP)
    products = (12 * group + 12 * dim) * _CHUNK_ROWS
    return products + group * (2 * k + 64 if device else 6 * k) * 64 + 4 * dim * _READ_ROWS


def cut(queries: int, rows: int, dim: int, k: int, memory: float, *, device: bool = False) -> Pieces:
    """Cut a search so that it takes at most so much memory, the fewer passes over the vectors the better.

    A query keeps its vector and its k best so far; a block of vectors is float32, however they are stored.

    Args:
        queries: q.
        rows: n vectors.
        dim: d.
        k: Hits for each query.
        memory: Bytes, of this process; a device's own are looked after by `DeviceSearch`.
        device: Whether a device searches.

    Raises:
        InputError: It is too little for one query and a thousand vectors; the message says how much is enough.
    """
    of_query, of_row = 12 * k + 8 * dim, 4 * dim
    least_rows = min(rows, _LEAST_ROWS)

    def needed(queries: int) -> int:
        return fixed_bytes(queries, dim, k, device=device) + queries * of_query + least_rows * of_row

    if memory < needed(1):
        raise InputError(
            f"memory is {memory / 1e9:g} GB; search for {k:,} hits among vectors of {dim} numbers takes at least "
            f"{math.ceil(needed(1) / 1e6) / 1e3:g}: allow more (--memory-gb) or look for fewer hits"
        )
    at_once = next(size for size in _sizes(queries) if needed(size) <= memory)
    left = memory - fixed_bytes(at_once, dim, k, device=device) - at_once * of_query
    return Pieces(at_once, max(1, min(rows, int(left // of_row))))


def _sizes(queries: int) -> Iterator[int]:
    """All queries, half of them, a quarter …, down to one."""
    size = max(queries, 1)
    while size > 1:
        yield size
        size = -(-size // 2)
    yield 1


def search_vectors(
    store: VectorStore,
    queries: Mapping[str, str],
    encode: Callable[[list[str]], NDArray[np.float32]],
    k: int,
    folder: Path,
    *,
    memory_gb: float = MEMORY_GB,
    device: str | None = None,
    on_progress: OnProgress | None = None,
) -> RunTable:
    """Find the k best documents of a vectors folder for each query, exactly, however large the folder is.

    Vectors are read from their memory-mapped shards block by block; the best so far are kept on disk, in a sibling of
    the result that ends in `.partial`, so that a killed search goes on after its last finished block, with the same
    hits. Result and sibling are named by a fingerprint of vectors, encoder, queries and k, and of nothing else: what
    was searched once is taken from the result.

    Args:
        store: The vectors; of a document in passages, the best passage's score counts.
        queries: Query id to text.
        encode: Makes vectors (q, d) of the texts: the encoder that made the store's. A search that goes on keeps those
            it began with.
        k: Hits for each query.
        folder: Where the result is kept: `exact-<fingerprint>.npz`.
        memory_gb: What the search may take, in 10^9 bytes. The run that comes out, 8 bytes a hit and its documents'
            ids, comes on top.
        device: A torch device that searches, such as `cuda`; None: the processor.
        on_progress: Called with the vectors gone through so far and their total, those of all passes.

    Raises:
        InputError: k or the memory is too small, there is no such device, a query's vector is not finite, another
            process makes the same search, or what an earlier one left is damaged.
    """
    if k < 1 or not 0 < memory_gb < math.inf:
        raise InputError(f"k is {k} and memory_gb {memory_gb}; expected at least 1 hit, and more than 0 GB")
    k = min(k, store.documents)
    key = _key(store, queries, k)
    result = folder / f"exact-{key[:32]}.npz"
    unfinished = result.with_name(f"{result.name}.partial")
    place = None if device is None else checked_device(device)
    if not result.is_file():
        unfinished.mkdir(parents=True, exist_ok=True)
        with sole_writer(unfinished):
            if not result.is_file():  # still, now that nobody else is at it
                plan = {"kind": _KIND, "search": key}
                work = _Work(unfinished, store, k, memory_gb * 1e9, place, on_progress)
                write_run(_named(store, list(queries), work.run(plan, queries, encode)), result)
            shutil.rmtree(unfinished)
    elif unfinished.is_dir():  # killed between the two
        shutil.rmtree(unfinished, ignore_errors=True)
    return read_table(result)


def _key(store: VectorStore, queries: Mapping[str, str], k: int) -> str:
    """What decides the hits: the bytes of the vectors and their ids, their encoder, the queries, k."""
    files = {name: entry["sha256"] for name, entry in store.manifest["files"].items()}
    asked = hashlib.sha256(json.dumps(list(queries.items())).encode("ascii")).hexdigest()
    made = {"encoder": store.made_by["fingerprint"], "storage": store.encoding["storage"], "files": files}
    return fingerprint({**made, "calibration": store.manifest["calibration"], "queries": asked, "k": k})


class _Work:
    """One search in its partial folder: the plan, the queries' vectors, and for each part of them the best so far.

    Args:
        folder: Held against other processes.
        store: What is searched.
        k: Hits for each query.
        memory: Bytes.
        device: A torch device, or None.
        on_progress: See `search_vectors`.
    """

    def __init__(
        self,
        folder: Path,
        store: VectorStore,
        k: int,
        memory: float,
        device: Any,
        on_progress: OnProgress | None,
    ) -> None:
        self.folder, self.store, self.k, self.memory, self.device = folder, store, k, memory, device
        self._on_progress = on_progress or (lambda done, total: None)

    def run(
        self, plan: Mapping[str, Any], queries: Mapping[str, str], encode: Callable[[list[str]], NDArray[np.float32]]
    ) -> Hits:
        """Search all queries, part by part."""
        pieces = self._pieces(plan, len(queries))
        vectors = self._vectors(queries, encode)
        starts = range(0, len(vectors), pieces.queries)
        rows = len(self.store)
        found = []
        for number, first in enumerate(starts):
            part = self.folder / f"part-{number:05d}.npz"
            self._on_progress(number * rows, len(starts) * rows)
            asked = vectors[first : first + pieces.queries]
            found.append(self._part(part, asked, pieces.rows, number * rows, len(starts) * rows))
        return Hits(np.concatenate([one.rows for one in found]), np.concatenate([one.scores for one in found]))

    def _pieces(self, plan: Mapping[str, Any], queries: int) -> Pieces:
        """How the search is cut up: as it was begun, if it was and memory allows it."""
        path = self.folder / _PLAN
        on_device = self.device is not None
        size = (self.store.dim, self.k)
        if not path.is_file():
            pieces = cut(queries, len(self.store), *size, self.memory, device=on_device)
            write_json(path, {**plan, "queries": pieces.queries})
            return pieces
        begun = read_json(path)
        size_begun = begun.get("queries") if isinstance(begun, dict) else None
        if not isinstance(size_begun, int) or begun != {**plan, "queries": size_begun} or size_begun < 1:
            raise InputError(f"{path} is not of this search; delete {self.folder} to begin it anew")
        try:
            pieces = cut(size_begun, len(self.store), *size, self.memory, device=on_device)
        except InputError:
            pieces = Pieces(0, 0)
        if pieces.queries < size_begun:
            raise InputError(
                f"{self.folder} was begun with {size_begun:,} queries at a time, which take more than "
                f"{self.memory / 1e9:g} GB; allow as much as before (--memory-gb), or delete it to begin anew"
            )
        return pieces

    def _vectors(
        self, queries: Mapping[str, str], encode: Callable[[list[str]], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """The queries' vectors (q, d): those that the search began with, if it did."""
        path = self.folder / _QUERIES
        shape = (len(queries), self.store.dim)
        if path.is_file():
            vectors = _read(path, self.folder)
        else:
            vectors = np.ascontiguousarray(encode(list(queries.values())), dtype=np.float32)
            finite = np.isfinite(vectors).all(axis=1)
            if not finite.all():
                name = list(queries)[int(finite.argmin())]
                raise InputError(f"query {name!r} gave a vector with NaN or infinity; mend the encoder or leave it out")
            with replaced(path) as file:
                np.save(file, vectors, allow_pickle=False)
        if vectors.shape != shape:
            raise InputError(f"queries gave vectors {vectors.shape}; {self.store.folder} expects {shape}")
        return vectors

    def _part(self, path: Path, queries: NDArray[np.float32], most: int, before: int, total: int) -> Hits:
        """Search some queries (p, d) in all blocks, or in those that are left."""
        done, best = self._saved(path, len(queries))
        saved = time.monotonic()
        buffer: NDArray[np.float32] = np.empty((0, self.store.dim), np.float32)
        for block in blocks(self.store, most, done):
            if len(buffer) < block.last - block.first:
                buffer = np.empty((block.last - block.first, self.store.dim), np.float32)
            targets = Targets(read_rows(self.store, block, buffer), block.starts)
            self._search(queries, targets, block.document, best)
            done = block.last
            now = time.monotonic()
            if done == len(self.store) or now - saved >= _SECONDS_BETWEEN_SAVES:
                saved = now
                with replaced(path) as file:
                    np.savez(file, done=np.int64(done), rows=best.rows, scores=best.scores)
            self._on_progress(before + done, total)
        return best

    def _search(self, queries: NDArray[np.float32], targets: Targets, document: int, best: Hits) -> None:
        """Search a block, and keep the k best of it and of what was found before."""
        on_device = None if self.device is None else DeviceSearch(targets, self.device)
        group = _GROUP if on_device is None else _DEVICE_GROUP
        for first in range(0, len(queries), group):
            some = slice(first, first + group)
            asked, k = queries[some], min(self.k, len(targets))
            rows, scores = on_device.search(asked, k) if on_device else search_exact(asked, targets, k)
            here = Hits(np.where(rows < 0, -1, rows + document), scores)
            best.rows[some], best.scores[some] = merge([Hits(best.rows[some], best.scores[some]), here], self.k)

    def _saved(self, path: Path, queries: int) -> tuple[int, Hits]:
        """How many rows some queries have been held against, and the best of them."""
        if not path.is_file():
            return 0, nothing(queries, self.k)
        done, rows, scores = _read(path, self.folder, "done", "rows", "scores")
        shape = (queries, self.k)
        if rows.shape != shape or scores.shape != shape or not 0 < int(done) <= len(self.store):
            raise InputError(f"{path} is not of this search; delete {self.folder} to begin it anew")
        return int(done), Hits(rows, scores)


def blocks(store: VectorStore, most: int, begin: int = 0) -> Iterator[Block]:
    """Part a vectors folder into blocks of at most so many rows, from a row on at which a block begins.

    Raises:
        InputError: Documents have several rows, so that a block is of whole shards, and a shard has more rows.
    """
    if not store.has_passages:
        for first in range(begin, len(store), most):
            yield Block(first, min(first + most, len(store)), first, None)
        return
    held: list[NDArray[np.int64]] = []
    first = last = 0
    for shard, part in zip(store.manifest["shards"], store.shard_passages(), strict=True):
        rows = shard["rows"]
        if rows > most:
            raise InputError(
                f"{store.folder}: {shard['name']} holds {rows:,} passages of whole documents, of which memory allows "
                f"{most:,} at a time; allow more (--memory-gb)"
            )
        if held and last - first + rows > most:
            yield _block_of_passages(store, first, held)
            held = []
        first = first if held else last
        last += rows
        if last > begin and part is not None and rows:
            held.append(part[:, 0])
    if held:
        yield _block_of_passages(store, first, held)


def _block_of_passages(store: VectorStore, first: int, parts: list[NDArray[np.int64]]) -> Block:
    documents = np.concatenate(parts)  # (r,) the document of each row
    starts = np.flatnonzero(np.diff(documents, prepend=-1, append=-1))
    if (np.diff(documents[starts[:-1]]) != 1).any():
        raise InputError(f"{store.folder}: passages are not in the order of their documents; make the vectors again")
    return Block(first, first + len(documents), int(documents[0]), starts)


def read_rows(store: VectorStore, block: Block, buffer: NDArray[np.float32]) -> NDArray[np.float32]:
    """Read a block's rows, as float32, into the beginning of a buffer (≥ r, d), a stretch of a shard at a time."""
    ends = np.cumsum([shard["rows"] for shard in store.manifest["shards"]])
    row = block.first
    while row < block.last:
        end = min(block.last, int(ends[np.searchsorted(ends, row, side="right")]), row + _READ_ROWS)
        buffer[row - block.first : end - block.first] = store[row:end]
        row = end
    return buffer[: block.last - block.first]


def _named(store: VectorStore, queries: list[str], hits: Hits) -> RunTable:
    """Hits by document as a run: only the ids of documents that occur are held, and a shard's while it is read."""
    used, numbers = np.unique(hits.rows, return_inverse=True)
    rows = numbers.reshape(hits.rows.shape)
    ids: list[str] = [] if not len(used) or used[0] >= 0 else [""]  # what pads the lines is no document
    first = 0
    for names in store.shard_ids():
        low, high = np.searchsorted(used, (first, first + len(names)))
        ids += [names[place] for place in (used[low:high] - first).tolist()]
        first += len(names)
    return RunTable.of_hits(queries, Hits(np.where(hits.rows < 0, -1, rows), hits.scores), ids, place=_KIND)


def _read(path: Path, folder: Path, *names: str) -> Any:
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            return [found[name] for name in names] if names else found
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path} is damaged ({' '.join(str(error).split())}); delete {folder} to begin the search anew"
        ) from None
