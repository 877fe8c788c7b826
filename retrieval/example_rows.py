"""Training examples as rows of a run: what is drawn of each at each visit, and in which order batches take them."""

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch.utils.data import Dataset, Sampler

from indexes.errors import InputError
from retrieval.examples import Candidate, Example
from retrieval.seeds import seeded

_BATCHES_WAITING = 16
_CPU = torch.device("cpu")
_NAN = float("nan")


class Drawn(NamedTuple):
    """What a batch has of an example."""

    query: str
    texts: tuple[str, ...]
    """One positive, and then negatives."""
    scores: tuple[float, ...]
    """Of the texts; NaN: none."""
    known: tuple[str, ...]
    """All texts that answer the query."""
    dataset: str


class ExampleRows(Dataset[Drawn]):
    """Examples by address: row + visit · number of examples; each visit draws a positive and negatives anew.

    Args:
        examples: In the order of their rows.
        negatives: The most that are drawn at a visit.
        seed: Of what is drawn.
    """

    def __init__(self, examples: Sequence[Example], negatives: int, seed: int) -> None:
        self.examples, self.negatives, self.seed = examples, negatives, seed
        self.answers: dict[str, set[str]] = {}
        for example in examples:
            self.answers.setdefault(example.query, set()).update(one.text for one in example.positives)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, address: int) -> Drawn:
        example = self.examples[address % len(self.examples)]
        generator = seeded(_CPU, self.seed, address, "example")
        positive = example.positives[int(torch.randint(len(example.positives), (), generator=generator))]
        answers = self.answers[example.query]  # those of other examples of the same query too
        wrong = [one for one in example.negatives if one.text not in answers]
        order = torch.randperm(len(wrong), generator=generator)[: self.negatives].tolist()
        return drawn(example, positive, [wrong[number] for number in order])._replace(known=tuple(sorted(answers)))


def drawn(example: Example, positive: Candidate, negatives: Sequence[Candidate]) -> Drawn:
    """An example with one of its positives and some of its negatives."""
    candidates = [positive, *negatives]
    scores = tuple(_NAN if one.score is None else float(one.score) for one in candidates)
    known = tuple(one.text for one in example.positives)
    return Drawn(example.query, tuple(one.text for one in candidates), scores, known, example.dataset)


def dataset_shares(sizes: Mapping[str, int], weights: Mapping[str, float], alpha: float) -> dict[str, float]:
    """How likely a batch is of each data set: its weight (else 1) times its size to the power alpha, over their sum.

    Raises:
        InputError: A weight is of no data set.
    """
    for name in weights:
        if name not in sizes:
            raise InputError(f"there is no data set {name!r} to weigh; there are {', '.join(sizes)}")
    shares = {name: weights.get(name, 1.0) * size**alpha for name, size in sizes.items()}
    return {name: share / sum(shares.values()) for name, share in shares.items()}


class BatchOrder(Sampler[int]):
    """Addresses of examples, batch after batch, each of one data set.

    No batch has two examples of the same query or with a positive in common, as long as enough others are left (their
    documents would be each other's negatives; where it has, losses know of it). An example that has to wait comes in a
    later batch. Each data set is gone through by one permutation after the other.

    Args:
        examples: In the order of their rows.
        batch: Examples of a batch, all processes together.
        batches: How many the run reads.
        shares: How likely each data set is.
        seed: Of permutations and of the choice of data sets.

    Raises:
        InputError: A data set has fewer queries than a batch.
    """

    def __init__(
        self, examples: Sequence[Example], batch: int, batches: int, shares: Mapping[str, float], seed: int
    ) -> None:
        self.examples, self.batch, self.batches, self.shares, self.seed = examples, batch, batches, shares, seed
        self.rows: dict[str, list[int]] = {name: [] for name in shares}
        for row, example in enumerate(examples):
            self.rows[example.dataset].append(row)
        for name, rows in self.rows.items():
            queries = len({examples[row].query for row in rows})
            if queries < batch:
                of = f"data set {name!r}" if name else "the examples"
                raise InputError(f"{of}: {queries} queries to learn from; a batch needs {batch}: lower --batch-size")

    def __len__(self) -> int:
        return self.batch * self.batches

    def __iter__(self) -> Iterator[int]:
        names = sorted(self.rows)
        chances = torch.tensor([self.shares[name] for name in names], dtype=torch.float64)
        streams = {name: self._endless(name) for name in names}
        waiting: dict[str, deque[int]] = {name: deque() for name in names}
        for number in range(self.batches):
            generator = seeded(_CPU, self.seed, number, "data set")
            name = names[int(torch.multinomial(chances, 1, generator=generator))]
            yield from self._batch(streams[name], waiting[name], len(self.rows[name]))

    def _batch(self, stream: Iterator[int], waiting: deque[int], rows: int) -> list[int]:
        batch: list[int] = []
        taken: set[str] = set()
        tried = 0
        for address in [waiting.popleft() for _ in range(len(waiting))]:
            self._place(address, batch, taken, waiting)
        full = _BATCHES_WAITING * self.batch
        while len(batch) < self.batch and tried < 2 * rows and len(waiting) < full:
            self._place(next(stream), batch, taken, waiting)
            tried += 1
        while len(batch) < self.batch:  # no others are left
            batch.append(waiting.popleft() if waiting else next(stream))
        return batch

    def _place(self, address: int, batch: list[int], taken: set[str], waiting: deque[int]) -> None:
        example = self.examples[address % len(self.examples)]
        texts = {"q " + example.query, *("d " + one.text for one in example.positives)}
        if len(batch) < self.batch and not texts & taken:
            batch.append(address)
            taken |= texts
        elif len(waiting) < _BATCHES_WAITING * self.batch:
            waiting.append(address)

    def _endless(self, name: str) -> Iterator[int]:
        rows = self.rows[name]
        for visit in itertools.count():
            for place in torch.randperm(len(rows), generator=seeded(_CPU, self.seed, visit, name)).tolist():
                yield rows[place] + visit * len(self.examples)
