"""What `Index.search` adds to FAISS, microseconds a call and share, by batch size.

By default: checks, exact scores, the tie rule. With `Effort(candidates=0)` scores are FAISS' own, as in bare FAISS.

The same mapped index, searched through our object and bare, taking turns. python -m benchmarks.indexes.wrapper
"""

import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.setting import clustered, in_turns, save
from indexes import Effort, Index, save_vectors

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
                sides = (
                    partial(bare.search, some, K),
                    partial(index.search, some, K),
                    partial(index.search, some, K, effort=Effort(candidates=0)),
                )
                theirs, *ours = (median(times) for times in in_turns(4000 // batch + 60, *sides))
                said = result[f"{factory}, batch {batch}"] = {"microseconds of FAISS": round(1e6 * theirs)}
                for kind, mine in zip(("exact scores", "FAISS' scores"), ours, strict=True):
                    said[f"{kind}: added microseconds"] = round(1e6 * (mine - theirs), 1)
                    said[f"{kind}: added share"] = round((mine - theirs) / theirs, 4)
                print(factory, batch, result[f"{factory}, batch {batch}"], flush=True)
    save(__file__, result)


if __name__ == "__main__":
    main()
