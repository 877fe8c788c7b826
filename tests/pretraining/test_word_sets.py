"""PROP's word sets: drawn as their formula says, scored as it says."""

import math
from collections import Counter

import numpy as np
import pytest

from indexes.errors import InputError
from pretraining.word_sets import WordCounts, WordSetSampler, words_at, words_of
from retrieval.documents import Document

RNG = np.random.default_rng(0)
NAMES = ["".join(RNG.choice(list("abcdefgh"), 6)) for _ in range(40)]
SHARES = 1 / np.arange(1, 41)
DOCUMENTS = [
    Document(f"d{number}", " ".join(RNG.choice(NAMES, 30 + number, p=SHARES / SHARES.sum()))) for number in range(60)
]


@pytest.fixture(scope="module")
def sampler():
    return WordSetSampler(WordCounts.of(DOCUMENTS), least=5)


def test_words_are_letters_without_stop_words():
    assert words_of("The River-bank of 42 trees; it's Naïve") == ["river", "bank", "trees", "s", "na", "ve"]


def test_the_language_model_is_the_formula(sampler):
    counted = [Counter(words_of(one.content)) for one in DOCUMENTS]
    mean = sum(map(Counter.total, counted)) / len(counted)
    times = sum(counted, Counter())
    held = Counter(word for one in counted for word in one)
    known = {word for word, count in times.items() if count >= 5}
    assert set(sampler.words) == known
    for word in [*known, "unknown"]:
        smooth = held[word] / sum(held[one] for one in known) if word in known else 0.0
        expected = (counted[3][word] + mean * smooth) / (counted[3].total() + mean)
        assert sampler.chance(word, counted[3]) == pytest.approx(expected)
    assert sum(sampler.chance(word, counted[3]) for word in {*known, *counted[3]}) == pytest.approx(1.0)


def test_words_are_drawn_by_their_chance_and_kept_the_rarer_the_oftener_they_are(sampler):
    found = Counter(words_of(DOCUMENTS[7].content))
    generator = np.random.default_rng(1)
    drawn = Counter()
    sizes = []
    for _ in range(6000):
        made = sampler.draw(DOCUMENTS[7], generator)
        if made is not None:
            sizes.append(len(made.better))
            assert len(made.better) == len(made.worse)
            assert made.scores[0] > made.scores[1]
            score = sum(math.log(sampler.chance(word, found)) for word in made.better)
            assert made.scores[0] == pytest.approx(score)
            drawn.update(made.better + made.worse)
    weights = {word: sampler.chance(word, found) * sampler.kept(word) for word in {*sampler.words, *found}}
    for word, weight in weights.items():
        share = drawn[word] / drawn.total()
        assert share == pytest.approx(weight / sum(weights.values()), abs=0.01)
    assert min(sizes) == 1
    assert np.mean(sizes) == pytest.approx(3 / (1 - math.exp(-3)), abs=0.15)


def test_what_has_no_words_has_no_sets(sampler):
    assert sampler.draw(Document("e", "42 of the"), np.random.default_rng(0)) is None
    with pytest.raises(InputError, match="no word occurs 10 times in 1 documents"):
        WordSetSampler(WordCounts.of([Document("a", "one river")]))


def test_counts_are_kept_as_they_are(sampler, tmp_path):
    counts = WordCounts.of(DOCUMENTS)
    counts.save(tmp_path / "counts", "a" * 64)
    again = WordSetSampler(WordCounts.saved(tmp_path / "counts", "a" * 64), least=5)
    for seed in range(20):
        drawn = again.draw(DOCUMENTS[seed], np.random.default_rng(seed))
        assert drawn == sampler.draw(DOCUMENTS[seed], np.random.default_rng(seed))
    assert WordCounts.saved(tmp_path / "counts", "b" * 64) is None
    assert WordCounts.saved(tmp_path / "none", "a" * 64) is None
    (tmp_path / "counts" / "held.npy").write_bytes(b"")
    assert WordCounts.saved(tmp_path / "counts", "a" * 64) is None
    counts.save(tmp_path / "counts", "b" * 64)
    assert WordCounts.saved(tmp_path / "counts", "b" * 64).mean_length == counts.mean_length


def test_words_are_where_their_first_letters_are():
    text = "The River-bank of 42 trees; it's Naïve"
    assert [word for word, _ in words_at(text)] == words_of(text)
    assert all(text[start : start + len(word)].lower() == word for word, start in words_at(text))
