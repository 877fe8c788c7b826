"""Duplicates against brute force, and the chances that are promised."""

import doctest

import numpy as np
import pytest

from indexes.errors import InputError
from pretraining import duplicates
from pretraining.duplicates import HASHES, ExactDuplicates, NearDuplicates, banding, chance_found, s_curve
from retrieval import shingles
from retrieval.shingles import normalised, shingle_hashes


def shingle_set(text: str, size: int = 5) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[start : start + size]) for start in range(max(1, len(words) - size + 1))} if words else set()


def jaccards(texts: list[str]) -> np.ndarray:
    """Every pair's, by sets: (n, n), the diagonal left out."""
    sets = [shingle_set(text) for text in texts]
    found = np.zeros((len(sets), len(sets)))
    for one in range(len(sets)):
        for other in range(one):
            common = len(sets[one] & sets[other])
            found[one, other] = found[other, one] = common / (len(sets[one]) + len(sets[other]) - common)
    return found


def random_text(chance: np.random.Generator, length: int) -> list[str]:
    return [f"w{number}" for number in chance.integers(500, size=length)]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Texts and edits of them, from one changed word in 200 to one in five."""
    chance = np.random.default_rng(0)
    found = []
    for _ in range(80):
        words = random_text(chance, int(chance.integers(30, 200)))
        found.append(" ".join(words))
        for share in (0.005, 0.02, 0.05, 0.2):
            edited = [f"x{chance.integers(500)}" if chance.random() < share else word for word in words]
            found.append(" ".join(edited))
    return [found[place] for place in chance.permutation(len(found))]


@pytest.fixture(scope="module")
def truth(texts) -> np.ndarray:
    return jaccards(texts)


@pytest.mark.parametrize("module", [duplicates, shingles])
def test_examples_of_the_docstrings(module):
    tried = doctest.testmod(module)
    assert tried.attempted
    assert not tried.failed


def test_normal_form():
    assert normalised("Café CAFÉ, café’s ﬁne\t(№ 3)_x") == "café café café s fine no 3 x"
    assert normalised("ＦＵＬＬ width STRASSE Straße") == "full width strasse strasse"
    assert normalised("東京タワーは3m") == "東 京 タ ワ ー は 3m"
    assert normalised("…!? —") == ""


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_equal_shingles_and_no_others_have_equal_hashes(size):
    words = np.random.default_rng(1).choice(["a", "b", "ab", "ba", "aa", "é", "東"], size=(60, 12))
    cases = [" ".join(row[:length]) for row, length in zip(words, np.arange(60) % 13, strict=True)]
    hashes, bounds = shingle_hashes(cases, size)
    names: dict[tuple[str, ...], int] = {}
    for text, start, end in zip(cases, bounds[:-1], bounds[1:], strict=True):
        found = hashes[start:end].tolist()
        split = text.split()
        runs = [tuple(split[at : at + size]) for at in range(max(1, len(split) - size + 1))] if split else []
        assert len(found) == len(runs)
        for run, value in zip(runs, found, strict=True):
            assert names.setdefault(run, value) == value
    assert len(set(names.values())) == len(names)
    assert shingle_hashes([], size)[0].tolist() == []


def test_hashes_do_not_depend_on_company_or_on_how_the_text_is_cut(monkeypatch):
    text = " ".join(random_text(np.random.default_rng(2), 300))
    alone, _ = shingle_hashes([text], 5)
    together, bounds = shingle_hashes(["other text here", text, ""], 5)
    assert np.array_equal(alone, together[bounds[1] : bounds[2]])
    monkeypatch.setattr(shingles, "_CHARACTERS_AT_ONCE", 10)
    assert np.array_equal(alone, shingle_hashes([text], 5)[0])
    # The same on every machine, in every process.
    assert hex(int(shingle_hashes(["the same on every machine"], 5)[0][0])) == "0x9cf68c6249052045"


def test_minima_estimate_the_jaccard(texts, truth):
    near = NearDuplicates(0.8)
    minima = near.signatures(texts)
    one, other = np.nonzero(np.tril(truth) > 0.1)
    assert len(one) > 150
    errors = (minima[one] == minima[other]).mean(axis=1) - truth[one, other]
    expected = np.sqrt(truth[one, other] * (1 - truth[one, other]) / near.hashes)
    assert abs(errors.mean()) < 0.01
    assert np.sqrt((errors**2).mean()) < 1.2 * np.sqrt((expected**2).mean())


def brute_force(truth: np.ndarray, threshold: float) -> np.ndarray:
    dropped = np.zeros(len(truth), dtype=bool)
    for place in range(len(truth)):
        dropped[place] = (truth[place, :place][~dropped[:place]] >= threshold).any()
    return dropped


@pytest.mark.parametrize("threshold", [0.5, 0.8])
@pytest.mark.parametrize("batch", [7, 1000])
def test_what_is_dropped_is_what_brute_force_drops(texts, truth, threshold, batch):
    near = NearDuplicates(threshold)
    gone = np.concatenate([near.add(texts[start : start + batch]) for start in range(0, len(texts), batch)])
    assert near.kept == (~gone).sum()
    earlier = np.tril(truth)
    assert earlier[gone][:, ~gone].max(axis=1).min() > threshold - 0.12, "whatever went resembles what stayed before it"
    assert earlier[~gone][:, ~gone].max() < threshold + 0.12, "what stayed differs"
    expected = brute_force(truth, threshold)
    assert expected.sum() > 50
    assert (expected ^ gone).sum() < 0.12 * expected.sum()


def test_batches_do_not_matter_and_the_first_one_stays(texts):
    one, other = NearDuplicates(0.8), NearDuplicates(0.8)
    singly = [bool(one.add([text])[0]) for text in texts]
    assert singly == other.add(texts).tolist()
    assert other.add(texts).all()
    assert other.kept == one.kept


def test_chances_are_those_of_random_signatures():
    """A pair's minima agree independently with probability J: drawn a hundred thousand times."""
    chance = np.random.default_rng(4)
    for threshold in (0.5, 0.8, 0.9):
        bands, rows = banding(threshold)
        for truth in (threshold - 0.1, threshold, threshold + 0.05):
            equal = chance.random((100_000, bands, rows)) < truth
            shared = equal.all(axis=2).any(axis=1)
            assert shared.mean() == pytest.approx(s_curve(truth, bands, rows), abs=0.006)
            found = shared & (equal.sum(axis=(1, 2)) >= threshold * bands * rows)
            assert found.mean() == pytest.approx(chance_found(truth, threshold), abs=0.006)


