"""Qrels: the judgements of a test collection, and their files."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from indexes.errors import InputError

Qrels = dict[str, dict[str, int]]
"""Query id to document id to grade."""

_COLUMNS = "three columns separated by tabs: query id, document id, whole-number grade"


def qrels_file(folder: Path, split: str) -> Path:
    """The judgements file of one split of a BEIR folder.

    Raises:
        InputError: There is no such split; the message names those there are.
    """
    splits = sorted(path.stem for path in folder.glob("qrels/*.tsv"))
    if not splits:
        raise InputError(f"{folder}: no qrels/*.tsv; expected qrels/{split}.tsv in a BEIR folder")
    if split not in splits:
        raise InputError(f"{folder}: no split {split!r}; there are {', '.join(splits)}")
    return folder / "qrels" / f"{split}.tsv"


def read_qrels(path: Path, queries: Mapping[str, str]) -> tuple[Qrels, list[str]]:
    """Read judgements and say what is odd about them; those of unknown queries are left out.

    Raises:
        InputError: A line is malformed, a pair has two grades, or nothing is left.
    """
    qrels: Qrels = {}
    unknown, repeated = 0, 0
    for place, query, document, grade in _judgements(path, queries):
        if query not in queries:
            unknown += 1
            continue
        grades = qrels.setdefault(query, {})
        if grades.get(document, grade) != grade:
            raise InputError(
                f"{place}: document {document!r} of query {query!r} has grade {grade} here and "
                f"{grades[document]} before; expected one grade"
            )
        repeated += document in grades
        grades[document] = grade
    if not qrels:
        raise InputError(f"{path}: no judgement of a query in the queries file; expected {_COLUMNS}")
    notices = []
    if unknown:
        notices.append(f"{unknown:,} judgements are of queries that the queries file lacks; they were left out.")
    if repeated:
        notices.append(f"{repeated:,} judgements occur again with the same grade; they were counted once.")
    return qrels, notices


def _judgements(path: Path, queries: Mapping[str, str]) -> Iterator[tuple[str, str, str, int]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                place = f"{path}, line {number}"
                columns = [column.strip() for column in line.strip("\r\n").split("\t")]
                if columns == [""]:
                    continue
                if len(columns) != 3:
                    raise InputError(
                        f"{place}: found {len(columns)} columns in {line.strip()[:60]!r}; expected {_COLUMNS}"
                    )
                grade = _grade(columns[2])
                if grade is not None:
                    yield place, columns[0], columns[1], grade
                elif number > 1 or columns[0] in queries:  # otherwise it is the header line
                    raise InputError(f"{place}: grade {columns[2]!r}; expected a whole number")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); expected {_COLUMNS}") from None


def _grade(text: str) -> int | None:
    """The whole number that a grade stands for (`2`, `-1`, `1.0`), or None if it is not one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if math.isfinite(value) and value.is_integer() and abs(value) < 2**31 else None
