"""Long documents: cut off, or read in overlapping passages, each with a vector of its own or all with one."""

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
        tokens: Of a passage or chunk, special ones and prompt included; None: as many as the encoder reads, and a
            quarter of that for `late`.
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
    """Cut n tokens into windows (first, last + 1) of up to `size`, each sharing about `overlap` with the one before.

    Words stay whole where they can: a window ends before a token that starts a word, and the overlap is rounded up
    to whole words. A word longer than a window is cut.

    Args:
        starts_word: For each of the n tokens whether a word starts there.
        size: Most tokens in a window.
        overlap: Tokens to share; less than size.
    """
    n = len(starts_word)
    found = [(0, min(size, n))]
    while found[-1][1] < n:
        first, last = found[-1]
        whole = _word_start(starts_word, last, first + overlap + 1)
        found[-1] = (first, whole)
        begin = _word_start(starts_word, max(whole - overlap, first + 1), first + 1)
        found.append((begin, min(begin + size, n)))
    return found


def _word_start(starts_word: Sequence[bool], token: int, lowest: int) -> int:
    """The last token up to `token`, but not below `lowest`, that starts a word; `token` itself if there is none."""
    return next((place for place in range(token, lowest - 1, -1) if starts_word[place]), token)


def room_and_overlap(tokens: int, special: int, overlap: int | None, limit: int) -> tuple[int, int]:
    """How many tokens of text fit in a passage beside `special` ones (markers and prompt), and how many are shared.

    Raises:
        InputError: A passage is longer than the encoder reads, or the overlap leaves no room to go forward.
    """
    if tokens > limit:
        raise InputError(f"a passage of {tokens} tokens is longer than the encoder reads; expected at most {limit}")
    room = tokens - special
    shared = max(room // 8, 0) if overlap is None else overlap
    if shared >= room:
        raise InputError(f"overlap is {shared} of {room} tokens of text in a passage; expected fewer")
    return room, shared