def test_bands_find_what_they_promise_with_no_more_minima_than_there_are():
    for threshold in np.linspace(0.5, 1, 26):
        bands, rows = banding(float(threshold))
        assert bands * rows <= HASHES
        assert s_curve(threshold, bands, rows) >= 0.99


def test_short_and_empty_texts():
    near = NearDuplicates(0.8)
    assert near.add(["", "tea", "green tea", "tea", "", "tea green"]).tolist() == [
        False,
        False,
        False,
        True,
        False,
        False,
    ]
    assert near.add([""]).tolist() == [False]
    assert near.add([]).tolist() == []
    exact = ExactDuplicates()
    assert exact.add(["a b", "", "a b", "", "c"]).tolist() == [False, False, True, False, False]
    assert exact.add(["c", "b a", ""]).tolist() == [True, False, False]
    assert exact.add([]).tolist() == []


def test_many_exact_duplicates_over_many_batches():
    exact, chance, seen = ExactDuplicates(), np.random.default_rng(5), set()
    for _ in range(40):
        batch = [f"text {number}" for number in chance.integers(3000, size=100)]
        expected = [text in seen or text in batch[:place] for place, text in enumerate(batch)]
        assert exact.add(batch).tolist() == expected
        seen.update(batch)


def test_memory_is_what_is_said():
    near = NearDuplicates(0.8)
    chance = np.random.default_rng(6)
    for _ in range(10):
        near.add([" ".join(random_text(chance, 20)) for _ in range(500)])
    assert near.kept == 5000
    assert sum(run.nbytes for run in near._keys) == 5000 * 8 * 21
    assert 5000 * 2 * 126 <= near._minima.nbytes <= 5000 * 2 * 126 * 9 / 8


def test_thresholds_are_refused():
    for threshold in (0.0, 0.49, 1.01, float("nan")):
        with pytest.raises(InputError, match=r"expected a Jaccard from 0\.5 to 1, such as 0\.8"):
            NearDuplicates(threshold)
