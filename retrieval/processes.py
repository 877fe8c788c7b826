"""What losses need of the other processes of a run, so that their number changes no result."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Compute losses as if there were no other process: those who compute none must not be waited for."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and not _ALONE.get()


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _together() else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return dist.get_rank() if _together() else 0


def told_by_first(value: bool, device: torch.device) -> bool:
    """What the first process says; the others wait for it to say so."""
    if world_size() == 1:
        return value
    said = torch.tensor(int(value), device=device)
    dist.broadcast(said, 0)
    return bool(said)


def of_all_rows(mean: Tensor, rows: int) -> Tensor:
    """A mean over this process's rows as its share of the mean over all processes' rows.

    DDP and FSDP average gradients over processes, as if each had as many rows.
    """
    count = world_size()
    if count == 1:
        return mean
    total = torch.tensor(float(rows), device=mean.device)
    dist.all_reduce(total)
    return mean * (rows * count / total.clamp(min=1.0))


def summed(counts: Tensor) -> Tensor:
    """Whole numbers, added over all processes."""
    if world_size() > 1:
        dist.all_reduce(counts)
    return counts


def gathered(vectors: Tensor) -> Tensor:
    """The vectors (n, d) of all processes, in their order; gradients flow to this process's own.

    A loss over them is the same in every process; `of_whole_batch` gives it the gradient that they need.
    """
    count = world_size()
    if count == 1:
        return vectors
    parts = [torch.empty_like(vectors) for _ in range(count)]
    dist.all_gather(parts, vectors.detach().contiguous())
    parts[rank()] = vectors
    return torch.cat(parts)


def of_whole_batch(loss: Tensor) -> Tensor:
    """A loss that every process computes of all their vectors: its value, with as many times its gradient.

    Each process has the gradient through its own vectors only, and DDP and FSDP average them.
    """
    count = world_size()
    return loss if count == 1 else loss.detach() + count * (loss - loss.detach())


def gathered_rows(rows: Tensor) -> Tensor:
    """The same as `gathered` of as many rows (n, …) as each process has; gradients flow to this process's own."""
    count = world_size()
    if count == 1:
        return rows
    sizes = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(count)]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    lengths = [int(size) for size in sizes]
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in range(count)]
    dist.all_gather(parts, padded)
    whole = [part[:length] for part, length in zip(parts, lengths, strict=True)]
    whole[rank()] = rows
    return torch.cat(whole)
