"""Texts to terms for BM25: lower case, words of two letters or more, English stop words out, stems; bigrams for CJK."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from indexes.errors import InputError

# Lucene's English stop words, the list behind every published BM25 figure.
_STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they "
    "this to was will with".split()
)
_WORD = re.compile(r"\b\w\w+\b")

CJK = "+cjk"
"""What the name of an analyzer ends in that reads Chinese, Japanese and Korean script."""

_IDEOGRAPHS = (
    "\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
)
_KANA = "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
_HANGUL = "\u1100-\u11ff\u3131-\u318e\ua960-\ua97c\uac00-\ud7a3\ud7b0-\ud7fb"
_SCRIPT = _IDEOGRAPHS + _KANA + _HANGUL
_STRETCH = re.compile(f"[{_SCRIPT}]+")
# Half and full width letters too, and the marks that make が of か.
_TO_NORMALIZE = re.compile(f"[{_SCRIPT}\u3099\u309a\uff01-\uffdc]+")


class Analyzer:
    """Turns texts into terms; the same one must serve documents and queries, so an index keeps its name.

    With `+cjk`, every stretch of Chinese, Japanese or Korean script, in whatever language, becomes its overlapping
    pairs of characters (京都市: 京都, 都市; a character alone is itself), as in Lucene's CJKAnalyzer: these scripts put
    no spaces between words, so that a whole clause would be one word. Letters of half and full width become the usual
    ones. Texts without such characters have the same terms with `+cjk` and without.

    Args:
        name: A Snowball language such as `english` or `german`, or `none`, which keeps every word as it is; with
            `+cjk` behind it. Stop words are removed for English only.

    Raises:
        InputError: Snowball does not know the language.

    Source: Lucene's CJKBigramFilter and CJKWidthFilter (org.apache.lucene.analysis.cjk).
    """

    def __init__(self, name: str = f"english{CJK}") -> None:
        import Stemmer

        language = name.removesuffix(CJK)
        if language != "none" and language not in Stemmer.algorithms():
            known = ", ".join(["none", *Stemmer.algorithms()])
            raise InputError(f"no stemmer for language {language!r}; expected one of: {known}")
        self.name = name
        self.language = language
        self._reads_cjk = name.endswith(CJK)
        self._stemmer: Any = None if language == "none" else Stemmer.Stemmer(language)

    def terms(self, text: str) -> Sequence[str]:
        """The terms of one text, repeated as often as they occur: words in their order, then pairs of characters."""
        if not self._reads_cjk or text.isascii() or not _TO_NORMALIZE.search(text):
            return self._words(text)
        text = _TO_NORMALIZE.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
        pairs = [term for found in _STRETCH.finditer(text) for term in bigrams(found[0])]
        return [*self._words(_STRETCH.sub(" ", text)), *pairs]

    def _words(self, text: str) -> Sequence[str]:
        words = _WORD.findall(text.lower())
        if self.language == "english":
            words = [word for word in words if word not in _STOP_WORDS]
        return self._stemmer.stemWords(words) if self._stemmer else words


def usual_analyzer(language: str | None = None) -> Analyzer:
    """What new indexes are made by: a language's (None: English), with pairs of characters for CJK."""
    return Analyzer((language or "english").removesuffix(CJK) + CJK)


def bigrams(text: str) -> list[str]:
    """Overlapping pairs of characters; a character alone is a term itself."""
    return [text[place : place + 2] for place in range(max(len(text) - 1, 1))]
