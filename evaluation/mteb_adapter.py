"""MTEB's tasks for our encoders and retrievers, without its caches serving one model's figures for another.

MTEB finds stored scores and vectors by a model's name and revision, and gives every model from a local folder the same
of both. The adapters here carry the fingerprint in the name, in the revision and in the settings that MTEB puts into
its paths. Extra `eval`; MTEB is imported when it is needed, which takes seconds.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evaluation.prepared import exact_index
from evaluation.sts import PROMPTS
from indexes.checksums import fingerprint
from indexes.errors import InputError
from retrieval.cache import cache_home
from retrieval.console import progress
from retrieval.documents import Document, as_document, corpus_fingerprint

if TYPE_CHECKING:
    from retrieval.encoder import Encoder
    from retrieval.retriever import Retriever

MODES = ("lexical", "dense", "hybrid")
_QUERIES_AT_ONCE = 256


def import_mteb() -> Any:
    """The module `mteb`.

    Raises:
        InputError: The extra `eval` is not installed.
    """
    try:
        import mteb
    except ImportError as error:
        raise InputError(f"MTEB is not installed ({error}); pip install 'retrokit[eval]'") from None
    return mteb


def as_mteb_encoder(encoder: "Encoder", *, prompt: str = "document") -> "MtebEncoder":
    """An encoder as `mteb.evaluate` takes it, for every kind of task that embeds texts.

    Args:
        encoder: The encoder; its own prompts go before queries and documents, and a task's are not used.
        prompt: Whose prompt texts get that are neither queries nor documents: in STS, classification, clustering.

    Raises:
        InputError: MTEB is not installed, or the prompt is unknown.
    """
    if prompt not in PROMPTS:
        raise InputError(f"prompt is {prompt!r}; expected one of {', '.join(PROMPTS)}")
    return MtebEncoder(encoder, prompt)


def as_mteb_search(
    system: "Encoder | Retriever", *, mode: str = "hybrid", cache: str | Path | None = None
) -> "MtebSearch":
    """A search engine as `mteb.evaluate` takes it, for retrieval and reranking tasks.

    Args:
        system: An encoder: each task's corpus is encoded and indexed, exactly, in a folder that is found again by the
            fingerprints of both. Or a retriever, opened over an index of the task's corpus.
        mode: `lexical`, `dense` or `hybrid`.
        cache: Where an encoder's vectors and indexes are kept; None: `~/.cache/retrokit`.

    Raises:
        InputError: MTEB is not installed, or the mode is unknown or not the retriever's.
    """
    there = getattr(system, "modes", MODES)
    if mode not in there:
        raise InputError(f"mode is {mode!r}; expected one of {', '.join(there)}")
    return MtebSearch(system, mode, Path(cache) if cache is not None else cache_home())


class MtebEncoder:
    """Implements MTEB's EncoderProtocol; make one with `as_mteb_encoder`.

    Attributes:
        encoder: The encoder.
        mteb_model_meta: Name and revision, with the fingerprint in both.
    """

    def __init__(self, encoder: "Encoder", prompt: str) -> None:
        self.encoder = encoder
        self.prompt = prompt
        # The prompt of symmetric tasks is no part of the encoder's fingerprint, but of what the vectors mean.
        made_by = encoder.fingerprint if prompt == "document" else fingerprint([encoder.fingerprint, prompt])
        self._cosine = bool(encoder.fields["normalize"])
        self.mteb_model_meta = _meta(encoder, "", made_by)

    def encode(
        self,
        inputs: Iterable[Any],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        precision: str | None = None,
        show_progress_bar: bool = True,
        **options: Any,
    ) -> NDArray[np.float32]:
        """Vectors of the texts of MTEB's batches, float32 (n, d).

        Raises:
            InputError: Another precision than float32 is asked for, or a batch without texts.
        """
        if precision not in (None, "float32"):
            raise InputError(f"precision is {precision!r}; load the encoder with dtype= instead, which it is known by")
        side = self.prompt if prompt_type is None else str(getattr(prompt_type, "value", prompt_type))
        texts = [text for batch in inputs for text in _texts_of(batch, task_metadata.name)]
        encode = self.encoder.encode_queries if side == "query" else self.encoder.encode_documents
        if not show_progress_bar:
            return encode(texts)
        with progress(f"encoding {task_metadata.name}", "texts") as on_progress:
            return encode(texts, on_progress)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> NDArray[np.float32]:
        """Cosines of all with all, (n, m); inner products if the encoder does not scale to unit length."""
        first, second = (np.atleast_2d(np.asarray(one, dtype=np.float32)) for one in (embeddings1, embeddings2))
        return _unit(first, self._cosine) @ _unit(second, self._cosine).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> NDArray[np.float32]:
        """Cosines of each with its like, (n,); inner products if the encoder does not scale to unit length."""
        first, second = (np.atleast_2d(np.asarray(one, dtype=np.float32)) for one in (embeddings1, embeddings2))
        return (_unit(first, self._cosine) * _unit(second, self._cosine)).sum(axis=1)


class MtebSearch:
    """Implements MTEB's SearchProtocol; make one with `as_mteb_search`.

    Attributes:
        mode: How it searches.
        mteb_model_meta: Name and revision, with the fingerprint of encoder and mode in both.
    """

    def __init__(self, system: "Encoder | Retriever", mode: str, cache: Path) -> None:
        from retrieval.retriever import Retriever

        self.mode = mode
        self._cache = cache
        self._given = system if isinstance(system, Retriever) else None
        self._encoder: Encoder = system.encoder if isinstance(system, Retriever) else system
        self._opened = self._given
        self.mteb_model_meta = _meta(self._encoder, f"-{mode}", fingerprint(self._fields()))

    def _fields(self) -> dict[str, Any]:
        """What decides the hits beside the corpus."""
        fields: dict[str, Any] = {"encoder": self._encoder.fingerprint, "mode": self.mode}
        if self._given is not None:
            reader = self._given.index.reader
            fields |= {"factory": reader.factory, "effort": str(reader.effort), "encoding": reader.encoding}
            fields |= {"analyzer": reader.analyzer, "fusion": self._given.fusion, "weight": self._given.weight}
        return fields

    def index(self, corpus: Any, *, task_metadata: Any, **options: Any) -> None:
        """Index a task's corpus, or open the index that is there; a given one is checked to be of this corpus.

        Raises:
            InputError: An id is unusable, or the given index is of another corpus.
        """
        from retrieval.retriever import Retriever

        documents = _Corpus(corpus)
        if self._given is not None:
            _check_same(self._given, documents, task_metadata.name)
            return
        folder, _, _ = exact_index(self._encoder, None, documents, self._cache)
        self._opened = Retriever.open(folder, encoder=self._encoder)

    def search(
        self,
        queries: Any,
        *,
        task_metadata: Any,
        top_k: int,
        top_ranked: dict[str, Sequence[str]] | None = None,
        **options: Any,
    ) -> dict[str, dict[str, float]]:
        """The best hits of every query: query id to document id to score.

        A query without hits is there too, with none: MTEB averages over the queries it is given.

        Args:
            queries: Rows of `id` and `text`, and `instruction` if the task has any, which is put after the text.
            task_metadata: The task's.
            top_k: Hits for each query.
            top_ranked: Query id to the only documents that may be hits, in reranking tasks.
            options: Whatever else MTEB hands over, which does not matter here.

        Raises:
            InputError: `index` was not called, or a query is no text.
        """
        if self._opened is None:
            raise InputError("nothing to search in; call index first")
        ids = [str(one) for one in queries["id"]]
        texts = _query_texts(queries, task_metadata.name)
        with progress(f"searching {task_metadata.name}", "queries") as on_progress:
            found = (self._rerank if top_ranked is not None else self._search)(ids, texts, top_k, top_ranked or {})
            hits = {}
            for done, (query, scores) in enumerate(found, start=1):
                hits[query] = scores
                on_progress(done, len(ids))
        return hits

    def _search(
        self, ids: Sequence[str], texts: Sequence[str], top_k: int, _: dict[str, Sequence[str]]
    ) -> Iterator[tuple[str, dict[str, float]]]:
        assert self._opened is not None  # noqa: S101 - `search` checked it
        for start in range(0, len(ids), _QUERIES_AT_ONCE):
            rows = slice(start, start + _QUERIES_AT_ONCE)
            found = self._opened.search_many(texts[rows], top_k, mode=self.mode)
            for query, hits in zip(ids[rows], found, strict=True):
                yield query, {hit.id: hit.score for hit in hits}

    def _rerank(
        self, ids: Sequence[str], texts: Sequence[str], top_k: int, top_ranked: dict[str, Sequence[str]]
    ) -> Iterator[tuple[str, dict[str, float]]]:
        assert self._opened is not None  # noqa: S101 - `search` checked it
        reader = self._opened.index.reader
        row_of = {str(reader.ids[row]): row for row in range(reader.rows)}
        for query, text in zip(ids, texts, strict=True):
            wanted = np.zeros(reader.rows, dtype=bool)
            wanted[[row_of[one] for one in top_ranked.get(query, ()) if one in row_of]] = True
            hits = self._opened.search_many([text], top_k, mode=self.mode, filter=wanted)[0] if wanted.any() else []
            yield query, {hit.id: hit.score for hit in hits}


def _meta(encoder: "Encoder", suffix: str, made_by: str) -> Any:
    """MTEB's record of a model: the fingerprint is in the name, the revision, and the paths of MTEB's vector cache."""
    import_mteb()
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    name = re.sub(r"[^\w.+-]+", "-", Path(encoder.name).name).strip("-.") or "encoder"
    fields = {
        "name": f"retrokit/{name}{suffix}-{made_by[:12]}",
        "revision": made_by,
        "experiment_kwargs": {"fingerprint": made_by[:24]},
        "embed_dim": encoder.dim,
        "max_tokens": encoder.settings.max_length,
        "similarity_fn_name": ScoringFunction("cosine" if encoder.fields["normalize"] else "dot"),
    }
    return ModelMeta.create_empty(fields)


class _Corpus:
    """The documents of MTEB's rows, to be read more than once."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows
        self.corpus_fingerprint = corpus_fingerprint(self.documents())

    def documents(self) -> Iterator[Document]:
        """Read them from their start."""
        return (as_document(row, f"row {number} of the corpus") for number, row in enumerate(self._rows))


