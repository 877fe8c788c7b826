"""In which order a run reads its rows: epoch after epoch."""

import math
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from retrieval.seeds import seeded


class EpochOrder(Sampler[int]):
    """Row numbers of a whole run in one go: every epoch another permutation, drawn from (seed, epoch)."""

    def __init__(self, rows: int, total: int, seed: int) -> None:
        self.rows, self.total, self.seed = rows, total, seed

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        for epoch in range(math.ceil(self.total / self.rows)):
            yield from self.epoch(epoch)[: self.total - epoch * self.rows]

    def epoch(self, number: int) -> list[int]:
        """The permutation of one epoch."""
        return torch.randperm(self.rows, generator=seeded(torch.device("cpu"), self.seed, number)).tolist()
