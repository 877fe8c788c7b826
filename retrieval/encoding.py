"""Encoding a corpus: documents stream in, deterministic shards are written, finished ones are never made again."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from indexes.errors import InputError
from indexes.vectors import VectorStore, VectorWriter
from retrieval.console import OnProgress
from retrieval.documents import Document, corpus_fingerprint, document_bytes, refuse_repeats
from retrieval.encoder import Encoder


def encode_corpus(
    encoder: Encoder,
    documents: Iterable[Document],
    folder: Path,
    *,
    source: str | None = None,
    shard_rows: int = 2048,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> VectorStore:
    """Stream documents to a vectors folder, going on where an earlier run was killed.

    At most one shard of documents is in memory. Shards are row ranges of the corpus, so that the same corpus, encoder
    and shard size make the same files. If the folder is already finished by this encoder from these documents, it is
    opened and nothing is encoded.

    Args:
        encoder: What turns them into vectors.
        documents: Read once, in order.
        folder: The vectors folder to make.
        source: What the user calls the corpus (a path or `python-docs`), kept so that an index can read it again.
        shard_rows: Documents in a shard: the most that a killed process can lose.
        overwrite: Replace a folder made by another encoder or from another corpus instead of refusing.
        on_progress: Called with the documents done and None (the total of a stream is not known).

    Raises:
        InputError: A bad corpus, another encoder or corpus than the folder was (begun to be) made with, or a vector
            that is not finite.
    """
    if shard_rows < 1:
        raise InputError(f"shard_rows is {shard_rows}; expected at least 1")
    documents = refuse_repeats(documents, source or "the corpus")
    if folder.exists() and not overwrite:
        return _finished(encoder, documents, folder)
    writer = VectorWriter(folder, made_by=encoder.made_by, dim=encoder.dim, shard_rows=shard_rows, overwrite=overwrite)
    try:
        return _write(encoder, documents, writer, shard_rows, source, overwrite=overwrite, on_progress=on_progress)
    finally:
        writer.close()


def _write(
    encoder: Encoder,
    documents: Iterable[Document],
    writer: VectorWriter,
    shard_rows: int,
    source: str | None,
    *,
    overwrite: bool,
    on_progress: OnProgress | None,
) -> VectorStore:
    whole = hashlib.sha256()
    shards = done = 0
    for shards, part in enumerate(_parts(documents, shard_rows), start=1):
        digest = hashlib.sha256()
        for document in part:
            whole.update(document_bytes(document))
            digest.update(document_bytes(document))
        finished = writer.source(shards - 1)
        if finished is None or (overwrite and finished != digest.hexdigest()):
            report = _shifted(on_progress, done)
            vectors = encoder.encode_documents([document.content for document in part], report)
            writer.write(shards - 1, vectors, [document.id for document in part], digest.hexdigest())
        elif finished != digest.hexdigest():
            raise InputError(
                f"{writer.partial}: shard {shards - 1} was made of other documents than rows {done}–{done + len(part)} "
                "of the corpus now; encode the corpus as it was, choose another --output or pass --overwrite"
            )
        done += len(part)
        if on_progress:
            on_progress(done, None)
    return writer.finish(shards, {"source": source, "fingerprint": whole.hexdigest()})


def _finished(encoder: Encoder, documents: Iterable[Document], folder: Path) -> VectorStore:
    store = VectorStore.open(folder)
    if store.made_by["fingerprint"] != encoder.fingerprint:
        from indexes.manifest import differences

        raise InputError(
            f"{folder} was made by another encoder ({differences(store.made_by, encoder.made_by)}); "
            "choose another --output or pass --overwrite"
        )
    found = corpus_fingerprint(documents)
    if store.corpus["fingerprint"] != found:
        raise InputError(
            f"{folder} was made from another corpus ({store.corpus['fingerprint'][:12]} ≠ {found[:12]}); "
            "choose another --output or pass --overwrite"
        )
    return store


def _parts(documents: Iterable[Document], rows: int) -> Iterator[list[Document]]:
    stream = iter(documents)
    while part := list(itertools.islice(stream, rows)):
        yield part


def _shifted(on_progress: OnProgress | None, done: int) -> OnProgress | None:
    return (lambda within, _: on_progress(done + within, None)) if on_progress else None
