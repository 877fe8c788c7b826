"""FAISS: build any factory string, save and map the file, search it, and score its candidates again exactly."""

import math
import re
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InputError
from indexes.exact import search_exact
from indexes.hits import Hits, top
from indexes.targets import Targets
from indexes.vectors import Rows

_DISTRIBUTIONS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu12", "faiss-gpu-cu11")
_TRAINING_ROWS = 262_144
_OVERSAMPLE = 4
_FILTERED = 8
_BLOCK = 65_536
_FEW_ROWS = 20_000
_GRAPH_SHARE = 0.3
_EF = 128
_NEARLY_ALL = 0.8
_MARGIN = 10


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

    return faiss


def build_faiss(store: Rows, factory: str, path: Path) -> None:
    """Build a FAISS index of inner products over all rows and write it to a file.

    Args:
        store: The vectors.
        factory: A FAISS factory string, such as `Flat`, `HNSW32`, `IVF256,PQ48x4fs`.
        path: The file, as `faiss.read_index` reads it.

    Raises:
        InputError: FAISS does not know the string, cannot build it over these vectors, or the file is not whole.
    """
    index = empty_index(factory, store.dim)
    try:
        if not index.is_trained:
            index.train(_training_rows(store))
        for _, block in store.blocks(_BLOCK):
            index.add(np.ascontiguousarray(block, dtype=np.float32))
        index.search(store[:1], 1)  # some strings are built and then cannot be searched
    except RuntimeError as error:
        raise InputError(f"FAISS cannot build {factory!r} over {len(store)} × {store.dim}: {_reason(error)}") from None
    faiss = load_faiss()
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
        raise InputError(f"FAISS does not know {factory!r} for {dim} dimensions: {_reason(error)}") from None
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise InputError(f"factory {factory!r} compares by another metric than inner products; choose another")
    return index


class Effort(NamedTuple):
    """How far a search goes in an approximate index: farther finds more, and takes longer. None: as by default."""

    ef: int | None = None
    """Of graphs (HNSW): how many of the nearest are kept in mind on the way; 128 by default."""
    nprobe: int | None = None
    """Of inverted lists (IVF): how many are gone through; a sixteenth, at least 16, by default."""
    candidates: int | None = None
    """How many rows are scored again from the raw vectors for each hit; 4 by default, 1 where FAISS has them whole."""

    def check(self) -> None:
        """Refuse what is no effort.

        Raises:
            InputError: A number is less than 1.
        """
        for name, value in self._asdict().items():
            if value is not None and value < 1:
                raise InputError(f"effort {name} is {value}; expected at least 1")


DEFAULT = Effort()


