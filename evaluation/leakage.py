"""Leakage: test queries and relevant documents that a training set holds, and what is measured without them."""

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluation.comparison import Comparison
from indexes.errors import InputError
from retrieval.documents import ID_FIELDS, read_documents
from retrieval.lines import read_lines
from retrieval.shingles import normalised, shingle_hashes

WORDS = 8
"""Words of a run that a training text and a query have in common; fewer occur everywhere."""
_AT_ONCE = 1024
_ENDINGS = (".jsonl", ".ndjson", ".json-lines")
_PACKED = ("", ".gz", ".zst")


class Leaked(NamedTuple):
    """A test query that a training set holds, wholly or partly."""

    query: str
    text: str
    exact: bool
    """Whether a training text is the query, case and punctuation aside; else they have a run of words in common."""
    words: str
    """What they have in common."""
    place: str
    """Where in the training set it was found first."""


class Leak(NamedTuple):
    """What of one test set a training set holds."""

    source: str
    training_texts: int
    words: int
    """Of a run that counts."""
    queries: tuple[Leaked, ...]
    short: int
    """Queries of fewer words, which were looked for as a whole only."""
    documents: tuple[str, ...]
    """Relevant documents that are in the training set, case and punctuation aside: learning from the corpus itself is
    legitimate adaptation, learning from its judgements is not."""
    left: int
    """Queries that did not leak."""
    means: dict[str, float]
    """System to its mean over these; empty if there are none."""


def find_leaks(
    comparison: Comparison,
    sources: Iterable[str | Path],
    texts_by_set: Mapping[str, Mapping[str, str]],
    *,
    words: int = WORDS,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, Leak]:
    """Look for the queries and relevant documents of all sets in training sets, each of which is read once.

    Args:
        comparison: Whose sets they are.
        sources: JSON lines, every text of which counts (pairs of whatever fields), or a corpus that
            `read_documents` reads.
        texts_by_set: Of each set, its relevant documents by id, as encoders read them.
        words: Of a run in common that counts.
        on_progress: Called with the training texts read so far.

    Returns:
        Set to what of it leaked.

    Raises:
        InputError: A source is missing, malformed or without texts, or `words` is less than 1.
    """
    if words < 1:
        raise InputError(f"words is {words}; expected at least 1")
    named = [str(source) for source in sources]
    wanted = {
        (name, query): normalised(report.queries[query])
        for name, report in comparison.reports.items()
        for query in report.qrels
    }
    documents = {
        (name, one): normalised(text)
        for name, texts in texts_by_set.items()
        for one, text in texts.items()
        if any(grades.get(one, 0) > 0 for grades in comparison.reports[name].qrels.values())
    }
    search = _Search(wanted, documents, words)
    for source in named:
        before = search.read
        for part in _parts(training_texts(source), _AT_ONCE):
            search.look(part)
            if on_progress:
                on_progress(search.read, None)
        if search.read == before:
            raise InputError(f"{source}: no texts found; expected JSON lines with texts, or a corpus")
    return {name: _leak(comparison, name, search, " + ".join(named), words) for name in comparison.reports}


def training_texts(source: str | Path) -> Iterator[tuple[str, str]]:
    """The texts of a training set, each with its place; title and text of a record also as one.

    Args:
        source: As for `find_leaks`.

    Raises:
        InputError: The source is missing or malformed.
    """
    path = Path(source)
    if path.name.endswith(tuple(ending + packed for ending in _ENDINGS for packed in _PACKED)):
        for number, record in read_lines(path):
            place = f"{path.name}, line {number}"
            for name, value in record.items():
                if name not in ID_FIELDS:
                    yield from ((place, text) for text in _strings(value))
            if isinstance(record.get("title"), str) and isinstance(record.get("text"), str):
                yield place, f"{record['title']} {record['text']}"
        return
    for document in read_documents(source):
        place = f"{path.name}, document {document.id}"
        yield place, document.text
        if document.title:
            yield place, document.title
            yield place, document.content


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)
    elif isinstance(value, dict):
        for one in value.values():
            yield from _strings(one)


class _Search:
    """Texts looked for in others: whole, or by a run of words.

    Args:
        queries: Their normal forms, by any key.
        documents: Looked for as a whole only.
        words: Of a run.
    """

    def __init__(
        self, queries: Mapping[tuple[str, str], str], documents: Mapping[tuple[str, str], str], words: int
    ) -> None:
        self.words = words
        self.queries = queries
        self.read = 0
        self.exact: dict[tuple[str, str], tuple[str, str]] = {}  # to what is common, and where
        self.partly: dict[tuple[str, str], tuple[str, str]] = {}
        self.documents: set[tuple[str, str]] = set()
        self._whole = _by_text(queries)
        self._held = {_digest(text): keys for text, keys in _by_text(documents).items()}
        self._runs: dict[int, list[tuple[tuple[str, str], str]]] = defaultdict(list)
        long = [(key, text) for key, text in queries.items() if text.count(" ") + 1 >= words]
        hashes, bounds = shingle_hashes([text for _, text in long], words)
        for (key, text), start, end in zip(long, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            parts = text.split()
            for offset, run in enumerate(hashes[start:end].tolist()):
                self._runs[run].append((key, " ".join(parts[offset : offset + words])))
        self._keys = np.array(sorted(self._runs), dtype=np.uint64)

    def look(self, texts: list[tuple[str, str]]) -> None:
        """Look into some training texts: places and texts."""
        plain = [normalised(text) for _, text in texts]
        for (place, _), text in zip(texts, plain, strict=True):
            for key in self._whole.get(text, ()) if text else ():
                self.exact.setdefault(key, (text, place))
            self.documents.update(self._held.get(_digest(text), ()) if text else ())
        self.read += len(texts)
        if not len(self._keys):
            return
        hashes, bounds = shingle_hashes(plain, self.words)
        places = self._keys.searchsorted(hashes)
        places[places == len(self._keys)] = 0
        for hit in np.flatnonzero(self._keys[places] == hashes).tolist():
            row = int(bounds.searchsorted(hit, side="right")) - 1
            for key, run in self._runs[int(hashes[hit])]:
                if key not in self.partly and f" {run} " in f" {plain[row]} ":
                    self.partly[key] = (run, texts[row][0])


def _by_text(named: Mapping[tuple[str, str], str]) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for key, text in named.items():
        if text:
            found[text].append(key)
    return found


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _parts(texts: Iterator[tuple[str, str]], size: int) -> Iterator[list[tuple[str, str]]]:
    return iter(lambda: list(itertools.islice(texts, size)), [])


def _leak(comparison: Comparison, name: str, search: _Search, source: str, words: int) -> Leak:
    report = comparison.reports[name]
    leaked = []
    for query in report.qrels:
        key = (name, query)
        if found := search.exact.get(key) or search.partly.get(key):
            leaked.append(Leaked(query, report.queries[query], key in search.exact, *found))
    gone = {one.query for one in leaked}
    left = [query for query in report.qrels if query not in gone]
    means = {
        system: sum(result.per_query[query][comparison.measure] for query in left) / len(left)
        for system, result in report.systems.items()
        if left
    }
    return Leak(
        source=source,
        training_texts=search.read,
        words=words,
        queries=tuple(leaked),
        short=sum(search.queries[(name, query)].count(" ") + 1 < words for query in report.qrels),
        documents=tuple(sorted(one for held, one in search.documents if held == name)),
        left=len(left),
        means=means,
    )
