"""An equal-budget table: what a few steps of each objective on the collections' own texts do to an encoder.

Every objective has the same base, texts, fine-tuning and seeds, and its encoder reads as many tokens: where a text is
read twice, half as many texts are in a batch. The base is a small one that knows words and no longer ranks: two layers
of all-MiniLM-L6-v2, trained on masked words (`base.py`). (A base from random numbers tells nothing: fine-tuned so
shortly, it finds .05 after no pretraining and after masked words alike.) Pretraining reads the documents of all
collections together; fine-tuning is contrastive, on pairs made of the same documents, the same ones for all; what is
measured is nDCG@10 of exact search over the documents' first 96 tokens, on the queries of each collection, with 95%
bootstrap intervals over queries. Runs are kept as they end, and the command goes on where it was. On 2 cores a run
takes about four minutes:

    python -m benchmarks.objectives.table FOLDER-OF-THE-BASE --seeds 3

For a GPU: --base BERT-FOLDER --steps 5000 --batch 256 --length 256 --rate 1e-4 --tune-steps 500
"""

import argparse
import hashlib
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.objectives.base import data, make
from benchmarks.setting import machine
from evaluation import evaluate, load_dataset
from evaluation.significance import bootstrap_interval
from pretraining import adapt, pretrain
from retrieval import Encoder, Retriever, build_index


class Tried(NamedTuple):
    """An objective of the table."""

    objective: Any
    """What `pretrain` takes; a tuple: samplers of pairs for the contrastive loss of `adapt`; None: nothing."""
    passes: float = 1.0
    """How often the encoder reads each token of a batch."""


TRIED = {
    "none": Tried(None),
    "mlm": Tried("mlm"),
    "bowdpr": Tried("bowdpr"),
    "retromae": Tried("retromae"),
    "dupmae": Tried("dupmae"),
    "condenser": Tried("condenser"),
    "cocondenser": Tried("cocondenser", 2),  # two spans a document
    "cotmae": Tried("cotmae", 2),
    "tsdae": Tried("tsdae", 0.5),  # 0.4 of the text, besides the decoder
    "simcse": Tried("simcse", 2),
    "mirror-bert": Tried("mirror-words", 2),
    "crops": Tried("contriever", 0.55),  # two crops, 0.05 to 0.5 of the text each
    "ict pairs": Tried(("sentence",)),
    "prop pairs": Tried(("words",)),
    "mlm + bowdpr + spans": Tried({"encoder_mlm": 1.0, "bag_of_words_cls": 0.5, "span_contrast": 0.1}, 2),
    "dupmae + crops": Tried({"encoder_mlm": 1.0, "decoder_mlm": 1.0, "bag_of_words": 0.1, "crop_contrast": 0.2}, 1.55),
}
OUT = Path(__file__).with_suffix(".json")


def collections(wanted: list[str]) -> dict[str, Path]:
    root = data() / "beir"
    found = {folder.name: folder for folder in sorted(root.iterdir()) if (folder / "qrels").is_dir()}
    return found if wanted == ["all"] else {name: found[name] for name in wanted}


def corpus_of(folders: dict[str, Path], path: Path) -> Path:
    """All documents of the collections in one file, their ids made different."""
    with path.open("w", encoding="utf-8") as file:
        for name, folder in folders.items():
            for document in load_dataset(folder).documents():
                record = {"_id": f"{name}-{document.id}", "title": document.title, "text": document.text}
                file.write(json.dumps(record) + "\n")
    return path


