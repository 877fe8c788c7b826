"""Tests and intervals against scipy, slow definitions, and chance itself."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evaluation.power import detectable_difference, queries_needed
from evaluation.significance import (
    Paired,
    benjamini_hochberg,
    bootstrap_interval,
    holm,
    paired,
    paired_suite,
    paired_t_test,
    randomisation_test,
    suite_interval,
)
from indexes.errors import InputError

# Eighths add up exactly, so that equal sums are equal in scipy's arithmetic too.
eighths = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=9)


def scipy_p(first, second):
    def mean(one, other, axis):
        return np.mean(other - one, axis=axis)

    return stats.permutation_test(
        (np.asarray(first), np.asarray(second)), mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
    ).pvalue


@settings(max_examples=60, deadline=None)
@given(eighths)
def test_few_queries_are_counted_out_as_scipy_does(pairs):
    first, second = (np.array(one) / 8 for one in zip(*pairs, strict=True))
    if len(pairs) > 1:
        assert randomisation_test(first, second) == pytest.approx(scipy_p(first, second), abs=1e-12)
    assert randomisation_test(second, first) == randomisation_test(first, second)


def test_ties_have_no_sign_and_twenty_that_differ_are_exact():
    rng = np.random.default_rng(0)
    first, second = rng.random(12), rng.random(12)
    more = np.concatenate([first, np.ones(300)]), np.concatenate([second, np.ones(300)])
    assert randomisation_test(*more) == pytest.approx(scipy_p(first, second), abs=1e-12)
    differences = rng.normal(0.3, 1, 20)
    signs = np.array(list(itertools.product((1, -1), repeat=20)), dtype=np.int8)
    sums = np.abs(signs.astype(np.float64) @ differences)
    exact = np.mean(sums >= abs(differences.sum()) * (1 - 1e-12))
    assert randomisation_test(np.zeros(20), differences, samples=1) == pytest.approx(exact, abs=1e-12)


def test_drawn_signs_come_near_the_exact_p_and_never_to_0():
    rng = np.random.default_rng(1)
    differences = rng.normal(0.25, 1, 21)  # one more than are counted out
    signs = np.array(list(itertools.product((1, -1), repeat=21)), dtype=np.int8)
    sums = np.abs(signs.astype(np.float32) @ differences.astype(np.float32))
    exact = np.mean(sums >= abs(differences.sum()) - 1e-4)
    drawn = randomisation_test(np.zeros(21), differences, samples=20_000)
    assert abs(drawn - exact) < 4 * np.sqrt(exact * (1 - exact) / 20_000)
    assert drawn == randomisation_test(np.zeros(21), differences, samples=20_000)
    assert len({randomisation_test(np.zeros(21), differences, samples=20_000, seed=seed) for seed in range(4)}) > 1
    assert randomisation_test(np.zeros(500), np.full(500, 0.5), samples=999) == 1 / 1000


def test_sums_that_differ_in_their_last_digit_only_are_one():
    differences = np.array([0.1, 0.2, -0.3, 0.3, 0.1])
    patterns = itertools.product((1, -1), repeat=5)
    sums = [abs(sum(10 * sign * one for sign, one in zip(signs, differences, strict=True))) for signs in patterns]
    expected = np.mean([one >= 4 - 1e-9 for one in sums])
    assert randomisation_test(np.zeros(5), differences) == expected


def test_the_p_of_systems_that_are_alike_is_spread_evenly():
    rng = np.random.default_rng(2)
    found = [randomisation_test(np.zeros(40), rng.normal(size=40), samples=400) for _ in range(400)]
    assert stats.kstest(found, "uniform").pvalue > 0.001


def test_memory_is_bounded_and_parts_change_nothing(monkeypatch):
    from evaluation import significance

    rng = np.random.default_rng(3)
    first, second = rng.random(100), rng.random(100)
    whole = paired(first, second, samples=1000)
    assert 0 < whole.p_randomisation < 1
    monkeypatch.setattr(significance, "_CELLS_AT_ONCE", 1300)
    shapes = []
    drawn = significance._drawn_sums
    monkeypatch.setattr(
        significance, "_drawn_sums", lambda *given: (shapes.append(part.shape[0]) or part for part in drawn(*given))
    )
    again = paired(first, second, samples=1000)
    assert max(shapes) <= 13
    assert sum(shapes) == 1000
    assert abs(again.p_randomisation - whole.p_randomisation) < 0.05


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(0, 10_000))
def test_the_t_test_is_scipys(count, seed):
    rng = np.random.default_rng(seed)
    first, second = rng.random(count), rng.random(count)
    assert paired_t_test(first, second) == pytest.approx(stats.ttest_rel(first, second).pvalue, rel=1e-10)


@pytest.mark.parametrize(
    ("first", "second", "counts"),
    [
        ([0.4], [0.7], (1, 0, 0)),
        ([0.4], [0.4], (0, 1, 0)),
        ([0.1, 0.5], [0.1, 0.5], (0, 2, 0)),
        ([1, 0], [0, 1], (1, 0, 1)),
    ],
)
def test_the_least_cases_end(first, second, counts):
    found = paired(first, second, samples=50)
    assert (found.wins, found.ties, found.losses) == counts
    assert found.p_randomisation == 1.0
    assert found.p_t == pytest.approx(1.0)
    assert (found.detectable is None) == (len(first) == 1 or first == second)


def test_a_constant_difference_is_certain():
    found = paired(np.zeros(30), np.full(30, 0.25), samples=999)
    assert found[:3] == (30, 0.25, (0.25, 0.25))
    assert (found.p_randomisation, found.p_t, found.detectable) == (1 / 1000, 0.0, None)


def test_paired_says_second_minus_first():
    rng = np.random.default_rng(4)
    first = rng.random(200)
    second = np.clip(first + rng.normal(0.05, 0.1, 200), 0, 1)
    found, back = paired(first, second, samples=500), paired(second, first, samples=500)
    assert found.difference == pytest.approx((second - first).mean()) == -back.difference
    assert found.interval[0] < found.difference < found.interval[1]
    assert (found.wins, found.losses) == (back.losses, back.wins)
    assert found.deviation == pytest.approx(np.std(second - first, ddof=1))
    assert isinstance(found, Paired)


p_lists = st.lists(st.floats(0, 1), max_size=12)


@given(p_lists)
def test_holm_is_its_definition(p_values):
    adjusted = holm(p_values)
    for level in (0.01, 0.05, 0.3):
        rejected = set()
        for place, row in enumerate(np.argsort(p_values, kind="stable")):
            if p_values[row] * (len(p_values) - place) > level:
                break
            rejected.add(int(row))
        assert {row for row, p in enumerate(adjusted) if p <= level} == rejected
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))


@given(p_lists.filter(bool))
def test_benjamini_hochberg_is_scipys(p_values):
    assert benjamini_hochberg(p_values) == pytest.approx(stats.false_discovery_control(p_values).tolist())


def test_the_interval_of_a_mean_over_sets():
    rng = np.random.default_rng(5)
    sets = {"small": rng.normal(0.2, 0.1, 30), "large": rng.normal(0.8, 0.3, 1000), "third": rng.normal(0.5, 0.2, 100)}
    mean, (low, high) = suite_interval(sets, samples=8000)
    assert mean == pytest.approx(np.mean([values.mean() for values in sets.values()]))
    error = np.sqrt(sum(values.var() / len(values) for values in sets.values())) / 3
    assert high - mean == pytest.approx(1.96 * error, rel=0.06)
    assert mean - low == pytest.approx(1.96 * error, rel=0.06)
    alone, interval = suite_interval({"one": sets["large"]})
    assert (alone, *interval) == pytest.approx((sets["large"].mean(), *bootstrap_interval(sets["large"])), abs=1e-12)
    _, wide = suite_interval(sets, over_sets=True, samples=8000)
    spread = np.std([values.mean() for values in sets.values()]) / np.sqrt(3)
    assert (wide[1] - wide[0]) / 2 == pytest.approx(1.96 * np.hypot(spread, error), rel=0.2)
    assert wide[1] - wide[0] > 3 * (high - low)


def test_one_query_has_no_interval_and_neither_has_a_mean_over_it():
    assert bootstrap_interval([0.4]) is None
    assert suite_interval({"many": [0.1, 0.2, 0.6], "one": [0.5]}) == (pytest.approx(0.4), None)
    assert paired([0.1], [0.4], samples=100).interval is None
    found = paired_suite({"many": [0.1, 0.2], "one": [0.5]}, {"many": [0.2, 0.3], "one": [0.5]}, samples=100)
    assert (found.difference, found.interval) == (pytest.approx(0.05), None)


def test_a_suite_counts_every_set_the_same():
    rng = np.random.default_rng(6)
    first = {"a": rng.random(4), "b": rng.random(6)}
    second = {name: values + rng.normal(0.2, 0.3, len(values)) for name, values in first.items()}
    found = paired_suite(first, second, samples=100)
    differences = {name: second[name] - first[name] for name in first}
    assert found.difference == pytest.approx(np.mean([one.mean() for one in differences.values()]))
    signs = np.array(list(itertools.product((1, -1), repeat=10)))
    means = ((signs[:, :4] * differences["a"]).mean(axis=1) + (signs[:, 4:] * differences["b"]).mean(axis=1)) / 2
    assert found.p_randomisation == np.mean(np.abs(means) >= abs(found.difference) - 1e-12)
    assert found.sets == ("a", "b")
    with pytest.raises(InputError, match="expected the same ones"):
        paired_suite(first, {"a": second["a"]})


@pytest.mark.parametrize(("queries", "deviation"), [(10, 0.3), (50, 0.2), (300, 0.25)])
def test_a_detectable_difference_is_found_with_the_chance_it_promises(queries, deviation):
    difference = detectable_difference(deviation, queries)
    centre = difference * np.sqrt(queries) / deviation
    edge = stats.t.ppf(0.975, queries - 1)
    power = stats.nct.sf(edge, queries - 1, centre) + stats.nct.cdf(-edge, queries - 1, centre)
    assert power == pytest.approx(0.8, abs=0.02)


def test_the_queries_that_a_point_needs():
    assert 3100 < queries_needed(0.2, 0.01) < 3200  # the reference's figure: about 3,100
    for deviation, difference in ((0.2, 0.01), (0.4, 0.3), (0.0, 0.1), (0.01, 5.0)):
        needed = queries_needed(deviation, difference)
        assert detectable_difference(deviation, needed) <= difference
        assert needed == 2 or detectable_difference(deviation, needed - 1) > difference


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: randomisation_test([], []), "no values"),
        (lambda: randomisation_test([1.0], [1.0, 2.0]), "1 and 2 values; expected those of the same queries"),
        (lambda: paired_t_test([1.0], [np.nan]), "value 0 is nan; expected finite numbers"),
        (lambda: paired([1.0, 2], [2.0, 4], samples=0), "samples is 0; expected at least 1"),
        (lambda: holm([0.5, 1.5]), "a p-value is 1.5; expected numbers from 0 to 1"),
        (lambda: benjamini_hochberg([float("nan")]), "a p-value is nan"),
        (lambda: suite_interval({}), "no sets to average over"),
        (lambda: suite_interval({"a": [1.0]}, confidence=1), "confidence is 1"),
        (lambda: detectable_difference(0.1, 1), "queries is 1; expected at least 2"),
        (lambda: detectable_difference(-0.1, 5), "the standard deviation is -0.1"),
        (lambda: queries_needed(0.1, 0), "difference is 0; expected more than 0"),
        (lambda: queries_needed(0.1, 0.1, power=1), "power is 1; expected a number between 0 and 1"),
    ],
)
def test_what_cannot_be_tested_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
