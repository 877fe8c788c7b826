"""Texts to tokens: cut at the encoder's length, or in passages, with a record of which token list belongs where."""

import threading
from collections.abc import Iterable, Sequence
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


class _Part(NamedTuple):
    """A passage of a document, tokenised together with the prompt."""

    document: int
    begin: int
    end: int
    encoding: Any


def end_texts(tokenizer: Any, append_eos: bool | None, *, declared: bool, name: str) -> bool:
    """Have a tokenizer end each text with its end-of-text token, where a decoder's last token is its vector.

    Args:
        tokenizer: Of the transformers library; it is changed, and keeps the change where it is saved.
        append_eos: True: append the token; False: do not; None: leave the tokenizer as it is.
        declared: Whether its folder says `add_eos_token`, as E5-mistral's does. transformers 5 does not obey that where
            tokenizer.json says otherwise, so that neither does sentence-transformers: it takes another token's vector
            than the model was trained to give.
        name: What the user calls the model.

    Returns:
        Whether `append_eos` decided anything.

    Raises:
        InputError: What the folder says is not what its tokenizer does and nobody decided; or it cannot be done.
    """
    ends = _ends_by_itself(tokenizer)
    if ends and append_eos is False:
        raise InputError(f"{name}'s tokenizer ends each text with a special token by itself; leave append_eos out")
    if append_eos is None and declared and not ends:
        raise InputError(
            f"{name} says add_eos_token, but its tokenizer.json appends no {tokenizer.eos_token}: give append_eos true "
            "(as the model was trained) or false (as sentence-transformers encodes)"
        )
    if append_eos and not ends:
        _append_eos(tokenizer, name)
    return append_eos is not None and not ends


