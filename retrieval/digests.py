"""What an encoder is made of, as digests: weights, architecture, tokenizer."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from indexes.checksums import fingerprint

_ARCHITECTURE = (
    "model_type",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "layer_norm_eps",
    "norm_eps",
    "rms_norm_eps",
    "position_embedding_type",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "layer_types",
    "sliding_window",
    "local_attention",
    "is_decoder",
)


def weights_digest(tensors: Mapping[str, Any]) -> str:
    """SHA-256 over every tensor's name, type, shape and bytes: the same for any file format."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{plain.dtype}|{tuple(plain.shape)}\0".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def architecture_digest(config: Any) -> str:
    """SHA-256 of the settings by which the same weights compute something else: heads, positions, direction."""
    found = {name: getattr(config, name, None) for name in _ARCHITECTURE}
    # Recorded only where they are not the family's default, so that all other models keep their digests.
    found["is_causal"] = False if getattr(config, "is_causal", None) is False else None
    found["use_bidirectional_attention"] = getattr(config, "use_bidirectional_attention", None) or None
    return fingerprint({name: value for name, value in found.items() if value is not None})


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of everything that decides how a tokenizer splits text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return fingerprint(sorted(tokenizer.get_vocab().items()))
    state = json.loads(backend.to_str())
    # Set anew at every call, so no part of what the tokenizer is.
    return fingerprint({name: value for name, value in state.items() if name not in ("truncation", "padding")})


def modules_digest(model: Any) -> str:
    """SHA-256 of what decides how a model of sentence-transformers computes, beside its weights."""
    return fingerprint([_described(*one) for one in model.named_modules() if one[0]])


def _described(place: str, module: Any) -> list[Any]:
    tokenizer = getattr(module, "tokenizer", None)
    length = getattr(module, "max_seq_length", None)
    settings = module.get_config_dict() if hasattr(module, "get_config_dict") else None
    return [place, type(module).__name__, settings, length, None if tokenizer is None else tokenizer_digest(tokenizer)]
