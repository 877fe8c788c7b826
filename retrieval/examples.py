"""Training examples of retrievers and rerankers: a query, what answers it, and what does not."""

from typing import NamedTuple


class Candidate(NamedTuple):
    """A text that may answer a query."""

    text: str
    id: str | None = None
    score: float | None = None
    """A teacher's, or a graded judgement."""


class Example(NamedTuple):
    """A query with its positives and negatives."""

    query: str
    positives: tuple[Candidate, ...]
    negatives: tuple[Candidate, ...] = ()
    dataset: str = ""
