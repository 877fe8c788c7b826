"""PROP: pairs put together as tokenizers do it, word sets of the window, the cross-encoder that comes out."""

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaModel

from indexes.errors import InputError
from pretraining import attended_words, pretrain
from pretraining.backbones import Backbone
from pretraining.base import load_base
from pretraining.configuration import PretrainConfig
from pretraining.contrastive_terms import ContrastiveTerms
from pretraining.cross_encoder import classifier
from pretraining.masking import Batch
from pretraining.terms.word_order import WordSetOrder, joined, order_loss
from pretraining.token_writer import write_tokens
from pretraining.tokens import LONGEST_SET, Accompanied
from pretraining.training import open_windows
from pretraining.window_words import open_word_sets, prepare_word_sets
from pretraining.word_sets import SetOptions, WordCounts, words_of
from retrieval.documents import Document, read_documents

WORDS, TEXTS = ["river", "green paper", ""], ["walking stones at night", "music", "train house water"]


def batch_of(tokenizer, texts):
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    ids = encoded["input_ids"]
    return Batch.of(ids, encoded["attention_mask"], torch.ones_like(ids, dtype=torch.bool))


def test_words_come_before_the_document_as_the_tokenizer_puts_them(tokenizer):
    words, documents = batch_of(tokenizer, WORDS), batch_of(tokenizer, TEXTS)
    pairs = joined(words, documents, documents.ids, documents.ids, 1)
    expected = tokenizer(WORDS, TEXTS, padding=True, return_tensors="pt")
    assert torch.equal(pairs.ids, expected["input_ids"])
    assert torch.equal(pairs.attention_mask, expected["attention_mask"])
    assert torch.equal(pairs.types, expected["token_type_ids"])
    for text, line in enumerate(pairs.labels):
        assert line[line != -100].tolist() == documents.ids[text][documents.attention_mask[text].bool()][1:].tolist()


def test_roberta_has_two_separators(tokenizer):
    words, documents = batch_of(tokenizer, WORDS), batch_of(tokenizer, TEXTS)
    pairs = joined(words, documents, documents.ids, documents.ids, 2)
    separator = tokenizer.sep_token_id
    for text, line in enumerate(pairs.ids):
        first = words.ids[text][words.attention_mask[text].bool()].tolist()
        rest = documents.ids[text][documents.attention_mask[text].bool()].tolist()[1:]
        assert line[: len(first) + 1 + len(rest)].tolist() == [*first, separator, *rest]
        assert int(pairs.attention_mask[text].sum()) == len(first) + 1 + len(rest)


def test_the_order_counts_by_how_far_scores_are_apart():
    better, worse = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 0.5])
    assert order_loss(better, worse, "hinge").item() == pytest.approx((0 + 1.5) / 2)
    expected = (np.log1p(np.exp(-2)) + np.log1p(np.exp(0.5))) / 2
    assert order_loss(better, worse, "logistic").item() == pytest.approx(expected)
    assert order_loss(better[:0], worse[:0], "logistic").item() == 0


@pytest.fixture
def long_corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    draw = np.random.default_rng(0)
    names = ["river", "stone", "green", "night", "paper", "music", "water", "house", "train"]
    path.write_text("".join(f'{{"_id": "{n}", "text": "{" ".join(draw.choice(names, 12))}"}}\n' for n in range(40)))
    return path


def test_word_sets_are_drawn_anew_from_each_window(long_corpus, base, tokenizer, tmp_path):
    config = PretrainConfig(base=base, objective="prop")
    write_tokens(read_documents(long_corpus), tokenizer, tmp_path / "t", max_length=24, extras=config.extras)
    data = open_windows(tmp_path / "t", config, tokenizer)
    assert isinstance(data, Accompanied)
    seen, better_is_likelier = set(), 0
    for number in range(4 * len(data)):
        others = data[number]["others"]
        sets = {name: tokenizer.decode(others[name]["ids"]).split() for name in ("better", "worse")}
        assert len(others["better"]["ids"]) <= LONGEST_SET - 2
        seen.add((number % len(data), tuple(sets["better"])))
        assert len(sets["better"]) == len(sets["worse"])
        own = words_of(tokenizer.decode(data[number]["ids"]))
        inside = [np.mean([word in own for word in sets[name]]) if sets[name] else 0.5 for name in ("better", "worse")]
        better_is_likelier += inside[0] >= inside[1]
        again = data[number]["others"]["better"]["ids"]
        assert np.array_equal(again, others["better"]["ids"])
    assert len(seen) > 2 * len(data)
    assert better_is_likelier > 3.2 * len(data)


