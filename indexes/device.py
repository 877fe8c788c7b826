"""Exact search on a torch device, such as a GPU: candidates by float32 there, certified and scored in float64 here."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InputError
from indexes.exact import nothing, search_exact
from indexes.hits import Hits, top
from indexes.products import bfloat16_error, float32_error, lengths
from indexes.targets import Targets

_BLOCK = 65_536
_QUERIES_AT_ONCE = 2048
_SPARE = 64
_SHARE_OF_MEMORY = 0.7


def checked_device(name: str) -> Any:
    """The torch device of a name.

    Raises:
        InputError: There is no such device here.
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"device {name!r} cannot be used here ({reason}); leave it out for the processor") from None
    return device


class DeviceSearch:
    """Searches targets exactly on a torch device; the hits are those of `search_exact`, k has no limit.

    Rows stay on the device if they fit into its free memory, else they pass through it block by block. Each block's
    float32 products are reduced to the best of each query there, so that few numbers come back; those are scored in
    float64 here. Where the error of float32 could have hidden a better one, the query is searched again on the
    processor.

    Args:
        targets: What is searched.
        device: From `checked_device`.
        resident: Whether rows stay on the device; None: if they fit.
    """

    def __init__(self, targets: Targets, device: Any, resident: bool | None = None) -> None:
        import torch

        self._torch = torch
        self.device = device
        self._targets = targets
        fits = targets.vectors.nbytes <= self._free_bytes() if resident is None else resident
        # For each block the number of its first target, its rows (r, d), and the target of each row (r,), if several.
        self._kept = [self._on_device(*block) for block in self._blocks()] if fits else None

    def search(self, queries: NDArray[np.float32], k: int, keep: NDArray[np.bool_] | None = None) -> Hits:
        """Find the k targets of the largest inner product for each query (q, d), of those to keep (n,)."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        groups = range(0, len(queries), _QUERIES_AT_ONCE)
        found = [self._search(queries[first : first + _QUERIES_AT_ONCE], k, keep) for first in groups]
        return Hits(*(np.concatenate(parts) for parts in zip(nothing(0, k), *found, strict=True)))

    def _search(self, queries: NDArray[np.float32], k: int, keep: NDArray[np.bool_] | None) -> Hits:
        count = len(self._targets) if keep is None else int(np.count_nonzero(keep))
        width = min(2 * k + _SPARE, count)
        if not width:
            return nothing(len(queries), k)
        near, numbers = self._candidates(queries, width, keep)  # (q, width), best first
        found = top(self._targets.scores(queries, numbers), k, numbers)
        if width < count:
            slack = self._error(queries.shape[1]) * lengths(queries) * self._targets.longest
            unsure = ~(found.scores[:, -1] > near[:, -1] + slack)
            if unsure.any():
                again = search_exact(queries[unsure], self._targets, k, keep=keep)
                found.rows[unsure], found.scores[unsure] = again.rows, again.scores
        return found

    def _candidates(
        self, queries: NDArray[np.float32], width: int, keep: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """So many targets of each query by float32 scores, the best first: scores and numbers (q, width)."""
        torch = self._torch
        asked = torch.tensor(queries, device=self.device)
        kept = None if keep is None else torch.tensor(keep, device=self.device)
        scores = torch.full((len(queries), 0), -torch.inf, device=self.device)
        numbers = torch.zeros((len(queries), 0), dtype=torch.int64, device=self.device)
        for first, rows, owners in self._kept or (self._on_device(*block) for block in self._blocks()):
            here = self._scores(asked, rows, owners)  # (q, m)
            if kept is not None:
                here = here.masked_fill(~kept[first : first + here.shape[1]], -torch.inf)
            best, columns = here.topk(min(width, here.shape[1]), dim=1)
            scores, order = torch.cat([scores, best], dim=1).topk(min(width, scores.shape[1] + best.shape[1]), dim=1)
            numbers = torch.cat([numbers, columns + first], dim=1).gather(1, order)
        numbers = numbers.masked_fill(scores == -torch.inf, -1)
        return scores.cpu().numpy(), numbers.cpu().numpy()

    def _scores(self, queries: Any, rows: Any, owners: Any) -> Any:
        """Scores (q, m) of a block's targets: of documents those of their best rows."""
        products = queries @ rows.T
        if owners is None:
            return products
        best = self._torch.full((len(queries), int(owners[-1]) + 1), -self._torch.inf, device=self.device)
        return best.scatter_reduce_(1, owners.expand(len(queries), -1), products, "amax")

    def _blocks(self) -> Any:
        """The number of the first target of each block, its rows (r, d), and where each target's begin (m,)."""
        for chunk in self._targets.chunks(_BLOCK):
            yield int(chunk.numbers[0]), chunk.rows, chunk.begins

    def _on_device(
        self, first: int, rows: NDArray[np.float32], begins: NDArray[np.int64] | None
    ) -> tuple[int, Any, Any]:
        torch = self._torch
        owners = None
        if begins is not None:
            counts = np.diff(np.append(begins, len(rows)))
            owners = torch.tensor(np.repeat(np.arange(len(begins)), counts), device=self.device)
        return first, torch.tensor(rows, device=self.device), owners  # (a copy: the chunk's rows are used again)

    def _error(self, dim: int) -> float:
        # Other precisions than the highest let GPUs round both factors, to no fewer bits than bfloat16 has.
        try:
            exact = self._torch.get_float32_matmul_precision() == "highest"
        except RuntimeError:  # it was set for one device, by torch's newer way
            exact = False
        return float32_error(dim) if exact else (1 + bfloat16_error(dim)) ** 2 - 1

    def _free_bytes(self) -> float:
        if self.device.type != "cuda":
            return float("inf")
        return _SHARE_OF_MEMORY * self._torch.cuda.mem_get_info(self.device)[0]
