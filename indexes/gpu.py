"""FAISS on a GPU: which of its indexes can go there or be built there, their copies, and what they cannot do."""

import threading
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InputError
from indexes.faiss_files import Fill, fill, load_faiss, reason
from indexes.vectors import Rows

_MOST = 2048
"""Of k and of nprobe, for FAISS' own GPU indexes; those of cuVS take more, which is not made use of."""
_LEAST_GRAPH = 1000
"""Rows: of fewer, FAISS makes a graph as fast here, and CAGRA's copy has been seen to hang (faiss issue 4260)."""


def device_number(device: Any) -> int:
    """The number of a torch device among the GPUs that FAISS sees.

    Raises:
        InputError: It is no GPU, the installed FAISS has no GPU support, or FAISS sees none. FAISS itself would give an
            empty index in the last case, without a word.
    """
    if device.type != "cuda":
        raise InputError(f"device is {device}; FAISS knows cuda, and the processor if no device is given: leave it out")
    faiss = load_faiss()
    if not hasattr(faiss, "StandardGpuResources"):
        raise InputError(
            "the installed FAISS has no GPU support; pip uninstall faiss-cpu, then pip install 'retrokit[gpu]'"
        )
    number, seen = device.index or 0, faiss.get_num_gpus()
    if number >= seen:
        raise InputError(f"device is {device}; FAISS sees {seen} GPUs: check the driver and CUDA_VISIBLE_DEVICES")
    return number


def can_be_copied(faiss: Any, index: Any) -> bool:
    """Whether FAISS searches such an index on a GPU: inverted lists of whole, scalar- or product-quantized rows."""
    return isinstance(index, faiss.IndexIVFFlat | faiss.IndexIVFScalarQuantizer | faiss.IndexIVFPQ)


class GpuCopy:
    """A copy of inverted lists on a GPU, searched by one thread at a time, as FAISS demands.

    Args:
        index: FAISS' index.
        number: Of the GPU.

    Raises:
        InputError: FAISS cannot copy it, as for its code size, or for want of memory.
    """

    def __init__(self, index: Any, number: int) -> None:
        self._faiss = load_faiss()
        self._lock = threading.Lock()
        self._resources = self._faiss.StandardGpuResources()
        try:
            self._index = self._faiss.index_cpu_to_gpu(self._resources, number, index)
        except RuntimeError as error:
            raise InputError(f"FAISS cannot copy {type(index).__name__} to GPU {number}: {reason(error)}") from None

    def takes(self, k: int, nprobe: int) -> bool:
        """Whether it can search for so many rows in so many lists; else the processor must."""
        return k <= _MOST and nprobe <= _MOST

    def search(
        self, queries: NDArray[np.float32], k: int, nprobe: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and rows (q, k), as FAISS gives them."""
        with self._lock:
            return self._index.search(queries, k, params=self._faiss.SearchParametersIVF(nprobe=nprobe))


def filling_on(device: Any) -> Fill:
    """What fills an index on a torch device; see `fill_on_gpu`.

    Raises:
        InputError: See `device_number`.
    """
    return partial(fill_on_gpu, number=device_number(device))


def fill_on_gpu(index: Any, store: Rows, number: int) -> Any:
    """Fill an index, its lists being clustered, or its graph made, on a GPU.

    Raises:
        InputError: It has neither; FAISS builds nothing else there. Or it has a graph and FAISS comes without cuVS.
    """
    faiss = load_faiss()
    if isinstance(index, faiss.IndexHNSWFlat):
        return _graph(faiss, index, store, number)
    lists = faiss.try_extract_index_ivf(index)
    if lists is None:
        raise InputError(
            f"{type(index).__name__} is not built on a GPU; leave the device out, or choose IVF…, or HNSW of whole rows"
        )
    resources = faiss.StandardGpuResources()
    lists.clustering_index = faiss.index_cpu_to_gpu(resources, number, faiss.IndexFlatIP(lists.d))
    return fill(index, store)


def _graph(faiss: Any, index: Any, store: Rows, number: int) -> Any:
    """A graph of as many neighbours as that of an empty HNSW index, of all rows.

    CAGRA makes its lowest level; those above it, of few rows, are made here. The GPU must hold both rows and graph.

    Source: Ootomo et al., "CAGRA: Highly Parallel Graph Construction and Approximate Nearest Neighbor Search for GPUs"
    (ICDE 2024).
    """
    if not hasattr(faiss, "GpuIndexCagra"):
        raise InputError(
            "the installed FAISS has no cuVS, which makes graphs on GPUs; leave the device out, or use an environment "
            "of its own with 'retrokit[cuvs]'"
        )
    if len(store) < _LEAST_GRAPH:
        return fill(index, store)
    degree = index.hnsw.nb_neighbors(0)
    settings = faiss.GpuIndexCagraConfig()
    settings.device = number
    settings.graph_degree = degree
    settings.intermediate_graph_degree = 2 * degree
    resources = faiss.StandardGpuResources()
    there = faiss.GpuIndexCagra(resources, index.d, faiss.METRIC_INNER_PRODUCT, settings)
    there.train(np.ascontiguousarray(store[:], dtype=np.float32))
    graph = faiss.IndexHNSWCagra(index.d, degree // 2, faiss.METRIC_INNER_PRODUCT)
    there.copyTo(graph)
    return graph
