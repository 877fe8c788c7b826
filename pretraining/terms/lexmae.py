"""LexMAE (Shen et al. 2023, arXiv 2208.14754): the bottleneck between encoder and decoder is a mixture of words."""

from typing import ClassVar

import torch
from torch import Tensor

from pretraining.backbones import Backbone
from pretraining.heads import Transform, initialise, linear_cross_entropy, linear_max
from pretraining.masking import IGNORED, Batch, Masks, Vocabulary, check_share, more_masked
from pretraining.terms.term import PlainDecoder, Term, decoded_masks, own_positions
from pretraining.view import EncoderView
from retrieval.processes import of_all_rows


class LexiconBottleneck(Term):
    """Plain layers rebuild a text, more of it masked, from the mean of word embeddings that its logits weigh.

    The weights are the softmax of each word's greatest logit over the tokens; gradients reach the logits, not the word
    embeddings that are mixed. Mean cross-entropy where the decoder's tokens are masked: wherever the encoder's are, and
    more. The decoder's rows have a transform of their own before they are compared with the words. For sparse encoders:
    the sentence vector learns nothing from it.

    Args:
        backbone: The encoder.
        layers: How many.
        ratio: Share of a text's tokens, specials included, that are masked for the decoder.
    """

    has_bottleneck: ClassVar[bool] = True

    def __init__(self, backbone: Backbone, *, layers: int = 2, ratio: float = 0.5) -> None:
        super().__init__(backbone)
        check_share("decoder mask ratio", ratio, 0.9)
        self.ratio = ratio
        self.decoder = PlainDecoder(backbone, layers)
        self.positions = own_positions(backbone)
        self.transform = Transform(backbone.config)
        initialise(self.transform, backbone.config.initializer_range)

    def draw(self, batch: Batch, masks: Masks, vocabulary: Vocabulary, generator: torch.Generator) -> Masks:
        """Draw what the decoder has to guess."""
        return more_masked(batch, masks, self.ratio, vocabulary, generator)

    def forward(self, view: EncoderView, drawn: Masks) -> Tensor:
        """The loss, one number."""
        words = view.backbone.words
        keep = view.batch.content
        keep[:, 0] = ~keep.any(1)  # a text without words is pooled over [CLS]
        logits = linear_max(view.head.transform(view.hidden), words, view.head.bias, keep)  # (b, v)
        bottleneck = view.bottleneck(logits.softmax(1) @ words.detach())  # (b, d)
        rows = self.transform(decoded_masks(self.decoder, bottleneck, view, drawn, self.positions))
        labels = drawn.labels[drawn.labels != IGNORED]
        return of_all_rows(linear_cross_entropy(rows, words, view.head.bias, labels), len(labels))
