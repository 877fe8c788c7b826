"""Approximate search: FAISS finds candidates, their scores are exact."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexes.device import DeviceSearch
from indexes.efforts import AFTER_REFINEMENT, DEFAULT, EF, Effort, ladder, search_parameters, usual_nprobe, widen
from indexes.errors import InputError
from indexes.exact import search_exact
from indexes.faiss_files import load_faiss, reason, stored_rows
from indexes.gpu import GpuCopy, can_be_copied, device_number
from indexes.hits import Hits, top
from indexes.layout import open_order, order_file
from indexes.targets import Targets

ExactSearch = Callable[[NDArray[np.float32], int, NDArray[np.bool_] | None], Hits]
_OVERSAMPLE = 4
_FILTERED = 8
_FEW_ROWS = 20_000
_GRAPH_SHARE, _GRAPH_SHARE_OF_FEW = 0.3, 0.1
_FEW_QUERIES = 8
_NEAREST, _FAR = 32, 0.25
_NEARLY_ALL = 0.8
_MARGIN = 10


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
            raise InputError(f"{path}: FAISS cannot read it ({reason(error)}); make the index again") from None
        self.dim = int(self._index.d)
        self.rows = int(self._index.ntotal)
        self.metric = "ip" if self._index.metric_type == faiss.METRIC_INNER_PRODUCT else "other"
        inside = stored_rows(self._index)
        self._lossy = inside is None and not isinstance(self._index, faiss.IndexIVFFlat)
        if inside is None and vectors is None:
            raise InputError(f"{path} holds only compressed vectors and there are none beside it; make the index again")
        self.targets = Targets(vectors if inside is None else inside)  # type: ignore[arg-type]
        self._exact: ExactSearch = self._search_exact
        self._gpu: GpuCopy | None = None
        self._oversample = _OVERSAMPLE if self._lossy else 1
        self._is_graph = isinstance(self._index, faiss.IndexHNSW)
        self._refines = isinstance(self._index, faiss.IndexRefine)
        self.exhaustive = type(self._index).__name__ == "IndexFlatIP"
        self._order = open_order(path)  # the row at each place
        if self._order is not None and len(self._order) != self.rows + 1:
            raise InputError(f"{order_file(path)} has {len(self._order) - 1} rows of {self.rows}; make the index again")
        widen(faiss, self._index)

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        keep: NDArray[np.bool_] | None = None,
        effort: Effort = DEFAULT,
    ) -> Hits:
        """Find the k best rows for each query (q, d), of those to keep (n,); hits are ordered by exact score.

        Or by FAISS' own, if the effort says that no candidate is to be scored again.

        k is at most the number of rows to keep. Those few enough are searched exactly. FAISS goes through more of them:
        through more lists, or farther through the graph, the rarer they are. Where nearly all are kept, it looks for
        a few more, and those not to be kept are left out of what it finds.
        """
        if self.exhaustive:
            return self._exact(queries, k, keep)
        some, wanted, parameters = self._plan(len(queries), k, keep, effort)
        if some and parameters is None:
            return search_exact(queries, self.targets, k, keep=keep)
        try:
            scores, rows = self._candidates(queries, wanted, parameters, keep, effort, some=some)  # (q, wanted)
        except RuntimeError as error:
            if keep is not None:  # some kinds of lists (residual quantizers, spectral hashing) take no selector
                return search_exact(queries, self.targets, k, keep=keep)
            raise InputError(f"FAISS cannot search {type(self._index).__name__}: {reason(error)}") from None
        if effort.candidates == 0:
            found = top(np.where(rows < 0, -np.inf, scores), k, rows)
        else:
            found = top(self.scores(queries, rows), k, rows)
        if keep is None and rows[:, -1].min(initial=0) >= 0:
            return found
        short: NDArray[np.bool_] = found.rows[:, -1] < 0
        if some:  # few among the nearest: what is kept lies elsewhere, and these are but its edge
            short |= rows[:, -1] < 0
        if short.any():
            whole = search_exact(queries[short], self.targets, k, keep=keep)
            found.rows[short], found.scores[short] = whole.rows, whole.scores
        return found

    def _candidates(
        self,
        queries: NDArray[np.float32],
        wanted: int,
        parameters: Any,
        keep: NDArray[np.bool_] | None,
        effort: Effort,
        *,
        some: bool,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """FAISS' scores and rows (q, wanted); -1 where it found none, or one that is not to be kept."""
        if some:
            scores, rows = self._in_file(queries, wanted, parameters)
            if self._is_graph:
                rows[self._far_from(queries, keep)] = -1  # type: ignore[arg-type] # (so that they are searched exactly)
            return scores, rows
        scores, rows = self._searched(queries, wanted, parameters, effort)
        if keep is not None:
            rows[~keep[rows]] = -1  # (where a row is -1, that is what it stays)
        return scores, rows

    def _searched(
        self, queries: NDArray[np.float32], wanted: int, parameters: Any, effort: Effort
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """FAISS' scores and rows among all (q, wanted), found on the GPU where that can."""
        if self._gpu is not None:
            nprobe = min(self._index.nlist, effort.nprobe or usual_nprobe(self._index.nlist))
            if self._gpu.takes(wanted, nprobe):
                return self._gpu.search(queries, wanted, nprobe)
        return self._in_file(queries, wanted, parameters)

    def _in_file(
        self, queries: NDArray[np.float32], wanted: int, parameters: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """What FAISS finds, scores and rows (q, wanted); its file may have them in another order."""
        scores, places = self._index.search(queries, wanted, params=parameters)
        return scores, places if self._order is None else self._order[places]

    def move_to(self, device: Any) -> None:
        """Have a torch device search: exact indexes by products there, inverted lists by FAISS, where it can.

        Filtered searches, and those for more rows or in more lists than FAISS takes on GPUs, stay on the processor.

        Raises:
            InputError: FAISS has no such index for GPUs, or no GPU.
        """
        if self.exhaustive:
            self._exact = DeviceSearch(self.targets, device).search
        elif can_be_copied(self._faiss, self._index):
            self._gpu = GpuCopy(self._index, device_number(device))
        else:
            raise InputError(
                f"FAISS does not search {type(self._index).__name__} on a GPU; open the index without a device, or "
                "build it as Flat, or IVF… of whole, SQ or 8-bit PQ rows"
            )

    def _search_exact(self, queries: NDArray[np.float32], k: int, keep: NDArray[np.bool_] | None) -> Hits:
        return search_exact(queries, self.targets, k, keep=keep)

    def _far_from(self, queries: NDArray[np.float32], keep: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which queries (q,) lie where few rows are kept: graphs hardly find their way from there to what is.

        At 1,000,000 vectors, half of them kept, such queries' recall was 0.84 with an ef of 256, 0.92 with 2,048.
        """
        nearest = self._faiss.SearchParametersHNSW(efSearch=_NEAREST)
        _, rows = self._in_file(queries, _NEAREST, nearest)
        return keep[rows].mean(axis=1) < _FAR * np.count_nonzero(keep) / self.rows

    def _plan(self, queries: int, k: int, keep: NDArray[np.bool_] | None, effort: Effort) -> tuple[bool, int, Any]:
        """Whether FAISS is to search among some rows only, for how many of them, and how; see `_filtered`."""
        again = AFTER_REFINEMENT if self._refines else effort.candidates or self._oversample
        if effort.candidates == 0:
            again = 1
        if keep is None:
            return False, min(again * k, self.rows), self._unfiltered(effort)
        count = int(np.count_nonzero(keep))
        if count >= _NEARLY_ALL * self.rows:
            wanted = min(math.ceil(again * k * self.rows / count) + _MARGIN, self.rows)
            return False, wanted, self._unfiltered(effort)
        wanted = min(max(_FILTERED, again) * k, self.rows)
        return True, wanted, self._filtered(queries, keep, wanted, effort)

    def ladder(self) -> list[list[Effort]]:
        """Efforts to try, from the least on; see `efforts.ladder`."""
        if self.exhaustive:
            return [[DEFAULT]]
        return ladder(self._faiss, self._index, compressed=self._lossy)

    def _unfiltered(self, effort: Effort) -> Any:
        """How FAISS is to search among all rows; None: as by default."""
        if effort.ef is None and effort.nprobe is None and (effort.candidates is None or not self._refines):
            return None
        return search_parameters(self._faiss, self._index, effort)

    def _filtered(self, queries: int, keep: NDArray[np.bool_], wanted: int, effort: Effort) -> Any:
        """How FAISS is to search among some rows only; None: it had better not.

        Only of inverted lists and of graphs is it known how much farther they must be searched. FAISS' other indexes
        ignore the filter, or refuse it, once they are nested (IndexRefine, IndexPreTransform, IndexPQFastScan).
        """
        count = int(np.count_nonzero(keep))
        share = count / self.rows
        if count <= _FEW_ROWS:
            return None
        faiss = self._faiss
        lists = isinstance(self._index, faiss.IndexIVF)
        nprobe = (effort.nprobe or usual_nprobe(self._index.nlist)) / share if lists else math.inf
        if lists and nprobe < self._index.nlist:
            return faiss.SearchParametersIVF(sel=self._selector(keep), nprobe=math.ceil(nprobe))
        if self._is_graph and share >= (_GRAPH_SHARE_OF_FEW if queries < _FEW_QUERIES else _GRAPH_SHARE):
            ef = math.ceil(max(effort.ef or EF, 2 * wanted) / share)
            return faiss.SearchParametersHNSW(sel=self._selector(keep), efSearch=ef)
        return None

    def _selector(self, keep: NDArray[np.bool_]) -> Any:
        if self._order is not None:
            keep = keep[self._order[:-1]]
        return self._faiss.IDSelectorBitmap(np.packbits(keep, bitorder="little"))

    def scores(self, queries: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Exact inner products of each query (q, d) with its own rows (q, m); -inf where a row is -1."""
        return self.targets.scores(queries, rows)
