"""Reshaped model folders: what loads them, what stays as it was, what is said and refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import WORDS, make_model
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLMRobertaTokenizer,
)
from typer.testing import CliRunner

from indexes.errors import InputError
from pretraining import pretrain, reshape
from pretraining.backbones import Backbone
from pretraining.base import load_base
from pretraining.masking import MaskOptions
from pretraining.objective import Objective
from pretraining.students import load_student
from retrieval.cli import build_app
from retrieval.encoder import Encoder
from retrieval.model_folder import read_model_folder

USED = ["river stone walk", "stone green river", "rivers walkxy green", "stonewalk stonewalk"]
SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, initializer_range=0.3)


@pytest.fixture
def used(tmp_path):
    path = tmp_path / "used.jsonl"
    path.write_text("".join(json.dumps({"_id": str(n), "text": text}) + "\n" for n, text in enumerate(USED)))
    return path


def vectors(folder, texts=USED):
    return Encoder.load(str(folder)).encode_documents(list(texts))


def test_trimming_leaves_vectors_as_they_are_to_the_last_bit(model_folder, used, tmp_path):
    made = reshape(model_folder, tmp_path / "small", trim_vocabulary=used)
    np.testing.assert_array_equal(vectors(tmp_path / "small"), vectors(model_folder))
    before, after = made.card["before"], made.card["after"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "small")
    assert after["vocabulary"] == len(tokenizer) == before["vocabulary"] - (len(WORDS) - 4)  # letters and "." stay
    assert before["parameters"] - after["parameters"] == 32 * (len(WORDS) - 4)
    assert before["bytes"] - after["bytes"] == 4 * 32 * (len(WORDS) - 4)
    assert tokenizer.tokenize("paper") == ["p", "##a", "##p", "##e", "##r"]
    plain = SentenceTransformer(str(tmp_path / "small"), device="cpu")
    np.testing.assert_allclose(plain.encode(USED), vectors(model_folder), atol=1e-5)
    assert plain.max_seq_length == 32
    config = plain[0].auto_model.config
    assert config.vocab_size == len(tokenizer)
    assert config.pad_token_id == tokenizer.pad_token_id
    assert plain[0].auto_model.embeddings.word_embeddings.padding_idx == tokenizer.pad_token_id


def byte_pairs(folder):
    """A RoBERTa with a masked-language model's head."""
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    engine.train_from_iterator(
        [" ".join(WORDS)] * 3, trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet)
    )
    model = json.loads(engine.to_str())["model"]
    tokenizer = RobertaTokenizer(model["vocab"], [tuple(pair) for pair in model["merges"]], add_prefix_space=True)
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=40, pad_token_id=1, **SIZES)
    torch.manual_seed(0)
    masked = RobertaForMaskedLM(config)
    torch.nn.init.normal_(masked.lm_head.bias)
    masked.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def unigrams(folder):
    engine = Tokenizer(models.Unigram())
    engine.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=specials, unk_token="<unk>")
    engine.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    scores = [tuple(entry) for entry in json.loads(engine.to_str())["model"]["vocab"]]
    tokenizer = XLMRobertaTokenizer(vocab=scores)
    config = XLMRobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=40, pad_token_id=1, **SIZES)
    torch.manual_seed(0)
    XLMRobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("make", [byte_pairs, unigrams])
def test_other_kinds_of_tokenizers_are_trimmed_in_their_folders(make, used, tmp_path):
    base = make(tmp_path / "base")
    made = reshape(base, tmp_path / "small", trim_vocabulary=used)
    assert made.card["after"]["vocabulary"] < made.card["before"]["vocabulary"]
    small = SentenceTransformer(str(tmp_path / "small"), device="cpu")
    large = SentenceTransformer(modules=[*_plain(base)], device="cpu")
    for one, other in zip(USED, large.encode(USED), strict=True):
        assert small.tokenizer.tokenize(one) == large.tokenizer.tokenize(one)
        np.testing.assert_array_equal(small.encode(one), large.encode([one])[0])
        assert other.shape == (16,)
    assert small.tokenizer.convert_ids_to_tokens(small.tokenizer.mask_token_id) == "<mask>"
    assert small[0].auto_model.config.pad_token_id == small.tokenizer.pad_token_id == 1


def _plain(folder):
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    return Transformer(str(folder)), Pooling(16, pooling_mode="cls")


def logits(folder, text):
    """Logits of the masked-language model over (t, v), and the tokens."""
    base = load_base(str(folder), Objective.parse("mlm"), MaskOptions(), pooling=None, seed=0)
    assert base.model.untrained_heads == []
    batch = base.tokenizer(text, return_tensors="pt")
    hidden, _ = Backbone(base.model.backbone.eval()).run(batch["input_ids"], batch["attention_mask"])
    with torch.no_grad():
        return base.model.head(hidden, base.model.parts.words)[0], base.tokenizer


