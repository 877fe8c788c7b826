"""Texts to terms for BM25: lower case, words of two letters or more, English stop words out, Snowball stems."""

import re
from collections.abc import Sequence
from typing import Any

from indexes.errors import InputError

# Lucene's English stop words, the list behind every published BM25 figure.
_STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they "
    "this to was will with".split()
)
_WORD = re.compile(r"\b\w\w+\b")


class Analyzer:
    """Turns texts into terms; the same one must serve documents and queries.

    Args:
        language: A Snowball language such as `english` or `german`; `none` keeps every word as it is. Stop words
            are removed for English only.

    Raises:
        InputError: Snowball does not know the language.
    """

    def __init__(self, language: str = "english") -> None:
        import Stemmer

        if language != "none" and language not in Stemmer.algorithms():
            known = ", ".join(["none", *Stemmer.algorithms()])
            raise InputError(f"no stemmer for language {language!r}; expected one of: {known}")
        self.language = language
        self._stemmer: Any = None if language == "none" else Stemmer.Stemmer(language)

    def terms(self, text: str) -> Sequence[str]:
        """The terms of one text, in order, repeated as often as they occur."""
        words = _WORD.findall(text.lower())
        if self.language == "english":
            words = [word for word in words if word not in _STOP_WORDS]
        return self._stemmer.stemWords(words) if self._stemmer else words
