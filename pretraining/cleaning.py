"""Cleaning of a run's corpora on their way to tokens: duplicates and documents that give test queries away go."""

import hashlib
import itertools
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from indexes.errors import InputError
from pretraining.contamination import TestQueries, read_test_queries
from pretraining.duplicates import ExactDuplicates, NearDuplicates
from pretraining.mixture import Mixture
from pretraining.token_writer import Extras, write_tokens
from pretraining.tokens import Rows
from retrieval.documents import Document, document_bytes, read_documents
from retrieval.shingles import normalised

DEDUPLICATE = ("none", "exact", "near")

_DOCUMENTS_AT_ONCE = 256
_CHARACTERS_AT_ONCE = 1 << 20
_SECONDS_BETWEEN_NOTES = 10.0
_REASONS = {
    "with_test_queries": "that give test queries away",
    "duplicates": "duplicates",
    "near_duplicates": "near duplicates",
}


@dataclass(frozen=True)
class CleaningOptions:
    """Which documents a run leaves out.

    Attributes:
        deduplicate: `none`; `exact`, documents of the same words; or `near`, those and near duplicates.
        near_duplicates_at: The least Jaccard of the five-word shingles of near duplicates.
        remove_queries: BEIR folders or files of queries; documents that give one away go.
        query_words: Words of a query that is looked for inside documents; a shorter one has to be all of a title or
            text.
    """

    deduplicate: str = "none"
    near_duplicates_at: float = 0.8
    remove_queries: tuple[str, ...] = ()
    query_words: int = 8

    def __post_init__(self) -> None:
        if self.deduplicate not in DEDUPLICATE:
            raise InputError(f"deduplicate is {self.deduplicate!r}; expected {', '.join(DEDUPLICATE)}")
        NearDuplicates(self.near_duplicates_at)
        TestQueries((), self.query_words)

    def queries(self) -> TestQueries | None:
        """Read the queries; None if there are to be none.

        Raises:
            InputError: They cannot be read.
        """
        texts = [query for source in self.remove_queries for query in read_test_queries(source)]
        return TestQueries(texts, self.query_words) if texts else None

    def record(self, queries: TestQueries | None) -> dict[str, Any]:
        """The options as JSON values, one field each, with a fingerprint of the queries; None where one is unused."""
        return {
            "deduplicate": self.deduplicate,
            "near_duplicates_at": self.near_duplicates_at if self.deduplicate == "near" else None,
            "test_queries": queries.fingerprint() if queries else None,
            "query_words": self.query_words if queries else None,
        }


class Cleaner:
    """Passes the documents of several corpora on, one corpus after the other, but for those that are to go.

    Documents that give test queries away go first and shield no others. Of duplicates, the first in the order of the
    corpora stays. A few hundred documents are in memory at a time; of all others what `ExactDuplicates` (16 bytes a
    document) and `NearDuplicates` (420 at a Jaccard of 0.8) keep.

    Args:
        options: What is to go.
        queries: Those that the options name.
    """

    def __init__(self, options: CleaningOptions, queries: TestQueries | None = None) -> None:
        self._queries = queries
        self._exact = ExactDuplicates() if options.deduplicate != "none" else None
        self._near = NearDuplicates(options.near_duplicates_at) if options.deduplicate == "near" else None
        self.removed: list[dict[str, int]] = []
        """For each corpus so far, how many documents were read and how many went for which reason."""

    def clean(self, corpus: str, documents: Iterable[Document]) -> Iterator[Document]:
        """Pass the documents of the next corpus on.

        Raises:
            InputError: None is left.
        """
        counts = {"read": 0, **dict.fromkeys(_REASONS, 0)}
        self.removed.append(counts)
        for batch in _batches(documents):
            counts["read"] += len(batch)
            yield from self._kept(batch, counts)
        if left_out(counts) == counts["read"]:
            raise InputError(f"{corpus}: nothing is left of it, {describe(counts)}; leave it out, or ask for less")

    def _kept(self, batch: list[Document], counts: dict[str, int]) -> list[Document]:
        if self._queries is None and self._exact is None:
            return batch
        texts = [normalised(document.content) for document in batch]

        def remove(which: np.ndarray, reason: str) -> None:
            counts[reason] += int(which.sum())
            stay = np.flatnonzero(~which).tolist()
            batch[:], texts[:] = [batch[place] for place in stay], [texts[place] for place in stay]

        if self._queries is not None:
            remove(self._queries.given_away(batch, texts), "with_test_queries")
        if self._exact is not None:
            remove(self._exact.add(texts), "duplicates")
        if self._near is not None:
            remove(self._near.add(texts), "near_duplicates")
        return batch


