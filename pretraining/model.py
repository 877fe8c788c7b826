"""The module that an objective trains: an encoder, the vocabulary head that terms share, and each term's own heads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from indexes.errors import InputError
from pretraining.backbones import Backbone
from pretraining.generator import pieces_digest
from pretraining.heads import VocabularyHead
from pretraining.masking import Batch, MaskOptions, Masks, Vocabulary, draw_masks, seeded
from pretraining.objective import Objective, kind_of
from pretraining.terms import TERMS, Term
from pretraining.tokens import continuations
from pretraining.view import EncoderView

POOLINGS = ("cls", "mean")
_FIRST = 1 << 62


@dataclass(frozen=True)
class Drawn:
    """One batch with everything random about it decided.

    Attributes:
        batch: The texts.
        masks: What the encoder has to guess.
        terms: What each term drew, by its name.
    """

    batch: Batch
    masks: Masks
    terms: Mapping[str, Any]


class Cached(NamedTuple):
    """A term's loss over a whole step, and its gradient by the vectors of one micro-batch."""

    loss: Tensor
    gradient: Tensor
    """(b, d)"""

    def of(self, vectors: Tensor) -> Tensor:
        """The loss, with that gradient, for these vectors (b, d)."""
        product = (self.gradient * vectors).sum()
        return self.loss + product - product.detach()


