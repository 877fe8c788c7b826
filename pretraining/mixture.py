"""Mixtures of corpora: how often each one is gone through, and the order in which a run reads them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from indexes.checksums import fingerprint
from indexes.errors import InputError
from pretraining.masking import seeded
from retrieval.documents import corpus_fingerprint, read_documents

_LEAST, _MOST = 0.001, 1000.0
_MOST_CORPORA = 1 << 16


@dataclass(frozen=True)
class Mixture:
    """Corpora with their weights.

    Attributes:
        corpora: As `retrieval.documents.read_documents` takes them.
        weights: How often each is gone through while one of weight 1 is gone through once.
    """

    corpora: tuple[str, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, corpus: "str | Path | Mapping[str, float] | Mixture") -> "Mixture":
        """One corpus, or several with their weights.

        Raises:
            InputError: There is none, one is there twice, or a weight is not from 0.001 to 1000.
        """
        if isinstance(corpus, Mixture):
            return corpus
        if isinstance(corpus, str | Path):
            return cls((str(corpus),), (1.0,))
        if not isinstance(corpus, Mapping) or not 1 <= len(corpus) <= _MOST_CORPORA:
            raise InputError(f"corpus is {corpus!r}; expected a path, a name, or a mapping from corpora to weights")
        places: dict[object, str] = {}
        for name, weight in corpus.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not _LEAST <= weight <= _MOST:
                raise InputError(f"weight of {name} is {weight!r}; expected a number from {_LEAST:g} to {_MOST:g}")
            place = Path(name).resolve() if Path(name).exists() else str(name)
            if place in places:
                raise InputError(f"{name} and {places[place]} are one corpus; name it once, with a higher weight")
            places[place] = str(name)
        return cls(tuple(map(str, corpus)), tuple(map(float, corpus.values())))

    @classmethod
    def parse(cls, corpus: str, also: Sequence[str]) -> "Mixture":
        """A corpus of weight 1, and others written CORPUS=WEIGHT.

        Raises:
            InputError: One is not written so, or what `of` refuses.
        """
        weights: dict[str, float] = {corpus: 1.0}
        for written in also:
            name, _, weight = written.rpartition("=")
            try:
                value = float(weight)
            except ValueError:
                value = math.nan
            if not name or math.isnan(value):
                raise InputError(f"--also {written} has no weight; expected CORPUS=WEIGHT, such as {written}=2")
            if name in weights:
                raise InputError(f"{name} is given twice; name it once, with a higher weight")
            weights[name] = value
        return cls.of(weights)

    def digests(self) -> list[str]:
        """The fingerprint of each corpus; all of them are read.

        Raises:
            InputError: Two corpora hold the same documents.
        """
        found: dict[str, str] = {}
        for name in self.corpora:
            digest = corpus_fingerprint(read_documents(name))
            if digest in found:
                raise InputError(f"{name} and {found[digest]} hold the same; name one of them, with a higher weight")
            found[digest] = name
        return list(found)

    def record(self, digests: Sequence[str]) -> dict[str, Any]:
        """What decides a run's data, as JSON values: a fingerprint, and the weights where there are several."""
        if len(digests) == 1:
            return {"corpus": digests[0], "weights": None}
        return {"corpus": fingerprint(list(digests)), "weights": list(self.weights)}

    def names(self) -> str | dict[str, float]:
        """The corpus, or the corpora with their weights, as a run card says it."""
        return self.corpora[0] if len(self.corpora) == 1 else dict(zip(self.corpora, self.weights, strict=True))


class MixedOrder(Sampler[int]):
    """Row numbers of a whole run over several corpora.

    Every corpus has a sequence of its own: one permutation of its rows after the other. In an epoch each comes as far
    on as its weight says, by the rows that lie between floor(epoch · weight · rows) and that of the next epoch: of
    weight 0.5, another half in each of two epochs. The corpora are spread evenly over an epoch, by one draw in each of
    as many equal stretches as a corpus has rows in it: any part of the run has its share of each corpus, within a row
    or two, and a row comes again when all the others of its corpus did.

    All of it depends on (seed, epoch) alone; an epoch's row numbers are in memory, and two permutations a corpus.

    Args:
        sources: The number of each row's corpus, (n,).
        weights: One for each corpus; every corpus has a row.
        total: Rows of the run, all processes together.
        seed: Of permutations and draws.
        anew: Whether rows are drawn anew every time: numbers are then counted on, n for each time that the corpus was
            gone through before.
    """

    def __init__(
        self, sources: np.ndarray, weights: Sequence[float], total: int, seed: int, *, anew: bool = False
    ) -> None:
        self.rows = [np.flatnonzero(sources == number) for number in range(len(weights))]
        # As written: a tenth is 1/10, not the binary fraction beside it.
        self.weights = [Fraction(repr(float(weight))) for weight in weights]
        self.total, self.seed, self.step = total, seed, len(sources) if anew else 0
        self._last: dict[int, tuple[int, np.ndarray]] = {}

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        left, number = self.total, 0
        while left:
            rows = self.epoch(number)[:left]
            yield from rows.tolist()
            left, number = left - len(rows), number + 1

    def epoch(self, number: int) -> np.ndarray:
        """The row numbers of one epoch, int64."""
        parts = [self._part(source, number) for source in range(len(self.rows))]
        chance = seeded(torch.device("cpu"), self.seed, "mixture", number)
        places = [
            (np.arange(len(part)) + torch.rand(len(part), generator=chance, dtype=torch.float64).numpy()) / len(part)
            for part in parts
        ]
        return np.concatenate(parts)[np.argsort(np.concatenate(places), kind="stable")]

    def _part(self, source: int, epoch: int) -> np.ndarray:
        """What an epoch reads of one corpus, in the order in which it reads it."""
        rows, share = self.rows[source], self.weights[source] * len(self.rows[source])
        first, last, found = math.floor(epoch * share), math.floor((epoch + 1) * share), [np.zeros(0, dtype=np.int64)]
        while first < last:
            time, start = divmod(first, len(rows))
            chosen = self._permutation(source, time)[start : start + last - first]
            found.append(rows[chosen] + time * self.step)
            first += len(chosen)
        return np.concatenate(found)

    def _permutation(self, source: int, time: int) -> np.ndarray:
        if self._last.get(source, (-1,))[0] != time:
            chance = seeded(torch.device("cpu"), self.seed, "mixture", source, time)
            self._last[source] = time, torch.randperm(len(self.rows[source]), generator=chance).numpy()
        return self._last[source][1]
