"""Numbers in, numbers out: vectors folders, exact and FAISS search, BM25 over terms, index folders.

Knows arrays, row numbers, ids and files; never models, tokenizers or relevance judgements.
Letters in shapes: q queries, n documents, d dim, k hits.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from indexes.efforts import Effort
    from indexes.errors import InputError, ShardLost
    from indexes.exact import search_exact
    from indexes.hits import Hits, Within
    from indexes.index import Index
    from indexes.inverted import LexicalIndex
    from indexes.lexical import Impacts, Lexical
    from indexes.operating_points import Goal, Point
    from indexes.reader import Reader, Stored
    from indexes.segments import Entry
    from indexes.shards import ShardedIndex
    from indexes.terms import TermStore
    from indexes.transfer import export_vectors, merge_vectors, save_vectors
    from indexes.tuned import Tuned
    from indexes.vectors import VectorStore

__all__ = [
    "Effort",
    "Entry",
    "Goal",
    "Hits",
    "Impacts",
    "Index",
    "InputError",
    "Lexical",
    "LexicalIndex",
    "Point",
    "Reader",
    "ShardLost",
    "ShardedIndex",
    "Stored",
    "TermStore",
    "Tuned",
    "VectorStore",
    "Within",
    "export_vectors",
    "merge_vectors",
    "save_vectors",
    "search_exact",
]

_HOMES = {
    "Effort": "efforts",
    "Entry": "segments",
    "Goal": "operating_points",
    "Hits": "hits",
    "Impacts": "lexical",
    "Index": "index",
    "InputError": "errors",
    "Lexical": "lexical",
    "LexicalIndex": "inverted",
    "Point": "operating_points",
    "Reader": "reader",
    "ShardLost": "errors",
    "ShardedIndex": "shards",
    "Stored": "reader",
    "TermStore": "terms",
    "Tuned": "tuned",
    "VectorStore": "vectors",
    "Within": "hits",
    "export_vectors": "transfer",
    "merge_vectors": "transfer",
    "save_vectors": "transfer",
    "search_exact": "exact",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"indexes.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
