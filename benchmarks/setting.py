"""What the benchmarks share: the machine, test collections, a tiny encoder, clustered vectors, where results go."""

import json
import os
import platform
import string
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
PACKAGES = ("torch", "transformers", "sentence-transformers", "openvino", "nncf", "ray", "faiss-cpu", "numpy")
WORDS = "river stone green walk night paper music water house train cat dog market bank tree cloud".split()


def scifact() -> Path:
    """SciFact in BEIR layout, from the test collections."""
    root = Path(os.environ.get("RETROKIT_TEST_DATA", HERE.parents[1] / "shared" / "data"))
    folder = root / "beir" / "scifact"
    if not folder.is_dir():
        sys.exit(f"no {folder}; set RETROKIT_TEST_DATA")
    return folder


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    from retrieval.devices import cores

    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"processor": model, "cores": cores(), "python": platform.python_version(), **versions}


def save(script: str, result: dict[str, Any]) -> None:
    """Write a result beside its script and print it."""
    text = json.dumps({"machine": machine(), **result}, indent=1) + "\n"
    Path(script).with_suffix(".json").write_text(text)
    print(text)


def tiny_model(folder: Path) -> Path:
    """A sentence-transformers folder around a random BERT of 2 layers and 32 dimensions."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    if (folder / "modules.json").is_file():
        return folder
    letters = [*string.ascii_lowercase, *string.digits]
    pieces = [*letters, *(f"##{letter}" for letter in letters)]
    vocabulary = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", *WORDS, *pieces]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab={word: n for n, word in enumerate(vocabulary)}, model_max_length=64).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "mean"}))
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def text(number: int, words: int = 12) -> str:
    """A short text that follows from its number."""
    state, chosen = number * 2654435761 + 1, []
    for _ in range(words):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        chosen.append(WORDS[(state >> 33) % len(WORDS)])
    return " ".join(chosen)


def clustered(count: int, dim: int = 384, seed: int = 0) -> NDArray[np.float32]:
    """Unit vectors (count, dim) as text encoders make them: broad clusters, Zipf-distributed, on a curved surface.

    A random network of one hidden layer maps 64 latent numbers to `dim`, and noise is added. Vectors of
    one seed belong to the same clusters whatever their number.
    """
    rng = np.random.default_rng(seed)
    latent, hidden, clusters = 64, 256, 3000
    first = rng.standard_normal((latent, hidden), dtype=np.float32) / np.sqrt(latent)
    second = rng.standard_normal((hidden, dim), dtype=np.float32) / np.sqrt(hidden)
    centres = rng.standard_normal((clusters, latent), dtype=np.float32)
    share = np.arange(1, clusters + 1) ** -0.7
    rows = np.empty((count, dim), dtype=np.float32)
    for start in range(0, count, 50_000):
        some = rows[start : start + 50_000]
        codes = centres[rng.choice(clusters, len(some), p=share / share.sum())]
        codes += 0.6 * rng.standard_normal(codes.shape, dtype=np.float32)
        some[:] = np.tanh(codes @ first) @ second + 0.1 * rng.standard_normal(some.shape, dtype=np.float32)
        some /= np.linalg.norm(some, axis=1, keepdims=True)
    return rows


def in_turns(repeats: int, *sides: Callable[[], object]) -> list[list[float]]:
    """Seconds of each side, the sides taking turns."""
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for side, seen in zip(sides, times, strict=True):
            start = time.perf_counter()
            side()
            seen.append(time.perf_counter() - start)
    return times
