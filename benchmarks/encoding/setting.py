"""What the benchmarks of encoding share: the machine, the test collection, a tiny encoder, where results go."""

import json
import os
import platform
import string
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACKAGES = ("torch", "transformers", "sentence-transformers", "openvino", "nncf", "ray", "numpy")
WORDS = "river stone green walk night paper music water house train cat dog market bank tree cloud".split()


def scifact() -> Path:
    """SciFact in BEIR layout, from the test collections."""
    root = Path(os.environ.get("RETROKIT_TEST_DATA", HERE.parents[2] / "shared" / "data"))
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


def save(name: str, result: dict[str, Any]) -> None:
    """Write a result beside its script and print it."""
    text = json.dumps({"machine": machine(), **result}, indent=1) + "\n"
    (HERE / f"{name}.json").write_text(text)
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
