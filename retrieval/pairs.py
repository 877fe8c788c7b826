"""Pairs: a query and the text of a document that answers it, read from a file or made by a sampler."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from indexes.errors import InputError
from retrieval.documents import Document, text_field
from retrieval.lines import read_lines


class Pair(NamedTuple):
    """One training example of a retriever."""

    query: str
    text: str
    """What the query asks for: the document's content, or what a sampler left of it."""
    document: str
    """The document's id: two pairs of one document are never each other's negatives."""


def read_pairs(path: Path, documents: Mapping[str, Document]) -> Iterator[Pair]:
    """Read JSON lines of `query` (text) and `document` (the id of one of the documents).

    Raises:
        InputError: A line is malformed, names an unknown document, or there are none; with file and line.
    """
    number = 0
    for number, record in read_lines(path):
        place = f"{path}, line {number}"
        query, name = text_field(record, ("query",), place), text_field(record, ("document",), place)
        if name not in documents:
            raise InputError(f"{place}: document {name!r} is not in the corpus ({len(documents):,} documents)")
        if not query.strip():
            raise InputError(f"{place}: the query is empty; expected text")
        yield Pair(query, documents[name].content, name)
    if not number:
        raise InputError(
            f"{path}: no pairs found; expected lines such as {{'query': 'a question', 'document': 'its id'}}"
        )
