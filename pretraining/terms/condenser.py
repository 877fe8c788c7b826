"""Condenser (Gao and Callan 2021, arXiv 2104.08253): late sentence vector, early tokens, and a few layers over both."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from indexes.errors import InputError
from pretraining.backbones import Backbone
from pretraining.masking import IGNORED
from pretraining.terms.term import PlainDecoder, Term
from pretraining.view import EncoderView


class Condenser(Term):
    """Mean cross-entropy at the encoder's masked positions, of layers over the last layer's vector and early tokens.

    Tokens come from a layer in the middle, so that what the later ones learn about the text must go through the vector.
    Its sum with `encoder_mlm` is the authors' `late_mlm`.

    Args:
        backbone: The encoder.
        layers: How many there are on top.
        skip_from: Which layer the tokens come from, the first being 1; None: half of them all. (The authors' code takes
            2 if not told otherwise, their instructions 6 of 12.)
    """

    uses_layers: ClassVar[bool] = True
    has_bottleneck: ClassVar[bool] = True

    def __init__(self, backbone: Backbone, *, layers: int = 2, skip_from: int | None = None) -> None:
        super().__init__(backbone)
        count = backbone.config.num_hidden_layers
        self.skip_from = max(1, count // 2) if skip_from is None else skip_from
        if not 1 <= self.skip_from <= count:
            raise InputError(f"skip_from is {skip_from}; expected 1 to {count}, the encoder's layers")
        self.decoder = PlainDecoder(backbone, layers)

    def forward(self, view: EncoderView, drawn: Any) -> Tensor:
        """The loss, one number."""
        states = torch.cat((view.vector[:, None], view.layer(self.skip_from)[:, 1:]), 1)  # (b, t, d)
        decoded = self.decoder(states, view.batch.attention_mask)
        wanted = view.masks.labels != IGNORED
        return view.head.loss(decoded[wanted], view.masks.labels[wanted], view.backbone.words)
