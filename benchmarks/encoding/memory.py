"""A million short documents, made as they are read, through a tiny encoder: memory from the first tenth to the last.

python -m benchmarks.encoding.memory
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.setting import save, text, tiny_model
from retrieval import Document, Encoder


def resident() -> float:
    """MB of memory that this process has now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=1_000_000)
    count = parser.parse_args().documents
    root = Path(tempfile.mkdtemp())
    peaks = [0.0] * 10

    def documents() -> Iterator[Document]:
        for number in range(count):
            yield Document(f"document-{number:08d}", text(number))

    def watch(done: int, total: int | None) -> None:
        tenth = min(10 * done // count, 9)
        peaks[tenth] = max(peaks[tenth], resident())

    encoder = Encoder.load(str(tiny_model(root / "model")))
    before = resident()
    start = time.perf_counter()
    store = encoder.encode_corpus(documents(), root / "v", on_progress=watch)
    spent = time.perf_counter() - start
    rows = len(store)
    shutil.rmtree(root)
    result = {
        "documents": rows,
        "documents/s": round(rows / spent),
        "MB before": round(before),
        "peak MB in each tenth": [round(peak) for peak in peaks],
    }
    save(__file__, result)


if __name__ == "__main__":
    main()