@pytest.fixture
def longer(tokenizer, tmp_path):
    torch.manual_seed(0)
    sizes = dict(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, initializer_range=0.5
    )
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)
    BertForMaskedLM(config).save_pretrained(tmp_path / "longer")
    tokenizer.save_pretrained(tmp_path / "longer")
    return tmp_path / "longer"


def test_a_run_ends_with_a_cross_encoder(base, longer, long_corpus, tmp_path):
    options = dict(max_steps=4, batch_size=8, max_length=20, save_steps=2, learning_rate=1e-2, objective="prop")
    with pytest.raises(InputError, match="max_length is 20; the base has 32 positions, 32 of them for words before"):
        pretrain(long_corpus, tmp_path / "model", base=base, **options)
    notes = []
    pretrain(long_corpus, tmp_path / "whole", base=longer, **options, on_note=notes.append)
    assert any("word_set_order: for cross-encoders" in line for line in notes)

    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(long_corpus, tmp_path / "model", base=longer, **options, on_progress=stop)
    assert pretrain(long_corpus, tmp_path / "model", base=longer, **options).resumed_from == 2
    for name in ("model.safetensors", "heads/model.safetensors", "cross-encoder/model.safetensors"):
        assert (tmp_path / "model" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    found = CrossEncoder(str(tmp_path / "model" / "cross-encoder"), device="cpu")
    assert found.predict([("river", "river stone")], show_progress_bar=False).shape == (1,)


def test_counts_of_words_are_made_once(longer, long_corpus, tmp_path, monkeypatch):
    options = dict(max_steps=2, batch_size=8, max_length=20, save_steps=1, objective="prop", base=longer)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(long_corpus, tmp_path / "model", **options, on_progress=stop)
    config = PretrainConfig(**options)
    window = open_word_sets(tmp_path / "model.partial" / "tokens", config.parsed.word_sets)
    monkeypatch.setattr(WordCounts, "of", None)  # which would be called if they were made anew
    again = open_word_sets(tmp_path / "model.partial" / "tokens", config.parsed.word_sets)
    assert [again(row, np.random.default_rng(row)) for row in range(30)] == [
        window(row, np.random.default_rng(row)) for row in range(30)
    ]
    pretrain(long_corpus, tmp_path / "model", **options)


BPROP = dict(max_steps=4, batch_size=8, max_length=20, save_steps=2, learning_rate=1e-2, objective="bprop")


def test_a_run_over_attended_words_goes_on_with_the_same_bits(longer, long_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(attended_words, "_DOCUMENTS_AT_ONCE", 16)
    notes, options = [], {**BPROP, "base": longer, "word_temperature": 0.2}
    card = pretrain(long_corpus, tmp_path / "whole", **options, on_note=notes.append).card
    assert card["configuration"]["objective"]["word_set_order"]["temperature"] == 0.2
    assert any(line.endswith("texts once for what the encoder attends to") for line in notes)
    calls, real = [], attended_words.first_token_attention

    def attention(*given):
        if len(calls) == 1:
            calls.append("killed")
            raise KeyboardInterrupt
        calls.append("read")
        return real(*given)

    monkeypatch.setattr(attended_words, "first_token_attention", attention)

    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    for _ in range(2):  # killed while it reads, then while it trains
        with pytest.raises(KeyboardInterrupt):
            pretrain(long_corpus, tmp_path / "model", **options, on_progress=stop)
    read = len(calls)
    assert pretrain(long_corpus, tmp_path / "model", **options).resumed_from == 2
    assert len(calls) == read > 3, "nothing is read again"
    for name in ("model.safetensors", "heads/model.safetensors", "cross-encoder/model.safetensors", "log.jsonl"):
        assert (tmp_path / "model" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(InputError, match="made otherwise"):
        pretrain(long_corpus, tmp_path / "model", **{**options, "word_temperature": 0.3})


def test_sets_of_attended_words_are_those_of_the_window(longer, long_corpus, tokenizer, tmp_path):
    config = PretrainConfig(base=longer, max_length=20, objective="prop", word_sets="bprop", word_temperature=0.3)
    base = load_base(str(longer), config.parsed, config.masks, pooling=None, seed=0)
    write_tokens(read_documents(long_corpus), tokenizer, tmp_path / "t", max_length=20, extras=config.extras)
    with pytest.raises(InputError, match="expected an attended-words folder"):
        open_windows(tmp_path / "t", config, tokenizer)
    prepare_word_sets(tmp_path / "t", config, base, lambda _: None)
    data, terms = open_windows(tmp_path / "t", config, tokenizer), ContrastiveTerms(tmp_path / "attended-words")
    found = 0
    for number in range(3 * len(data)):
        others, scores = data[number]["others"], terms.scores(number % len(data))
        own = words_of(tokenizer.decode(data[number]["ids"]))
        sets = [tokenizer.decode(others[name]["ids"]).split() for name in ("better", "worse")]
        assert [tokenizer.decode(data[number]["others"][name]["ids"]).split() for name in ("better", "worse")] == sets
        if not sets[0]:
            continue
        found += 1
        assert len(sets[0]) == len(sets[1])
        assert {*sets[0], *sets[1]} <= set(own)
        better, worse = (sum(scores[word] for word in one) for one in sets)
        assert better > worse
    assert found > len(data)


def test_word_sets_are_an_option_of_objectives_that_have_them(base):
    with pytest.raises(InputError, match="sets is an option of word_set_order, which the objective has not"):
        PretrainConfig(base=base, objective="mlm", word_sets="bprop")
    assert PretrainConfig(base=base, objective="bprop").parsed.word_sets == SetOptions("bprop", 0.05)
    assert PretrainConfig(base=base, objective="prop").parsed.word_sets == SetOptions("prop", 0.05)
    assert PretrainConfig(base=base, objective="mlm").parsed.word_sets is None
    two = {"word_set_order": {"sets": "bprop"}, "word_set_order/other": 1.0}
    with pytest.raises(InputError, match="draw word sets in unlike ways; give them the same options"):
        PretrainConfig(base=base, objective=two)


def test_the_cross_encoder_scores_as_the_term_does(make_model, tokenizer, tmp_path):
    model = make_model("prop", num_hidden_layers=2).eval()
    term = model.terms["word_set_order"]
    made = classifier(model.backbone, term)
    made.save_pretrained(tmp_path / "c")
    tokenizer.save_pretrained(tmp_path / "c")
    encoded = tokenizer(WORDS[:2], TEXTS[:2], padding=True, return_tensors="pt")
    hidden = model.backbone(**encoded).last_hidden_state
    expected = term.scores(hidden)
    torch.testing.assert_close(made(**encoded).logits[:, 0], expected)
    found = CrossEncoder(str(tmp_path / "c"), device="cpu", activation_fn=torch.nn.Identity())
    scores = found.predict(list(zip(WORDS[:2], TEXTS[:2], strict=True)), show_progress_bar=False)
    np.testing.assert_allclose(scores, expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_robertas_classifier_scores_as_the_term_does(tokenizer):
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40, pad_token_id=0,
    )  # fmt: skip
    backbone = RobertaModel(config, add_pooling_layer=False).eval()
    term = WordSetOrder(Backbone(backbone)).eval()
    encoded = tokenizer(WORDS[:2], TEXTS[:2], padding=True, return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    hidden = Backbone(backbone).run(ids, mask)[0]
    places = torch.arange(ids.shape[1])[None] + 1
    made = classifier(backbone, term)(input_ids=ids, attention_mask=mask, position_ids=places.expand_as(ids))
    torch.testing.assert_close(made.logits[:, 0], term.scores(hidden))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": "x"}, "loss is 'x'; expected logistic or hinge"),
        ({"sets": "x"}, "sets is 'x'; expected prop or bprop"),
        ({"temperature": 0.5}, "temperature is 0.5, which sets of words of prop have not; take sets bprop"),
        ({"sets": "bprop", "temperature": 0.0}, "the temperature of word sets is 0.0; expected above 0"),
    ],
)
def test_options_are_checked(make_model, given, message):
    with pytest.raises(InputError, match=message):
        make_model({"word_set_order": given})


def test_a_document_without_words_of_its_own_counts_for_nothing(base, tokenizer, tmp_path):
    documents = [Document(str(n), "river stone green night paper " * 2) for n in range(12)] + [
        Document("x", "the of and")
    ]
    config = PretrainConfig(base=base, objective="prop")
    write_tokens(documents, tokenizer, tmp_path / "t", max_length=24, extras=config.extras)
    data = open_windows(tmp_path / "t", config, tokenizer)
    assert all(len(data[len(data) - 1 + time * len(data)]["others"]["better"]["ids"]) == 0 for time in range(5))
    scarce = [Document("a", "river"), Document("b", "stone")]
    write_tokens(scarce, tokenizer, tmp_path / "s", max_length=24, extras=config.extras)
    with pytest.raises(InputError, match="no word occurs 10 times in 2 documents"):
        open_windows(tmp_path / "s", config, tokenizer)
