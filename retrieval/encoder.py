"""Text to vectors: an encoder with explicit pooling, prompts, length and normalisation, and its fingerprint."""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexes.checksums import fingerprint
from indexes.errors import InputError
from retrieval.batches import Backend, ahead, token_batches
from retrieval.devices import best_device, check_device
from retrieval.digests import architecture_digest, tokenizer_digest, weights_digest
from retrieval.loading import load_module
from retrieval.model_folder import PACKAGED, ModelFolder, changed, read_model_folder, resolve
from retrieval.passages import LongDocuments
from retrieval.prompts import query_prompt_for
from retrieval.tokenizing import TextTokenizer, Tokenized

if TYPE_CHECKING:
    from indexes.vectors import VectorStore
    from retrieval.console import OnProgress
    from retrieval.documents import Document

DTYPES = ("float32", "bfloat16", "float16", "int8")
BACKENDS = ("torch", "openvino", "auto")
_CHOSEN = ("attention", "attention_temperature", "append_eos")
"""Fields that only encoders have which need them."""
TOLERANCE = 1e-5
"""Of float32: how far, 1 - cosine, its vectors differ between backends and devices at most."""
_WINDOW = 2048
"""Texts that are sorted by length together."""


class Encoded(NamedTuple):
    """Vectors of documents."""

    vectors: NDArray[np.float32]
    """(rows, d)"""
    passages: NDArray[np.int64] | None
    """(rows, 3) document, begin and end in its content, for each row; None: one row a document, in their order."""
    truncated: int
    """How many documents were cut."""


