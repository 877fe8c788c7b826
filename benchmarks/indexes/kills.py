"""SIGKILL at random moments while an index is built, added to, upserted, deleted from and compacted.

A child process makes change after change, and says when it begins and when it has ended each. After each kill the index
must open, every checksum must hold, and its documents, vectors, texts, attributes and BM25 must be those after the last
change that ended, or after the one that was under way. Then the next child goes on from there.

    python -m benchmarks.indexes.kills --kills 200
"""

import argparse
import collections
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.setting import save
from indexes import Entry, Index, save_vectors
from indexes.faiss_files import load_faiss
from indexes.vectors import VectorStore

DIM = 32
MADE_BY = {"encoder": "none", "normalize": True, "fingerprint": "0" * 64}
KINDS = ("add", "upsert", "delete", "compact", "build")
State = dict[str, int]
"""The version of each document, by its id."""


def vector(id_: str, version: int) -> np.ndarray:
    row = np.random.default_rng(hash_of(id_, version)).normal(size=DIM)
    return (row / np.linalg.norm(row)).astype(np.float32)


def hash_of(id_: str, version: int) -> int:
    return int(id_[1:]) * 1009 + version


def entry(id_: str, version: int) -> Entry:
    return Entry(id_, ["all", id_, f"v{version}"], f"{id_} in version {version}", {"version": version})


def next_change(state: State, number: int) -> tuple[str, State]:
    """The kind of change number so and so, and the documents that it brings (version ≥ 0) or takes away (-1)."""
    rng = random.Random(number)
    kind = "build" if not state else rng.choices(KINDS, weights=(4, 4, 3, 3, 1))[0]
    if kind == "build":
        return kind, {f"d{n}": number for n in range(rng.randint(20, 300))}
    if kind == "add":
        return kind, {f"d{number * 1000 + n}": number for n in range(rng.randint(1, 100))}
    some = rng.sample(sorted(state), min(len(state) - 1, rng.randint(1, 60)))
    if kind == "upsert":
        return kind, dict.fromkeys([*some, f"d{number * 1000}"], number)
    return kind, dict.fromkeys(some, -1) if kind == "delete" else {}


def after(state: State, kind: str, brought: State) -> State:
    """The documents after a change, in their order."""
    left = {} if kind == "build" else {id_: version for id_, version in state.items() if id_ not in brought}
    return left | {id_: version for id_, version in brought.items() if version >= 0}


def make(root: Path, kind: str, brought: State) -> None:
    """Carry a change out."""
    if kind == "compact":
        return Index.open(root / "i").compact()
    if kind == "delete":
        Index.open(root / "i").delete(sorted(brought))
        return None
    rows = np.stack([vector(id_, version) for id_, version in brought.items()])
    store: VectorStore = save_vectors(root / "v", rows, list(brought), made_by=MADE_BY, overwrite=True)
    entries = [entry(id_, version) for id_, version in brought.items()]
    print("go", flush=True)
    if kind == "build":
        Index.build(store, "HNSW16,Flat", root / "i", entries=entries, overwrite=True)
    elif kind == "add":
        Index.open(root / "i").add(store, entries=entries)
    else:
        Index.open(root / "i").upsert(store, entries=entries)
    return None


def child(root: Path, number: int) -> None:
    state = state_of(root)
    load_faiss()  # which takes a while the first time
    while True:
        kind, brought = next_change(state, number)
        print(f"begin {number} {kind}", flush=True)
        make(root, kind, brought)
        state, number = after(state, kind, brought), number + 1
        print("end", flush=True)


def state_of(root: Path) -> State:
    """What the index holds, compared part by part with what its documents should be."""
    if not (root / "i").exists():
        return {}
    index = Index.open(root / "i", "full")
    state: State = {}
    for stored in index:
        version = stored.attributes["version"]
        expected = entry(stored.id, version)
        if stored.text != expected.text or not np.array_equal(stored.vectors[0], vector(stored.id, version)):
            raise AssertionError(f"{stored.id} is not what was stored")
        state[stored.id] = version
    reader = index.reader
    for row in np.random.default_rng(len(state)).choice(reader.rows_of(list(state)), min(5, len(state)), replace=False):
        id_ = reader.ids[int(row)]
        best = index.search(vector(id_, state[id_])[None], 1)
        words = reader.lexical.search([[id_]], 2, reader.matching(None))
        if best.rows[0, 0] != row or words.rows[0].tolist()[0] != row:
            raise AssertionError(f"{id_} is not found")
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--child", nargs=2)
    options = parser.parse_args()
    if options.child:
        return child(Path(options.child[0]), int(options.child[1]))
    rng = random.Random(0)
    during: dict[str, int] = collections.Counter()
    outcome: dict[str, int] = collections.Counter()
    started = time.time()
    with tempfile.TemporaryDirectory() as name:
        root, state, number, kills = Path(name), {}, 0, 0
        while kills < options.kills:
            said = root / "said"
            with said.open("w") as file:
                command = [sys.executable, "-m", "benchmarks.indexes.kills", "--child", name, str(number)]
                process = subprocess.Popen(command, stdout=file)
                while "begin" not in said.read_text() and process.poll() is None:
                    time.sleep(0.005)
                time.sleep(rng.uniform(0, 0.5))
                process.send_signal(signal.SIGKILL)
                if process.wait() != -signal.SIGKILL:
                    raise AssertionError(f"the child ended by itself: {said.read_text()[-500:]}")
            lines = said.read_text().splitlines()
            for _ in range(lines.count("end")):
                state, number = after(state, *next_change(state, number)), number + 1
            kind, brought = next_change(state, number)
            whole = bool(lines) and lines[-1] != "end"
            found = state_of(root)
            both = {"before": state, "after": after(state, kind, brought)}
            match = next((when for when, one in both.items() if list(one.items()) == list(found.items())), None)
            if match is None:
                raise AssertionError(f"after a kill during {kind} the index is neither as before nor as after it")
            if match == "after" and both["before"] != both["after"]:
                state, number = both["after"], number + 1
            elif match == "before" and kind == "compact":
                number += 1
            during[kind if whole else "between changes"] += 1
            outcome[match] += 1
            kills += 1
    save(
        __file__,
        {
            "kills": kills,
            "changes that ended": number,
            "killed during": dict(during),
            "the index was as before or after the change": dict(outcome),
            "lost or damaged": 0,
            "seconds": round(time.time() - started),
        },
    )
    return None


if __name__ == "__main__":
    main()
