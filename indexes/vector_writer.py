"""Writing a vectors folder: one atomic shard at a time, by any number of processes at once."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexes.checksums import damaged_files, describe
from indexes.errors import InputError
from indexes.manifest import LOCK, Busy, held, named, publish, read_json, refuse_existing, seal, write_json
from indexes.partial import (
    CONTENT,
    PLAN,
    discard,
    empty,
    has_shards,
    plan_differences,
    read_plan,
    refuse_foreign,
    same_plan,
    write_plan,
)
from indexes.storage import Storage
from indexes.vectors import KIND, UNIT_TOLERANCE, VectorStore, files_of, partial_folder, shard_files, shard_name

_CALIBRATION = "calibration.json"
_SEALING = ".sealing"


class VectorWriter:
    """Writes a vectors folder, shard by shard, so that a killed process loses the shards it was making and no more.

    Until `finish`, everything lives in the sibling `<folder>.partial`. A shard counts once its record is there, and
    the record is written last. Writing the same plan again goes on with the shards that are missing. Several
    processes, of one machine or of several that share the file system, may write the same plan at once: each takes
    a shard by `claim`, which the system takes back from a process that dies.

    Args:
        folder: The folder to make.
        made_by: Flat record of the encoder, with its `fingerprint` and `dim`.
        encoding: Flat record of everything else that decides what is in the folder: `shard_rows`, `storage` …
        overwrite: Discard shards that were begun with another plan, and replace `folder` when finished, instead of
            refusing.
        repair: Replace `folder` when finished, but discard nothing: what `adopt` is for.

    Raises:
        InputError: `folder` exists, its partial folder was begun with another plan (both sides are named) or holds
            something else, or it cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        *,
        made_by: Mapping[str, Any],
        encoding: Mapping[str, Any],
        overwrite: bool = False,
        repair: bool = False,
    ) -> None:
        self.folder = folder
        self.partial = partial_folder(named(folder))
        self.made_by = dict(made_by)
        self.encoding = dict(encoding)
        self.dim = int(made_by["dim"])
        self._overwrite = overwrite
        self._replace = overwrite or repair
        self._checked: dict[int, dict[str, Any]] = {}
        Storage.of(self.encoding["storage"], self.dim)
        self._content = self.partial / CONTENT
        self._held = contextlib.ExitStack()
        self._joined = False
        self._home = 0
        """The inode of the content: a folder exchanged for it is another."""
        try:
            while not self._joined:
                self._held.close()
                refuse_existing(folder, overwrite=self._replace)
                refuse_foreign(self.partial)
                self.partial.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):  # another process discarded the folder: once more
                    self._join()
            refuse_existing(folder, overwrite=self._replace)  # another process may have finished since we looked
        except InputError:
            self.close()
            raise
        except OSError as error:
            self._held.close()
            self._discard_empty()
            raise InputError(
                f"{self.partial} cannot be written ({error.strerror or error}); "
                "choose another --output or mend the place"
            ) from None

    @property
    def plan(self) -> dict[str, Any]:
        """What all processes that write this folder must agree on."""
        return {"made_by": self.made_by, "encoding": self.encoding}

    def _join(self) -> None:
        """Begin the partial folder, or check that it was begun with this plan; keep others from emptying it."""
        if self._to_begin():
            self._begin()
        self._held.enter_context(held(self.partial / LOCK, shared=True, wait=True))
        if not (self.partial / PLAN).is_file():
            return  # another process finished or gave up
        begun = read_plan(self.partial)
        if not same_plan(begun, self.plan):
            raise InputError(
                f"{self.partial} was begun differently ({plan_differences(begun, self.plan)}); "
                "encode as before, choose another --output or pass --overwrite"
            )
        self._home = self._content.stat().st_ino
        self._joined = True

    def _to_begin(self) -> bool:
        """Whether there is no plan, another one that may be discarded, or one whose folder is in its place already."""
        if not (self.partial / PLAN).is_file():
            return True
        same = same_plan(read_plan(self.partial), self.plan)
        return not self._content.is_dir() if same else self._overwrite

    def _begin(self) -> None:
        """Empty the partial folder and write the plan, unless another process is at it."""
        try:
            with held(self.partial / LOCK):
                if self._to_begin():  # still, now that nobody else is at it
                    empty(self.partial)
                    self._content.mkdir()
                    write_plan(self.partial, self.plan)
        except Busy:
            if (self.partial / PLAN).is_file() and self._to_begin():
                raise InputError(
                    f"another process is writing {self.partial}; wait for it or choose another --output"
                ) from None

    def close(self) -> None:
        """Let other processes write here; finished shards stay, for the next run to go on with."""
        self._held.close()
        if self._joined:
            self._discard_empty()

    def _discard_empty(self) -> None:
        if not has_shards(self.partial):
            discard(self.partial)

    @contextlib.contextmanager
    def claim(self, shard: int) -> Iterator[bool]:
        """Take a shard for the length of the block; false where a living process has it.

        The lock belongs to the process: if it dies, however it dies, the shard is free at once.
        """
        with contextlib.ExitStack() as stack:
            try:
                with self._on_disk(f"the claim of shard {shard}"):
                    stack.enter_context(held(self.partial / f"{shard_name(shard)}.claim"))
                mine = True
            except Busy:
                mine = False
            yield mine

    def calibration(self) -> dict[str, Any] | None:
        """The calibration of int8 storage, once it was made."""
        path = self.partial / _CALIBRATION
        return read_json(path) if path.is_file() else None

    def set_calibration(self, calibration: Mapping[str, Any]) -> None:
        """Keep the calibration; the same one from another process changes nothing."""
        with self._on_disk("the calibration"):
            write_json(self.partial / _CALIBRATION, dict(calibration))

    def source(self, shard: int) -> str | None:
        """The digest of the documents of a finished shard; None if the shard has still to be made.

        A shard of which a file is missing, cut short or damaged counts as unmade.
        """
        if shard not in self._checked:
            path = self._record_path(shard)
            record = read_json(path) if path.is_file() else None
            if record is None or (damaged_files(self._content, record["files"]) and not self._published()):
                return None
            self._checked[shard] = record
        return self._checked[shard]["source"]

    def _published(self) -> bool:
        """Whether another process was quicker: the folder that we fill is in its place, or exchanged for an old one."""
        return not self._content.is_dir() or self._content.stat().st_ino != self._home

    def write(
        self,
        shard: int,
        vectors: NDArray[np.float32],
        ids: Sequence[str],
        source: str,
        *,
        passages: NDArray[np.int64] | None = None,
        truncated: int = 0,
    ) -> None:
        """Write one shard.

        Args:
            shard: Its number.
            vectors: (rows, d).
            ids: Of its documents: one a row, unless there are passages.
            source: The digest of the documents.
            passages: (rows, 3) for each row the number of its document in the shard, and where its passage begins and
                ends in the document's content, in characters.
            truncated: How many of the documents were cut.

        Raises:
            InputError: A vector holds NaN or infinity, or is not of unit length though `made_by` says so (the message
                names its document), or the disk is full.
        """
        self._check(vectors, ids, passages)
        stored = Storage.of(self.encoding["storage"], self.dim, self.calibration()).encode(vectors)
        names = shard_files(shard, passages=passages is not None)
        with self._on_disk(f"shard {shard}"):
            _save(self._content / names["vectors"], stored)
            write_json(self._content / names["ids"], list(ids))
            if passages is not None:
                _save(self._content / names["passages"], passages)
            files = {name: describe(self._content / name) for name in names.values()}
            counts = {"rows": len(vectors), "documents": len(ids), "truncated": truncated}
            record = {"name": shard_name(shard), **counts, "source": source, "files": files}
            write_json(self._record_path(shard), record)
        self._checked[shard] = record

    @contextlib.contextmanager
    def _on_disk(self, what: str) -> Iterator[None]:
        """Say in one line what could not be written, and that nothing is lost."""
        try:
            yield
        except OSError as error:
            if not self.partial.is_dir():
                raise InputError(f"{self.partial} was removed while it was written; run the same command") from None
            # numpy says how many bytes were written, and not that the rest found no room
            reason = error.strerror or f"the disk is full: {error}"
            raise InputError(
                f"{what} could not be written to {self.partial} ({reason}); "
                "finished shards are kept: mend the disk and run the same command again"
            ) from None

    def _check(self, vectors: NDArray[np.float32], ids: Sequence[str], passages: NDArray[np.int64] | None) -> None:
        def named(row: int) -> str:
            return repr(ids[row if passages is None else int(passages[row, 0])])

        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            row = int(finite.argmin())
            raise InputError(f"document {named(row)} gave a vector with NaN or infinity, not written; mend the encoder")
        lengths = np.linalg.norm(vectors, axis=1)
        far = int(np.abs(lengths - 1).argmax()) if len(lengths) else 0
        if len(lengths) and self.made_by.get("normalize") and abs(lengths[far] - 1) > UNIT_TOLERANCE:
            raise InputError(f"document {named(far)} gave a vector of length {lengths[far]:.3f}; expected unit length")

    def finish(self, shards: int, corpus: Mapping[str, Any]) -> VectorStore:
        """Seal the folder, put it in its place and open it.

        Args:
            shards: How many shards make the corpus; further ones, left by an earlier and longer corpus, are removed.
            corpus: `source` and `fingerprint` of the corpus.

        Raises:
            InputError: It cannot be written; the finished shards are kept.
        """
        if not self._published():
            with self._on_disk("the folder"), held(self.partial / _SEALING, wait=True):
                if not self._published():  # still, now that nobody else is at it
                    self._seal(shards, corpus)
        self.close()
        discard_partial(self.folder, self.plan)
        return VectorStore.open(self.folder)

    def _seal(self, shards: int, corpus: Mapping[str, Any]) -> None:
        missing = [number for number in range(shards) if self.source(number) is None]
        if missing:
            raise RuntimeError(f"shards {missing[:5]} were never written")
        records = [self._checked[number] for number in range(shards)]
        files = {name: entry for record in records for name, entry in record["files"].items()}
        for path in self._content.iterdir():
            if path.name not in files:
                path.unlink()
        content = {
            **self.plan,
            "calibration": self.calibration(),
            "corpus": dict(corpus),
            **{count: sum(record[count] for record in records) for count in ("rows", "documents", "truncated")},
            "shards": [{name: value for name, value in record.items() if name != "files"} for record in records],
        }
        seal(self._content, KIND, content, files)
        publish(self._content, self.folder, overwrite=self._replace)

    def adopt(self, finished: Path, manifest: Mapping[str, Any]) -> None:
        """Take the sound shards of a finished folder of the same plan over, so that only damaged ones are made again.

        The files are linked where the file system can, else copied; the finished folder itself is left as it is until
        `finish` replaces it.

        Raises:
            InputError: They cannot be written.
        """
        if manifest["calibration"]:
            self.set_calibration(manifest["calibration"])
        for number, shard in enumerate(manifest["shards"]):
            files = {name: manifest["files"][name] for name in files_of(shard, manifest["files"])}
            with self.claim(number) as mine, self._on_disk(f"shard {number}"):
                if mine and self.source(number) is None and not damaged_files(finished, files):
                    for name in files:
                        (self._content / name).unlink(missing_ok=True)
                        link_or_copy(finished / name, self._content / name)
                    self._checked[number] = {**shard, "files": files}
                    write_json(self._record_path(number), self._checked[number])

    def _record_path(self, shard: int) -> Path:
        return self.partial / f"{shard_name(shard)}.done.json"


def discard_partial(folder: Path, plan: Mapping[str, Any]) -> None:
    """Remove what a process left that was killed just after it had finished `folder`, which has this plan."""
    partial = partial_folder(folder)
    with contextlib.suppress(InputError):
        if not (partial / PLAN).is_file() or same_plan(read_plan(partial), plan):
            discard(partial)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _save(path: Path, array: NDArray[Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.save(file, np.ascontiguousarray(array), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
