"""Documents a second of every backend and precision against SentenceTransformer.encode with its defaults.

256 SciFact abstracts of about 240 tokens, all-MiniLM-L6-v2, all cores, everything warm, systems taking turns. The
machine is a share of a larger one and its pace drifts by a tenth within minutes, so a ratio is taken inside each round,
of runs that lie within a minute of each other, and the median over the rounds is the figure; each round is kept.

The share of the machine's peak is the model's multiplications (2 operations each) a second over those of a 2048 x 2048
matrix product by torch, measured in the same rounds. On a quiet machine: python -m benchmarks.encoding.throughput
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.setting import save, scifact
from retrieval import Encoder, read_documents
from retrieval.model_folder import PACKAGED, resolve

SYSTEMS = (
    ("torch", "float32"),
    ("torch", "bfloat16"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
    ("openvino", "int8"),
)


def texts_of_240_tokens(encoder: Encoder, count: int) -> tuple[list[str], float]:
    texts = [document.content for document in read_documents(scifact())]
    lengths = [len(tokens) for tokens in encoder.tokenizer.truncate(texts, "").tokens]
    chosen = [(one, length) for one, length in zip(texts, lengths, strict=True) if 225 <= length <= 255][:count]
    return [one for one, _ in chosen], statistics.mean(length for _, length in chosen)


def operations_a_text(tokens: float, layers: int = 6, hidden: int = 384, inner: int = 1536) -> float:
    """Of MiniLM's matrix products: four projections, two of the inner layer, scores and mixing of attention."""
    return 2 * layers * tokens * (4 * hidden**2 + 2 * hidden * inner + 2 * tokens * hidden)


def peak(dtype: torch.dtype) -> float:
    """Operations a second of a matrix product."""
    matrix = torch.ones(2048, 2048, dtype=dtype)
    matrix @ matrix
    start = time.perf_counter()
    for _ in range(5):
        matrix @ matrix
    return 5 * 2 * 2048**3 / (time.perf_counter() - start)


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=256)
    options = parser.parse_args()

    from sentence_transformers import SentenceTransformer

    plain = SentenceTransformer(str(resolve(PACKAGED)), device="cpu")
    encoders = {f"{b} {d}": Encoder.load(PACKAGED, backend=b, dtype=d, device="cpu") for b, d in SYSTEMS}
    texts, tokens = texts_of_240_tokens(next(iter(encoders.values())), options.texts)
    runs: dict[str, Callable[[], Any]] = {"SentenceTransformer.encode": lambda: plain.encode(texts)}
    runs |= {name: lambda one=encoder: one.encode_documents(texts) for name, encoder in encoders.items()}
    vectors = {name: run() for name, run in runs.items()}  # and everything is warm
    times: dict[str, list[float]] = {name: [] for name in runs}
    peaks: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for _ in range(options.rounds):
        peaks["float32"].append(peak(torch.float32))
        peaks["bfloat16"].append(peak(torch.bfloat16))
        for name, run in runs.items():
            times[name].append(seconds(run))
    reference = vectors.pop("SentenceTransformer.encode")
    speeds = {name: len(texts) / statistics.median(found) for name, found in times.items()}
    base, peer = speeds.pop("SentenceTransformer.encode"), times["SentenceTransformer.encode"]
    top = {name: statistics.median(found) for name, found in peaks.items()}
    rows = {}
    for name, speed in speeds.items():
        ratios = [theirs / ours for theirs, ours in zip(peer, times[name], strict=True)]
        cosines = (vectors[name] * reference).sum(axis=1)
        against = "float32" if name.endswith("float32") else "bfloat16"
        rows[name] = {
            "documents/s": round(speed, 1),
            "ratio": round(statistics.median(ratios), 2),
            "least and most": [round(min(ratios), 2), round(max(ratios), 2)],
            "cosine mean": round(float(np.mean(cosines)), 6),
            "cosine min": round(float(np.min(cosines)), 6),
            f"share of {against} peak": round(speed * operations_a_text(tokens) / top[against], 2),
            "rounds": [round(len(texts) / one, 1) for one in times[name]],
        }
    result = {
        "texts": len(texts),
        "mean tokens": round(tokens, 1),
        "peak GFLOP/s": {name: round(value / 1e9) for name, value in top.items()},
        "SentenceTransformer.encode documents/s": round(base, 1),
        "its rounds": [round(len(texts) / one, 1) for one in times["SentenceTransformer.encode"]],
        "systems": rows,
    }
    save(__file__, result)


if __name__ == "__main__":
    main()
