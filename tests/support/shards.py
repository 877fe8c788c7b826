"""A vectors folder of small shards, written by as many processes as a test wants, killed wherever it wants."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from indexes.vector_writer import VectorWriter, discard_partial
from indexes.vectors import VectorStore

MADE_BY = {"fingerprint": "f" * 64, "encoder": "a", "dim": 4}
CORPUS = {"source": None, "fingerprint": "x"}
ROOT = Path(__file__).parents[2]


def open_writer(folder, *, overwrite=False, made_by=MADE_BY, **encoding):
    encoding = {"shard_rows": 3, "storage": "float32", **encoding}
    return VectorWriter(Path(folder), made_by=made_by, encoding=encoding, overwrite=overwrite)


def write_shard(writer, number, rows=3):
    vectors = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4) + 100 * number
    writer.write(number, vectors, [f"{number}-{row}" for row in range(rows)], f"source {number}")


def write_folder(folder, *, shards=3, seconds=0.0, **plan):
    """What a process does that encodes: takes what is free, waits for the rest, seals; opens what is sealed already."""
    if Path(folder).exists() and not plan.get("overwrite"):
        store = VectorStore.open(folder)
        discard_partial(store.folder, store.manifest)
        return 0
    made = 0
    with contextlib.closing(open_writer(folder, **plan)) as writer:
        while missing := [number for number in range(shards) if writer.source(number) is None]:
            for number in missing:
                with writer.claim(number) as mine:
                    if mine and writer.source(number) is None:
                        time.sleep(seconds)
                        write_shard(writer, number)
                        made += 1
            time.sleep(seconds / 10)
        writer.finish(shards, CORPUS)
    return made


def die_after(module, name):
    """Make a function of a module the last thing that this process does."""
    before = getattr(module, name)

    def last(*arguments, **options):
        before(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(module, name, last)


def start(code, *arguments):
    """Start a process that runs `code` after `from shards import *`."""
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    command = [sys.executable, "-c", f"import sys\nfrom shards import *\n{code}", *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True)


def run(code, *arguments):
    """Run such a process and give back its exit status and what it said."""
    with start(code, *arguments) as process:
        said, _ = process.communicate(timeout=60)
    return process.returncode, said


def flip(path):
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


def tree(folder):
    """Every file below a folder, hidden ones too, with its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
