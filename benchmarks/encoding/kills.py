"""SIGKILL at random moments under each runner: the finished folder must equal an undisturbed one in every byte.

Each victim is drawn from the processes of the run: the command itself, worker processes, ranks, Ray actors. A run that
ends before its kill is compared and begun anew. python -m benchmarks.encoding.kills --kills 30
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.setting import save, text, tiny_model

BIN = Path(sys.executable).parent
RUNNERS = {
    "this process": [],
    "processes": ["--workers", "2"],
    "torchrun": [],
    "ray": ["--ray", "local", "--workers", "2"],
}


def command(runner: str, root: Path, output: Path) -> list[str]:
    start = [str(BIN / "torchrun"), "--nproc-per-node=2", "--no-python"] if runner == "torchrun" else []
    task = ["encode", str(root / "corpus.jsonl"), "--encoder", str(root / "model"), "--shard-rows", "64"]
    return [*start, str(BIN / "retrokit"), *task, "--output", str(output), *RUNNERS[runner]]


def victims(process: subprocess.Popen[bytes], runner: str) -> list[psutil.Process]:
    """Processes that may be killed: all but Ray's own services, which are the cluster and not the run."""
    with contextlib.suppress(psutil.NoSuchProcess):
        found = [psutil.Process(process.pid)]
        for child in found[0].children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if runner != "ray" or "ray::_Encoding" in " ".join(child.cmdline()):
                    found.append(child)
        return found
    return []


def end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a run whose leader was killed, so that the next one starts alone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def torment(runner: str, root: Path, kills: int, chance: random.Random) -> dict[str, Any]:
    whole = root / f"{runner.replace(' ', '-')}-whole"
    start = time.monotonic()
    subprocess.run(command(runner, root, whole), check=True, capture_output=True)
    length = time.monotonic() - start
    expected = files(whole)
    first = files(root / "this-process-whole")
    tally = {"kills": 0, "of the leader": 0, "runs that went on by themselves": 0, "finished folders": 0, "equal": 0}
    output = root / f"{runner.replace(' ', '-')}-v"
    while tally["kills"] < kills or output.with_name(f"{output.name}.partial").exists():
        # A file and not a pipe: a pipe nobody reads fills up, and the run would wait for us.
        with (root / "said").open("wb") as said:
            process = subprocess.Popen(
                command(runner, root, output), stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
            )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=chance.uniform(0.2, 1.0) * length if tally["kills"] < kills else None)
        if process.poll() is None and (found := victims(process, runner)):
            victim = chance.choice(found)
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
                tally["kills"] += 1
                tally["of the leader"] += victim.pid == process.pid
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=60)
            tally["runs that went on by themselves"] += process.returncode == 0
            end(process)
        elif process.returncode != 0:
            sys.exit(f"{runner}: {(root / 'said').read_text()}")
        if output.is_dir():
            tally["finished folders"] += 1
            tally["equal"] += files(output) == expected
            subprocess.run(["rm", "-r", str(output)], check=True)
        print(f"{time.monotonic() - start:7.0f} s  {runner}: {tally}", flush=True)
    if runner == "ray":
        subprocess.run([str(BIN / "ray"), "stop", "--force"], capture_output=True, check=False)
    return {**tally, "equal to one process's": expected == first, "seconds of an undisturbed run": round(length, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30, help="under each runner")
    parser.add_argument("--documents", type=int, default=40_000)
    parser.add_argument("--runners", nargs="*", default=list(RUNNERS))
    options = parser.parse_args()
    chance = random.Random(0)
    results = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        root = Path(name)
        tiny_model(root / "model")
        with (root / "corpus.jsonl").open("w") as file:
            for number in range(options.documents):
                file.write(json.dumps({"_id": f"d{number}", "text": text(number, 30)}) + "\n")
        subprocess.run(command("this process", root, root / "this-process-whole"), check=True, capture_output=True)
        for runner in options.runners:
            if runner == "this process":
                subprocess.run(["rm", "-r", str(root / "this-process-whole")], check=True)
            results[runner] = torment(runner, root, options.kills, chance)
            save(__file__, {"documents": options.documents, "shard rows": 64, "runners": results})


if __name__ == "__main__":
    main()
