"""Text to weights of terms: learned sparse encoders, such as SPLADE, for the inverted half of an index."""

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexes.checksums import fingerprint
from indexes.errors import InputError
from indexes.manifest import differences, read_json
from indexes.partial import discard
from indexes.terms import TermStore, TermWriter
from indexes.vectors import partial_folder
from retrieval.corpora import Corpus
from retrieval.devices import best_device, check_device
from retrieval.digests import architecture_digest, modules_digest, tokenizer_digest, weights_digest
from retrieval.documents import corpus_fingerprint, document_bytes, read_documents
from retrieval.loading import load_whole
from retrieval.model_folder import resolve

if TYPE_CHECKING:
    from retrieval.console import OnProgress
    from retrieval.documents import Document

PART_DOCUMENTS = 512
_BATCH = 32
_SPARSE = {"SpladePooling", "SparseStaticEmbedding", "SparseAutoEncoder", "Router"}


class SparseEncoder:
    """Gives the terms of queries and documents weights, which an index compares by their inner product.

    Terms are the tokens of the model's vocabulary (for an auto-encoder over dense vectors: numbers). It runs what
    sentence-transformers' `SparseEncoder` loads: SPLADE, inference-free ones, sparse auto-encoders. Use it beside a
    dense `Encoder`, in the place of BM25, where such a model was trained for texts like yours; BM25 needs no model.

    Make one with `SparseEncoder.load`.

    Attributes:
        name: What it was loaded by.
        fields: weights, architecture, tokenizer and modules (as digests), prompts, max_length (None: the model's own),
            and how many terms a query and a document keep at most.
        fingerprint: SHA-256 over `fields`.
        truncated: How many texts so far were longer than max_length: only their beginnings were read.
    """

    def __init__(self, name: str, model: Any, fields: Mapping[str, Any]) -> None:
        self.name = name
        self.fields = dict(fields)
        self.fingerprint = fingerprint(self.fields)
        self.truncated = 0
        self._model = model
        self._terms = _vocabulary(model)

    @classmethod
    def load(
        cls,
        name: str,
        *,
        max_length: int | None = None,
        query_terms: int | None = None,
        document_terms: int | None = None,
        device: str | None = None,
    ) -> "SparseEncoder":
        """Load a sparse encoder.

        Args:
            name: A model folder that sentence-transformers' SparseEncoder loads, or a name on the Hugging Face hub.
            max_length: Cut texts at fewer tokens than the model's own length.
            query_terms: How many terms of a query keep their weight, the heaviest; None: as the model says, or all.
            document_terms: The same of a document.
            device: Such as cuda:1 or cpu; None: the best there is.

        Raises:
            InputError: No such model, or one that gives no sparse vectors.
        """
        for what, value in (
            ("max_length", max_length),
            ("query_terms", query_terms),
            ("document_terms", document_terms),
        ):
            if value is not None and value < 1:
                raise InputError(f"{what} is {value}; expected at least 1")
        model = _load(name, check_device(device or best_device()))
        if max_length is not None:
            own = model.max_seq_length
            if model.transformers_model is None or own is None or max_length > own:
                reads = "texts whole" if model.transformers_model is None else f"{own} tokens at most"
                raise InputError(f"max_length is {max_length}; {name} reads {reads}")
            lengths = {
                getattr(module, "max_seq_length", max_length) for module in model.modules() if module is not model
            }
            max_length = None if lengths == {max_length} else max_length
        if max_length is not None:
            model.max_seq_length = max_length
        backbone = model.transformers_model
        fields = {
            "weights": weights_digest(dict(model.state_dict())),
            "architecture": None if backbone is None else architecture_digest(backbone.config),
            "tokenizer": tokenizer_digest(model.tokenizer),
            "modules": modules_digest(model),
            "prompts": {kind: text for kind, text in sorted((model.prompts or {}).items()) if text},
            "max_length": max_length,
            "query_terms": query_terms or model.max_active_dims,
            "document_terms": document_terms or model.max_active_dims,
        }
        return cls(str(Path(name).resolve()) if Path(name).is_dir() else name, model, fields)

    @property
    def made_by(self) -> dict[str, Any]:
        """The flat record that terms and index folders keep: `encoder` (its name), `fingerprint` and all fields."""
        return {"encoder": self.name, "fingerprint": self.fingerprint, **self.fields}

    def encode_queries(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """{term: weight} of each query; those whose weight is 0 are left out."""
        return self._encode(texts, "query", self._model.encode_query)

    def encode_documents(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """{term: weight} of each document; the text of a `Document` is its `content`."""
        return self._encode(texts, "document", self._model.encode_document)

    def encode_corpus(
        self,
        documents: "Iterable[Any]",
        folder: str | Path,
        *,
        source: str | None = None,
        overwrite: bool = False,
        on_progress: "OnProgress | None" = None,
    ) -> TermStore:
        """Stream documents to a terms folder, going on where an earlier run was killed.

        If the folder is finished already, made by this encoder from this corpus, it is opened.

        Args:
            documents: A corpus or any iterable of documents; read once, in order.
            folder: The terms folder to make.
            source: What the user calls the corpus.
            overwrite: Replace a folder made by another encoder or from another corpus instead of refusing.
            on_progress: Called with the documents done and their total (None where it is not known).

        Raises:
            InputError: A bad corpus, or the folder was made, or begun, by another encoder or of another corpus.
        """
        folder, corpus = Path(folder), read_documents(documents)
        if folder.exists() and not overwrite:
            return self._finished(folder, corpus)
        whole, part, done = hashlib.sha256(), -1, 0
        with TermWriter(folder, self.made_by, overwrite=overwrite) as writer:
            for part, some in enumerate(_parts(corpus)):
                lines = [document_bytes(document) for document in some]
                whole.update(b"".join(lines))
                digest = hashlib.sha256(b"".join(lines)).hexdigest()
                if not writer.has(part, digest):
                    before = self.truncated
                    weights = self.encode_documents([document.content for document in some])
                    ids = [document.id for document in some]
                    writer.write(part, ids, weights, digest, truncated=self.truncated - before)
                done += len(some)
                if on_progress:
                    on_progress(done, corpus.total)
            return writer.finish(part + 1, {"source": source, "fingerprint": whole.hexdigest()})

    def check(self, made_by: Mapping[str, Any], folder: Path) -> None:
        """Refuse weights that another sparse encoder made.

        Raises:
            InputError: The fingerprints differ; both sides are named, field by field.
        """
        if made_by["fingerprint"] != self.fingerprint:
            raise InputError(
                f"the terms of {folder} were made by another sparse encoder than {self.name} (terms ≠ encoder: "
                f"{differences(made_by, self.made_by)}); use its own, or make them again"
            )

    def _finished(self, folder: Path, corpus: Corpus) -> TermStore:
        store = TermStore.open(folder)
        self.check(store.made_by, folder)
        found = corpus_fingerprint(corpus)
        if store.corpus["fingerprint"] != found:
            raise InputError(
                f"{folder} was made from another corpus ({str(store.corpus['fingerprint'])[:12]} ≠ {found[:12]}); "
                "choose another --output or pass --overwrite"
            )
        discard(partial_folder(folder))  # what a process left that was killed once the folder was there
        return store

    def _encode(self, texts: Sequence[str], kind: str, encode: Any) -> list[dict[str, float]]:
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            given = "one text" if isinstance(texts, str) else "something else than texts"
            raise InputError(f"found {given}; expected a list of texts")
        if not len(texts):
            return []
        self._count_truncated(texts, self.fields["prompts"].get(kind, ""))
        options = {"show_progress_bar": False, "save_to_cpu": True, "max_active_dims": self.fields[f"{kind}_terms"]}
        sparse = encode(list(texts), batch_size=_BATCH, **options).coalesce()
        rows, columns = sparse.indices().tolist()
        found: list[dict[str, float]] = [{} for _ in texts]
        for row, column, weight in zip(rows, columns, sparse.values().tolist(), strict=True):
            if not math.isfinite(weight):
                raise InputError(f"{self.name} gives a term of text {row + 1} the weight {weight}; the model is broken")
            if weight:
                found[row][self._terms[column] if column < len(self._terms) else str(column)] = weight
        return found

    def _count_truncated(self, texts: Sequence[str], prompt: str) -> None:
        longest = self._model.max_seq_length
        if longest is not None and self._model.transformers_model is not None:
            whole = [prompt + text for text in texts]
            tokens = self._model.tokenizer(whole, truncation=False, padding=False, verbose=False)["input_ids"]
            self.truncated += sum(len(ids) > longest for ids in tokens)


def load_options(made_by: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of `SparseEncoder.load` that make a recorded encoder again."""
    return {name: made_by.get(name) for name in ("max_length", "query_terms", "document_terms")}


def _load(name: str, device: str) -> Any:
    folder = resolve(name)
    named = folder / "modules.json"
    kinds = [str(one["type"]).rpartition(".")[2] for one in read_json(named)] if named.is_file() else []
    if not _SPARSE & set(kinds):
        found = " → ".join(kinds) or "no modules.json"
        raise InputError(
            f"{name} is no sparse encoder ({found}); expected one that ends in {', '.join(sorted(_SPARSE))}"
        )
    import sentence_transformers

    model = load_whole(
        name, "a sparse encoder", lambda: sentence_transformers.SparseEncoder(str(folder), device=device)
    )
    if model.similarity_fn_name != "dot":
        raise InputError(
            f"{name} compares by {model.similarity_fn_name}; expected a sparse encoder that compares by dot"
        )
    return model


def _vocabulary(model: Any) -> list[str]:
    """The name of each dimension that is a token; others go by their number."""
    if any(type(module).__name__ == "SparseAutoEncoder" for module in model.modules()):
        return []
    return list(model.tokenizer.convert_ids_to_tokens(list(range(len(model.tokenizer)))))


def _parts(corpus: "Iterable[Document]") -> "Iterator[list[Document]]":
    stream = iter(corpus)
    while part := list(itertools.islice(stream, PART_DOCUMENTS)):
        yield part
