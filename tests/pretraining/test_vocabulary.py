"""Vocabularies: texts whose pieces stay are split as before by every kind of tokenizer; new words are one token."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from indexes.errors import InputError
from pretraining.census import Census, take_census
from pretraining.vocabulary import NewWord, choose_words, extend, merges_of, trim
from retrieval.documents import Document

TEXTS = [line.strip() for line in (Path(__file__).parents[2] / "README.md").read_text().splitlines() if line.strip()]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def trained(kind):
    """A tokenizer of a kind, learned from this project's README, with special tokens that are not its first ids."""
    if kind == "WordPiece":
        engine = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        engine.normalizer, engine.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=900, special_tokens=SPECIALS)
    elif kind == "BPE":
        engine = Tokenizer(models.BPE())
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=SPECIALS, initial_alphabet=alphabet)
    else:
        engine = Tokenizer(models.Unigram())
        engine.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=900, special_tokens=SPECIALS, unk_token="[UNK]")
    engine.train_from_iterator(TEXTS, trainer)
    engine.add_tokens(["retrokit-extra"])
    engine.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, engine.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    )
    return engine


class Fast:
    """What a census needs of a transformers tokenizer."""

    def __init__(self, engine):
        self.backend_tokenizer = engine
        self.unk_token_id = engine.token_to_id("[UNK]")


def census_of(engine, texts, tmp_path, words=False):
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    return take_census(documents, Fast(engine), tmp_path / f"{random.random()}.json", words=words)


@pytest.mark.parametrize("kind", ["WordPiece", "BPE", "Unigram"])
@pytest.mark.parametrize("least", [1, 3])
def test_texts_whose_pieces_stay_are_split_as_before(kind, least, tmp_path):
    engine = trained(kind)
    state = json.loads(engine.to_str())
    used = [*TEXTS[::5], "猫 is unknown, retrokit-extra is not", "ünknöwn☃x"]
    census = census_of(engine, used, tmp_path)
    made = trim(state, census, least_count=least, keep=())
    small = Tokenizer.from_str(json.dumps(made.state))
    assert small.get_vocab_size() == len(made.rows) < engine.get_vocab_size()
    names = {number: piece for piece, number in engine.get_vocab().items()}
    assert [small.id_to_token(new) for new in range(len(made.rows))] == [names[row[0]] for row in made.rows]
    same = 0
    for text in [*TEXTS, *used]:
        before, after = engine.encode(text), small.encode(text)
        if all(number in made.ids for number in before.ids):
            same += 1
            assert after.tokens == before.tokens, text
            assert [made.rows[number][0] for number in after.ids] == before.ids
        if least == 1 and text in used:
            assert all(number in made.ids for number in before.ids)
        assert ("[UNK]" in after.tokens) == ("[UNK]" in before.tokens)  # single characters stay
    assert same > len(used) // 2
    assert small.encode("a").ids[0] == small.token_to_id("[CLS]")


def test_an_unknown_word_stays_unknown():
    """Without `ab` the word abc would be a, ##bc: it was unknown, for ab goes on with no ##c."""
    vocabulary = {piece: number for number, piece in enumerate([*SPECIALS, "ab", "a", "##bc", "b"])}
    engine = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    state = json.loads(engine.to_str())
    census = Census(pieces=Counter({vocabulary["##bc"]: 1, 1: 1}), unknown={"abc"})
    small = Tokenizer.from_str(json.dumps(trim(state, census, least_count=1, keep=()).state))
    assert engine.encode("abc").tokens == small.encode("abc").tokens == ["[UNK]"]
    census.unknown = set()
    other = Tokenizer.from_str(json.dumps(trim(state, census, least_count=1, keep=()).state))
    assert other.encode("abc").tokens == ["a", "##bc"]


def test_merges_are_those_that_the_library_makes():
    engine = trained("BPE")
    model = json.loads(engine.to_str())["model"]
    ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
    assert len(ranks) > 300
    for piece in model["vocab"]:
        if len(piece) > 1 and piece not in SPECIALS:
            assert "".join(merges_of(piece, ranks)[-1]) == piece
    assert merges_of("xyzzyq", {}) == []