def _ends_by_itself(tokenizer: Any) -> bool:
    """Whether the last token of any text is a special one."""
    return bool(tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"][-1:] == [1])


def _append_eos(tokenizer: Any, name: str) -> None:
    from tokenizers.processors import Sequence as Processors
    from tokenizers.processors import TemplateProcessing

    eos = tokenizer.eos_token
    if eos is None or not tokenizer.is_fast:
        lacks = "has no end-of-text token" if eos is None else "is not a fast one"
        raise InputError(f"{name}'s tokenizer {lacks}; leave append_eos out")
    template = TemplateProcessing(
        single=f"$A {eos}", pair=f"$A $B:1 {eos}:1", special_tokens=[(eos, tokenizer.eos_token_id)]
    )
    before = tokenizer.backend_tokenizer.post_processor
    tokenizer.backend_tokenizer.post_processor = Processors([*([before] if before else []), template])


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
        whole = [prompt + text for text in texts]
        encoded = self._encode(whole, max_length=self.max_length)
        if self.tokenizer.is_fast:
            return Tokenized(encoded["input_ids"], len(texts), sum(bool(one.overflowing) for one in encoded.encodings))
        full = [text for text, ids in zip(whole, encoded["input_ids"], strict=True) if len(ids) == self.max_length]
        room = self.max_length - self.tokenizer.num_special_tokens_to_add()
        cut = sum(len(ids) > room for ids in self._encode(full, max_length=None)["input_ids"]) if full else 0
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
        parts = self._passages(texts, prompt, long.tokens or self.max_length, long.overlap)
        tokens = [part.encoding.ids for part in parts]
        rows = np.array([part[:3] for part in parts], dtype=np.int64).reshape(-1, 3)
        if long.strategy == "mean":
            return Tokenized(tokens, len(texts), _truncated(parts), mean_over=rows[:, 0])
        return Tokenized(tokens, len(texts), _truncated(parts), passages=rows)

    def _late(self, texts: Sequence[str], prompt: str, long: LongDocuments) -> Tokenized:
        size = long.tokens or self.max_length // 4
        room_and_overlap(size, 0, 0, self.max_length)
        parts = self._passages(texts, prompt, self.max_length, long.overlap)
        chunks, passages, done = [], [], (-1, 0)
        for text, (document, begin, end, encoding) in enumerate(parts):
            told = done[1] if done[0] == document else begin  # what the window before has covered already
            found = _chunks(encoding, len(prompt), told - begin, size)
            chunks += [(text, first, last) for first, last, _, _ in found]
            passages += [(document, begin + start, begin + stop) for _, _, start, stop in found]
            done = (document, end)
        rows, places = (np.array(part, dtype=np.int64).reshape(-1, 3) for part in (passages, chunks))
        tokens = [part.encoding.ids for part in parts]
        return Tokenized(tokens, len(texts), _truncated(parts), passages=rows, chunks=places)

    def _passages(self, texts: Sequence[str], prompt: str, tokens: int, overlap: int | None) -> list["_Part"]:
        """The passages of each text: all of it where it fits in one.

        A text cut out of another may have more tokens than it had inside, at its ends (byte-level and sentencepiece
        vocabularies know what was before a word). Where that makes a passage longer than the encoder reads, the
        whole document is cut again, a little shorter: by 1, by 3, by 7 … tokens in all.
        """
        special = self.tokenizer.num_special_tokens_to_add() + len(self._encode([prompt], None)["input_ids"][0])
        room, shared = room_and_overlap(tokens, special, overlap, self.max_length)
        whole = self._encode(list(texts), max_length=None).encodings
        found: dict[int, list[_Part]] = {}
        left, less = list(range(len(texts))), 0
        while left:
            spans = [(row, *span) for row in left for span in _spans(texts[row], whole[row], room - less, shared)]
            parts = [prompt + texts[row][begin:end] for row, begin, end in spans]
            encodings = self._encode(parts, max_length=self.max_length).encodings
            found.update({row: [] for row in left})
            for span, encoding in zip(spans, encodings, strict=True):
                found[span[0]].append(_Part(*span, encoding))
            less = 2 * less + 1
            left = [row for row in left if room - less > shared and _truncated(found[row])]
        return [part for row in range(len(texts)) for part in found[row]]

    def _encode(self, texts: list[str], max_length: int | None) -> Any:
        """Run the tokenizer: with special tokens and cut at a length, or bare and whole."""
        with self._busy:  # a fast tokenizer keeps the length inside, and breaks if two threads set it
            whole = max_length is None
            return self.tokenizer(
                texts,
                add_special_tokens=not whole,
                truncation=not whole,
                max_length=max_length,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )


def _chunks(one: Any, prompt: int, told: int, size: int) -> list[tuple[int, int, int, int]]:
    """Chunks of a window: (first token, last + 1, first character, last + 1), the characters counted without prompt.

    Special tokens and the prompt belong to the chunk beside them, so that a text of one chunk has the vector it
    would have without chunking.
    """
    special = one.special_tokens_mask
    text = [place for place, (begin, end) in enumerate(one.offsets) if not special[place] and end > prompt]
    own = [place for place in text if max(one.offsets[place][0] - prompt, 0) >= told]
    if not own:
        return [] if told > 0 else [(0, len(one.ids), 0, 0)]
    words = one.word_ids
    starts = [place == own[0] or words[place] != words[place - 1] for place in own]
    found = []
    for first, last in windows(starts, size, 0):
        head = 0 if own[first] == text[0] else own[first]
        tail = len(one.ids) if last == len(own) else own[last]
        told, start = one.offsets[own[last - 1]][1] - prompt, max(one.offsets[own[first]][0] - prompt, told)
        found.append((head, tail, start, told))
    return found


def _spans(text: str, one: Any, room: int, overlap: int) -> list[tuple[int, int]]:
    """The characters of each passage of a text."""
    if len(one.ids) <= room:
        return [(0, len(text))]
    places = windows(_word_starts(one), room, overlap)
    return [(one.offsets[first][0], one.offsets[last - 1][1]) for first, last in places]


def _truncated(parts: "Iterable[_Part]") -> int:
    """How many documents have a passage that was cut."""
    return len({part.document for part in parts if part.encoding.overflowing})


def _word_starts(one: Any) -> list[bool]:
    words = one.word_ids
    return [place == 0 or word != words[place - 1] for place, word in enumerate(words)]
