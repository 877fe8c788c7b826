"""Token ids to vectors with torch: transformer, pooling, linear layers, cut to d dimensions, normalisation."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from indexes.errors import InputError
from retrieval.batches import Batch

R = TypeVar("R")

_TOKENS_IN_A_BATCH = {"cpu": 2048, "other": 32_768}
"""On a CPU a batch should stay in the cache: 2,048 tokens encode a quarter faster than 8,192 (benchmarks/LOG.md)."""


class EmbeddingModule(torch.nn.Module):
    """The whole way from token ids to vectors, as one module, which other backends convert.

    The transformer runs in its own precision; from pooling on everything is float32.

    Args:
        backbone: A transformer of the transformers library.
        pooling: cls, mean, max or lasttoken.
        dense: Linear layers after pooling.
        dim: d: the first so many numbers are kept (Matryoshka).
        normalize: Whether vectors are scaled to unit length.
    """

    def __init__(
        self, backbone: Any, pooling: str, dense: Sequence[torch.nn.Module], *, dim: int, normalize: bool
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.dense = torch.nn.ModuleList(dense)
        self.pool = _POOLINGS[pooling]
        self.dim = dim
        self.normalize = normalize

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(b, t), (b, t) -> (b, d) float32."""
        return self.finish(self.pool(self.hidden(input_ids, attention_mask), attention_mask))

    def hidden(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The last layer's vector of each token: (b, t), (b, t) -> (b, t, hidden size) float32."""
        return self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()

    def finish(self, pooled: torch.Tensor) -> torch.Tensor:
        """(b, hidden size) -> (b, d): linear layers, cut, unit length."""
        for layer in self.dense:
            pooled = layer(pooled)
        pooled = pooled[:, : self.dim]
        return torch.nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled


class TorchBackend:
    """Runs the module on one device; a batch that does not fit in memory is halved until it does."""

    name = "torch"

    def __init__(self, module: EmbeddingModule, device: str) -> None:
        self.module = module.eval().to(device)
        self.device = torch.device(device)
        self.tokens_in_a_batch = _TOKENS_IN_A_BATCH["cpu" if self.device.type == "cpu" else "other"]
        self._too_large: int | None = None

    def run(self, batches: Iterable[Batch]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield (rows, vectors) for each batch, in order."""
        return self._run_in_threads(batches) if self.device.type == "cpu" else self._run_queued(batches)

    def run_one(self, batch: Batch) -> NDArray[np.float32]:
        """Vectors (b, d) of a batch that comes alone, such as one query, as soon as can be.

        On a CPU all threads work on it together, so that its last bits depend on their number.
        """
        return self._vectors(batch).cpu().numpy()

    def _run_queued(self, batches: Iterable[Batch]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """The device works on one batch while the one before is fetched."""
        waiting: tuple[NDArray[np.int64], torch.Tensor] | None = None
        for batch in batches:
            vectors = self._vectors(batch)
            if waiting is not None:
                yield waiting[0], waiting[1].cpu().numpy()
            waiting = batch.rows, vectors
        if waiting is not None:
            yield waiting[0], waiting[1].cpu().numpy()

    def _run_in_threads(self, batches: Iterable[Batch]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Each batch is computed by one thread: the same bits on any number of cores, and no waiting inside a batch."""
        waiting: deque[tuple[NDArray[np.int64], Future[torch.Tensor]]] = deque()
        # Each thread is told too: its own settings are not touched by what this one sets.
        with _one_thread_each() as threads, ThreadPoolExecutor(threads, "torch", torch.set_num_threads, (1,)) as pool:
            for batch in batches:
                waiting.append((batch.rows, pool.submit(self._vectors, batch)))
                if len(waiting) > threads:
                    rows, vectors = waiting.popleft()
                    yield rows, vectors.result().numpy()
            for rows, vectors in waiting:
                yield rows, vectors.result().numpy()

    def pool_spans(self, batch: Batch, spans: Sequence[Sequence[tuple[int, int]]]) -> list[NDArray[np.float32]]:
        """For each text of a batch the vectors (spans, d) of its spans of tokens (first, last + 1), mean-pooled."""
        of_text = dict(zip(batch.rows.tolist(), spans, strict=True))

        def pooled(part: Batch) -> list[NDArray[np.float32]]:
            hidden = self.module.hidden(*self._tensors(part))
            return [
                self.module.finish(_means(line, of_text[row])).cpu().numpy()
                for row, line in zip(part.rows.tolist(), hidden, strict=True)
            ]

        with _one_thread_each():  # as in `run`
            return [vectors for part in self._halved(batch, pooled) for vectors in part]

    def _vectors(self, batch: Batch) -> torch.Tensor:
        return torch.cat(self._halved(batch, lambda part: self.module(*self._tensors(part))))

    def _halved(self, batch: Batch, compute: Callable[[Batch], R]) -> list[R]:
        """Run a batch, in halves if it is as large as one that was too large before."""
        if self._too_large is None or batch.ids.size < self._too_large or len(batch.rows) == 1:
            try:
                with torch.inference_mode():
                    return [compute(batch)]
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if len(batch.rows) == 1:
                    raise InputError(
                        f"no memory for one text of {batch.ids.shape[1]} tokens on {self.device}; lower max_length"
                    ) from None
                self._too_large = min(batch.ids.size, self._too_large or batch.ids.size)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return [result for half in batch.split() for result in self._halved(half, compute)]

    def _tensors(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = (torch.from_numpy(array).to(self.device, non_blocking=True) for array in (batch.ids, batch.mask))
        return ids, mask


_running = threading.RLock()


@contextlib.contextmanager
def _one_thread_each() -> Iterator[int]:
    """Have torch compute each operation in one thread; give how many it had, and has again afterwards.

    One run at a time: the number belongs partly to the thread that sets it and partly to the process, so that a run
    that ends would change the other's; and they would only take the same cores from each other.
    """
    with _running:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield threads
        finally:
            torch.set_num_threads(threads)


def _means(line: torch.Tensor, spans: Sequence[tuple[int, int]]) -> torch.Tensor:
    """The mean over each span of a text's tokens: (t, d) -> (spans, d)."""
    return torch.stack([line[first:last].mean(0) for first, last in spans]) if spans else line[:0]


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that memory ran out (each device and the CPU's allocator have words of their own)."""
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in said or "can't allocate memory" in said


def pool_cls(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The first token's vector: (b, t, d), (b, t) -> (b, d)."""
    return hidden[:, 0]


def pool_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean over real tokens: (b, t, d), (b, t) -> (b, d)."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)  # (b, t, 1)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def pool_max(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The largest value over real tokens: (b, t, d), (b, t) -> (b, d)."""
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, -float("inf")).max(1).values


def pool_last(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The last real token's vector: (b, t, d), (b, t) -> (b, d)."""
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)  # (b,)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]


_POOLINGS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cls": pool_cls,
    "mean": pool_mean,
    "max": pool_max,
    "lasttoken": pool_last,
}