def test_a_killed_count_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("pretraining.census._DOCUMENTS_AT_ONCE", 8)
    monkeypatch.setattr("pretraining.census._BATCHES_BETWEEN_SAVES", 2)
    engine = trained("WordPiece")
    documents = [Document(str(number), text + " 猫x") for number, text in enumerate(TEXTS[:60])]
    read = []

    def one_by_one(stop=None):
        for document in documents:
            if document.id == stop:
                raise KeyboardInterrupt
            read.append(document.id)
            yield document

    whole = take_census(documents, Fast(engine), tmp_path / "whole.json", words=True)
    with pytest.raises(KeyboardInterrupt):
        take_census(one_by_one("41"), Fast(engine), tmp_path / "state.json", words=True)
    assert Census.read(tmp_path / "state.json").documents == 32
    resumed = take_census(one_by_one(), Fast(engine), tmp_path / "state.json", words=True)
    assert resumed == whole
    assert whole.unknown
    assert whole.splits
    assert whole.pieces.total() == sum(len(engine.encode(d.content, add_special_tokens=False).ids) for d in documents)


def test_words_are_chosen_by_the_tokens_that_they_save(tmp_path):
    engine = trained("WordPiece")
    state = json.loads(engine.to_str())
    texts = ["quixotic zebra quixotic", "zebra 2024-2024 mesmerizing once", "quixotic zebra", "Quixotic!"]
    census = census_of(engine, texts, tmp_path, words=True)
    chosen = choose_words(state, census, 10)
    pieces = {word: len(engine.encode(word, add_special_tokens=False).ids) for word in ("quixotic", "zebra")}
    expected = {"quixotic": 4 * (pieces["quixotic"] - 1), "zebra": 3 * (pieces["zebra"] - 1)}
    assert {new.word: new.saved for new in chosen} == expected
    assert [new.saved for new in chosen] == sorted(expected.values(), reverse=True)
    assert choose_words(state, census, 1) == chosen[:1]
    made = extend(state, engine.get_vocab_size(), chosen)
    larger = Tokenizer.from_str(json.dumps(made.state))
    for text in texts:
        before, after = engine.encode(text), larger.encode(text)
        spelled = [number for new in after.ids for number in made.rows[new]]
        assert spelled == before.ids
    saved = sum(len(engine.encode(text).ids) - len(larger.encode(text).ids) for text in texts)
    assert saved == sum(expected.values())
    for text in TEXTS:  # no word of the README begins with one of the two
        after = larger.encode(text + " retrokit-extra")
        assert after.tokens == engine.encode(text + " retrokit-extra").tokens
        assert [made.rows[number][0] for number in after.ids] == engine.encode(text + " retrokit-extra").ids


@pytest.mark.parametrize("kind", ["BPE", "Unigram"])
def test_words_are_refused_where_they_mean_something_else(kind):
    with pytest.raises(InputError, match=f"of kind {kind}.*extension supports WordPiece"):
        choose_words(json.loads(trained(kind).to_str()), Census(), 5)


def test_kinds_that_are_not_exact_are_refused():
    words = json.loads(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).to_str())
    with pytest.raises(InputError, match="of kind WordLevel; changing a vocabulary supports WordPiece, BPE, Unigram"):
        trim(words, Census(), least_count=1, keep=())
    pairs = json.loads(Tokenizer(models.BPE({"a</w>": 0}, [], end_of_word_suffix="</w>")).to_str())
    with pytest.raises(InputError, match="BPE with end_of_word_suffix '</w>', which is not supported"):
        trim(pairs, Census(), least_count=1, keep=())


def test_a_vocabulary_that_cannot_spell_every_word_is_not_extended():
    vocabulary = {piece: number for number, piece in enumerate([*SPECIALS, "a", "##bc", "##b"])}
    state = json.loads(Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")).to_str())
    with pytest.raises(InputError, match=r"has ##…c… but no ##c"):
        choose_words(state, Census(), 5)
    vocabulary["##c"] = len(vocabulary)
    state = json.loads(Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")).to_str())
    census = Census(splits=Counter({(4, 5): 2, (4, 6): 1}))
    assert choose_words(state, census, 5) == [NewWord("abc", (4, 5), 2)]
