"""Does a tuned index meet its goal on queries it was not tuned with? 40 runs, over real and over clustered vectors.

Each run draws other queries to tune with, and goals of recall in turn; the chosen point is then asked all the others.
What was built is shared by the runs over the same vectors. --built takes the real vectors from the other benchmark.

    python -m benchmarks.indexes.tune --built FOLDER
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.indexes.approximate import real
from benchmarks.setting import clustered, save
from indexes import Goal, Index, save_vectors, search_exact
from indexes.operating_points import recalls
from indexes.tune import Tuning

RUNS, TO_TUNE = 20, 400
GOALS = [Goal(0.9), Goal(0.95), Goal(0.99), Goal(0.95, k=100), Goal(0.95, batch=32)]


def runs_over(rows: NDArray[np.float32], queries: NDArray[np.float32], root: Path) -> dict[str, Any]:
    store = save_vectors(root / "v", rows, [str(row) for row in range(len(rows))], made_by={"normalize": True})
    index = Index.build(store, "Flat", root / "index")
    (base,) = index.reader.segments
    truth = {k: search_exact(queries, rows, k).scores for k in {goal.k for goal in GOALS}}
    (root / "work").mkdir()
    found = []
    for run in range(RUNS):
        goal = GOALS[run % len(GOALS)]
        order = np.random.default_rng(run).permutation(len(queries))
        mine, others = order[:TO_TUNE], order[TO_TUNE:]
        start = time.perf_counter()
        tuning = Tuning(queries[mine], goal, base, "Flat", root / "work", lambda line: None)
        tuned = tuning.run(None, "held out")
        seconds = time.perf_counter() - start
        candidate = tuning.candidate(tuned.chosen.factory)
        hits = candidate.search(queries[others], goal.k, tuned.chosen.effort)
        recall = float(recalls(hits.scores, truth[goal.k][others]).mean())
        found.append(
            {
                "recall": goal.recall,
                "k": goal.k,
                "batch": goal.batch,
                "chosen": tuned.chosen.name,
                "measured": round(tuned.chosen.recall, 4),
                "at least": round(tuned.chosen.least_recall, 4),
                "on the others": round(recall, 4),
                "met": recall >= goal.recall,
                "p95 ms": round(tuned.chosen.p95_ms, 3),
                "p95 ms of exact search": round(next(one.p95_ms for one in tuned.points if one.factory == "Flat"), 3),
                "seconds": round(seconds, 1),
            }
        )
        print(found[-1], flush=True)
    return {"vectors": len(rows), "queries to tune with": TO_TUNE, "others": len(queries) - TO_TUNE, "runs": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--built", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    kept = options.built and options.built / "MiniLM vectors of the shared collections"
    everything = clustered(options.vectors + 5400, seed=1)
    cases = {
        "MiniLM": tuple(np.load(kept / f"{part}.npy") for part in ("rows", "queries")) if kept else real(),
        "clustered": (everything[: options.vectors], everything[options.vectors :]),
    }
    result: dict[str, Any] = {}
    for case, (rows, queries) in cases.items():
        with tempfile.TemporaryDirectory() as name:
            result[case] = runs_over(rows, queries, Path(name))
    runs = [run for case in result.values() for run in case["runs"]]
    save(__file__, {"runs": len(runs), "met": sum(run["met"] for run in runs), **result})


if __name__ == "__main__":
    main()
