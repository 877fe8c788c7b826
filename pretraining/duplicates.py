"""Duplicates: documents of the same words, and near ones by MinHash with locality-sensitive hashing.

Sources: Broder, "On the resemblance and containment of documents" (1997), for shingles and minima; Leskovec et al.,
"Mining of Massive Datasets", chapter 3, for bands and the S-curve; Li and König, "b-Bit Minwise Hashing" (2010), for
keeping 16 bits of each minimum; Lee et al., "Deduplicating Training Data Makes Language Models Better" (2022,
arXiv 2107.06499), for runs of five words and a Jaccard of 0.8.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from indexes.errors import InputError
from retrieval.shingles import mixed, shingle_hashes
from retrieval.sorted_runs import SortedRuns

SHINGLE = 5
"""Words a shingle."""
HASHES = 128
"""Minima a document, at most."""
LEAST_JACCARD = 0.5

_SURE = 0.99
_ROW_BITS = np.uint64(32)
_ROWS = np.uint64(0xFFFF_FFFF)
_LEAST_ROOM = 1024


def s_curve(jaccard: float, bands: int, rows: int) -> float:
    """The chance that two documents share a whole band of minima: 1 - (1 - J^rows)^bands.

    >>> [round(s_curve(jaccard, 21, 6), 3) for jaccard in (0.3, 0.5, 0.7, 0.8, 0.9)]
    [0.015, 0.282, 0.928, 0.998, 1.0]
    """
    return 1 - (1 - jaccard**rows) ** bands


def banding(threshold: float, hashes: int = HASHES) -> tuple[int, int]:
    """Bands and rows of so many minima: the longest bands that find 99% of pairs at the threshold.

    >>> banding(0.8), banding(0.5)
    ((21, 6), (42, 3))
    """
    for rows in range(hashes, 1, -1):
        if s_curve(threshold, hashes // rows, rows) >= _SURE:
            return hashes // rows, rows
    return hashes, 1


def chance_found(jaccard: float, threshold: float) -> float:
    """The chance that a document is dropped for another one of this Jaccard, the threshold being this.

    Each minimum of the two agrees with probability J. A pair is found if some band agrees as a whole and at least the
    threshold's share of all minima do; that is counted out here, not bounded.

    >>> [round(chance_found(jaccard, 0.8), 3) for jaccard in (0.6, 0.7, 0.75, 0.8, 0.85, 0.9)]
    [0.0, 0.007, 0.107, 0.535, 0.946, 1.0]
    """
    bands, rows = banding(threshold)
    of_band = np.array([math.comb(rows, n) * jaccard**n * (1 - jaccard) ** (rows - n) for n in range(rows + 1)])
    broken = of_band.copy()
    broken[rows] = 0  # a band that does not agree as a whole
    whole, none = np.ones(1), np.ones(1)
    for _ in range(bands):
        whole, none = np.convolve(whole, of_band), np.convolve(none, broken)
    least = _least_equal(threshold, bands * rows)
    return float(whole[least:].sum() - none[least:].sum())


class ExactDuplicates:
    """Which texts occurred before, in 16 bytes each (BLAKE2b)."""

    def __init__(self) -> None:
        self._runs = SortedRuns()

    def add(self, texts: Sequence[str]) -> np.ndarray:
        """Remember texts (n,) in their normal form; true for each that occurred before, bool (n,).

        A text without words is nobody's duplicate.
        """
        digests = [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts]
        values = np.frombuffer(b"".join(digests), dtype="S16")
        _, first = np.unique(values, return_index=True)
        repeated = np.ones(len(texts), dtype=bool)
        repeated[first] = False
        repeated |= self._runs.hold(values)
        self._runs.add(values[~repeated])
        return repeated & np.array([bool(text) for text in texts], dtype=bool)


class NearDuplicates:
    """Which texts resemble one that was kept, by the Jaccard of their sets of five-word shingles.

    The Jaccard is estimated from 128 minima or a few less, as many as fill the bands (standard error at 0.8: 0.036);
    `chance_found` says what that finds. A text is compared with those kept before it, not with those dropped, so that
    every dropped text resembles a kept one.

    A kept text takes 2 bytes a minimum and 8 a band: 420 at 0.8, up to an eighth more while arrays grow, and nothing
    of the text itself. A text that is dropped takes nothing.

    Args:
        threshold: The least Jaccard of near duplicates, 0.5 to 1.

    Raises:
        InputError: The threshold is none.
    """

    def __init__(self, threshold: float = 0.8) -> None:
        if not LEAST_JACCARD <= threshold <= 1:
            raise InputError(
                f"near_duplicates_at is {threshold}; expected a Jaccard from {LEAST_JACCARD:g} to 1, such as 0.8"
            )
        self.bands, self.rows = banding(threshold)
        self.hashes = self.bands * self.rows
        self._least = _least_equal(threshold, self.hashes)
        # Odd factors: one to one on 64 bits (multiply-shift; Dietzfelbinger et al. 1997).
        self._factors = mixed(np.arange(self.hashes, dtype=np.uint64)) | np.uint64(1)
        self._shifts = mixed(np.arange(self.hashes, 2 * self.hashes, dtype=np.uint64))
        self._minima = np.zeros((0, self.hashes), dtype=np.uint16)
        self._keys = SortedRuns()
        self.kept = 0

    def add(self, texts: Sequence[str]) -> np.ndarray:
        """Remember texts (n,) in their normal form, unless they resemble a kept one; true for those, bool (n,).

        A text without words is nobody's duplicate.
        """
        near = np.zeros(len(texts), dtype=bool)
        places = [place for place, text in enumerate(texts) if text]
        if not places:
            return near
        minima = self.signatures([texts[place] for place in places])  # (m, hashes)
        short = minima.astype(np.uint16)
        keys = self._band_keys(minima)  # (m, bands)
        candidates = self._earlier(keys)
        fresh: dict[int, list[int]] = defaultdict(list)
        kept, first = [], self.kept
        for number, place in enumerate(places):
            own = keys[number].tolist()
            rows = candidates.get(number, set()).union(*(fresh[key] for key in own if key in fresh))
            if rows and self._resembles(short[number], rows):
                near[place] = True
                continue
            for key in own:
                fresh[key].append(self.kept)
            kept.append(number)
            self._keep(short[number])
        numbers = np.arange(first, self.kept, dtype=np.uint64)
        self._keys.add((keys[kept] | numbers[:, None]).ravel())
        return near

    def signatures(self, texts: Sequence[str]) -> np.ndarray:
        """The upper half of each minimum, uint32 (n, hashes), of texts with words in their normal form."""
        hashes, bounds = shingle_hashes(texts, SHINGLE)
        found = np.empty((self.hashes, len(texts)), dtype=np.uint32)
        for number, (factor, shift) in enumerate(zip(self._factors, self._shifts, strict=True)):
            found[number] = np.minimum.reduceat(hashes * factor + shift, bounds[:-1]) >> _ROW_BITS
        return found.T

    def _band_keys(self, minima: np.ndarray) -> np.ndarray:
        """A hash of each band in the upper 32 bits, uint64 (n, bands); the lower ones are for the row."""
        parts = minima.reshape(len(minima), self.bands, self.rows)  # (n, bands, rows)
        keys = np.broadcast_to(np.arange(self.bands, dtype=np.uint64), parts.shape[:2])
        for row in range(self.rows):
            keys = mixed(keys ^ parts[:, :, row])
        return keys & ~_ROWS

    def _earlier(self, keys: np.ndarray) -> dict[int, set[int]]:
        """The kept rows that share a band with each of (n, bands) keys."""
        found: dict[int, set[int]] = defaultdict(set)
        flat = keys.ravel()
        for run in self._keys:
            start, end = run.searchsorted(flat), run.searchsorted(flat | _ROWS, side="right")
            for place in np.flatnonzero(end > start).tolist():
                found[place // self.bands].update((run[start[place] : end[place]] & _ROWS).tolist())
        return found

    def _resembles(self, minima: np.ndarray, rows: set[int]) -> bool:
        others = self._minima[np.fromiter(rows, dtype=np.int64, count=len(rows))]  # (candidates, hashes)
        return bool(((others == minima).sum(axis=1) >= self._least).any())

    def _keep(self, minima: np.ndarray) -> None:
        if self.kept == len(self._minima):
            room = max(_LEAST_ROOM, self.kept + self.kept // 8)
            self._minima.resize((room, self.hashes), refcheck=False)
        self._minima[self.kept] = minima
        self.kept += 1


def _least_equal(threshold: float, hashes: int) -> int:
    """How many minima have to agree for an estimate of at least the threshold."""
    return math.ceil(threshold * hashes - 1e-9)
