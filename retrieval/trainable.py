"""Models of sentence-transformers, loaded in float32 to be trained."""

from pathlib import Path
from typing import Any

from indexes.errors import InputError
from indexes.manifest import read_json
from retrieval.loading import load_sentence_transformer, load_whole, quiet
from retrieval.model_folder import resolve

_UNLIMITED = 1_000_000


def load_dense(
    name: str, *, pooling: str | None = None, attention: str | None = None, append_eos: bool | None = None
) -> tuple[Any, bool]:
    """A SentenceTransformer, and whether its vectors are of unit length; options as those of `Encoder.load`.

    Raises:
        InputError: No such model, one that retrokit cannot encode with, or one that does not say how it pools.
    """
    from sentence_transformers.sentence_transformer.modules import Normalize

    model = load_sentence_transformer(name, pooling=pooling, attention=attention, append_eos=append_eos)
    return model, isinstance(model[-1], Normalize)


def load_sparse(name: str) -> Any:
    """A SparseEncoder that pools a masked-language model's logits, as SPLADE does.

    Raises:
        InputError: No such model, or one without a head over words.
    """
    import torch
    from sentence_transformers import SparseEncoder

    folder = str(resolve(name))
    options = {"device": "cpu", "model_kwargs": {"dtype": torch.float32}}
    model = load_whole(name, "a sparse encoder", lambda: SparseEncoder(folder, **options))
    kind = type(model[-1]).__name__
    if kind != "SpladePooling":
        raise InputError(f"{name} ends in {kind}; kind sparse needs a SPLADE folder or a masked-language model")
    return model


def load_cross_encoder(name: str, seed: int, max_length: int | None) -> Any:
    """A CrossEncoder with one score; what is no classifier yet gets a new last layer.

    Raises:
        InputError: No such model, a classifier of several labels, or one that records no length where none is given.
    """
    import torch
    from safetensors import SafetensorError
    from sentence_transformers import CrossEncoder

    folder = resolve(name)
    _refuse_labels(folder, name)
    options: dict[str, Any] = {"num_labels": 1, "device": "cpu", "model_kwargs": {"dtype": torch.float32}}
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = CrossEncoder(str(folder), **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{name} cannot be loaded as a cross-encoder: {' '.join(str(error).split())[:200]}") from None
    if (model.max_seq_length or _UNLIMITED) >= _UNLIMITED:
        if max_length is None:
            raise InputError(f"{name} records no maximal length; give max_length")
        model.max_seq_length = max_length
    return model


def _refuse_labels(folder: Path, name: str) -> None:
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    kind = str((config.get("architectures") or [""])[0])
    labels = len(config.get("id2label") or {}) or 2
    if kind.endswith("ForSequenceClassification") and labels != 1:
        raise InputError(f"{name} is a classifier of {labels} labels; expected one of 1, or an encoder without them")
