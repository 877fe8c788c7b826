"""Token lists to batches of similar length and bounded size; work done ahead in a thread of its own."""

import contextlib
import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

_LANES = 16
"""Numbers of 32 bits in the widest register of a CPU; tensor cores of GPUs want multiples of 8."""


class Batch(NamedTuple):
    """Texts that go through the model together."""

    rows: NDArray[np.int64]
    """(b,) their positions among the texts."""
    ids: NDArray[np.int64]
    """(b, t) token ids, padded to the longest."""
    mask: NDArray[np.int64]
    """(b, t) 1 where there is a token."""

    def split(self) -> tuple["Batch", "Batch"]:
        """Two halves, each as wide as its own longest text."""
        half = len(self.rows) // 2
        first, second = (Batch(*(part[some] for part in self)) for some in (slice(half), slice(half, None)))
        return first._narrow(), second._narrow()

    def _narrow(self) -> "Batch":
        width = max(int(self.mask.sum(axis=1).max()), 1)
        return Batch(self.rows, self.ids[:, :width], self.mask[:, :width])


class Backend(Protocol):
    """What runs an encoder's transformer, pooling and normalisation."""

    name: str
    tokens_in_a_batch: int
    """The budget that it is fastest with."""

    def run(self, batches: Iterable[Batch]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield (rows (b,), vectors (b, d)) for each batch, in any order."""
        ...

    def run_one(self, batch: Batch) -> NDArray[np.float32]:
        """Vectors (b, d) of a batch that comes alone, such as one query."""
        ...


def token_batches(tokens: Sequence[Sequence[int]], budget: int, pad: int, most: int | None = None) -> Iterator[Batch]:
    """Cut texts, longest first, into batches whose padded size b × t stays within a budget of tokens.

    A text longer than the budget has a batch of its own. The batches follow from the texts alone, so that the same
    texts give the same bytes.

    Args:
        tokens: Token ids of each text.
        budget: Of tokens in a batch, padding included.
        pad: The id that fills shorter texts up.
        most: Tokens that the model reads: given that, batches are as wide as processors like them.
    """
    lengths = np.fromiter(map(len, tokens), dtype=np.int64, count=len(tokens))
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        width = _width(max(int(lengths[order[start]]), 1), most)
        rows = order[start : start + max(1, budget // width)]
        ids = np.full((len(rows), width), pad, dtype=np.int64)
        for line, row in zip(ids, rows.tolist(), strict=True):
            line[: lengths[row]] = tokens[row]
        mask = (np.arange(width) < lengths[rows, None]).astype(np.int64)
        yield Batch(rows, ids, mask)
        start += len(rows)


def _width(longest: int, most: int | None) -> int:
    """The next multiple of 16 where that is near: attention over 255 tokens takes longer than over 256."""
    full = -(-longest // _LANES) * _LANES
    return full if most is not None and full <= min(most, longest + longest // 32) else longest


def ahead(items: Iterable[T], depth: int = 1) -> Generator[T, None, None]:
    """Pass items on, made up to `depth` ahead by a thread, so that reading and tokenising overlap with computing.

    An exception in the thread is raised here, in its place. When this generator is closed the thread ends at its
    next item.
    """
    made: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()
    thread = threading.Thread(target=_fill, args=(made, items, stopped), name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = made.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stopped.set()
        thread.join()


def _fill(made: "queue.Queue[tuple[str, Any]]", items: Iterable[Any], stopped: threading.Event) -> None:
    try:
        for item in items:
            if not _put(made, ("item", item), stopped):
                return
        _put(made, ("end", None), stopped)
    except BaseException as error:
        _put(made, ("error", error), stopped)


def _put(made: "queue.Queue[tuple[str, Any]]", entry: tuple[str, Any], stopped: threading.Event) -> bool:
    """Wait for room; false where the reader has gone."""
    while not stopped.is_set():
        with contextlib.suppress(queue.Full):
            made.put(entry, timeout=0.1)
            return True
    return False
