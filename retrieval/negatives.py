"""Which of the documents that a search found may be negatives of a query, and which of them are drawn."""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InputError

SAMPLES = ("top", "random")
REASONS = (
    "",
    "relevant",
    "given",
    "from_rank",
    "most_score",
    "least_score",
    "margin",
    "percentage",
    "empty",
    "same_as_query",
    "same_as_positive",
    "same_as_another",
    "teacher",
)
"""Why a document is no negative, in the order in which it is asked; the first reason is the one that counts."""


@dataclass(frozen=True)
class MineConfig:
    """What decides which negatives are mined.

    Attributes:
        negatives: For each query, at most.
        mode: How the index is searched: `lexical`, `dense` or `hybrid`.
        from_rank: The first hit of a query that may be a negative, from 1; positives are counted.
        to_rank: The last one.
        margin: A negative's score is at most the positive's less so much (TopK-MarginPos).
        percentage: A negative's score is at most so much of the positive's (TopK-PercPos), such as 0.95.
        least_score: Of a negative.
        most_score: Of a negative.
        teacher_margin: The teacher's score of a negative is at most its score of the positive less so much.
        sample: `top`: the first that may be negatives; `random`: any of them, drawn by `seed` and the query's text.
        seed: Of `random`.
        ids_only: Write ids instead of texts.
        block: Queries that are searched together: the most that a killed run does again.

    Raises:
        InputError: A value is out of range.
    """

    negatives: int = 4
    mode: str = "dense"
    from_rank: int = 1
    to_rank: int = 100
    margin: float | None = None
    percentage: float | None = None
    least_score: float | None = None
    most_score: float | None = None
    teacher_margin: float = 0.0
    sample: str = "top"
    seed: int = 0
    ids_only: bool = False
    block: int = 512

    def __post_init__(self) -> None:
        ranks = self.to_rank - self.from_rank + 1
        if self.negatives < 1 or self.block < 1 or self.seed < 0:
            raise InputError(
                f"negatives are {self.negatives}, block {self.block}, seed {self.seed}; expected 1, 1, 0 or more"
            )
        if self.from_rank < 1 or ranks < self.negatives:
            raise InputError(
                f"{self.negatives} negatives of the hits {self.from_rank} to {self.to_rank}; expected at least as many "
                "hits, from 1 on (from_rank, to_rank)"
            )
        if self.margin is not None and not 0 <= self.margin < math.inf:
            raise InputError(f"margin is {self.margin}; expected 0 or more")
        if self.percentage is not None and not 0 < self.percentage <= 1:
            raise InputError(f"percentage is {self.percentage}; expected more than 0 and at most 1, such as 0.95")
        least, most = (default if one is None else one for one, default in self._scores)
        if not least <= most or not math.isfinite(self.teacher_margin):
            raise InputError(
                f"least_score is {self.least_score}, most_score {self.most_score}, teacher_margin "
                f"{self.teacher_margin}; expected numbers, the least not above the most"
            )
        if self.sample not in SAMPLES:
            raise InputError(f"sample is {self.sample!r}; expected one of {', '.join(SAMPLES)}")

    @property
    def _scores(self) -> tuple[tuple[float | None, float], tuple[float | None, float]]:
        return (self.least_score, -math.inf), (self.most_score, math.inf)

    @property
    def positive_aware(self) -> bool:
        """Whether a negative's score depends on the positive's."""
        return self.margin is not None or self.percentage is not None


def margin_limit(positive: NDArray[np.float64], margin: float) -> NDArray[np.float64]:
    """The highest score of a negative: the positive's less a margin.

    Source: TopK-MarginPos of Moreira et al., "NV-Retriever" (arXiv:2407.15831), section 3.
    """
    return positive - margin


def percentage_limit(positive: NDArray[np.float64], percentage: float) -> NDArray[np.float64]:
    """The highest score of a negative: a percentage p of the positive's s, p · s for s ≥ 0 and s - (1 - p) |s| for all.

    Scores such as z-scores can be below 0, where p · s would be above s.

    Source: TopK-PercPos of the same, which did best there, with p = 0.95.
    """
    return positive - (1 - percentage) * np.abs(positive)


def why_not(
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    positive: NDArray[np.float32],
    config: MineConfig,
) -> NDArray[np.int8]:
    """Say of each hit by which rule of ranks and scores it is no negative.

    Args:
        rows: (q, k) hits, best first; -1 where there is none.
        scores: (q, k)
        positive: (q,) the least score of each query's positives; NaN where there is none, and nothing depends on it.
        config: The rules.

    Returns:
        (q, k) numbers of `REASONS`: 0 where no rule speaks against it, -1 where there is no hit.
    """
    exact, best = scores.astype(np.float64), positive.astype(np.float64)[:, None]
    out = np.zeros(rows.shape, np.int8)
    rules: list[tuple[str, NDArray[Any]]] = [
        ("from_rank", np.broadcast_to(np.arange(1, rows.shape[1] + 1) < config.from_rank, rows.shape))
    ]
    if config.most_score is not None:
        rules.append(("most_score", exact > config.most_score))
    if config.least_score is not None:
        rules.append(("least_score", exact < config.least_score))
    # Not "above the limit": nothing is below a limit that is no number.
    if config.margin is not None:
        rules.append(("margin", ~(exact <= margin_limit(best, config.margin))))
    if config.percentage is not None:
        rules.append(("percentage", ~(exact <= percentage_limit(best, config.percentage))))
    for name, against in rules:
        out[(out == 0) & against] = REASONS.index(name)
    out[rows < 0] = -1
    return out


def drawing_order(count: int, config: MineConfig, query: str) -> NDArray[np.int64]:
    """The order (count,) in which candidates are drawn: as they come, or by chance, which the query's text decides."""
    if config.sample == "top":
        return np.arange(count)
    seed = hashlib.blake2b(f"{config.seed} {query}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(seed, "little")).permutation(count)
