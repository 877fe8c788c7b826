"""The encoder view: one pass over one masked batch, made when a term first asks for it, shared by all."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import Tensor

from pretraining.backbones import Backbone
from pretraining.heads import VocabularyHead
from pretraining.masking import Batch, Masks


class EncoderView:
    """What loss terms are computed from.

    Shapes: b batch, t tokens, d dim.

    Args:
        batch: The texts as they are.
        masks: What the encoder has to guess of them.
        backbone: The encoder.
        head: The vocabulary head that all terms share.
        special: Which ids are special or unused, and so no words, bool (v,).
        pooling: How the sentence vector is made: `cls` or `mean`.
        layers: Whether terms ask for layers before the last.
    """

    def __init__(
        self,
        batch: Batch,
        masks: Masks,
        backbone: Backbone,
        head: VocabularyHead,
        special: Tensor,
        *,
        pooling: str,
        layers: bool,
    ) -> None:
        self.batch, self.masks, self.backbone, self.head, self.special = batch, masks, backbone, head, special
        self.pooling, self._layers = pooling, layers

    @cached_property
    def _pass(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.backbone.run(self.masks.masked_ids, self.batch.attention_mask, layers=self._layers)

    @property
    def hidden(self) -> Tensor:
        """The last layer, (b, t, d)."""
        return self._pass[0]

    def layer(self, number: int) -> Tensor:
        """A layer's output, (b, t, d); 0 is that of the embeddings."""
        return self._pass[1][number]

    @cached_property
    def vector(self) -> Tensor:
        """The sentence vector, (b, d)."""
        return self.bottleneck(sentence_vector(self.hidden, self.batch.attention_mask, self.pooling))

    def bottleneck(self, vectors: Tensor) -> Tensor:
        """What is decoded in the place of each text's vector (b, d): that vector, except in a shuffled view."""
        return vectors

    def shuffled(self, shift: int = 1) -> "EncoderView":
        """The same view, except that each text is decoded from the vector of the text `shift` places before it."""
        return _Shuffled(self, shift)

    def observed(self, heard: Callable[[Tensor], None]) -> "EncoderView":
        """The same view for one term alone, which reports the gradients that this term sends to the encoder."""
        return _Observed(self, heard)


class _Over(EncoderView):
    """A view over another's pass."""

    def __init__(self, view: EncoderView) -> None:
        self.batch, self.masks, self.backbone, self.head = view.batch, view.masks, view.backbone, view.head
        self.special, self.pooling = view.special, view.pooling
        self._view = view

    @cached_property
    def _pass(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self._view._pass


class _Shuffled(_Over):
    """A view in which texts are decoded from one another's vectors."""

    def __init__(self, view: EncoderView, shift: int) -> None:
        super().__init__(view)
        self._shift = shift

    def bottleneck(self, vectors: Tensor) -> Tensor:
        """Each text has the vector of another."""
        return vectors.roll(self._shift, 0)


class _Observed(_Over):
    """A view whose outputs are its own tensors: gradients through them come from one term."""

    def __init__(self, view: EncoderView, heard: Callable[[Tensor], None]) -> None:
        super().__init__(view)
        self._heard = heard

    @cached_property
    def _pass(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        hidden, layers = self._view._pass
        return self._own(hidden), tuple(map(self._own, layers))

    def _own(self, shared: Tensor) -> Tensor:
        own = shared.view_as(shared)
        if own.requires_grad:
            own.register_hook(self._hear)
        return own

    def _hear(self, gradient: Tensor) -> Any:
        self._heard(gradient)


def sentence_vector(hidden: Tensor, attention_mask: Tensor, pooling: str) -> Tensor:
    """Pool (b, t, d) to (b, d): the first token (`cls`) or the mean over real tokens (`mean`)."""
    if pooling == "cls":
        return hidden[:, 0]
    real = attention_mask[..., None].to(hidden.dtype)  # (b, t, 1)
    return (hidden * real).sum(1) / real.sum(1)
