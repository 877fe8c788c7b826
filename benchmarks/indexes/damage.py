"""Damaged index folders of every type: each must be refused with a clear line, or answer as the whole one did.

A damage is some flipped bits, a truncation, zeros or noise over a block, a longer file, a missing file or another
file's content, in any file of the folder, the manifest included. Each is opened and searched in a process of its own,
which must not crash or hang. python -m benchmarks.indexes.damage --damages 5000
"""

import argparse
import collections
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.setting import save
from indexes import Entry, Index, InputError, save_vectors

FACTORIES = (
    "Flat", "HNSW16", "HNSW16_SQ8", "IVF16,Flat", "IVF16,SQ8", "IVF16,PQ8x4fs", "PQ8", "PQ8x4fs", "SQ8", "SQ4",
    "IVF16,PQ8x4fs,RFlat", "PCA16,Flat", "OPQ8,PQ8", "IVF16_HNSW8,Flat", "NSG16", "SQfp16", "RaBitQ", "IVF16,RaBitQ",
    "IVF16,PQ8x4fsr", "LSQ4x4",
)  # fmt: skip
DIM, ROWS = 32, 600
OUTCOMES = {0: "refused", 1: "identical", 2: "silent wrong answer", 3: "another error"}
LOCK = ".lock"


def build(root: Path, factory: str) -> Path:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(ROWS + 20, DIM)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    made_by = {"encoder": "none", "normalize": True, "fingerprint": "0" * 64}

    def entries(ids: list[str]) -> list[Entry]:
        return [Entry(id_, ["all", f"w{n % 9}"], f"text {id_}", {"year": 2000 + n % 30}) for n, id_ in enumerate(ids)]

    folder = root / factory.replace(",", "_")
    first = save_vectors(root / "v", rows[:ROWS], [f"d{n}" for n in range(ROWS)], made_by=made_by, overwrite=True)
    index = Index.build(first, factory, folder, entries=entries(first.ids), analyzer="none")
    later = save_vectors(root / "v", rows[ROWS:], [f"n{n}" for n in range(20)], made_by=made_by, overwrite=True)
    index.add(later, entries=entries(later.ids))
    index.delete(["d5", "n3"])
    return folder


def answers(folder: Path) -> tuple[bytes, ...]:
    """Everything that can be asked of an index."""
    index = Index.open(folder)
    rng = np.random.default_rng(1)
    queries = rng.normal(size=(4, DIM)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    reader = index.reader
    found = [*index.search(queries, 10), *index.search(queries, 10, filter="year >= 2015")]
    found += [*index.search_within(queries, 0.3), *reader.lexical.search([["w1"], ["w2", "all"]], 9)]
    found += [*reader.moments.of_scores(queries)]
    texts = [(stored.id, stored.text, sorted(stored.attributes.items())) for stored in index]
    return (*(part.tobytes() for part in found), repr(texts).encode(), repr(sorted(reader.made_by.items())).encode())


def damage(folder: Path, rng: random.Random) -> str:
    """Damage one file of a folder; say how and which."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)
    path = rng.choice(paths)
    data = bytearray(path.read_bytes())
    kinds = ["flip", "flip", "flip", "truncate", "block", "noise", "longer", "missing", "other"]
    kind = rng.choice(kinds if data else ["longer", "missing"])
    place = rng.randrange(len(data)) if data else 0
    if kind == "missing":
        path.unlink()
    elif kind == "other":
        path.write_bytes(rng.choice([one for one in paths if one != path]).read_bytes())
    else:
        if kind == "flip":
            for _ in range(rng.choice([1, 1, 4])):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == "truncate":
            del data[place:]
        elif kind == "longer":
            data += rng.randbytes(rng.randint(1, 100))
        else:
            size = min(rng.randint(1, 200), len(data) - place)
            data[place : place + size] = bytes(size) if kind == "block" else rng.randbytes(size)
        path.write_bytes(data)
    return f"{kind}, {path.relative_to(folder)}"


def outcome(folder: Path, right: tuple[bytes, ...]) -> str:
    """What a child process meets."""
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            status = 1 if answers(folder) == right else 2
        except InputError:
            status = 0
        except BaseException:
            status = 3
        os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return OUTCOMES[os.WEXITSTATUS(status)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--damages", type=int, default=5000)
    options = parser.parse_args()
    rng = random.Random(0)
    outcomes: dict[str, int] = collections.Counter()
    bad: list[str] = []
    started = time.time()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folders = {factory: build(root, factory) for factory in FACTORIES}
        right = {factory: answers(folder) for factory, folder in folders.items()}
        for number in range(options.damages):
            factory = FACTORIES[number % len(FACTORIES)]
            copy = root / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folders[factory], copy)
            what = damage(copy, rng)
            met = outcome(copy, right[factory])
            outcomes[met] += 1
            if met not in ("refused", "identical"):
                bad.append(f"{factory}: {what}: {met}")
    save(
        __file__,
        {
            "damaged folders": options.damages,
            "index types": list(FACTORIES),
            "outcomes": dict(outcomes),
            "neither refused nor identical": bad,
            "seconds": round(time.time() - started),
        },
    )


if __name__ == "__main__":
    main()
