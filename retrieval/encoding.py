"""Encoding a corpus: documents stream in, deterministic shards are written, finished ones are never made again."""

import contextlib
import hashlib
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from indexes.checksums import damaged_files
from indexes.errors import InputError
from indexes.manifest import read_manifest, refuse_existing
from indexes.partial import plan_differences, same_plan
from indexes.storage import calibrate
from indexes.vector_writer import VectorWriter, discard_partial
from indexes.vectors import KIND, VectorStore
from retrieval.console import OnProgress
from retrieval.corpora import Corpus
from retrieval.documents import Document, corpus_fingerprint, document_bytes, read_documents
from retrieval.encoder import Encoder
from retrieval.passages import LongDocuments
from retrieval.runners import Runner, ThisProcess, Work

SHARD_ROWS = 2048
_CALIBRATION_ROWS = 512
_SECONDS_BETWEEN_LOOKS = 0.5


def encode_corpus(
    encoder: Encoder,
    documents: Iterable[Any],
    folder: str | Path,
    *,
    source: str | None = None,
    shard_rows: int = SHARD_ROWS,
    storage: str = "float32",
    long_documents: LongDocuments | None = None,
    runner: Runner | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> VectorStore:
    """Stream documents to a vectors folder, going on where an earlier run was killed.

    A few shards of documents are in memory at a time. Shards are ranges of the corpus, so that the same corpus,
    encoder and plan make the same files, whatever runs them: a run may be begun by one runner, killed, and finished by
    another, and several processes may write the same folder at once. If the folder is finished already, it is opened;
    shards of it that are damaged are made again, and nothing else.

    Args:
        encoder: What turns them into vectors.
        documents: A corpus or any iterable of documents; read once, in order. What can be iterated over again is
            needed only where several processes share the work.
        folder: The vectors folder to make.
        source: What the user calls the corpus (a path or `python-docs`), kept so that an index can read it again.
        shard_rows: Documents in a shard: the most that a killed process can lose.
        storage: `float32`, `float16`, `int8` (calibrated on the first 512 documents) or `binary`; see `Storage`.
        long_documents: What happens to documents longer than the encoder reads; None: they are cut, and counted.
        runner: `ThisProcess`, `Processes` or `RayActors`; None: this process, and its share if `torchrun` or Slurm
            started it (`ThisProcess.from_environment`).
        overwrite: Replace a folder made by another encoder or from another corpus instead of refusing.
        on_progress: Called with the documents done and their total (estimated or None where it is not known).

    Raises:
        InputError: A bad corpus, another plan or corpus than the folder was (begun to be) made with, a vector that is
            not finite, a worker that died three times over the same shard, or a place that cannot be written.
    """
    if shard_rows < 1:
        raise InputError(f"shard_rows is {shard_rows}; expected at least 1")
    long, folder = long_documents or LongDocuments(), Path(folder)
    encoder.check_long_documents(long)
    corpus = read_documents(documents)
    encoding = {"backend": encoder.backend.name, "storage": storage, **long.fields, "shard_rows": shard_rows}
    plan = {"made_by": encoder.made_by, "encoding": encoding}
    damaged = None
    if folder.exists() and not overwrite:
        finished = _made_alike(folder, plan)
        if not damaged_files(folder, finished["files"]):
            return _finished(folder, corpus)
        damaged, encoding["shard_rows"] = finished, finished["encoding"]["shard_rows"]
    writer = VectorWriter(folder, **plan, overwrite=overwrite, repair=damaged is not None)
    try:
        if damaged is not None:
            writer.adopt(folder, damaged)
        run = _Run(encoder, corpus, writer, long, runner or ThisProcess.from_environment(), on_progress)
        run.redo = overwrite
        run.work()
        return writer.finish(len(run.digests), {"source": source, "fingerprint": run.fingerprint})
    finally:
        writer.close()


class _Run:
    """One process's part in filling a vectors folder: which shards are its own, taken, done, or left by others."""

    def __init__(
        self,
        encoder: Encoder,
        corpus: Corpus,
        writer: VectorWriter,
        long: LongDocuments,
        runner: Runner,
        on_progress: OnProgress | None,
    ) -> None:
        self.encoder = encoder
        self.corpus = corpus
        self.writer = writer
        self.long = long
        self.runner = runner
        self.on_progress = on_progress
        self.redo = False
        self.digests: list[str] = []
        self.fingerprint = ""
        self._claims: dict[int, contextlib.ExitStack] = {}
        self._read = self._done = 0
        if runner.world > 1 and not corpus.repeatable:
            raise InputError(f"{corpus.source} can be read once only; {runner.world} processes cannot share it")

    def work(self) -> None:
        """Make this process's shards, then those that nobody else makes, until all are there."""
        rows = self.writer.encoding["shard_rows"]
        self._encode(self._first_pass(rows))
        while missing := self._missing():
            free = {shard for shard in missing if self._claim(shard)}
            if free and not self.corpus.repeatable:
                raise InputError(
                    f"shard {min(free)} was left unmade by another process and {self.corpus.source} cannot be read "
                    "again; run the same command again"
                )
            if free:
                self._encode(self._second_pass(rows, free))
            else:
                time.sleep(_SECONDS_BETWEEN_LOOKS)  # for processes that live; the shards of one that dies are free

    def _first_pass(self, rows: int) -> Iterator[Work]:
        """Walk through the whole corpus: fingerprints for all shards, work for those that are ours and unmade."""
        whole = hashlib.sha256()
        for shard, part in enumerate(_parts(self.corpus, rows)):
            digest = hashlib.sha256()
            for document in part:
                line = document_bytes(document)
                whole.update(line)
                digest.update(line)
            self.digests.append(digest.hexdigest())
            self._read += len(part)
            if shard == 0:
                self._calibrate(part)
            if shard % self.runner.world != self.runner.rank:
                continue
            if self._is_done(shard):
                self._advance(len(part))
            elif self._claim(shard):
                yield Work(shard, part)
        self.fingerprint = whole.hexdigest()

    def _second_pass(self, rows: int, shards: set[int]) -> Iterator[Work]:
        """Read the corpus again for shards that other processes left unmade."""
        for shard, part in enumerate(_parts(self.corpus, rows)):
            if shard in shards:
                digest = hashlib.sha256(b"".join(map(document_bytes, part)))
                if digest.hexdigest() != self.digests[shard]:
                    raise InputError(f"{self.corpus.source} changed while it was encoded; encode it again")
                yield Work(shard, part)

    def _encode(self, works: Iterator[Work]) -> None:
        try:
            with contextlib.closing(self.runner.encode(self.encoder, works, self.long, self._within)) as encoded:
                for work, (vectors, passages, truncated) in encoded:
                    ids = [document.id for document in work.documents]
                    source = self.digests[work.shard]
                    self.writer.write(work.shard, vectors, ids, source, passages=passages, truncated=truncated)
                    self._claims.pop(work.shard).close()
                    self._advance(len(work.documents))
        finally:
            for claim in self._claims.values():
                claim.close()
            self._claims.clear()

    def _claim(self, shard: int) -> bool:
        """Take a shard, unless a living process has it or it was finished meanwhile."""
        claim = contextlib.ExitStack()
        if not claim.enter_context(self.writer.claim(shard)) or self._is_done(shard):
            claim.close()
            return False
        self._claims[shard] = claim
        return True

    def _is_done(self, shard: int) -> bool:
        """Whether a shard is there, and made of the documents that the corpus has now."""
        source = self.writer.source(shard)
        if source in (None, self.digests[shard]):
            return source is not None
        if self.redo:
            return False
        first = shard * self.writer.encoding["shard_rows"]
        raise InputError(
            f"{self.writer.partial}: shard {shard}, from document {first} on, was made of other documents than the "
            "corpus holds there now; encode the corpus as it was, choose another --output or pass --overwrite"
        )

    def _missing(self) -> list[int]:
        return [shard for shard in range(len(self.digests)) if not self._is_done(shard)]

    def _calibrate(self, part: list[Document]) -> None:
        """Make the calibration of int8 of the first documents: every process by itself, and all the same one."""
        if self.writer.encoding["storage"] == "int8" and self.writer.calibration() is None:
            sample = self.encoder.tokenize(part[:_CALIBRATION_ROWS], LongDocuments())
            self.writer.set_calibration(calibrate(self.encoder.run(sample).vectors))

    def _advance(self, documents: int) -> None:
        self._done += documents
        self._within(0)

    def _within(self, documents: int) -> None:
        """Report progress: so many documents of the shard in work are done."""
        if self.on_progress:
            self.on_progress(self._done + documents, self._total())

    def _total(self) -> int | None:
        """How many documents are this process's share: known, or estimated from how much of the file was read."""
        fraction = self.corpus.fraction
        total = self.corpus.total or (int(self._read / fraction) if fraction and self._read else None)
        return total and max(total // self.runner.world, self._done)


def _made_alike(folder: Path, plan: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a finished folder, whose shards may be of another size than this plan's.

    Raises:
        InputError: It was made by another plan.
    """
    refuse_existing(folder, overwrite=True)
    manifest = read_manifest(folder, KIND)
    alike = {**plan, "encoding": {**plan["encoding"], "shard_rows": manifest["encoding"]["shard_rows"]}}
    if not same_plan(manifest, alike):
        same_encoder = manifest["made_by"]["fingerprint"] == plan["made_by"]["fingerprint"]
        how = "otherwise" if same_encoder else "by another encoder"
        raise InputError(
            f"{folder} was made {how} ({plan_differences(manifest, alike)}); "
            "choose another --output or pass --overwrite"
        )
    return manifest


def _finished(folder: Path, corpus: Corpus) -> VectorStore:
    store = VectorStore.open(folder)
    found = corpus_fingerprint(corpus)
    if store.corpus["fingerprint"] != found:
        raise InputError(
            f"{folder} was made from another corpus ({str(store.corpus['fingerprint'])[:12]} ≠ {found[:12]}); "
            "choose another --output or pass --overwrite"
        )
    discard_partial(folder, store.manifest)
    return store


def _parts(documents: Iterable[Document], rows: int) -> Iterator[list[Document]]:
    stream = iter(documents)
    while part := list(itertools.islice(stream, rows)):
        yield part
