"""Contrast of a text with itself, a part of it masked: Mirror-BERT (Liu et al. 2021, arXiv 2104.08027)."""

from typing import ClassVar

import torch
from torch import Tensor

from pretraining.backbones import Backbone
from pretraining.drophead import check_drophead, dropped_heads
from pretraining.masking import Batch, Masks, Vocabulary, check_share
from pretraining.terms.simcse import check_temperature, nt_xent
from pretraining.terms.term import Term
from pretraining.view import EncoderView, sentence_vector
from retrieval.processes import gathered, of_whole_batch

MASKED = "masked"
"""What `Batch.others` calls the texts with some characters masked."""


class MirrorWords(Term):
    """NT-Xent of each text with itself, some consecutive words masked: two passes of its own, over clean texts.

    For retrieval bases; the authors mask characters, which cuts words (`MirrorCharacters`). All 2b vectors are anchors.

    Args:
        backbone: The encoder.
        temperature: Cosines are divided by it; the authors take 0.04 for sentences and 0.2 for words.
        share: Of a text's words, rounded up, that are masked.
        drophead: The chance of an attention head to be left out, in each layer for each text (0.2 for BERT with the
            authors, 0.05 for RoBERTa, in place of dropout); 0: dropout alone.
    """

    uses_head = False

    def __init__(
        self, backbone: Backbone, *, temperature: float = 0.04, share: float = 0.15, drophead: float = 0.0
    ) -> None:
        super().__init__(backbone)
        check_temperature(temperature)
        check_share("share", share, 0.9)
        check_drophead(drophead)
        self.temperature, self.share, self.drophead = temperature, share, drophead

    def draw(self, batch: Batch, masks: Masks, vocabulary: Vocabulary, generator: torch.Generator) -> Tensor:
        """Draw which words are masked: ids (b, t)."""
        return torch.where(word_span(batch.words, self.share, generator), vocabulary.mask_id, batch.ids)

    def forward(self, view: EncoderView, drawn: Tensor) -> Tensor:
        """The loss, one number."""
        return mirror_contrast(
            view, drawn, view.batch.attention_mask, self.temperature, self.drophead if self.training else 0.0
        )


class MirrorCharacters(Term):
    """The authors' form: NT-Xent of each text with itself, a few consecutive characters replaced by a [MASK].

    Two passes of its own, over clean texts; all 2b vectors are anchors. Where the authors' code masks the first place
    at which the drawn characters occur and pools padding in (their "mean"), this masks the drawn place, pools tokens.

    Args:
        backbone: The encoder.
        temperature: Cosines are divided by it; the authors take 0.04 for sentences and 0.2 for words.
        characters: How many are masked, in texts of at least 30; in shorter ones none are.
        drophead: The chance of an attention head to be left out, in each layer for each text (0.2 for BERT with the
            authors, 0.05 for RoBERTa, in place of dropout); 0: dropout alone.
    """

    uses_head = False
    uses_characters: ClassVar[bool] = True

    def __init__(
        self, backbone: Backbone, *, temperature: float = 0.04, characters: int = 5, drophead: float = 0.0
    ) -> None:
        super().__init__(backbone)
        check_temperature(temperature)
        check_drophead(drophead)
        self.temperature, self.drophead = temperature, drophead

    def forward(self, view: EncoderView, drawn: None) -> Tensor:
        """The loss, one number."""
        masked = view.batch.others[MASKED]
        return mirror_contrast(
            view, masked.ids, masked.attention_mask, self.temperature, self.drophead if self.training else 0.0
        )


def mirror_contrast(
    view: EncoderView, masked_ids: Tensor, attention_mask: Tensor, temperature: float, drophead: float
) -> Tensor:
    """NT-Xent of the batch's clean texts with masked ones, ids (b, s) and mask (b, s): one number."""
    batch = view.batch

    def vectors(ids: Tensor, mask: Tensor) -> Tensor:
        return gathered(sentence_vector(view.backbone.run(ids, mask)[0], mask, view.pooling))

    with dropped_heads(view.backbone, drophead):
        clean, masked = vectors(batch.ids, batch.attention_mask), vectors(masked_ids, attention_mask)
    return of_whole_batch(nt_xent(clean, masked, temperature))


def word_span(words: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Draw a run of a share of each text's words (b, t), rounded up: which tokens are in it, bool (b, t)."""
    counts = words.amax(1) + 1  # (b,); -1 is outside of words
    run = (counts * share).ceil().long()
    chance = torch.rand(len(words), generator=generator, device=words.device)
    start = (chance * (counts - run + 1)).long()
    return (words >= start[:, None]) & (words < (start + run)[:, None])
