"""Checks FAISS' wheel for GPUs on a machine without one; `make test-gpu-wheel` runs it in an environment of its own.

It shares its module's name with faiss-cpu, so that the two cannot be in one environment, and pytest's has faiss-cpu.
"""

import tempfile
import types
from pathlib import Path

import numpy as np

from indexes.errors import InputError
from indexes.faiss_files import build_faiss, load_faiss
from indexes.gpu import can_be_copied, device_number
from indexes.segments import JoinedRows
from indexes.targets import Targets


def refusal(device: types.SimpleNamespace) -> str:
    try:
        device_number(device)
    except InputError as refused:
        return str(refused)
    return "none"


def main() -> None:
    faiss = load_faiss()
    assert hasattr(faiss, "StandardGpuResources"), "this is not the wheel for GPUs"
    if faiss.get_num_gpus() == 0:
        assert "FAISS sees 0 GPUs" in refusal(types.SimpleNamespace(type="cuda", index=0))
    rows = np.random.default_rng(0).normal(size=(2000, 32)).astype(np.float32)
    with tempfile.TemporaryDirectory() as name:
        for factory, copied in (("Flat", False), ("HNSW8", False), ("IVF16,Flat", True), ("IVF16,PQ8x4fs", False)):
            path = Path(name) / factory
            build_faiss(JoinedRows([(Targets(rows), np.arange(len(rows)))]), factory, path)
            index = faiss.read_index(str(path))
            assert index.ntotal == len(rows)
            assert can_be_copied(faiss, index) is copied, factory
            found = index.search(rows[:50], 100)[1]
            assert np.mean([row in line for row, line in enumerate(found.tolist())]) > 0.5, factory
    print(f"faiss {faiss.__version__} for GPUs, {faiss.get_num_gpus()} seen: imported, built, read, searched")  # noqa: T201


if __name__ == "__main__":
    main()
