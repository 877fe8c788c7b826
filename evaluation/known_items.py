"""Known items: test collections from documents that bring a query of their own, and nobody's judgements.

Every item is a document and a query of which we know that this document answers it: a function's
documentation and its first sentence, say. The document is the query's one relevant document (known-item
search: Azzopardi, de Rijke & Balog, "Building simulated queries for known-item topics", SIGIR 2007).
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from evaluation.qrels import Qrels
from evaluation.testsets import fill_collection, write_lines
from indexes.errors import InputError
from indexes.manifest import new_folder, seal
from retrieval.documents import Document


class KnownItem(Protocol):
    """A document and a query that it answers."""

    @property
    def document(self) -> Document:
        """The document that is looked for."""

    @property
    def query(self) -> str:
        """What somebody would ask who looks for it."""


@dataclass(frozen=True)
class KnownItems:
    """A drawn sample of known items, its queries parted into splits."""

    documents: list[Document] = field(repr=False)
    """The corpus, ordered by id."""
    queries: dict[str, str] = field(repr=False)
    """Query id (`q:` and the document's id) to text."""
    qrels: dict[str, Qrels] = field(repr=False)
    """Split ("train", "test", and "dev" where asked for) to its qrels; every query is in one split."""
    seed: int = 0


def split_known_items(
    items: Iterable[KnownItem], *, documents: int, test_queries: int, development_queries: int = 0, seed: int
) -> KnownItems:
    """Draw a sample of known items and part its queries into train, development and test.

    Items are drawn by the SHA-256 of seed and document id, so that neither their order nor the other items
    matter: one more package installed moves only as many items as it brings in. A query that several drawn
    documents share (white space and case aside) has no one answer; its documents stay, the query goes.

    Args:
        items: Known items with unique document ids, read once and never held all together.
        documents: How many to draw.
        test_queries: How many queries go into the test split.
        development_queries: How many go into the split "dev"; all others go into "train".
        seed: Another seed, another sample.

    Raises:
        InputError: There are fewer items than documents asked for or fewer queries than the splits ask for, a
            number is out of range, or a document id occurs twice.
    """
    if documents < 1 or test_queries < 1 or development_queries < 0:
        raise InputError(
            f"asked for {documents:,} documents, {test_queries:,} test queries and {development_queries:,} "
            "development queries; expected at least 1, 1 and 0"
        )
    drawn = heapq.nsmallest(documents, _refuse_repeats(items), key=lambda item: _place(seed, item.document.id))
    if len(drawn) < documents:
        raise InputError(f"{len(drawn):,} known items found, {documents:,} documents asked for; ask for fewer")
    counts = Counter(_plain(item.query) for item in drawn)
    asking = [item for item in drawn if counts[_plain(item.query)] == 1 and item.query.strip()]
    if len(asking) < test_queries + development_queries:
        raise InputError(
            f"{len(asking):,} queries that only one document answers, but "
            f"{test_queries + development_queries:,} asked for in "
            "the test and development splits; ask for fewer of them or for more documents"
        )
    ends = {"test": test_queries, "dev": test_queries + development_queries, "train": len(asking)}
    qrels: dict[str, Qrels] = {}
    start = 0
    for split, end in ends.items():
        if end > start:
            chosen = sorted(item.document.id for item in asking[start:end])
            qrels[split] = {_query_id(name): {name: 1} for name in chosen}
        start = end
    queries = {_query_id(item.document.id): item.query for item in sorted(asking, key=lambda item: item.document.id)}
    corpus = sorted((item.document for item in drawn), key=lambda document: document.id)
    return KnownItems(corpus, queries, qrels, seed)


def write_known_items(folder: str | Path, known_items: KnownItems, *, overwrite: bool = False) -> None:
    """Write a test collection in BEIR layout, wholly or not at all, with the pairs that may be trained on.

    Beside corpus.jsonl, queries.jsonl and qrels/<split>.tsv there is `train-pairs.jsonl`: one line
    `{"query": text, "document": id}` for each query of the train split, and none of any other.

    Raises:
        InputError: The folder exists and may not be overwritten.
    """
    with new_folder(Path(folder), overwrite=overwrite) as new:
        fill_collection(new, known_items.documents, known_items.queries, known_items.qrels)
        pairs = (
            {"query": known_items.queries[query], "document": document}
            for query, grades in known_items.qrels.get("train", {}).items()
            for document in grades
        )
        write_lines(new / "train-pairs.jsonl", pairs)
        seal(new, "test collection", {"splits": list(known_items.qrels), "seed": known_items.seed})


def _refuse_repeats(items: Iterable[KnownItem]) -> Iterator[KnownItem]:
    seen: set[str] = set()
    for item in items:
        if item.document.id in seen:
            raise InputError(f"known item {item.document.id!r} occurs twice; every document needs an id of its own")
        seen.add(item.document.id)
        yield item


def _place(seed: int, document: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{document}".encode("utf-8", "surrogatepass")).digest()


def _plain(query: str) -> str:
    return " ".join(query.casefold().split())


def _query_id(document: str) -> str:
    return f"q:{document}"
