"""Tiny models of every family of encoders."""

from transformers import AutoConfig

from pretraining.backbones import FAMILIES

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1,
    "sep_token_id": 2, "type_vocab_size": 2, "relative_attention": True, "position_biased_input": False,
    "pos_att_type": ["p2c", "c2p"], "dim": 16, "n_heads": 2, "n_layers": 2, "hidden_dim": 32,
}  # fmt: skip
KINDS = {**{kind: {} for kind in FAMILIES}, "deberta-v2 of another head": {"legacy": False}}


def config_of(kind, tokenizer, **changes):
    """Settings of a model of 2 layers × 16 with a tokenizer's vocabulary."""
    family = kind.split(" ")[0]
    known = AutoConfig.for_model(family)
    sizes = {name: value for name, value in SIZES.items() if hasattr(known, name)}
    changes = {**KINDS[kind], **changes, "vocab_size": len(tokenizer)}
    return AutoConfig.for_model(family, **{**sizes, **changes})
