"""Text to vectors: an encoder with explicit pooling, prompts, length and normalisation, and its fingerprint."""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InputError
from indexes.manifest import fingerprint
from retrieval.model_folder import PACKAGED, ModelFolder, read_model_folder, resolve

if TYPE_CHECKING:
    from indexes.vectors import VectorStore
    from retrieval.console import OnProgress
    from retrieval.documents import Document

_TOKENS_IN_A_BATCH = {"cpu": 2048, "other": 32_768}
"""On a CPU a batch should stay in the cache: 2,048 tokens encode a quarter faster than 8,192 (benchmarks/LOG.md)."""


class Encoder:
    """Turns queries and documents into vectors of unit length (or raw ones, if the model folder says so).

    Make one with `Encoder.load`. Everything that changes a vector is in `fields`, read from the model folder and
    never guessed; `fingerprint` is the SHA-256 over it.

    Attributes:
        name: What it was loaded by.
        dim: d, the length of a vector.
        fields: weights and tokenizer (as digests), pooling, prompts, max_length, normalize, dim, dtype.
        fingerprint: SHA-256 over `fields`.
        truncated: How many texts so far were longer than max_length, so that their vectors read only their beginnings.
    """

    def __init__(self, name: str, settings: ModelFolder, backbone: Any, tokenizer: Any, dense: Sequence[Any]) -> None:
        self.name = name
        self.settings = settings
        self._backbone = backbone
        self._tokenizer = tokenizer
        self._dense = dense
        self._pool = _POOLINGS[settings.pooling]
        self.truncated = 0
        self._pad = int(tokenizer.pad_token_id or 0)
        dtype = str(backbone.dtype).removeprefix("torch.")
        self.dim = int(dense[-1].out_features if dense else backbone.config.hidden_size)
        modules = {"backbone": backbone, **{f"dense{number}": layer for number, layer in enumerate(dense)}}
        tensors = {f"{part}.{name}": value for part, one in modules.items() for name, value in one.state_dict().items()}
        self.fields: dict[str, Any] = {
            "weights": weights_digest(tensors),
            "tokenizer": tokenizer_digest(tokenizer),
            "pooling": settings.pooling,
            "query_prompt": settings.query_prompt,
            "document_prompt": settings.document_prompt,
            "max_length": settings.max_length,
            "normalize": settings.normalize,
            "dim": self.dim,
            "dtype": dtype,
        }
        self.fingerprint = fingerprint(self.fields)

    @classmethod
    def load(
        cls,
        name: str = PACKAGED,
        *,
        pooling: str | None = None,
        max_length: int | None = None,
        dtype: str = "float32",
    ) -> "Encoder":
        """Load an encoder.

        Args:
            name: A model folder that sentence-transformers loads, a name on the Hugging Face hub, or
                `all-MiniLM-L6-v2`, which the extra `embedded` carries (no network needed).
            pooling: `cls`, `mean`, `max` or `lasttoken`: needed where the folder records none, refused where it does.
            max_length: Cut texts at fewer tokens than the model's own length; encoding takes that much less time.
            dtype: float32, bfloat16 or float16; part of the fingerprint, since it changes the vectors.

        Raises:
            InputError: No such model, pooling unknown, or a module that this encoder cannot run.
        """
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModel, AutoTokenizer

        if dtype not in ("float32", "bfloat16", "float16"):
            raise InputError(f"dtype is {dtype!r}; expected float32, bfloat16 or float16")
        settings = read_model_folder(resolve(name), pooling=pooling)
        if max_length is not None:
            if not 3 <= max_length <= settings.max_length:
                raise InputError(f"max_length is {max_length}; expected 3 to {settings.max_length}, the model's own")
            settings = dataclasses.replace(settings, max_length=max_length)
        try:
            with quiet():
                options = {"dtype": getattr(torch, dtype), "output_loading_info": True}
                backbone, report = AutoModel.from_pretrained(settings.backbone, **options)
                tokenizer = AutoTokenizer.from_pretrained(settings.backbone)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise InputError(f"{name} cannot be loaded as a model: {' '.join(str(error).split())[:200]}") from None
        _leave_pooler_out(backbone, report["missing_keys"], name)
        dense = [module.to(getattr(torch, dtype)) for module in settings.dense_layers()]
        name = str(Path(name).resolve()) if Path(name).is_dir() else name  # found again from any working directory
        return cls(name, settings, backbone.eval().to(best_device()), tokenizer, [d.to(best_device()) for d in dense])

    @property
    def made_by(self) -> dict[str, Any]:
        """The flat record that vectors and index folders keep: `encoder` (its name), `fingerprint` and all fields."""
        return {"encoder": self.name, "fingerprint": self.fingerprint, **self.fields}

    def encode_queries(self, texts: Sequence[str], on_progress: "OnProgress | None" = None) -> NDArray[np.float32]:
        """Encode queries, each after the query prompt, to float32 (n, d); no texts give (0, d)."""
        return self._encode(self.settings.query_prompt, texts, on_progress)

    def encode_documents(self, texts: Sequence[str], on_progress: "OnProgress | None" = None) -> NDArray[np.float32]:
        """Encode documents, each after the document prompt, to float32 (n, d); no texts give (0, d).

        The text of a `Document` is its `content`: title, one space, text.
        """
        return self._encode(self.settings.document_prompt, texts, on_progress)

    def encode_corpus(
        self,
        documents: "Iterable[Document]",
        folder: str | Path,
        *,
        source: str | None = None,
        shard_rows: int = 2048,
        overwrite: bool = False,
        on_progress: "OnProgress | None" = None,
    ) -> "VectorStore":
        """Stream documents to a vectors folder; see `retrieval.encoding.encode_corpus`."""
        from retrieval.encoding import encode_corpus

        return encode_corpus(
            self,
            documents,
            Path(folder),
            source=source,
            shard_rows=shard_rows,
            overwrite=overwrite,
            on_progress=on_progress,
        )

    def _encode(self, prompt: str, texts: Sequence[str], on_progress: "OnProgress | None") -> NDArray[np.float32]:
        """Encode in batches of similar length: padding is waste, and a batch holds a fixed number of tokens."""
        if isinstance(texts, str):
            raise InputError("found one text; expected a list of texts")
        out = np.empty((len(texts), self.dim), dtype=np.float32)
        if not len(texts):
            return out
        texts = [prompt + text for text in texts]
        encoded = self._tokenizer(texts, truncation=True, max_length=self.settings.max_length)
        self.truncated += sum(bool(one.overflowing) for one in encoded.encodings or ())
        tokens = encoded["input_ids"]
        order = np.argsort([-len(ids) for ids in tokens], kind="stable")
        budget = _TOKENS_IN_A_BATCH["cpu" if self._backbone.device.type == "cpu" else "other"]
        done = 0
        while done < len(order):
            rows = order[done : done + max(1, budget // len(tokens[order[done]]))]
            out[rows] = self._forward([tokens[row] for row in rows])
            done += len(rows)
            if on_progress:
                on_progress(done, len(order))
        return out

    def _forward(self, tokens: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        import torch

        width = max(map(len, tokens))
        ids = torch.tensor([[*line, *[self._pad] * (width - len(line))] for line in tokens])  # (b, t)
        mask = torch.tensor([[1] * len(line) + [0] * (width - len(line)) for line in tokens])  # (b, t)
        device = self._backbone.device
        with torch.inference_mode():
            hidden = self._backbone(input_ids=ids.to(device), attention_mask=mask.to(device)).last_hidden_state
            vectors = self._pool(hidden, mask.to(device))  # (b, t, d) -> (b, d)
            for layer in self._dense:
                vectors = layer(vectors)
            if self.settings.normalize:
                vectors = torch.nn.functional.normalize(vectors, dim=-1)
        return vectors.float().cpu().numpy()


def pool_cls(hidden: Any, mask: Any) -> Any:
    """The first token's vector: (b, t, d), (b, t) -> (b, d)."""
    return hidden[:, 0]


def pool_mean(hidden: Any, mask: Any) -> Any:
    """The mean over real tokens: (b, t, d), (b, t) -> (b, d)."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)  # (b, t, 1)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def pool_max(hidden: Any, mask: Any) -> Any:
    """The largest value over real tokens: (b, t, d), (b, t) -> (b, d)."""
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, -float("inf")).max(1).values


def pool_last(hidden: Any, mask: Any) -> Any:
    """The last real token's vector: (b, t, d), (b, t) -> (b, d)."""
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)  # (b,)
    return hidden[range(len(hidden)), last]


_POOLINGS: dict[str, Callable[[Any, Any], Any]] = {
    "cls": pool_cls,
    "mean": pool_mean,
    "max": pool_max,
    "lasttoken": pool_last,
}


def best_device() -> str:
    """The fastest device torch can see: cuda, mps or cpu."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def _leave_pooler_out(backbone: Any, missing: Iterable[str], name: str) -> None:
    """Drop the pooler, which has no part in any vector: where the weights lack it, transformers invents one.

    Raises:
        InputError: Other weights are missing too; what the model would compute with invented ones is noise.
    """
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    lacking = sorted(key for key in missing if not key.startswith("pooler."))
    if lacking:
        raise InputError(f"{name} lacks {len(lacking)} weights, such as {lacking[0]}; it is not a whole model")


def bfloat16_is_faster() -> bool:
    """Whether this processor multiplies bfloat16 matrices clearly faster than float32 ones, by trying both."""
    import torch

    def seconds(dtype: Any) -> float:
        matrix = torch.ones(1024, 1024, dtype=dtype)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            matrix @ matrix
            times.append(time.perf_counter() - start)
        return min(times)

    return best_device() == "cpu" and seconds(torch.bfloat16) < 0.75 * seconds(torch.float32)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own progress bars and load reports off the terminal."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def weights_digest(tensors: Mapping[str, Any]) -> str:
    """SHA-256 over every tensor's name, type, shape and bytes: the same for any file format."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{plain.dtype}|{tuple(plain.shape)}\0".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of everything that decides how a tokenizer splits text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return fingerprint(sorted(tokenizer.get_vocab().items()))
    state = json.loads(backend.to_str())
    # Set anew at every call, so no part of what the tokenizer is.
    return fingerprint({name: value for name, value in state.items() if name not in ("truncation", "padding")})
