"""Measures of 10,000 queries with 1,000 hits each, beside pytrec_eval: seconds and ratios.

Ids are texts of their own for each hit, as they are when a run file was read, drawn from a million documents; of ten
judgements a query, half are among its hits. The sides take turns, in one thread. Ours score rankings (lists of ids in
order), arrays of numbers, or the very dictionaries that pytrec_eval takes; what makes each of these is timed apart.

python -m benchmarks.evaluation.measures
"""

import argparse
import gc
import os
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from statistics import median
from typing import Any

import numpy as np
import pytrec_eval

from benchmarks.setting import in_turns, save
from evaluation.measures import DEFAULT_MEASURES, score_hits, score_run
from evaluation.rankings import Ranking, make_ranking
from evaluation.run_table import RunTable

DOCUMENTS = 999_983  # a prime, so that any stride goes through all documents
JUDGED = 10
SETS = {
    "nDCG@10, Recall@100, MAP@1000": {
        "nDCG@10": "ndcg_cut.10",
        "Recall@100": "recall.100",
        "MAP@1000": "map_cut.1000",
    },
    "the default measures": {
        "nDCG@10": "ndcg_cut.10",
        "MRR@10": "recip_rank",  # which has no cut-off, so that its values are not compared
        "MAP": "map",
        "Recall@10": "recall.10",
        "Recall@100": "recall.100",
        "Recall@1000": "recall.1000",
    },
}


def seconds(side: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    made = side()
    return time.perf_counter() - start, made


def farthest(found: Mapping[str, Any], theirs: Mapping[str, Any], names: Mapping[str, str]) -> float:
    """The largest difference between our values and theirs."""
    same = {ours: name.replace(".", "_") for ours, name in names.items() if name != "recip_rank"}
    return max(
        abs(values[ours] - theirs[query][name]) for query, values in found.items() for ours, name in same.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--hits", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    q, k = options.queries, options.hits
    rng = np.random.default_rng(0)
    first, stride = rng.integers(1, DOCUMENTS, (2, q, 1))
    rows = (first + stride * np.arange(k)) % DOCUMENTS  # (q, k), each once a query
    scores = np.sort(rng.random((q, k), dtype=np.float32).round(5), axis=1)[:, ::-1]  # some tie
    queries = [f"q{number}" for number in range(q)]
    ids = [f"doc{row:07d}" for row in range(DOCUMENTS)]
    qrels = {}
    for query, hits in zip(queries, rows, strict=True):
        judged = [*rng.choice(hits, JUDGED // 2, replace=False), *rng.integers(0, DOCUMENTS, JUDGED // 2)]
        qrels[query] = {f"doc{row:07d}": int(rng.integers(0, 4)) for row in judged}
    lines = [([f"doc{row:07d}" for row in hits.tolist()], mine) for hits, mine in zip(rows, scores, strict=True)]

    def rankings() -> dict[str, Ranking]:
        return {query: make_ranking(*line, place=query) for query, line in zip(queries, lines, strict=True)}

    starts = np.arange(q + 1) * k
    making_run, run = seconds(rankings)
    making_table, table = seconds(lambda: RunTable.of(queries, starts, rows.ravel(), scores.ravel(), ids))

    def dictionaries() -> dict[str, dict[str, float]]:
        return {query: dict(zip(one.ids, one.scores.tolist(), strict=True)) for query, one in run.items()}

    making_hits, hits_of = seconds(dictionaries)
    gc.freeze()
    result: dict[str, Any] = {
        "queries": q,
        "hits": k,
        "judgements a query": JUDGED,
        "threads": 1,
        "pytrec_eval-terrier": metadata.version("pytrec_eval-terrier"),
        "load of the machine before": round(os.getloadavg()[0], 2),
        "seconds to make": {
            "rankings, in order and checked, of ids and scores": round(making_run, 3),
            "a table, in order and checked, of arrays": round(making_table, 3),
            "pytrec_eval's dictionaries, of rankings": round(making_hits, 3),
        },
    }
    for title, names in SETS.items():
        assert title != "the default measures" or tuple(names) == DEFAULT_MEASURES
        evaluator = pytrec_eval.RelevanceEvaluator(qrels, set(names.values()))

        def theirs(evaluator: Any = evaluator) -> Any:
            return evaluator.evaluate(hits_of)

        def theirs_of_rankings(evaluator: Any = evaluator) -> Any:
            return evaluator.evaluate(dictionaries())

        def ours(form: Any, score: Any = score_run, names: Any = names) -> Any:
            return score(form, qrels, names)

        found = ours(run)
        assert found == ours(table) == ours(hits_of, score_hits)
        difference = farthest(found, theirs(), names)
        sides = (
            lambda: ours(run),
            lambda: ours(table),
            lambda: ours(hits_of, score_hits),
            theirs,
            theirs_of_rankings,
        )
        ranked, arrays, same, alone, built = (median(times) for times in in_turns(options.rounds, *sides))
        result[title] = {
            "largest difference": difference,
            "seconds": {
                "rankings": round(ranked, 3),
                "arrays": round(arrays, 3),
                "pytrec_eval's dictionaries": round(same, 3),
                "pytrec_eval": round(alone, 3),
                "pytrec_eval, making its dictionaries of rankings": round(built, 3),
            },
            "times pytrec_eval": {
                "rankings": round(alone / ranked, 2),
                "rankings, its dictionaries having to be made": round(built / ranked, 2),
                "arrays": round(alone / arrays, 2),
                "arrays, its dictionaries having to be made": round(built / arrays, 2),
                "pytrec_eval's dictionaries": round(alone / same, 2),
            },
        }
        print(title, result[title], flush=True)
    save(__file__, result)


if __name__ == "__main__":
    main()
