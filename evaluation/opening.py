"""Systems by a spec, opened for a test collection: encoders, indexes, runs, BM25, learned sparse, hybrid, reranked."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.prepared import Place, cache_folder, encode_terms, exact_index, index_bytes, refuse_other_corpus
from evaluation.systems import MODES, Searcher
from evaluation.testsets import TestSet
from indexes.checksums import file_digest, fingerprint
from indexes.errors import InputError
from indexes.manifest import MANIFEST, read_json
from retrieval.cache import cache_home

if TYPE_CHECKING:
    from retrieval.retriever import Retriever

SPECS = (
    "a model (folder or hub name), an index folder, a run file, bm25[:LANGUAGE], hybrid:MODEL or sparse:MODEL, "
    "and any of them with +rerank:MODEL[@DEPTH] behind it"
)
_RERANK = "+rerank:"
_RUN_FILES = (".trec", ".run", ".npz", ".gz")


@dataclass(frozen=True)
class Opened:
    """A system, ready to be searched."""

    name: str
    """Its spec, with the names of folders and files for their paths."""
    searcher: Searcher
    made_by: dict[str, str]
    """Fingerprints and settings of everything that decides what it finds."""
    modes: tuple[str, ...]
    """The searcher's modes that the spec asks for, the main one last."""
    encode_seconds: float | None = None
    """What encoding the corpus took just now; None: nothing was encoded, or it was found in the cache."""
    documents_encoded: int = 0
    """How many documents that were, each counted once for each of its encoders."""
    index_bytes: int = 0
    """Files that these modes read, stored texts not among them; 0 for a run, which reads none."""


def open_system(
    spec: str,
    testset: TestSet,
    *,
    cache: Path | None = None,
    device: str | None = None,
    sparse: str | None = None,
) -> Opened:
    """Open a system for a test collection; what must be made of its corpus is made once, in the cache.

    Args:
        spec: One of

            - a model folder or a name on the hub: exact dense search; a folder that `retrokit hybrid` made: the sum of
              its dense and its sparse half;
            - an index folder, in all its modes; or a lexical index folder;
            - a TREC run file;
            - `bm25`, or `bm25:german` for another stemmer than the English one;
            - `hybrid:MODEL`: exact dense search and BM25 fused by z-scores;
            - `sparse:MODEL`: a learned sparse encoder alone;
            - any of these and `+rerank:MODEL` or `+rerank:MODEL@DEPTH`: its first DEPTH (100) hits in the order of a
              cross-encoder.

        testset: What it is to answer; vectors and indexes are made of its corpus.
        cache: Where they are kept, in folders named by the fingerprints of corpus and encoders, never by names; None:
            `~/.cache/retrokit`.
        device: Where models compute, such as cuda:1; None: the best there is.
        sparse: A sparse encoder: of an index folder, if it moved; with a model, in the place of BM25.

    Raises:
        InputError: There is no such system, it is of another corpus, or it cannot do what the spec asks.
    """
    base, reranker, depth = split_rerank(spec)
    if base.startswith("anchor:"):
        raise InputError(f"{base} is a published figure, with nothing to search; give it to retrokit compare alone")
    place = Place(testset, cache or cache_home(), device)
    opened = _open_base(base, place, sparse)
    return opened if reranker is None else with_reranker(opened, reranker, depth, device=device)


def open_encoder(
    name: str, testset: TestSet, *, cache: Path | None = None, device: str | None = None, sparse: str | None = None
) -> Opened:
    """Open an encoder as `open_system` does, whatever else may have its name."""
    return _open_encoder(name, Place(testset, cache or cache_home(), device), sparse, ("dense",))


def open_index(folder: Path, testset: TestSet, *, device: str | None = None, sparse: str | None = None) -> Opened:
    """Open an index folder as `open_system` does, and nothing else."""
    place = Place(testset, cache_home(), device)
    if _kind(folder) == "lexical index" and sparse is None:
        return _open_lexical(folder, place)
    return _open_index(folder, place, sparse)


def split_rerank(spec: str) -> tuple[str, str | None, int | None]:
    """A spec's first stage, its reranker (None: it has none) and the depth (None: not said).

    Raises:
        InputError: A stage is missing, there are three, or the depth is less than 1.
    """
    base, mark, second = spec.rpartition(_RERANK)
    if not mark:
        return spec, None, None
    model, at, depth = second.rpartition("@")
    if not at or not depth.lstrip("-").isdecimal():
        model, depth = second, ""
    if not base or not model or _RERANK in base:
        raise InputError(
            f"{spec!r} is no system of two stages; expected SPEC{_RERANK}MODEL or SPEC{_RERANK}MODEL@DEPTH"
        )
    if depth and int(depth) < 1:
        raise InputError(f"{spec!r} reranks {depth} hits; expected {_RERANK}MODEL@DEPTH with a depth of at least 1")
    return base, model, int(depth) if depth else None


