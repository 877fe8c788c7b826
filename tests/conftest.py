"""What all tests share: no network, real data where it is, a tiny encoder that is made here."""

import os
import socket
import string
from pathlib import Path

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).parents[1]
WORDS = "river stone green walk night paper music water house train cat dog market bank tree cloud".split()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    connect = socket.socket.connect

    def refuse(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise AssertionError(f"a test reached for the network: {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with real test collections (`beir/`, `sts/`); tests that need it skip where it is absent."""
    folder = Path(os.environ.get("RETROKIT_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "beir").is_dir():
        pytest.skip(f"no test collections at {folder}; set RETROKIT_TEST_DATA")
    return folder


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
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    plain = folder.parent / f"{folder.name}-plain"
    BertModel(config).save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    transformer = Transformer(str(plain), max_seq_length=32)
    modules = [transformer, Pooling(32, pooling_mode=pooling), *([Normalize()] if normalize else [])]
    SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def encoder(model_folder):
    from retrieval.encoder import Encoder

    return Encoder.load(str(model_folder))


def random_texts(count: int, seed: int = 0, longest: int = 30) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(3, longest))) for _ in range(count)]


@pytest.fixture
def documents():
    from retrieval.documents import Document

    return [Document(f"d{number}", text) for number, text in enumerate(random_texts(50))]


@pytest.fixture
def corpus_file(tmp_path, documents) -> Path:
    import json

    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"_id": d.id, "text": d.text}) + "\n" for d in documents))
    return path
