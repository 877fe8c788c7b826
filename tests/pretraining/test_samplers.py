"""Samplers: what each makes of a document, and that nothing but seed and id decides."""

import random

import pytest

from indexes.errors import InputError
from pretraining.samplers import SAMPLERS, links_of, sample_pairs, sentences
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


PAGES = {
    "a": ("Apples are a fruit of trees. They fall in autumn. Some stay. Some are green. All of them are round.", ["b"]),
    "b": ("Birds sing in the tree. They eat apples all day long. Cats eat birds at night. Cats sleep in the day.", []),
    "c": (" ".join(f"Cats number {n} sleeps on a warm stone beside the old river." for n in range(12)), ["b", 7, "b"]),
    "d": ("Dogs bark.", ["b"]),
    "e": ("Elephants never forget what they saw. They walk far in the heat.", ["e", "nowhere", "c"]),
    "7": ("Seven is a number between six and eight. It is odd.", None),
    "f": ("", ["7"]),
}
LINKED = [Document(name, text, "", {"links": links}) for name, (text, links) in PAGES.items()]


def test_links_ask_for_passages_of_pages_that_link_here():
    notes, seen = [], set()
    for seed in range(200):
        for pair in sample_pairs(LINKED, ["links"], seed, note=notes.append):
            (asked,) = [name for name, (text, _) in PAGES.items() if pair.query in text]
            assert asked in map(str, PAGES[pair.document][1]), "the page of the text links to that of the query"
            assert asked != pair.document
            assert pair.query == sentences(PAGES[asked][0])[0] or asked == "c"
            assert pair.text in " ".join(PAGES[pair.document][0].split())
            assert len(pair.text.split()) >= 8
            assert len(pair.text.split()) < 60 + 12
            seen.add((asked, pair.document))
    # nobody who links to b but d, whose text is too short, is left out; nothing links to a, d and e but e itself
    assert seen == {("b", "a"), ("b", "c"), ("7", "c"), ("c", "e")}
    assert set(notes) == {"links left out: 1 to unknown ids, 1 to the very document"}
    assert list(sample_pairs(LINKED, ["links"], 3)) == list(sample_pairs(LINKED, ["links"], 3))
    assert list(sample_pairs(LINKED, ["links"], 3)) != list(sample_pairs(LINKED, ["links"], 4))


def test_passages_of_all_linking_pages_are_drawn_alike():
    drawn = [pair for seed in range(600) for pair in sample_pairs(LINKED[:4], ["links"], seed)]
    share = sum(pair.document == "a" for pair in drawn) / len(drawn)
    assert share == pytest.approx(0.5, abs=0.07)
    assert len({pair.text for pair in drawn if pair.document == "c"}) > 5


@pytest.mark.parametrize(
    ("links", "message"),
    [
        ("b", "links of document 'x' is 'b'; expected a list of ids"),
        ({"b": 1}, "links of document 'x' is {'b': 1}; expected a list of ids"),
        (["b", True], "links of document 'x' has True; expected ids"),
        ([["b"]], r"links of document 'x' has \['b'\]; expected ids"),
    ],
)
def test_links_are_ids(links, message):
    with pytest.raises(InputError, match=message):
        links_of(Document("x", "text", "", {"links": links}))
    assert links_of(Document("x", "text")) == []


def test_a_collection_without_links_is_refused():
    alone = [Document("a", TEXT, "", {"links": ["a", "b"]}), Document("c", TEXT)]
    message = r"none of 2 documents links to another one \(1 links to unknown ids, 1 to the very document\)"
    with pytest.raises(InputError, match=message):
        list(sample_pairs(alone, ["links"], 0))
