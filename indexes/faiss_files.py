"""FAISS files: build any factory string over vectors, check what was written, look into one."""

import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InputError
from indexes.layout import lay_out, order_file, save_order
from indexes.vectors import Rows

_DISTRIBUTIONS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu12", "faiss-gpu-cu11")
_TRAINING_ROWS = 262_144
_BLOCK = 65_536


def load_faiss() -> Any:
    """Import faiss, once it is certain that exactly one of its distributions is installed.

    The distributions share one module name: with two of them one silently overwrites the other's files.

    Raises:
        InputError: None or more than one is installed.
    """
    installed = [name for name in _DISTRIBUTIONS if _is_installed(name)]
    if not installed:
        raise InputError("FAISS is not installed; install one of: pip install 'retrokit[cpu]', 'retrokit[gpu]'")
    if len(installed) > 1:
        raise InputError(
            f"{' and '.join(installed)} are installed and overwrite each other; "
            f"pip uninstall {' '.join(installed)}, then install one of them"
        )
    import faiss

    if ("gpu" in installed[0]) != hasattr(faiss, "StandardGpuResources"):
        raise InputError(
            f"{installed[0]} is installed, but its files are those of another distribution; "
            f"pip uninstall {installed[0]}, then install it again"
        )
    return faiss


Fill = Callable[[Any, Rows], Any]
"""Trains an empty FAISS index and puts all rows into it, or makes another of them; gives the filled one."""


def fill(index: Any, store: Rows) -> Any:
    """Train an index and put all rows into it."""
    if not index.is_trained:
        index.train(_training_rows(store))
    for _, block in store.blocks(_BLOCK):
        index.add(np.ascontiguousarray(block, dtype=np.float32))
    return index


def build_faiss(store: Rows, factory: str, path: Path, how: Fill = fill) -> None:
    """Build a FAISS index of inner products over all rows and write it to a file; its layout beside it, if it has one.

    Args:
        store: The vectors.
        factory: A FAISS factory string, such as `Flat`, `HNSW32`, `IVF256,PQ48x4fs`.
        path: The file, as `faiss.read_index` reads it.
        how: What fills the index, such as a GPU (`gpu.filling_on`).

    Raises:
        InputError: FAISS does not know the string, cannot build it over these vectors, or the file is not whole.
    """
    try:
        index = how(empty_index(factory, store.dim), store)
        index.search(store[:1], 1)  # some strings are built and then cannot be searched
    except RuntimeError as error:
        raise InputError(f"FAISS cannot build {factory!r} over {len(store)} × {store.dim}: {reason(error)}") from None
    faiss = load_faiss()
    order_file(path).unlink(missing_ok=True)
    if (order := lay_out(faiss, faiss.downcast_index(index))) is not None:
        save_order(order, path)
    faiss.write_index(index, str(path))
    _check_written(faiss, path, len(store))


def empty_index(factory: str, dim: int) -> Any:
    """An index of inner products without rows.

    Raises:
        InputError: FAISS does not know the factory string, crashes on it, or compares by another metric with it.
    """
    faiss = load_faiss()
    if found := re.search(r"(HNSW|NSG)[01](?!\d)|IVF0(?!\d)", factory):
        raise InputError(f"factory {factory!r} has {found[0]}, which crashes FAISS; expected HNSW2, NSG2, IVF1 or more")
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise InputError(f"FAISS does not know {factory!r} for {dim} dimensions: {reason(error)}") from None
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise InputError(f"factory {factory!r} compares by another metric than inner products; choose another")
    return index


def stored_rows(index: Any) -> NDArray[np.float32] | None:
    """The raw rows (n, d) inside a Flat or HNSW-over-Flat index, without a copy; None where they are compressed.

    The array lives only as long as the index: keep both.
    """
    faiss = load_faiss()
    flat = faiss.downcast_index(index.storage) if hasattr(index, "storage") else index
    if not isinstance(flat, faiss.IndexFlat):
        return None
    return faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)


def _training_rows(store: Rows) -> NDArray[np.float32]:
    if len(store) <= _TRAINING_ROWS:
        return store[:]
    return store[np.sort(np.random.default_rng(0).choice(len(store), _TRAINING_ROWS, replace=False))]


def _check_written(faiss: Any, path: Path, rows: int) -> None:
    # FAISS reports errors at fclose to nobody: on a full disk the file is cut short without an exception.
    try:
        written = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC).ntotal
    except RuntimeError as error:
        raise InputError(f"{path} was not written whole ({reason(error)}); is the disk full?") from None
    if written != rows:
        raise InputError(f"{path} holds {written} of {rows} rows; is the disk full?")


def reason(error: RuntimeError) -> str:
    """What FAISS says is wrong, without where in its source."""
    # FAISS says: Error in <function> at <file>.cpp:<line>: [Error: '<condition>' failed: ]<what is wrong>
    return re.sub(r"^.*?\.(cpp|h):\d+: (Error: .*? failed: )?", "", " ".join(str(error).split()))


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
