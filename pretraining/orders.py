"""More orders in which a run reads its rows: counted on from epoch to epoch, or those of like length together."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from retrieval.orders import EpochOrder
from retrieval.seeds import seeded

_BATCHES_GROUPED = 64


class TimesOrder(EpochOrder):
    """The order of `EpochOrder`, rows being counted on from epoch to epoch, for rows that are drawn anew every time."""

    def epoch(self, number: int) -> list[int]:
        """The permutation of one epoch."""
        return [number * self.rows + row for row in super().epoch(number)]


class GroupedByLength(Sampler[int]):
    """Another order, in which rows of like length come together in a batch, so that little of it is padding.

    The rows of so many batches are put in the order of their lengths and cut into batches, which then come in random
    order, drawn from (seed, which of such blocks it is).

    Args:
        order: The rows of a run.
        lengths: Of each row, (rows,); row n of the order is n modulo their number.
        batch: Rows of a batch.
        seed: Of the order of batches.
    """

    def __init__(self, order: Sampler[int], lengths: np.ndarray, batch: int, seed: int) -> None:
        self.order, self.lengths, self.batch, self.seed = order, np.asarray(lengths), batch, seed

    def __len__(self) -> int:
        return len(self.order)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        rows = iter(self.order)
        for number in itertools.count():
            block = list(itertools.islice(rows, self.batch * _BATCHES_GROUPED))
            if not block:
                return
            block.sort(key=lambda row: int(self.lengths[row % len(self.lengths)]))
            batches = [block[start : start + self.batch] for start in range(0, len(block), self.batch)]
            generator = seeded(torch.device("cpu"), self.seed, number, "lengths")
            for place in torch.randperm(len(batches), generator=generator).tolist():
                yield from batches[place]
