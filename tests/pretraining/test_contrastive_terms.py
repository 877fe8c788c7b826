"""B-PROP's words: attention collected as it is, scores as the formulas say, sets drawn as their chances say."""

import json
import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chi2, poisson
from transformers import AutoModel, BertConfig, BertModel, DebertaV2Config, DebertaV2Model

import pretraining.attended_words as attended
from indexes.errors import InputError
from pretraining.attended_words import Reader, attended_words, cached_terms, load_reader, write_attended_words
from pretraining.backbones import Backbone
from pretraining.contrastive_terms import ContrastiveTerms
from retrieval.documents import Document

TEXTS = [
    "River stone, the river and GREEN paper!",
    "Walking stones at night; music of water and the train, the house, the music again. Green green paper of trains.",
    "stone",
    "of the 42",
    "Naïve river4stone walks",
]
STOP = {"the", "and", "at", "of", "again"}
ATTENTION = [
    {"river": 0.2, "stone": 0.05, "green": 0.1, "paper": 0.001},
    {"stone": 0.3, "night": 0.02, "music": 0.01, "water": 0.004, "train": 0.0},
    {},
    {"river": 0.4, "walk": 0.03},
    {"paper": 0.0, "house": 0.0},
]


@pytest.fixture
def reader(tokenizer):
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, pad_token_id=0)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, initializer_range=0.6, **sizes)
    return Reader(Backbone(BertModel(config, add_pooling_layer=False).eval()), tokenizer, 12)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in which attention is what a test says."""

    def made(rows, name="attended"):
        monkeypatch.setattr(attended, "attended_words", lambda texts, _: [rows[int(text)] for text in texts])
        plain = SimpleNamespace(backbone=SimpleNamespace(module=torch.nn.Linear(1, 1)))
        documents = [Document(f"d{row}", str(row)) for row in range(len(rows))]
        write_attended_words(documents, tmp_path / name, lambda: plain, "k" * 64, lambda _: None)
        return tmp_path / name

    return made


@torch.no_grad()
def slow_attention(reader, text):
    """A loop over windows, words and letters, with transformers' eager attention of one window at a time."""
    eager = AutoModel.from_config(reader.backbone.config, attn_implementation="eager").eval()
    eager.load_state_dict(reader.backbone.module.state_dict(), strict=False)
    encoded = reader.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets, room = encoded["input_ids"], encoded["offset_mapping"], reader.length - 2
    count = -(-len(ids) // room)
    weights = []
    for part in range(count):
        piece = ids[len(ids) * part // count : len(ids) * (part + 1) // count]
        whole = torch.tensor([[reader.tokenizer.cls_token_id, *piece, reader.tokenizer.sep_token_id]])
        attention = eager(input_ids=whole, output_attentions=True).attentions[-1]
        weights += [
            float(sum(attention[0, :, 0, 1 + place])) / len(attention[0]) / count for place in range(len(piece))
        ]
    found, letters = {}, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for start in range(len(text)):
        if text[start] not in letters or (start and text[start - 1] in letters):
            continue
        end = next((end for end in range(start, len(text)) if text[end] not in letters), len(text))
        word = text[start:end].lower()
        if word not in STOP:
            (piece,) = [place for place, (first, last) in enumerate(offsets) if first <= start < last]
            found[word] = found.get(word, 0.0) + weights[piece]
    return found


def test_attention_to_words_is_that_to_their_first_pieces_summed(reader):
    found = attended_words(TEXTS, reader)
    assert [set(one) for one in found] == [set(slow_attention(reader, text)) for text in TEXTS]
    for one, text in zip(found, TEXTS, strict=True):
        assert one == pytest.approx(slow_attention(reader, text), rel=1e-4)
    assert found[2].keys() == {"stone"}
    assert found[3] == {}
    assert {"na", "ve", "river", "stone", "walks"} == found[4].keys()
    assert "green" in found[1], "a word of the last window"
    pieces = len(reader.tokenizer(TEXTS[1], add_special_tokens=False)["input_ids"])
    assert pieces > 3 * (reader.length - 2), "several windows"
    assert attended_words([""], reader) == [{}]


def oracle(rows, document):
    """c of each word of a document, one number after the other."""
    total, each = 0.0, Counter()
    for row in rows:
        for word, value in row.items():
            each[word] += value / (value + 0.01)
            total += value / (value + 0.01)
    own = {word: value / (value + 0.01) for word, value in rows[document].items()}
    chance = {word: value / sum(own.values()) for word, value in own.items()}
    return {
        word: min(chance[word] * -math.log2(each[word] / total), 100) if each[word] else 0.0 for word in rows[document]
    }


def test_scores_are_the_formulas(folder):
    terms = ContrastiveTerms(folder(ATTENTION))
    for document in (0, 1, 3):
        # float32 attention: 6e-8 of each
        assert terms.scores(document) == pytest.approx(oracle(ATTENTION, document), rel=1e-6)
    assert terms.scores(2) == {}
    for document in (2, 4):
        assert terms.draw(document, np.random.default_rng(0)) is None
        assert terms.draw_two(document, np.random.default_rng(0)) is None
    assert terms.scores(1)["train"] == 0


def chi_square(counts, chances, draws):
    assert sum(chances.values()) == pytest.approx(1)
    assert counts.keys() <= chances.keys()
    apart = sum((counts[one] - draws * chance) ** 2 / (draws * chance) for one, chance in chances.items())
    assert apart < chi2.ppf(0.9999, len(chances) - 1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_words_are_drawn_by_softmax_without_replacement(folder, temperature):
    terms, generator, draws = ContrastiveTerms(folder(ATTENTION), temperature), np.random.default_rng(3), 8000
    weights = {word: math.exp(score / temperature) for word, score in oracle(ATTENTION, 0).items()}
    first, two, sizes = Counter(), Counter(), Counter()
    for _ in range(draws):
        drawn = terms.draw(0, generator)
        assert len(set(drawn)) == len(drawn)
        first[drawn[0]] += 1
        sizes[len(drawn)] += 1
        if len(drawn) > 1:
            two[drawn[:2]] += 1
    total = sum(weights.values())
    chi_square(first, {word: weight / total for word, weight in weights.items()}, draws)
    pairs = {
        (one, other): weights[one] / total * weights[other] / (total - weights[one])
        for one in weights
        for other in weights
        if one != other
    }
    chi_square(two, pairs, two.total())
    some = 1 - poisson.pmf(0, 3)
    chances = {size: poisson.pmf(size, 3) / some for size in range(1, 4)}
    chi_square(sizes, {**chances, 4: 1 - sum(chances.values())}, draws)  # a document of four words has no more


def test_hot_is_uniform_and_cold_is_greedy(folder):
    place, generator = folder(ATTENTION), np.random.default_rng(0)
    hot, cold = ContrastiveTerms(place, 1e9), ContrastiveTerms(place, 1e-6)
    chi_square(Counter(hot.draw(1, generator)[0] for _ in range(4000)), dict.fromkeys(ATTENTION[1], 1 / 5), 4000)
    scores = oracle(ATTENTION, 1)
    order = sorted(scores, key=scores.get, reverse=True)
    for _ in range(50):
        drawn = cold.draw(1, generator)
        assert list(drawn) == order[: len(drawn)]
        assert cold.draw_two(1, generator) is None, "both sets are the same"


def test_of_two_sets_the_more_contrastive_one_is_better(folder):
    terms, scores = ContrastiveTerms(folder(ATTENTION), 0.5), oracle(ATTENTION, 1)
    same = 0
    for seed in range(300):
        found = terms.draw_two(1, np.random.default_rng(seed))
        if found is None:
            same += 1
            continue
        assert found == terms.draw_two(1, np.random.default_rng(seed))
        assert len(found.better) == len(found.worse)
        worth = [sum(scores[word] for word in one) for one in (found.better, found.worse)]
        assert found.scores == pytest.approx(worth, rel=1e-6)
        assert worth[0] > worth[1]
    assert 0 < same < 200


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_a_temperature_has_to_be_one(folder, value):
    with pytest.raises(InputError, match="the temperature of word sets is .*; expected above 0, such as 0.05"):
        ContrastiveTerms(folder(ATTENTION), value)


def test_words_that_nothing_attends_to_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="no word of 1 documents is attended to"):
        ContrastiveTerms(folder([{"river": 0.0}]))
    with pytest.raises(InputError, match="none of 2 texts has a word of letters that is no stop word"):
        folder([{}, {}], "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(InputError, match="expected an attended-words folder"):
        ContrastiveTerms(tmp_path / "nowhere")


class Counted:
    """`first_token_attention`, counted by texts, and killed after some."""

    def __init__(self, monkeypatch, kill_at=None):
        self.texts, self.calls, self.kill_at, self.real = 0, 0, kill_at, attended.first_token_attention
        monkeypatch.setattr(attended, "first_token_attention", self)

    def __call__(self, backbone, ids, mask):
        if self.calls == self.kill_at:
            raise KeyboardInterrupt
        self.calls, self.texts = self.calls + 1, self.texts + len(ids)
        return self.real(backbone, ids, mask)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_killed_pass_goes_on_and_ends_with_the_same_bytes(reader, tmp_path, monkeypatch):
    monkeypatch.setattr(attended, "_DOCUMENTS_AT_ONCE", 2)
    documents = [Document(f"d{row}", f"{TEXTS[row % 5]} {TEXTS[row % 3]}") for row in range(9)]
    module, notes = reader.backbone.module, []

    def write(name, key="a" * 64, note=notes.append):
        write_attended_words(documents, tmp_path / name, lambda: reader, key, note)

    module.train()
    with monkeypatch.context() as patch:
        whole = Counted(patch)
        write("whole")
        write("whole")
    assert module.training, "given back as it was"
    assert notes == ["reading 9 texts once for what the encoder attends to"]
    with monkeypatch.context() as patch:
        Counted(patch, kill_at=2)
        with pytest.raises(KeyboardInterrupt):
            write("killed")
    assert not (tmp_path / "killed").exists()
    assert len(list((tmp_path / "killed.partial").glob("0*.npz"))) == 2
    with monkeypatch.context() as patch:
        rest = Counted(patch)
        write("killed")
    assert 0 < rest.texts < whole.texts
    assert rest.calls == whole.calls - 2
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert not (tmp_path / "killed.partial").exists()
    with monkeypatch.context() as patch:
        Counted(patch, kill_at=2)
        with pytest.raises(KeyboardInterrupt):
            write("killed", "b" * 64)
    with monkeypatch.context() as patch:
        anew = Counted(patch)
        write("killed", "c" * 64)
    assert anew.texts == whole.texts, "what was begun under another key counts for nothing"
    assert json.loads((tmp_path / "killed" / "manifest.json").read_text())["key"] == "c" * 64


def test_it_is_read_once_for_all_temperatures_and_again_when_it_is_damaged(model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    documents = {f"d{row}": Document(f"d{row}", f"river stone {'water ' * row} night") for row in range(6)}

    def terms(model=model_folder, temperature=0.1):
        return cached_terms(documents.values(), str(model), temperature, lambda _: None)

    counted = Counted(monkeypatch)
    first = terms()
    assert counted.texts == 6
    assert terms(temperature=2.0).scores(3) == first.scores(3)
    assert counted.texts == 6
    documents["d6"] = Document("d6", "green paper")
    assert len(terms()) == 7
    assert counted.texts == 13
    for path in (tmp_path / "cache").rglob("attention.npy"):
        path.write_bytes(path.read_bytes()[:-1])
    assert terms().scores(3).keys() == first.scores(3).keys()
    assert counted.texts == 20
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    with pytest.raises(InputError, match="cannot be written .*; set XDG_CACHE_HOME to a folder that can"):
        terms()


def test_readers_are_encoders_whose_attention_can_be_read(model_folder, tokenizer, tmp_path, monkeypatch):
    assert load_reader(str(model_folder)).length == 32
    assert load_reader(f"{model_folder}-plain").length == 64
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, pad_token_id=0)
    DebertaV2Model(DebertaV2Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "deberta")
    tokenizer.save_pretrained(tmp_path / "deberta")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(
        InputError, match="is a deberta-v2 model; the attention of its first token can be read from bert"
    ):
        cached_terms([Document("a", "river")], str(tmp_path / "deberta"), 0.1, lambda _: None)
    assert not list((tmp_path / "cache").rglob("*.json")), "nothing is left behind"
