"""Shingles: texts in a normal form, and the runs of words in them, hashed in whole arrays.

A word is a run of letters or of digits and letters, but each sign of a script without spaces (Han, kana, Thai, Lao,
Burmese, Khmer) is a word of its own.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

_ALONE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[^\W_{_ALONE}]+|[{_ALONE}]")
_CHARACTERS_AT_ONCE = 1 << 20
# Odd numbers without a pattern: the bases of the two polynomials.
_OF_CHARACTERS, _OF_WORDS = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F


def normalised(text: str) -> str:
    r"""Words with one space between them: compatibility forms (NFKC) and case folded, punctuation left out.

    >>> normalised("  The “Fast” FOURIER\n transform, 2nd ed.")
    'the fast fourier transform 2nd ed'
    """
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def shingle_hashes(texts: Sequence[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Hash every run of `size` words; a text of fewer words is one run, one without words has none.

    Args:
        texts: (n) in their normal form.
        size: Words a shingle.

    Returns:
        The hashes of all texts, one after the other, uint64 (s,), the same on every machine; and where each text's
        begin, int64 (n + 1,).
    """
    counts = np.array([text.count(" ") + 1 if text else 0 for text in texts], dtype=np.int64)  # (n,) words
    words = _word_hashes(" ".join(text for text in texts if text))  # (w,)
    ends = np.repeat(np.cumsum(counts), counts)  # (w,) where each word's text ends
    places = np.arange(len(words))
    runs = np.zeros(len(words), dtype=np.uint64)
    for offset in range(min(size, len(words))):
        last = len(words) - offset
        inside = places[:last] + offset < ends[:last]
        runs[:last] += np.where(inside, words[offset:] * _power(_OF_WORDS, offset), np.uint64(0))
    whole = (places + size <= ends) | (places == ends - np.repeat(counts, counts))
    bounds = np.concatenate([[0], np.cumsum(np.maximum(counts - size + 1, np.minimum(counts, 1)))])
    return mixed(runs[whole]), bounds


def mixed(values: np.ndarray) -> np.ndarray:
    """Scatter uint64 values over all of their bits, one to one (splitmix64; Steele et al. 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _word_hashes(text: str) -> np.ndarray:
    """A hash of each word, uint64: a polynomial of its characters, modulo 2^64."""
    parts = [_hashes_of_part(part) for part in _parts(text)] if text else []
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)


def _parts(text: str) -> Iterator[str]:
    """Cut a text at spaces, so that the arrays of characters stay small."""
    start = 0
    while len(text) - start > _CHARACTERS_AT_ONCE:
        end = text.find(" ", start + _CHARACTERS_AT_ONCE)
        if end < 0:
            break
        yield text[start:end]
        start = end + 1
    yield text[start:]


def _hashes_of_part(text: str) -> np.ndarray:
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    spaces = np.flatnonzero(codes == ord(" "))
    starts, ends = np.concatenate([[0], spaces + 1]), np.concatenate([spaces, [len(codes)]])
    # A word's polynomial is a difference of prefix sums, turned back by the power that it starts at.
    steps = np.full(len(codes), _OF_CHARACTERS, dtype=np.uint64)
    steps[0] = 1
    sums = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.cumsum(mixed(codes.astype(np.uint64)) * np.cumprod(steps), out=sums[1:])
    steps[1:] = pow(_OF_CHARACTERS, -1, 1 << 64)
    return mixed((sums[ends] - sums[starts]) * np.cumprod(steps)[starts])


def _power(base: int, exponent: int) -> np.uint64:
    return np.uint64(pow(base, exponent, 1 << 64))
