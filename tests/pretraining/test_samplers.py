"""Samplers: what each makes of a document, and that nothing but seed and id decides."""

import random

import pytest

from indexes.errors import InputError
from pretraining.samplers import SAMPLERS, sample_pairs, sentences
from retrieval.documents import Document

TEXT = "Rivers run to the sea. Stones stay where they are for years. Paper burns in a fire. Nothing else is known here."
DOCUMENT = Document("d1", TEXT, "On water and stones")


def test_sentences():
    assert sentences(TEXT)[1] == "Stones stay where they are for years."
    assert sentences("one line\n\nanother e.g. this one") == ["one line", "another e.g. this one"]
    assert sentences("") == [""]


@pytest.mark.parametrize("name", SAMPLERS)
def test_pairs_come_from_the_document_and_repeat(name):
    pairs = [pair for seed in range(40) for pair in sample_pairs([DOCUMENT], [name], seed)]
    assert len(pairs) == 40
    again = [pair for seed in range(40) for pair in sample_pairs([Document("d0", TEXT), DOCUMENT], [name], seed)]
    assert [pair for pair in again if pair.document == "d1"] == pairs
    assert all(pair.document == "d1" for pair in pairs)
    assert (len(set(pairs)) > 1) == (name in ("sentence", "span", "section"))
    for pair in pairs:
        if name == "title":
            assert (pair.query, pair.text) == (DOCUMENT.title, TEXT)
        if name == "lead":
            assert (pair.query, pair.text) == (sentences(TEXT)[0], " ".join(sentences(TEXT)[1:]))
        if name == "section":
            assert pair.query == sentences(TEXT)[0]
            assert pair.text in TEXT
            assert pair.query not in pair.text
        if name == "span":
            assert pair.query in TEXT
            assert 3 <= len(pair.query.split()) <= 10
            assert pair.text == DOCUMENT.content
        if name == "sentence":
            assert pair.query in sentences(TEXT)
            assert pair.text.startswith(DOCUMENT.title)


def test_the_sentence_stays_in_its_document_one_time_in_ten():
    rng = random.Random(1)
    made = [SAMPLERS["sentence"](DOCUMENT, rng) for _ in range(2000)]
    whole = sum(text == DOCUMENT.content for _, text in made) / 2000
    assert 0.07 < whole < 0.13
    assert all((query in text) == (text == DOCUMENT.content) for query, text in made)


def test_short_documents_give_no_pairs_and_unknown_samplers_are_named():
    short = [Document("a", ""), Document("b", "one two"), Document("c", "no title here but some more words follow now")]
    assert list(sample_pairs(short, ["title", "lead"], 0)) == []
    with pytest.raises(
        InputError, match="sampler 'magic' is unknown; expected one of title, lead, sentence, span, section, "
    ):
        list(sample_pairs(short, ["magic"], 0))


def test_representative_words_need_the_collection():
    texts = [f"river stone paper {'water ' * number} house train" for number in range(40)]
    documents = [Document(f"d{number}", text) for number, text in enumerate(texts)]
    pairs = list(sample_pairs(documents, ["words"], 0))
    assert 10 <= len(pairs) <= 40  # (of few words both sets are often alike)
    assert pairs == list(sample_pairs(documents, ["words"], 0))
    assert pairs != list(sample_pairs(documents, ["words"], 1))
    for pair in pairs:
        assert set(pair.query.split()) <= {"river", "stone", "paper", "water", "house", "train"}
        assert pair.text == documents[int(pair.document[1:])].content
    with pytest.raises(InputError, match="no word occurs 10 times"):
        list(sample_pairs([DOCUMENT], ["words"], 0))
