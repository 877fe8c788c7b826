"""Tiny random decoder language models, as model folders."""

import json
from pathlib import Path

from fixtures import WORDS

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DECODERS = {
    "qwen3": {"head_dim": 8},
    "llama": {},
    "mistral": {"sliding_window": 8},
}
"""Their settings; all have two heads of queries to one of keys, and mistral sees 8 tokens far."""


def make_tokenizer(*, bos: bool = False, eos: bool = False, side: str = "left"):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "<s>", "</s>", "<unk>", *WORDS, "Instruct", "Query", ":", "."]
    engine = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos or eos:
        text = " ".join(["<s>"] * bos + ["$A"] + ["</s>"] * eos)
        engine.post_processor = processors.TemplateProcessing(single=text, special_tokens=[("<s>", 1), ("</s>", 2)])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=engine, padding_side=side, model_max_length=64, **names)


def make_plain_decoder(folder: Path, kind: str = "qwen3", *, declares_eos: bool = False, **tokenizer) -> Path:
    """A transformers folder of 2 layers and 32 dimensions; by default texts begin with <s> and end with nothing."""
    import torch
    from transformers import AutoConfig, AutoModel

    made = make_tokenizer(**{"bos": True, **tokenizer})
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=len(made), **SIZES, **DECODERS[kind])
    AutoModel.from_config(config).save_pretrained(folder)
    made.save_pretrained(folder)
    if declares_eos:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "add_eos_token": True}))
    return folder


def make_decoder(folder: Path, kind: str = "qwen3", *, pooling: str = "lasttoken", prompts=None, **tokenizer) -> Path:
    """A sentence-transformers folder around it; texts end with </s>, batches are padded on the left."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    plain = make_plain_decoder(folder.parent / f"{folder.name}-plain", kind, **{"eos": True, **tokenizer})
    modules = [Transformer(str(plain), max_seq_length=32), Pooling(32, pooling_mode=pooling), Normalize()]
    SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save_pretrained(str(folder))
    return folder