def name_of(spec: str) -> str:
    """What a system opened by this spec is called: the spec, with the names of folders and files for their paths.

    Raises:
        InputError: As `split_rerank`.
    """
    base, reranker, depth = split_rerank(spec)
    kind, colon, value = base.partition(":")
    name = f"{kind}:{_short(value)}" if kind in ("sparse", "hybrid") and colon else _short(base)
    return name if reranker is None else _reranked_name(name, reranker, depth)


def _reranked_name(name: str, reranker: str, depth: int | None) -> str:
    return f"{name}{_RERANK}{_short(reranker)}" + ("" if depth is None else f"@{depth}")


def with_reranker(opened: Opened, name: str, depth: int | None = None, *, device: str | None = None) -> Opened:
    """Put a cross-encoder behind the main mode of an opened system.

    Raises:
        InputError: No such cross-encoder, depth < 1, or the system keeps no texts of its documents.
    """
    from evaluation.stored import StoredRuns
    from retrieval.reranker import DEPTH, SUFFIX, FirstStage, Reranked, Reranker
    from retrieval.retriever import Retriever

    first: Any = opened.searcher
    deep = DEPTH if depth is None else depth
    if isinstance(first, StoredRuns):
        first = StoredRuns(first.runs, first.testset, deep)
    if isinstance(first, Retriever) and any(one.texts is None for one in first.index.reader.segments):
        raise InputError(
            f"{first.index.folder} keeps no texts, and a cross-encoder reads texts; index the documents too "
            "(without --dense-only)"
        )
    reranker = Reranker.load(name, device=device)
    stage: FirstStage = first
    searcher = Reranked(stage, reranker, deep)
    made_by = {
        "reranker": name,
        "reranker fingerprint": reranker.fingerprint,
        "rerank depth": str(searcher.depth),
    }
    return replace(
        opened,
        name=_reranked_name(opened.name, name, depth),
        searcher=searcher,
        made_by=opened.made_by | made_by,
        modes=(opened.modes[-1] + SUFFIX,),
    )


def _open_base(spec: str, place: Place, sparse: str | None) -> Opened:
    kind, colon, value = spec.partition(":")
    path = Path(spec)
    found = _kind(path)
    if sparse is not None and (kind in ("bm25", "sparse") or path.is_file() or found == "lexical index"):
        raise InputError(f"a sparse encoder goes with a model or an index folder, not with {spec}; leave --sparse out")
    if kind == "bm25":
        return _open_bm25(value or None, place)
    if kind in ("sparse", "hybrid") and colon:
        if not value:
            raise InputError(f"{spec!r} names no model; expected {kind}:MODEL")
        return _open_sparse(value, place) if kind == "sparse" else _open_encoder(value, place, sparse, ("hybrid",))
    if path.is_file():
        return _open_run(path, place)
    if path.suffix in _RUN_FILES:
        raise InputError(f"{spec}: no such run file; expected a TREC run file, or .npz")
    if found == "index":
        return _open_index(path, place, sparse)
    if found == "lexical index":
        return _open_lexical(path, place)
    if found not in (None, "model"):
        raise InputError(f"{spec} is a folder of kind {found!r}; expected {SPECS}")
    return _open_encoder(spec, place, sparse, ("dense",))


def _kind(folder: Path) -> str | None:
    """What a folder's manifest says it is; None where there is none, or where it is a model's."""
    if not (folder / MANIFEST).is_file() or (folder / "modules.json").is_file() or _halves(folder):
        return None
    found = read_json(folder / MANIFEST)
    return str(found.get("kind")) if isinstance(found, dict) else None


def _halves(folder: Path) -> bool:
    """Whether a folder has the dense and the sparse half of a model, as `retrokit hybrid` makes them."""
    return all((folder / half / "modules.json").is_file() for half in ("dense", "sparse"))


def _open_run(path: Path, place: Place) -> Opened:
    from evaluation.runs import read_run
    from evaluation.stored import StoredRuns

    name = _short(str(path))
    made_by = {"run file": path.name, "run file SHA-256": file_digest(path)}
    return Opened(name, StoredRuns({name: read_run(path)}, place.testset), made_by, (name,))


def _open_bm25(language: str | None, place: Place) -> Opened:
    from retrieval.analyzer import usual_analyzer
    from retrieval.lexical_retriever import LexicalRetriever, build_lexical

    folder = cache_folder(place.cache, place.testset, f"bm25-{usual_analyzer(language).name}")
    if not folder.is_dir():
        build_lexical(place.testset.documents(), folder, language=language)
    opened = LexicalRetriever.open(folder)
    name = "bm25" if language is None else f"bm25:{language}"
    return Opened(name, opened, _lexical(opened.index.analyzer), opened.modes, index_bytes=opened.index.bytes)


