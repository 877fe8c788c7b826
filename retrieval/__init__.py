"""Text in, hits out: documents, encoders, corpus encoding, retrievers, fusion, and the command line.

Knows text and query–document pairs; never relevance judgements or pretraining.
Letters in shapes: b batch, t tokens, d dim, q queries, n documents, k hits.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.analyzer import Analyzer
    from retrieval.building import add_to_index, build_index
    from retrieval.corpora import Corpus
    from retrieval.documents import Document, read_documents
    from retrieval.encoder import Encoder
    from retrieval.encoding import encode_corpus
    from retrieval.examples import Candidate, Example, read_examples, write_examples
    from retrieval.finetuning import finetune
    from retrieval.greedy import greedy_soup
    from retrieval.lexical_retriever import LexicalRetriever, build_lexical
    from retrieval.mining import MineResult, mine
    from retrieval.pairs import Pair, read_pairs
    from retrieval.passages import LongDocuments
    from retrieval.ray_runner import RayActors
    from retrieval.reranker import Reranked, Reranker
    from retrieval.retriever import Hit, Retriever
    from retrieval.runners import Processes, ThisProcess
    from retrieval.soup import interpolate, make_soup
    from retrieval.sparse import SparseEncoder

__all__ = [
    "Analyzer",
    "Candidate",
    "Corpus",
    "Document",
    "Encoder",
    "Example",
    "Hit",
    "LexicalRetriever",
    "LongDocuments",
    "MineResult",
    "Pair",
    "Processes",
    "RayActors",
    "Reranked",
    "Reranker",
    "Retriever",
    "SparseEncoder",
    "ThisProcess",
    "add_to_index",
    "build_index",
    "build_lexical",
    "encode_corpus",
    "finetune",
    "greedy_soup",
    "interpolate",
    "make_soup",
    "mine",
    "read_documents",
    "read_examples",
    "read_pairs",
    "write_examples",
]

_HOMES = {
    "Analyzer": "analyzer",
    "Candidate": "examples",
    "Corpus": "corpora",
    "Document": "documents",
    "Encoder": "encoder",
    "Example": "examples",
    "Hit": "retriever",
    "LexicalRetriever": "lexical_retriever",
    "LongDocuments": "passages",
    "MineResult": "mining",
    "Pair": "pairs",
    "Processes": "runners",
    "RayActors": "ray_runner",
    "Reranked": "reranker",
    "Reranker": "reranker",
    "Retriever": "retriever",
    "SparseEncoder": "sparse",
    "ThisProcess": "runners",
    "add_to_index": "building",
    "build_index": "building",
    "build_lexical": "lexical_retriever",
    "encode_corpus": "encoding",
    "finetune": "finetuning",
    "greedy_soup": "greedy",
    "interpolate": "soup",
    "make_soup": "soup",
    "mine": "mining",
    "read_documents": "documents",
    "read_examples": "examples",
    "read_pairs": "pairs",
    "write_examples": "examples",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"retrieval.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
