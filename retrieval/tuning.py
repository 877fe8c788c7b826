"""Tuning an index by texts: users' queries, or sentences of its own documents where there are none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from indexes.errors import InputError
from indexes.operating_points import DEFAULT_GOAL, Goal
from indexes.reader import Reader
from indexes.tuned import Tuned
from retrieval.lines import read_lines, text_lines
from retrieval.retriever import Retriever

_SENTENCES = 1000
_WORDS = (5, 25)
_ENDS = (".", "!", "?", "。", "\n")


def tune_retriever(
    retriever: Retriever, queries: Sequence[str] | None = None, goal: Goal = DEFAULT_GOAL, **how: Any
) -> Tuned:
    """Tune the index of a retriever; see `Index.tune`.

    Args:
        retriever: It encodes the queries.
        queries: Such as users ask, at least 50, better 500. None: sentences of the documents, which stand in for
            them; what was measured says so.
        goal: What is to be met.
        how: `factories` and `report` of `Index.tune`.

    Raises:
        InputError: What `Index.tune` refuses, or there are neither queries nor texts.
    """
    source = "held out"
    if queries is None:
        queries, source = sentences(retriever.index.reader), "sentences of the documents, in place of queries"
    return retriever.index.tune(retriever.encoder.encode_queries(list(queries)), goal, source=source, **how)


def read_queries(path: Path) -> list[str]:
    """The queries of a file: JSON lines with a `text` (BEIR's queries.jsonl), or one query a line; plain, .gz or .zst.

    Raises:
        InputError: It is not readable, or a line has no text.
    """
    if ".jsonl" not in path.name:
        return [line.strip() for _, line in text_lines(path, "a query a line")]
    queries = []
    for number, record in read_lines(path):
        text = record.get("text")
        if not isinstance(text, str) or not text.strip():
            raise InputError(f'{path}, line {number}: has no "text"; expected a query, such as {{"text": "…"}}')
        queries.append(text)
    return queries


def sentences(reader: Reader, count: int = _SENTENCES) -> list[str]:
    """So many sentences of as many documents, drawn by chance but the same each time; fewer where there are fewer.

    A sentence asks for the document that it is from and for others like it. It lies nearer to them than users' queries
    do (a document of one sentence is asked for by itself), so that what was measured is more than users will find.

    Raises:
        InputError: The index keeps no texts.
    """
    rows = np.arange(reader.rows) if reader.live is None else np.flatnonzero(reader.live)
    chance = np.random.default_rng(0)
    found = []
    for row in chance.permutation(rows).tolist():
        text = reader.text(row)
        if text is None:
            raise InputError(f"{reader.folder} keeps no texts to make queries of; pass --queries")
        if sentence := _sentence(text, chance):
            found.append(sentence)
        if len(found) == count:
            break
    return found


def _sentence(text: str, chance: np.random.Generator) -> str | None:
    """One of the sentences of a text that are neither very short nor very long; None if it has none."""
    for end in _ENDS[1:]:
        text = text.replace(end, _ENDS[0])
    least, most = _WORDS
    fit = [one.strip() for one in text.split(_ENDS[0]) if least <= len(one.split()) <= most]
    return fit[int(chance.integers(len(fit)))] if fit else None
