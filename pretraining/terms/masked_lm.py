"""Masked language modelling on the encoder (Devlin et al. 2019, arXiv 1810.04805)."""

from torch import Tensor

from pretraining.heads import VocabularyHead
from pretraining.masking import IGNORED
from pretraining.view import EncoderView


def encoder_mlm(view: EncoderView, head: VocabularyHead, embeddings: Tensor) -> Tensor:
    """Mean cross-entropy over the masked positions of the batch; the head runs on those rows only.

    Args:
        view: The encoder pass.
        head: The vocabulary head.
        embeddings: Word embeddings, (v, d).
    """
    wanted = view.batch.labels != IGNORED  # (b, t)
    return head.loss(view.hidden[wanted], view.batch.labels[wanted], embeddings)
