"""Significance: how far a mean over few queries may be from the mean over all queries one could ask."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InputError

_CELLS_AT_ONCE = 4_000_000  # 32 MB of drawn values


def bootstrap_interval(
    values: Sequence[float] | NDArray[np.float64],
    *,
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean: queries are drawn again with replacement.

    Args:
        values: (q,) one value for each query.
        confidence: The share of resampled means that the interval holds.
        samples: How many times the queries are drawn again.
        seed: The same seed gives the same interval.

    Returns:
        Lower and upper end.

    Raises:
        InputError: There are no values, or confidence is not between 0 and 1.

    Source:
        Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; for retrieval: Sakai,
        "Evaluating evaluation metrics based on the bootstrap", SIGIR 2006.
    """
    given = np.asarray(values, dtype=np.float64)
    if not given.size:
        raise InputError("no values to draw from; expected one for each query")
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}; expected a number between 0 and 1")
    generator = np.random.default_rng(seed)
    at_once = max(1, _CELLS_AT_ONCE // len(given))
    drawn = [
        given[generator.integers(len(given), size=(min(at_once, samples - start), len(given)))].mean(axis=1)
        for start in range(0, samples, at_once)
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail])
    return float(low), float(high)