def _check_same(retriever: "Retriever", corpus: _Corpus, task: str) -> None:
    reader = retriever.index.reader
    made_of = reader.corpus["fingerprint"]
    ids = {document.id for document in corpus.documents()}
    there = {str(reader.ids[row]) for row in range(reader.rows) if reader.live is None or reader.live[row]}
    if made_of not in (None, corpus.corpus_fingerprint) or ids != there:
        raise InputError(
            f"{reader.folder} holds another corpus than task {task} ({len(there):,} documents ≠ {len(ids):,}, or other "
            "texts); index the task's own, or pass an encoder"
        )


def _texts_of(batch: Any, task: str) -> list[str]:
    texts = batch.get("text") if hasattr(batch, "get") else None
    if texts is None or not all(isinstance(text, str) for text in texts):
        raise InputError(f"task {task} has inputs without text; retrokit encodes texts only")
    return list(texts)


def _query_texts(queries: Any, task: str) -> list[str]:
    texts = list(queries["text"])
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"task {task} has queries that are no texts (conversations); retrokit searches by text")
    if "instruction" not in queries.column_names:
        return texts
    pairs = zip(texts, queries["instruction"], strict=True)
    return [text if instruction is None else f"{text} {instruction}" for text, instruction in pairs]


def _unit(vectors: NDArray[np.float32], wanted: bool) -> NDArray[np.float32]:
    if not wanted:
        return vectors
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