def left_out(counts: Mapping[str, int]) -> int:
    """How many documents of a corpus went, for whatever reason."""
    return sum(counts[reason] for reason in _REASONS)


def describe(counts: Mapping[str, int]) -> str:
    """Say how many documents of a corpus went and why: `3 of 20 documents left out: 3 duplicates`."""
    why = ", ".join(f"{counts[reason]:,} {words}" for reason, words in _REASONS.items() if counts[reason])
    return f"{left_out(counts):,} of {counts['read']:,} documents left out: {why}"


def sources(mixture: Mixture, rows: Rows) -> list[dict[str, Any]]:
    """What a run card says of each corpus: counts of what was left out and kept, and its share of what is learned."""
    weighed = np.bincount(rows.sources, minlength=len(mixture.corpora)) * np.array(mixture.weights)
    return [
        {"corpus": name, "weight": weight, "share": round(float(share), 6), "left_out": gone, **kept}
        for name, weight, share, gone, kept in zip(
            mixture.corpora,
            mixture.weights,
            weighed / weighed.sum(),
            rows.manifest["removed"],
            rows.manifest["sources"],
            strict=True,
        )
    ]


def describe_sources(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say of each corpus what was left out, and where there are several, what part of the run it is."""
    for one in found:
        if left_out(one["left_out"]):
            yield f"{one['corpus']}: {describe(one['left_out'])}"
        if len(found) > 1:
            yield (
                f"{one['corpus']}, weight {one['weight']:g}: {one['windows']:,} windows, "
                f"{one['share']:.1%} of what the run reads"
            )


def write_cleaned(
    mixture: Mixture,
    digests: Sequence[str],
    cleaner: Cleaner,
    tokenizer: Any,
    folder: Path,
    *,
    max_length: int,
    extras: Extras | None = None,
    attributes: Sequence[str] = (),
    note: Callable[[str], None],
) -> None:
    """Write the cleaned corpora of a mixture as one tokens folder, lazily.

    Args:
        mixture: The corpora.
        digests: The fingerprint that each corpus has to have.
        cleaner: A new one.
        tokenizer: As for `write_tokens`.
        folder: As for `write_tokens`.
        max_length: As for `write_tokens`.
        extras: As for `write_tokens`.
        attributes: Fields of the records that the extras are made of.
        note: Told every ten seconds how many documents were read.

    Raises:
        InputError: Nothing is left of a corpus, or one is not, or no longer, what its fingerprint says.
    """
    found = [hashlib.sha256() for _ in mixture.corpora]
    first, *also = (
        cleaner.clean(name, _watched(read_documents(name, attributes), digest, name, note))
        for name, digest in zip(mixture.corpora, found, strict=True)
    )
    more = {"removed": cleaner.removed}
    write_tokens(first, tokenizer, folder, max_length=max_length, extras=extras, also=also, more=more)
    for name, digest, expected in zip(mixture.corpora, found, digests, strict=True):
        if digest.hexdigest() != expected:
            shutil.rmtree(folder)
            raise InputError(f"{name} changed while it was read; start again when it is at rest")


def _watched(documents: Iterable[Document], digest: Any, name: str, note: Callable[[str], None]) -> Iterator[Document]:
    """Pass documents on as they are, digested, and say from time to time how many they were."""
    last = time.monotonic()
    for number, document in enumerate(documents, start=1):
        digest.update(document_bytes(document))
        if time.monotonic() - last > _SECONDS_BETWEEN_NOTES:
            last = time.monotonic()
            note(f"{name}: {number:,} documents read")
        yield document


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Up to 256 documents or some million characters at a time."""
    iterator = iter(documents)
    while first := list(itertools.islice(iterator, 1)):
        batch, characters = first, len(first[0].text)
        while len(batch) < _DOCUMENTS_AT_ONCE and characters < _CHARACTERS_AT_ONCE:
            following = next(iterator, None)
            if following is None:
                break
            batch.append(following)
            characters += len(following.text)
        yield batch
