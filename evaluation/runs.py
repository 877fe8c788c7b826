"""Runs: what a system found for every query, and TREC run files."""

import contextlib
import gzip
import io
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InputError
from retrieval.lines import text_lines

# Rounds to the largest float32, as its own nine digits 3.40282347e+38 do, which are a little above it.
_LARGEST = 3.4028235e38
_COLUMNS = "six columns: query Q0 document rank score tag"


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
    unusable = np.flatnonzero(~(np.abs(wide) <= _LARGEST))
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


def read_run(path: str | Path) -> Run:
    """Read a TREC run file, plain or `.gz`: query, Q0, document, rank, score, tag, separated by white space.

    The columns Q0, rank and tag are not read, as in trec_eval: the scores give the order.

    Raises:
        InputError: The file is missing, empty or not text, or a line is malformed, has a score that is not a
            finite float32, or repeats a document of its query; the message gives file and line.
    """
    path = Path(path)
    hits: dict[str, dict[str, float]] = {}
    for number, line in text_lines(path, "a TREC run file"):
        query, document, score = _parse(line, f"{path}, line {number}")
        found = hits.setdefault(query, {})
        if document in found:
            raise InputError(f"{path}, line {number}: document {document!r} occurs twice for query {query!r}; keep one")
        found[document] = score
    if not hits:
        raise InputError(f"{path}: holds no hits; expected lines of {_COLUMNS}")
    return {
        query: make_ranking(list(found), list(found.values()), place=f"{path}, query {query!r}")
        for query, found in hits.items()
    }


def _parse(line: str, place: str) -> tuple[str, str, float]:
    columns = line.split()
    if len(columns) != 6:
        raise InputError(f"{place}: found {len(columns)} columns in {line.strip()[:60]!r}; expected {_COLUMNS}")
    try:
        score = float(columns[4])
    except ValueError:
        score = math.nan
    if not abs(score) <= _LARGEST:  # NaN compares false with everything
        raise InputError(f"{place}: score {columns[4]!r}; expected a finite float32")
    return columns[0], columns[2], score


def write_run(run: Mapping[str, Ranking], path: str | Path, *, tag: str = "retrokit") -> None:
    """Write a TREC run file (gzip if the name ends in `.gz`), wholly or not at all.

    Nine significant digits are enough to give every float32 back, so a run read back has the same measures.

    Args:
        run: The run; queries are written in its order, hits in trec_eval's.
        path: The file; one that is there is replaced.
        tag: The system's name in the last column; white space in it becomes `_`.

    Raises:
        InputError: An id is empty or holds white space, so that the columns could not be told apart.
    """
    path = Path(path)
    name = "_".join(tag.split()) or "retrokit"
    with _replaced(path) as file:
        for query, ranking in run.items():
            _refuse_spaces([query, *ranking.ids], f"{path}, query {query!r}")
            for rank, (document, score) in enumerate(zip(ranking.ids, ranking.scores.tolist(), strict=True), start=1):
                file.write(f"{query} Q0 {document} {rank} {score:.9g} {name}\n")


def _refuse_spaces(ids: Iterable[str], place: str) -> None:
    for name in ids:
        if name.split() != [name]:
            raise InputError(f"{place}: id {name!r} is empty or holds white space; run files need single words")


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[TextIO]:
    """Give a text file to fill under a temporary name; it replaces `path` when the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(temporary.open("wb"))
            if path.suffix == ".gz":
                # No time and no name in the header: the same run gives the same bytes.
                packed = stack.enter_context(gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0))
                yield stack.enter_context(io.TextIOWrapper(packed, encoding="utf-8", newline="\n"))
            else:
                yield stack.enter_context(io.TextIOWrapper(raw, encoding="utf-8", newline="\n"))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
