"""Long documents: passages that lose nothing and split no word, the vectors of their texts, and means of those."""

import bisect
import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fixtures import WORDS, random_texts
from hypothesis import given, settings
from hypothesis import strategies as st

from indexes.errors import InputError
from retrieval.documents import Document
from retrieval.encoder import Encoder
from retrieval.passages import LongDocuments, room_and_overlap, windows
from retrieval.tokenizing import TextTokenizer

LONG = random_texts(6, seed=5, longest=120)
DOCUMENTS = [
    Document("short", "river stone green"),
    Document("empty", ""),
    Document("titled", LONG[0], "a title of letters"),
    Document("spaced", f"  cat,dog.\n\n{LONG[1]}\t  {LONG[2]} . "),
    Document("letters", "zebra quagga okapi " * 9),
    Document("one-word", "abcdefghij" * 12),
    Document("just-fits", " ".join(WORDS[:10] * 3)),  # 30 tokens, and two markers
    Document("one-too-many", " ".join([*WORDS[:10] * 3, "cat"])),
]


@st.composite
def cases(draw):
    starts = draw(st.lists(st.booleans(), max_size=60))
    size = draw(st.integers(1, 14))
    return starts, size, draw(st.integers(0, size - 1))


def places_to_cut(starts: list[bool], size: int) -> list[int]:
    """Between words, and everywhere within words longer than a window."""
    n = len(starts)
    between = sorted({0, n} | {place for place in range(n) if starts[place]})
    word = [bisect.bisect_right(between, place) for place in range(n)]
    return [place for place in range(n + 1) if place in between or word.count(word[place]) > size]


