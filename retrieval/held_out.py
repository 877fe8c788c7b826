"""Examples that are held back from training, and how well a model does on them."""

import hashlib
import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from retrieval.examples import Candidate, Example

NDCG, SPEARMAN, COSINE = "nDCG@10", "Spearman", "cosine with the start"

Prompts = Callable[[str], Mapping[str, str]]
_OTHERS = 20
"""Candidates of a query for a cross-encoder: its own, and as many of others as make them so many."""


class BiEncoderLike(Protocol):
    """What is asked of an encoder of queries and documents."""

    def prompts(self, dataset: str) -> Mapping[str, str]:
        """What goes before queries and documents of a data set."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors (texts, d) of texts with their prompts."""

    def encode_at_start(self, texts: Sequence[str]) -> Tensor:
        """The same by the encoder as it came."""


class PairScorer(Protocol):
    """What is asked of a cross-encoder."""

    def prompts(self, dataset: str) -> Mapping[str, str]:
        """What goes before queries and documents of a data set."""

    def score(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """Scores (pairs,)."""


class Ranking(NamedTuple):
    """Queries, the texts that are ranked for them, and which of those answer which; all with their prompts."""

    queries: list[str]
    texts: list[str]
    relevant: list[list[int]]
    candidates: list[list[int]]
    """Of each query the texts that a cross-encoder ranks: what is relevant, its own negatives, and some of others."""


def hold_out(examples: Sequence[Example], most: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Examples to learn from, and those of some queries, at most a fifth of all, that are held back.

    Which queries depends on the seed and their texts alone.
    """
    queries = sorted({example.query for example in examples}, key=lambda query: _drawn(seed, query))
    chosen = set(queries[: max(1, min(most, len(queries) // 5))])
    held = [example for example in examples if example.query in chosen]
    pairs = {(example.query, one.text) for example in held for one in example.positives}
    # A pair that is held must not be learned the other way round either.
    learned = [
        example
        for example in examples
        if example.query not in chosen and not any((one.text, example.query) in pairs for one in example.positives)
    ]
    return learned, held


def draw_texts(texts: Iterable[str], most: int, seed: int) -> list[str]:
    """At most so many of some texts; which depends on the seed and the texts alone."""
    return heapq.nsmallest(most, dict.fromkeys(texts), key=lambda text: _drawn(seed, text))


def make_ranking(held: Sequence[Example], others: Sequence[str], prompts: Prompts) -> Ranking:
    """What a model has to rank: all candidates of the held-out examples, and other texts."""
    number: dict[str, int] = {}

    def known(example: Example, text: str) -> int:
        return number.setdefault(prompts(example.dataset)["document"] + text, len(number))

    relevant: dict[str, list[int]] = {}
    own: dict[str, list[int]] = {}
    for example in held:
        query = prompts(example.dataset)["query"] + example.query
        relevant.setdefault(query, []).extend(known(example, one.text) for one in example.positives)
        own.setdefault(query, []).extend(known(example, one.text) for one in example.negatives)
    answers = {one.text for example in held for one in example.positives}  # under other prompts, perhaps
    for text in others:
        if text not in answers:
            known(held[0], text)
    candidates = []
    for place, query in enumerate(relevant):
        more = [(place * _OTHERS + step) % len(number) for step in range(min(_OTHERS, len(number)))]
        found = list(dict.fromkeys([*relevant[query], *own[query], *more]))
        candidates.append(found[: max(_OTHERS, len(relevant[query]) + len(own[query]))])
    wanted = [sorted(set(rows)) for rows in relevant.values()]
    return Ranking(list(relevant), list(number), wanted, candidates)


def ndcg_at_10(scores: Tensor, relevant: Sequence[int]) -> float:
    """nDCG@10 with gains of 1; of equal scores, what is relevant comes last, so that no model gains by ties.

    Args:
        scores: (n,).
        relevant: Which of them should be high.
    """
    gains = torch.zeros(len(scores), dtype=torch.float64)
    gains[list(relevant)] = 1.0
    by_gain = gains.argsort(stable=True)
    order = by_gain[scores.cpu()[by_gain].argsort(descending=True, stable=True)]
    discounts = 1 / torch.log2(2.0 + torch.arange(min(10, len(scores)), dtype=torch.float64))
    best = discounts[: len(relevant)].sum()
    return float((gains[order[:10]] * discounts).sum() / best)


def mean_ndcg(model: BiEncoderLike, ranking: Ranking) -> float:
    """Mean nDCG@10 of ranking all texts for each query by vectors."""
    scores = model.encode(ranking.queries) @ model.encode(ranking.texts).T  # (q, n)
    values = [ndcg_at_10(row, wanted) for row, wanted in zip(scores, ranking.relevant, strict=True)]
    return sum(values) / len(values)


def mean_ndcg_of_pairs(model: PairScorer, ranking: Ranking) -> float:
    """Mean nDCG@10 of ranking each query's candidates by a cross-encoder."""
    pairs = [
        (query, ranking.texts[row])
        for query, rows in zip(ranking.queries, ranking.candidates, strict=True)
        for row in rows
    ]
    scores = model.score(pairs).split([len(rows) for rows in ranking.candidates])
    values = [
        ndcg_at_10(one, [rows.index(row) for row in wanted])
        for one, rows, wanted in zip(scores, ranking.candidates, ranking.relevant, strict=True)
    ]
    return sum(values) / len(values)


def scored(example: Example) -> list[Candidate]:
    """What scores are compared of: all candidates with one; or the first positive, where there are none."""
    found = [one for one in (*example.positives, *example.negatives) if one.score is not None]
    return found or [example.positives[0]]


def prompted_pairs(held: Sequence[Example], prompts: Prompts) -> list[tuple[str, str]]:
    """The two texts of each scored pair, after their prompts."""
    return [
        (prompts(one.dataset)["query"] + one.query, prompts(one.dataset)["document"] + other.text)
        for one in held
        for other in scored(one)
    ]


def spearman(scores: Tensor, wanted: Sequence[float]) -> float:
    """Spearman's correlation of scores (n,) with those wanted; 0 where one of them is constant."""
    from scipy.stats import rankdata

    one, other = (torch.from_numpy(rankdata(values)) for values in (scores.cpu().numpy(), wanted))
    one, other = one - one.mean(), other - other.mean()
    spread = float(one.norm() * other.norm())
    return float(one @ other) / spread if spread else 0.0


def _drawn(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}\0held out\0{text}".encode()).digest()
