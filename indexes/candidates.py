"""Which indexes to try for so many vectors, and what memory each takes, known before it is built."""

import math
from typing import Any

from indexes.faiss_files import empty_index, load_faiss

AUTO = "auto"
_FEW = 1000
_FLAT_UP_TO = 20_000


def usual_factory(count: int) -> str:
    """What `auto` takes where nothing is measured: exact search for few vectors, else a graph of compressed ones.

    `HNSW32_SQ8` is the fastest of those that need no training at a third of the memory; `tune` measures instead.
    """
    return "Flat" if count <= _FLAT_UP_TO else "HNSW32_SQ8"


def candidates(count: int, dim: int) -> list[str]:
    """Factories worth a try for so many vectors: graphs, and inverted lists, of whole and of compressed vectors."""
    if count < _FEW:
        return ["Flat"]
    lists = 2 ** round(math.log2(4 * math.sqrt(count)))
    fine, coarse = _divisor(dim, dim // 2), _divisor(dim, dim // 4)
    factories = ["Flat", "HNSW32", "HNSW32_SQ8", f"IVF{lists},SQ8", f"IVF{lists},PQ{fine}x4fsr"]
    return list(dict.fromkeys([*factories, *(f"IVF{lists},PQ{coarse}x4fsr{more}" for more in ("", ",Refine(SQ8)"))]))


def _divisor(dim: int, most: int) -> int:
    """The greatest divisor of so many dimensions that is at most so large: as many parts may be quantized apart."""
    return max((one for one in range(1, most + 1) if dim % one == 0), default=1)


def structure_bytes(factory: str, count: int, dim: int) -> int | None:
    """How many bytes FAISS' file of so many vectors takes, within some percent; None where FAISS does not tell.

    Raises:
        InputError: FAISS does not know the factory string.
    """
    index = empty_index(factory, dim)  # to be held: what FAISS gives of its parts does not keep it alive
    try:
        return math.ceil(_bytes(load_faiss(), index, count))
    except RuntimeError:
        return None


def _bytes(faiss: Any, index: Any, count: int) -> float:
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        steps = [index.chain.at(number) for number in range(index.chain.size())]
        return _bytes(faiss, index.index, count) + sum(4 * one.d_in * one.d_out for one in steps)
    if isinstance(index, faiss.IndexRefine):
        return _bytes(faiss, index.base_index, count) + _bytes(faiss, index.refine_index, count)
    if isinstance(index, faiss.IndexHNSW):
        lowest, higher = index.hnsw.nb_neighbors(0), index.hnsw.nb_neighbors(1)
        # Each level holds a share of 1/M of the one below; a number takes 4 bytes, a row's place and level take 12.
        links = 4 * (lowest + higher / max(higher - 1, 1)) + 12
        return count * links + _bytes(faiss, index.storage, count)
    codebook = 4 * index.pq.ksub * index.pq.d if hasattr(index, "pq") else 0
    if isinstance(index, faiss.IndexIVF):
        return count * (index.code_size + 8) + 4 * index.nlist * index.d + codebook
    return count * index.sa_code_size() + codebook
