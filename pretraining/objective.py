"""Objectives: weighted sums of named loss terms over one encoder pass, and the module that computes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from indexes.errors import InputError
from pretraining.heads import VocabularyHead
from pretraining.masking import MaskedBatch, MaskOptions, sample_batch
from pretraining.terms.bag_of_words import Variant, bag_of_words
from pretraining.terms.masked_lm import encoder_mlm
from pretraining.terms.retromae import EnhancedDecoder, Query, decoder_mlm
from pretraining.tokens import continuations
from pretraining.view import EncoderView, sentence_vector

TERMS = ("encoder_mlm", "decoder_mlm", "bag_of_words")
NAMES = "retromae or dupmae"
POOLINGS = ("cls", "mean")
SUPPORTED = ("bert",)


@dataclass(frozen=True)
class Objective:
    """A weighted sum of terms.

    Attributes:
        weights: Weight of each term; the terms are `encoder_mlm`, `decoder_mlm` and `bag_of_words`.
        decoder_query: How decoder rows ask, `raw` (RetroMAE) or `embedded` (DupMAE); see `terms.retromae`.
        bag_variant: `code` or `paper`; see `terms.bag_of_words`.
    """

    weights: Mapping[str, float]
    decoder_query: Query = "embedded"
    bag_variant: Variant = "code"

    def __post_init__(self) -> None:
        unknown = [name for name in self.weights if name not in TERMS]
        if unknown or not self.weights:
            found = ", ".join(map(repr, unknown)) or "no term"
            raise InputError(f"objective has {found}; expected terms among {', '.join(TERMS)}, or {NAMES}")
        for name, weight in self.weights.items():
            if not 0 < weight < float("inf"):
                raise InputError(f"objective's weight of {name} is {weight}; expected a number above 0")
        for name, allowed in (("decoder_query", ("raw", "embedded")), ("bag_variant", ("code", "paper"))):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected {' or '.join(allowed)}")

    @classmethod
    def parse(cls, value: "str | Mapping[str, float] | Objective") -> "Objective":
        """Read an objective: its name, a mapping from terms to weights (DupMAE's variants), or one made before."""
        if isinstance(value, Objective):
            return value
        if isinstance(value, Mapping):
            return cls(dict(value))
        if value not in PRESETS:
            raise InputError(f"objective is {value!r}; expected {NAMES}, or weights of {', '.join(TERMS)}")
        return PRESETS[value]


PRESETS = {
    "retromae": Objective({"encoder_mlm": 1.0, "decoder_mlm": 1.0}, decoder_query="raw"),
    "dupmae": Objective({"encoder_mlm": 1.0, "decoder_mlm": 1.0, "bag_of_words": 0.1}, decoder_query="embedded"),
}
"""The authors' code: RetroMAE (arXiv 2205.12035) and DupMAE (2305.02564, whose paper weighs the bag of words 1)."""


class PretrainingModel(nn.Module):
    """An encoder with the heads that an objective needs; the encoder may be shared with another model.

    Args:
        backbone: A BertModel; it is used as it is, so training this module trains whatever else holds it.
        tokenizer: Its tokenizer.
        objective: A name, weights of terms, or an Objective.
        pooling: The sentence vector: the first token (`cls`) or the mean over real tokens (`mean`).
        masks: Ratios, row fraction, pool.

    Attributes:
        untrained_heads: Names of the heads that hold random numbers; a caller that loads one takes its name out.

    Raises:
        InputError: The backbone is no BERT, or tokenizer and backbone do not belong together.
    """

    def __init__(
        self,
        backbone: Any,
        tokenizer: Any,
        objective: str | Mapping[str, float] | Objective = "dupmae",
        *,
        pooling: str = "cls",
        masks: MaskOptions | None = None,
    ) -> None:
        super().__init__()
        refuse_unsupported(backbone.config)
        if pooling not in POOLINGS:
            raise InputError(f"pooling is {pooling!r}; expected {' or '.join(POOLINGS)}")
        continued = torch.from_numpy(continuations(tokenizer))
        if len(continued) > backbone.config.vocab_size:
            raise InputError(
                f"the tokenizer has {len(continued):,} ids and the model {backbone.config.vocab_size:,}; "
                "expected a tokenizer that belongs to the model"
            )
        self.objective, self.pooling, self.masks = Objective.parse(objective), pooling, masks or MaskOptions()
        self.backbone = backbone
        self.head = VocabularyHead(backbone.config)
        self.decoder = EnhancedDecoder(backbone.config) if "decoder_mlm" in self.objective.weights else None
        self.untrained_heads = ["head", "decoder"] if self.decoder else ["head"]
        self.mask_id, self.vocabulary = tokenizer.mask_token_id, len(continued)
        self.continued: Tensor
        self.register_buffer("continued", continued, persistent=False)
        self.to(backbone.device)

    def sample(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        word_starts: Tensor | None = None,
        *,
        generator: torch.Generator,
    ) -> MaskedBatch:
        """Draw the masks of one batch.

        Args:
            input_ids: Clean ids with [CLS] first and [SEP] last, (b, t).
            attention_mask: 1 on real tokens, (b, t); padding is on the right.
            word_starts: First pieces of whole words, bool (b, t); by default every piece that is no `##` piece.
            generator: On the device of `input_ids`; see `masking.seeded`.
        """
        starts = ~self.continued[input_ids] if word_starts is None else word_starts
        return sample_batch(
            input_ids, attention_mask, starts, self.masks,
            mask_id=self.mask_id, vocabulary=self.vocabulary, generator=generator,
        )  # fmt: skip

    def loss(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        word_starts: Tensor | None = None,
        *,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Sample masks and compute the objective, as an auxiliary loss needs it; arguments as in `sample`."""
        return self(self.sample(input_ids, attention_mask, word_starts, generator=generator))

    def forward(self, batch: MaskedBatch) -> dict[str, Tensor]:
        """Compute the objective on a masked batch: `total`, and every term by name before its weight."""
        view = self.view(batch)
        terms = {name: self._compute(name, view) for name in self.objective.weights}
        total = torch.stack([weight * terms[name] for name, weight in self.objective.weights.items()]).sum()
        return {"total": total, **terms}

    def view(self, batch: MaskedBatch) -> EncoderView:
        """Run the encoder once over the masked ids."""
        output = self.backbone(input_ids=batch.masked_ids, attention_mask=batch.attention_mask)
        hidden = output.last_hidden_state  # (b, t, d)
        return EncoderView(batch, hidden, sentence_vector(hidden, batch.attention_mask, self.pooling))

    def _compute(self, name: str, view: EncoderView) -> Tensor:
        embedding = self.backbone.embeddings
        words = embedding.word_embeddings.weight  # (v, d)
        if name == "encoder_mlm":
            return encoder_mlm(view, self.head, words)
        if name == "bag_of_words":
            return bag_of_words(view, self.head, words, self.objective.bag_variant)
        return decoder_mlm(
            view, cast(EnhancedDecoder, self.decoder), embedding, self.head, self.objective.decoder_query
        )


def refuse_unsupported(config: Any) -> None:
    """Raise InputError unless a model is a BERT with tied output embeddings."""
    kind = getattr(config, "model_type", type(config).__name__)
    if kind not in SUPPORTED:
        raise InputError(f"the base is a {kind} model; pretraining supports {', '.join(SUPPORTED)}: choose such a base")
    if not getattr(config, "tie_word_embeddings", True):
        raise InputError("the base does not tie its output to its word embeddings; choose a base with tied embeddings")
