"""Which of two sets of words represents a document: PROP's task (Ma et al. 2021, arXiv 2010.10137), for rerankers.

B-PROP's is the same, with other sets of words (Ma et al. 2021, arXiv 2104.09791).
"""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from indexes.errors import InputError
from pretraining.backbones import Backbone
from pretraining.contrastive_terms import TEMPERATURE, check_temperature
from pretraining.heads import initialise
from pretraining.masking import IGNORED, Batch
from pretraining.terms.term import Term, at_least_float32
from pretraining.view import EncoderView
from retrieval.processes import of_all_rows

BETTER, WORSE = "better", "worse"
"""What `Batch.others` calls the two sets of words."""
LOSSES = ("logistic", "hinge")
SETS = ("prop", "bprop")
SEPARATORS = {"bert": 1, "roberta": 2, "xlm-roberta": 2, "mpnet": 2}
"""How many [SEP] stand between two texts, by family; those whose pair classifiers have the layers of this term."""


class Pairs(NamedTuple):
    """Sets of words and documents, read together."""

    ids: Tensor
    """[CLS] words [SEP] document [SEP], (b, t)."""
    attention_mask: Tensor
    """(b, t)"""
    types: Tensor
    """1 from the document on, (b, t)."""
    labels: Tensor
    """What is masked of the document, else -100, (b, t)."""


class WordSetOrder(Term):
    """A cross-encoder tells of two sets of words which one represents the document better; two passes.

    Both sets were drawn from the document, either from its language model (`word_sets`) or by what the base attends to
    in it before pretraining (`contrastive_terms`). What the encoder guesses of the document is masked in both passes,
    and both count as masked language modelling beside the order, with weight 1. A text of which no two unlike sets were
    drawn counts for neither.

    Args:
        backbone: The encoder, of a family whose classifiers of pairs are BERT's or RoBERTa's.
        loss: `logistic`, -log σ(s⁺ - s⁻), or `hinge`, max(0, 1 - s⁺ + s⁻), the paper's. (The authors' code puts scores
            through a softmax first: its gradient vanishes for pairs that are far out of order.)
        sets: Where the sets come from: `prop`, the language model, or `bprop`, the base's attention.
        temperature: Of `bprop`'s chances.
    """

    caution: ClassVar[str] = (
        "for cross-encoders, which pretraining writes to cross-encoder/; for retrievers adapt --sampler words is better"
    )
    uses_word_sets: ClassVar[bool] = True

    def __init__(
        self, backbone: Backbone, *, loss: str = "logistic", sets: str = "prop", temperature: float = TEMPERATURE
    ) -> None:
        super().__init__(backbone)
        kind = backbone.config.model_type
        if kind not in SEPARATORS:
            raise InputError(f"the base is a {kind} model; word_set_order supports {', '.join(SEPARATORS)}: choose one")
        if loss not in LOSSES:
            raise InputError(f"loss is {loss!r}; expected {' or '.join(LOSSES)}")
        if sets not in SETS:
            raise InputError(f"sets is {sets!r}; expected {' or '.join(SETS)}")
        if sets == "prop" and temperature != TEMPERATURE:
            raise InputError(f"temperature is {temperature}, which sets of words of prop have not; take sets bprop")
        check_temperature(temperature)
        settings: Any = backbone.layer_settings()
        self.loss, self.separators = loss, SEPARATORS[kind]
        self.dense = nn.Linear(settings.hidden_size, settings.hidden_size)
        self.dropout = nn.Dropout(settings.hidden_dropout_prob)
        self.score = nn.Linear(settings.hidden_size, 1)
        initialise(self, settings.initializer_range)

    def forward(self, view: EncoderView, drawn: None) -> Tensor:
        """The loss, one number."""
        batch = view.batch
        better, worse = batch.others[BETTER], batch.others[WORSE]
        there = better.content.any(1)  # (b,)
        guessed, scores = [], list[Tensor]()
        for words in (better, worse):
            pairs = joined(words, batch, view.masks.masked_ids, view.masks.labels, self.separators)
            types = pairs.types if view.backbone.family.types and self.separators == 1 else None
            hidden = view.backbone.run(pairs.ids, pairs.attention_mask, types=types)[0]
            wanted = (pairs.labels != IGNORED) & there[:, None]
            guessed.append(view.head.loss(hidden[wanted], pairs.labels[wanted], view.backbone.words))
            scores.append(at_least_float32(self.scores(hidden))[there])
        order = order_loss(scores[0], scores[1], self.loss)
        return of_all_rows(order, len(scores[0])) + torch.stack(guessed).mean()

    def scores(self, hidden: Tensor) -> Tensor:
        """How well words represent a document, (b,), by the first token of the last layer (b, t, d)."""
        return self.score(self.dropout(torch.tanh(self.dense(hidden[:, 0]))))[:, 0]


def order_loss(better: Tensor, worse: Tensor, kind: str) -> Tensor:
    """Mean over pairs of scores (n,) and (n,); 0 without any."""
    apart = better - worse
    each = -functional.logsigmoid(apart) if kind == "logistic" else (1 - apart).clamp(min=0)
    return each.sum() / max(len(each), 1)


def joined(words: Batch, documents: Batch, masked: Tensor, labels: Tensor, separators: int) -> Pairs:
    """Put words (b, s) before documents (b, t), whose masked ids and labels (b, t) are given."""
    lengths = (words.attention_mask.sum(1) + separators - 1, documents.attention_mask.sum(1) - 1)  # without its [CLS]
    width = int((lengths[0] + lengths[1]).max())
    place = torch.arange(width, device=masked.device)[None].expand(len(masked), -1)
    first = place < lengths[0][:, None]
    real = place < (lengths[0] + lengths[1])[:, None]
    last = words.attention_mask.sum(1, keepdim=True) - 1  # [SEP], once more if there are two
    before = words.ids.gather(1, torch.minimum(place, last))
    inside = (place - lengths[0][:, None] + 1).clamp(0, masked.shape[1] - 1)
    ids = torch.where(first, before, masked.gather(1, inside)).masked_fill(~real, 0)
    wanted = torch.where(first | ~real, IGNORED, labels.gather(1, inside))
    return Pairs(ids, real.long(), (real & ~first).long(), wanted)
