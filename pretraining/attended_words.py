"""Attended words: how much of an encoder's attention each word of each document has, collected once, kept on disk."""

import contextlib
import itertools
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from indexes.checksums import fingerprint, folder_digest
from indexes.errors import InputError
from indexes.manifest import LOCK, new_folder, open_manifest, read_json, seal, sole_writer, sync, write_json
from pretraining.attention import first_token_attention, refuse_unreadable
from pretraining.backbones import Backbone
from pretraining.contrastive_terms import KIND, ContrastiveTerms, saturated
from pretraining.tokens import SPECIALS, plain_tokenizer, windows
from pretraining.word_sets import words_at, write_words
from retrieval.batches import token_batches
from retrieval.cache import cache_home
from retrieval.devices import best_device
from retrieval.documents import Document, corpus_fingerprint
from retrieval.loading import load_module
from retrieval.model_folder import read_model_folder, resolve

_DOCUMENTS_AT_ONCE = 1024
_CHARACTERS_AT_ONCE = 1 << 20
_TOKENS_IN_A_BATCH = {"cpu": 2048, "other": 32_768}
_SECONDS_BETWEEN_NOTES = 10.0
_KEY = "key.json"

OnNote = Callable[[str], None]


class Reader(NamedTuple):
    """An encoder that reads documents.

    Attributes:
        backbone: Its transformer, of a family that `attention` can read.
        tokenizer: Its fast tokenizer.
        length: Tokens of a window, special ones included; longer documents are read in several.
    """

    backbone: Backbone
    tokenizer: Any
    length: int


def load_reader(name: str) -> Reader:
    """Load an encoder to read with; its prompts and what comes after its transformer have no part in it.

    Raises:
        InputError: It is no model, of a family whose attention is not computed here, or its tokenizer is not a fast one
            with [CLS] and [SEP].
    """
    folder = resolve(name)
    plain = not (folder / "modules.json").is_file()
    settings = read_model_folder(folder, pooling="cls" if plain else None)
    module, tokenizer, _ = load_module(name, settings, None, "float32")
    backbone = Backbone(module.backbone)
    refuse_unreadable(backbone)
    if not tokenizer.is_fast or None in (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id):
        raise InputError(f"{name}'s tokenizer is not a fast one with [CLS], [SEP] and padding; choose another encoder")
    return Reader(backbone, tokenizer, min(settings.max_length, backbone.longest))


def attended_words(texts: Sequence[str], reader: Reader) -> list[dict[str, float]]:
    """The attention of [CLS] to each word of each text: that to the piece that holds the word's first letter.

    A word that stands in several places has the sum. A text that is longer than a window has the mean of its windows,
    so that what all of its pieces have sums to the same as in one window: a text that is a token too long for one is
    read nearly as it would be in a longer one. Words are those of `word_sets.words_of`.
    """
    engine, specials = plain_tokenizer(reader.tokenizer), (reader.tokenizer.cls_token_id, reader.tokenizer.sep_token_id)
    encodings = engine.encode_batch(list(texts), add_special_tokens=False)
    cuts = [windows(len(encoding.ids), reader.length - SPECIALS) for encoding in encodings]
    places = [(text, *cut) for text, found in enumerate(cuts) for cut in found]
    lists = [[specials[0], *encodings[text].ids[first:end], specials[1]] for text, first, end in places]
    weights = [np.zeros(len(encoding.ids)) for encoding in encodings]
    device = next(reader.backbone.module.parameters()).device
    budget = _TOKENS_IN_A_BATCH["cpu" if device.type == "cpu" else "other"]
    for batch in token_batches(lists, budget, reader.tokenizer.pad_token_id):
        ids, mask = (torch.from_numpy(array).to(device) for array in (batch.ids, batch.mask))
        found = first_token_attention(reader.backbone, ids, mask).cpu().numpy()  # (b, t)
        for line, row in zip(found, batch.rows.tolist(), strict=True):
            text, first, end = places[row]
            weights[text][first:end] = line[1 : 1 + end - first] / len(cuts[text])
    return [_of_words(*one) for one in zip(texts, encodings, weights, strict=True)]


