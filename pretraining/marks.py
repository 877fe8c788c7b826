"""Marks: which tokens masks may take, where they are limited to the words of a list or to given characters."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from indexes.errors import InputError
from retrieval.documents import Document


class Marks(NamedTuple):
    """What is marked: the words of a list, the characters of given spans, or both."""

    words: frozenset[str] = frozenset()
    """Case-folded."""
    spans: str = ""
    """The attribute of documents that holds pairs of characters of their `text`, from the first up to the second."""

    def of(self, text: str, encoding: Any, document: Document | None) -> np.ndarray:
        """Which of a text's tokens are marked, as bool (t,); a token that a span touches is.

        Args:
            text: What was tokenised.
            encoding: Its tokens, as the `tokenizers` library gives them.
            document: Whose `content` the text is, for its spans; None where the text is one of its fields.

        Raises:
            InputError: A span is none.
        """
        found = np.zeros(len(encoding.ids), dtype=bool)
        offsets = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)  # (t, 2)
        if self.words:
            found |= self._listed(text, encoding.word_ids, offsets)
        if self.spans and document is not None:
            for start, end in content_spans(document, self.spans):
                found |= (offsets[:, 0] < end) & (offsets[:, 1] > start)
        return found

    def _listed(self, text: str, word_ids: Iterable[int | None], offsets: np.ndarray) -> np.ndarray:
        groups = np.fromiter((-1 if word is None else word for word in word_ids), dtype=np.int64, count=len(offsets))
        found = np.zeros(len(offsets), dtype=bool)
        for word in np.unique(groups[groups >= 0]):
            pieces = np.flatnonzero(groups == word)
            whole = text[offsets[pieces[0], 0] : offsets[pieces[-1], 1]]
            found[pieces] = whole.strip().casefold() in self.words
        return found


def content_spans(document: Document, name: str) -> list[tuple[int, int]]:
    """The spans of a document's text that an attribute holds, as places in its `content`.

    Raises:
        InputError: The attribute holds something else than pairs of places in the text.
    """
    given = (document.attributes or {}).get(name) or []
    before = f"{document.title} "
    whole = before + document.text
    shift = len(before) - (len(whole) - len(whole.lstrip()))
    found = []
    for span in given if isinstance(given, list | tuple) else [given]:
        pair = list(span) if isinstance(span, list | tuple) else []
        if len(pair) != 2 or not all(type(place) is int for place in pair):
            raise InputError(f"{name} of document {document.id!r} has {span!r}; expected pairs [START, END]")
        if not 0 <= pair[0] < pair[1] <= len(document.text):
            raise InputError(
                f"{name} of document {document.id!r} has {pair}; expected START below END, within its "
                f"{len(document.text)} characters of text"
            )
        found.append((pair[0] + shift, pair[1] + shift))
    return found


def read_words(path: Path) -> frozenset[str]:
    """Read a list of words, one a line, case-folded.

    Raises:
        InputError: The file cannot be read, has no word, or has a line of several.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a list of words: {error}") from None
    words = [line.strip().casefold() for line in lines if line.strip()]
    for number, line in enumerate(lines, 1):
        if len(line.split()) > 1:
            raise InputError(f"{path}, line {number}: found {line.strip()!r}; expected one word (phrases: mask_spans)")
    if not words:
        raise InputError(f"{path} has no word; expected one a line")
    return frozenset(words)