class Encoder:
    """Turns queries and documents into vectors of unit length (or raw ones, if the model folder says so).

    Make one with `Encoder.load`. Everything that decides what a vector means is in `fields`, read from the model
    folder and never guessed; `fingerprint` is the SHA-256 over it. Backends and devices are not in it: at the same
    dtype their vectors agree within the tolerance of that dtype (smallest cosine with float32 on torch: float32
    0.99999, bfloat16 0.999, int8 0.99 in languages that the model knows; benchmarks/encoding has the figures).

    Attributes:
        name: What it was loaded by.
        dim: d, the length of a vector.
        fields: weights, architecture and tokenizer (as digests), pooling, prompts, max_length, normalize, dim, dtype;
            for int8 also the digest of the calibration texts; attention (if `bidirectional`), attention_temperature and
            append_eos where they are not what the model does by itself.
        queries: The encoder of queries, where a model folder has one for queries and one for documents
            (sentence-transformers' Router); `fields` and all else here are of documents then. None: the same one.
        document_fingerprint: SHA-256 over `fields`: what vectors and index folders are bound to.
        fingerprint: That of both sides; for one model the same.
        backend: What runs it.
        truncated: How many texts so far were longer than max_length, so that their vectors read only their beginnings.
    """

    def __init__(
        self,
        name: str,
        settings: ModelFolder,
        tokenizer: Any,
        backend: Backend,
        fields: Mapping[str, Any],
        queries: "Encoder | None" = None,
    ) -> None:
        self.name = name
        self.settings = settings
        self.backend = backend
        self.tokenizer = TextTokenizer(tokenizer, settings.max_length)
        self.fields = dict(fields)
        self.dim: int = self.fields["dim"]
        self.queries = queries
        self.document_fingerprint = self.fingerprint = fingerprint(self.fields)
        if queries is not None:
            both = {"document": self.document_fingerprint, "query": queries.document_fingerprint}
            self.fingerprint = fingerprint(both)
        self.truncated = 0

    @classmethod
    def load(  # noqa: PLR0913 - one keyword for each thing that a model folder may say otherwise
        cls,
        name: str = PACKAGED,
        *,
        pooling: str | None = None,
        max_length: int | None = None,
        dtype: str | None = None,
        normalize: bool | None = None,
        dim: int | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        task: str | None = None,
        instruction: str | None = None,
        attention: str | None = None,
        attention_temperature: float | None = None,
        append_eos: bool | None = None,
        backend: str = "torch",
        tolerance: float = TOLERANCE,
        device: str | None = None,
    ) -> "Encoder":
        """Load an encoder.

        Args:
            name: A model folder that sentence-transformers loads, a name on the Hugging Face hub, or
                `all-MiniLM-L6-v2`, which the extra `embedded` carries (no network needed).
            pooling: `cls`, `mean`, `max` or `lasttoken`: needed where the folder records none, refused where it does.
            max_length: Cut texts at fewer tokens than the model's own length; encoding takes that much less time.
            dtype: float32 (the default), bfloat16, float16 or int8 (backend `openvino`); part of the fingerprint,
                since it changes the vectors.
            normalize: Whether vectors are scaled to unit length; None: as the folder says.
            dim: Keep only the first so many numbers of each vector, for models trained so (Matryoshka).
            query_prompt: What goes before each query, such as "query: "; None: what the folder says.
            document_prompt: What goes before each document; None: what the folder says.
            task: In the place of `query_prompt`: the name of one of the folder's prompts, such as web_search_query.
            instruction: In the place of `query_prompt`: what queries ask for, in words, which goes before them as
                `Instruct: …`, for decoders that were trained so (E5-mistral, Qwen3-Embedding).
            attention: `bidirectional`: tokens of a decoder see those after them too (LLM2Vec, KaLM), for models that
                were trained so and whose folder does not say it; `causal` only confirms. None: as the folder says.
                Of two sides, this and `append_eos` are of documents; queries are read as the folder says.
            attention_temperature: Below 1, attention over long texts is sharper (TempScale): 0.8, say. See
                `retrieval.attention.set_temperature`.
            append_eos: Whether an end-of-text token follows each text whose tokenizer does not append one, as decoders
                that pool their last token expect; to be decided where the folder contradicts itself (E5-mistral's).
            backend: `torch`; `openvino`, faster on CPUs (extra `openvino`); or `auto`: the fastest backend, and dtype
                if none is given, whose vectors stay within `tolerance`, by a short trial on this machine.
            tolerance: For `auto`: the largest distance, 1 - cosine, from float32 on torch.
            device: Such as cuda:1 or cpu; None: the best there is.

        Raises:
            InputError: No such model, pooling unknown, a module that this encoder cannot run, or a value that the
                model, backend or machine does not have.
        """
        settings = read_model_folder(resolve(name), pooling=pooling, two_sided=True)
        query_prompt = query_prompt_for(settings, query_prompt, task, instruction)
        asked: dict[str, Any] = {
            "attention": attention,
            "attention_temperature": attention_temperature,
            "append_eos": append_eos,
        }
        said: dict[str, Any] = {
            "max_length": max_length,
            "normalize": normalize,
            "query_prompt": query_prompt,
            "document_prompt": document_prompt,
        }
        if backend == "auto":
            from retrieval.trial import fastest

            load = functools.partial(cls.load, name, pooling=pooling, dim=dim, device=device, **said, **asked)
            backend, dtype = fastest(load, dtype, tolerance)
        dtype = dtype or "float32"
        settings = changed(settings, **said)
        _check_choice(dtype, backend)
        device = check_device(device or ("cpu" if backend == "openvino" else best_device()))
        if backend == "openvino" and device != "cpu":
            raise InputError(f"backend openvino computes on the cpu here; device is {device!r}: leave it out")
        name = str(Path(name).resolve()) if Path(name).is_dir() else name  # found again from any working directory
        make = functools.partial(_make, cls, name, dim=dim, dtype=dtype, backend=backend, device=device)
        queries = None
        if settings.queries is not None:
            queries = make(settings.queries, asked={"attention_temperature": attention_temperature})
        return make(settings, asked=asked, queries=queries)

    @property
    def made_by(self) -> dict[str, Any]:
        """The flat record that vectors and index folders keep: `encoder` (its name), `fingerprint` and all fields.

        Of the side of documents: an encoder whose queries alone are others than another's fits that one's vectors.
        """
        return {"encoder": self.name, "fingerprint": self.document_fingerprint, **self.fields}

    @property
    def options(self) -> dict[str, Any]:
        """What `load` takes to make the same encoder again, in another process or at another time."""
        return {**load_options(self.made_by), "name": self.name, "backend": self.backend.name}

    def encode_queries(self, texts: Sequence[str], on_progress: "OnProgress | None" = None) -> NDArray[np.float32]:
        """Encode queries, each after the query prompt, to float32 (n, d); no texts give (0, d)."""
        if self.queries is not None:
            before = self.queries.truncated
            vectors = self.queries.encode_queries(texts, on_progress)
            self.truncated += self.queries.truncated - before
            return vectors
        return self._encode(self.settings.query_prompt, texts, on_progress)

    def encode_documents(self, texts: Sequence[str], on_progress: "OnProgress | None" = None) -> NDArray[np.float32]:
        """Encode documents, each after the document prompt, to float32 (n, d); no texts give (0, d).

        The text of a `Document` is its `content`: title, one space, text. Long ones are cut; `stream` and
        `encode_corpus` offer passages, and neither needs all texts in memory.
        """
        return self._encode(self.settings.document_prompt, texts, on_progress)

    def stream(
        self, documents: Iterable[Any], *, long_documents: LongDocuments | None = None, window: int = _WINDOW
    ) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """Yield (ids, vectors float32 (n, d)) of documents as they come, `window` documents at a time, in order.

        Reading and tokenising run ahead in a thread of their own. Nothing is written: use `encode_corpus` for what
        must outlive the process.

        Args:
            documents: Whatever `as_documents` takes: `Document`s, mappings, (id, text) pairs, or texts.
            long_documents: What happens to long ones; with passages, an id comes once for each of its passages.
            window: Documents that are sorted by length together; more are faster and later.

        Raises:
            InputError: A document is malformed, an id occurs twice, or there is no document.
        """
        from retrieval.documents import as_documents, refuse_repeats

        if window < 1:
            raise InputError(f"window is {window} documents; expected at least 1")
        long = long_documents or LongDocuments()
        self.check_long_documents(long)
        source = refuse_repeats(as_documents(documents, "documents"), "documents")
        parts = iter(lambda: list(itertools.islice(source, window)), [])
        for part, tokenized in ahead((part, self.tokenize(part, long)) for part in parts):
            encoded = self.run(tokenized)
            ids = [document.id for document in part]
            rows = range(len(ids)) if encoded.passages is None else encoded.passages[:, 0].tolist()
            yield [ids[row] for row in rows], encoded.vectors

    def encode_corpus(self, documents: "Iterable[Document]", folder: str | Path, **options: Any) -> "VectorStore":
        """Stream documents to a vectors folder; options as those of `retrieval.encoding.encode_corpus`."""
        from retrieval.encoding import encode_corpus

        return encode_corpus(self, documents, Path(folder), **options)

    def check_long_documents(self, long: LongDocuments) -> None:
        """Refuse a strategy for long documents that this encoder cannot follow.

        Raises:
            InputError: Late chunking without mean pooling or without torch, or passages that do not fit.
        """
        if long.strategy == "late" and self.settings.pooling != "mean":
            raise InputError(f"late chunking needs mean pooling; {self.name} pools by {self.settings.pooling}")
        if long.strategy == "late" and self.backend.name != "torch":
            raise InputError(f"late chunking needs the backend torch, not {self.backend.name}")
        self.tokenizer.read([""], self.settings.document_prompt, long)

    def tokenize(self, documents: "Sequence[Document]", long: LongDocuments) -> Tokenized:
        """Tokens of documents, ready for `run`; safe in another thread than it."""
        return self.tokenizer.read([document.content for document in documents], self.settings.document_prompt, long)

    def run(self, tokenized: Tokenized, on_progress: "OnProgress | None" = None) -> Encoded:
        """Vectors of tokenised documents."""
        from retrieval.late import mean_of_passages, pool_chunks

        self.truncated += tokenized.truncated
        budget = self.backend.tokens_in_a_batch
        batches = token_batches(tokenized.tokens, budget, self.tokenizer.pad, self.tokenizer.max_length)
        if tokenized.chunks is not None:
            vectors = pool_chunks(self.backend, batches, tokenized.chunks, self.dim, on_progress)
        else:
            vectors = self._vectors(batches, len(tokenized.tokens), on_progress)
        if tokenized.mean_over is not None:
            vectors = mean_of_passages(vectors, tokenized.mean_over, normalize=self.settings.normalize)
        return Encoded(vectors, tokenized.passages, tokenized.truncated)

    def _encode(self, prompt: str, texts: Sequence[str], on_progress: "OnProgress | None") -> NDArray[np.float32]:
        if isinstance(texts, str):
            raise InputError("found one text; expected a list of texts")
        out = np.empty((len(texts), self.dim), dtype=np.float32)
        if len(texts) == 1:
            alone = self.tokenizer.truncate(texts, prompt)
            self.truncated += alone.truncated
            out[:] = self.backend.run_one(next(token_batches(alone.tokens, 1, self.tokenizer.pad)))
            if on_progress:
                on_progress(1, 1)
            return out
        starts = range(0, len(texts), _WINDOW)
        tokenized = (self.tokenizer.truncate(texts[start : start + _WINDOW], prompt) for start in starts)
        # One window, such as one query, is not worth a thread.
        for start, part in zip(starts, ahead(tokenized) if len(starts) > 1 else tokenized, strict=True):
            report = _shifted(on_progress, start, len(texts))
            out[start : start + _WINDOW] = self.run(part, report).vectors
        return out

    def _vectors(self, batches: Iterable[Any], count: int, on_progress: "OnProgress | None") -> NDArray[np.float32]:
        out = np.empty((count, self.dim), dtype=np.float32)
        done = 0
        for rows, vectors in self.backend.run(batches):
            out[rows] = vectors
            done += len(rows)
            if on_progress:
                on_progress(done, count)
        return out


