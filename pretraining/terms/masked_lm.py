"""Masked language modelling on the encoder (Devlin et al. 2019, arXiv 1810.04805)."""

from typing import Any

from torch import Tensor

from pretraining.masking import IGNORED
from pretraining.terms.term import Term
from pretraining.view import EncoderView


class EncoderMLM(Term):
    """Mean cross-entropy over the masked positions of the batch; the head runs on those rows only."""

    def forward(self, view: EncoderView, drawn: Any) -> Tensor:
        """The loss, one number."""
        wanted = view.masks.labels != IGNORED  # (b, t)
        return view.head.loss(view.hidden[wanted], view.masks.labels[wanted], view.backbone.words)
