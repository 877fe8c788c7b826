"""Terms over two spans of one document: told from those of others, or each rebuilt from the other's vector."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from pretraining.backbones import Backbone
from pretraining.masking import IGNORED, Batch, MaskOptions, Masks, Vocabulary, draw_masks
from pretraining.terms.term import PlainDecoder, Term, at_least_float32, decoded_masks, own_positions
from pretraining.view import EncoderView
from retrieval.processes import gathered, of_whole_batch


class SpanContrast(Term):
    """coCondenser's (Gao and Callan 2021, arXiv 2108.05540): spans of one document are told from those of others.

    Cross-entropy over inner products, without temperature or normalisation, among the spans of all processes; each is
    an anchor, and is not compared with itself. The loss is that of a whole step, whatever the number of its processes
    and micro-batches (by gradient caching).

    Args:
        backbone: The encoder.
    """

    uses_head = False
    uses_pairs: ClassVar[bool] = True
    uses_whole_step: ClassVar[bool] = True

    def forward(self, view: EncoderView, drawn: None) -> Tensor:
        """The loss, one number."""
        return self.of_vectors(view.vector)

    def of_vectors(self, vectors: Tensor) -> Tensor:
        """The same of vectors (n, d)."""
        return of_whole_batch(span_contrast(gathered(vectors)))


def span_contrast(vectors: Tensor) -> Tensor:
    """Mean over spans of -log softmax of the inner product with the partner, for (2n, d); 2i and 2i + 1 belong."""
    scores = vectors @ vectors.T
    scores = scores.masked_fill(torch.eye(len(vectors), dtype=torch.bool, device=vectors.device), -torch.inf)
    partners = torch.arange(len(vectors), device=vectors.device) ^ 1
    return functional.cross_entropy(at_least_float32(scores), partners)


class SpanDecoder(Term):
    """CoT-MAE's (Wu et al. 2022, arXiv 2208.07670): plain layers rebuild a span from its document's other one.

    Their input is the other span's vector and this span's masked tokens, embedded; mean cross-entropy where those are
    masked, which is drawn anew.

    Args:
        backbone: The encoder.
        layers: How many.
        ratio: Share of a span's tokens, specials included, that are masked for the decoder.
    """

    uses_pairs: ClassVar[bool] = True
    has_bottleneck: ClassVar[bool] = True

    def __init__(self, backbone: Backbone, *, layers: int = 2, ratio: float = 0.45) -> None:
        super().__init__(backbone)
        self.options = MaskOptions(ratio)
        self.decoder = PlainDecoder(backbone, layers)
        self.positions = own_positions(backbone)

    def draw(self, batch: Batch, masks: Masks, vocabulary: Vocabulary, generator: torch.Generator) -> Masks:
        """Draw what the decoder has to guess."""
        return draw_masks(batch, self.options, vocabulary, generator)

    def forward(self, view: EncoderView, drawn: Masks) -> Tensor:
        """The loss, one number."""
        others = view.vector[torch.arange(len(view.vector), device=view.vector.device) ^ 1]
        rows = decoded_masks(self.decoder, others, view, drawn, self.positions)
        return view.head.loss(rows, drawn.labels[drawn.labels != IGNORED], view.backbone.words)
