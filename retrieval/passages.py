"""Long documents: cut off, or read in overlapping passages, each with a vector of its own or all with one."""

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from indexes.errors import InputError

STRATEGIES = ("truncate", "passages", "mean", "late")


@dataclass(frozen=True)
class LongDocuments:
    """What happens to documents that are longer than the encoder reads.

    | strategy | vectors | use it |
    |---|---|---|
    | truncate | one a document, of its beginning; the cut documents are counted | when beginnings tell enough |
    | passages | one a passage; a document scores what its best passage scores | to find places in long texts |
    | mean | one a document: the mean of its passages' vectors | to compare long texts as wholes |
    | late | one a chunk, pooled from tokens that have seen the whole window | where chunks need their context |

    Late chunking: Günther et al., arXiv:2409.04701; windows of max_length tokens, overlapping where the document is
    longer ("long late chunking" there). It needs mean pooling.

    Args:
        strategy: One of the four.
        tokens: Of a passage, special ones and prompt included; None: as many as the encoder reads. For `late`: of a
            chunk, text alone; None: a quarter of what the encoder reads.
        overlap: Tokens that a passage (`late`: a window) shares with the one before; None: an eighth of it.
    """

    strategy: str = "truncate"
    tokens: int | None = None
    overlap: int | None = None

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise InputError(f"long documents are {self.strategy!r}; expected one of {', '.join(STRATEGIES)}")
        if self.tokens is not None and self.tokens < 8:
            raise InputError(f"a passage of {self.tokens} tokens is too short; expected at least 8")
        if self.overlap is not None and self.overlap < 0:
            raise InputError(f"overlap is {self.overlap}; expected 0 or more")

    @property
    def fields(self) -> dict[str, Any]:
        """What a vectors folder records of it: nothing of what plays no part."""
        if self.strategy == "truncate":
            return {"long_documents": "truncate"}
        return {"long_documents": self.strategy, "passage_tokens": self.tokens, "overlap": self.overlap}


def windows(starts_word: Sequence[bool], size: int, overlap: int) -> list[tuple[int, int]]:
    """Cut n tokens into windows (first, last + 1) of up to `size`, each sharing `overlap` with the one before.

    A word is cut only if it is longer than a window. So the overlap is rounded up to whole words, and is less than
    asked for only where the word that follows would not fit beside it.

    Args:
        starts_word: For each of the n tokens whether a word starts there.
        size: Most tokens in a window.
        overlap: Tokens to share; less than size.
    """
    cuts = _cuts(starts_word, size)
    found: list[tuple[int, int]] = []
    first = 0
    while True:
        place = bisect_right(cuts, first + size) - 1
        found.append((first, cuts[place]))
        if cuts[place] == len(starts_word):
            return found
        sharing = bisect_right(cuts, max(cuts[place] - overlap, 0)) - 1
        fitting = bisect_left(cuts, cuts[place + 1] - size)  # beside the word that follows, and so beyond first
        first = cuts[max(sharing, fitting)]


def _cuts(starts_word: Sequence[bool], size: int) -> list[int]:
    """Where a window may begin or end: between words, and anywhere in a word longer than a window."""
    starts = [place for place, is_start in enumerate(starts_word) if is_start and place > 0]
    words = itertools.pairwise([0, *starts, len(starts_word)])
    inside = (range(begin, end) if end - begin > size else (begin,) for begin, end in words)
    return [*itertools.chain.from_iterable(inside), len(starts_word)]


def room_and_overlap(tokens: int, special: int, overlap: int | None, limit: int) -> tuple[int, int]:
    """How many tokens of text fit in a passage beside `special` ones (markers and prompt), and how many are shared.

    Raises:
        InputError: A passage is longer than the encoder reads, has no room for text, or the overlap leaves no room to
            go forward.
    """
    if tokens > limit:
        raise InputError(f"a passage of {tokens} tokens is longer than the encoder reads; expected at most {limit}")
    room = tokens - special
    if room < 1:
        raise InputError(f"a passage of {tokens} tokens has no room for text beside {special} of prompt and markers")
    shared = room // 8 if overlap is None else overlap
    if shared >= room:
        raise InputError(f"overlap is {shared} of {room} tokens of text in a passage; expected fewer")
    return room, shared
