"""Loads an exported index into Qdrant, LanceDB and Milvus by the README's own lines, and compares what they find.

`make test-databases` runs it, in two environments, since the engines' clients are not retrokit's to install:
    python tests/databases.py export FOLDER   # with retrokit
    python tests/databases.py load FOLDER     # with lancedb, qdrant-client, pymilvus and milvus-lite
"""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np

N, D, K = 2000, 64, 10
README = Path(__file__).parents[1] / "README.md"


def export(folder: Path) -> None:
    from indexes import Entry, Index, save_vectors
    from indexes.exports import export_index

    rows = np.random.default_rng(0).normal(size=(N + 20, D)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    ids = [f"d{row}" for row in range(N)]
    store = save_vectors(folder / "v", rows[:N], ids, made_by={"normalize": True}, overwrite=True)
    entries = [Entry(one, ["all"], f"text {row}", {"year": 2000 + row % 20}) for row, one in enumerate(ids)]
    index = Index.build(store, "Flat", folder / "index", entries=entries, analyzer="none", overwrite=True)
    index.delete([f"d{row}" for row in range(0, N, 100)])
    export_index(index.reader, folder / "docs.parquet", overwrite=True)
    found = index.search(rows[N:], K).rows
    np.save(folder / "queries.npy", rows[N:])
    (folder / "found.json").write_text(json.dumps([[index.reader.ids[row] for row in line] for line in found.tolist()]))


def load(folder: Path) -> None:
    os.chdir(folder)
    expected = json.loads(Path("found.json").read_text())
    queries = np.load("queries.npy")
    section = README.read_text().split("### Into other search engines")[1].split("\n### ")[0]
    blocks = re.findall(r"```py\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 3, "one block an engine"
    for block in blocks:
        for query, ids in zip(queries[:5], expected, strict=False):
            names: dict[str, object] = {"query": query.tolist()}
            exec(block, names)
            found = [str(one) for one in names["found"]]  # type: ignore[attr-defined]
            assert found == ids, f"{found} ≠ {ids}:\n{block}"
        print(f"the same {K} documents for 5 queries by:\n{block}")  # noqa: T201


if __name__ == "__main__":
    {"export": export, "load": load}[sys.argv[1]](Path(sys.argv[2]))
