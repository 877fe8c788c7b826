"""BM25 whose weights are computed when they are asked for, against bm25s, which computes all of them beforehand.

Queries a second, one at a time, k = 10, over documents of 60 words drawn as words are (Zipf), queries of 5 words of
documents. python -m benchmarks.indexes.lexical
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median

import bm25s
import numpy as np
from bm25s.tokenization import Tokenized

from benchmarks.setting import in_turns, save
from indexes.lexical import Lexical
from indexes.postings import Postings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=200_000)
    count = parser.parse_args().documents
    rng = np.random.default_rng(0)
    words = np.minimum(rng.zipf(1.15, size=(count, 60)), 200_000)
    queries = [[str(word) for word in rng.choice(words[row], 5)] for row in rng.integers(0, count, 100)]
    peer = bm25s.BM25(k1=0.9, b=0.4, method="lucene")
    vocabulary = {str(word): number for number, word in enumerate(np.unique(words).tolist())}
    ids = np.searchsorted(np.unique(words), words).tolist()
    peer.index(Tokenized(ids=ids, vocab=vocabulary), create_empty_token=False, show_progress=False)
    with tempfile.TemporaryDirectory() as name:
        Postings.of([str(word) for word in line] for line in words.tolist()).save(Path(name) / "p")
        ours = Lexical([(Postings.open(Path(name) / "p"), None)])

        def theirs() -> None:
            for query in queries:
                scores = peer.get_scores_from_ids(peer.get_tokens_ids(query))
                np.argpartition(-scores, 10)[:10]

        sides = in_turns(5, lambda: [ours.search([query], 10) for query in queries], theirs)
    rate = [round(len(queries) / median(times), 1) for times in sides]
    save(__file__, {"documents": count, "queries/s": rate[0], "bm25s queries/s": rate[1], "ratio": rate[0] / rate[1]})


if __name__ == "__main__":
    main()