@settings(max_examples=300, deadline=None)
@given(cases())
def test_windows_cover_all_tokens_and_split_no_word_that_fits(case):
    starts, size, overlap = case
    cuts = places_to_cut(starts, size)
    found = windows(starts, size, overlap)
    assert (found[0][0], found[-1][1]) == (0, len(starts))
    assert all(0 <= last - first <= size for first, last in found)
    assert {place for span in found for place in span} <= set(cuts)
    for (first, last), (begin, end) in itertools.pairwise(found):
        assert first < begin <= last < end  # no gap, and every window brings something new
        before, after = max(cut for cut in cuts if cut < begin), min(cut for cut in cuts if cut > last)
        assert after - first > size  # as much as fits
        assert last - begin >= overlap or after - before > size  # less only where the word that follows needs room
        assert last - min(cut for cut in cuts if cut > begin) < overlap or overlap == 0  # no word more than needed
        assert overlap > 0 or begin == last


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 20), st.data())
def test_windows_of_words_of_one_token(n, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    step = size - overlap
    count = max(-(-(n - overlap) // step), 1)  # ceil
    assert windows([True] * n, size, overlap) == [(step * i, min(step * i + size, n)) for i in range(count)]


def test_windows_by_hand():
    words = [True, False, False, True, True, False, True, False, False, False]  # of 3, 1, 2 and 4 tokens
    assert windows(words, 6, 0) == [(0, 6), (6, 10)]
    assert windows(words, 6, 2) == [(0, 6), (4, 10)]
    assert windows(words, 6, 3) == [(0, 6), (4, 10)]  # three would split the last word off
    assert windows(words, 5, 1) == [(0, 4), (3, 6), (6, 10)]
    assert windows(words, 3, 1) == [(0, 3), (3, 6), (4, 7), (6, 9), (8, 10)]  # the last word is longer than a window
    assert windows([], 5, 2) == [(0, 0)]
    assert windows([True, False], 5, 2) == [(0, 2)]


def test_room_and_overlap():
    assert room_and_overlap(32, 4, None, 32) == (28, 3)  # an eighth
    assert room_and_overlap(32, 4, 27, 32) == (28, 27)
    with pytest.raises(InputError, match="33 tokens is longer than the encoder reads; expected at most 32"):
        room_and_overlap(33, 2, None, 32)
    with pytest.raises(InputError, match="overlap is 28 of 28 tokens of text in a passage; expected fewer"):
        room_and_overlap(32, 4, 28, 32)
    with pytest.raises(InputError, match="a passage of 8 tokens has no room for text beside 9 of prompt and markers"):
        room_and_overlap(8, 9, None, 32)


def test_long_documents_say_what_they_cannot_be():
    with pytest.raises(InputError, match="long documents are 'cut'; expected one of truncate, passages, mean, late"):
        LongDocuments("cut")
    with pytest.raises(InputError, match="a passage of 7 tokens is too short; expected at least 8"):
        LongDocuments("passages", tokens=7)
    with pytest.raises(InputError, match="overlap is -1; expected 0 or more"):
        LongDocuments("passages", overlap=-1)


def test_a_folder_records_what_plays_a_part():
    assert LongDocuments(tokens=16, overlap=2).fields == {"long_documents": "truncate"}
    assert LongDocuments("mean", 16, 2).fields == {"long_documents": "mean", "passage_tokens": 16, "overlap": 2}


def test_an_encoder_refuses_passages_that_do_not_fit(model_folder, encoder):
    with pytest.raises(InputError, match="33 tokens is longer than the encoder reads; expected at most 32"):
        encoder.check_long_documents(LongDocuments("passages", tokens=33))
    with pytest.raises(InputError, match="overlap is 30 of 30 tokens of text in a passage; expected fewer"):
        encoder.check_long_documents(LongDocuments("mean", overlap=30))
    prompted = Encoder.load(str(model_folder), document_prompt="cat dog cat dog cat dog cat dog ")
    with pytest.raises(InputError, match="a passage of 10 tokens has no room for text beside 10"):
        prompted.check_long_documents(LongDocuments("passages", tokens=10))
    with pytest.raises(InputError, match="overlap is 22 of 22 tokens"):
        list(prompted.stream(DOCUMENTS, long_documents=LongDocuments("passages", overlap=22)))


@pytest.mark.parametrize("prompt", ["", "paper music "])
@pytest.mark.parametrize("tokens", [None, 16])
def test_a_passage_has_the_vector_of_its_text(model_folder, prompt, tokens):
    encoder = Encoder.load(str(model_folder), document_prompt=prompt)
    long = LongDocuments("passages", tokens=tokens, overlap=2)
    tokenized = encoder.tokenize(DOCUMENTS, long)
    vectors, passages, truncated = encoder.run(tokenized)
    assert truncated == encoder.truncated == 0
    texts = [DOCUMENTS[document].content[begin:end] for document, begin, end in passages]
    np.testing.assert_allclose(vectors, encoder.encode_documents(texts), atol=1e-6)
    assert encoder.truncated == 0  # so each of them was read to its end
    opening = encoder.tokenizer.tokenizer(prompt)["input_ids"][:-1]  # without the last marker
    assert all(ids[: len(opening)] == opening for ids in tokenized.tokens)
    assert max(map(len, tokenized.tokens)) == (tokens or 32)
    for row, document in enumerate(DOCUMENTS):
        left = list(document.content)
        for begin, end in passages[passages[:, 0] == row, 1:]:
            left[begin:end] = " " * (end - begin)
        assert not "".join(left).strip()
    assert passages[:, 0].tolist() == sorted(passages[:, 0])
    assert set(passages[:, 0]) == set(range(len(DOCUMENTS)))


def test_passages_share_tokens_and_short_documents_are_whole(encoder):
    long = LongDocuments("passages", tokens=12, overlap=3)
    texts = [*LONG, "river", "", " ".join(WORDS[:10])]
    vectors, passages, _ = encoder.run(encoder.tokenize([Document(str(n), text) for n, text in enumerate(texts)], long))
    for row, text in enumerate(LONG):
        spans = passages[passages[:, 0] == row, 1:].tolist()
        assert len(spans) > 1
        assert [len(text[begin:end].split()) for begin, end in spans[:-1]] == [10] * (len(spans) - 1)
        assert all(len(text[begin:end].split()) == 3 for (_, end), (begin, _) in itertools.pairwise(spans))
    short = passages[:, 0] >= len(LONG)
    assert passages[short].tolist() == [[row, 0, len(texts[row])] for row in range(len(LONG), len(texts))]
    np.testing.assert_allclose(vectors[short], encoder.encode_documents(texts[len(LONG) :]), atol=1e-6)


def test_stream_gives_an_id_for_each_passage(encoder):
    long = LongDocuments("passages", tokens=12)
    whole = encoder.run(encoder.tokenize(DOCUMENTS, long))
    parts = list(encoder.stream(DOCUMENTS, long_documents=long, window=3))
    assert len(parts) == 3
    assert [one for ids, _ in parts for one in ids] == [DOCUMENTS[row].id for row in whole.passages[:, 0]]
    np.testing.assert_allclose(np.concatenate([vectors for _, vectors in parts]), whole.vectors, atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_mean_is_the_mean_of_the_passages(model_folder, normalize):
    encoder = Encoder.load(str(model_folder), normalize=normalize)
    size = {"tokens": 12, "overlap": 2}
    parts = encoder.run(encoder.tokenize(DOCUMENTS, LongDocuments("passages", **size)))
    found = encoder.run(encoder.tokenize(DOCUMENTS, LongDocuments("mean", **size)))
    assert found.passages is None
    assert found.vectors.dtype == np.float32
    assert len(parts.vectors) > len(DOCUMENTS)
    wide = parts.vectors.astype(np.float64)
    oracle = np.stack([wide[parts.passages[:, 0] == row].mean(0) for row in range(len(DOCUMENTS))])
    if normalize:
        oracle /= np.linalg.norm(oracle, axis=1, keepdims=True)
    np.testing.assert_allclose(found.vectors, oracle, atol=1e-6)
    cut = encoder.encode_documents([document.content for document in DOCUMENTS])
    assert np.abs(found.vectors - cut).max() > 1e-3


@pytest.mark.parametrize("strategy", ["passages", "mean"])
def test_documents_that_fit_have_the_plain_vectors_to_the_last_bit(encoder, strategy):
    texts = random_texts(40, longest=30)
    documents = [Document(str(row), text) for row, text in enumerate(texts)]
    found = encoder.run(encoder.tokenize(documents, LongDocuments(strategy)))
    assert found.vectors.tobytes() == encoder.encode_documents(texts).tobytes()


def test_cut_documents_are_counted_once_each(model_folder):
    encoder = Encoder.load(str(model_folder))
    long = sum(len(encoder.tokenizer.tokenizer(document.content)["input_ids"]) > 32 for document in DOCUMENTS)
    assert 0 < long < len(DOCUMENTS)
    assert encoder.run(encoder.tokenize(DOCUMENTS, LongDocuments())).truncated == long
    encoder.encode_documents([document.content for document in DOCUMENTS])
    encoder.encode_queries([DOCUMENTS[2].content])  # alone
    list(encoder.stream(DOCUMENTS, window=2))
    assert encoder.truncated == 3 * long + 1
    encoder.run(encoder.tokenize(DOCUMENTS, LongDocuments("mean")))
    assert encoder.truncated == 3 * long + 1


# Tokenizers to which a word at the beginning of a text is another than inside of one.


def byte_level():
    from tokenizers import models, pre_tokenizers, processors, trainers

    options = {"vocab_size": 400, "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    trainer = trainers.BpeTrainer(special_tokens=["<s>", "</s>", "<pad>"], show_progress=False, **options)
    # As in running text: words are learned with the space before them, so that a first word is many tokens.
    ends = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=False)
    learned = [f" {text}" for text in random_texts(100, seed=9)]
    return fast(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False), trainer, ends, learned)


def sentencepiece():
    from tokenizers import models, pre_tokenizers, processors, trainers

    options = {"unk_token": "<unk>", "special_tokens": ["<s>", "</s>", "<pad>", "<unk>"], "show_progress": False}
    trainer = trainers.UnigramTrainer(vocab_size=60, **options)
    ends = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return fast(models.Unigram(), pre_tokenizers.Metaspace(), trainer, ends, [CHINESE, *random_texts(100, seed=9)])


def fast(model, pre_tokenizer, trainer, ends, texts):
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = ends
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


CHINESE = "河石綠走夜紙音水河夜石走綠紙音水走夜紙音水石綠河石紙音夜" * 4
OTHERS = {
    "byte-level, words": (byte_level, LONG[3]),
    "byte-level, no spaces": (byte_level, CHINESE),
    "sentencepiece, no spaces": (sentencepiece, CHINESE),
}


@pytest.mark.parametrize(("make", "text"), OTHERS.values(), ids=OTHERS)
def test_no_text_is_lost_where_a_passage_has_more_tokens_than_it_had_inside(make, text):
    tokenizer = make()
    texts = TextTokenizer(tokenizer, 16)
    special = tokenizer.num_special_tokens_to_add()
    for strategy in ("passages", "late"):
        long = LongDocuments(strategy, 8 if strategy == "late" else None, overlap=0)
        found = texts.read(["river", text, text[:90]], "", long)
        assert found.truncated == 0
        assert max(map(len, found.tokens)) <= 16
        left = list(text)
        for begin, end in found.passages[found.passages[:, 0] == 1, 1:]:
            left[begin:end] = " " * (end - begin)
        assert not "".join(left).strip()
        # A document's passages are its own: the others have no part in them.
        alone = texts.read([text], "", long)
        np.testing.assert_array_equal(alone.passages[:, 1:], found.passages[found.passages[:, 0] == 1, 1:])
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    first = found.tokens[1 : 1 + len(alone.tokens)]
    assert sum(map(len, first)) - special * len(first) > len(whole)  # it was one of those texts


def test_what_cannot_be_made_to_fit_is_counted():
    """Words of one token that are five behind a prompt without a space: no cut would make them fit."""
    texts = TextTokenizer(byte_level(), 16)
    words = " stone river" * 40
    found = texts.read([words, "river"], "", LongDocuments("passages", overlap=13))
    assert (found.documents, found.truncated) == (2, 1)
    assert set(found.passages[:, 0]) == {0, 1}


def slow_tokenizer():
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer(extra_ids=0)


def test_a_slow_tokenizer_can_only_truncate_and_counts_too():
    texts = TextTokenizer(slow_tokenizer(), 8)
    found = texts.read(["river stone", "river!!", "river", "", "river!!!"], "", LongDocuments())
    assert found.truncated == 2
    assert [len(ids) for ids in found.tokens] == [8, 8, 6, 1, 8]  # bytes and one marker
    assert texts.read(["river"], "", LongDocuments()).truncated == 0
    for strategy in ("passages", "mean", "late"):
        with pytest.raises(InputError, match="does not say where its tokens lie; encode with truncate"):
            texts.read(["river"], "", LongDocuments(strategy))


class OneAtATime:
    """A tokenizer that notes whether two threads were inside of it at once."""

    def __init__(self, tokenizer):
        self.tokenizer, self.inside, self.met = tokenizer, 0, False

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def __call__(self, *texts, **options):
        return self._watch(self.tokenizer, *texts, **options)

    def tokenize(self, *texts, **options):
        return self._watch(self.tokenizer.tokenize, *texts, **options)

    def _watch(self, call, *texts, **options):
        self.inside += 1
        self.met |= self.inside > 1
        time.sleep(0.0005)
        try:
            return call(*texts, **options)
        finally:
            self.inside -= 1


def test_tokenizing_in_two_threads_at_once(encoder):
    """Lengths are set inside a tokenizer: one thread must not see another's."""
    watched = OneAtATime(encoder.tokenizer.tokenizer)
    texts = TextTokenizer(watched, 32)
    jobs = [LongDocuments(), LongDocuments("passages", tokens=12), LongDocuments("late", tokens=8)] * 20
    expected = [texts.read(LONG, "paper ", long).tokens for long in jobs[:3]]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda long: texts.read(LONG, "paper ", long).tokens, jobs))
    assert found == expected * 20
    assert not watched.met
