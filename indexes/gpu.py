"""FAISS on a GPU: which of its indexes can go there, their copies, and what they cannot do."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InputError
from indexes.faiss_files import load_faiss, reason

_MOST = 2048
"""Of k and of nprobe, for FAISS' own GPU indexes; those of cuVS take more, which is not made use of."""


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


def clustering_on(device: Any) -> Callable[[Any], Any]:
    """What has FAISS cluster on a torch device; see `cluster_on_gpu`.

    Raises:
        InputError: See `device_number`.
    """
    return partial(cluster_on_gpu, number=device_number(device))


def cluster_on_gpu(index: Any, number: int) -> Any:
    """Have the lists of an index that is to be trained clustered on a GPU; hold what is returned until it is trained.

    Raises:
        InputError: It has no lists; FAISS trains nothing else there.
    """
    faiss = load_faiss()
    lists = faiss.try_extract_index_ivf(index)
    if lists is None:
        raise InputError(f"{type(index).__name__} is not built on a GPU; leave the device out, or choose IVF…")
    resources = faiss.StandardGpuResources()
    lists.clustering_index = faiss.index_cpu_to_gpu(resources, number, faiss.IndexFlatIP(lists.d))
    return resources, lists, lists.clustering_index
