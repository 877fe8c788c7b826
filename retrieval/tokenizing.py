"""Texts to tokens: cut at the encoder's length, or in passages, with a record of which token list belongs where."""

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InputError
from retrieval.passages import LongDocuments, room_and_overlap, windows


class Tokenized(NamedTuple):
    """Texts ready to run, and how their vectors become those of documents."""

    tokens: list[list[int]]
    """Of each text: a document, a passage of one, or a window of one."""
    documents: int
    truncated: int = 0
    """How many documents were cut."""
    passages: NDArray[np.int64] | None = None
    """(rows, 3) document, begin and end of each row that comes out; None: a row is a document."""
    mean_over: NDArray[np.int64] | None = None
    """(texts,) the document of each text, where a document's vector is the mean of its texts'."""
    chunks: NDArray[np.int64] | None = None
    """(rows, 3) text, first token and last + 1 of each row that comes out, for late chunking."""


class TextTokenizer:
    """A tokenizer with the encoder's length, for one thread at a time.

    Args:
        tokenizer: Of the transformers library.
        max_length: Tokens that the encoder reads, special ones included.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.pad = int(tokenizer.pad_token_id or 0)
        self._busy = threading.Lock()

    def truncate(self, texts: Sequence[str], prompt: str) -> Tokenized:
        """One token list a text, prompt first, cut at the encoder's length."""
        encoded = self._encode([prompt + text for text in texts], max_length=self.max_length)
        cut = sum(bool(one.overflowing) for one in encoded.encodings or ())
        return Tokenized(encoded["input_ids"], len(texts), cut)

    def read(self, texts: Sequence[str], prompt: str, long: LongDocuments) -> Tokenized:
        """Token lists of documents, by the strategy for long ones.

        Raises:
            InputError: The tokenizer does not say where its tokens lie in the text, or passages do not fit.
        """
        if long.strategy == "truncate":
            return self.truncate(texts, prompt)
        if not self.tokenizer.is_fast:
            raise InputError("this model's tokenizer does not say where its tokens lie; encode with truncate")
        if long.strategy == "late":
            return self._late(texts, prompt, long)
        spans = self._split(texts, prompt, long.tokens or self.max_length, long.overlap)
        flat = [(document, *span) for document, found in enumerate(spans) for span in found]
        tokens, _, cut = self.truncate([texts[document][begin:end] for document, begin, end in flat], prompt)[:3]
        rows = np.array(flat, dtype=np.int64).reshape(-1, 3)
        if long.strategy == "mean":
            return Tokenized(tokens, len(texts), cut, mean_over=rows[:, 0])
        return Tokenized(tokens, len(texts), cut, passages=rows)

    def _late(self, texts: Sequence[str], prompt: str, long: LongDocuments) -> Tokenized:
        size = long.tokens or self.max_length // 4
        room_and_overlap(size, 0, 0, self.max_length)
        spans = self._split(texts, prompt, self.max_length, long.overlap)
        flat = [(document, *span) for document, found in enumerate(spans) for span in found]
        parts = [prompt + texts[document][begin:end] for document, begin, end in flat]
        encoded = self._encode(parts, max_length=self.max_length)
        chunks, passages, done = [], [], (-1, 0)
        for text, (document, begin, end) in enumerate(flat):
            told = done[1] if done[0] == document else begin  # what the window before has covered already
            found = _chunks(encoded.encodings[text], len(prompt), told - begin, size)
            chunks += [(text, first, last) for first, last, _, _ in found]
            passages += [(document, begin + start, begin + stop) for _, _, start, stop in found]
            done = (document, end)
        as_rows = (np.array(part, dtype=np.int64).reshape(-1, 3) for part in (passages, chunks))
        rows, places = as_rows
        return Tokenized(encoded["input_ids"], len(texts), 0, passages=rows, chunks=places)

    def _split(
        self, texts: Sequence[str], prompt: str, tokens: int, overlap: int | None
    ) -> list[list[tuple[int, int]]]:
        """For each text the characters of its passages: all of it where it fits in one."""
        special = self.tokenizer.num_special_tokens_to_add() + len(self.tokenizer.tokenize(prompt))
        room, shared = room_and_overlap(tokens, special, overlap, self.max_length)
        encoded = self._encode(list(texts), max_length=None)
        found = []
        for text, one in zip(texts, encoded.encodings, strict=True):
            if len(one.ids) <= room:
                found.append([(0, len(text))])
                continue
            places = windows(_word_starts(one), room, shared)
            found.append([(one.offsets[first][0], one.offsets[last - 1][1]) for first, last in places])
        return found

    def _encode(self, texts: list[str], max_length: int | None) -> Any:
        """Run the tokenizer: with special tokens and cut at a length, or bare and whole."""
        with self._busy:  # a fast tokenizer keeps the length inside, and breaks if two threads set it
            whole = max_length is None
            return self.tokenizer(
                texts, add_special_tokens=not whole, truncation=not whole, max_length=max_length, verbose=False
            )


def _chunks(one: Any, prompt: int, told: int, size: int) -> list[tuple[int, int, int, int]]:
    """Chunks of a window: (first token, last + 1, first character, last + 1), the characters counted without prompt.

    Special tokens and the prompt belong to the chunk beside them, so that a text of one chunk has the vector it
    would have without chunking.
    """
    special = one.special_tokens_mask
    text = [place for place, (begin, end) in enumerate(one.offsets) if not special[place] and end > prompt]
    own = [place for place in text if one.offsets[place][0] - prompt >= told]
    if not own:
        return [] if told > 0 else [(0, len(one.ids), 0, 0)]
    words = one.word_ids
    starts = [place == own[0] or words[place] != words[place - 1] for place in own]
    found = []
    for first, last in windows(starts, size, 0):
        head = 0 if own[first] == text[0] else own[first]
        tail = len(one.ids) if last == len(own) else own[last]
        characters = one.offsets[own[first]][0] - prompt, one.offsets[own[last - 1]][1] - prompt
        found.append((head, tail, *characters))
    return found


def _word_starts(one: Any) -> list[bool]:
    words = one.word_ids
    return [place == 0 or word != words[place - 1] for place, word in enumerate(words)]
