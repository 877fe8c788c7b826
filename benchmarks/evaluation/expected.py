"""The figures that `retrokit evaluate` expects: all-MiniLM-L6-v2, exact search, on the test collections and STS files.

They go into evaluation/expected.json. Some seven minutes on two cores.

    python -m benchmarks.evaluation.expected
"""

import json
import tempfile
from pathlib import Path

from benchmarks.objectives.base import data
from evaluation import commands, evaluate_pairs, load_dataset, load_pairs
from retrieval import Encoder

MODEL = "all-MiniLM-L6-v2"
COLLECTIONS = ("cacm", "cisi", "cranfield", "npl", "scifact")
PAIRS = ("stsb-dev", "stsb-test", "sick")
PUBLISHED = {
    "scifact (test)": "MTEB publishes nDCG@10 0.64508, Recall@100 0.925",
    "stsb-test": "MTEB publishes 0.8203",
    "sick": "MTEB publishes 0.7758",
}
TARGET = Path(__file__).parents[2] / "evaluation" / "expected.json"


def main() -> None:
    encoder = Encoder.load(MODEL)
    prints, figures = {}, []

    def add(name: str, fingerprint: str, metrics: dict[str, float]) -> None:
        prints[name] = fingerprint
        one = {"model": MODEL, "dataset": name, "metrics": {key: round(value, 6) for key, value in metrics.items()}}
        figures.append(one | ({"source": f"measured; {PUBLISHED[name]}"} if name in PUBLISHED else {}))
        print(figures[-1], flush=True)

    for name in PAIRS:
        report = evaluate_pairs(encoder, load_pairs(f"sts:{data() / 'sts' / f'{name}.jsonl'}"))
        add(name, report.fingerprint, report.metrics)
    with tempfile.TemporaryDirectory() as place:
        for name in COLLECTIONS:
            folder, out = data() / "beir" / name, Path(place) / f"{name}.json"
            commands.evaluate(str(folder), encoder=MODEL, cache=Path(place), json=out)
            fingerprint = load_dataset(folder).fingerprint
            add(f"{name} (test)", fingerprint, json.loads(out.read_text())["metrics"])
    result = {
        "source": "measured",
        "tolerance": 0.0005,
        "models": {MODEL: encoder.fingerprint},
        "datasets": prints,
        "figures": figures,
    }
    TARGET.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
