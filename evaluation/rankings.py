"""Rankings: the hits of a query in the order in which measures read them, and runs made of them."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InputError

# Rounds to the largest float32, as its own nine digits 3.40282347e+38 do, which are a little above it.
LARGEST = 3.4028235e38


class Ranking(NamedTuple):
    """The hits of one query in trec_eval's order: score descending, ties by document id descending.

    Make one with `make_ranking`, which puts the hits into that order and refuses what no measure could read.
    """

    ids: list[str]  # (k,) document ids, each once
    scores: NDArray[np.float32]  # (k,) finite; trec_eval compares scores as float32


Run = dict[str, Ranking]
"""Query id to ranking; a query without hits may be there with an empty ranking or be absent."""


def make_ranking(ids: Sequence[str], scores: Sequence[float] | NDArray[np.floating], *, place: str) -> Ranking:
    """Put the hits of one query, given in any order, into the order in which measures read them.

    Args:
        ids: (k,) document ids.
        scores: (k,) the higher the better; kept as float32, since trec_eval compares them so.
        place: Where the hits are from, for error messages ("query 'q1'").

    Raises:
        InputError: A document occurs twice, or a score is not a finite float32.

    Source:
        trec_eval 9, form_res_rels.c: scores descending, then strcmp of the ids descending. Comparing Python
        strings (code points) gives the order of strcmp over UTF-8.
    """
    wide = np.asarray(scores, dtype=np.float64)  # (k,)
    if len(ids) != len(wide):
        raise InputError(f"{place}: {len(ids):,} documents but {len(wide):,} scores; expected one score a document")
    if len(set(ids)) != len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise InputError(f"{place}: document {twice!r} occurs twice; a ranking holds every document once")
    unusable = np.flatnonzero(~(np.abs(wide) <= LARGEST))
    if len(unusable):
        found = wide[unusable[0]]
        raise InputError(f"{place}: document {ids[unusable[0]]!r} has score {found}; expected a finite float32")
    narrow = wide.astype(np.float32)
    if (narrow[1:] < narrow[:-1]).all():  # most systems give their hits in this order already
        return Ranking(list(ids), narrow)
    order = np.argsort(-narrow, kind="stable")
    ordered = [ids[row] for row in order.tolist()]
    return Ranking(_break_ties(ordered, narrow[order]), narrow[order])


def _break_ties(ids: list[str], scores: NDArray[np.float32]) -> list[str]:
    """Sort the ids inside each stretch of equal scores, descending; scores are descending already."""
    if not (scores[1:] == scores[:-1]).any():
        return ids
    starts = np.flatnonzero(np.append(True, scores[1:] != scores[:-1]))
    for start, end in zip(starts, np.append(starts[1:], len(ids)), strict=True):
        if end - start > 1:
            ids[start:end] = sorted(ids[start:end], reverse=True)
    return ids
