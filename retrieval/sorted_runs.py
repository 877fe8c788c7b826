"""Sorted values in memory that keep growing: a log-structured merge tree of arrays."""

from collections.abc import Iterator

import numpy as np


class SortedRuns:
    """Sorted arrays, each more than four times as long as the next (O'Neil et al., 1996).

    A value takes its own bytes and no more. A run grows in its place, so that a merge takes the shorter run's memory
    once more, no more.
    """

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self._runs)

    def add(self, values: np.ndarray) -> None:
        """Add values (n,), in any order."""
        if not len(values):
            return
        self._runs.append(np.sort(values))
        while len(self._runs) > 1 and 4 * len(self._runs[-1]) >= len(self._runs[-2]):
            last = self._runs.pop()
            run = self._runs[-1]
            run.resize(len(run) + len(last), refcheck=False)
            run[-len(last) :] = last
            run.sort(kind="stable")  # timsort: one merge of the two sorted parts

    def hold(self, values: np.ndarray) -> np.ndarray:
        """Which of the values (n,) were added, bool (n,)."""
        known = np.zeros(len(values), dtype=bool)
        for run in self._runs:
            place = np.minimum(run.searchsorted(values), len(run) - 1)
            known |= run[place] == values
        return known
