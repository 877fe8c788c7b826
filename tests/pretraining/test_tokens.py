"""Token shards: every piece kept, whole words marked, batches as the encoder wants them."""

import hashlib

import numpy as np
import pytest

from indexes.errors import InputError
from pretraining.token_writer import write_tokens
from pretraining.tokens import Collator, TokenWindows, continuations, windows, word_starts
from retrieval.documents import Document, document_bytes

DOCUMENTS = [
    Document("a", "walking river " * 9, "green"),
    Document("b", "  "),
    Document("c", "stone [SEP] paper."),
    Document("d", "night"),
]


@pytest.fixture
def folder(tokenizer, tmp_path):
    write_tokens(iter(DOCUMENTS), tokenizer, tmp_path / "tokens", max_length=12)
    return tmp_path / "tokens"


def test_windows_are_consecutive_equal_and_keep_everything():
    assert windows(0, 10) == []
    assert windows(10, 10) == [(0, 10)]
    assert windows(11, 10) == [(0, 5), (5, 11)]
    for length in range(1, 60):
        parts = windows(length, 7)
        assert [edge for part in parts for edge in part] == sorted(edge for part in parts for edge in part)
        assert parts[0][0] == 0
        assert parts[-1][1] == length
        sizes = {end - start for start, end in parts}
        assert max(sizes) <= 7
        assert max(sizes) - min(sizes) <= 1


def test_every_token_is_kept_in_order(folder, tokenizer):
    data = TokenWindows(folder)
    joined = np.concatenate([data[number]["ids"] for number in range(len(data))])
    expected = [token for item in DOCUMENTS for token in tokenizer(item.content, add_special_tokens=False)["input_ids"]]
    assert joined.tolist() == expected
    assert max(len(data[number]["ids"]) for number in range(len(data))) <= 10
    assert joined.dtype == np.uint16


def test_counts_and_fingerprints_are_recorded(folder):
    manifest = TokenWindows(folder).manifest
    assert manifest["documents"] == 4
    assert manifest["empty"] == 1
    assert manifest["windows"] == len(TokenWindows(folder)) == 5
    assert manifest["corpus"] == hashlib.sha256(b"".join(map(document_bytes, DOCUMENTS))).hexdigest()


def test_word_starts_mark_first_pieces(folder, tokenizer):
    data = TokenWindows(folder)
    pieces = tokenizer.convert_ids_to_tokens(data[0]["ids"].tolist())
    assert pieces[:4] == ["green", "walk", "##ing", "river"]
    assert data[0]["word_starts"].tolist() == [not piece.startswith("##") for piece in pieces]


def test_a_continuation_never_starts_a_word(tokenizer):
    ids = np.array(tokenizer.convert_tokens_to_ids(["walk", "##ing", "walk", "stone"]))
    assert word_starts(ids, [0, 1, 1, None], continuations(tokenizer)).tolist() == [True, False, False, True]


def test_large_vocabularies_take_four_bytes(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("pretraining.token_writer._LARGEST_SHORT", 10)
    write_tokens(DOCUMENTS, tokenizer, tmp_path / "tokens", max_length=12)
    assert TokenWindows(tmp_path / "tokens")[0]["ids"].dtype == np.uint32


def test_a_batch_has_specials_and_padding(tokenizer):
    items = [{"ids": np.array([9, 8, 7], np.uint16), "word_starts": np.array([1, 0, 1], bool)}]
    items.append({"ids": np.array([6], np.uint16), "word_starts": np.array([1], bool)})
    batch = Collator(tokenizer)(items)
    cls, sep, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    assert batch["ids"].tolist() == [[cls, 9, 8, 7, sep], [cls, 6, sep, pad, pad]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert batch["word_starts"].tolist() == [[False, True, False, True, False], [False, True, False, False, False]]


def test_a_corpus_without_text_is_refused_and_leaves_nothing(tokenizer, tmp_path):
    with pytest.raises(InputError, match="none of the corpus's 1 documents has a token"):
        write_tokens([Document("a", " ")], tokenizer, tmp_path / "tokens", max_length=12)
    assert list(tmp_path.iterdir()) == []
