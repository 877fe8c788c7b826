"""Mirror-BERT on a base that was not trained on similarity: STS-B's test part before and after.

The base is that of `benchmarks.objectives.base`, or another folder; the texts are STS-B's training sentences alone,
without scores or pairs. What is measured is Spearman's correlation of cosines with people's scores, the start, each
objective's end, and how long it took; three seeds, medians.

    python -m benchmarks.objectives.sts FOLDER-OF-THE-BASE
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.objectives.base import data, make, sentences, write_texts
from benchmarks.setting import save
from evaluation.pairs_sets import load_pairs
from evaluation.sts import evaluate_pairs
from pretraining import pretrain
from retrieval import Encoder

OBJECTIVES: dict[str, Any] = {
    "mirror (5 characters)": "mirror",
    "mirror with drophead 0.1": {"mirror_characters": {"drophead": 0.1}},
    "mirror-words": "mirror-words",
    "simcse": "simcse",
    "masked words go on": "mlm",
}


def correlation(model: Path, part: str) -> float:
    """Spearman's, times 100, of cosines with scores."""
    report = evaluate_pairs(Encoder.load(str(model)), load_pairs(f"sts:{data() / 'sts' / f'{part}.jsonl'}"))
    return round(100 * report.metrics["cosine_spearman"], 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", type=Path, help="another base")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    base = options.base or make(options.folder)
    parts = ("stsb-dev", "stsb-test")
    result: dict[str, Any] = {
        "setting": {"steps": options.steps, "batch": options.batch, "rate": options.rate, "seeds": options.seeds},
        "before": {part: correlation(base, part) for part in parts},
    }
    print(result, flush=True)
    for name, objective in OBJECTIVES.items():
        runs = []
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as place:
                corpus = write_texts(iter(dict.fromkeys(sentences("stsb-train"))), Path(place) / "texts.jsonl")
                start = time.perf_counter()
                pretrain(
                    corpus, Path(place) / "model", base=str(base), objective=objective, max_steps=options.steps,
                    batch_size=options.batch, max_length=50, learning_rate=options.rate, save_steps=options.steps,
                    precision="bfloat16", seed=seed, group_by_length=True,
                )  # fmt: skip
                seconds = round(time.perf_counter() - start, 1)
                runs.append({"seconds": seconds, **{part: correlation(Path(place) / "model", part) for part in parts}})
        result[name] = {key: median(run[key] for run in runs) for key in runs[0]} | {"runs": runs}
        print(name, result[name], flush=True)
        save(__file__, result)


if __name__ == "__main__":
    main()
