"""A second stage: cross-encoders read query and document together and put the first hits in a new order."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from indexes.checksums import fingerprint
from indexes.errors import InputError
from indexes.manifest import read_json
from retrieval.devices import best_device, check_device
from retrieval.digests import architecture_digest, modules_digest, tokenizer_digest, weights_digest
from retrieval.loading import load_whole
from retrieval.model_folder import resolve
from retrieval.retriever import Hit

if TYPE_CHECKING:
    from retrieval.console import OnProgress

DEPTH = 100
"""How many hits of each query are scored again."""
SUFFIX = "+rerank"
"""What the name of a mode ends in whose hits are reranked."""
DTYPES = ("float32", "bfloat16", "float16")
ACTIVATIONS = ("identity", "sigmoid")

_BATCH = 32
_PAIRS_AT_ONCE = 2048
_LEAST, _UNLIMITED = 8, 1_000_000
_HEAD = ("classifier_pooling", "classifier_activation", "pooler_hidden_act", "summary_type", "summary_activation")
"""Settings by which the same weights of a classifier compute something else."""


class Reranker:
    """Scores pairs of a query and a document by a cross-encoder, which reads both together.

    It runs what sentence-transformers' `CrossEncoder` loads as a classifier of pairs with one label, such as the folder
    `cross-encoder` of a model that `pretrain` made with PROP. A pair takes as long as encoding a document of its
    length, and nothing can be made ahead: use it over some 100 hits of a `Retriever`, not over a corpus. Of a long
    document it reads the beginning.

    Make one with `Reranker.load`.

    Attributes:
        name: What it was loaded by.
        fields: weights, architecture, head, tokenizer and modules (as digests), prompt, max_length, activation, dtype.
        fingerprint: SHA-256 over `fields`. Batches and devices are not in it: they change the last bits of scores.
        truncated: How many pairs so far were longer than max_length: the longer text of the two lost its end.
    """

    def __init__(self, name: str, model: Any, fields: Mapping[str, Any], batch_size: int = _BATCH) -> None:
        self.name = name
        self.fields = dict(fields)
        self.fingerprint = fingerprint(self.fields)
        self.truncated = 0
        self.batch_size = batch_size
        self._model = model

    @classmethod
    def load(
        cls,
        name: str,
        *,
        max_length: int | None = None,
        dtype: str = "float32",
        activation: str | None = None,
        batch_size: int = _BATCH,
        device: str | None = None,
    ) -> "Reranker":
        """Load a cross-encoder, from safetensors; code that a folder brings is never run.

        Args:
            name: A model folder that sentence-transformers' CrossEncoder loads, or a name on the Hugging Face hub.
            max_length: Cut pairs at fewer tokens than the model's own length.
            dtype: float32, bfloat16 or float16: the precision to compute in.
            activation: What makes scores of the model's numbers: `sigmoid` (0 to 1; numbers beyond 16 all become 1,
                which makes them ties) or `identity`; None: what the folder says, or else sigmoid.
            batch_size: Pairs that go through the model together.
            device: Such as cuda:1 or cpu; None: the best there is.

        Raises:
            InputError: No such model, one that does not give one score for a pair, or a value out of range.
        """
        if dtype not in DTYPES:
            raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
        if activation not in (None, *ACTIVATIONS):
            raise InputError(f"activation is {activation!r}; expected one of {', '.join(ACTIVATIONS)}")
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; expected at least 1")
        model = _load(name, dtype, activation, check_device(device or best_device()))
        own = int(min(model.max_seq_length, _UNLIMITED))
        if max_length is not None and not _LEAST <= max_length <= own:
            raise InputError(f"max_length is {max_length}; expected {_LEAST} to {own}, the model's own")
        if max_length is None and own == _UNLIMITED:
            raise InputError(f"{name} records no maximal length; give max_length")
        model.max_seq_length = max_length or own
        config = model.transformers_model.config
        fields = {
            "weights": weights_digest(dict(model.state_dict())),
            "architecture": architecture_digest(config),
            "head": fingerprint({one: getattr(config, one) for one in _HEAD if hasattr(config, one)}),
            "tokenizer": tokenizer_digest(model.tokenizer),
            "modules": modules_digest(model),
            "prompt": (model.prompts or {}).get(model.default_prompt_name or "", ""),
            "max_length": max_length or own,
            "activation": _activation_name(model.activation_fn),
            "dtype": dtype,
        }
        found = str(Path(name).resolve()) if Path(name).is_dir() else name
        return cls(found, model, fields, batch_size)

    @property
    def made_by(self) -> dict[str, Any]:
        """The flat record: `encoder` (its name), `fingerprint` and all fields."""
        return {"encoder": self.name, "fingerprint": self.fingerprint, **self.fields}

    def scores(self, pairs: Sequence[tuple[str, str]], on_progress: "OnProgress | None" = None) -> NDArray[np.float32]:
        """The score of each pair of a query and a text, (pairs,), the higher the better.

        Pairs of like length, in tokens, go through the model together. Which ones do changes the last bits of a score.

        Raises:
            InputError: A score is not finite, or one pair alone does not fit into memory.
        """
        out = np.empty(len(pairs), np.float32)
        order = np.argsort(-self._lengths(pairs), kind="stable")
        for start in range(0, len(pairs), self.batch_size):
            rows = order[start : start + self.batch_size]
            out[rows] = self._batch([pairs[row] for row in rows.tolist()])
            if on_progress:
                on_progress(min(start + self.batch_size, len(pairs)), len(pairs))
        wrong = np.flatnonzero(~np.isfinite(out))
        if len(wrong):
            query = " ".join(pairs[wrong[0]][0].split())[:60]
            raise InputError(
                f"{self.name} gives a pair of query {query!r} the score {out[wrong[0]]}; the model is broken, or "
                f"{self.fields['dtype']} too narrow for it"
            )
        return out

    def rerank(self, query: str, hits: Sequence[Hit], depth: int = DEPTH) -> list[Hit]:
        """Put the first hits of a query in the order of the cross-encoder's scores; see `rerank_many`."""
        return self.rerank_many([query], [hits], depth)[0]

    def rerank_many(
        self,
        queries: Sequence[str],
        hits_lists: Sequence[Sequence[Hit]],
        depth: int = DEPTH,
        *,
        on_progress: "OnProgress | None" = None,
    ) -> list[list[Hit]]:
        """Put the first hits of each query in the order of the cross-encoder's scores.

        Args:
            queries: Texts.
            hits_lists: Of each query its hits, best first, with their texts, such as `Retriever.search` gives.
            depth: How many of them to score; `reordered` says what becomes of the others.
            on_progress: Called with the pairs scored so far and their total.

        Raises:
            InputError: depth < 1, not as many lists as queries, or one of the first hits has no text.
        """
        texts = [[hit.text for hit in hits[: _checked(depth)]] for hits in hits_lists]
        return self.reranked(queries, hits_lists, texts, on_progress)

    def reranked(
        self,
        queries: Sequence[str],
        hits_lists: Sequence[Sequence[Hit]],
        texts: Sequence[Sequence[str | None]],
        on_progress: "OnProgress | None" = None,
    ) -> list[list[Hit]]:
        """The same with the texts of each query's first hits beside them: as many hits are scored as there are texts.

        Raises:
            InputError: Not as many lists as queries, or a text is missing.
        """
        if not len(queries) == len(hits_lists) == len(texts):
            raise InputError(f"found {len(queries)} queries and {len(hits_lists)} lists of hits; expected as many")
        pairs = []
        for query, hits, some in zip(queries, hits_lists, texts, strict=True):
            for hit, text in zip(hits, some, strict=False):
                if text is None:
                    raise InputError(
                        f"the text of document {hit.id!r} is not here, and a cross-encoder reads texts; index the "
                        "documents too (without --dense-only), or search with texts"
                    )
                pairs.append((query, text))
        scores = iter(np.split(self.scores(pairs, on_progress), np.cumsum([len(some) for some in texts])[:-1]))
        return [reordered(hits, next(scores)) for hits in hits_lists]

    def _lengths(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.int64]:
        """How many tokens of each pair (pairs,) the model reads."""
        tokenizer, longest = self._model.tokenizer, self.fields["max_length"]
        whole = list(dict.fromkeys(text for pair in pairs for text in pair))
        options = {"add_special_tokens": False, "truncation": False, "padding": False, "verbose": False}
        tokens = tokenizer(whole, **options)["input_ids"] if whole else []
        of_text = dict(zip(whole, map(len, tokens), strict=True))
        prompt = self.fields["prompt"]
        special = tokenizer.num_special_tokens_to_add(pair=True)
        special += len(tokenizer(prompt, **options)["input_ids"]) if prompt else 0
        lengths = np.array([of_text[query] + of_text[text] + special for query, text in pairs], np.int64)
        self.truncated += int(np.count_nonzero(lengths > longest))
        return np.minimum(lengths, longest)

    def _batch(self, pairs: list[tuple[str, str]]) -> NDArray[np.float32]:
        """Scores of pairs that go through the model together, or in halves where memory runs out."""
        from retrieval.torch_backend import out_of_memory

        try:
            return np.asarray(
                self._model.predict(pairs, batch_size=len(pairs), show_progress_bar=False), dtype=np.float32
            ).reshape(len(pairs))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        if len(pairs) == 1:
            raise InputError(f"no memory for one pair of texts on {self._model.device}; lower max_length")
        if self._model.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()
        half = len(pairs) // 2
        return np.concatenate([self._batch(pairs[:half]), self._batch(pairs[half:])])