class Approximate:
    """A FAISS file, memory-mapped where FAISS can, that finds candidates; their scores are exact inner products.

    Rows are scored again from the raw vectors: those that the file itself holds uncompressed (Flat, HNSW over Flat),
    else `vectors` beside it. An index that returns fewer candidates than there are rows to return (IVF whose probed
    lists are short) is completed by exact search for those queries, so that min(k, n) hits come back. A Flat index is
    searched exactly, by `search_exact` and not by FAISS, which is several times slower for 2 to 300 queries at once.

    Args:
        path: The FAISS file.
        vectors: (n, d) raw rows, needed where the file holds them only compressed.

    Attributes:
        targets: The raw rows (n, d), wherever they are.
        rows: n.
        dim: d.
        metric: `ip` (inner product) or `other`.
        exhaustive: Whether every search goes through all rows (Flat).
    """

    def __init__(self, path: Path, vectors: NDArray[np.float32] | None = None) -> None:
        faiss = self._faiss = load_faiss()  # which takes longer than a search
        try:
            self._index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise InputError(f"{path}: FAISS cannot read it ({_reason(error)}); make the index again") from None
        self.dim = int(self._index.d)
        self.rows = int(self._index.ntotal)
        self.metric = "ip" if self._index.metric_type == faiss.METRIC_INNER_PRODUCT else "other"
        inside = stored_rows(self._index)
        self._lossy = inside is None and not isinstance(self._index, faiss.IndexIVFFlat)
        if inside is None and vectors is None:
            raise InputError(f"{path} holds only compressed vectors and there are none beside it; make the index again")
        self.targets = Targets(vectors if inside is None else inside)  # type: ignore[arg-type]
        self.exhaustive = type(self._index).__name__ == "IndexFlatIP"
        _widen(faiss, self._index)

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        keep: NDArray[np.bool_] | None = None,
        effort: Effort = DEFAULT,
    ) -> Hits:
        """Find the k best rows for each query (q, d), of those to keep (n,); hits are ordered by exact score.

        k is at most the number of rows to keep. Those few enough are searched exactly. FAISS goes through more of them:
        through more lists, or farther through the graph, the rarer they are. Where nearly all are kept, it looks for
        a few more, and those not to be kept are left out of what it finds.
        """
        count = self.rows if keep is None else int(np.count_nonzero(keep))
        nearly = keep is not None and count >= _NEARLY_ALL * self.rows
        usual = _OVERSAMPLE if self._lossy else 1
        times = max(_FILTERED if keep is not None and not nearly else 1, effort.candidates or usual)
        wanted = min(math.ceil(times * k * self.rows / count) + _MARGIN if nearly else times * k, self.rows)
        some = keep is not None and not nearly
        parameters = self._filtered(keep, wanted, effort) if some else self._unfiltered(effort)  # type: ignore[arg-type]
        if self.exhaustive or (some and parameters is None):
            return search_exact(queries, self.targets, k, keep=keep)
        try:
            _, rows = self._index.search(queries, wanted, params=parameters)  # (q, wanted)
        except RuntimeError as error:
            if keep is not None:  # some kinds of lists (residual quantizers, spectral hashing) take no selector
                return search_exact(queries, self.targets, k, keep=keep)
            raise InputError(f"FAISS cannot search {type(self._index).__name__}: {_reason(error)}") from None
        if keep is not None and nearly:
            rows[~keep[rows]] = -1  # (where a row is -1, that is what it stays)
        found = top(self.scores(queries, rows), k, rows)
        short: NDArray[np.bool_] = found.rows[:, -1] < 0
        if some:  # few among the nearest: what is kept lies elsewhere, and these are but its edge
            short |= rows[:, -1] < 0
        if short.any():
            whole = search_exact(queries[short], self.targets, k, keep=keep)
            found.rows[short], found.scores[short] = whole.rows, whole.scores
        return found

    def _unfiltered(self, effort: Effort) -> Any:
        """How FAISS is to search among all rows; None: as by default."""
        if effort == DEFAULT or self.exhaustive:
            return None
        return _parameters(self._faiss, self._index, effort)

    def _filtered(self, keep: NDArray[np.bool_], wanted: int, effort: Effort) -> Any:
        """How FAISS is to search among some rows only; None: it had better not.

        Only of inverted lists and of graphs is it known how much farther they must be searched. FAISS' other indexes
        ignore the filter, or refuse it, once they are nested (IndexRefine, IndexPreTransform, IndexPQFastScan).
        """
        count = int(np.count_nonzero(keep))
        share = count / self.rows
        if self.exhaustive or count <= _FEW_ROWS:
            return None
        faiss = self._faiss
        lists, graph = isinstance(self._index, faiss.IndexIVF), isinstance(self._index, faiss.IndexHNSW)
        nprobe = (effort.nprobe or _usual_nprobe(self._index.nlist)) / share if lists else math.inf
        if lists and nprobe < self._index.nlist:
            return faiss.SearchParametersIVF(sel=_selector(faiss, keep), nprobe=math.ceil(nprobe))
        if graph and share >= _GRAPH_SHARE:
            ef = math.ceil(max(effort.ef or _EF, 2 * wanted) / share)
            return faiss.SearchParametersHNSW(sel=_selector(faiss, keep), efSearch=ef)
        return None

    def scores(self, queries: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Exact inner products of each query (q, d) with its own rows (q, m); -inf where a row is -1."""
        return self.targets.scores(queries, rows)


def stored_rows(index: Any) -> NDArray[np.float32] | None:
    """The raw rows (n, d) inside a Flat or HNSW-over-Flat index, without a copy; None where they are compressed.

    The array lives only as long as the index: keep both.
    """
    faiss = load_faiss()
    flat = faiss.downcast_index(index.storage) if hasattr(index, "storage") else index
    if not isinstance(flat, faiss.IndexFlat):
        return None
    return faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)


def _selector(faiss: Any, keep: NDArray[np.bool_]) -> Any:
    return faiss.IDSelectorBitmap(np.packbits(keep, bitorder="little"))


def _usual_nprobe(lists: int) -> int:
    return min(lists, max(16, lists // 16))


def _inside(faiss: Any, index: Any) -> Any:
    """The index that another is wrapped around; None: around none."""
    if isinstance(index, faiss.IndexPreTransform):
        return index.index
    return index.base_index if isinstance(index, faiss.IndexRefine) else None


def _widen(faiss: Any, index: Any) -> None:
    """Search wider than FAISS' defaults (1 list, 16 neighbours), which lose most of the answers."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efSearch = _EF
    elif isinstance(index, faiss.IndexIVF):
        index.nprobe = _usual_nprobe(index.nlist)
    elif (inner := _inside(faiss, index)) is not None:
        _widen(faiss, inner)


def _parameters(faiss: Any, index: Any, effort: Effort) -> Any:
    """FAISS' search parameters, through all that is wrapped around a graph or lists; None where it has none.

    Fresh objects for each search: FAISS changes those it is given, so that threads must not share them.
    """
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=effort.ef or _EF)
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=min(index.nlist, effort.nprobe or _usual_nprobe(index.nlist)))
    inside = _inside(faiss, index)
    inner = None if inside is None else _parameters(faiss, inside, effort)
    if inner is None:
        return None
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(index_params=inner)
    return faiss.IndexRefineSearchParameters(base_index_params=inner, k_factor=index.k_factor)


def _training_rows(store: Rows) -> NDArray[np.float32]:
    if len(store) <= _TRAINING_ROWS:
        return store[:]
    return store[np.sort(np.random.default_rng(0).choice(len(store), _TRAINING_ROWS, replace=False))]


def _check_written(faiss: Any, path: Path, rows: int) -> None:
    # FAISS reports errors at fclose to nobody: on a full disk the file is cut short without an exception.
    try:
        written = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC).ntotal
    except RuntimeError as error:
        raise InputError(f"{path} was not written whole ({_reason(error)}); is the disk full?") from None
    if written != rows:
        raise InputError(f"{path} holds {written} of {rows} rows; is the disk full?")


def _reason(error: RuntimeError) -> str:
    # FAISS says: Error in <function> at <file>.cpp:<line>: [Error: '<condition>' failed: ]<what is wrong>
    return re.sub(r"^.*?\.(cpp|h):\d+: (Error: .*? failed: )?", "", " ".join(str(error).split()))


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
