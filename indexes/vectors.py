"""Vectors folders: memory-mapped shards of rows with their ids, written one atomic shard at a time."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InputError
from indexes.manifest import (
    LOCK,
    differences,
    file_digest,
    fingerprint,
    open_manifest,
    publish,
    read_json,
    refuse_existing,
    seal,
    sole_writer,
    verify,
    write_json,
)

KIND = "vectors"
UNIT_TOLERANCE = 0.02
"""How far the length of a normalised vector may be from 1: bfloat16 rounds by up to 0.4% a number."""
_PLAN = "plan.json"


class VectorStore:
    """A finished vectors folder: n rows of d float32 numbers and their ids, read through memory maps.

    Open one with `VectorStore.open(folder)`; it is made by `Encoder.encode_corpus` or a `VectorWriter`.

    Attributes:
        folder: Where it is.
        made_by: What made the vectors: a flat record of the encoder, with its `fingerprint`.
        corpus: The corpus they were made of: `source` (where it was read) and `fingerprint`; None where not known.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        self.made_by: dict[str, Any] = manifest["made_by"]
        self.corpus: dict[str, Any] = manifest["corpus"]
        self.dim: int = manifest["dim"]
        self._manifest = manifest
        self._shards = [_map_shard(folder / name, self.dim) for name in manifest["shards"]]
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])

    @classmethod
    def open(cls, folder: str | Path) -> "VectorStore":
        """Open a finished vectors folder.

        Raises:
            InputError: There is none, it is unfinished, or a shard is missing, truncated or of another shape.
        """
        folder = Path(folder)
        unfinished = partial_folder(folder)
        if not folder.exists() and unfinished.is_dir():
            raise InputError(f"{folder} is unfinished ({unfinished} holds its shards); run the same encode again")
        store = cls(folder, open_manifest(folder, KIND))
        if len(store) != store._manifest["rows"]:
            raise InputError(f"{folder} holds {len(store)} rows; its manifest says {store._manifest['rows']}")
        return store

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def ids(self) -> list[str]:
        """The ids of all rows, in order."""
        return [name for shard in self._manifest["shards"] for name in read_json(_ids_path(self.folder / shard))]

    def blocks(self, rows: int = 65_536) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield (first row, (≤ rows, d) memory-mapped block) over the whole folder."""
        for start, shard in zip(self._starts, self._shards, strict=False):
            for offset in range(0, len(shard), rows):
                yield int(start) + offset, shard[offset : offset + rows]

    def __getitem__(self, rows: slice | Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Copy rows, by slice or by row numbers, to a float32 array (rows, d)."""
        wanted = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)
        if wanted.size and not (0 <= wanted.min() and wanted.max() < len(self)):
            raise InputError(f"{self.folder}: row {int(wanted.max())} asked for; there are {len(self)} rows")
        out = np.empty((wanted.size, self.dim), dtype=np.float32)
        for start, shard in zip(self._starts, self._shards, strict=False):
            here = (wanted >= start) & (wanted < start + len(shard))
            out[here] = shard[wanted[here] - start]
        return out

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            InputError: A file is damaged; the message names it.
        """
        verify(self.folder, self._manifest)


class VectorWriter:
    """Writes a vectors folder, shard by shard, so that a killed process loses one shard at most.

    Until `finish`, everything lives in the sibling `<folder>.partial`. A shard counts once its record is there, and
    the record is written last. Writing the same plan again goes on with the shards that are missing.

    Args:
        folder: The folder to make.
        made_by: Flat record of what makes the vectors; another record over the same partial folder is refused.
        dim: Numbers in a row.
        shard_rows: Rows in each shard but the last.
        overwrite: Discard shards that were begun with another plan, and replace `folder` when finished, instead of
            refusing.

    Raises:
        InputError: `folder` exists, its partial folder was begun with another plan (both sides are named) or holds
            something else, or another process is writing there.
    """

    def __init__(
        self, folder: Path, *, made_by: Mapping[str, Any], dim: int, shard_rows: int, overwrite: bool = False
    ) -> None:
        refuse_existing(folder, overwrite=overwrite)
        self.folder = folder
        self.partial = partial_folder(folder)
        self.made_by = {**made_by, "dim": dim}
        self._overwrite = overwrite
        self.partial.mkdir(parents=True, exist_ok=True)
        self._held = contextlib.ExitStack()
        self._held.enter_context(sole_writer(self.partial))
        try:
            self._open_plan({"made_by": self.made_by, "shard_rows": shard_rows})
        except InputError:
            self.close()
            raise

    def _open_plan(self, plan: dict[str, Any]) -> None:
        """Begin the partial folder, or check that it was begun with this plan."""
        path = self.partial / _PLAN
        foreign = [file.name for file in self.partial.iterdir() if file.name != LOCK]
        if not path.is_file() and foreign:
            raise InputError(f"{self.partial} holds {foreign[0]} and was not made by encode; choose another --output")
        if path.is_file():
            begun = read_json(path)
            same = begun["shard_rows"] == plan["shard_rows"]
            if same and begun["made_by"]["fingerprint"] == plan["made_by"]["fingerprint"]:
                return
            if not self._overwrite:
                sides = [{**side["made_by"], "shard_rows": side["shard_rows"]} for side in (begun, plan)]
                raise InputError(
                    f"{self.partial} was begun differently ({differences(*sides)}); "
                    "encode as before, choose another --output or pass --overwrite"
                )
            for file in self.partial.iterdir():
                if file.name != LOCK:
                    file.unlink()
        write_json(path, plan)

    def close(self) -> None:
        """Let other processes write here; finished shards stay, for the next run to go on with."""
        if self.partial.is_dir() and {path.name for path in self.partial.iterdir()} <= {_PLAN, LOCK}:
            shutil.rmtree(self.partial)  # nothing to go on with
        self._held.close()

    def source(self, shard: int) -> str | None:
        """The digest of the documents of a finished shard; None if the shard has still to be made.

        A shard whose file is missing, cut short or damaged counts as unmade.
        """
        record = self._record(shard)
        path = self.partial / shard_name(shard)
        if record is None or not path.is_file() or file_digest(path) != record["sha256"]:
            return None
        ids = _ids_path(path)
        return record["source"] if ids.is_file() and file_digest(ids) == record["ids_sha256"] else None

    def write(self, shard: int, vectors: NDArray[np.float32], ids: Sequence[str], source: str) -> None:
        """Write one shard: vectors (rows, d), their ids, and the digest of the documents they were made of.

        Raises:
            InputError: A vector holds NaN or infinity, or is not of unit length though `made_by` says so; the message
                names its id.
        """
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise InputError(f"document {ids[int(finite.argmin())]!r} gave a vector with NaN or infinity; not written")
        lengths = np.linalg.norm(vectors, axis=1)
        far = int(np.abs(lengths - 1).argmax())
        if self.made_by.get("normalize") and abs(lengths[far] - 1) > UNIT_TOLERANCE:
            raise InputError(f"document {ids[far]!r} gave a vector of length {lengths[far]:.3f}; expected unit length")
        path = self.partial / shard_name(shard)
        temporary = path.with_name(f".{path.name}")
        with temporary.open("wb") as file:
            np.save(file, np.ascontiguousarray(vectors), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        write_json(_ids_path(path), list(ids))
        digests = {"sha256": file_digest(path), "ids_sha256": file_digest(_ids_path(path))}
        write_json(self._record_path(shard), {"rows": len(ids), "source": source, **digests})

    def finish(self, shards: int, corpus: Mapping[str, Any]) -> VectorStore:
        """Seal the folder, put it in its place and open it.

        Args:
            shards: How many shards make the corpus; further ones, left by an earlier and longer corpus, are removed.
            corpus: `source` and `fingerprint` of the corpus.
        """
        names = [shard_name(number) for number in range(shards)]
        keep = {*names, *(_ids_path(Path(name)).name for name in names)}
        rows = 0
        for number in range(shards):
            record = self._record(number)
            if record is None:
                raise RuntimeError(f"shard {number} was never written")
            rows += record["rows"]
        for path in self.partial.iterdir():
            if path.name not in (*keep, LOCK):
                path.unlink()
        content = {"corpus": dict(corpus), "rows": rows, "dim": self.made_by["dim"], "shards": names}
        seal(self.partial, KIND, {"made_by": self.made_by, **content})
        (self.partial / LOCK).unlink(missing_ok=True)
        publish(self.partial, self.folder, overwrite=self._overwrite)
        self.close()
        return VectorStore.open(self.folder)

    def _record(self, shard: int) -> dict[str, Any] | None:
        path = self._record_path(shard)
        return read_json(path) if path.is_file() else None

    def _record_path(self, shard: int) -> Path:
        return self.partial / f"shard-{shard:05d}.done.json"


def partial_folder(folder: Path) -> Path:
    """Where an unfinished vectors folder keeps its shards."""
    return folder.with_name(f"{folder.name}.partial")


def shard_name(shard: int) -> str:
    """The file of a shard."""
    return f"shard-{shard:05d}.npy"


def save_vectors(
    folder: str | Path,
    vectors: NDArray[np.float32],
    ids: Sequence[str],
    *,
    made_by: Mapping[str, Any],
    overwrite: bool = False,
) -> VectorStore:
    """Write vectors (n, d) that are already in memory, made elsewhere, to a vectors folder of one shard.

    Args:
        folder: The folder to make.
        vectors: (n, d) float32.
        ids: One for each row.
        made_by: What made them; `normalize` (true: unit length, compared by cosine) decides the metric of an index.
        overwrite: Replace an existing folder.

    Raises:
        InputError: The ids are not one a row or not distinct, or the folder exists.
    """
    if vectors.ndim != 2 or len(ids) != len(vectors) or len(set(ids)) != len(ids):
        raise InputError(
            f"{len(ids)} ids ({len(set(ids))} distinct) for vectors of shape {vectors.shape}; one id a row"
        )
    digest = hashlib.sha256(np.ascontiguousarray(vectors, dtype=np.float32).tobytes())
    digest.update(json.dumps(list(ids)).encode())
    record = {**made_by, "fingerprint": made_by.get("fingerprint") or fingerprint(dict(made_by))}
    writer = VectorWriter(
        Path(folder), made_by=record, dim=vectors.shape[1], shard_rows=max(len(ids), 1), overwrite=overwrite
    )
    writer.write(0, vectors.astype(np.float32, copy=False), ids, digest.hexdigest())
    return writer.finish(1, {"source": None, "fingerprint": None})


def _ids_path(shard: Path) -> Path:
    return shard.with_suffix(".ids.json")


def _map_shard(path: Path, dim: int) -> NDArray[np.float32]:
    try:
        shard = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not readable as an array ({error}); make the vectors again") from None
    if shard.ndim != 2 or shard.shape[1] != dim:
        raise InputError(f"{path} has shape {shard.shape}; the manifest says {dim} columns: make the vectors again")
    return shard
