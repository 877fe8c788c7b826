"""Damaged index folders of every type: each must be refused with a clear line, or answer as the whole one did.

A damage is some flipped bits, a truncation, zeros or noise over a block, a longer file, a missing file or another
file's content, in any file of the folder, the manifest included. Each is opened and searched in another process,
which must not crash or hang. python -m benchmarks.indexes.damage --damages 5000
"""

import argparse
import collections
import hashlib
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.setting import save
from indexes import Entry, Index, InputError, layout, save_vectors

FACTORIES = (
    "Flat", "HNSW16", "HNSW16_SQ8", "IVF16,Flat", "IVF16,SQ8", "IVF16,PQ8x4fs", "PQ8", "PQ8x4fs", "SQ8", "SQ4",
    "IVF16,PQ8x4fs,RFlat", "PCA16,Flat", "OPQ8,PQ8", "IVF16_HNSW8,Flat", "NSG16", "SQfp16", "RaBitQ", "IVF16,RaBitQ",
    "IVF16,PQ8x4fsr", "LSQ4x4",
)  # fmt: skip
DIM, ROWS = 32, 600
LOCK = ".lock"


def build(root: Path, factory: str) -> Path:
    layout.LEAST_ROWS = 100  # so that these graphs are laid out, as large ones are
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


def serve() -> None:
    """Answer for one folder after the other, named on lines of the standard input."""
    for line in sys.stdin:
        try:
            said = hashlib.sha256(repr(answers(Path(line.rstrip("\n")))).encode()).hexdigest()
        except InputError:
            said = "refused"
        except BaseException as error:
            said = f"another error: {type(error).__name__}"
        print(said, flush=True)


class Child:
    """A process that answers, made anew when it crashed or hung."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def ask(self, folder: Path) -> str:
        """A digest of the answers of an index, or what became of the question."""
        if self.process is None:
            command = [sys.executable, "-m", "benchmarks.indexes.damage", "--serve"]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], 60)
        said = self.process.stdout.readline().strip() if ready else "hung"
        if said in ("", "hung"):
            self.process.kill()
            status = self.process.wait()
            self.process = None
            return said or f"crashed: {signal.Signals(-status).name if status < 0 else status}"
        return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--damages", type=int, default=5000)
    parser.add_argument("--serve", action="store_true")
    options = parser.parse_args()
    if options.serve:
        return serve()
    rng = random.Random(0)
    outcomes: dict[str, int] = collections.Counter()
    bad: list[str] = []
    started = time.time()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folders = {factory: build(root, factory) for factory in FACTORIES}
        child = Child()
        right = {factory: child.ask(folder) for factory, folder in folders.items()}
        for number in range(options.damages):
            factory = FACTORIES[number % len(FACTORIES)]
            copy = root / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folders[factory], copy)
            what = damage(copy, rng)
            said = child.ask(copy)
            met = "identical" if said == right[factory] else said if len(said) != 64 else "silent wrong answer"
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
    return None


if __name__ == "__main__":
    main()