def train(name: str, corpus: Path, folder: Path, seed: int, options: argparse.Namespace) -> str:
    """Pretrain under an objective, then fine-tune as all are; gives the last encoder's folder."""
    (objective, passes), encoder = TRIED[name], str(options.base)
    common = {"seed": seed, "precision": options.precision, "batch_size": max(2, round(options.batch / passes))}
    if isinstance(objective, tuple):
        pairs = {**common, "max_length": options.length // 2}  # two texts each, so that tokens are as many
        adapt(
            corpus, folder / "pretrained", encoder=encoder, samplers=objective, steps=options.steps,
            learning_rate=options.rate, held_out=50, checks=1, **pairs,
        )  # fmt: skip
        encoder = str(folder / "pretrained")
    elif objective is not None:
        pretrain(
            corpus, folder / "pretrained", base=encoder, objective=objective, max_steps=options.steps,
            max_length=options.length, learning_rate=options.rate, save_steps=options.steps, **common,
        )  # fmt: skip
        encoder = str(folder / "pretrained")
    tuning = {"samplers": ("title", "span"), "steps": options.tune_steps, "max_length": 96, "checks": 1}
    adapt(
        corpus, folder / "tuned", encoder=encoder, seed=1000 + seed, batch_size=32, held_out=50,
        learning_rate=options.rate, precision=options.precision, **tuning,
    )  # fmt: skip
    return str(folder / "tuned")


def measure(model: str, folders: dict[str, Path], place: Path) -> dict[str, list[float]]:
    """nDCG@10 of every query, by collection."""
    encoder, found = Encoder.load(model, dtype="bfloat16"), {}
    for name, folder in folders.items():
        testset = load_dataset(folder)
        store = encoder.encode_corpus(testset.documents(), place / f"{name}.vectors")
        build_index(store, place / f"{name}.index")
        report = evaluate(
            Retriever.open(place / f"{name}.index", encoder), testset, modes=["dense"], measures=["nDCG@10"]
        )
        found[name] = [round(values["nDCG@10"], 5) for values in report.systems["dense"].per_query.values()]
    return found


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each objective: the mean over seeds and collections, its interval over queries, and the spread of seeds."""
    table: dict[str, Any] = {}
    for name, group in itertools.groupby(sorted(runs, key=lambda run: run["objective"]), lambda run: run["objective"]):
        mine = list(group)
        by_seed = [[np.mean(values) for values in run["queries"].values()] for run in mine]
        queries = [np.mean([run["queries"][one] for run in mine], axis=0) for one in mine[0]["queries"]]
        intervals = {one: bootstrap_interval(values) for one, values in zip(mine[0]["queries"], queries, strict=True)}
        table[name] = {
            "seeds": len(mine),
            "mean nDCG@10": round(float(np.mean(by_seed)), 4),
            "seeds' means": [round(float(np.mean(one)), 4) for one in by_seed],
            **{
                one: {"nDCG@10": round(float(np.mean(values)), 4), "95%": [round(end, 4) for end in intervals[one]]}
                for one, values in zip(mine[0]["queries"], queries, strict=True)
            },
            "seconds": round(float(np.mean([run["seconds"] for run in mine]))),
        }
    return dict(sorted(table.items(), key=lambda item: -item[1]["mean nDCG@10"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the base is, or is made")
    parser.add_argument("--base", help="another base")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--tune-steps", type=int, default=80)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=96)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--collections", nargs="*", default=["all"])
    parser.add_argument("--objectives", nargs="*", default=list(TRIED))
    options = parser.parse_args()
    folders = collections(options.collections)
    options.base = options.base or str(make(options.folder, "cut"))
    setting = {name: value for name, value in vars(options).items() if name not in ("seeds", "objectives", "folder")}
    weights = Path(options.base) / "model.safetensors"
    setting["base"] = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else options.base
    known = json.loads(OUT.read_text()) if OUT.is_file() else {}
    runs = known["runs"] if known.get("setting") == setting else []
    for seed, name in itertools.product(range(options.seeds), options.objectives):
        if any(run["objective"] == name and run["seed"] == seed for run in runs):
            continue
        with tempfile.TemporaryDirectory() as place:
            corpus, start = corpus_of(folders, Path(place) / "corpus.jsonl"), time.perf_counter()
            model = train(name, corpus, Path(place), seed, options)
            seconds = round(time.perf_counter() - start)
            found = measure(model, folders, Path(place))
        runs.append({"objective": name, "seed": seed, "seconds": seconds, "queries": found})
        result = {"machine": machine(), "setting": setting, "table": summary(runs), "runs": runs}
        OUT.write_text(json.dumps(result) + "\n")
        means = {one: round(float(np.mean(values)), 4) for one, values in found.items()}
        print(name, seed, f"{seconds} s", means, file=sys.stderr, flush=True)
    print(json.dumps(summary(runs), indent=1))


if __name__ == "__main__":
    main()
