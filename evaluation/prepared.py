"""What systems make of a corpus, once: vectors, terms and indexes in a cache that goes by fingerprints."""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from evaluation.testsets import TestSet
from indexes.errors import InputError
from indexes.manifest import read_json
from retrieval.console import OnProgress, progress
from retrieval.documents import Document

if TYPE_CHECKING:
    from indexes.reader import Reader
    from retrieval.encoder import Encoder
    from retrieval.sparse import SparseEncoder


_DENSE = ("dense.faiss", "vectors.npy", "passages.npy", "moments")


class Corpus(Protocol):
    """What is encoded and indexed: a `TestSet` is one."""

    @property
    def corpus_fingerprint(self) -> str:
        """SHA-256 over the documents in their order."""

    def documents(self) -> Iterable[Document]:
        """Read them from their start."""


class Place(NamedTuple):
    """For what a system is opened, and where."""

    testset: TestSet
    cache: Path
    device: str | None


def cache_folder(cache: Path, corpus: Corpus, maker: str) -> Path:
    """A folder for one corpus and what is made of it, by their fingerprints, as names lie; all splits share it."""
    return cache / f"{corpus.corpus_fingerprint[:24]}-{maker[:24]}"


def exact_index(
    encoder: "Encoder", sparse: "SparseEncoder | None", corpus: Corpus, cache: Path
) -> tuple[Path, float | None, int]:
    """The exact index of the corpus in the cache, the seconds that encoding took, and of how many documents."""
    from indexes.terms import TermStore
    from indexes.vectors import VectorStore
    from retrieval.analyzer import usual_analyzer
    from retrieval.building import build_index

    folder = cache_folder(cache, corpus, encoder.document_fingerprint)
    name = f"index-{usual_analyzer().name if sparse is None else sparse.fingerprint[:24]}"

    def encode(on_progress: OnProgress) -> VectorStore:
        return encoder.encode_corpus(corpus.documents(), folder / "vectors", on_progress=on_progress)

    seconds, documents = _timed(folder / "vectors", encode, "encoding")
    terms = None
    if sparse is not None:
        weights = cache_folder(cache, corpus, sparse.fingerprint)
        more, others = encode_terms(sparse, weights, corpus)
        seconds, documents = _sum(seconds, more), documents + others
        terms = weights / "terms"
    if not (folder / name).is_dir():
        stored = None if terms is None else TermStore.open(terms)
        vectors = VectorStore.open(folder / "vectors")
        build_index(vectors, folder / name, documents=corpus.documents(), terms=stored)
    return folder / name, seconds, documents


def encode_terms(encoder: "SparseEncoder", folder: Path, corpus: Corpus) -> tuple[float | None, int]:
    """Make `terms` in a folder of the cache; the seconds that took (None: it was there), and of how many documents."""

    def encode(on_progress: OnProgress) -> Any:
        return encoder.encode_corpus(corpus.documents(), folder / "terms", on_progress=on_progress)

    return _timed(folder / "terms", encode, "encoding terms")


def refuse_other_corpus(folder: Path, corpus: Mapping[str, Any], testset: TestSet) -> None:
    """Refuse an index or vectors folder that was made of another corpus than the test collection's.

    Raises:
        InputError: The fingerprints differ; both are named.
    """
    from retrieval.building import same_corpus

    made_of = corpus["fingerprint"]
    if corpus.get("parts"):  # merged: only part by part is it known of what
        for _ in same_corpus(testset.documents(), corpus, folder):
            pass
    elif made_of not in (None, testset.corpus_fingerprint):
        raise InputError(
            f"{folder} holds another corpus than {testset.name} ({made_of[:12]} ≠ {testset.corpus_fingerprint[:12]}); "
            "encode and index the corpus of the test collection"
        )


def index_bytes(reader: "Reader", modes: tuple[str, ...]) -> int:
    """Bytes of the files of an index folder that some modes read; stored texts are not among them."""
    total = 0
    for name, record in reader.manifest["files"].items():
        *folders, last = name.split("/")
        text, lexical, dense = last.startswith("texts."), "lexical" in folders, last.startswith(_DENSE)
        if not (text or (lexical and modes == ("dense",)) or (dense and modes == ("lexical",))):
            total += int(record["bytes"])
    return total


def _timed(folder: Path, encode: Callable[[OnProgress], Any], label: str) -> tuple[float | None, int]:
    """Encode a corpus with progress; the seconds it took and how many documents were not there before."""
    there = folder.is_dir()
    begun = sum(int(read_json(path)["documents"]) for path in _finished_parts(folder))
    start = time.perf_counter()
    with progress(label, "documents") as on_progress:
        store = encode(on_progress)
    seconds = time.perf_counter() - start
    documents = 0 if there else int(getattr(store, "documents", len(store))) - begun
    return (seconds, documents) if documents else (None, 0)


def _finished_parts(folder: Path) -> list[Path]:
    """What says of each finished part of an unfinished folder how many documents it has."""
    from indexes.vectors import partial_folder

    return list(partial_folder(folder).glob("*.done.json"))


def _sum(*seconds: float | None) -> float | None:
    known = [one for one in seconds if one is not None]
    return sum(known) if known else None
