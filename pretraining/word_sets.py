"""Representative words: sets of words drawn from a document's language model (PROP), as queries nobody wrote.

Source: Ma et al., "PROP: Pre-training with Representative Words Prediction for Ad-hoc Retrieval" (WSDM 2021).
"""

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from indexes.arrays import read_array
from indexes.errors import InputError
from indexes.manifest import new_folder, open_manifest, seal
from retrieval.documents import Document

KIND = "word-counts"
_WORD = re.compile(r"[a-zA-Z]+")
_MEAN_WORDS = 3
_OFTEN = 1e-4


class SetOptions(NamedTuple):
    """How sets of words are drawn."""

    kind: str
    """`prop`: from the document's language model; `bprop`: from what an encoder attends to (`contrastive_terms`)."""
    temperature: float
    """Of `bprop`'s chances."""


class WordSets(NamedTuple):
    """Two sets of as many words, and which of them represents the document better."""

    better: tuple[str, ...]
    worse: tuple[str, ...]
    scores: tuple[float, float]
    """What each set is judged by: Σ log p(w | D) (PROP), or Σ c(w) (B-PROP, `contrastive_terms`)."""


class WordCounts(NamedTuple):
    """What PROP's language models need to know of a collection.

    Attributes:
        words: (v) in alphabetical order.
        held: How many documents hold each, (v,).
        times: How often each occurs in all, (v,).
        mean_length: Words of a document.
        documents: How many there are.
    """

    words: list[str]
    held: NDArray[np.int64]
    times: NDArray[np.int64]
    mean_length: float
    documents: int

    @classmethod
    def of(cls, documents: Iterable[Document]) -> Self:
        """Count the words of documents, in one pass."""
        held: Counter[str] = Counter()
        times: Counter[str] = Counter()
        lengths = []
        for document in documents:
            found = Counter(words_of(document.content))
            held.update(found.keys())
            times.update(found)
            lengths.append(found.total())
        words = sorted(times)
        counted = [np.array([counts[word] for word in words], dtype=np.int64) for counts in (held, times)]
        return cls(words, counted[0], counted[1], float(np.mean(lengths)) if lengths else 0.0, len(lengths))

    def save(self, folder: Path, key: str) -> None:
        """Write them as a folder, in one step, in the place of what may be there; `key` says of what they are."""
        with new_folder(folder, overwrite=folder.exists()) as new:
            write_words(new, self.words)
            np.save(new / "held.npy", self.held)
            np.save(new / "times.npy", self.times)
            seal(new, KIND, {"key": key, "mean_length": self.mean_length, "documents": self.documents})

    @classmethod
    def saved(cls, folder: Path, key: str) -> Self | None:
        """Read what `save` wrote; None if it is not there, of another key or damaged."""
        if not folder.is_dir():
            return None
        with contextlib.suppress(InputError):
            manifest = open_manifest(folder, KIND)
            if manifest["key"] == key:
                held, times = (read_array(folder / f"{name}.npy") for name in ("held", "times"))
                return cls(read_words(folder), held, times, manifest["mean_length"], manifest["documents"])
        return None


class WordSetSampler:
    """Draws sets of words from documents' language models, smoothed by the collection's (Dirichlet).

        p(w | D) = (tf(w, D) + μ p(w)) / (|D| + μ),  μ the mean length of documents, p(w) = df(w) / Σ df

    That is a mixture: with the chance |D| / (|D| + μ) a word is drawn from the document, else from the collection, so
    that draws are exact, of all words, and take a moment. (The authors' code draws from the document's words and enough
    of the collection's to make 500, the likelier ones twice over.) Words that make up more than t = 1e-4 of the
    collection are drawn that much more rarely: each is kept with the chance √(t / f) + t / f, as in word2vec. Stop
    words never count. How many words a set has is Poisson-distributed with mean 3, at least one.

    Args:
        counts: Of the collection.
        least: Words that occur fewer times in all count for nothing beyond their own documents; the authors take 10.

    Raises:
        InputError: No word occurs so often.
    """

    def __init__(self, counts: WordCounts, least: int = 10) -> None:
        known = np.flatnonzero(counts.times >= least)
        if not len(known):
            raise InputError(f"no word occurs {least} times in {counts.documents} documents; give more documents")
        self.words = [counts.words[place] for place in known]
        self.mean_length = counts.mean_length
        self.background = counts.held[known] / counts.held[known].sum()
        self._cumulated = np.cumsum(self.background)
        self._place = {word: place for place, word in enumerate(self.words)}
        self._times, self._total = dict(zip(counts.words, counts.times.tolist(), strict=True)), int(counts.times.sum())

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
        count = set_size(generator)
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


def set_size(generator: np.random.Generator) -> int:
    """How many words a set has: Poisson-distributed with mean 3, drawn again while it is 0."""
    while not (count := int(generator.poisson(_MEAN_WORDS))):
        pass
    return count


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case, letters only, without English stop words."""
    return [word for word, _ in words_at(text)]


def words_at(text: str) -> Iterator[tuple[str, int]]:
    """The words of a text as `words_of` gives them, each with the place of its first letter."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    for found in _WORD.finditer(text):
        word = found[0].lower()
        if word not in ENGLISH_STOP_WORDS:
            yield word, found.start()


def write_words(folder: Path, words: Iterable[str]) -> None:
    """Write words of letters as `words.txt`, one a line."""
    (folder / "words.txt").write_text("".join(f"{word}\n" for word in words), encoding="ascii")


def read_words(folder: Path) -> list[str]:
    """Read what `write_words` wrote."""
    return (folder / "words.txt").read_text(encoding="ascii").splitlines()