class PretrainingModel(nn.Module):
    """An encoder with the heads that an objective needs; the encoder may be shared with another model.

    Args:
        backbone: A model of a family in `backbones`, without head; it is used as it is, so training this module trains
            whatever else holds it.
        tokenizer: Its tokenizer.
        objective: Whatever `Objective.parse` reads.
        pooling: The sentence vector: the first token (`cls`) or the mean over real tokens (`mean`).
        masks: How the encoder's masks are drawn.

    Attributes:
        head: The shared vocabulary head; None if no term uses it.
        terms: The terms by name.
        untrained_heads: Names of the heads that hold random numbers; a caller that loads one takes its name out.
        progress: The share of training that is done, which schedules of weights follow.
        gradient_norms: After a backward pass, by term: the norm of what it sent to the encoder's outputs, after its
            weight. Terms with passes of their own have none.

    Raises:
        InputError: The backbone is of no known family, or tokenizer and backbone do not belong together.
    """

    def __init__(
        self,
        backbone: Any,
        tokenizer: Any,
        objective: str | Mapping[str, Any] | Objective = "dupmae",
        *,
        pooling: str = "cls",
        masks: MaskOptions | None = None,
    ) -> None:
        super().__init__()
        self.parts = Backbone(backbone)
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
        self.terms = nn.ModuleDict(
            {name: TERMS[kind_of(name)](self.parts, **term.options) for name, term in self.objective.terms.items()}
        )
        self.head = VocabularyHead(backbone.config) if any(term.uses_head for term in self._terms()) else None
        own = [name for name in self.own_heads if self.terms[name].starts_untrained]
        self.untrained_heads = [*(["head"] if self.head else []), *own]
        self.vocabulary = Vocabulary(tokenizer.mask_token_id, len(continued), pieces_digest(tokenizer.get_vocab()))
        self.progress = 0.0
        self.gradient_norms: dict[str, Tensor] = {}
        self.continued: Tensor
        self.special: Tensor
        self.register_buffer("continued", continued, persistent=False)
        self.register_buffer("special", special_ids(tokenizer, backbone.config.vocab_size), persistent=False)
        self.to(backbone.device)

    @property
    def own_heads(self) -> dict[str, nn.Module]:
        """The terms that have parameters, by name."""
        return {name: term for name, term in self.terms.items() if next(term.parameters(), None) is not None}

    def _terms(self) -> list[Term]:
        return list(self.terms.values())  # type: ignore[arg-type]

    def sample(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        word_starts: Tensor | None = None,
        *,
        generator: torch.Generator,
        marked: Tensor | None = None,
        others: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> Drawn:
        """Draw everything random about one batch.

        What a term draws depends on the generator and its name, not on what other terms there are.

        Args:
            input_ids: Clean ids with [CLS] first and [SEP] last, (b, t).
            attention_mask: 1 on real tokens, (b, t); padding is on the right.
            word_starts: First pieces of whole words, bool (b, t); by default what the tokenizer's pieces look like.
            generator: On the device of `input_ids`; see `masking.seeded`.
            marked: Which tokens masks may take, bool (b, t); None: any of the text.
            others: Texts that accompany these, by the names that terms know: `ids`, `attention_mask`, `word_starts`.

        Raises:
            InputError: Terms need spans in pairs, and the number of texts is odd.
        """
        starts = ~self.continued[input_ids] if word_starts is None else word_starts
        along = {name: Batch.of(**other) for name, other in (others or {}).items()}
        batch = Batch.of(input_ids, attention_mask, starts, marked=marked, others=along)
        if self.objective.uses_pairs and len(input_ids) % 2:
            raise InputError(f"a batch has {len(input_ids)} texts; its terms need spans in pairs")
        address = int(torch.randint(_FIRST, (), generator=generator, device=generator.device))
        masks = draw_masks(batch, self.masks, self.vocabulary, seeded(generator.device, address))
        drawn = {
            name: term.draw(batch, masks, self.vocabulary, seeded(generator.device, address, name))
            for name, term in zip(self.terms, self._terms(), strict=True)
        }
        return Drawn(batch, masks, drawn)

    def sample_batch(self, batch: Mapping[str, Any], generator: torch.Generator) -> Drawn:
        """Draw everything random about a batch as `tokens.Collator` makes it; see `sample`."""
        more = {name: batch[name] for name in ("marked", "others") if name in batch}
        return self.sample(batch["ids"], batch["attention_mask"], batch["word_starts"], generator=generator, **more)

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

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Compute the objective (`forward`); while training, what follows the encoder does so first."""
        # Not in `forward`: within it, sharded parameters are copies, put together for it.
        if self.training:
            for term in self._terms():
                term.advance(self.parts)
        return super().__call__(*arguments, **named)

    def forward(self, drawn: Drawn, whole: Mapping[str, Cached] | None = None) -> dict[str, Tensor]:
        """Compute the objective on a batch: `total`, and every term by name before its weight.

        Args:
            drawn: What `sample` gave.
            whole: Of terms that are losses over a whole step, of which this is a part: what is known of them.
        """
        shared, whole = self.view(drawn), whole or {}
        if whole:
            _ = shared.hidden  # first, so that its dropout is what it was when the vectors were made
        squares: dict[str, Tensor] = {}
        values, weighted = {}, []
        for name, term in self.terms.items():
            view = shared.observed(self._listener(name, squares))
            values[name] = whole[name].of(view.vector) if name in whole else term(view, drawn.terms[name])
            weighted.append(self.objective.terms[name].at(self.progress) * values[name])
        return {"total": torch.stack(weighted).sum(), **values}

    def vectors(self, drawn: Drawn) -> Tensor:
        """The sentence vectors of a batch, (b, d)."""
        return self.view(drawn).vector

    def view(self, drawn: Drawn) -> EncoderView:
        """The encoder's view of a batch, which is computed when it is first asked for."""
        layers = any(term.uses_layers for term in self._terms())
        head: Any = self.head
        return EncoderView(
            drawn.batch, drawn.masks, self.parts, head, self.special, pooling=self.pooling, layers=layers
        )

    def _listener(self, name: str, squares: dict[str, Tensor]) -> Any:
        def heard(gradient: Tensor) -> None:
            square = gradient.detach().float().square().sum()
            squares[name] = squares[name] + square if name in squares else square
            self.gradient_norms[name] = squares[name].sqrt()

        return heard


def special_ids(tokenizer: Any, size: int) -> Tensor:
    """Which ids are no words: special tokens and BERT's `[unused…]`, bool (v,)."""
    found = np.zeros(size, dtype=bool)
    found[[number for piece, number in tokenizer.get_vocab().items() if piece.startswith("[unused")]] = True
    found[list(getattr(tokenizer, "all_special_ids", ()))] = True
    return torch.from_numpy(found)
