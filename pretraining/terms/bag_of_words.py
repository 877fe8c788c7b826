"""DupMAE's bag-of-words term: the ordinary tokens together name the text's words (Liu et al. 2023, arXiv 2305.02564).

Code and paper differ in four ways; both are here under their names:

| | `code` (weight 0.1) | `paper` (weight 1) |
|---|---|---|
| logits | the whole masked-language-model head | one linear map (here the tied word embeddings) |
| tokens | all but the first, so [SEP] and masked ones too | unmasked content |
| target | 1 / length for each different id | 1 for each different id |
"""

from typing import Literal

import torch
from torch import Tensor

from pretraining.heads import VocabularyHead, linear_max
from pretraining.masking import IGNORED, content_positions
from pretraining.view import EncoderView

Variant = Literal["code", "paper"]


def bag_of_words(view: EncoderView, head: VocabularyHead, embeddings: Tensor, variant: Variant) -> Tensor:
    """Mean over texts of the cross-entropy between max-pooled logits and the set of the text's words."""
    batch = view.batch
    target = word_set(batch.ids, content_positions(batch.attention_mask), len(embeddings))
    if variant == "code":
        lengths = content_positions(batch.attention_mask).sum(1, keepdim=True)  # (b, 1)
        target = target / lengths.clamp(min=1)
    return set_cross_entropy(pooled_logits(view, head, embeddings, variant), target)


def pooled_logits(view: EncoderView, head: VocabularyHead, embeddings: Tensor, variant: Variant) -> Tensor:
    """Each vocabulary entry's greatest logit over the text's tokens, (b, v)."""
    batch = view.batch
    if variant == "code":
        keep = batch.attention_mask.bool()[:, 1:]
        return linear_max(head.transform(view.hidden[:, 1:]), embeddings, head.bias, keep)
    keep = content_positions(batch.attention_mask) & (batch.labels == IGNORED)
    # A text whose every word is masked would have nothing to pool over; it pools over [CLS].
    keep[:, 0] = ~keep.any(1)
    return linear_max(view.hidden, embeddings, None, keep)


def word_set(ids: Tensor, content: Tensor, vocabulary: int) -> Tensor:
    """1 for each id among a text's content, (b, v); repeats do not add."""
    found = torch.zeros(len(ids), vocabulary, device=ids.device)
    return found.scatter_reduce_(1, ids, content.to(found.dtype), "amax")


def set_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over texts of -Σ_v target_v · log softmax(logits)_v, for (b, v) and (b, v)."""
    return -(target * logits.log_softmax(1)).sum(1).mean()
