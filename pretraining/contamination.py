"""Contamination: documents that give test queries away, found by hashed runs of words."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from indexes.checksums import fingerprint
from indexes.errors import InputError
from retrieval.documents import Document
from retrieval.shingles import normalised, shingle_hashes

_NAMES = ("queries.jsonl", "queries.jsonl.gz", "queries.jsonl.zst")


def read_test_queries(source: str | Path) -> list[str]:
    """The queries of a BEIR folder, train and test alike, or of a file: JSON lines with a `text`, or one query a line.

    Raises:
        InputError: There is no such folder or file, it has no queries, or one of them is no text.
    """
    from retrieval.tuning import read_queries

    path = Path(source)
    if path.is_dir():
        found = next((path / name for name in _NAMES if (path / name).is_file()), None)
        if found is None:
            raise InputError(f"{path}: no queries.jsonl in it; expected a BEIR folder or a file of queries")
        path = found
    queries = read_queries(path)
    if not queries:
        raise InputError(f"{path}: no queries found; expected at least one")
    return queries


class TestQueries:
    """Queries that documents must not give away.

    A document gives a query away if its title, its text or both together are the query, or if they contain, word by
    word, one of at least `least_words` words; shorter ones occur everywhere. Case, punctuation and space do not count.

    Each run of `least_words` words is looked up among those that the queries begin with, so that time grows with the
    words of the documents and hardly with the number of queries. The queries are held in memory, the documents not.

    Args:
        queries: As users ask them.
        least_words: Words of a query that is looked for inside documents.

    Raises:
        InputError: `least_words` is less than 1.
    """

    __test__ = False  # no test class of pytest's

    def __init__(self, queries: Iterable[str], least_words: int = 8) -> None:
        if least_words < 1:
            raise InputError(f"query_words is {least_words}; expected at least 1")
        self.least_words = least_words
        self._queries = {text for text in map(normalised, queries) if text}
        long = sorted(text for text in self._queries if text.count(" ") + 1 >= least_words)
        hashes, bounds = shingle_hashes(long, least_words)
        self._begin: dict[int, list[str]] = defaultdict(list)
        for text, key in zip(long, hashes[bounds[:-1]].tolist(), strict=True):
            self._begin[key].append(text)
        self._keys = np.array(sorted(self._begin), dtype=np.uint64)

    def __len__(self) -> int:
        return len(self._queries)

    def fingerprint(self) -> str:
        """SHA-256 over the queries in their normal form, whatever their order."""
        return fingerprint(sorted(self._queries))

    def given_away(self, documents: Sequence[Document], texts: Sequence[str]) -> np.ndarray:
        """Which documents (n,) give a query away, bool (n,).

        Args:
            documents: As they are; attributes that are texts count like the text.
            texts: The normal form of each one's content.
        """
        found = self._among(texts)
        for row, (document, text) in enumerate(zip(documents, texts, strict=True)):
            if document.title and not found[row]:
                found[row] = not self._queries.isdisjoint(_parts(document.title, text))
            others = [value for value in (document.attributes or {}).values() if isinstance(value, str)]
            if others and not found[row]:
                found[row] = self._among(list(map(normalised, others))).any()
        return found

    def _among(self, texts: Sequence[str]) -> np.ndarray:
        """Which texts (n,), in their normal form, are or contain a query."""
        found = np.array([text in self._queries for text in texts], dtype=bool)
        if not len(self._keys):
            return found
        hashes, bounds = shingle_hashes(texts, self.least_words)
        places = self._keys.searchsorted(hashes)
        places[places == len(self._keys)] = 0
        for hit in np.flatnonzero(self._keys[places] == hashes).tolist():
            row = int(bounds.searchsorted(hit, side="right")) - 1
            if not found[row]:
                found[row] = any(f" {query} " in f" {texts[row]} " for query in self._begin[int(hashes[hit])])
        return found


def _parts(title: str, content: str) -> tuple[str, str]:
    """The normal forms of a title and of the text that follows it in a content's normal form."""
    title = normalised(title)
    return title, content.removeprefix(title).removeprefix(" ")
