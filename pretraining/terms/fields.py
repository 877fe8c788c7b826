"""Decoding a field of a document from the vector of its text: SAILER (Li et al. 2023, arXiv 2304.11370)."""

from typing import ClassVar

import torch
from torch import Tensor

from indexes.errors import InputError
from pretraining.backbones import Backbone
from pretraining.masking import IGNORED, Batch, MaskOptions, Masks, Vocabulary, check_share, draw_masks, replace_masked
from pretraining.terms.term import PlainDecoder, Term, decoded_masks, own_positions
from pretraining.view import EncoderView


class FieldDecoder(Term):
    """Plain layers rebuild a field of the document, some of it masked, from the sentence vector of its text.

    Their input is the sentence vector and the field's masked tokens, embedded; mean cross-entropy where those are
    masked. A document without the field adds nothing. Take one such term for each field (`field_decoder/NAME`), as
    SAILER has one for the reasoning and one for the judgment of a case whose facts are encoded.

    Args:
        backbone: The encoder.
        field: The field of the corpus's records.
        layers: How many.
        ratio: Share of the field's tokens, specials included, that are masked, by whole words.
        marked: Mask the marked tokens instead, all of them and no others (`mask_words`, for key elements such as the
            statutes of SAILER's judgments).
    """

    uses_field: ClassVar[bool] = True
    has_bottleneck: ClassVar[bool] = True

    def __init__(
        self, backbone: Backbone, *, field: str = "", layers: int = 2, ratio: float = 0.45, marked: bool = False
    ) -> None:
        super().__init__(backbone)
        if not field:
            raise InputError("field is ''; expected the name of a field of the corpus's records")
        check_share("ratio", ratio, 0.9)
        self.field, self.options, self.marked = field.rpartition(".")[2], MaskOptions(ratio), marked
        self.decoder = PlainDecoder(backbone, layers)
        self.positions = own_positions(backbone)

    def draw(self, batch: Batch, masks: Masks, vocabulary: Vocabulary, generator: torch.Generator) -> Masks:
        """Draw what the decoder has to guess of the field.

        Raises:
            InputError: The batch does not come with the field, or nothing marks its tokens.
        """
        if self.field not in batch.others:
            raise InputError(f"field_decoder reads {self.field!r} beside each text; pretrain gives it, adapt does not")
        field = batch.others[self.field]
        if not self.marked:
            # Marks, if there are any, say what the encoder guesses; this decoder guesses words at random.
            return draw_masks(Batch(field.ids, field.attention_mask, field.words), self.options, vocabulary, generator)
        if field.marked is None:
            raise InputError("field_decoder masks what is marked, and nothing is; give mask_words, or marked: false")
        return replace_masked(field.ids, field.marked & field.content, vocabulary, generator)

    def forward(self, view: EncoderView, drawn: Masks) -> Tensor:
        """The loss, one number."""
        field = view.batch.others[self.field]
        rows = decoded_masks(self.decoder, view.vector, view, drawn, self.positions, field.attention_mask)
        return view.head.loss(rows, drawn.labels[drawn.labels != IGNORED], view.backbone.words)
