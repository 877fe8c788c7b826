"""Speed of retrokit beside a peer in the same run, as ratios; writes benchmarks/speed.json.

    python benchmarks/speed.py

Encoding: texts a second against SentenceTransformer.encode (same model, its batch size of 32). Each figure is the best of
several repeats; the sides take turns. benchmarks/encoding, benchmarks/indexes and benchmarks/pretraining measure in detail.
"""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from retrieval import Encoder
from retrieval.loading import quiet
from retrieval.model_folder import resolve

WORDS = "the of search index vector model text query rank score data language system paper method result".split()


def best(repeats: int, *sides: Callable[[], object]) -> list[float]:
    """Least seconds of each side, the sides taking turns."""
    times = [[] for _ in sides]
    for _ in range(repeats):
        for side, seen in zip(sides, times, strict=True):
            start = time.perf_counter()
            side()
            seen.append(time.perf_counter() - start)
    return [min(seen) for seen in times]


def encoding() -> dict[str, float]:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size=size)) for size in rng.integers(5, 200, size=300)]
    ours = Encoder.load()
    with quiet():
        peer = SentenceTransformer(str(resolve("all-MiniLM-L6-v2")), device="cpu")
    seconds = best(3, lambda: ours.encode_documents(texts), lambda: peer.encode(texts, show_progress_bar=False))
    return {"retrokit texts/s": 300 / seconds[0], "peer texts/s": 300 / seconds[1], "ratio": seconds[1] / seconds[0]}


def main() -> None:
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "encoding all-MiniLM-L6-v2, 5–200 words": encoding(),
    }
    text = json.dumps(result, indent=1, ensure_ascii=False)
    Path(__file__).with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
