"""The texts by which models are quantised to int8 and backends are tried: written for this, the same everywhere."""

import functools
import hashlib
from pathlib import Path

_PASSAGES = Path(__file__).with_name("calibration.txt")
"""100 short passages, one a line: research, medicine, law, finance, news, reference, code, forums, queries, six other
languages. Own prose, from no test collection."""
_TEXTS = 128
_JOINED = (1, 12, 3, 6, 5, 8, 2, 4)
"""How many passages the first, second … text has: from a query to some 600 tokens."""
_STEP = 37  # shares no factor with 100, so that texts begin all over the passages


@functools.cache
def calibration_texts() -> tuple[str, ...]:
    """128 texts of 4 to 450 words, made from the passages by a fixed rule."""
    passages = _PASSAGES.read_text(encoding="utf-8").splitlines()
    starts = [number * _STEP for number in range(_TEXTS)]
    spans = [range(start, start + _JOINED[number % len(_JOINED)]) for number, start in enumerate(starts)]
    return tuple(" ".join(passages[place % len(passages)] for place in span) for span in spans)


@functools.cache
def calibration_digest() -> str:
    """SHA-256 of the texts, as 64 hex digits: part of an int8 encoder's fingerprint."""
    return hashlib.sha256("\0".join(calibration_texts()).encode()).hexdigest()