def _make(
    cls: type[Encoder],
    name: str,
    settings: ModelFolder,
    *,
    dim: int | None,
    dtype: str,
    backend: str,
    device: str,
    asked: Mapping[str, Any],
    queries: Encoder | None = None,
) -> Encoder:
    """One side of an encoder, or the whole of it."""
    module, tokenizer, chosen = load_module(name, settings, dim, "float32" if dtype == "int8" else dtype, **asked)
    if queries is not None and queries.dim != module.dim:
        raise InputError(f"{name} gives queries {queries.dim} numbers and documents {module.dim}; expected as many")
    fields = {
        "weights": weights_digest(dict(module.state_dict())),
        "architecture": architecture_digest(module.backbone.config),
        "tokenizer": tokenizer_digest(tokenizer),
        "pooling": settings.pooling,
        "query_prompt": settings.query_prompt,
        "document_prompt": settings.document_prompt,
        "max_length": settings.max_length,
        "normalize": settings.normalize,
        "dim": module.dim,
        "dtype": dtype,
        **chosen,
    }
    if backend == "torch":
        from retrieval.torch_backend import TorchBackend

        return cls(name, settings, tokenizer, TorchBackend(module, device), fields, queries)
    from retrieval.openvino_backend import open_backend

    ready, calibration = open_backend(module, TextTokenizer(tokenizer, settings.max_length), fields)
    return cls(name, settings, tokenizer, ready, {**fields, **calibration}, queries)


def load_options(made_by: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of `Encoder.load` that make a recorded encoder again."""
    names = ("pooling", "max_length", "dtype", "normalize", "dim", "query_prompt", "document_prompt", *_CHOSEN)
    backend = {"backend": "openvino"} if made_by.get("dtype") == "int8" else {}  # no other computes in int8
    return {**{name: made_by[name] for name in names if name in made_by}, **backend}


def _shifted(on_progress: "OnProgress | None", done: int, total: int) -> "OnProgress | None":
    return (lambda within, _: on_progress(done + within, total)) if on_progress else None


def _check_choice(dtype: str, backend: str) -> None:
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    if backend not in BACKENDS:
        raise InputError(f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}")
    if dtype == "int8" and backend == "torch":
        raise InputError(
            "dtype int8 needs backend openvino (pip install 'retrokit[openvino]'); torch has no such model"
        )
    if dtype == "float16" and backend == "openvino":
        raise InputError("backend openvino computes in float32, bfloat16 or int8; dtype is float16")
