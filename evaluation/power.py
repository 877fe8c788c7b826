"""Power: the smallest difference that so many queries would show, and how many queries a difference needs."""

import math

from indexes.errors import InputError

POWER = 0.8
"""The chance of finding a difference that is there."""
LEVEL = 0.05
"""The chance of finding one that is not there."""


def detectable_difference(deviation: float, queries: int, *, power: float = POWER, level: float = LEVEL) -> float:
    """The smallest mean difference that a paired, two-sided t-test of this level finds with this chance.

    (t(1 - level/2) + t(power)) · s / √n, quantiles of Student's t with n - 1 degrees of freedom. It is that of one
    comparison: corrected for several, a test finds less.

    Args:
        deviation: s, the standard deviation of the differences of single queries.
        queries: n, at least 2.
        power: The chance of finding it.
        level: Of the test.

    Raises:
        InputError: A number is out of range.

    Source:
        Bloom, "Minimum detectable effects", Evaluation Review 19(5), 1995; for retrieval: Sakai, "Statistical reform
        in information retrieval?", SIGIR Forum 48(1), 2014.
    """
    from scipy.special import stdtrit

    _check(deviation, power, level)
    if queries < 2:
        raise InputError(f"queries is {queries}; expected at least 2: one query has no spread")
    freedom = queries - 1
    return float(stdtrit(freedom, 1 - level / 2) + stdtrit(freedom, power)) * deviation / math.sqrt(queries)


def queries_needed(deviation: float, difference: float, *, power: float = POWER, level: float = LEVEL) -> int:
    """The fewest queries of which `detectable_difference` is at most this difference; at least 2.

    Args:
        deviation: The standard deviation of the differences of single queries.
        difference: What is to be found, above 0.
        power: The chance of finding it.
        level: Of the test.

    Raises:
        InputError: A number is out of range.
    """
    _check(deviation, power, level)
    if not 0 < difference < math.inf:
        raise InputError(f"difference is {difference}; expected more than 0")
    too_few, enough = 1, 2
    while detectable_difference(deviation, enough, power=power, level=level) > difference:
        too_few, enough = enough, 2 * enough
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if detectable_difference(deviation, middle, power=power, level=level) > difference:
            too_few = middle
        else:
            enough = middle
    return enough


def _check(deviation: float, power: float, level: float) -> None:
    if not 0 <= deviation < math.inf:
        raise InputError(f"the standard deviation is {deviation}; expected a finite number from 0")
    for name, value in (("power", power), ("level", level)):
        if not 0 < value < 1:
            raise InputError(f"{name} is {value}; expected a number between 0 and 1")
