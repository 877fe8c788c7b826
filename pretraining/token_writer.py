"""A corpus as packed tokens on disk: texts are cut into windows, nothing is dropped, everything is tokenised once."""

import contextlib
import hashlib
import itertools
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from indexes.errors import InputError
from indexes.manifest import new_folder, seal
from pretraining.marks import Marks
from pretraining.tokens import FIELDS, KIND, SPECIALS, continuations, plain_tokenizer, windows, word_starts
from retrieval.digests import tokenizer_digest
from retrieval.documents import Document, document_bytes

_DOCUMENTS_AT_ONCE = 512
_LARGEST_SHORT = np.iinfo(np.uint16).max


class Extras(NamedTuple):
    """What a tokens folder keeps beside ids and word starts, where objectives ask for it."""

    texts: bool = False
    """Each window's characters, for masks over characters."""
    fields: tuple[str, ...] = ()
    """Attributes of the documents that are texts of their own (SAILER)."""
    marks: Marks | None = None
    """Which tokens masks may take."""


def write_tokens(
    documents: Iterable[Document],
    tokenizer: Any,
    folder: Path,
    *,
    max_length: int,
    extras: Extras | None = None,
    also: Sequence[Iterable[Document]] = (),
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Tokenize corpora lazily into a tokens folder, published in one step.

    The folder holds `tokens.npy` (uint16 or uint32 ids of all windows end to end), `word_starts.npy` (bool, the
    first piece of each whole word), `offsets.npy` (int64, windows + 1, where each begins), `documents.npy` (int64,
    documents with a token + 1, the number of each one's first window), `sources.npy` (uint16, windows, the number of
    each one's corpus, from 0) and a manifest; with extras also `marked.npy` (bool, which tokens masks may take),
    `characters.npy` (uint8, UTF-8 of all windows) with `character_offsets.npy`, and below `fields/`, by number, the
    same arrays for each field, of the same documents.

    Args:
        documents: The corpus; a document without tokens is skipped and counted.
        tokenizer: A fast tokenizer of transformers.
        folder: The folder to make; it must not exist.
        max_length: Tokens in a training row, [CLS] and [SEP] included. Longer documents become several windows.
        extras: What else to keep.
        also: Further corpora, one after the other.
        more: What else the manifest is to say, by the time when all documents are read.

    Returns:
        The manifest's counts: documents, empty documents, windows, tokens, in all and by corpus (`sources`), and the
        fingerprints.

    Raises:
        InputError: The folder exists, no document of a corpus has a token, none has one of the fields, or a field is
            no text.
    """
    engine, continued, extras = plain_tokenizer(tokenizer), continuations(tokenizer), extras or Extras()
    digest, sources = hashlib.sha256(), array("H")
    counts = [{"documents": 0, "empty": 0} for _ in range(1 + len(also))]
    with new_folder(folder) as new:
        with contextlib.ExitStack() as files:
            main = files.enter_context(_Texts(new, continued, max_length - SPECIALS, extras.marks, extras.texts))
            fields = [
                files.enter_context(_Texts(new / FIELDS / str(number), continued, max_length - SPECIALS, extras.marks))
                for number in range(len(extras.fields))
            ]
            for source, batch in _numbered_batches([documents, *also]):
                for document in batch:
                    digest.update(document_bytes(document))
                encoded = [_encode(engine, [document.content for document in batch])]
                for name in extras.fields:
                    encoded.append(_encode(engine, [field_text(document, name) for document in batch]))
                for document, text, *others in zip(batch, *encoded, strict=True):
                    counts[source]["documents"] += 1
                    counts[source]["empty"] += not len(text.encoding.ids)
                    if len(text.encoding.ids):
                        main.append(text, document)
                        for field, other in zip(fields, others, strict=True):
                            field.append(other)
                sources.extend([source] * (main.windows - len(sources)))
        np.save(new / "sources.npy", np.asarray(sources, dtype=np.uint16))
        by_corpus = _by_corpus(counts, sources, main)
        for name, field in zip(extras.fields, fields, strict=True):
            if not field.windows:
                raise InputError(f"no document has a field {name!r} with a token; expected text there")
        content = {
            **{name: sum(one[name] for one in by_corpus) for name in by_corpus[0]},
            "sources": by_corpus,
            **(more or {}),
            "max_length": max_length,
            "corpus": digest.hexdigest(),
            "tokenizer": tokenizer_digest(tokenizer),
            "fields": list(extras.fields),
        }
        seal(new, KIND, content)
    return content


def _by_corpus(counts: Sequence[Mapping[str, int]], sources: Sequence[int], main: "_Texts") -> list[dict[str, int]]:
    """The counts of each corpus, with its windows and tokens; refuses one that has none."""
    lengths = np.diff(np.asarray(main.offsets))
    numbers = np.asarray(sources, dtype=np.int64)
    found = []
    for number, one in enumerate(counts):
        own = lengths[numbers == number]
        if not len(own):
            which = "the corpus" if len(counts) == 1 else f"corpus {number + 1}"
            raise InputError(f"none of {which}'s {one['documents']:,} documents has a token; expected some text")
        found.append({**one, "windows": len(own), "tokens": int(own.sum())})
    return found


def field_text(document: Document, name: str) -> str:
    """A document's field; empty where it has none.

    Raises:
        InputError: It is no text.
    """
    value = (document.attributes or {}).get(name)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{name} of document {document.id!r} is {value!r}; expected text")
    return value or ""


class _Encoded(NamedTuple):
    text: str
    encoding: Any


class _Texts:
    """Texts cut into windows, end to end, in the columns of a folder."""

    def __init__(
        self, folder: Path, continued: np.ndarray, capacity: int, marks: Marks | None, texts: bool = False
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        kind = np.dtype(np.uint16 if len(continued) - 1 <= _LARGEST_SHORT else np.uint32)
        self.folder, self.continued, self.capacity, self.marks = folder, continued, capacity, marks
        self.offsets, self.firsts, self.character_offsets = array("q", [0]), array("q", [0]), array("q", [0])
        self.ids, self.starts = _Column(folder / "tokens.npy", kind), _Column(folder / "word_starts.npy", bool)
        self.marked = _Column(folder / "marked.npy", bool) if marks else None
        self.characters = _Column(folder / "characters.npy", np.uint8) if texts else None

    @property
    def windows(self) -> int:
        return len(self.offsets) - 1

    @property
    def tokens(self) -> int:
        return self.offsets[-1]

    def append(self, item: _Encoded, document: Document | None = None) -> None:
        """Add a text, whose character spans the document holds, if it is that document's own."""
        text, encoding = item
        pieces = np.asarray(encoding.ids, dtype=self.ids.kind)
        self.ids.append(pieces)
        self.starts.append(word_starts(pieces, encoding.word_ids, self.continued))
        if self.marked and self.marks:
            self.marked.append(self.marks.of(text, encoding, document))
        base = self.offsets[-1]
        for start, end in windows(len(pieces), self.capacity):
            self.offsets.append(base + end)
            if self.characters:
                part = text[encoding.offsets[start][0] : encoding.offsets[end - 1][1]].encode("utf-8", "replace")
                self.characters.append(np.frombuffer(part, dtype=np.uint8))
                self.character_offsets.append(self.character_offsets[-1] + len(part))
        self.firsts.append(self.windows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for column in (self.ids, self.starts, self.marked, self.characters):
            if column:
                column.close()
        arrays = {"offsets": self.offsets, "documents": self.firsts}
        if self.characters:
            arrays["character_offsets"] = self.character_offsets
        for name, values in arrays.items():
            np.save(self.folder / f"{name}.npy", np.asarray(values, dtype=np.int64))


class _Column:
    """A one-dimensional .npy file of unknown length: the header is written again when the length is known."""

    def __init__(self, path: Path, kind: Any) -> None:
        self.file, self.kind, self.length = path.open("wb"), np.dtype(kind), 0
        self._write_header()

    def append(self, values: np.ndarray) -> None:
        values.astype(self.kind, copy=False).tofile(self.file)
        self.length += len(values)

    def _write_header(self) -> None:
        # numpy pads headers so that the first axis may grow to 21 digits: the second header fills the same bytes.
        header = {"descr": np.lib.format.dtype_to_descr(self.kind), "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def close(self) -> None:
        self.file.seek(0)
        self._write_header()
        self.file.close()


def _encode(engine: Any, texts: Sequence[str]) -> list[_Encoded]:
    return [_Encoded(*pair) for pair in zip(texts, engine.encode_batch(texts, add_special_tokens=False), strict=True)]


def _numbered_batches(corpora: Sequence[Iterable[Document]]) -> Iterator[tuple[int, list[Document]]]:
    """Some documents of one corpus at a time, with its number."""
    for number, documents in enumerate(corpora):
        iterator = iter(documents)
        while batch := list(itertools.islice(iterator, _DOCUMENTS_AT_ONCE)):
            yield number, batch
