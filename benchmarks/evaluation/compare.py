"""BM25, all-MiniLM-L6-v2 and both fused over five collections: `retrokit compare`, and its p-values beside scipy's.

The first run encodes the five corpora (10 to 15 minutes on 2 cores); --cache keeps them. Writes compare.json beside
this file and, with --page, the page. scipy's p-values are computed from the values of single queries that `compare`
wrote, by permutation_test with signs of its own and ttest_rel.
python -m benchmarks.evaluation.compare --cache FOLDER --page compared.html
"""

import argparse
import csv
import json
import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.setting import HERE, save

SETS = ("scifact", "cranfield", "cisi", "cacm", "npl")
MODEL = "all-MiniLM-L6-v2"
SAMPLES = 10_000
SCIPYS_SAMPLES = 100_000


def collections() -> list[Path]:
    root = Path(os.environ.get("RETROKIT_TEST_DATA", HERE.parents[1] / "shared" / "data")) / "beir"
    missing = [name for name in SETS if not (root / name).is_dir()]
    if missing:
        sys.exit(f"no {', '.join(missing)} in {root}; set RETROKIT_TEST_DATA")
    return [root / name for name in SETS]


def values_of(path: Path, measure: str) -> dict[tuple[str, str], np.ndarray]:
    """Set and system to the measure of each query."""
    found = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            found[row["dataset"], row["system"]].append(float(row[measure]))
    return {key: np.array(values) for key, values in found.items()}


def scipys(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """The same tests by scipy: 100,000 sign patterns of another generator, and the t-test."""
    drawn = stats.permutation_test(
        (second, first),
        lambda one, other, axis: np.mean(one - other, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=SCIPYS_SAMPLES,
        batch=500,
        rng=np.random.default_rng(1),
    )
    return {"p": float(drawn.pvalue), "p_t": float(stats.ttest_rel(second, first).pvalue)}


def beside_scipy(document: dict[str, Any], values: dict[tuple[str, str], np.ndarray]) -> list[dict[str, Any]]:
    """Each test on one set, and how far from scipy's, in standard errors of both samples."""
    found = []
    for one in document["tests"]:
        if one["dataset"] is None:
            continue
        first, second = (values[one["dataset"], name] for name in (document["baseline"], one["system"]))
        theirs = scipys(first, second)
        p = max(theirs["p"], 1 / SAMPLES)
        # scipy doubles the p of one side, and so its error.
        error = np.sqrt(p * (1 - p) / SAMPLES + 2 * p * (1 - p / 2) / SCIPYS_SAMPLES)
        found.append(
            {
                "system": one["system"],
                "dataset": one["dataset"],
                "p": one["p"],
                "scipy_p": theirs["p"],
                "apart_in_standard_errors": abs(one["p"] - theirs["p"]) / error,
                "p_t": one["p_t"],
                "scipy_p_t": theirs["p_t"],
                "apart_p_t": abs(one["p_t"] - theirs["p_t"]),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, help="where vectors, indexes and runs are kept")
    parser.add_argument("--page", type=Path, help="write the page there too")
    arguments = parser.parse_args()
    from evaluation.compare_commands import compare_systems

    with tempfile.TemporaryDirectory() as place:
        page = arguments.page or Path(place) / "report.html"
        compare_systems(
            ["bm25", f"MiniLM={MODEL}", f"fused=hybrid:{MODEL}"],
            [str(one) for one in collections()],
            output=page,
            cache=arguments.cache,
            samples=SAMPLES,
            cost=True,
            overwrite=True,
        )
        document = json.loads(page.with_suffix(".json").read_text())
        values = values_of(page.with_suffix(".per-query.csv"), document["measure"])
    for name in ("slices", "cases"):  # they hold texts of the collections
        del document[name]
    save(__file__, {"scipy": beside_scipy(document, values), **document})


if __name__ == "__main__":
    main()
