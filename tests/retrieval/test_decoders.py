"""Decoder language models as encoders: padding, direction of attention, instructions, the end of a text."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from decoders import DECODERS, make_decoder, make_plain_decoder
from fixtures import make_model, random_texts
from typer.testing import CliRunner

from indexes.errors import InputError
from indexes.vectors import VectorStore
from retrieval.attention import looks_ahead
from retrieval.cli import build_app
from retrieval.encoder import Encoder, load_options
from retrieval.loading import load_sentence_transformer
from retrieval.retriever import Retriever

TEXTS = ["", *random_texts(12, seed=1, longest=40)]
E5 = "Instruct: river stone\nQuery: "
PROMPTS = {"query": "", "web_search_query": E5, "sts_query": "Instruct: paper\nQuery: "}


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request, tmp_path_factory):
    return str(make_decoder(tmp_path_factory.mktemp("decoders") / request.param, request.param))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return str(make_decoder(tmp_path_factory.mktemp("decoders") / "qwen", prompts=PROMPTS))


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize(("pooling", "direction"), [("lasttoken", None), ("mean", "bidirectional")])
def test_equals_sentence_transformers_single_and_batched(tmp_path, kind, pooling, direction):
    from sentence_transformers import SentenceTransformer

    folder = make_decoder(tmp_path / kind, kind, pooling=pooling)
    if direction:
        load_sentence_transformer(str(folder), attention=direction).save_pretrained(str(tmp_path / "both"))
        folder = tmp_path / "both"
    encoder, plain = Encoder.load(str(folder)), SentenceTransformer(str(folder), device="cpu")
    assert plain.tokenizer.padding_side == "left"
    together = encoder.encode_documents(TEXTS)
    np.testing.assert_allclose(together, plain.encode(TEXTS), atol=1e-5)
    alone = np.concatenate([encoder.encode_documents([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("direction", [None, "bidirectional"])
@pytest.mark.parametrize("pooling", ["lasttoken", "mean"])
def test_padding_on_either_side_gives_the_same_vectors(tmp_path, pooling, direction):
    for kind in DECODERS:
        folder = make_decoder(tmp_path / kind, kind, pooling=pooling)
        module = Encoder.load(str(folder), attention=direction).backend.module
        tokens = [[1, 5, 6, 7, 2], list(range(4, 20)), [1, 8, 2]]
        batches = [torch.zeros(2, 3, 16, dtype=torch.long) for _ in range(2)]
        for row, ids in enumerate(tokens):
            for (text, mask), where in zip(batches, (slice(16 - len(ids), 16), slice(len(ids))), strict=True):
                text[row, where], mask[row, where] = torch.tensor(ids), 1
        with torch.inference_mode():
            left, right = (module(*batch) for batch in batches)
            alone = torch.cat([module(torch.tensor([ids]), torch.ones(1, len(ids), dtype=int)) for ids in tokens])
        torch.testing.assert_close(left, right, atol=1e-5, rtol=0)
        torch.testing.assert_close(alone, right, atol=1e-5, rtol=0)


def attention_by_hand(layer, hidden, positions, backbone, visible):
    """One layer of Llama's kind in float64: (t, d) -> (t, d), from its weights alone."""
    config = backbone.config
    heads, keys_of = config.num_attention_heads, config.num_key_value_heads
    size = config.hidden_size // heads

    def norm(rows, weight):
        return rows / (rows.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weight

    def turn(rows):  # (t, h, e)
        rates = 1 / config.rope_parameters["rope_theta"] ** (torch.arange(0, size, 2).double() / size)
        angles = (positions[:, None] * rates).repeat(1, 2)[:, None]
        half = torch.cat((-rows[..., size // 2 :], rows[..., : size // 2]), -1)
        return rows * angles.cos() + half * angles.sin()

    part, attn, mlp = norm(hidden, layer.input_layernorm.weight), layer.self_attn, layer.mlp
    queries = turn((part @ attn.q_proj.weight.T).unflatten(-1, (heads, size)))
    keys = turn((part @ attn.k_proj.weight.T).unflatten(-1, (keys_of, size))).repeat_interleave(heads // keys_of, 1)
    values = (part @ attn.v_proj.weight.T).unflatten(-1, (keys_of, size)).repeat_interleave(heads // keys_of, 1)
    logits = torch.einsum("qhe,khe->hqk", queries, keys) / size**0.5
    weights = logits.masked_fill(~visible, -torch.inf).softmax(-1)
    hidden = hidden + torch.einsum("hqk,khe->qhe", weights, values).flatten(1) @ attn.o_proj.weight.T
    part = norm(hidden, layer.post_attention_layernorm.weight)
    gate = torch.nn.functional.silu(part @ mlp.gate_proj.weight.T)
    return hidden + (gate * (part @ mlp.up_proj.weight.T)) @ mlp.down_proj.weight.T


@pytest.mark.parametrize("direction", [None, "bidirectional"])
def test_the_direction_equals_attention_by_hand(tmp_path, direction):
    folder = make_decoder(tmp_path / "llama", "llama")
    backbone = Encoder.load(str(folder), attention=direction).backend.module.backbone
    ids = torch.tensor([[1, 5, 6, 7, 8, 9, 2]])
    with torch.inference_mode():
        found = backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        exact = backbone.double()
        visible = torch.ones(7, 7, dtype=torch.bool)
        hidden = exact.embed_tokens.weight[ids[0]]
        for layer in exact.layers:
            seen = visible if direction else visible.tril()
            hidden = attention_by_hand(layer, hidden, torch.arange(7).double(), exact, seen)
        hidden = hidden / (hidden.pow(2).mean(-1, keepdim=True) + exact.config.rms_norm_eps).sqrt() * exact.norm.weight
    torch.testing.assert_close(found.double(), hidden, atol=1e-4, rtol=1e-4)


def test_a_later_token_matters_only_in_both_directions(decoder):
    causal, both = Encoder.load(decoder), Encoder.load(decoder, attention="bidirectional")
    first, second = torch.tensor([[1, 5, 6, 7, 8]]), torch.tensor([[1, 5, 6, 7, 9]])
    for encoder, ahead in ((causal, False), (both, True)):
        hidden = encoder.backend.module.hidden
        for mask in (torch.ones_like(first), torch.tensor([[0, 1, 1, 1, 1]])):  # without padding and with
            with torch.inference_mode():
                apart = (hidden(first, mask)[:, 1:4] - hidden(second, mask)[:, 1:4]).abs().max()
            assert (apart > 1e-2) == ahead
            assert ahead or apart == 0
        assert looks_ahead(encoder.backend.module.backbone) == ahead
    assert causal.fingerprint != both.fingerprint
    assert causal.fingerprint == Encoder.load(decoder, attention="causal").fingerprint
    assert "attention" not in causal.fields
    assert both.fields["attention"] == "bidirectional"


def test_the_folder_records_the_direction(tmp_path, qwen):
    from sentence_transformers import SentenceTransformer

    model = load_sentence_transformer(qwen, attention="bidirectional", query_prompt="river ", max_length=16)
    assert model.training
    assert all(one.requires_grad for one in model.parameters())
    model.eval().save_pretrained(str(tmp_path / "both"))
    assert json.loads((tmp_path / "both" / "config.json").read_text())["is_causal"] is False
    theirs = SentenceTransformer(str(tmp_path / "both"), device="cpu")
    ours = Encoder.load(qwen, attention="bidirectional", query_prompt="river ", max_length=16)
    again = Encoder.load(str(tmp_path / "both"))
    np.testing.assert_allclose(theirs.encode_query(TEXTS), ours.encode_queries(TEXTS), atol=1e-5)
    assert again.fingerprint == ours.fingerprint == Encoder.load(**again.options).fingerprint
    assert again.fields["attention"] == "bidirectional"
    with pytest.raises(InputError, match="attends in both directions by its own settings"):
        Encoder.load(str(tmp_path / "both"), attention="causal")


def test_gradients_flow_from_later_tokens(qwen):
    for direction in (None, "bidirectional"):
        model = load_sentence_transformer(qwen, attention=direction)
        ids = torch.tensor([[1, 5, 6, 7]])
        out = model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        out["token_embeddings"][0, 1].sum().backward()
        later = model[0].auto_model.embed_tokens.weight.grad[7].abs().sum()
        assert (later > 0) == (direction is not None)


def test_a_plain_folder_becomes_a_model_to_train(tmp_path):
    folder = make_plain_decoder(tmp_path / "llama", "llama")
    options = {"pooling": "lasttoken", "attention": "bidirectional", "append_eos": True}
    load_sentence_transformer(str(folder), **options, max_length=24).save_pretrained(str(tmp_path / "made"))
    again, asked = Encoder.load(str(tmp_path / "made")), Encoder.load(str(folder), **options, max_length=24)
    assert (again.fields["pooling"], again.fields["normalize"], again.fields["max_length"]) == ("lasttoken", True, 24)
    np.testing.assert_array_equal(again.encode_documents(TEXTS), asked.encode_documents(TEXTS))
    assert again.fields["tokenizer"] == asked.fields["tokenizer"]
    with pytest.raises(InputError, match="does not record its pooling"):
        load_sentence_transformer(str(folder))


def test_a_tokenizer_without_padding_can_be_trained_with(tmp_path):
    folder = make_plain_decoder(tmp_path / "llama", "llama", eos=True)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": None}))
    model = load_sentence_transformer(str(folder), pooling="mean").eval()
    ours = Encoder.load(str(folder), pooling="mean")
    np.testing.assert_allclose(model.encode(TEXTS), ours.encode_documents(TEXTS), atol=1e-5)
    model.save_pretrained(str(tmp_path / "made"))
    assert Encoder.load(str(tmp_path / "made")).fingerprint == ours.fingerprint


@pytest.mark.filterwarnings("ignore")  # of peft, about transformers and about folders that it does not know
def test_a_merged_adapter_keeps_the_direction_and_one_alone_is_refused(tmp_path, qwen):
    peft = pytest.importorskip("peft")
    model = load_sentence_transformer(qwen, attention="bidirectional")
    wanted = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model[0].auto_model, wanted)
    adapted.save_pretrained(str(tmp_path / "alone"))
    with pytest.raises(InputError, match="is an adapter without its base: merge it"):
        Encoder.load(str(tmp_path / "alone"), pooling="mean")
    model[0].model = adapted.merge_and_unload()
    model.eval().save_pretrained(str(tmp_path / "merged"))
    merged = Encoder.load(str(tmp_path / "merged"))
    np.testing.assert_allclose(merged.encode_documents(TEXTS), model.encode(TEXTS), atol=1e-5)
    base = Encoder.load(qwen, attention="bidirectional")
    assert merged.fields["architecture"] == base.fields["architecture"]
    assert merged.fields["weights"] != base.fields["weights"]


def test_what_has_no_other_direction_is_refused(tmp_path, model_folder, qwen):
    with pytest.raises(InputError, match="is a bert model, which attends in both directions anyway"):
        Encoder.load(str(model_folder), attention="bidirectional")
    with pytest.raises(InputError, match="attention is 'sideways'; expected causal or bidirectional"):
        Encoder.load(qwen, attention="sideways")
    with pytest.raises(InputError, match="leave attention out"):
        Encoder.load(str(model_folder), attention="causal")


def test_a_family_that_does_not_obey_is_refused(monkeypatch, qwen):
    monkeypatch.setattr("retrieval.attention.looks_ahead", lambda backbone: False)
    with pytest.raises(InputError, match="qwen3 model, which cannot be made to attend in both directions"):
        Encoder.load(qwen, attention="bidirectional")


def test_the_end_of_text_token(tmp_path):
    contrary = str(make_plain_decoder(tmp_path / "e5", "mistral", declares_eos=True))
    with pytest.raises(InputError, match="says add_eos_token, but its tokenizer.json appends no </s>"):
        Encoder.load(contrary, pooling="lasttoken")
    with_eos, without = (Encoder.load(contrary, pooling="lasttoken", append_eos=on) for on in (True, False))
    assert with_eos.tokenizer.truncate(["river"], "").tokens == [[1, 4, 2]]
    cut = with_eos.tokenizer.truncate(["river " * 90], "stone ")
    assert (cut.tokens, cut.truncated) == ([[1, 5, *[4] * 61, 2]], 1)
    assert without.tokenizer.truncate(["river"], "").tokens == [[1, 4]]
    assert with_eos.fingerprint != without.fingerprint
    for encoder in (with_eos, without):
        assert Encoder.load(contrary, **load_options(encoder.made_by)).fingerprint == encoder.fingerprint
    by_itself = make_decoder(tmp_path / "ended", "mistral")
    assert Encoder.load(str(by_itself)).fingerprint == Encoder.load(str(by_itself), append_eos=True).fingerprint
    with pytest.raises(InputError, match="ends each text with a special token by itself"):
        Encoder.load(str(by_itself), append_eos=False)


def test_e5_mistrals_contradiction_once_decided_is_gone(tmp_path):
    from sentence_transformers import SentenceTransformer

    contrary = str(make_plain_decoder(tmp_path / "e5", "mistral", declares_eos=True))
    made = load_sentence_transformer(contrary, pooling="lasttoken", append_eos=True)
    made.save_pretrained(str(tmp_path / "made"))
    theirs = SentenceTransformer(str(tmp_path / "made"), device="cpu")
    assert theirs.tokenizer("river")["input_ids"] == [1, 4, 2]
    ours = Encoder.load(contrary, pooling="lasttoken", append_eos=True)
    np.testing.assert_allclose(theirs.encode(TEXTS), ours.encode_documents(TEXTS), atol=1e-5)


@pytest.mark.parametrize("pooling", ["lasttoken", "mean"])
def test_texts_without_any_token_have_a_vector(tmp_path, pooling):
    """Of a tokenizer without special tokens an empty text has none."""
    folder = make_decoder(tmp_path / "bare", pooling=pooling, bos=False, eos=False)
    for direction in (None, "bidirectional"):
        encoder = Encoder.load(str(folder), attention=direction)
        alone, beside = encoder.encode_documents([""]), encoder.encode_documents(["", "river stone green"])
        assert np.isfinite(beside).all()
        np.testing.assert_allclose(alone[0], beside[0], atol=1e-5)


def test_tasks_and_instructions(tmp_path, qwen):
    plain, task = Encoder.load(qwen), Encoder.load(qwen, task="web_search_query")
    assert (plain.settings.query_prompt, task.settings.query_prompt) == ("", E5)
    said = Encoder.load(qwen, instruction="river stone")
    assert said.fingerprint == task.fingerprint == Encoder.load(qwen, query_prompt=E5).fingerprint
    np.testing.assert_array_equal(
        said.encode_queries(["cat dog"]), plain.encode_documents(["Instruct : river stone Query : cat dog"])
    )
    np.testing.assert_array_equal(said.encode_documents(["cat"]), plain.encode_documents(["cat"]))
    assert Encoder.load(**task.options).fingerprint == task.fingerprint
    tight = make_decoder(tmp_path / "tight", prompts={"query": "Instruct: paper\nQuery:"})
    assert Encoder.load(str(tight), instruction="cat").settings.query_prompt == "Instruct: cat\nQuery:"
    for options, message in (
        ({"task": "search"}, "no prompt for the task 'search': it has document, query, sts_query, web_search_query"),
        ({"task": "query", "instruction": "cat"}, "task and instruction are given; give one of them"),
        ({"query_prompt": "", "task": "query"}, "query_prompt and task are given"),
        ({"instruction": " "}, "instruction is empty"),
    ):
        with pytest.raises(InputError, match=message):
            Encoder.load(qwen, **options)
    bare = make_model(tmp_path / "bare")
    (bare / "config_sentence_transformers.json").unlink()
    with pytest.raises(InputError, match="it has none; give instruction"):
        Encoder.load(str(bare), task="search")


def test_vectors_and_index_folders_remember(tmp_path, qwen, corpus_file):
    options = ["--attention", "bidirectional", "--instruction", "green", "--device", "cpu", "--shard-rows", "20"]
    command = ["encode", str(corpus_file), "--encoder", qwen, *options]
    run = CliRunner().invoke(build_app(), [*command, "--output", str(tmp_path / "v")])
    assert run.exit_code == 0, run.output
    store = VectorStore.open(tmp_path / "v")
    encoder = Encoder.load(qwen, attention="bidirectional", instruction="green")
    assert store.made_by["fingerprint"] == encoder.fingerprint
    done = CliRunner().invoke(build_app(), ["index", str(tmp_path / "v"), "--output", str(tmp_path / "i")])
    assert done.exit_code == 0, done.output
    assert Retriever.open(tmp_path / "i").encoder.fields["attention"] == "bidirectional"
    other = CliRunner().invoke(build_app(), [*command[:4], "--output", str(tmp_path / "v")])
    assert other.exit_code == 2
    assert "attention: bidirectional" in other.output


def test_a_killed_encoding_goes_on(tmp_path, qwen, documents):
    encoder = Encoder.load(qwen, attention="bidirectional")

    def cut(done, total):
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoder.encode_corpus(documents, tmp_path / "v", shard_rows=10, on_progress=cut)
    other = Encoder.load(qwen)
    with pytest.raises(InputError, match="attention"):
        other.encode_corpus(documents, tmp_path / "v", shard_rows=10)
    again = encoder.encode_corpus(documents, tmp_path / "v", shard_rows=10)
    whole = encoder.encode_corpus(documents, tmp_path / "whole", shard_rows=10)
    np.testing.assert_array_equal(again[0:50], whole[0:50])


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs the extra openvino")
def test_openvino_computes_both_directions(tmp_path, monkeypatch, qwen):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for direction in (None, "bidirectional"):
        torchs, theirs = (Encoder.load(qwen, backend=name, attention=direction) for name in ("torch", "openvino"))
        assert torchs.fingerprint == theirs.fingerprint
        np.testing.assert_allclose(theirs.encode_documents(TEXTS), torchs.encode_documents(TEXTS), atol=1e-5)