def _of_words(text: str, encoding: Any, weights: NDArray[np.float64]) -> dict[str, float]:
    spans = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    found: dict[str, float] = {}
    words = list(words_at(text))
    holding = np.searchsorted(spans[:, 0], [start for _, start in words], side="right") - 1
    for (word, start), piece in zip(words, holding.tolist(), strict=True):
        if piece >= 0 and spans[piece, 1] > start:
            found[word] = found.get(word, 0.0) + float(weights[piece])
    return found


def cached_terms(documents: Collection[Document], model: str, temperature: float, note: OnNote) -> ContrastiveTerms:
    """The contrastive terms of documents by an encoder, which reads them once: later calls find what was read.

    That is in retrokit's cache, in 8 bytes a distinct word of each document; it may be deleted at any time.

    Raises:
        InputError: As of `load_reader` and `ContrastiveTerms`; no document has a word; another process is reading the
            same; or the cache cannot be written.
    """
    read = {"model": folder_digest(resolve(model)), "documents": corpus_fingerprint(documents)}
    key = fingerprint(read)
    place = cache_home() / "attention" / key
    try:
        write_attended_words(documents, place, lambda: load_reader(model), key, note)
    except OSError as error:
        raise InputError(
            f"{place} cannot be written ({error.strerror}); set XDG_CACHE_HOME to a folder that can"
        ) from None
    return ContrastiveTerms(place, temperature)


def write_attended_words(
    documents: Collection[Document], folder: Path, load: Callable[[], Reader], key: str, note: OnNote
) -> None:
    """Have an encoder read documents, and keep as a folder how much it attends to which word.

    The folder holds `words.txt` (v words in alphabetical order), for each document its distinct words in that order
    (`places.npy`, uint32) with their attention (`attention.npy`, float32), where those of each document begin
    (`offsets.npy`, int64, documents + 1), and `sums.npy`, Σ_D s(w, D) of each word (`contrastive_terms`). Work in
    progress is in `FOLDER.partial/`, a file for every 1,024 documents or million characters: after a kill the same
    call goes on there and ends with the same bytes.

    Args:
        documents: Read in the order in which they come.
        folder: Where it is to be; if it is there, of the same key and whole, nothing is done.
        load: Gives the reader; called only if something is to be read.
        key: Of what was read by whom, in 64 hex digits.
        note: Told every ten seconds how many documents were read.

    Raises:
        InputError: No document has a word, or another process is at work there.
    """
    if _is_whole(folder, key):
        return
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with sole_writer(partial):
        _discard_others(partial, key)
        try:
            _merge(_read_all(documents, partial, load, note), folder, key)
        except InputError:
            if {path.name for path in partial.iterdir()} <= {_KEY, LOCK}:
                shutil.rmtree(partial)  # nothing to go on with
            raise
    shutil.rmtree(partial)


def _is_whole(folder: Path, key: str) -> bool:
    if not folder.is_dir():
        return False
    with contextlib.suppress(InputError):
        return bool(open_manifest(folder, KIND)["key"] == key)
    return False  # damaged: it is made again


def _discard_others(partial: Path, key: str) -> None:
    """Remove what was begun of other documents or by another encoder."""
    if not (partial / _KEY).is_file() or read_json(partial / _KEY) != key:
        for path in partial.iterdir():
            if path.name != LOCK:
                path.unlink()
        write_json(partial / _KEY, key)


