"""Documents a second that cleaning takes, what it finds in test collections, and how well it finds planted duplicates.

Speeds are medians of three passes over SciFact in memory. Planted: copies of its documents with words replaced, each
with the Jaccard that it has; the share found beside the share that `chance_found` promises. At size: documents of four
to eight sentences drawn from SciFact, so that many share sentences.

    python -m benchmarks.pretraining.cleaning
"""

import random
import re
import resource
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from benchmarks.setting import save, scifact
from pretraining.cleaning import Cleaner, CleaningOptions
from pretraining.contamination import TestQueries, read_test_queries
from pretraining.duplicates import SHINGLE, NearDuplicates, chance_found
from retrieval.documents import Document, read_documents
from retrieval.shingles import normalised

COLLECTIONS = ("scifact", "cranfield", "cisi", "cacm", "npl")
MANY = 200_000


def speed(documents: Sequence[Document], options: CleaningOptions, queries: TestQueries | None) -> int:
    def once() -> float:
        start = time.perf_counter()
        sum(1 for _ in Cleaner(options, queries).clean("", documents))
        return len(documents) / (time.perf_counter() - start)

    return round(median(once() for _ in range(3)))


def speeds(documents: Sequence[Document], queries: TestQueries) -> dict[str, Any]:
    words = sum(normalised(document.content).count(" ") + 1 for document in documents) / len(documents)
    return {
        "words a document": round(words),
        "exact, documents/s": speed(documents, CleaningOptions("exact"), None),
        "near, documents/s": speed(documents, CleaningOptions("near"), None),
        f"{len(queries):,} queries, documents/s": speed(documents, CleaningOptions(), queries),
        "all, documents/s": speed(documents, CleaningOptions("near"), queries),
    }


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[start : start + SHINGLE]) for start in range(max(1, len(words) - SHINGLE + 1))}


def planted(documents: Sequence[Document]) -> list[dict[str, Any]]:
    """Copies of all documents, by their Jaccard with the original."""
    chance = random.Random(0)
    texts = [normalised(document.content) for document in documents]
    vocabulary = sorted({word for text in texts for word in text.split()})
    truth, found = [], []
    for share in (0.005, 0.01, 0.02, 0.03, 0.04, 0.06):
        copies = [
            " ".join(chance.choice(vocabulary) if chance.random() < share else word for word in text.split())
            for text in texts
        ]
        for original, copy in zip(map(shingles, texts), map(shingles, copies), strict=True):
            truth.append(len(original & copy) / len(original | copy))
        fresh = NearDuplicates(0.8)  # the copies of one share are not to find those of another
        fresh.add(texts)
        found += fresh.add(copies).tolist()
    bins = np.minimum((np.array(truth) * 20 + 1e-9).astype(int), 19)
    return [
        {
            "jaccard": f"{one / 20:.2f} to {(one + 1) / 20:.2f}",
            "pairs": int((bins == one).sum()),
            "found": round(float(np.mean(np.array(found)[bins == one])), 4),
            "promised": round(float(np.mean([chance_found(truth[at], 0.8) for at in np.flatnonzero(bins == one)])), 4),
        }
        for one in range(10, 20)
    ]


def at_size(documents: Sequence[Document]) -> dict[str, Any]:
    chance = random.Random(0)
    sentences = [one for item in documents for one in re.split(r"(?<=\.) ", item.text) if len(one.split()) > 4]
    many = (
        Document(str(number), " ".join(chance.choices(sentences, k=chance.randint(4, 8)))) for number in range(MANY)
    )
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    cleaner = Cleaner(CleaningOptions("near"))
    kept = sum(1 for _ in cleaner.clean("", many))
    seconds = time.perf_counter() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "documents": MANY,
        "kept": kept,
        "documents/s, making them included": round(MANY / seconds),
        "growth of the peak, bytes a kept document": round(1024 * grown / kept),
    }


def contents(name: str) -> dict[str, Any]:
    folder = scifact().parent / name
    queries = TestQueries(read_test_queries(folder))
    cleaner = Cleaner(CleaningOptions("near"), queries)
    sum(1 for _ in cleaner.clean(name, read_documents(folder)))
    return {"queries": len(queries), **cleaner.removed[0]}


def main() -> None:
    documents = list(read_documents(scifact()))
    queries = TestQueries(read_test_queries(scifact()))
    size = at_size(documents)  # first, while nothing else has taken memory
    result = {
        "speeds": speeds(documents, queries),
        "planted": planted(documents),
        "at size": size,
        "collections": {name: contents(name) for name in COLLECTIONS},
    }
    save(__file__, result)


if __name__ == "__main__":
    main()
