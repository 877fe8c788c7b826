"""Qrels: the judgements of a test collection, and their files."""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from indexes.errors import InputError
from retrieval.lines import text_lines

Qrels = dict[str, dict[str, int]]
"""Query id to document id to grade."""

TAB_COLUMNS = "three columns separated by tabs: query id, document id, whole-number grade"
_PACKED = ("", ".gz", ".zst")


class Judgement(NamedTuple):
    """One judgement as a source gives it."""

    place: str
    """Where it was read, for messages."""
    query: str
    document: str
    grade: str | int | float


def qrels_files(folder: Path) -> dict[str, Path]:
    """The judgements files of a BEIR folder, plain, gzip or zstd, by split."""
    found: dict[str, Path] = {}
    for packed in _PACKED:
        for path in sorted(folder.glob(f"qrels/*.tsv{packed}")):
            found.setdefault(path.name.removesuffix(f".tsv{packed}"), path)
    return dict(sorted(found.items()))


def gather_qrels(
    judgements: Iterable[Judgement], queries: Mapping[str, str], place: str, expected: str
) -> tuple[Qrels, list[str]]:
    """Gather judgements and say what is odd about them; those of unknown queries are left out.

    A grade that is no whole number is rounded, halves upwards, and counted in a notice.

    Args:
        judgements: In any order.
        queries: All queries there are.
        place: Where the judgements come from, for messages.
        expected: What they should be, for messages.

    Raises:
        InputError: A grade is no number, a pair has two grades, or nothing is left.
    """
    qrels: Qrels = {}
    unknown, repeated, rounded, example = 0, 0, 0, ""
    first: Judgement | None = None
    for one in judgements:
        first = first or one
        value = _number(one.grade)
        if value is None:
            raise InputError(f"{one.place}: grade {one.grade!r}; expected a whole number")
        if one.query not in queries:
            unknown += 1
            continue
        grade = math.floor(value + 0.5)
        if grade != value:
            example = example or f"{one.grade} became {grade}"
            rounded += 1
        grades = qrels.setdefault(one.query, {})
        if grades.get(one.document, grade) != grade:
            raise InputError(
                f"{one.place}: document {one.document!r} of query {one.query!r} has grade {grade} here and "
                f"{grades[one.document]} before; expected one grade"
            )
        repeated += one.document in grades
        grades[one.document] = grade
    if not qrels:
        if first is None:
            raise InputError(f"{place}: no judgement of a query; expected {expected}")
        raise InputError(
            f"{first.place}: no judgement of a query in the queries file: they are of queries like {first.query!r}, "
            f"not {next(iter(queries), 'any')!r}; expected {expected}"
        )
    return qrels, _notices(unknown, repeated, rounded, example)


def _notices(unknown: int, repeated: int, rounded: int, example: str) -> list[str]:
    notices = []
    if unknown:
        notices.append(f"{unknown:,} judgements are of queries that the queries file lacks; they were left out.")
    if repeated:
        notices.append(f"{repeated:,} judgements occur again with the same grade; they were counted once.")
    if rounded:
        notices.append(f"{rounded:,} grades are no whole numbers; they were rounded ({example}).")
    return notices


def tab_judgements(path: Path, queries: Mapping[str, str]) -> Iterator[Judgement]:
    """Read a file of three columns, with or without a header line.

    Raises:
        InputError: A line is malformed.
    """
    for number, line in text_lines(path, TAB_COLUMNS):
        place = f"{path}, line {number}"
        columns = [column.strip() for column in line.strip("\r\n").split("\t")]
        if len(columns) != 3:
            raise InputError(f"{place}: found {len(columns)} columns in {line.strip()[:60]!r}; expected {TAB_COLUMNS}")
        if number == 1 and columns[0] not in queries and _number(columns[2]) is None:
            continue  # the header line
        yield Judgement(place, *columns)


def _number(grade: str | int | float) -> float | None:
    """The number that a grade stands for (`2`, `-1`, `0.5`), or None if it is none that a grade can be."""
    try:
        value = float(grade)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and abs(value) < 2**31 - 1 else None