class FirstStage(Protocol):
    """What finds the hits that are reranked: a `Retriever`, for one."""

    @property
    def modes(self) -> tuple[str, ...]:
        """The ways to search, the last one being the usual one."""

    def search_many(self, texts: Sequence[str], k: int, *, mode: str) -> Sequence[Sequence[Hit]]:
        """Find at most k hits for each text."""

    def texts(self, ids: Sequence[str]) -> Sequence[str | None]:
        """The texts of documents; None where there is none."""


class Reranked:
    """A retriever with a second stage: searched like it, in its modes, and in each of them `+rerank`.

    Args:
        searcher: The first stage, such as a `Retriever`.
        reranker: The second one.
        depth: How many hits of each query are scored again; those behind them keep their order (`reordered`).

    Raises:
        InputError: depth < 1.
    """

    def __init__(self, searcher: FirstStage, reranker: Reranker, depth: int = DEPTH) -> None:
        self.searcher = searcher
        self.reranker = reranker
        self.depth = _checked(depth)

    @property
    def modes(self) -> tuple[str, ...]:
        """The first stage's modes, then each of them reranked; the last one is the usual one."""
        return *self.searcher.modes, *(mode + SUFFIX for mode in self.searcher.modes)

    @property
    def queries_at_once(self) -> int:
        """How many queries to search together, so that progress can be seen: some 2,000 pairs."""
        return max(1, _PAIRS_AT_ONCE // self.depth)

    @property
    def notices(self) -> tuple[str, ...]:
        """What the first stage has to say of itself."""
        return tuple(getattr(self.searcher, "notices", ()))

    def search(self, text: str, k: int = 10, *, mode: str | None = None, **how: Any) -> list[Hit]:
        """Find the k best documents for one query, with their texts; `how` as for the first stage's `search`."""
        first, again = self._stages(mode)
        search: Any = self.searcher.search  # type: ignore[attr-defined]
        hits = search(text, max(k, self.depth) if again else k, mode=first, **how)
        return self.reranker.rerank(text, hits, self.depth)[:k] if again else hits

    def search_many(self, texts: Sequence[str], k: int = 10, *, mode: str | None = None, **how: Any) -> list[list[Hit]]:
        """Find the k best documents for each query, without their texts; `how` as for the first stage's."""
        first, again = self._stages(mode)
        hits = self.searcher.search_many(texts, max(k, self.depth) if again else k, mode=first, **how)
        return self._rerank(texts, hits, k) if again else [list(some) for some in hits]

    def search_queries(self, queries: Mapping[str, str], k: int, *, mode: str | None = None) -> list[list[Hit]]:
        """Find the k best documents for each query (id to text), where the first stage goes by the queries' ids."""
        by_id: Any = getattr(self.searcher, "search_queries", None)
        if by_id is None:
            return self.search_many(list(queries.values()), k, mode=mode)
        first, again = self._stages(mode)
        hits = by_id(queries, max(k, self.depth) if again else k, mode=first)
        return self._rerank(list(queries.values()), hits, k) if again else [list(some) for some in hits]

    def _stages(self, mode: str | None) -> tuple[str, bool]:
        """The first stage's mode, and whether its hits are reranked."""
        mode = mode or self.modes[-1]
        if mode not in self.modes:
            raise InputError(f"unknown mode {mode!r}; there are {', '.join(self.modes)}")
        return mode.removesuffix(SUFFIX), mode.endswith(SUFFIX)

    def _rerank(self, queries: Sequence[str], hits_lists: Sequence[Sequence[Hit]], k: int) -> list[list[Hit]]:
        first = [[hit.id for hit in hits[: self.depth]] for hits in hits_lists]
        found = iter(self.searcher.texts([one for some in first for one in some]))
        of_hits = [[next(found) for _ in some] for some in first]
        return [hits[:k] for hits in self.reranker.reranked(queries, hits_lists, of_hits)]


def reordered(hits: Sequence[Hit], scores: NDArray[np.float32]) -> list[Hit]:
    """Put the first hits in the order of new scores, the best first.

    Ties go by id, descending, as trec_eval has them. Hits beyond the scores keep their order behind the others: the
    least new score less 1, less 2 and so on (or the next smaller float32, where that is no other number), so that a
    run file says the same order.

    Args:
        hits: Of one query, best first.
        scores: (m,) of the first m of them.
    """
    count = min(len(hits), len(scores))
    order = sorted(range(count), key=lambda row: hits[row].id, reverse=True)
    order.sort(key=lambda row: -float(scores[row]))
    found = [hits[row]._replace(score=float(scores[row])) for row in order]
    least = last = np.float32(found[-1].score if found else 0)
    for place, hit in enumerate(hits[count:], start=1):
        last = min(np.float32(float(least) - place), np.nextafter(last, np.float32(-np.inf)))
        found.append(hit._replace(score=float(last)))
    return [hit._replace(rank=rank) for rank, hit in enumerate(found, start=1)]


def _checked(depth: int) -> int:
    if depth < 1:
        raise InputError(f"the depth of reranking is {depth}; expected at least 1")
    return depth


def _load(name: str, dtype: str, activation: str | None, device: str) -> Any:
    folder = resolve(name)
    _refuse_others(name, folder)
    import sentence_transformers
    import torch

    chosen = {"sigmoid": torch.nn.Sigmoid, "identity": torch.nn.Identity}
    options = {"dtype": getattr(torch, dtype), "use_safetensors": True}

    def load() -> Any:
        made = None if activation is None else chosen[activation]()
        return sentence_transformers.CrossEncoder(
            str(folder), device=device, activation_fn=made, model_kwargs=dict(options), local_files_only=True
        )

    model = load_whole(name, "a cross-encoder", load)
    if type(model.transformers_model).__name__.endswith("ForCausalLM"):
        raise InputError(f"{name} is a language model that is asked yes or no; expected a …ForSequenceClassification")
    if model.num_labels != 1:
        raise InputError(f"{name} gives {model.num_labels} numbers for a pair; expected a cross-encoder that gives one")
    return model.eval()


def _refuse_others(name: str, folder: Path) -> None:
    """Refuse a folder that is another kind of model, or has no safetensors."""
    if (folder / "modules.json").is_file():
        kind = _optional(folder / "config_sentence_transformers.json").get("model_type", "SentenceTransformer")
        if kind != "CrossEncoder":
            raise InputError(f"{name} is a {kind}; a second stage takes a CrossEncoder, which reads query and document")
    else:
        kinds = _optional(folder / "config.json").get("architectures") or ()
        if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
            found = ", ".join(kinds) or "no config.json that says what it is"
            raise InputError(f"{name} is no cross-encoder ({found}); expected a …ForSequenceClassification")
    if not any(folder.rglob("*.safetensors")):
        raise InputError(f"{name} has no safetensors file; other weights are not read: convert it")


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _activation_name(activation: Any) -> str:
    kind = type(activation).__name__
    return kind.lower() if kind in ("Sigmoid", "Identity") else repr(activation)
