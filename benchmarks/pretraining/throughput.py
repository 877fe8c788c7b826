"""Training steps a second, from token ids to the optimiser, beside transformers' masked LM and pretense's objectives.

A random BERT of 6 layers and 384 dimensions, 16 texts of 128 tokens, float32. Each side runs in a process of its own;
the sides take turns. pretense needs an environment of its own (its requirements do not resolve with ours):

    python -m venv peer && peer/bin/pip install torch==2.13.0 && peer/bin/pip install pretense==0.1.1
    python -m benchmarks.pretraining.throughput --pretense peer/bin/python
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from benchmarks.setting import HERE, save
from retrieval.model_folder import PACKAGED, resolve

OURS = ("mlm", "bowdpr", "retromae", "dupmae", "half dupmae", "condenser", "cocondenser", "cotmae", "lexmae")
THEIRS = ("retromae", "dupmae")


def base(folder: Path) -> Path:
    """A random model with MiniLM's sizes and tokenizer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    BertForMaskedLM(BertConfig(**sizes)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve(PACKAGED)).save_pretrained(folder)
    return folder


def run(python: str, side: str, folder: Path, steps: int) -> dict[str, Any]:
    script = Path(__file__).with_name("sides.py")
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    command = [python, str(script), side, str(folder), str(steps)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pretense", help="The interpreter of an environment with pretense.")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sides = {"transformers MLM": (sys.executable, 4), **{f"retrokit {name}": (sys.executable, 4) for name in OURS}}
    if options.pretense:
        sides |= {f"pretense {name}": (options.pretense, 1) for name in THEIRS}
    seen: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as name:
        folder = base(Path(name))
        for _ in range(options.rounds):
            for side, (python, steps) in sides.items():
                seen[side].append(run(python, side, folder, steps))
                print(side, seen[side][-1], flush=True)
    speeds = {side: median(speed for one in runs for speed in one["samples/s"]) for side, runs in seen.items()}
    result = {
        side: {
            "samples/s": round(speeds[side], 2),
            "times transformers": round(speeds[side] / speeds["transformers MLM"], 2),
            "peak GB": round(max(one["peak GB"] for one in runs), 2),
        }
        for side, runs in seen.items()
    }
    for name in THEIRS if options.pretense else ():
        ratio = speeds[f"retrokit {name}"] / speeds[f"pretense {name}"]
        result[f"retrokit {name}"]["times pretense"] = round(ratio, 1)
    save(__file__, {"texts": 16, "tokens": 128, "sides": result})


if __name__ == "__main__":
    main()
