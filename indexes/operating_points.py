"""Operating points: what a search that goes so far finds, how long it takes, and which point meets a goal."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexes.efforts import Effort
from indexes.errors import InputError

CONFIDENCE = 0.95
_MORE = 1e-9


class Goal(NamedTuple):
    """What an index is tuned for: at least such a recall, within such a time and memory."""

    recall: float = 0.95
    """Of the k documents that exact search finds, the share that must be found: at least so much on average over
    queries, with 95% confidence."""
    k: int = 10
    """Hits for each query."""
    p95_ms: float | None = None
    """Milliseconds in which 95% of calls must end; None: as fast as possible."""
    memory_gb: float | None = None
    """What the structure that is searched may take, in 10^9 bytes; raw vectors beside it, from which candidates are
    scored again, stay on disk and do not count. None: any."""
    batch: int = 1
    """Queries in a call."""
    threads: int | None = None
    """Of FAISS and of matrix products; None: as many as they take."""

    def check(self) -> None:
        """Refuse what is no goal.

        Raises:
            InputError: A number is out of its range.
        """
        if not 0 < self.recall <= 1:
            raise InputError(f"recall is {self.recall}; expected more than 0, at most 1")
        for name in ("k", "batch", "threads", "p95_ms", "memory_gb"):
            value = getattr(self, name)
            least = 1 if name in ("k", "batch", "threads") else 0
            if value is not None and not (least <= value < math.inf and value > 0):
                raise InputError(f"{name} is {value}; expected {'at least 1' if least else 'more than 0'}")


DEFAULT_GOAL = Goal()


class Point(NamedTuple):
    """A factory searched with an effort: what was measured."""

    factory: str
    effort: Effort
    recall: float
    """Mean over the queries."""
    least_recall: float
    """The lower 95% bound of the mean: `least_mean`."""
    p50_ms: float
    """Of calls, each of the goal's batch of queries."""
    p95_ms: float
    queries_per_s: float
    bytes: int
    """What the structure takes: FAISS' file."""

    @property
    def name(self) -> str:
        """The factory and the effort, in words."""
        said = [f"{name} {value}" for name, value in self.effort._asdict().items() if value is not None]
        return " ".join([self.factory, *([f"({', '.join(said)})"] if said else [])])

    def meets(self, goal: Goal) -> bool:
        """Whether it is enough, fast and small enough."""
        return self.finds(goal) and self.is_fast(goal) and self.fits(goal)

    def finds(self, goal: Goal) -> bool:
        """Whether it finds enough."""
        return self.least_recall >= goal.recall - _MORE

    def is_fast(self, goal: Goal) -> bool:
        """Whether calls end in time."""
        return goal.p95_ms is None or self.p95_ms <= goal.p95_ms

    def fits(self, goal: Goal) -> bool:
        """Whether it is small enough."""
        return goal.memory_gb is None or self.bytes <= goal.memory_gb * 1e9

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {**self._asdict(), "effort": self.effort._asdict()}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "Point":
        """Of JSON."""
        return cls(**{**record, "effort": Effort(**record["effort"])})


def least_mean(values: NDArray[np.float64], confidence: float = CONFIDENCE) -> float:
    """What the mean of shares (n,), from 0 to 1, is at least, with such a confidence.

    The lower bound of a normal mean, of these values and a 0: as if one query more had found nothing. So few queries
    prove little even where all of them found everything, of which the bare bound would make a certainty.
    """
    guarded = np.append(values, 0.0)
    error = guarded.std(ddof=1) / math.sqrt(len(guarded))
    return float(max(0.0, guarded.mean() - NormalDist().inv_cdf(confidence) * error))


def recalls(scores: NDArray[np.float32], exact: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of the k best documents, which share was found (q,), from the scores (q, k) found and the k best scores (q, k).

    By scores, so that a document that ties with the last of the best is as good as that.
    """
    return np.count_nonzero(scores >= exact[:, -1:], axis=1) / exact.shape[1]


def pareto(points: Iterable[Point]) -> list[Point]:
    """Those than which no other finds as much in as little time and memory; the fastest first."""
    points = list(points)

    def beaten(one: Point) -> bool:
        mine = (-one.recall, one.p95_ms, one.bytes)
        theirs = [(-other.recall, other.p95_ms, other.bytes) for other in points]
        return any(other != mine and all(a <= b for a, b in zip(other, mine, strict=True)) for other in theirs)

    return sorted((one for one in points if not beaten(one)), key=lambda one: one.p95_ms)


def fastest(points: Sequence[Point], goal: Goal, count: int) -> list[Point]:
    """So many of the points that meet a goal, the fastest first."""
    return sorted((one for one in points if one.meets(goal)), key=lambda one: one.p95_ms)[:count]


def refusal(points: Sequence[Point], goal: Goal) -> str:
    """Why no point meets a goal, and how near others come."""
    asked = [f"recall@{goal.k} ≥ {goal.recall:g}"]
    asked += [] if goal.p95_ms is None else [f"p95 ≤ {goal.p95_ms:g} ms"]
    asked += [] if goal.memory_gb is None else [f"memory ≤ {goal.memory_gb:g} GB"]
    near = []
    small = [one for one in points if one.fits(goal)]
    if not small and points:
        near.append(("the smallest is", min(points, key=lambda one: one.bytes)))
    if found := [one for one in small if one.finds(goal)]:
        near.append(("the fastest that finds enough is", min(found, key=lambda one: one.p95_ms)))
    if quick := [one for one in small if one.is_fast(goal)]:
        near.append(("what finds most in time is", max(quick, key=lambda one: one.least_recall)))
    said = "; ".join(f"{words} {_said(one)}" for words, one in near)
    return f"no index meets {', '.join(asked)} ({len(points)} points tried): {said or 'nothing fits'}; ask for less"


def _said(point: Point) -> str:
    return (
        f"{point.name}: recall {point.recall:.4f} (at least {point.least_recall:.4f}), p95 {point.p95_ms:.3g} ms, "
        f"{point.bytes / 1e9:.3g} GB"
    )