def _read_all(
    documents: Collection[Document], partial: Path, load: Callable[[], Reader], note: OnNote
) -> list["_Part"]:
    """Read what is not yet read, and give all parts in order."""
    parts, done, last = [], 0, time.monotonic()
    with contextlib.ExitStack() as at_work:
        reader: Reader | None = None
        for number, some in enumerate(_batches(documents)):
            part, done = _Part(partial / f"{number:06d}.npz"), done + len(some)
            parts.append(part)
            if part.is_whole():
                continue
            if reader is None:
                note(f"reading {len(documents):,} texts once for what the encoder attends to")
                reader = load()
                at_work.enter_context(_at_work(reader.backbone.module))
            part.write(attended_words([document.content for document in some], reader))
            if time.monotonic() - last > _SECONDS_BETWEEN_NOTES:
                last = time.monotonic()
                note(f"{done:,} of {len(documents):,} texts read")
    return parts


@contextlib.contextmanager
def _at_work(module: Any) -> Iterator[None]:
    """Have a model on the fastest device and without dropout, and give it back as it was."""
    before, training = next(module.parameters()).device, module.training
    module.eval().to(best_device())
    try:
        yield
    finally:
        module.train(training).to(before)


class _Part:
    """What was read of some documents: a file that is either whole or not there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_whole(self) -> bool:
        return self.path.is_file()

    def write(self, found: Sequence[dict[str, float]]) -> None:
        words = sorted({word for one in found for word in one})
        numbers = {word: number for number, word in enumerate(words)}
        rows = [sorted(one.items()) for one in found]
        flat = list(itertools.chain.from_iterable(rows))
        temporary = self.path.with_name(f".{self.path.name}")
        with temporary.open("wb") as file:
            np.savez(
                file,
                words=np.frombuffer("\n".join(words).encode("ascii"), dtype=np.uint8),
                lengths=np.array([len(row) for row in rows], dtype=np.int64),
                places=np.array([numbers[word] for word, _ in flat], dtype=np.uint32),
                attention=np.array([weight for _, weight in flat], dtype=np.float32),
            )
        sync(temporary)
        temporary.replace(self.path)

    def words(self) -> list[str]:
        with np.load(self.path, allow_pickle=False) as arrays:
            return arrays["words"].tobytes().decode("ascii").split()

    def columns(self) -> tuple[NDArray[Any], ...]:
        """Distinct words of each document, and places and attention of all."""
        with np.load(self.path, allow_pickle=False) as arrays:
            return arrays["lengths"], arrays["places"], arrays["attention"]


def _merge(parts: Sequence[_Part], folder: Path, key: str) -> None:
    """Put parts together, with one list of words for all."""
    vocabulary = sorted({word for part in parts for word in part.words()})
    lengths = np.concatenate([part.columns()[0] for part in parts] or [np.empty(0, dtype=np.int64)])
    if not vocabulary:
        raise InputError(f"none of {len(lengths):,} texts has a word of letters that is no stop word; give other texts")
    numbers = {word: number for number, word in enumerate(vocabulary)}
    sums, start, total = np.zeros(len(vocabulary)), 0, int(lengths.sum())
    with new_folder(folder, overwrite=folder.exists()) as new:
        places = open_memmap(new / "places.npy", "w+", np.uint32, (total,))
        attention = open_memmap(new / "attention.npy", "w+", np.float32, (total,))
        for part in parts:
            _, local, weights = part.columns()
            here = np.array([numbers[word] for word in part.words()], dtype=np.uint32)[local]
            places[start : start + len(here)], attention[start : start + len(here)] = here, weights
            np.add.at(sums, here, saturated(weights))
            start += len(here)
        places.flush()
        attention.flush()
        np.save(new / "offsets.npy", np.concatenate(([0], np.cumsum(lengths))))
        np.save(new / "sums.npy", sums)
        write_words(new, vocabulary)
        seal(new, KIND, {"key": key})


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Up to 1,024 documents or a million characters and the document that makes it so."""
    some: list[Document] = []
    characters = 0
    for document in documents:
        some.append(document)
        characters += len(document.content)
        if len(some) == _DOCUMENTS_AT_ONCE or characters >= _CHARACTERS_AT_ONCE:
            yield some
            some, characters = [], 0
    if some:
        yield some
