"""Which documents of a batch are whose, as tensors: candidates of each query, their scores, and known positives."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrieval.processes import gathered_rows, rank, world_size


@dataclass(frozen=True)
class CandidateLists:
    """Whose the documents of a batch are.

    Attributes:
        query_keys: (q,) a number for each query's text.
        owners: (n,) the query that each document came with.
        places: (n,) 0 for its positive, and then its negatives.
        teacher: (n,) the scores that came with them; NaN: none.
        keys: (n,) a number for each document's text.
        known_owners: (m,) and
        known_keys: (m,) which texts are known as positives of which query, whether they are in the batch or not.
    """

    query_keys: Tensor
    owners: Tensor
    places: Tensor
    teacher: Tensor
    keys: Tensor
    known_owners: Tensor
    known_keys: Tensor

    @classmethod
    def of_batch(cls, inputs: dict[str, Any]) -> "CandidateLists":
        """Those that a collated batch holds under the names of the attributes."""
        return cls(**{name: inputs[name] for name in cls.__dataclass_fields__})

    @classmethod
    def join(cls, parts: "Sequence[CandidateLists]") -> "CandidateLists":
        """Several batches as one."""
        counts = [len(part.query_keys) for part in parts]
        starts = [sum(counts[:number]) for number in range(len(parts))]
        found = {}
        for name in cls.__dataclass_fields__:
            shift = starts if name in ("owners", "known_owners") else [0] * len(parts)
            found[name] = torch.cat([getattr(part, name) + add for part, add in zip(parts, shift, strict=True)])
        return cls(**found)

    def of_all_processes(self) -> "CandidateLists":
        """Those of all processes as one, in the order of the processes."""
        if world_size() == 1:
            return self
        mine = torch.tensor([len(self.query_keys)], device=self.owners.device)
        start = int(gathered_rows(mine)[: rank()].sum())
        shifted = {"owners": self.owners + start, "known_owners": self.known_owners + start}
        return CandidateLists(
            **{name: gathered_rows(shifted.get(name, getattr(self, name))) for name in self.__dataclass_fields__}
        )

    @property
    def positives(self) -> Tensor:
        """(q,) the row of each query's positive."""
        return (self.places == 0).nonzero().squeeze(1)

    @property
    def present(self) -> Tensor:
        """Bool (q, c): how many candidates each query has."""
        return self.lists(torch.ones_like(self.teacher), 0.0) > 0

    def lists(self, values: Tensor, empty: float) -> Tensor:
        """Values of documents (n,) as lists (q, c), the positive first, `empty` where there is no candidate."""
        width = int(self.places.max()) + 1
        return values.new_full((len(self.query_keys), width), empty).index_put((self.owners, self.places), values)

    def own(self, scores: Tensor) -> Tensor:
        """From scores (q, n) those of each query's own candidates, (q, c); 0 where there is none."""
        return self.lists(scores[self.owners, torch.arange(len(self.owners), device=scores.device)], 0.0)

    def negatives(self) -> Tensor:
        """Bool (q, n): which documents may be negatives of which query.

        Not those known as positives of it, nor the positives of another query of the same text.
        """
        same_query = self.query_keys[:, None] == self.query_keys  # (q, q)
        known = (self.known_keys[:, None] == self.keys).to(torch.int32)  # (m, n)
        count = torch.zeros(len(self.query_keys), len(self.keys), dtype=torch.int32, device=self.keys.device)
        count.index_add_(0, self.known_owners, known)
        of_query = same_query.to(torch.float32) @ (count > 0).to(torch.float32)  # (q, n)
        return of_query == 0


def text_key(text: str) -> int:
    """63 bits of a text's SHA-256: texts are the same if these are."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
