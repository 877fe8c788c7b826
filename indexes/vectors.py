"""Vectors folders: memory-mapped shards of rows with their ids, opened for reading."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from indexes.arrays import map_array, read_array
from indexes.checksums import fingerprint, verify
from indexes.errors import InputError
from indexes.manifest import open_manifest, read_json
from indexes.storage import Storage

KIND = "vectors"
UNIT_TOLERANCE = 0.02
"""How far the length of a normalised vector may be from 1: bfloat16 rounds by up to 0.4% a number."""


class Rows(Protocol):
    """n rows of d numbers, wherever they are."""

    dim: int

    def __len__(self) -> int:
        """N."""
        ...

    def blocks(self, rows: int = 65_536) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield (first row, (≤ rows, d) float32) over all."""
        ...

    def __getitem__(self, rows: slice | Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows by slice or by row numbers, as float32 (rows, d)."""
        ...


class VectorStore:
    """A finished vectors folder: n rows of d numbers and their documents' ids, read through memory maps.

    Open one with `VectorStore.open(folder)`; it is made by `Encoder.encode_corpus` or `save_vectors`. A row is a
    document, unless long documents were encoded in passages: then a document has one row or more, and `passages`
    says which.

    Attributes:
        folder: Where it is.
        made_by: What made the vectors: a flat record of the encoder, with its `fingerprint`.
        encoding: What else decides what is in the folder: `storage`, `shard_rows`, `long_documents`, `backend` …
        corpus: The corpus they were made of: `source` (where it was read) and `fingerprint`; None where not known.
        storage: The form in which the numbers are kept.
        dim: d.
        documents: How many documents there are.
        truncated: How many documents were longer than the encoder reads, so that their ends are in no vector.
        manifest: The whole manifest.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.made_by: dict[str, Any] = manifest["made_by"]
        self.encoding: dict[str, Any] = manifest["encoding"]
        self.corpus: dict[str, Any] = manifest["corpus"]
        self.dim: int = self.made_by["dim"]
        self.documents: int = manifest["documents"]
        self.truncated: int = manifest["truncated"]
        self.storage = Storage.of(self.encoding["storage"], self.dim, manifest["calibration"])
        self._shards = [
            _map_shard(folder / f"{shard['name']}.npy", (shard["rows"], self.storage.width), self.storage.dtype)
            for shard in manifest["shards"]
        ]
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])

    @classmethod
    def open(cls, folder: str | Path) -> "VectorStore":
        """Open a finished vectors folder.

        Raises:
            InputError: There is none, it is unfinished, or a shard is missing, truncated or of another shape.
        """
        folder = Path(folder)
        if not folder.exists() and partial_folder(folder).is_dir():
            raise InputError(
                f"{folder} is unfinished ({partial_folder(folder)} holds its shards); run the same encode again"
            )
        return cls(folder, open_manifest(folder, KIND))

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def ids(self) -> list[str]:
        """The ids of all documents, in order."""
        return [name for ids in self.shard_ids() for name in ids]

    @property
    def passages(self) -> NDArray[np.int64] | None:
        """For each row (n, 3) its document, a position in `ids`, and where in its content it begins and ends.

        Begin and end count characters. None where every row is a whole document.
        """
        if not self.has_passages:
            return None
        return np.concatenate([part for part in self.shard_passages() if part is not None])

    @property
    def has_passages(self) -> bool:
        """Whether rows are passages of documents, so that there is `passages`."""
        return any(name.endswith(".passages.npy") for name in self.manifest["files"])

    def shard_ids(self) -> Iterator[list[str]]:
        """Yield the ids of the documents, shard by shard."""
        for shard in self.manifest["shards"]:
            yield read_json(self.folder / f"{shard['name']}.ids.json")

    def shard_passages(self) -> Iterator[NDArray[np.int64] | None]:
        """Yield `passages`, shard by shard."""
        first = 0
        for shard in self.manifest["shards"]:
            path = self.folder / f"{shard['name']}.passages.npy"
            part = read_array(path) if path.is_file() else None
            if part is not None:
                part[:, 0] += first
            yield part
            first += shard["documents"]

    def blocks(self, rows: int = 65_536) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield (first row, (≤ rows, d) float32) over the whole folder: memory-mapped, or read back block by block."""
        for first, stored in self.stored_blocks(rows):
            yield first, self.storage.decode(stored)

    def stored_blocks(self, rows: int = 65_536) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (first row, (≤ rows, width) memory-mapped block) in the stored form."""
        for start, shard in zip(self._starts, self._shards, strict=False):
            for offset in range(0, len(shard), rows):
                yield int(start) + offset, shard[offset : offset + rows]

    def __getitem__(self, rows: slice | Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows by slice or by row numbers, as float32 (rows, d).

        A slice inside one shard of float32 is a view of the memory-mapped file; everything else is a copy.
        """
        return self.storage.decode(self.stored(rows))

    def stored(self, rows: slice | Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
        """Rows as they are stored (rows, width): float32, float16, int8, or bits packed in uint8.

        Raises:
            InputError: There is no such row.
        """
        if isinstance(rows, slice):
            first, last, step = rows.indices(len(self))
            number = int(np.searchsorted(self._starts, first, side="right")) - 1
            if step == 1 and first < last <= self._starts[number + 1]:
                return self._shards[number][first - self._starts[number] : last - self._starts[number]]
            rows = np.arange(first, last, step)
        wanted = np.asarray(rows)
        if wanted.size and wanted.dtype.kind not in "iu":
            raise InputError(f"{self.folder}: rows asked for by {wanted.dtype}; expected row numbers or a slice")
        wanted = wanted.astype(np.int64, copy=False)
        if wanted.size and not (0 <= wanted.min() and wanted.max() < len(self)):
            beyond = wanted.max() if wanted.max() >= len(self) else wanted.min()
            raise InputError(f"{self.folder}: row {int(beyond)} asked for; there are {len(self)} rows")
        out = np.empty((wanted.size, self.storage.width), dtype=self.storage.dtype)
        for start, shard in zip(self._starts, self._shards, strict=False):
            here = (wanted >= start) & (wanted < start + len(shard))
            out[here] = shard[wanted[here] - start]
        return out

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            InputError: Files are damaged; the message names them.
        """
        verify(self.folder, self.manifest)


def joined_corpus(corpora: Sequence[tuple[Mapping[str, Any], int]], *, known: bool = True) -> dict[str, Any]:
    """What something was made of that joins documents of several corpora; the parts of a part stand in its place.

    Args:
        corpora: `source` and `fingerprint` of each, and how many documents it has.
        known: False: documents are missing or changed, so that no fingerprint describes what is left.
    """
    if not known:
        return {"source": None, "fingerprint": None}
    parts: list[dict[str, Any]] = []
    for corpus, documents in corpora:
        whole = {**{name: corpus.get(name) for name in ("source", "fingerprint")}, "documents": documents}
        parts += corpus.get("parts") or [whole]
    fingerprints = [part["fingerprint"] for part in parts]
    return {"source": None, "fingerprint": fingerprint(fingerprints) if all(fingerprints) else None, "parts": parts}


def partial_folder(folder: Path) -> Path:
    """Where an unfinished vectors folder keeps its shards."""
    return folder.with_name(f"{folder.name}.partial")


def shard_name(shard: int) -> str:
    """What the files of a shard begin with."""
    return f"shard-{shard:05d}"


def shard_files(shard: int, *, passages: bool) -> dict[str, str]:
    """The files of a shard."""
    name = shard_name(shard)
    files = {"vectors": f"{name}.npy", "ids": f"{name}.ids.json"}
    return {**files, "passages": f"{name}.passages.npy"} if passages else files


def files_of(shard: Mapping[str, Any], files: Iterable[str]) -> list[str]:
    """Those of a folder's files that belong to a shard of its manifest."""
    return [name for name in files if name.startswith(f"{shard['name']}.")]


def _map_shard(path: Path, shape: tuple[int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    if not shape[0]:
        return np.empty(shape, dtype)
    shard = map_array(path)
    if shard.shape != shape or shard.dtype != dtype:
        raise InputError(
            f"{path} holds {shard.shape} {shard.dtype}; the manifest says {shape} {dtype}: make the vectors again"
        )
    return shard
