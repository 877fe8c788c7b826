"""Contrastive terms: words that an encoder attends to in a document more than in others, drawn as sets (B-PROP).

Source: Ma et al., "B-PROP: Bootstrapped Pre-training with Representative Words Prediction for Ad-hoc Retrieval" (SIGIR
2021, arXiv 2104.09791), with the constants of the authors' code. With a(w, D) the attention of [CLS] to the first piece
of a word, the mean of the last layer's heads, summed over the places where the word stands (`attended_words`):

    s(w, D) = a(w, D) / (a(w, D) + 0.01)            what is attended to at all counts; more of it counts ever less
    p_D(w)  = s(w, D) / Σ_w' s(w', D)
    p_R(w)  = Σ_D s(w, D) / Σ_w' Σ_D s(w', D)       of a document drawn at random: the mean of all, normalised
    c(w, D) = min(p_D(w) · -log2 p_R(w), 100)       high for words of this document that few others hold

A set has n words, n drawn from Poisson(3) until it is at least one, without replacement by the chances
softmax(c(w, D) / T); it is worth Σ c(w, D). Where this leaves the authors' code:

- T is an option. They have T = 1, at which chances hardly differ: c is near log2(v) / (words of D), a fraction of 1.
  How sharp one T is depends on the number of words of D for the same reason.
- Documents are read whole, in windows; they read the first 512 tokens.
- Words are those of the text. With `--stem`, as they ran it, theirs are stems that no text holds.
- Stop words are left out, as PROP does; they load such a list and do not use it.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexes.arrays import map_array, read_array
from indexes.errors import InputError
from indexes.manifest import open_manifest
from pretraining.word_sets import WordSets, read_words, set_size

KIND = "attended-words"
TEMPERATURE = 0.05
"""The usual one: of an abstract's 60 words about a third are drawn at all often (benchmarks/LOG.md)."""
_HALF = 0.01
_MOST = 100.0

Floats = NDArray[np.float64]


def saturated(attention: NDArray[np.floating]) -> Floats:
    """From attention (w,) to s."""
    values = attention.astype(np.float64)
    return values / (values + _HALF)


def information(sums: Floats) -> Floats:
    """-log2 p_R of the sums of s over all documents (v,); 0 for a word that no document attends to."""
    there = sums > 0
    return np.where(there, -np.log2(np.where(there, sums, 1.0) / sums.sum()), 0.0)


def contrast(scores: Floats, bits: Floats) -> Floats:
    """From s and -log2 p_R of a document's words (w,) to c."""
    return np.minimum(scores / scores.sum() * bits, _MOST)


class ContrastiveTerms:
    """Draws sets of words from documents' contrastive term distributions.

    Args:
        folder: What `attended_words.write_attended_words` wrote.
        temperature: T, above 0: towards 0 the words with the greatest c, towards infinity all alike.

    Raises:
        InputError: There is no such folder, or it is damaged; the temperature is none; no word is attended to.
    """

    def __init__(self, folder: Path, temperature: float = TEMPERATURE) -> None:
        check_temperature(temperature)
        self.temperature, self.manifest = temperature, open_manifest(folder, KIND)
        self.words = read_words(folder)
        self._offsets, self._places, self._attention = (
            map_array(folder / f"{name}.npy") for name in ("offsets", "places", "attention")
        )
        sums = read_array(folder / "sums.npy")
        if not sums.any():
            raise InputError(f"no word of {len(self):,} documents is attended to; give documents with words in them")
        self.information = information(sums)

    def __len__(self) -> int:
        """How many documents there are."""
        return len(self._offsets) - 1

    def scores(self, row: int) -> dict[str, float]:
        """How contrastive each word of a document is, c, by the number of the document."""
        places, found = self._contrast(row)
        return {self.words[place]: float(score) for place, score in zip(places, found, strict=True)}

    def draw(self, row: int, generator: np.random.Generator) -> tuple[str, ...] | None:
        """Draw one set of words for a document, in the order in which they were drawn; None if it has none."""
        places, scores = self._contrast(row)
        if not len(places):
            return None
        return self._named(places[self._drawn(scores, set_size(generator), generator)])

    def draw_two(self, row: int, generator: np.random.Generator) -> WordSets | None:
        """Draw two sets of as many words; None if the document has no words, or both are worth the same."""
        places, scores = self._contrast(row)
        if not len(places):
            return None
        size = set_size(generator)
        sets = [self._drawn(scores, size, generator) for _ in range(2)]
        worth = [float(scores[np.sort(one)].sum()) for one in sets]  # in one order: equal sets are worth the same
        if worth[0] == worth[1]:
            return None
        better = int(worth[1] > worth[0])
        named = [self._named(places[one]) for one in sets]
        return WordSets(named[better], named[1 - better], (worth[better], worth[1 - better]))

    def _contrast(self, row: int) -> tuple[NDArray[np.int64], Floats]:
        """The words of a document, by number, and c of each."""
        first, end = int(self._offsets[row]), int(self._offsets[row + 1])
        scores = saturated(self._attention[first:end])
        if not scores.any():
            return np.empty(0, dtype=np.int64), scores
        places = self._places[first:end].astype(np.int64)
        return places, contrast(scores, self.information[places])

    def _drawn(self, scores: Floats, size: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Which words are drawn, without replacement, by softmax(c / T): the greatest of c / T + Gumbel noise.

        That is the same distribution (Yellott 1977), and no chance is rounded to 0 on the way.
        """
        keys = scores / self.temperature + generator.gumbel(size=len(scores))
        return np.argsort(-keys, kind="stable")[:size]

    def _named(self, places: NDArray[np.int64]) -> tuple[str, ...]:
        return tuple(self.words[place] for place in places)


def check_temperature(value: float) -> None:
    """Refuse what is no temperature.

    Raises:
        InputError: It is not above 0, or infinite.
    """
    if not 0 < value < float("inf"):
        raise InputError(f"the temperature of word sets is {value}; expected above 0, such as {TEMPERATURE}")
