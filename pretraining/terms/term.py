"""Loss terms: what each is, what it needs, and the plain layers that several decode with."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertLayer

from indexes.errors import InputError
from pretraining.backbones import Backbone
from pretraining.heads import initialise
from pretraining.masking import IGNORED, Batch, Masks, Vocabulary
from pretraining.view import EncoderView


class Term(nn.Module, ABC):
    """One loss over the encoder's view of a batch. Its parameters, if it has any, are its own heads.

    A subclass's keyword arguments are its options; what they mean is said there.

    Attributes:
        uses_head: Whether it uses the shared vocabulary head.
        uses_layers: Whether it uses layers before the last.
        opens_layers: Whether it calls parts of the encoder's layers by themselves.
        uses_pairs: Whether it needs two spans of one document beside each other: rows 2i and 2i + 1.
        uses_characters: Whether it needs each text once more, with some of its characters masked.
        uses_field: Whether its option `field` names a field of the documents that it needs beside each text.
        uses_word_sets: Whether it needs two sets of words that represent each text.
        uses_whole_step: Whether it is a loss over the sentence vectors of all texts of an optimiser step, (n, d) in
            this process, which its method `of_vectors` then gives.
        caution: Where it is known to hurt, for a person to read before a run; empty where nothing is known.
        has_bottleneck: Whether it names or rebuilds texts from one vector each, which is the view's `vector` or went
            through its `bottleneck`, so that a shuffled view shows what the vectors are worth to it.
        starts_untrained: Whether its own parameters, if there are any, are random numbers at first.
    """

    uses_head: bool = True
    uses_layers: ClassVar[bool] = False
    opens_layers: ClassVar[bool] = False
    uses_pairs: ClassVar[bool] = False
    uses_characters: ClassVar[bool] = False
    uses_field: ClassVar[bool] = False
    uses_word_sets: ClassVar[bool] = False
    uses_whole_step: ClassVar[bool] = False
    has_bottleneck: ClassVar[bool] = False
    caution: ClassVar[str] = ""
    starts_untrained: bool = True

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()

    def draw(self, batch: Batch, masks: Masks, vocabulary: Vocabulary, generator: torch.Generator) -> Any:
        """Draw what is random about this term, beside the shared view's masks."""
        return None

    def advance(self, backbone: Backbone) -> None:
        """Move on what follows the encoder, before each pass while training; by default nothing does."""

    @abstractmethod
    def forward(self, view: EncoderView, drawn: Any) -> Tensor:
        """The loss, one number; `drawn` is what `draw` gave."""


class PlainDecoder(nn.ModuleList):
    """Plain post-layer-norm BERT layers that see everything but padding.

    Parameter names are those of Condenser's `c_head`.

    Args:
        backbone: As wide as its layers.
        count: How many.
    """

    def __init__(self, backbone: Backbone, count: int) -> None:
        if not 1 <= count <= _MOST_LAYERS:
            raise InputError(f"layers is {count}; expected 1 to {_MOST_LAYERS}")
        settings = backbone.layer_settings()
        super().__init__(BertLayer(settings) for _ in range(count))
        initialise(self, settings.initializer_range)

    def forward(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """States (b, t, d) through all layers."""
        visible = attention_mask.bool()[:, None, None]  # (b, 1, 1, t)
        for layer in self:
            states = layer(states, attention_mask=visible)
        return states


_MOST_LAYERS = 12


class OwnPositions(nn.Module):
    """Position vectors for decoders over encoders whose embeddings have none (rotary or relative attention).

    Small at first, so that they disturb little: N(0, initializer_range²).

    Args:
        backbone: Whose texts are decoded.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.table = nn.Embedding(backbone.longest, backbone.config.hidden_size)
        nn.init.normal_(self.table.weight, std=backbone.config.initializer_range)

    def forward(self, rows: Tensor) -> Tensor:
        """Vectors (b, r, d) of positions (b, r)."""
        return self.table(rows)


def embedded_text(backbone: Backbone, ids: Tensor, own: OwnPositions | None) -> Tensor:
    """E(x) of ids (b, t), with a decoder's own positions where the encoder's embeddings have none: (b, t, d)."""
    embedded = backbone.embed(ids)
    if own is None:
        return embedded
    return embedded + own(torch.arange(ids.shape[1], device=ids.device)[None])


def decoded_masks(
    decoder: PlainDecoder,
    first: Tensor,
    view: EncoderView,
    masks: Masks,
    own: OwnPositions | None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """What plain layers make of vectors (b, d) and the masked tokens after the first one, at masked places: (n, d).

    The masked texts are those of the view's batch, or others, whose attention mask (b, t) is given.
    """
    real = view.batch.attention_mask if attention_mask is None else attention_mask
    text = embedded_text(view.backbone, masks.masked_ids, own)
    states = decoder(torch.cat((first[:, None], text[:, 1:]), 1), real)  # (b, t, d)
    return states[masks.labels != IGNORED]


def at_least_float32(values: Tensor) -> Tensor:
    """Values as float32, in which softmax is safe, or as more than that."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def own_positions(backbone: Backbone) -> OwnPositions | None:
    """A decoder's own positions, where it needs them."""
    return None if backbone.has_positions else OwnPositions(backbone)