def _open_sparse(name: str, place: Place) -> Opened:
    from indexes.terms import TermStore
    from retrieval.lexical_retriever import LexicalRetriever, build_lexical
    from retrieval.sparse import SparseEncoder

    encoder = SparseEncoder.load(name, device=place.device)
    folder = cache_folder(place.cache, place.testset, encoder.fingerprint)
    seconds, documents = encode_terms(encoder, folder, place.testset)
    if not (folder / "lexical").is_dir():
        terms = TermStore.open(folder / "terms")
        build_lexical(place.testset.documents(), folder / "lexical", terms=terms)
    opened = LexicalRetriever.open(folder / "lexical", encoder)
    made_by = {"sparse encoder": name, **_lexical(opened.index.analyzer)}
    size = opened.index.bytes
    return Opened(f"sparse:{_short(name)}", opened, made_by, opened.modes, seconds, documents, size)


def _open_lexical(folder: Path, place: Place) -> Opened:
    from indexes.inverted import LexicalIndex
    from retrieval.lexical_retriever import LexicalRetriever
    from retrieval.sparse import SparseEncoder, load_options

    index = LexicalIndex.open(folder)
    refuse_other_corpus(folder, index.corpus, place.testset)
    made_by, sparse = index.analyzer, None
    if isinstance(made_by, Mapping):
        sparse = SparseEncoder.load(str(made_by["encoder"]), **load_options(made_by), device=place.device)
    opened = LexicalRetriever(index, sparse)
    said = {"index": folder.name, **_lexical(made_by)}
    return Opened(_short(str(folder)), opened, said, opened.modes, index_bytes=index.bytes)


def _open_index(folder: Path, place: Place, sparse: str | None) -> Opened:
    from retrieval.retriever import Retriever

    retriever = Retriever.open(folder, sparse=sparse, device=place.device)
    reader = retriever.index.reader
    refuse_other_corpus(folder, reader.corpus, place.testset)
    made_by = {
        "index": folder.name,
        "index fingerprint": fingerprint(reader.manifest),
        "encoder fingerprint": retriever.encoder.fingerprint,
        "index factory": reader.factory,
        **_words(retriever),
    }
    modes = retriever.modes
    return Opened(_short(str(folder)), retriever, made_by, modes, index_bytes=index_bytes(reader, modes))


def _open_encoder(name: str, place: Place, sparse: str | None, modes: tuple[str, ...]) -> Opened:
    """Encode the corpus exactly, or take it from the cache, and open a retriever over it."""
    from retrieval.encoder import Encoder
    from retrieval.retriever import Retriever
    from retrieval.sparse import SparseEncoder

    dense, fusion, kind = name, "zscore", "hybrid:" if modes == ("hybrid",) else ""
    if _halves(Path(name)):
        if sparse is not None:
            raise InputError(f"{name} has a sparse half of its own; leave --sparse out")
        dense, sparse, fusion, modes = f"{name}/dense", f"{name}/sparse", "sum", ("hybrid",)
    encoder = Encoder.load(dense, device=place.device)
    weighing = None if sparse is None else SparseEncoder.load(sparse, device=place.device)
    index, seconds, documents = exact_index(encoder, weighing, place.testset, place.cache)
    retriever = Retriever.open(index, encoder=encoder, sparse=weighing, fusion=fusion)
    made_by = {
        "encoder": name,
        "encoder fingerprint": encoder.fingerprint,
        "index factory": "Flat",
        **({"sparse encoder": sparse} if sparse is not None else {}),
        **_words(retriever),
    }
    size = index_bytes(retriever.index.reader, modes)
    return Opened(kind + _short(name), retriever, made_by, modes, seconds, documents, size)


def _words(retriever: "Retriever") -> dict[str, str]:
    """What decides the lexical side of a retriever and the fusion."""
    reader = retriever.index.reader
    if MODES[-1] not in retriever.modes:
        return {}
    return {**_lexical(reader.analyzer), "fusion": f"{retriever.fusion}, weight {retriever.weight:g}"}


def _lexical(analyzer: str | Mapping[str, Any] | None) -> dict[str, str]:
    from indexes.lexical import K1, B

    if isinstance(analyzer, Mapping):
        return {"sparse encoder fingerprint": str(analyzer["fingerprint"])}
    return {"BM25": f"{analyzer}, k1 {K1}, b {B}"}


def _short(spec: str) -> str:
    """A name for a path: that of the folder, or of the file without .trec, .run, .txt and .gz."""
    path = Path(spec)
    if path.is_dir():
        return path.resolve().name
    if not path.is_file():
        return spec
    for ending in (".gz", ".trec", ".run", ".txt"):
        spec = spec.removesuffix(ending)
    return Path(spec).name
