"""From a model folder to the torch module that computes its vectors."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from indexes.errors import InputError
from retrieval.digests import weights_digest
from retrieval.model_folder import ModelFolder, changed, read_model_folder, resolve
from retrieval.tokenizing import end_texts

if TYPE_CHECKING:
    from retrieval.torch_backend import EmbeddingModule


class Loaded(NamedTuple):
    """A model, ready to compute."""

    module: "EmbeddingModule"
    tokenizer: Any
    options: dict[str, Any]
    """Of what was asked for, that which cannot be seen in the model and its tokenizer, or must be asked for again."""


def load_module(
    name: str,
    settings: ModelFolder,
    dim: int | None,
    dtype: str,
    *,
    attention: str | None = None,
    attention_temperature: float | None = None,
    append_eos: bool | None = None,
) -> Loaded:
    """Load the transformer and what follows it, and its tokenizer; options as those of `Encoder.load`."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer

    from retrieval.attention import set_temperature
    from retrieval.torch_backend import EmbeddingModule

    try:
        with quiet():
            options = {"dtype": getattr(torch, dtype), "output_loading_info": True}
            backbone, report = AutoModel.from_pretrained(settings.backbone, **options)
            tokenizer = AutoTokenizer.from_pretrained(settings.backbone)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"{name} cannot be loaded as a model: {' '.join(str(error).split())[:200]}") from None
    _leave_pooler_out(backbone, report["missing_keys"], name)
    if hasattr(backbone.config, "use_cache"):
        backbone.config.use_cache = False  # decoders keep keys and values for a next token that never comes
    chosen = _choose(backbone, tokenizer, settings, name, attention, append_eos)
    set_temperature(backbone, attention_temperature, name)
    if attention_temperature not in (None, 1):
        chosen["attention_temperature"] = float(attention_temperature)
    dense = settings.dense_layers()
    own = int(dense[-1].out_features if dense else backbone.config.hidden_size)
    if dim is not None and not 1 <= dim <= own:
        raise InputError(f"dim is {dim}; expected 1 to {own}, the model's own")
    module = EmbeddingModule(backbone, settings.pooling, dense, dim=dim or own, normalize=settings.normalize)
    return Loaded(module.eval().requires_grad_(False), tokenizer, chosen)


def _choose(
    backbone: Any, tokenizer: Any, settings: ModelFolder, name: str, attention: str | None, append_eos: bool | None
) -> dict[str, Any]:
    """Set direction and end of text; gives those that a later load has to be told of again."""
    from retrieval.attention import is_bidirectional, set_direction

    set_direction(backbone.eval(), attention, name)
    chosen: dict[str, Any] = {"attention": "bidirectional"} if is_bidirectional(backbone.config) else {}
    if end_texts(tokenizer, append_eos, declared=settings.declares_eos, name=name):
        chosen["append_eos"] = append_eos
    return chosen


def load_sentence_transformer(
    name: str,
    *,
    pooling: str | None = None,
    max_length: int | None = None,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    attention: str | None = None,
    append_eos: bool | None = None,
    dtype: str = "float32",
    device: str = "cpu",
) -> Any:
    """Load an encoder as sentence-transformers trains it: a `SentenceTransformer` that gives `Encoder`'s vectors.

    Options are those of `Encoder.load`; what they change is saved with the model, so that the folder that
    `save_pretrained` writes needs none of them, here or in sentence-transformers. (PEFT saves adapters alone, without
    the settings of their base: merge them before saving.) The attention's temperature is not among them: no folder of
    sentence-transformers can hold it.

    Raises:
        InputError: As `Encoder.load` does; also for a model that lacks weights.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    folder = resolve(name)
    settings = changed(
        read_model_folder(folder, pooling=pooling),
        max_length=max_length,
        query_prompt=query_prompt,
        document_prompt=document_prompt,
    )
    load_module(name, settings, None, dtype, attention=attention, append_eos=append_eos)  # refuses what is not whole
    kinds: dict[str, Any] = {"model_kwargs": {"dtype": getattr(torch, dtype)}}
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a pooler that the folder lacks is invented, and computes nothing
        if (folder / "modules.json").is_file():
            model = SentenceTransformer(str(folder), device=device, **kinds)
        else:
            transformer = Transformer(str(folder), **kinds)
            pool = Pooling(transformer.get_embedding_dimension(), pooling_mode=settings.pooling)
            model = SentenceTransformer(modules=[transformer, pool, Normalize()], device=device)
    _choose(model[0].auto_model, model.tokenizer, settings, name, attention, append_eos)
    if model.tokenizer.pad_token is None:  # Llama's: masked out, whatever it is
        model.tokenizer.pad_token = model.tokenizer.eos_token
    model.max_seq_length = settings.max_length
    model.prompts = {**(model.prompts or {}), **settings.prompts}
    return model.train()


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
