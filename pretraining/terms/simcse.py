"""Contrast of two encodings of one text that differ by dropout alone: SimCSE (Gao et al. 2021, arXiv 2104.08821)."""

import torch
from torch import Tensor
from torch.nn import functional

from indexes.errors import InputError
from pretraining.backbones import Backbone
from pretraining.terms.term import Term, at_least_float32
from pretraining.view import EncoderView, sentence_vector
from retrieval.processes import gathered, of_whole_batch


class DropoutContrast(Term):
    """NT-Xent over two passes of the clean texts: it does not share the masked view, and costs two passes of its own.

    All 2b vectors are anchors; each is told from all others but itself, its positive being the other pass's vector of
    the same text (SimCLR's loss, as Mirror-BERT takes it; SimCSE's own has b anchors in one direction).

    Args:
        backbone: The encoder; without dropout both passes are the same and there is nothing to learn.
        temperature: Cosines are divided by it.
    """

    uses_head = False

    def __init__(self, backbone: Backbone, *, temperature: float = 0.05) -> None:
        super().__init__(backbone)
        check_temperature(temperature)
        self.temperature = temperature

    def forward(self, view: EncoderView, drawn: None) -> Tensor:
        """The loss, one number."""
        batch = view.batch
        both = (view.backbone.run(batch.ids, batch.attention_mask)[0] for _ in range(2))
        one, other = (gathered(sentence_vector(hidden, batch.attention_mask, view.pooling)) for hidden in both)
        return of_whole_batch(nt_xent(one, other, self.temperature))


def check_temperature(temperature: float) -> None:
    """Refuse what cosines are not divided by.

    Raises:
        InputError: It is not above 0, or above 1.
    """
    if not 0 < temperature <= 1:
        raise InputError(f"temperature is {temperature}; expected above 0 and at most 1")


def nt_xent(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Mean over all 2n vectors of -log softmax(cos / τ) of the positive among all others, for (n, d) and (n, d).

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations" (ICML 2020), eq. 1.
    """
    vectors = functional.normalize(at_least_float32(torch.cat((one, other))))  # (2n, d)
    scores = vectors @ vectors.T / temperature
    scores = scores.masked_fill(torch.eye(len(vectors), dtype=torch.bool, device=vectors.device), -torch.inf)
    positives = torch.arange(len(vectors), device=vectors.device).roll(len(one))
    return functional.cross_entropy(scores, positives)
