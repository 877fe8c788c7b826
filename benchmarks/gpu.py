"""What a GPU gives: exact search through torch, inverted lists through FAISS, encoding; beside the processor.

    python -m benchmarks.gpu                     # on a machine with CUDA
    python -m benchmarks.gpu --device cpu --vectors 20000   # tries the script itself

FAISS' part needs a wheel for GPUs (the extra `gpu`); without it that part says so.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.setting import clustered, in_turns, save, text
from indexes import Effort, Index, InputError, save_vectors, search_exact
from indexes.device import DeviceSearch, checked_device
from indexes.targets import Targets

K = 10


def settled(device: Any, work: Callable[[], object]) -> Callable[[], object]:
    """Work, and the wait until the device has done it."""

    def run() -> object:
        done = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return done

    return run


def exact(rows: np.ndarray, queries: np.ndarray, device: Any) -> dict[str, Any]:
    targets = Targets(rows)
    targets.longest  # noqa: B018 - read once, before anything is timed
    kept, streamed = (DeviceSearch(targets, device, resident) for resident in (True, False))
    found: dict[str, Any] = {}
    for batch in (1, 32, 256, 2048):
        some = queries[:batch]
        sides = {
            "processor": lambda some=some: search_exact(some, targets, K),
            "resident": settled(device, lambda some=some: kept.search(some, K)),
            "streamed": settled(device, lambda some=some: streamed.search(some, K)),
        }
        expected = sides["processor"]()
        same = {name: bool((side().rows == expected.rows).all()) for name, side in sides.items()}  # type: ignore[attr-defined]
        times = in_turns(5, *sides.values())
        found[f"batch {batch}"] = {
            "queries/s": {name: round(len(some) / median(one)) for name, one in zip(sides, times, strict=True)},
            "same hits": all(same.values()),
        }
        print(batch, found[f"batch {batch}"], flush=True)
    return found


def lists(rows: np.ndarray, queries: np.ndarray, device: str, folder: Path) -> dict[str, Any]:
    store = save_vectors(folder / "v", rows, [str(row) for row in range(len(rows))], made_by={"normalize": True})
    factory, found = f"IVF{2 ** round(np.log2(4 * np.sqrt(len(rows))))},Flat", {}
    right = search_exact(queries, rows, K).rows
    try:
        for place in (None, device):
            start = time.perf_counter()
            Index.build(store, factory, folder / "i", device=place, overwrite=True)
            found[f"build on {place or 'the processor'}, s"] = round(time.perf_counter() - start, 1)
        for place in (None, device):
            index, effort = Index.open(folder / "i", "size", device=place), Effort(nprobe=32)
            (times,) = in_turns(5, lambda index=index, effort=effort: index.search(queries, K, effort=effort))
            rows_found = index.search(queries, K, effort=effort).rows
            recall = np.mean(
                [len(set(a) & set(b)) / K for a, b in zip(rows_found.tolist(), right.tolist(), strict=True)]
            )
            found[f"search on {place or 'the processor'}"] = {
                "queries/s": round(len(queries) / median(times)),
                "recall": round(float(recall), 4),
            }
    except InputError as refused:
        found["refused"] = str(refused)
    print(found, flush=True)
    return {factory: found}


def encoding(device: str) -> dict[str, Any]:
    from retrieval import Encoder

    texts = [text(number, 180) for number in range(2048 if device == "cuda" else 32)]
    found = {}
    for dtype in ("float32", "bfloat16"):
        encoder = Encoder.load("all-MiniLM-L6-v2", device=device, dtype=dtype)
        encoder.encode_documents(texts[:64])
        (times,) = in_turns(3, lambda encoder=encoder: encoder.encode_documents(texts))
        found[f"{dtype}, documents/s"] = round(len(texts) / median(times))
    print(found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device = checked_device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    rows, queries = np.split(clustered(options.vectors + 2048), [options.vectors])
    result: dict[str, Any] = {"device": name, "vectors": len(rows), "dim": rows.shape[1], "k": K}
    result["exact"] = exact(rows, queries, device)
    with TemporaryDirectory() as folder:
        result["inverted lists"] = lists(rows, queries, options.device, Path(folder))
    result["encoding all-MiniLM-L6-v2, about 240 tokens"] = encoding(options.device)
    if device.type == "cuda":
        save(__file__, result)


if __name__ == "__main__":
    main()
