"""What goes wrong in long runs, provoked for real: what the user sees, and what is left on disk.

A full disk and a read-only place are small file systems mounted for it (needs root, else they are left out).
python -m benchmarks.encoding.failures
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.setting import save, text, tiny_model

RETROKIT = str(Path(sys.executable).parent / "retrokit")


def encode(root: Path, output: Path, *options: str, model: str = "model") -> list[str]:
    task = ["encode", str(root / "corpus.jsonl"), "--encoder", str(root / model), "--shard-rows", "256"]
    return [RETROKIT, *task, "--output", str(output), *options]


def outcome(command: list[str], output: Path) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {**seen(done.returncode, done.stderr, output)}


def seen(status: int, said: str, output: Path) -> dict[str, Any]:
    partial = output.with_name(f"{output.name}.partial")
    lines = [line for line in said.splitlines() if not re.search(r" documents, [\d,.]+/s", line)]
    return {
        "status": status,
        "said": [line.replace(str(output.parents[1]), "…") for line in lines],
        "a finished folder": output.exists(),
        "shards kept": len(list(partial.glob("*.done.json"))),
    }


@contextlib.contextmanager
def mounted(place: Path, *options: str) -> Iterator[Path]:
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def full_disk(root: Path) -> dict[str, Any]:
    with mounted(root / "small", "size=2m") as place:
        first = outcome(encode(root, place / "v"), place / "v")
        subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
        again = outcome(encode(root, place / "v"), place / "v")
        return {**first, "the same command, with room": again}


def read_only(root: Path) -> dict[str, Any]:
    with mounted(root / "frozen", "size=2m") as place:
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        return outcome(encode(root, place / "v"), place / "v")


def vanished_worker(root: Path) -> dict[str, Any]:
    output = root / "out" / "workers"
    process = subprocess.Popen(encode(root, output, "--workers", "2"), stderr=subprocess.PIPE, text=True)
    partial = output.with_name("workers.partial")
    while not list(partial.glob("*.done.json")) and process.poll() is None:
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children()
    os.kill(workers[0].pid, signal.SIGKILL)
    said = process.communicate()[1]
    return seen(process.returncode, said, output)


def not_a_number(root: Path) -> dict[str, Any]:
    from safetensors.torch import load_file, save_file

    shutil.copytree(root / "model", root / "broken")
    weights = load_file(root / "broken" / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"][0, 0] = float("nan")
    save_file(weights, root / "broken" / "model.safetensors", metadata={"format": "pt"})
    return outcome(encode(root, root / "out" / "broken", model="broken"), root / "out" / "broken")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "out").mkdir()
        tiny_model(root / "model")
        with (root / "corpus.jsonl").open("w") as file:
            for number in range(40_000):
                file.write(json.dumps({"_id": f"d{number}", "text": text(number, 30)}) + "\n")
        results = {"a vanished worker": vanished_worker(root), "a NaN in a weight": not_a_number(root)}
        if os.geteuid() == 0:
            results |= {"a full disk": full_disk(root), "a read-only place": read_only(root)}
    save(__file__, results)


if __name__ == "__main__":
    main()
