"""Significance: whether a difference may be chance, and how far a mean may be from that over all queries there are."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.power import detectable_difference
from indexes.errors import InputError

Values = Sequence[float] | NDArray[np.float64]
"""(q,) one value for each query."""

Interval = tuple[float, float]
"""Lower and upper end."""

SAMPLES = 10_000
CONFIDENCE = 0.95

_CELLS_AT_ONCE = 4_000_000  # 32 MB of drawn values
_EXACT_UP_TO = 20  # queries that differ: 2^20 sign patterns take 8 MB
_EQUAL = 1e-12
"""Sums of differences that are apart by less than this share of all differences are one: their last digits depend on
the order of addition."""


class Paired(NamedTuple):
    """A second system beside a first one on the same queries."""

    queries: int
    difference: float
    """Mean of second - first."""
    interval: Interval | None
    """Bootstrap interval of the difference; None: one query has no spread."""
    p_randomisation: float
    p_t: float
    wins: int
    """Queries on which the second system is better."""
    ties: int
    losses: int
    deviation: float
    """Standard deviation of the differences of single queries; 0 for one query."""
    detectable: float | None
    """The smallest difference found with a chance of 80% at level 0.05; None: the queries' differences have no spread
    to reckon by."""


class Suite(NamedTuple):
    """A second system beside a first one over several sets, each of which counts the same."""

    sets: tuple[str, ...]
    difference: float
    interval: Interval | None
    """Stratified bootstrap interval of the difference; None: a set has but one query."""
    p_randomisation: float


def bootstrap_interval(
    values: Values,
    *,
    confidence: float = CONFIDENCE,
    samples: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """Percentile bootstrap interval of a mean: queries are drawn again with replacement.

    Args:
        values: (q,) one value for each query.
        confidence: The share of resampled means that the interval holds.
        samples: How many times the queries are drawn again.
        seed: The same seed gives the same interval.

    Returns:
        Lower and upper end; None for one value, which has no spread to draw from.

    Raises:
        InputError: There are no values, or confidence is not between 0 and 1.

    Source:
        Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; for retrieval: Sakai,
        "Evaluating evaluation metrics based on the bootstrap", SIGIR 2006.
    """
    given = _checked(values)
    interval = _percentiles(_resampled_means(given, samples, np.random.default_rng(seed)), confidence)
    return interval if len(given) > 1 else None


def suite_interval(
    values_by_set: Mapping[str, Values],
    *,
    over_sets: bool = False,
    confidence: float = CONFIDENCE,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, Interval | None]:
    """The mean of the sets' means, and its stratified bootstrap interval: queries are drawn again inside each set.

    Every set counts the same, however many queries it has. Print the names of the sets with the mean: means over
    other sets are other numbers.

    Args:
        values_by_set: Of each set, (q,) one value for each query: of one system, or differences of two.
        over_sets: Whether the sets are drawn again too, as if others like them could have been chosen; the interval
            then is wider, and of few sets a rough one.
        confidence: The share of resampled means that the interval holds.
        samples: How many times it is drawn.
        seed: The same seed gives the same interval.

    Returns:
        The mean and its interval; None where a set has but one value: as if it were certain, the interval would be
        too narrow.

    Raises:
        InputError: There are no sets, a set has no values, or confidence is not between 0 and 1.
    """
    given = _checked_sets(values_by_set)
    generator = np.random.default_rng(seed)
    drawn = np.stack([_resampled_means(values, samples, generator) for values in given])  # (sets, samples)
    if over_sets:
        chosen = generator.integers(len(given), size=drawn.shape)
        drawn = drawn[chosen, generator.integers(samples, size=drawn.shape)]
    interval = _percentiles(drawn.mean(axis=0), confidence)
    mean = math.fsum(float(values.mean()) for values in given) / len(given)
    return mean, interval if min(map(len, given)) > 1 else None


def randomisation_test(first: Values, second: Values, samples: int = SAMPLES, seed: int = 0) -> float:
    """Two-sided p of Fisher's paired randomisation test of the mean difference: signs are flipped at random.

    If the systems were alike, each query's difference could as well have the other sign. p is the share of sign
    patterns whose mean is at least as far from 0: exactly, over all 2^n, where at most 20 queries differ (ties have no
    sign to flip), else (c + 1) / (samples + 1) with c of the samples drawn, never 0.

    Args:
        first: (q,) values of one system.
        second: (q,) those of the other one on the same queries.
        samples: Sign patterns that are drawn where they are too many for all.
        seed: The same seed gives the same p.

    Raises:
        InputError: There are no values, not as many of both, or one is not finite; or samples is less than 1.

    Source:
        Fisher, "The Design of Experiments", 1935; Smucker, Allan & Carterette, "A comparison of statistical
        significance tests for information retrieval evaluation", CIKM 2007; the + 1: Phipson & Smyth, "Permutation
        p-values should never be zero", SAGMB 9(1), 2010.
    """
    return _sign_flips(_differences(first, second), samples, seed)


def paired_t_test(first: Values, second: Values) -> float:
    """Two-sided p of Student's paired t-test of the mean difference.

    Where nothing can be said it is 1: for one query, and for systems that are the same on all.

    Args:
        first: (q,) values of one system.
        second: (q,) those of the other one on the same queries.

    Raises:
        InputError: There are no values, not as many of both, or one is not finite.

    Source:
        Student, "The probable error of a mean", Biometrika 6(1), 1908.
    """
    from scipy.special import stdtr

    differences = _differences(first, second)
    mean, count = float(differences.mean()), len(differences)
    if count < 2 or not differences.any():
        return 1.0
    error = float(differences.std(ddof=1)) / math.sqrt(count)
    return float(2 * stdtr(count - 1, -abs(mean) / error)) if error else 0.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that, of all tests at level α, one errs with a chance of α at most (family-wise error).

    Args:
        p_values: (m,) of all comparisons that were made, in any order.

    Returns:
        (m,) adjusted, in the same order.

    Raises:
        InputError: One is not between 0 and 1.

    Source:
        Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6(2), 1979.
    """
    given = _checked_p(p_values)
    order = np.argsort(given, kind="stable")
    factors = np.arange(len(given), 0, -1)
    return _in_place(order, np.minimum(np.maximum.accumulate(given[order] * factors), 1.0))


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that, of the tests that find something at level α, a share of α errs on average.

    It controls the false discovery rate, not, as `holm` does, the chance of any error: use it to look for candidates.

    Args:
        p_values: (m,) of all comparisons that were made, in any order.

    Returns:
        (m,) adjusted, in the same order.

    Raises:
        InputError: One is not between 0 and 1.

    Source:
        Benjamini & Hochberg, "Controlling the false discovery rate", JRSS B 57(1), 1995.
    """
    given = _checked_p(p_values)
    order = np.argsort(given, kind="stable")
    scaled = given[order] * len(given) / np.arange(1, len(given) + 1)
    return _in_place(order, np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0))


def paired(first: Values, second: Values, *, samples: int = SAMPLES, seed: int = 0) -> Paired:
    """Compare two systems on the same queries: the difference, its interval, both tests, and what could be found.

    Args:
        first: (q,) values of the system that is compared with.
        second: (q,) those of the other one.
        samples: Of the randomisation test and of the bootstrap.
        seed: The same seed gives the same numbers.

    Raises:
        InputError: What `randomisation_test` refuses.
    """
    differences = _differences(first, second)
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    deviation = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    return Paired(
        queries=len(differences),
        difference=math.fsum(differences) / len(differences),
        interval=bootstrap_interval(differences, samples=samples, seed=seed),
        p_randomisation=_sign_flips(differences, samples, seed),
        p_t=paired_t_test(first, second),
        wins=wins,
        ties=len(differences) - wins - losses,
        losses=losses,
        deviation=deviation,
        detectable=detectable_difference(deviation, len(differences)) if deviation else None,
    )


def paired_suite(
    first: Mapping[str, Values],
    second: Mapping[str, Values],
    *,
    over_sets: bool = False,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Suite:
    """Compare two systems by the mean of their sets' means.

    Args:
        first: Of each set, (q,) values of the system that is compared with.
        second: Those of the other one, of the same sets.
        over_sets: As for `suite_interval`; the randomisation test is always over the queries of these sets.
        samples: Of the randomisation test, which flips signs in all sets at once, and of the bootstrap.
        seed: The same seed gives the same numbers.

    Raises:
        InputError: The sets are not the same, or what `randomisation_test` refuses.
    """
    if first.keys() != second.keys() or not first:
        raise InputError(f"sets {', '.join(first)} and {', '.join(second)}; expected the same ones, at least one")
    differences = {name: _differences(first[name], second[name]) for name in first}
    mean, interval = suite_interval(differences, over_sets=over_sets, samples=samples, seed=seed)
    # A query weighs 1 / (queries of its set), so that the sum of all is the sum of the sets' means.
    weighted = np.concatenate([values / len(values) for values in differences.values()])
    return Suite(tuple(first), mean, interval, _sign_flips(weighted, samples, seed))


def _sign_flips(differences: NDArray[np.float64], samples: int, seed: int) -> float:
    if samples < 1:
        raise InputError(f"samples is {samples}; expected at least 1")
    moved = differences[differences != 0]
    if not len(moved):
        return 1.0
    least = abs(moved.sum()) - _EQUAL * np.abs(moved).sum()
    if len(moved) <= _EXACT_UP_TO:
        return float((np.abs(_all_sums(moved)) >= least).mean())
    found = sum(int((np.abs(sums) >= least).sum()) for sums in _drawn_sums(moved, samples, seed))
    return (found + 1) / (samples + 1)


def _all_sums(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sums for all signs of all but the first difference, (2^(n-1),): the other half are these turned round."""
    sums = differences[:1]
    for one in differences[1:]:
        sums = np.concatenate([sums + one, sums - one])
    return sums


