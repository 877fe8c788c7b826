"""From the vectors of passages and tokens to those of documents: means of passages, late chunking."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrieval.batches import Batch

if TYPE_CHECKING:
    from retrieval.console import OnProgress


def mean_of_passages(
    vectors: NDArray[np.float32], documents: NDArray[np.int64], *, normalize: bool
) -> NDArray[np.float32]:
    """The mean of each document's passages: (passages, d), (passages,) ascending -> (documents, d).

    Every passage counts alike; a document of one passage keeps its vector bit for bit.
    """
    if not len(vectors):
        return vectors
    firsts = np.flatnonzero(np.diff(documents, prepend=-1))
    counts = np.diff(firsts, append=len(documents))
    mean = np.add.reduceat(vectors, firsts, axis=0) / counts[:, None].astype(np.float32)
    if normalize:
        scaled = mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
        mean = np.where(counts[:, None] == 1, mean, scaled)
    return mean.astype(np.float32, copy=False)


def pool_chunks(
    backend: Any,
    batches: Iterable[Batch],
    chunks: NDArray[np.int64],
    dim: int,
    on_progress: "OnProgress | None" = None,
) -> NDArray[np.float32]:
    """Late chunking: the mean over each chunk's tokens of vectors that have seen the whole window.

    Günther et al., arXiv:2409.04701, section 3.

    Args:
        backend: A `TorchBackend`.
        batches: Windows of documents.
        chunks: (rows, 3) the window, first token and last + 1 of each chunk, windows ascending.
        dim: d.
        on_progress: Called with the windows done and None.

    Returns:
        (rows, d).
    """
    out = np.empty((len(chunks), dim), dtype=np.float32)
    done = 0
    for batch in batches:
        bounds = np.searchsorted(chunks[:, 0], np.stack([batch.rows, batch.rows + 1], axis=1)).tolist()  # (b, 2)
        spans = [chunks[first:last, 1:].tolist() for first, last in bounds]
        for (first, last), vectors in zip(bounds, backend.pool_spans(batch, spans), strict=True):
            out[first:last] = vectors
        done += len(batch.rows)
        if on_progress:
            on_progress(done, None)
    return out
