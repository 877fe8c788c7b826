"""Judged queries of a BEIR folder: its queries, the judgements of a split, and the judged documents alone."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from indexes.errors import InputError
from retrieval.documents import ID_FIELDS, Document, read_documents, text_field
from retrieval.examples import SPLIT, Candidate, Example, Line
from retrieval.lines import read_lines, text_lines

_PACKED = ("", ".gz", ".zst")
_COLUMNS = "three columns separated by tabs: query id, document id, score"


class _Judgement(NamedTuple):
    place: str
    document: str
    score: float


def queries_file(folder: Path) -> Path:
    """The queries of a BEIR folder.

    Raises:
        InputError: There are none.
    """
    found = next((path for end in _PACKED if (path := folder / f"queries.jsonl{end}").is_file()), None)
    if found is None:
        raise InputError(f"{folder} has no queries.jsonl; expected a BEIR folder, or a file of examples")
    return found


def judgements_file(folder: Path, split: str | None) -> Path:
    """The judgements of a split (None: `train`).

    Raises:
        InputError: There is no such split; the message names those there are.
    """
    there = {path.name.partition(".tsv")[0]: path for end in _PACKED for path in folder.glob(f"qrels/*.tsv{end}")}
    wanted = split or SPLIT
    if wanted not in there:
        others = ", ".join(f"{folder}#{name}" for name in sorted(there)) or "none"
        raise InputError(f"{folder} has no judgements of the split {wanted!r}; there are: {others}")
    return there[wanted]


def judged_queries(
    folder: Path, split: str | None, documents: Mapping[str, Document] | None, dataset: str, counts: Counter[str]
) -> Iterator[list[Line]]:
    """What is judged of each query, in the order of the judgements; a score above 0 is a positive's.

    Queries of one text are one query: what answers one of them is no negative of another. A document that is judged
    under several of their ids has its highest score.

    Args:
        folder: `queries.jsonl`, `corpus.jsonl` and `qrels/SPLIT.tsv`, plain, gzip or zstd.
        split: None: `train`.
        documents: By id; None: of the folder's corpus, which is read once, those that are judged are kept.
        dataset: What the examples belong to.
        counts: Where to count judgements of queries or documents that are not there, or whose document is empty.

    Raises:
        InputError: A file is missing or a line is malformed, with file and line.
    """
    judged = _judgements(judgements_file(folder, split))
    queries = _queries(queries_file(folder), judged)
    if documents is None:
        wanted = {one.document for name in queries for one in judged[name]}
        documents = {one.id: one for one in read_documents(folder) if one.id in wanted}
    alike: dict[str, list[str]] = {}
    for name, some in judged.items():
        if name in queries:
            alike.setdefault(queries[name], []).append(name)
        else:
            counts["judgements are of queries that the queries file lacks and were left out"] += len(some)
    for query, names in alike.items():
        if len(names) > 1:
            counts["queries have a text that came before and were merged with it"] += len(names) - 1
        lines = []
        for place, document, score in _highest([one for name in names for one in judged[name]], several=len(names) > 1):
            content = documents[document].content if document in documents else None
            if content is None:
                counts["judgements are of documents that the corpus lacks and were left out"] += 1
            elif not content.strip():
                counts["documents are empty and were left out"] += 1
            else:
                one = (Candidate(content, document, score),)
                positives, negatives = (one, ()) if score > 0 else ((), one)
                lines.append(Line(place, Example(query, positives, negatives, dataset)))
        yield lines or [Line("", Example(query, (), (), dataset))]


def _highest(judged: list[_Judgement], *, several: bool) -> list[_Judgement]:
    """Of each document the judgement with the highest score, where queries of several ids are one."""
    if not several:
        return judged  # where one query judges a document twice, differently, that is refused later
    best: dict[str, _Judgement] = {}
    for one in judged:
        if one.document not in best or one.score > best[one.document].score:
            best[one.document] = one
    return list(best.values())


def _judgements(path: Path) -> dict[str, list[_Judgement]]:
    found: dict[str, list[_Judgement]] = {}
    for number, line in text_lines(path, _COLUMNS):
        place = f"{path}, line {number}"
        columns = [column.strip() for column in line.strip("\r\n").split("\t")]
        if len(columns) != 3:
            raise InputError(f"{place}: found {len(columns)} columns in {line.strip()[:60]!r}; expected {_COLUMNS}")
        score = _number(columns[2])
        if score is None:
            if number == 1:
                continue  # the header
            raise InputError(f"{place}: score is {columns[2]!r}; expected a number")
        found.setdefault(columns[0], []).append(_Judgement(place, columns[1], score))
    return found


def _queries(path: Path, wanted: Mapping[str, object]) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, record in read_lines(path):
        place = f"{path}, line {number}"
        name = text_field(record, ID_FIELDS, place)
        if name not in wanted:
            continue
        if name in found:
            raise InputError(f"{place}: query id {name!r} occurs twice; every query needs an id of its own")
        found[name] = text_field(record, ("text",), place)
        if not found[name].strip():
            raise InputError(f"{place}: query {name!r} is empty; expected text")
    return found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
