"""Censuses: how often a corpus uses each piece of a vocabulary, and which of its words are split."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indexes.manifest import read_json, write_json
from pretraining.tokens import plain_tokenizer
from retrieval.documents import Document

_DOCUMENTS_AT_ONCE = 512
_BATCHES_BETWEEN_SAVES = 100

OnProgress = Callable[[int, int | None], None]


@dataclass
class Census:
    """What a corpus uses of a vocabulary.

    Attributes:
        documents: How many were read.
        pieces: How often each id occurs, special tokens of texts included.
        splits: How often each word of several known pieces occurs, by its ids.
        unknown: Words, normalised, that the vocabulary cannot spell.
    """

    documents: int = 0
    pieces: Counter[int] = field(default_factory=Counter)
    splits: Counter[tuple[int, ...]] = field(default_factory=Counter)
    unknown: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, path: Path) -> "Census":
        """What `write` wrote; an empty one where there is no file."""
        if not path.is_file():
            return cls()
        found = read_json(path)
        pieces = Counter({int(number): count for number, count in found["pieces"].items()})
        splits = Counter({tuple(ids): count for ids, count in found["splits"]})
        return cls(found["documents"], pieces, splits, set(found["unknown"]))

    def write(self, path: Path) -> None:
        """Keep the census as JSON, in one step."""
        splits = [[list(ids), count] for ids, count in self.splits.items()]
        found = {"documents": self.documents, "pieces": self.pieces, "splits": splits, "unknown": sorted(self.unknown)}
        write_json(path, found)


def take_census(
    documents: Iterable[Document],
    tokenizer: Any,
    state: Path,
    *,
    words: bool,
    on_progress: OnProgress | None = None,
) -> Census:
    """Tokenize a corpus and count; a killed count, made again, goes on where it was.

    Args:
        documents: The corpus; always in the same order.
        tokenizer: A fast tokenizer of transformers.
        state: The file that keeps what was counted so far.
        words: Whether words of several pieces are counted.
        on_progress: Called with the documents counted.
    """
    engine, census = plain_tokenizer(tokenizer), Census.read(state)
    unknown = tokenizer.unk_token_id
    rest = itertools.islice(documents, census.documents, None)
    number = 0
    while batch := list(itertools.islice(rest, _DOCUMENTS_AT_ONCE)):
        number += 1
        texts = [document.content for document in batch]
        for text, encoding in zip(texts, engine.encode_batch(texts, add_special_tokens=False), strict=True):
            census.pieces.update(encoding.ids)
            if words:
                census.splits.update(_splits(encoding, unknown))
            if unknown in encoding.ids:
                census.unknown.update(_unknown_words(text, encoding, unknown, engine))
        census.documents += len(batch)
        if on_progress:
            on_progress(census.documents, None)
        if number % _BATCHES_BETWEEN_SAVES == 0:
            census.write(state)
    census.write(state)
    return census


def _splits(encoding: Any, unknown: int | None) -> list[tuple[int, ...]]:
    """The ids of each word that has several pieces, all of them known."""
    pairs = zip(encoding.word_ids, encoding.ids, strict=True)
    groups = [
        (word, tuple(number for _, number in group)) for word, group in itertools.groupby(pairs, lambda one: one[0])
    ]
    return [ids for word, ids in groups if word is not None and len(ids) > 1 and unknown not in ids]


def _unknown_words(text: str, encoding: Any, unknown: int | None, engine: Any) -> set[str]:
    """The words of a text, as the model of the tokenizer reads them, where it found unknown tokens."""
    found: set[str] = set()
    for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        if number == unknown:
            part = text[start:end]
            part = engine.normalizer.normalize_str(part) if engine.normalizer else part
            words = engine.pre_tokenizer.pre_tokenize_str(part) if engine.pre_tokenizer else [(part, None)]
            found.update(word for word, _ in words)
    return found
