"""What a text's first token attends to in an encoder's last layer, without the attention of any other token."""

import contextlib
from typing import Any

import torch
from torch import Tensor

from indexes.errors import InputError
from pretraining.backbones import Backbone
from pretraining.layers import LAYERS, layers_of

READABLE = ("bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "modernbert")
"""The families, by transformers' `model_type`, whose scores of a token are a product of its query with all keys, and
what depends on the distance alone. (DeBERTa's are sums of three products.)"""
_JOINT = "attn.Wqkv"


def refuse_unreadable(backbone: Backbone) -> None:
    """Refuse an encoder whose attention is not computed here.

    Raises:
        InputError: Its family is not among `READABLE`.
    """
    kind = backbone.config.model_type
    if kind not in READABLE:
        raise InputError(
            f"the encoder is a {kind} model; the attention of its first token can be read from {', '.join(READABLE)}: "
            "choose such an encoder"
        )


@torch.no_grad()
def first_token_attention(backbone: Backbone, ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The attention of each text's first token to all of its tokens in the last layer, the mean of the heads.

    The encoder runs as it always does, by whichever kernel is fastest; the last layer's queries and keys are overheard
    on the way, and one row of attention is computed from them, in float32: softmax(q₀ Kᵀ / √(d / heads) + bias).

    Args:
        backbone: An encoder that `refuse_unreadable` lets pass.
        ids: Token ids (b, t).
        attention_mask: (b, t), 1 for tokens.

    Returns:
        (b, t) float32, 0 for padding; each row's sum is 1.
    """
    kind, heads = backbone.config.model_type, backbone.config.num_attention_heads
    layer, heard = layers_of(backbone.module)[-1], dict[int, Tensor]()
    relations = LAYERS[kind].relations
    names = (_JOINT,) if relations is None else relations[:2]
    with contextlib.ExitStack() as hooks:
        for number, name in enumerate(names):

            def hear(module: Any, inputs: Any, output: Tensor, number: int = number) -> None:
                heard[number] = output

            hooks.callback(layer.get_submodule(name).register_forward_hook(hear).remove)
        backbone.run(ids, attention_mask)
    if relations is None:
        queries, keys, _ = heard[0].float().unflatten(-1, (3, heads, -1)).unbind(2)  # (b, t, h, e)
        queries, keys = _rotated(backbone, layer, queries[:, :1]), _rotated(backbone, layer, keys)
    else:
        queries, keys = (heard[number].float().unflatten(-1, (heads, -1)) for number in range(2))
    scores = torch.einsum("bhe,bthe->bht", queries[:, 0], keys) / keys.shape[-1] ** 0.5
    if kind == "mpnet":
        scores = scores + backbone.module.encoder.compute_position_bias(ids[:1, :, None])[:, :, 0]  # (1, h, t)
    visible = attention_mask.bool() & _near(backbone, layer, ids.shape[1]).to(ids.device)  # (b, t)
    return scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1).mean(1)


def _rotated(backbone: Backbone, layer: Any, vectors: Tensor) -> Tensor:
    """ModernBERT's queries or keys (b, t, h, e), turned by their positions."""
    places = torch.arange(vectors.shape[1], device=vectors.device)[None]
    cosines, sines = backbone.module.rotary_emb(vectors, places, layer.attention_type)  # (1, t, e) each
    first, second = vectors.chunk(2, -1)
    turned = torch.cat((-second, first), -1)
    return vectors * cosines[:, :, None] + turned * sines[:, :, None]


def _near(backbone: Backbone, layer: Any, tokens: int) -> Tensor:
    """Which tokens (t) the first one may see: all, but where ModernBERT's layer is a local one."""
    far = backbone.config.sliding_window if getattr(layer, "attention_type", "") == "sliding_attention" else tokens
    return torch.arange(tokens) <= far