def test_the_vocabulary_head_follows(used, tmp_path):
    base = byte_pairs(tmp_path / "base")
    whole, tokenizer = logits(base, USED[0])
    reshape(base, tmp_path / "small", trim_vocabulary=used)
    small, fewer = logits(tmp_path / "small", USED[0])
    kept = [tokenizer.convert_tokens_to_ids(fewer.convert_ids_to_tokens(number)) for number in range(len(fewer))]
    torch.testing.assert_close(small, whole[:, kept], rtol=0, atol=1e-6)
    reshape(tmp_path / "small", tmp_path / "wide", grow_width=2, grow_layers=3)
    torch.testing.assert_close(logits(tmp_path / "wide", USED[0])[0], small, rtol=1e-3, atol=1e-3)


def test_new_words_are_means_of_their_pieces(base, tmp_path):
    from pretraining.heads import VocabularyHead
    from pretraining.shape import Shape

    path = tmp_path / "words.jsonl"
    path.write_text('{"_id": "1", "text": "sounding riverbank sounding"}\n{"_id": "2", "text": "Riverbank sounding"}\n')
    made = reshape(base, tmp_path / "large", extend_vocabulary=path, words=5)
    before, after = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(tmp_path / "large")
    assert list(made.card["added"]) == ["sounding", "riverbank"]
    for word, saved in made.card["added"].items():
        ids = before(word, add_special_tokens=False)["input_ids"]
        assert after.tokenize(f"{word}, {word.title()}") == [word, ",", word] or after.tokenize(word) == [word]
        assert saved == (3 if word == "sounding" else 2) * (len(ids) - 1)
        whole, plain = load_file(tmp_path / "large" / "model.safetensors"), load_file(base / "model.safetensors")
        row = whole["embeddings.word_embeddings.weight"][after.convert_tokens_to_ids(word)]
        torch.testing.assert_close(row, plain["bert.embeddings.word_embeddings.weight"][ids].mean(0))
    for word in ("river stone", "walk .", "abc"):
        assert after.tokenize(word) == before.tokenize(word)
    shape = Shape.load(tmp_path / "large", "large")
    assert isinstance(shape.head, VocabularyHead)
    hidden = torch.randn(3, 16)
    with torch.no_grad():
        scores = shape.head(hidden, shape.backbone.embeddings.word_embeddings.weight)
    number = after.convert_tokens_to_ids("riverbank")
    pieces = before("riverbank", add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(scores[:, number], scores[:, pieces].mean(1), rtol=1e-4, atol=1e-5)
    sizes = SentenceTransformer(str(tmp_path / "large"), device="cpu").encode(["sounding river"]).shape
    assert sizes == (1, 16)


@pytest.mark.slow
def test_pretraining_goes_on_from_a_reshaped_folder(base, corpus, tmp_path):
    options = {"objective": "dupmae", "max_steps": 1, "batch_size": 4, "max_length": 16}
    pretrain(corpus, tmp_path / "model", base=base, **options)
    notes = []
    reshape(tmp_path / "model", tmp_path / "small", trim_vocabulary=corpus, grow_layers=2)
    card = pretrain(corpus, tmp_path / "again", base=tmp_path / "small", **options).card
    assert card["untrained_heads"] == []
    reshape(tmp_path / "model", tmp_path / "wide", grow_width=2, on_note=notes.append)
    assert "left behind, since they do not grow: the heads decoder_mlm" in notes
    card = pretrain(corpus, tmp_path / "wider", base=tmp_path / "wide", **options).card
    assert card["untrained_heads"] == ["decoder_mlm"]


def test_growth_leaves_cosines_as_they_are(model_folder, tmp_path):
    texts = [f"{one} {other}" for one in WORDS[:5] for other in WORDS[5:10]]
    plain = vectors(model_folder, texts)
    deep = reshape(model_folder, tmp_path / "deep", grow_layers=5).card
    np.testing.assert_allclose(vectors(tmp_path / "deep", texts), plain, atol=2e-5)
    wide = reshape(model_folder, tmp_path / "wide", grow_width=2, seed=3).card
    np.testing.assert_allclose(vectors(tmp_path / "wide", texts), np.tile(plain, 2) / 2**0.5, atol=1e-5)
    assert (deep["after"]["layers"], wide["after"]["dim"]) == (5, 64)
    both = SentenceTransformer(str(tmp_path / "wide"), device="cpu")
    assert both.get_embedding_dimension() == 64
    reshape(model_folder, tmp_path / "again", grow_width=2, seed=3)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("wide", "again")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_what_was_recorded_stays(tmp_path):
    model = make_model(tmp_path / "model", pooling="cls", prompts={"query": "q: ", "document": "d: "}, normalize=False)
    reshape(model, tmp_path / "small", keep_layers=1)
    settings = [Encoder.load(str(folder)).settings for folder in (model, tmp_path / "small")]
    for name in ("pooling", "max_length", "normalize", "query_prompt", "document_prompt"):
        assert getattr(settings[0], name) == getattr(settings[1], name)
    assert SentenceTransformer(str(tmp_path / "small"), device="cpu")[0].auto_model.config.num_hidden_layers == 1


def test_the_same_call_finds_its_work_done(model_folder, used, tmp_path):
    options = {"trim_vocabulary": used, "keep_layers": 1}
    assert not reshape(model_folder, tmp_path / "out", **options).already_complete
    assert reshape(model_folder, tmp_path / "out", **options).already_complete
    with pytest.raises(InputError, match=r"made otherwise \(least_count: 2 ≠ 1\)"):
        reshape(model_folder, tmp_path / "out", least_count=2, **options)
    assert not reshape(model_folder, tmp_path / "out", least_count=2, overwrite=True, **options).already_complete
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing is to be changed; give one or more of trim_vocabulary"),
        ({"keep_layers": 1, "grow_layers": 3}, "both given"),
        ({"keep_layers": 2}, "the model has 2 layers: take 1 to 1"),
        ({"grow_width": 0}, "expected whole multiples from 1"),
        ({"grow_layers": 3, "depth_method": "copy"}, "depth_method is 'copy'"),
        ({"trim_vocabulary": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"grow_width": 2, "words": 0}, "words is 0; expected at least 1"),
        ({"grow_width": 2, "seed": -1}, "seed is -1"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_written(model_folder, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        reshape(model_folder, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_corpus_without_split_words_is_refused(model_folder, tmp_path):
    path = tmp_path / "plain.jsonl"
    path.write_text('{"_id": "1", "text": "river stone river stone"}\n')
    with pytest.raises(InputError, match="is split; there is nothing to add"):
        reshape(model_folder, tmp_path / "out", extend_vocabulary=path)
    assert [each.name for each in tmp_path.iterdir()] == ["plain.jsonl"]


def test_models_of_other_kinds_are_refused(model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "dense")
    kinds = json.loads((model_folder / "modules.json").read_text())
    assert [Path(kind["path"]).name for kind in kinds] == ["", "1_Pooling", "2_Normalize"]
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    (tmp_path / "dense" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(InputError, match="does not tie its output"):
        reshape(tmp_path / "dense", tmp_path / "out", keep_layers=1)


def test_heads_of_another_vocabulary_are_refused(base, corpus, used, tmp_path):
    pretrain(corpus, tmp_path / "model", base=base, objective="mlm", max_steps=1, batch_size=4, max_length=16)
    reshape(tmp_path / "model", tmp_path / "small", trim_vocabulary=used)
    shutil.rmtree(tmp_path / "model" / "heads")
    shutil.copytree(tmp_path / "small" / "heads", tmp_path / "model" / "heads")
    with pytest.raises(InputError, match="heads does not fit the model .* remove that folder"):
        reshape(tmp_path / "model", tmp_path / "out", grow_layers=2)


def test_a_model_of_half_precision_stays_one_and_its_student_is_none(model_folder, used, tmp_path):
    half = SentenceTransformer(str(model_folder), device="cpu").half()
    half.save_pretrained(str(tmp_path / "half"), create_model_card=False)
    card = reshape(tmp_path / "half", tmp_path / "small", trim_vocabulary=used, keep_layers=1, grow_width=2).card
    assert card["before"]["bytes"] == 2 * card["before"]["parameters"]
    weights = load_file(tmp_path / "small" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    student = load_student(tmp_path / "small", "small", read_model_folder(model_folder))
    assert {value.dtype for value in student.parameters()} == {torch.float32}


def test_the_command_says_what_it_did(model_folder, used, tmp_path):
    run = CliRunner().invoke
    arguments = ["reshape", str(model_folder), "--trim-vocabulary", str(used), "--keep-layers", "0,", "--json"]
    done = run(build_app(), [*arguments, str(tmp_path / "r.json"), "--output", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    card = json.loads((tmp_path / "r.json").read_text())
    before, after = card["before"], card["after"]
    assert f"parameters {before['parameters']:,} → {after['parameters']:,}" in done.output
    assert "layers 2 → 1" in done.output
    assert "retrokit distill CORPUS --teacher" in done.output
    assert "complete already" in run(build_app(), [*arguments[:-1], "--output", str(tmp_path / "out")]).output
    for wrong, message in (("x", "is 'x'; expected a number"), ("9", "keep_layers is 9"), (",", "keep_layers is")):
        refused = run(build_app(), [*arguments[:5], wrong, "--output", str(tmp_path / "other")])
        assert refused.exit_code == 2
        assert message in refused.output
        assert not (tmp_path / "other").exists()
