"""A tiny encoder and random texts, made by tests."""

import string
from pathlib import Path

import numpy as np

WORDS = "river stone green walk night paper music water house train cat dog market bank tree cloud".split()
SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}


def make_model(folder: Path, *, pooling: str = "mean", normalize: bool = True, prompts=None, seed: int = 0) -> Path:
    """A sentence-transformers folder around a random BERT of 2 layers and 32 dimensions."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    pieces = [*string.ascii_lowercase, *string.digits, *(f"##{letter}" for letter in string.ascii_lowercase)]
    vocabulary = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", ".", ",", *WORDS, *pieces]
    tokenizer = BertTokenizerFast(vocab={word: number for number, word in enumerate(vocabulary)}, model_max_length=64)
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=len(vocabulary), num_hidden_layers=2, **SIZES)
    plain = folder.parent / f"{folder.name}-plain"
    BertModel(config).save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    transformer = Transformer(str(plain), max_seq_length=32)
    modules = [transformer, Pooling(32, pooling_mode=pooling), *([Normalize()] if normalize else [])]
    SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save_pretrained(str(folder))
    return folder


def random_texts(count: int, seed: int = 0, longest: int = 30) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(3, longest))) for _ in range(count)]


def make_sparse(folder: Path, *, seed: int = 0, **options) -> Path:
    """A SPLADE folder around a random masked-language model of one layer over the same vocabulary."""
    import torch
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    base = make_model(folder.parent / f"{folder.name}-dense")
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=len(tokenizer), num_hidden_layers=1, **SIZES)
    plain = folder.parent / f"{folder.name}-mlm"
    BertForMaskedLM(config).save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    modules = [MLMTransformer(str(plain), max_seq_length=32), SpladePooling("max")]
    SparseEncoder(modules=modules, device="cpu", **options).save_pretrained(str(folder))
    return folder


def make_cross_encoder(folder: Path, *, seed: int = 0, labels: int = 1) -> Path:
    """A random cross-encoder of one layer over the same vocabulary, as transformers saves classifiers of pairs."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    base = make_model(folder.parent / f"{folder.name}-dense")
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=len(tokenizer), num_hidden_layers=1, num_labels=labels, **SIZES)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
