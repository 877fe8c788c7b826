"""What `Index.search` adds to FAISS: checks, exact scores, the tie rule; microseconds a call and share, by batch size.

The same mapped index, searched through our object and bare, taking turns. python -m benchmarks.indexes.wrapper
"""

import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.setting import clustered, in_turns, save
from indexes import Index, save_vectors

K = 10


def main() -> None:
    everything = clustered(100_256)
    rows, queries = everything[:-256], everything[-256:]
    result: dict[str, Any] = {"vectors": len(rows), "k": K}
    with tempfile.TemporaryDirectory() as name:
        ids = [str(row) for row in range(len(rows))]
        store = save_vectors(Path(name) / "v", rows, ids, made_by={"normalize": True})
        for factory in ("HNSW32", "IVF1024,Flat"):
            index = Index.build(store, factory, Path(name) / factory)
            bare = index.reader.segments[0].dense._index
            for batch in (1, 32, 256):
                some = np.ascontiguousarray(queries[:batch])
                rounds = 2000 // batch + 20
                ours, theirs = in_turns(rounds, partial(index.search, some, K), partial(bare.search, some, K))
                added = median(ours) - median(theirs)
                result[f"{factory}, batch {batch}"] = {
                    "microseconds of FAISS": round(1e6 * median(theirs)),
                    "added microseconds": round(1e6 * added, 1),
                    "added share": round(added / median(theirs), 4),
                }
                print(factory, batch, result[f"{factory}, batch {batch}"], flush=True)
    save(__file__, result)


if __name__ == "__main__":
    main()
