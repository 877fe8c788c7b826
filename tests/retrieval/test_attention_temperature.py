"""TempScale: attention logits divided by a temperature, in every family, layer and backend, and in every record."""

import importlib.util

import numpy as np
import pytest
import torch
from decoders import DECODERS, SIZES
from families import KINDS, config_of
from fixtures import random_texts
from transformers import AutoConfig, AutoModel
from typer.testing import CliRunner

from indexes.errors import InputError
from indexes.vectors import VectorStore
from retrieval.attention import set_temperature
from retrieval.cli import build_app
from retrieval.encoder import Encoder
from retrieval.retriever import Retriever

TEXTS = random_texts(12, seed=1, longest=60)
WORDS = range(60)


def config_of_any(kind):
    if kind in DECODERS or kind == "qwen2":
        return AutoConfig.for_model(kind, vocab_size=60, **SIZES, **DECODERS.get(kind, {}))
    if kind == "gemma3_text":
        return AutoConfig.for_model(kind, vocab_size=60, **SIZES, head_dim=8, use_bidirectional_attention=True)
    if kind in ("camembert", "electra"):
        small = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
        return AutoConfig.for_model(kind, vocab_size=60, **small)
    return config_of(kind, WORDS, initializer_range=0.5)


@pytest.mark.parametrize("kind", [*KINDS, "camembert", "electra", *DECODERS, "qwen2", "gemma3_text"])
def test_equals_logits_divided(kind, monkeypatch):
    """The oracle is transformers' plain implementation with its softmax replaced."""
    torch.manual_seed(0)
    config = config_of_any(kind)
    model = AutoModel.from_config(config).eval()
    states = model.state_dict()
    other = AutoModel.from_config(config_of_any(kind), attn_implementation="eager").eval()
    other.load_state_dict(states)
    ids = torch.randint(5, 60, (2, 12))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    real = torch.nn.functional.softmax

    def run(one):
        with torch.inference_mode():
            return one(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]

    before = run(model)
    set_temperature(model, 0.5, kind)
    after = run(model)
    torch.testing.assert_close(before, run(other), atol=1e-4, rtol=1e-4)

    def sharper(logits, *more, **how):
        lowest = torch.finfo(logits.dtype).min  # a mask's: no longer finite once divided
        return real((logits / 0.5).clamp(min=lowest), *more, **how)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "softmax", sharper)
        right = run(other.double())
    torch.testing.assert_close(after.double(), right.double(), atol=1e-4, rtol=1e-4)
    assert (after - before).abs().max() > 1e-2


def test_it_is_part_of_the_fingerprint_and_of_the_records(model_folder):
    plain, sharp = Encoder.load(str(model_folder)), Encoder.load(str(model_folder), attention_temperature=0.8)
    assert sharp.fields["attention_temperature"] == 0.8
    assert len({plain.fingerprint, sharp.fingerprint}) == 2
    assert Encoder.load(**sharp.options).fingerprint == sharp.fingerprint
    np.testing.assert_array_equal(Encoder.load(**sharp.options).encode_documents(TEXTS), sharp.encode_documents(TEXTS))
    assert np.abs(plain.encode_documents(TEXTS) - sharp.encode_documents(TEXTS)).max() > 1e-3
    one = Encoder.load(str(model_folder), attention_temperature=1)
    assert one.fingerprint == plain.fingerprint
    np.testing.assert_array_equal(one.encode_documents(TEXTS), plain.encode_documents(TEXTS))


def test_folders_remember_it(tmp_path, model_folder, corpus_file):
    command = ["encode", str(corpus_file), "--encoder", str(model_folder), "--device", "cpu"]
    vectors, index = str(tmp_path / "v"), str(tmp_path / "i")
    for arguments in (
        [*command, "--attention-temperature", "0.8", "--output", vectors],
        ["index", vectors, "--output", index],
    ):
        done = CliRunner().invoke(build_app(), arguments)
        assert done.exit_code == 0, done.output
    assert VectorStore.open(vectors).made_by["attention_temperature"] == 0.8
    retriever = Retriever.open(index)
    assert retriever.encoder.fields["attention_temperature"] == 0.8
    assert retriever.search("river", k=1)
    other = CliRunner().invoke(build_app(), [*command, "--output", vectors])
    assert other.exit_code == 2
    assert "attention_temperature: 0.8 ≠ None" in other.output.replace("\n", " ")


def test_what_cannot_be_is_refused(model_folder):
    for temperature in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="expected a number above 0, usually 0.7 to 1"):
            Encoder.load(str(model_folder), attention_temperature=temperature)
    gpt = AutoModel.from_config(AutoConfig.for_model("gpt2", vocab_size=60, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(InputError, match="mine is a gpt2 model; attention_temperature is known for bert, roberta"):
        set_temperature(gpt, 0.8, "mine")


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs the extra openvino")
def test_openvino_gives_torchs_vectors_and_keeps_models_apart(tmp_path, monkeypatch, model_folder):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for options in ({}, {"attention_temperature": 0.5}):
        torchs = Encoder.load(str(model_folder), **options)
        theirs = Encoder.load(str(model_folder), backend="openvino", **options)
        assert theirs.fingerprint == torchs.fingerprint
        np.testing.assert_allclose(theirs.encode_documents(TEXTS), torchs.encode_documents(TEXTS), atol=1e-5)
