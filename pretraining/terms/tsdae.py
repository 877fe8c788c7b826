"""Sequential denoising: TSDAE (Wang, Reimers and Gurevych 2021, arXiv 2104.06979)."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from indexes.errors import InputError
from pretraining.backbones import Backbone
from pretraining.heads import initialise
from pretraining.masking import Batch, Masks, Vocabulary
from pretraining.terms.parts import Part, kept_tokens, words_left
from pretraining.terms.term import Term
from pretraining.view import EncoderView, sentence_vector

_TIED = ("bert", "roberta", "xlm-roberta")


class Denoising(Term):
    """The text is written again, token by token, from the one vector of what is left of it: a pass of its own.

    Words are deleted, not masked. The decoder is the encoder itself, looking only back, whose layers look at the vector
    between attention and feed-forward (the weights of that are its own); mean cross-entropy of all that follows [CLS],
    [SEP] included, given what comes before. As the vector is all there is to look at, attention to it has weight 1, and
    a query and a key would learn nothing: they are left out, as is dropout of that weight.

    It makes sentence vectors of raw text; after supervised training it makes them worse.

    Args:
        backbone: The encoder, of a family whose layers are BERT's.
        deleted: The chance of a word to be deleted; one stays at least.
    """

    opens_layers: ClassVar[bool] = True
    has_bottleneck: ClassVar[bool] = True
    caution: ClassVar[str] = (
        "it makes encoders worse that were trained with labels already (arXiv 2104.06979): train so after it"
    )

    def __init__(self, backbone: Backbone, *, deleted: float = 0.6) -> None:
        super().__init__(backbone)
        if not 0 <= deleted < 1:
            raise InputError(f"deleted is {deleted}; expected at least 0 and below 1, such as 0.6")
        kind = backbone.config.model_type
        if kind not in _TIED:
            raise InputError(
                f"the base is a {kind} model, and TSDAE's decoder is one of {', '.join(_TIED)}; choose one"
            )
        self.deleted = deleted
        self.crossings = nn.ModuleList(_Crossing(backbone) for _ in range(backbone.config.num_hidden_layers))

    def draw(self, batch: Batch, masks: Masks, vocabulary: Vocabulary, generator: torch.Generator) -> Part:
        """Draw what is left of each text."""
        return kept_tokens(batch, words_left(batch, self.deleted, generator))

    def forward(self, view: EncoderView, drawn: Part) -> Tensor:
        """The loss, one number."""
        hidden = view.backbone.run(*drawn)[0]
        vectors = view.bottleneck(sentence_vector(hidden, drawn.attention_mask, view.pooling))
        batch = view.batch
        ids, real = batch.ids[:, :-1], batch.attention_mask[:, :-1].bool()
        follows = batch.attention_mask[:, 1:].bool()  # (b, t - 1)
        states = self.decode(view.backbone, ids, real, vectors)
        return view.head.loss(states[follows], batch.ids[:, 1:][follows], view.backbone.words)

    def decode(self, backbone: Backbone, ids: Tensor, real: Tensor, vectors: Tensor) -> Tensor:
        """What the decoder makes of ids (b, t), each row of what comes before it and of vectors (b, d): (b, t, d)."""
        before = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
        visible = before & real[:, None, None]  # (b, 1, t, t)
        states = backbone.embed(ids)
        for layer, crossing in zip(backbone.module.encoder.layer, self.crossings, strict=True):
            attended, *_ = layer.attention(states, visible)
            states = layer.feed_forward_chunk(crossing(attended, vectors))
        return states


class _Crossing(nn.Module):
    """Attention to one vector, whose weight is 1, with its residual and norm."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        settings: Any = backbone.layer_settings()
        self.value = nn.Linear(settings.hidden_size, settings.hidden_size)
        self.dense = nn.Linear(settings.hidden_size, settings.hidden_size)
        self.LayerNorm = nn.LayerNorm(settings.hidden_size, eps=settings.layer_norm_eps)
        self.dropout = nn.Dropout(settings.hidden_dropout_prob)
        initialise(self, settings.initializer_range)

    def forward(self, states: Tensor, vectors: Tensor) -> Tensor:
        """States (b, t, d) and vectors (b, d) to (b, t, d)."""
        return self.LayerNorm(states + self.dropout(self.dense(self.value(vectors)))[:, None])
