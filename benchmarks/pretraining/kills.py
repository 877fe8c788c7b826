"""SIGKILL at random steps of a pretraining run: what goes on ends with the same bytes as what was never disturbed.

Each objective is trained once undisturbed and once killed so many times, at random moments of random steps, each time
started again by the same command; the model, its heads and its log must be equal byte for byte.

    python -m benchmarks.pretraining.kills --kills 10
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.setting import WORDS, save, tiny_model

OBJECTIVES = ("retromae", "dupmae", "cocondenser", "contriever")
FILES = ("model.safetensors", "heads/model.safetensors", "log.jsonl")
RUN = """
import sys, time
from pretraining import pretrain
def slowly(done, total):
    time.sleep(float(sys.argv[4]))
pretrain(sys.argv[1], sys.argv[2], base=sys.argv[3], objective=sys.argv[5], max_steps=60, batch_size=8, accumulation=2,
         max_length=32, save_steps=4, learning_rate=1e-3, on_progress=slowly)
"""


def steps_done(partial: Path) -> int:
    log = partial / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def start(*arguments: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", RUN, *map(str, arguments)])


def killed_run(corpus: Path, output: Path, base: Path, objective: str, kills: int, draw: random.Random) -> list[int]:
    """Kill the run at so many random steps, rising, and let it end; gives the steps at which it was killed."""
    partial, at = output.with_name(f"{output.name}.partial"), []
    for step in sorted(draw.sample(range(1, 60), kills)):
        process = start(corpus, output, base, 0.05, objective)
        while steps_done(partial) < step and process.poll() is None:
            time.sleep(0.002)
        time.sleep(draw.random() * 0.1)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            at.append(steps_done(partial))
        process.wait()
    if start(corpus, output, base, 0, objective).wait():
        sys.exit(f"{objective}: the last start failed")
    return at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, result = random.Random(options.seed), {}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        base, corpus = tiny_model(place / "base"), place / "corpus.jsonl"
        texts = (" ".join(draw.choices(WORDS, k=draw.randint(20, 90))) for _ in range(150))
        corpus.write_text("".join(json.dumps({"_id": str(n), "text": text}) + "\n" for n, text in enumerate(texts)))
        for objective in OBJECTIVES:
            whole, killed = place / f"{objective}-whole", place / f"{objective}-killed"
            if start(corpus, whole, base, 0, objective).wait():
                sys.exit(f"{objective}: the undisturbed run failed")
            at = killed_run(corpus, killed, base, objective, options.kills, draw)
            equal = {file: (whole / file).read_bytes() == (killed / file).read_bytes() for file in FILES}
            result[objective] = {"killed after steps": at, "equal, byte for byte": equal}
            print(objective, result[objective], flush=True)
    save(__file__, result)


if __name__ == "__main__":
    main()
