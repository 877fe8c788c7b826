import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr

from evaluation.correlation import _weighted_spearman, pearson, spearman, spearman_interval
from indexes.errors import InputError

NUMBERS = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=40).filter(
    lambda pairs: all(len(set(side)) > 1 for side in zip(*pairs, strict=True))
)


@settings(deadline=None, max_examples=60)
@given(NUMBERS)
def test_both_equal_scipys_with_ties_as_average_ranks(pairs):
    first, second = np.array(pairs, dtype=float).T
    assert pearson(first, second) == pytest.approx(pearsonr(first, second).statistic, abs=1e-12)
    assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(NUMBERS, st.integers(0, 1000))
def test_a_resample_by_counts_has_the_correlation_of_the_pairs_written_out(pairs, seed):
    first, second = np.array(pairs).T
    drawn = np.random.default_rng(seed).integers(len(pairs), size=len(pairs))
    groups = [np.unique(side, return_inverse=True)[1] for side in (first, second)]
    value = _weighted_spearman(*groups, np.bincount(drawn, minlength=len(pairs)))
    if len(set(first[drawn])) == 1 or len(set(second[drawn])) == 1:
        assert value is None
    else:
        assert value == pytest.approx(spearmanr(first[drawn], second[drawn]).statistic, abs=1e-9)


def test_the_interval_holds_the_value_narrows_with_pairs_and_goes_by_its_seed():
    rng = np.random.default_rng(0)
    widths = []
    for size in (50, 800):
        first = rng.normal(size=size)
        second = first + rng.normal(size=size)
        low, high = spearman_interval(first, second)
        assert low < spearman(first, second) < high
        assert spearman_interval(first, second) == (low, high) != spearman_interval(first, second, seed=1)
        widths.append(high - low)
    assert 3 < widths[0] / widths[1] < 5  # about the root of 16


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([1, 1, 1], [1, 2, 3], "all 3 numbers are 1; a correlation needs at least two values"),
        ([1, float("nan"), 1], [1, 2, 3], "number 1 of 3 is nan; expected finite numbers"),
        ([1, 2], [1, 2, 3], r"shapes \(2,\) and \(3,\)"),
        ([1], [1], "expected 2 or more"),
    ],
)
def test_numbers_without_a_correlation_are_refused(first, second, message):
    for measure in (pearson, spearman, spearman_interval):
        with pytest.raises(InputError, match=message):
            measure(first, second)


def test_an_interval_that_no_sample_gives_is_refused():
    with pytest.raises(InputError, match="confidence is 1; expected a number between 0 and 1"):
        spearman_interval([1, 2, 3], [1, 2, 3], confidence=1)
