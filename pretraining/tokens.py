"""Packed token shards: a corpus as three flat arrays on disk, and the batches that training reads from them."""

import hashlib
import itertools
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from indexes.arrays import map_array
from indexes.errors import InputError
from indexes.manifest import new_folder, open_manifest, seal
from retrieval.digests import tokenizer_digest
from retrieval.documents import Document, document_bytes

KIND = "tokens"
SPECIALS = 2
"""[CLS] and [SEP], which are added when a batch is made and are not stored."""

_DOCUMENTS_AT_ONCE = 512
_CONTINUES = "##"
_MARKS = (_CONTINUES, "▁", "Ġ")
_LEAST_SPAN = 8
_LARGEST_SHORT = np.iinfo(np.uint16).max


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


def write_tokens(
    documents: Iterable[Document],
    tokenizer: Any,
    folder: Path,
    *,
    max_length: int,
    also: Sequence[Iterable[Document]] = (),
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Tokenize corpora lazily into a tokens folder, published in one step.

    The folder holds `tokens.npy` (uint16 or uint32 ids of all windows end to end), `word_starts.npy` (bool, the
    first piece of each whole word), `offsets.npy` (int64, windows + 1, where each begins), `documents.npy` (int64,
    documents with a token + 1, the number of each one's first window), `sources.npy` (uint16, windows, the number of
    each one's corpus, from 0) and a manifest.

    Args:
        documents: The corpus; a document without tokens is skipped and counted.
        tokenizer: A fast tokenizer of transformers.
        folder: The folder to make; it must not exist.
        max_length: Tokens in a training row, [CLS] and [SEP] included. Longer documents become several windows.
        also: Further corpora, one after the other.
        more: What else the manifest is to say, by the time when all documents are read.

    Returns:
        The manifest's counts: documents, empty documents, windows, tokens, in all and by corpus (`sources`), and the
        fingerprints.

    Raises:
        InputError: The folder exists, or no document of a corpus has a token.
    """
    engine, continued = plain_tokenizer(tokenizer), continuations(tokenizer)
    kind = np.dtype(np.uint16 if len(continued) - 1 <= _LARGEST_SHORT else np.uint32)
    digest, offsets, firsts, sources = hashlib.sha256(), array("q", [0]), array("q", [0]), array("H")
    counts = [dict.fromkeys(("documents", "empty", "windows", "tokens"), 0) for _ in range(1 + len(also))]
    with new_folder(folder) as new:
        with _Column(new / "tokens.npy", kind) as ids, _Column(new / "word_starts.npy", np.dtype(bool)) as starts:
            for source, batch in _numbered_batches([documents, *also]):
                for document in batch:
                    digest.update(document_bytes(document))
                for encoding in engine.encode_batch([item.content for item in batch], add_special_tokens=False):
                    pieces = np.asarray(encoding.ids, dtype=kind)
                    ids.append(pieces)
                    starts.append(word_starts(pieces, encoding.word_ids, continued))
                    base, parts = offsets[-1], windows(len(pieces), max_length - SPECIALS)
                    offsets.extend(base + end for _, end in parts)
                    firsts.extend([len(offsets) - 1] if parts else [])
                    sources.extend([source] * len(parts))
                    added = {"documents": 1, "empty": not parts, "windows": len(parts), "tokens": len(pieces)}
                    counts[source] = {name: count + added[name] for name, count in counts[source].items()}
        for number, one in enumerate(counts, start=1):
            if not one["windows"]:
                which = "the corpus" if len(counts) == 1 else f"corpus {number}"
                raise InputError(f"none of {which}'s {one['documents']:,} documents has a token; expected some text")
        np.save(new / "offsets.npy", np.asarray(offsets, dtype=np.int64))
        np.save(new / "documents.npy", np.asarray(firsts, dtype=np.int64))
        np.save(new / "sources.npy", np.asarray(sources, dtype=np.uint16))
        content = {
            **{name: sum(one[name] for one in counts) for name in counts[0]},
            "sources": counts,
            **(more or {}),
            "max_length": max_length,
            "corpus": digest.hexdigest(),
            "tokenizer": tokenizer_digest(tokenizer),
        }
        seal(new, KIND, content)
    return content


def word_starts(ids: np.ndarray, word_ids: Sequence[int | None], continued: np.ndarray) -> np.ndarray:
    """Which pieces begin a whole word, as bool (t,).

    The tokenizer's own grouping says where words begin; a `##` piece never begins one (Devlin et al., whole-word
    masking), whatever the grouping says.
    """
    groups = np.fromiter((-1 if word is None else word for word in word_ids), dtype=np.int64, count=len(ids))
    changed = np.ones(len(ids), dtype=bool)
    changed[1:] = (groups[1:] != groups[:-1]) | (groups[1:] < 0)
    return changed & ~continued[ids]


class TokenWindows(Dataset[dict[str, np.ndarray]]):
    """The windows of a tokens folder, memory-mapped; item: `ids` (t,) and `word_starts` (t,), without specials.

    Args:
        folder: The tokens folder.
        weights: How often each corpus is gone through; see `pretraining.mixture`.

    Attributes:
        sources: The number of each window's corpus, (rows,).
    """

    def __init__(self, folder: Path, weights: Sequence[float] = (1.0,)) -> None:
        self.manifest, self.weights = open_manifest(folder, KIND), tuple(weights)
        self._ids, self._starts, self._offsets, self.sources = (
            map_array(folder / f"{name}.npy") for name in ("tokens", "word_starts", "offsets", "sources")
        )

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        part = slice(self._offsets[number], self._offsets[number + 1])
        return {"ids": self._ids[part], "word_starts": self._starts[part]}


class SpanPairs(Dataset[list[dict[str, np.ndarray]]]):
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
        self._ids, self._starts = (map_array(folder / f"{name}.npy") for name in ("tokens", "word_starts"))
        firsts = map_array(folder / "documents.npy")
        begins = map_array(folder / "offsets.npy")[firsts]
        long = np.flatnonzero(np.diff(begins) >= 2 * _LEAST_SPAN)
        self.sources = map_array(folder / "sources.npy")[firsts[long]]
        for number in range(len(self.weights)):
            if number not in self.sources:
                of = f" of corpus {number + 1}" if len(self.weights) > 1 else ""
                least = 2 * _LEAST_SPAN
                raise InputError(f"no document{of} has {least} tokens, for two spans of it; give longer documents")
        self._begins, self._ends, self.seed = begins[long], begins[long + 1], seed

    def __len__(self) -> int:
        return len(self._begins)

    def __getitem__(self, number: int) -> list[dict[str, np.ndarray]]:
        """Two spans of document `number % len`; another draw for each `number // len`."""
        time, row = divmod(number, len(self))
        length = int(self._ends[row] - self._begins[row])
        spans = windows(length, min(self.manifest["max_length"] - SPECIALS, -(-length // 2)))
        chosen = np.random.default_rng((self.seed, time, row)).choice(len(spans), 2, replace=False)
        parts = [slice(*(int(self._begins[row]) + edge for edge in spans[one])) for one in chosen]
        return [{"ids": self._ids[part], "word_starts": self._starts[part]} for part in parts]


class Collator:
    """Windows, or pairs of spans, to one padded batch of [CLS] window [SEP] [PAD]…."""

    def __init__(self, tokenizer: Any) -> None:
        self.cls, self.sep, self.pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id

    def __call__(self, items: Sequence[Any]) -> dict[str, Tensor]:
        """Give `ids` (b, t) int64, `attention_mask` (b, t) int64 and `word_starts` (b, t) bool."""
        items = [one for item in items for one in (item if isinstance(item, list) else [item])]
        longest = max(len(item["ids"]) for item in items) + SPECIALS
        ids = np.full((len(items), longest), self.pad, dtype=np.int64)  # (b, t)
        attention, starts = np.zeros_like(ids), np.zeros_like(ids, dtype=bool)
        ids[:, 0] = self.cls
        for row, item in enumerate(items):
            end = len(item["ids"]) + 1
            ids[row, 1:end], ids[row, end] = item["ids"], self.sep
            starts[row, 1:end] = item["word_starts"]
            attention[row, : end + 1] = 1
        return {
            "ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(attention),
            "word_starts": torch.from_numpy(starts),
        }


class _Column:
    """A one-dimensional .npy file of unknown length: the header is written again when the length is known."""

    def __init__(self, path: Path, kind: np.dtype) -> None:
        self.file, self.kind, self.length = path.open("wb"), kind, 0
        self._write_header()

    def append(self, values: np.ndarray) -> None:
        values.astype(self.kind, copy=False).tofile(self.file)
        self.length += len(values)

    def _write_header(self) -> None:
        # numpy pads headers so that the first axis may grow to 21 digits: the second header fills the same bytes.
        header = {"descr": np.lib.format.dtype_to_descr(self.kind), "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.file.seek(0)
        self._write_header()
        self.file.close()


def _numbered_batches(corpora: Sequence[Iterable[Document]]) -> Iterator[tuple[int, list[Document]]]:
    """Some documents of one corpus at a time, with its number."""
    for number, documents in enumerate(corpora):
        iterator = iter(documents)
        while batch := list(itertools.islice(iterator, _DOCUMENTS_AT_ONCE)):
            yield number, batch
