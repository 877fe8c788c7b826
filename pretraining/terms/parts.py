"""Texts with tokens left out."""

from typing import NamedTuple

import torch
from torch import Tensor

from pretraining.masking import Batch


class Part(NamedTuple):
    """A part of each text."""

    ids: Tensor
    """[CLS], some of the text's tokens in their order, [SEP]; (b, t)."""
    attention_mask: Tensor
    """(b, t)"""


def kept_tokens(batch: Batch, kept: Tensor) -> Part:
    """What is left of the texts when only the chosen tokens (b, t), [CLS] and [SEP] are kept."""
    ends = batch.attention_mask.sum(1) - 1  # [SEP]
    kept = kept.clone()
    kept[:, 0] = True
    kept.scatter_(1, ends[:, None], True)
    order = (~kept).to(torch.int8).argsort(dim=1, stable=True)  # what is kept first, in its order
    most = int(kept.sum(1).max())
    mask = torch.arange(most, device=kept.device) < kept.sum(1, keepdim=True)
    ids = batch.ids.gather(1, order)[:, :most]
    return Part(torch.where(mask, ids, batch.ids.new_zeros(())), mask.long())


def words_left(batch: Batch, deleted: float, generator: torch.Generator) -> Tensor:
    """Draw the tokens of the words that stay when each is deleted with a chance, bool (b, t); one stays at least."""
    words = batch.words
    most = max(int(words.max()) + 1, 1)
    chance = torch.rand(len(words), most, generator=generator, device=words.device)  # (b, w)
    counts = words.amax(1, keepdim=True) + 1
    chance = chance.masked_fill(torch.arange(most, device=words.device) >= counts, -1.0)
    stays = (chance >= deleted) | (chance == chance.amax(1, keepdim=True))
    return stays.gather(1, words.clamp(min=0)) & batch.content
