"""Packed tokens: a corpus as flat arrays on disk, and the batches that training reads from them."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.utils.data import Dataset

from indexes.arrays import map_array
from indexes.errors import InputError
from indexes.manifest import open_manifest
from retrieval.documents import Document

if TYPE_CHECKING:
    from pretraining.word_sets import WordSets

KIND = "tokens"
FIELDS = "fields"
SPECIALS = 2
"""[CLS] and [SEP], which are added when a batch is made and are not stored."""

_CONTINUES = "##"
_MARKS = (_CONTINUES, "▁", "Ġ")
_LEAST_SPAN = 8
_LEAST_CHARACTERS = 30
LONGEST_SET = 32
"""The most tokens of a set of words, special ones included."""


Item = dict[str, Any]
"""A text: arrays (t,) by name, without special tokens."""

DrawSets = Callable[[int, np.random.Generator], "WordSets | None"]
"""Draws two sets of words for a window, by its number; None if there are none."""


def plain_tokenizer(tokenizer: Any) -> Tokenizer:
    """A copy of a fast tokenizer's engine that neither truncates nor pads."""
    engine = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    engine.no_truncation()
    engine.no_padding()
    return engine


def continuations(tokenizer: Any) -> np.ndarray:
    """Which ids continue the word before them, by what pieces look like, as bool (greatest id + 1,).

    BERT marks pieces that continue a word (`##`); others mark those that begin one: byte pairs by `Ġ`, SentencePiece by
    `▁`. The mark of most pieces counts: `Ġ` is a letter too, and `##` a heading. Special tokens continue nothing.
    """
    vocabulary = tokenizer.get_vocab()
    found = np.zeros(max(vocabulary.values()) + 1, dtype=bool)
    mark = max(_MARKS, key=lambda mark: sum(piece.startswith(mark) for piece in vocabulary))
    for piece, number in vocabulary.items():
        found[number] = piece.startswith(mark) == (mark == _CONTINUES)
    if mark != _CONTINUES:
        found[list(tokenizer.all_special_ids)] = False
    return found


def windows(length: int, capacity: int) -> list[tuple[int, int]]:
    """Cut a text into the fewest consecutive windows that fit, of equal length within one token.

    Nothing is dropped, and equal windows leave no short tail.

    >>> windows(10, 4)
    [(0, 3), (3, 6), (6, 10)]
    """
    count = -(-length // capacity)
    edges = [length * number // count for number in range(count + 1)] if count else []
    return list(itertools.pairwise(edges))


def word_starts(ids: np.ndarray, word_ids: Sequence[int | None], continued: np.ndarray) -> np.ndarray:
    """Which pieces begin a whole word, as bool (t,).

    The tokenizer's own grouping says where words begin; a `##` piece never begins one (Devlin et al., whole-word
    masking), whatever the grouping says.
    """
    groups = np.fromiter((-1 if word is None else word for word in word_ids), dtype=np.int64, count=len(ids))
    changed = np.ones(len(ids), dtype=bool)
    changed[1:] = (groups[1:] != groups[:-1]) | (groups[1:] < 0)
    return changed & ~continued[ids]


class TokenWindows(Dataset[Item]):
    """The windows of a tokens folder, memory-mapped; item: `ids` (t,) and `word_starts` (t,), without specials.

    Where marks were kept, `marked` (t,) too.

    Args:
        folder: The tokens folder.
        weights: How often each corpus is gone through; see `pretraining.mixture`.

    Attributes:
        sources: The number of each window's corpus, (rows,).
    """

    def __init__(self, folder: Path, weights: Sequence[float] = (1.0,)) -> None:
        self.manifest, self.weights = open_manifest(folder, KIND), tuple(weights)
        self.texts, self.sources = PackedTexts(folder), map_array(folder / "sources.npy")

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, number: int) -> Item:
        return self.texts[number]

    @property
    def lengths(self) -> np.ndarray:
        """The tokens of each window, (rows,)."""
        return self.texts.lengths


class PackedTexts(Sequence[Item]):
    """Texts cut into windows, as `token_writer` lays them down; item: a window."""

    def __init__(self, folder: Path) -> None:
        self._offsets, self.documents = (map_array(folder / f"{name}.npy") for name in ("offsets", "documents"))
        kept = {"ids": "tokens", "word_starts": "word_starts"}
        if (folder / "marked.npy").is_file():
            kept["marked"] = "marked"
        self._columns = {name: map_array(folder / f"{file}.npy") for name, file in kept.items()}

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, number: Any) -> Any:
        return self.part(int(self._offsets[number]), int(self._offsets[number + 1]))

    def part(self, start: int, end: int) -> Item:
        """Tokens from one place up to another."""
        return {name: column[start:end] for name, column in self._columns.items()}

    @property
    def lengths(self) -> np.ndarray:
        """The tokens of each window, (rows,)."""
        return np.diff(self._offsets)

    @property
    def begins(self) -> np.ndarray:
        """Where the tokens of each document begin, and where the last one's end."""
        return self._offsets[self.documents]


