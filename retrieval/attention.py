"""How a transformer attends: backwards only or in both directions, and how sharply."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from indexes.errors import InputError

DIRECTIONS = ("causal", "bidirectional")

_BERT = ("attention.self.query",)
_LLAMA = ("self_attn.q_proj",)
_NORMED = ("self_attn.q_norm",)
_QUERIES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    "distilbert": ("attention.q_lin",),
    "mpnet": ("attention.attn.q", "encoder.relative_attention_bias"),
    "deberta-v2": ("attention.self.query_proj", "attention.self.pos_query_proj"),
    "modernbert": ("attn.Wqkv",),
    **dict.fromkeys(("qwen2", "llama", "mistral"), _LLAMA),
    **dict.fromkeys(("qwen3", "gemma3_text"), _NORMED),
}
"""By transformers' `model_type`: the modules of which attention logits are a linear function, whatever is added up."""
_FUSED = "attn.Wqkv"
"""One map that makes queries, keys and values, a third each."""
_SAME = 1e-5


def set_direction(backbone: Any, direction: str | None, name: str) -> None:
    """Have a transformer attend in the direction that is asked for.

    A decoder whose tokens see all others, not only those before them, encodes texts better once it is trained to
    (LLM2Vec, arXiv:2404.05961; KaLM-Embedding-V2, arXiv:2506.20923). The switch is `is_causal` in the model's settings,
    which its `config.json` keeps, so that sentence-transformers and transformers (5.2 or later) obey it too.

    Args:
        backbone: Of the transformers library.
        direction: `causal`, `bidirectional`, or None: leave it as it is.
        name: What the user calls the model.

    Raises:
        InputError: No such direction, the folder records another one, or the family cannot be switched.
    """
    if direction is None:
        return
    if direction not in DIRECTIONS:
        raise InputError(f"attention is {direction!r}; expected {' or '.join(DIRECTIONS)}")
    kind, recorded = backbone.config.model_type, is_bidirectional(backbone.config)
    ahead = looks_ahead(backbone)
    if direction == "causal":
        if ahead:
            raise InputError(f"{name} attends in both directions by its own settings; leave attention out")
        return
    if recorded and ahead:
        return
    if ahead:
        raise InputError(f"{name} is a {kind} model, which attends in both directions anyway; leave attention out")
    backbone.config.is_causal = False
    if not looks_ahead(backbone):
        raise InputError(f"{name} is a {kind} model, which cannot be made to attend in both directions")


def is_bidirectional(config: Any) -> bool:
    """Whether a model's settings switch its causal attention off."""
    return getattr(config, "is_causal", None) is False


def looks_ahead(backbone: Any) -> bool:
    """Whether a token's state depends on tokens after it, found out by changing some."""
    size = backbone.config.get_text_config().vocab_size
    first = torch.arange(8)[None] + size // 3  # (1, t), not the special ones
    second = torch.cat((first[:, :4], first[:, 4:] + size // 4), 1)
    one, other = (_states(backbone, ids % size)[:, :4] for ids in (first, second))  # (1, 4, d) each
    return bool((one - other).norm() > _SAME * one.norm())


def _states(backbone: Any, ids: Tensor) -> Tensor:
    """The last layer of one text alone, so that two texts of one length are computed in the same way: (1, t, d)."""
    ids = ids.to(next(backbone.parameters()).device)
    with torch.inference_mode():
        return backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.float()


def set_temperature(backbone: Any, temperature: float | None, name: str) -> None:
    """TempScale: have every layer attend by softmax(logits / temperature); None changes nothing.

    Attention over long texts is spread thin, so that their vectors come out alike (length collapse); a temperature
    below 1 sharpens it, without training (Zhou et al., Length-Induced Embedding Collapse, arXiv:2410.24200). Masks are
    not touched. Logits are linear in the queries, which is where they are divided.

    Raises:
        InputError: The temperature is not a number above 0, or the family is not one of those known here.
    """
    if temperature is None:
        return
    if not (math.isfinite(temperature) and temperature > 0):
        raise InputError(f"attention_temperature is {temperature}; expected a number above 0, usually 0.7 to 1")
    kind = backbone.config.model_type
    if kind not in _QUERIES:
        raise InputError(
            f"{name} is a {kind} model; attention_temperature is known for {', '.join(_QUERIES)}: leave it out"
        )
    if temperature == 1:
        return
    divide = _divided_by(temperature)
    for place, module in backbone.named_modules():
        if f".{place}".endswith(tuple(f".{end}" for end in _QUERIES[kind])):
            module.register_forward_hook(_first_third(divide) if place.endswith(_FUSED) else divide)


def _divided_by(temperature: float) -> Callable[[Any, Any, Tensor], Tensor]:
    return lambda module, inputs, output: output / temperature


def _first_third(change: Callable[[Any, Any, Tensor], Tensor]) -> Callable[[Any, Any, Tensor], Tensor]:
    def changed(module: Any, inputs: Any, output: Tensor) -> Tensor:
        queries, rest = output.tensor_split([output.shape[-1] // 3], dim=-1)
        return torch.cat((change(module, inputs, queries), rest), -1)

    return changed
