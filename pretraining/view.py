"""The encoder view: what one pass of the encoder over one masked batch gives to every loss term."""

from dataclasses import dataclass

from torch import Tensor

from pretraining.masking import MaskedBatch


@dataclass(frozen=True)
class EncoderView:
    """One encoder pass.

    Attributes:
        batch: The clean and the masked ids, labels, and what the decoder may see.
        hidden: The last layer, (b, t, d).
        vector: The sentence vector, (b, d).
    """

    batch: MaskedBatch
    hidden: Tensor
    vector: Tensor


def sentence_vector(hidden: Tensor, attention_mask: Tensor, pooling: str) -> Tensor:
    """Pool (b, t, d) to (b, d): the first token (`cls`) or the mean over real tokens (`mean`)."""
    if pooling == "cls":
        return hidden[:, 0]
    real = attention_mask[..., None].to(hidden.dtype)  # (b, t, 1)
    return (hidden * real).sum(1) / real.sum(1)