class SpanPairs(Dataset[list[Item]]):
    """Two spans of each document of a tokens folder, drawn anew every time.

    A document is cut into windows, at least two, of equal length within a token; two of them are drawn. Documents of
    fewer than 16 tokens are left out.

    Args:
        folder: The tokens folder.
        seed: Of what is drawn.
        weights: How often each corpus is gone through; see `pretraining.mixture`.

    Attributes:
        sources: The number of each document's corpus, (rows,).

    Raises:
        InputError: No document of a corpus is long enough.
    """

    def __init__(self, folder: Path, seed: int, weights: Sequence[float] = (1.0,)) -> None:
        self.manifest, self.weights = open_manifest(folder, KIND), tuple(weights)
        self.texts = PackedTexts(folder)
        begins, least = self.texts.begins, 2 * _LEAST_SPAN
        long = np.flatnonzero(np.diff(begins) >= least)
        self.sources = map_array(folder / "sources.npy")[self.texts.documents[long]]
        for number in range(len(self.weights)):
            if number not in self.sources:
                of = f" of corpus {number + 1}" if len(self.weights) > 1 else ""
                raise InputError(f"no document{of} has {least} tokens, for two spans of it; give longer documents")
        self._begins, self._ends, self.seed = begins[long], begins[long + 1], seed

    def __len__(self) -> int:
        return len(self._begins)

    @property
    def lengths(self) -> np.ndarray:
        """The tokens of a span of each document, about, (rows,)."""
        return np.minimum((self._ends - self._begins) // 2, self.manifest["max_length"])

    def __getitem__(self, number: int) -> list[Item]:
        """Two spans of document `number % len`; another draw for each `number // len`."""
        time, row = divmod(number, len(self))
        length = int(self._ends[row] - self._begins[row])
        spans = windows(length, min(self.manifest["max_length"] - SPECIALS, -(-length // 2)))
        chosen = np.random.default_rng((self.seed, time, row)).choice(len(spans), 2, replace=False)
        return [self.texts.part(*(int(self._begins[row]) + edge for edge in spans[one])) for one in chosen]


class WindowTexts(Sequence[Document]):
    """The texts of a tokens folder's windows, where they were kept, as documents whose ids are their numbers."""

    def __init__(self, folder: Path) -> None:
        self._characters, self._ends = (
            map_array(folder / f"{name}.npy") for name in ("characters", "character_offsets")
        )

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: Any) -> Any:
        if not 0 <= row < len(self):
            raise IndexError(row)
        raw = self._characters[int(self._ends[row]) : int(self._ends[row + 1])].tobytes()
        return Document(str(row), raw.decode("utf-8"))


class Accompanied(Dataset[Item]):
    """Windows, each with other texts that terms read beside it, which are drawn anew every time.

    Args:
        folder: The tokens folder, written with the extras that are asked for.
        seed: Of what is drawn.
        tokenizer: That of the folder.
        characters: How many characters of a window to mask, for its item's `others["masked"]`; 0: no such text.
        fields: Fields of its document, of each of which one window is drawn; without tokens where there is none.
        word_sets: Draws two sets of words that represent a window, by its number, for `others["better"]` and
            `["worse"]`; without tokens where none can be (`window_words`). None: no such texts.
        weights: As for `TokenWindows`.

    Attributes:
        sources: As of `TokenWindows`.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        tokenizer: Any,
        *,
        characters: int = 0,
        fields: Sequence[str] = (),
        word_sets: DrawSets | None = None,
        weights: Sequence[float] = (1.0,),
    ) -> None:
        self.windows, self.seed, self.characters = TokenWindows(folder, weights), seed, characters
        self.manifest, self.weights, self.sources = self.windows.manifest, self.windows.weights, self.windows.sources
        self._engine, self._mask = plain_tokenizer(tokenizer), tokenizer.mask_token
        self._continued = continuations(tokenizer)
        places = {name: number for number, name in enumerate(self.manifest["fields"])}
        self._fields = {name: PackedTexts(folder / FIELDS / str(places[name])) for name in fields}
        self._texts = WindowTexts(folder) if characters else None
        self._words = word_sets

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def lengths(self) -> np.ndarray:
        """The tokens of each window, (rows,)."""
        return self.windows.lengths

    def __getitem__(self, number: int) -> Item:
        """Window `number % len` and what accompanies it; another draw for each `number // len`."""
        time, row = divmod(number, len(self))
        draw, others = np.random.default_rng((self.seed, time, row)), {}
        if self._texts is not None:
            others["masked"] = self._masked(self._texts[row].text, draw)
        if self._words is not None:
            found = self._words(row, draw)
            for name in ("better", "worse"):
                others[name] = self._item(" ".join(getattr(found, name)) if found else "", LONGEST_SET - SPECIALS)
        document = int(np.searchsorted(self.windows.texts.documents, row, side="right")) - 1
        for name, texts in self._fields.items():
            first, end = (int(texts.documents[one]) for one in (document, document + 1))
            others[name] = texts[int(draw.integers(first, end))] if end > first else texts.part(0, 0)
        return {**self.windows[row], "others": others}

    def _masked(self, text: str, draw: np.random.Generator) -> Item:
        text = masked_characters(text, self.characters, self._mask, draw)
        # A word that is cut may take more pieces than before.
        return self._item(text, self.manifest["max_length"] - SPECIALS)

    def _item(self, text: str, most: int) -> Item:
        encoding = self._engine.encode(text, add_special_tokens=False)
        ids = np.asarray(encoding.ids[:most], dtype=np.int64)
        return {"ids": ids, "word_starts": word_starts(ids, encoding.word_ids[:most], self._continued)}


Rows = TokenWindows | SpanPairs | Accompanied
"""What a run trains on."""


def masked_characters(text: str, count: int, mask: str, draw: np.random.Generator) -> str:
    """Replace a run of characters, drawn uniformly, by a mask token between spaces; not in texts shorter than 30.

    Source: Mirror-BERT (Liu et al. 2021, arXiv 2104.08027), as the authors' code does it.
    """
    if len(text) < max(_LEAST_CHARACTERS, count):
        return text
    start = int(draw.integers(len(text) - count + 1))
    return f"{text[:start]} {mask} {text[start + count :]}"


class Collator:
    """Windows, or pairs of spans, to one padded batch of [CLS] window [SEP] [PAD]…."""

    def __init__(self, tokenizer: Any) -> None:
        self.cls, self.sep, self.pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id

    def __call__(self, items: Sequence[Any]) -> dict[str, Any]:
        """Give `ids` (b, t) int64, `attention_mask` (b, t) int64 and `word_starts` (b, t) bool.

        Where items have them, `marked` (b, t) bool, and `others`: the same of each text that accompanies them.
        """
        items = [one for item in items for one in (item if isinstance(item, list) else [item])]
        batch = self._padded(items)
        if "others" in items[0]:
            batch["others"] = {
                name: self._padded([item["others"][name] for item in items]) for name in items[0]["others"]
            }
        return batch

    def _padded(self, items: Sequence[Any]) -> dict[str, Any]:
        longest = max(len(item["ids"]) for item in items) + SPECIALS
        ids = np.full((len(items), longest), self.pad, dtype=np.int64)  # (b, t)
        flags = [name for name in ("word_starts", "marked") if name in items[0]]
        attention = np.zeros_like(ids)
        flagged = {name: np.zeros_like(ids, dtype=bool) for name in flags}
        ids[:, 0] = self.cls
        for row, item in enumerate(items):
            end = len(item["ids"]) + 1
            ids[row, 1:end], ids[row, end] = item["ids"], self.sep
            for name, values in flagged.items():
                values[row, 1:end] = item[name]
            attention[row, : end + 1] = 1
        made = {"ids": ids, "attention_mask": attention, **flagged}
        return {name: torch.from_numpy(values) for name, values in made.items()}
