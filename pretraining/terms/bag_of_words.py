"""Bags of words: the sentence vector, or the ordinary tokens together, name the words of the text.

DupMAE's (Liu et al. 2023, arXiv 2305.02564) pools over tokens. Code and paper differ in four ways; both are here under
their names:

| | `code` (weight 0.1) | `paper` (weight 1) |
|---|---|---|
| logits | the whole masked-language-model head | one linear map (here the tied word embeddings) |
| tokens | all but the first, so [SEP] and masked ones too | unmasked content |
| target | 1 / length for each different id | 1 for each different id |

BowDPR's (Ma et al. 2024, "Drop your Decoder", arXiv 2401.11248) asks the sentence vector alone.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from indexes.errors import InputError
from pretraining.backbones import Backbone
from pretraining.heads import VocabularyHead, linear_max
from pretraining.masking import IGNORED
from pretraining.terms.term import Term
from pretraining.view import EncoderView, sentence_vector

VARIANTS = ("code", "paper")


class BagOfWords(Term):
    """DupMAE's: mean over texts of the cross-entropy between max-pooled logits and the set of the text's words.

    Args:
        backbone: The encoder.
        variant: `code` or `paper`; see above.
    """

    def __init__(self, backbone: Backbone, *, variant: str = "code") -> None:
        super().__init__(backbone)
        if variant not in VARIANTS:
            raise InputError(f"variant is {variant!r}; expected {' or '.join(VARIANTS)}")
        self.variant = variant
        self.uses_head = variant == "code"

    def forward(self, view: EncoderView, drawn: Any) -> Tensor:
        """The loss, one number."""
        content = view.batch.content
        target = word_set(view.batch.ids, content, len(view.backbone.words))
        if self.variant == "code":
            target = target / content.sum(1, keepdim=True).clamp(min=1)
        return set_cross_entropy(self.logits(view), target)

    def logits(self, view: EncoderView) -> Tensor:
        """Each vocabulary entry's greatest logit over the text's tokens, (b, v)."""
        if self.variant == "code":
            return pooled_logits(view.hidden, view.batch.attention_mask, view.head, view.backbone.words)
        keep = view.batch.content & (view.masks.labels == IGNORED)
        # A text whose every word is masked would have nothing to pool over; it pools over [CLS].
        keep[:, 0] = ~keep.any(1)
        return linear_max(view.hidden, view.backbone.words, None, keep)


class ClsBagOfWords(Term):
    """BowDPR's: mean over texts of the cross-entropy between the sentence vector's logits and the text's words.

    The target is uniform over the different ids of the text, without special and unused ones. Where the sentence vector
    is the mean over tokens, so are the logits, as in the authors' code. A text without words counts 0.

    Args:
        backbone: The encoder.
    """

    has_bottleneck: ClassVar[bool] = True

    def forward(self, view: EncoderView, drawn: Any) -> Tensor:
        """The loss, one number."""
        target = own_words(view)
        return set_cross_entropy(sentence_logits(view), target / target.sum(1, keepdim=True).clamp(min=1))


def sentence_logits(view: EncoderView) -> Tensor:
    """The sentence vector's vocabulary logits, (b, v); where it is the mean over tokens, the mean of their logits."""
    if view.pooling == "cls":
        rows = view.head.transform(view.vector)
    else:  # the head is linear after its transform, so that the mean may come first
        rows = view.bottleneck(
            sentence_vector(view.head.transform(view.hidden), view.batch.attention_mask, view.pooling)
        )
    return functional.linear(rows, view.backbone.words, view.head.bias)


def own_words(view: EncoderView) -> Tensor:
    """1 for each id of a text that is a word, neither special nor unused: (b, v) in float32."""
    ids = view.batch.ids
    return word_set(ids, view.batch.content & ~view.special[ids], len(view.backbone.words))


def pooled_logits(hidden: Tensor, attention_mask: Tensor, head: VocabularyHead, words: Tensor) -> Tensor:
    """The greatest logit of each of v words over the tokens after the first: (b, v) from (b, t, d) and (b, t)."""
    return linear_max(head.transform(hidden[:, 1:]), words, head.bias, attention_mask.bool()[:, 1:])


def word_set(ids: Tensor, content: Tensor, vocabulary: int) -> Tensor:
    """1 for each id among a text's content (b, t), (b, v) in float32; repeats do not add."""
    found = torch.zeros(len(ids), vocabulary, device=ids.device)
    return found.scatter_reduce_(1, ids, content.to(found.dtype), "amax")


def set_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over texts of -Σ_v target_v · log softmax(logits)_v, for (b, v) and (b, v)."""
    return -(target * logits.log_softmax(1)).sum(1).mean()
