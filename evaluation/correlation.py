"""Correlation of two rows of numbers: Pearson's, Spearman's, and the interval in which Spearman's may lie."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from indexes.errors import InputError


def pearson(first: ArrayLike, second: ArrayLike) -> float:
    """Pearson's correlation, -1 to 1, in double precision.

    Args:
        first: (n,) numbers.
        second: (n,) numbers.

    Raises:
        InputError: Fewer than 2 of them, a number that is not finite, or a side whose numbers are all the same: it
            goes up and down with nothing.
    """
    return _correlation(*_two(first, second))


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's rank correlation: Pearson's of the ranks, equal numbers sharing the average of their ranks.

    Args:
        first: (n,) numbers.
        second: (n,) numbers.

    Raises:
        InputError: As `pearson`.

    Source:
        Spearman, "The proof and measurement of association between two things", 1904; ties as in
        Kendall & Gibbons, "Rank correlation methods", 1990, chapter 3.
    """
    return _correlation(*map(_ranks, _two(first, second)))


def spearman_interval(
    first: ArrayLike, second: ArrayLike, *, confidence: float = 0.95, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of Spearman's correlation: pairs are drawn again with replacement.

    Samples in which a side has one number only have no correlation and are left out; of 10 pairs and more that is
    next to none.

    Args:
        first: (n,) numbers.
        second: (n,) numbers.
        confidence: The share of resampled correlations that the interval holds.
        samples: How many times the pairs are drawn again.
        seed: The same seed gives the same interval.

    Returns:
        Lower and upper end.

    Raises:
        InputError: As `pearson`, or confidence is not between 0 and 1.

    Source:
        Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}; expected a number between 0 and 1")
    one, other = _two(first, second)
    groups = [np.unique(side, return_inverse=True)[1] for side in (one, other)]
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(samples):
        times = np.bincount(generator.integers(len(one), size=len(one)), minlength=len(one))  # (n,)
        value = _weighted_spearman(groups[0], groups[1], times)
        if value is not None:
            found.append(value)
    if not found:
        raise InputError(f"none of {samples} samples of {len(one)} pairs has a correlation; expected more pairs")
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return float(low), float(high)


def _weighted_spearman(first: NDArray[np.intp], second: NDArray[np.intp], times: NDArray[np.intp]) -> float | None:
    """Spearman's of a sample that holds pair i `times[i]` times; sides are the places of their values in order.

    Ranks follow from how often each value was drawn, so nothing is sorted again.
    """
    sides = []
    for groups in (first, second):
        drawn = np.bincount(groups, weights=times)  # of each value
        ranks = np.cumsum(drawn) - (drawn - 1) / 2  # the average rank of those drawn
        sides.append(ranks[groups] - (times.sum() + 1) / 2)
    one, other = sides
    spread = float(times @ (one * one)) * float(times @ (other * other))
    return float(times @ (one * other)) / spread**0.5 if spread > 0 else None


def _ranks(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1; equal numbers share the average of theirs."""
    _, places, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def _two(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != other.shape or one.ndim != 1 or len(one) < 2:
        raise InputError(f"numbers of shapes {one.shape} and {other.shape}; expected 2 or more, as many on each side")
    for side in (one, other):
        bad = np.flatnonzero(~np.isfinite(side))
        if len(bad):
            raise InputError(f"number {bad[0]} of {len(side)} is {side[bad[0]]}; expected finite numbers")
        if (side == side[0]).all():
            raise InputError(f"all {len(side):,} numbers are {side[0]:g}; a correlation needs at least two values")
    return one, other


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    one, other = first - first.mean(), second - second.mean()
    value = float(one @ other) / (float(one @ one) * float(other @ other)) ** 0.5
    return min(1.0, max(-1.0, value))  # rounding may carry it a little over