def _drawn_sums(differences: NDArray[np.float64], samples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    generator = np.random.default_rng(seed)
    at_once = max(1, _CELLS_AT_ONCE // len(differences))
    for start in range(0, samples, at_once):
        rows = min(at_once, samples - start)
        bits = np.unpackbits(
            generator.integers(256, size=(rows, -(-len(differences) // 8)), dtype=np.uint8), axis=1
        )  # (rows, n rounded up to eight)
        yield (2.0 * bits[:, : len(differences)] - 1.0) @ differences


def _resampled_means(values: NDArray[np.float64], samples: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """(samples,) means of as many queries drawn with replacement."""
    if samples < 1:
        raise InputError(f"samples is {samples}; expected at least 1")
    at_once = max(1, _CELLS_AT_ONCE // len(values))
    return np.concatenate(
        [
            values[generator.integers(len(values), size=(min(at_once, samples - start), len(values)))].mean(axis=1)
            for start in range(0, samples, at_once)
        ]
    )


def _percentiles(drawn: NDArray[np.float64], confidence: float) -> Interval:
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}; expected a number between 0 and 1")
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def _differences(first: Values, second: Values) -> NDArray[np.float64]:
    one, other = _checked(first), _checked(second)
    if one.shape != other.shape:
        raise InputError(f"{len(one):,} and {len(other):,} values; expected those of the same queries, in one order")
    return other - one


def _checked(values: Values) -> NDArray[np.float64]:
    given = np.asarray(values, dtype=np.float64)
    if given.ndim != 1 or not given.size:
        raise InputError("no values to draw from; expected one for each query")
    unusable = np.flatnonzero(~np.isfinite(given))
    if len(unusable):
        raise InputError(f"value {unusable[0]} is {given[unusable[0]]}; expected finite numbers")
    return given


def _checked_sets(values_by_set: Mapping[str, Values]) -> list[NDArray[np.float64]]:
    if not values_by_set:
        raise InputError("no sets to average over; expected at least one")
    return [_checked(values) for values in values_by_set.values()]


def _checked_p(p_values: Sequence[float]) -> NDArray[np.float64]:
    given = np.asarray(p_values, dtype=np.float64)
    wrong = given[~((given >= 0) & (given <= 1))]
    if wrong.size:
        raise InputError(f"a p-value is {wrong[0]}; expected numbers from 0 to 1")
    return given


def _in_place(order: NDArray[np.int64], values: NDArray[np.float64]) -> list[float]:
    found = np.empty_like(values)
    found[order] = values
    return [float(value) for value in found]
