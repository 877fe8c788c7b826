"""Representative words: sets of words drawn from a document's language model (PROP), as queries nobody wrote.

Source: Ma et al., "PROP: Pre-training with Representative Words Prediction for Ad-hoc Retrieval" (WSDM 2021).
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InputError
from retrieval.documents import Document

_WORD = re.compile(r"[a-zA-Z]+")
_MEAN_WORDS = 3
_OFTEN = 1e-4


class WordSets(NamedTuple):
    """Two sets of as many words, and which of them the document's language model finds likelier."""

    better: tuple[str, ...]
    worse: tuple[str, ...]
    scores: tuple[float, float]
    """Σ log p(w | D) of each."""


class WordSetSampler:
    """Draws sets of words from documents' language models, smoothed by the collection's (Dirichlet).

        p(w | D) = (tf(w, D) + μ p(w)) / (|D| + μ),  μ the mean length of documents, p(w) = df(w) / Σ df

    That is a mixture: with the chance |D| / (|D| + μ) a word is drawn from the document, else from the collection, so
    that draws are exact, of all words, and take a moment. (The authors' code draws from the document's words and enough
    of the collection's to make 500, the likelier ones twice over.) Words that make up more than t = 1e-4 of the
    collection are drawn that much more rarely: each is kept with the chance √(t / f) + t / f, as in word2vec. Stop
    words never count. How many words a set has is Poisson-distributed with mean 3, at least one.

    Args:
        documents: The collection.
        least: Words that occur fewer times in all count for nothing beyond their own documents; the authors take 10.

    Raises:
        InputError: No word occurs so often.
    """

    def __init__(self, documents: Iterable[Document], least: int = 10) -> None:
        held: Counter[str] = Counter()
        times: Counter[str] = Counter()
        lengths = []
        for document in documents:
            found = Counter(words_of(document.content))
            held.update(found.keys())
            times.update(found)
            lengths.append(found.total())
        known = sorted(word for word, count in times.items() if count >= least)
        if not known:
            raise InputError(f"no word occurs {least} times in {len(lengths)} documents; give more documents")
        self.words = known
        self.mean_length = float(np.mean(lengths))
        counts = np.array([held[word] for word in known], dtype=np.float64)
        self.background = counts / counts.sum()
        self._cumulated = np.cumsum(self.background)
        self._place = {word: place for place, word in enumerate(known)}
        self._times, self._total = times, times.total()

    def chance(self, word: str, found: Counter[str]) -> float:
        """p(w | D) of a document's counted words."""
        place = self._place.get(word)
        smooth = 0.0 if place is None else self.mean_length * float(self.background[place])
        return (found[word] + smooth) / (found.total() + self.mean_length)

    def kept(self, word: str) -> float:
        """The chance that a word that was drawn is kept."""
        share = self._times[word] / self._total
        return min(1.0, (_OFTEN / share) ** 0.5 + _OFTEN / share)

    def draw(self, document: Document, generator: np.random.Generator) -> WordSets | None:
        """Draw two sets of words for a document; None if it has no words, or both are equally likely."""
        found = Counter(words_of(document.content))
        if not found:
            return None
        count = 0
        while count == 0:
            count = int(generator.poisson(_MEAN_WORDS))
        words, shares = list(found), np.cumsum(np.array(list(found.values()), dtype=np.float64))
        sets = [tuple(self._words(count, words, shares, generator)) for _ in range(2)]
        scores = [float(sum(np.log(self.chance(word, found)) for word in one)) for one in sets]
        if scores[0] == scores[1]:
            return None
        better = int(scores[1] > scores[0])
        return WordSets(sets[better], sets[1 - better], (scores[better], scores[1 - better]))

    def _words(
        self, count: int, own: list[str], shares: NDArray[np.float64], generator: np.random.Generator
    ) -> list[str]:
        length = float(shares[-1])
        drawn: list[str] = []
        while len(drawn) < count:
            if generator.random() * (length + self.mean_length) < length:
                word = own[int(np.searchsorted(shares, generator.random() * length, side="right"))]
            else:
                word = self.words[
                    int(np.searchsorted(self._cumulated, generator.random() * self._cumulated[-1], "right"))
                ]
            if generator.random() < self.kept(word):
                drawn.append(word)
        return drawn


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case, letters only, without English stop words."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return [word for word in _WORD.findall(text.lower()) if word not in ENGLISH_STOP_WORDS]
