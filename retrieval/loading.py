"""From a model folder to the torch module that computes its vectors."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from indexes.errors import InputError
from retrieval.digests import weights_digest
from retrieval.model_folder import ModelFolder

if TYPE_CHECKING:
    from retrieval.torch_backend import EmbeddingModule


def load_module(name: str, settings: ModelFolder, dim: int | None, dtype: str) -> "tuple[EmbeddingModule, Any]":
    """Load the transformer and what follows it, and its tokenizer."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer

    from retrieval.torch_backend import EmbeddingModule

    try:
        with quiet():
            options = {"dtype": getattr(torch, dtype), "output_loading_info": True}
            backbone, report = AutoModel.from_pretrained(settings.backbone, **options)
            tokenizer = AutoTokenizer.from_pretrained(settings.backbone)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"{name} cannot be loaded as a model: {' '.join(str(error).split())[:200]}") from None
    _leave_pooler_out(backbone, report["missing_keys"], name)
    dense = settings.dense_layers()
    own = int(dense[-1].out_features if dense else backbone.config.hidden_size)
    if dim is not None and not 1 <= dim <= own:
        raise InputError(f"dim is {dim}; expected 1 to {own}, the model's own")
    module = EmbeddingModule(backbone, settings.pooling, dense, dim=dim or own, normalize=settings.normalize)
    return module.eval().requires_grad_(False), tokenizer


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


def load_whole(name: str, kind: str, load: Callable[[], Any]) -> Any:
    """Load a model of sentence-transformers, and see to it that no weight was invented.

    Args:
        name: What the user calls it.
        kind: What it should be, such as "a sparse encoder".
        load: Loads it.

    Raises:
        InputError: It cannot be loaded, or its folder lacks weights: two loads under two seeds differ.
    """
    import torch
    from safetensors import SafetensorError

    digests = set()
    try:
        for seed in range(2):  # what the folder lacks is invented, and otherwise each time
            with quiet(), torch.random.fork_rng():
                torch.manual_seed(seed)
                model = load()
            digests.add(weights_digest(dict(model.state_dict())))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{name} cannot be loaded as {kind}: {' '.join(str(error).split())[:200]}") from None
    if len(digests) > 1:
        raise InputError(f"{name} lacks weights; it is not a whole model: get it again")
    return model


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
