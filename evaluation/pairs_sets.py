"""Sets without a corpus: pairs of sentences with a score or a label, and queries with documents to put in order."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexes.checksums import fingerprint
from indexes.errors import InputError
from retrieval.documents import text_field, whole_text
from retrieval.lines import read_lines

KINDS = ("sts", "pairs", "reranking")
"""What a spec may begin with: similarity scores, labels 0 and 1, positive and negative documents."""

_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_FEWEST = 3


@dataclass(frozen=True)
class PairSet:
    """Pairs of sentences, each with a number: how similar they are (`sts`) or whether they say the same (`pairs`)."""

    kind: str
    name: str
    first: list[str] = field(repr=False)  # (n,)
    second: list[str] = field(repr=False)  # (n,)
    values: NDArray[np.float64] = field(repr=False)  # (n,)
    subsets: list[str] = field(repr=False)  # (n,) the subset each pair belongs to; "" if there are none
    fingerprint: str
    """SHA-256 over all of them, in their order; the name is no part of it."""
    notices: tuple[str, ...] = ()
    """Sentences about what a reader of the results should know of the data."""

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class RerankingSet:
    """Queries, each with documents that answer it and documents that do not."""

    name: str
    queries: dict[str, str] = field(repr=False)
    """Query id to text."""
    positive: dict[str, list[str]] = field(repr=False)
    """Query id to texts."""
    negative: dict[str, list[str]] = field(repr=False)
    fingerprint: str
    notices: tuple[str, ...] = ()
    kind: str = "reranking"

    def __len__(self) -> int:
        return len(self.queries)


def pairs_kind(spec: str | None) -> str | None:
    """The kind of set that a spec names (`sts:FILE`, `pairs:FILE`, `reranking:FILE`), or None: a test collection."""
    kind, colon, _ = (spec or "").partition(":")
    return kind if colon and kind in KINDS else None


def load_pairs(spec: str) -> PairSet | RerankingSet:
    """Read a set from JSON lines (plain, gzip or zstd).

    Args:
        spec: One of

            - `sts:PATH`: objects of `sentence1`, `sentence2` and `score`, a number on any scale;
            - `pairs:PATH`: objects of `sentence1`, `sentence2` and `label` (or `labels`), 0 or 1;
            - `reranking:PATH`: objects of `query`, `positive` and `negative`, the last two lists of texts.

            PATH is a file, or for the first two a folder of `.jsonl` files, each of which is a subset, named by its
            file, as in STS12 to STS16; a field `subset` names it too.

    Raises:
        InputError: No such kind or file, a record is malformed (file and line are named), there are fewer than 3
            pairs, or all scores or labels are the same.
    """
    kind = pairs_kind(spec)
    if kind is None:
        raise InputError(f"{spec!r} is no set of pairs; expected one of {', '.join(f'{one}:FILE' for one in KINDS)}")
    path = Path(spec.partition(":")[2])
    if kind == "reranking":
        return _load_reranking(path)
    return _load_scored(path, kind)


def _files(path: Path) -> list[tuple[Path, str]]:
    """Each file with the name of its subset."""
    if not path.is_dir():
        return [(path, "")]
    files = sorted(file for file in path.iterdir() if file.name.endswith(_SUFFIXES))
    if not files:
        raise InputError(f"{path}: no files of JSON lines; expected {', '.join(_SUFFIXES)}")
    return [(file, file.name.partition(".jsonl")[0]) for file in files]


def _name(path: Path) -> str:
    return path.resolve().name.partition(".jsonl")[0]


def _load_scored(path: Path, kind: str) -> PairSet:
    first, second, subsets = [], [], []
    values: list[float] = []
    for file, subset in _files(path):
        for number, record in read_lines(file):
            place = f"{file}, line {number}"
            first.append(text_field(record, ("sentence1",), place))
            second.append(text_field(record, ("sentence2",), place))
            values.append(_score(record, place) if kind == "sts" else _label(record, place))
            subsets.append(text_field(record, ("subset",), place, default=subset))
    what = "score" if kind == "sts" else "label"
    if len(first) < _FEWEST:
        raise InputError(f"{path}: found {len(first)} pairs; expected at least {_FEWEST}")
    if len(set(values)) < 2:
        raise InputError(f"{path}: every {what} is {values[0]:g}; expected different ones, else there is no measure")
    digest = fingerprint([kind, first, second, values, subsets])
    notices = _pair_notices(first, second)
    array = np.asarray(values, dtype=np.float64)
    return PairSet(kind, _name(path), first, second, array, subsets, digest, tuple(notices))


def _score(record: dict[str, Any], place: str) -> float:
    value = record.get("score")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{place}: score is {value!r}; expected a finite number")
    return float(value)


def _label(record: dict[str, Any], place: str) -> float:
    value = record.get("label", record.get("labels"))
    if value not in (0, 1):
        raise InputError(f"{place}: label is {value!r}; expected 0 or 1")
    return float(value)


def _pair_notices(first: list[str], second: list[str]) -> list[str]:
    notices = []
    empty = sum(not one.strip() or not other.strip() for one, other in zip(first, second, strict=True))
    if empty:
        notices.append(f"{empty:,} of {len(first):,} pairs hold an empty sentence; they are encoded as they are.")
    again = len(first) - len(set(zip(first, second, strict=True)))
    if again:
        notices.append(f"{again:,} of {len(first):,} pairs occur again; each time counts.")
    return notices


def _load_reranking(path: Path) -> RerankingSet:
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected one file of JSON lines: query, positive, negative")
    queries: dict[str, str] = {}
    positive: dict[str, list[str]] = {}
    negative: dict[str, list[str]] = {}
    left_out = 0
    for row, (query, good, bad) in enumerate(_reranking_records(path)):
        if not good or not bad:
            left_out += 1
            continue
        name = f"query{row}"
        queries[name], positive[name], negative[name] = query, good, bad
    if not queries:
        raise InputError(f"{path}: no query with a positive and a negative document; expected at least one")
    notices = []
    if left_out:
        notices.append(f"{left_out:,} queries without a positive or without a negative document were left out.")
    notices += _document_notices(queries, positive, negative)
    digest = fingerprint(["reranking", queries, positive, negative])
    return RerankingSet(_name(path), queries, positive, negative, digest, tuple(notices))


def _reranking_records(path: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    for number, record in read_lines(path):
        place = f"{path}, line {number}"
        texts = []
        for name in ("positive", "negative"):
            value = record.get(name)
            if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
                raise InputError(f"{place}: field {name!r} is {str(value)[:60]!r}; expected a list of texts")
            texts.append([whole_text(one, f"{place}: field {name!r}") for one in value])
        yield text_field(record, ("query",), place), texts[0], texts[1]


def _document_notices(
    queries: dict[str, str], positive: dict[str, list[str]], negative: dict[str, list[str]]
) -> list[str]:
    notices = []
    both = sum(bool(set(positive[query]) & set(negative[query])) for query in queries)
    if both:
        notices.append(f"{both:,} queries have a text among their positive and their negative documents.")
    again = sum(
        count - 1 for query in queries for count in Counter(positive[query] + negative[query]).values() if count > 1
    )
    if again:
        notices.append(f"{again:,} documents have the same text as another of their query; equal scores are ties.")
    empty = sum(not text.strip() for query in queries for text in [queries[query], *positive[query], *negative[query]])
    if empty:
        notices.append(f"{empty:,} queries and documents are empty; they are encoded as they are.")
    return notices
