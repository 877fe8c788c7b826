"""RetroMAE's enhanced decoding (Xiao et al. 2022, arXiv 2205.12035) and DupMAE's variant of its query (2305.02564).

One post-layer-norm BERT layer rebuilds the clean text from the sentence vector. Every row i asks with the sentence
vector at position i and looks at its own random half of the clean tokens, never at token i.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.bert.modeling_bert import BertIntermediate, BertOutput, BertSelfOutput

from indexes.errors import InputError
from pretraining.backbones import Backbone
from pretraining.heads import initialise
from pretraining.masking import (
    IGNORED,
    Batch,
    Masks,
    Vocabulary,
    budgets,
    check_share,
    row_visibility,
    select_rows,
    whole_word_mask,
)
from pretraining.terms.term import Term, embedded_text, own_positions
from pretraining.view import EncoderView

QUERIES = ("raw", "embedded")


class CrossAttention(nn.Module):
    """Multi-head attention with its own query input and a boolean visibility a row."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(config.hidden_size, config.hidden_size) for _ in range(3))
        self.heads, self.dropout = config.num_attention_heads, config.attention_probs_dropout_prob

    def forward(self, query: Tensor, source: Tensor, visible: Tensor) -> Tensor:
        """Attend from query (b, r, d) to source (b, t, d) where visible (b, r, t) is true; gives (b, r, d)."""
        query, key, value = (
            project(states).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (b, heads, r or t, d / heads)
            for project, states in ((self.query, query), (self.key, source), (self.value, source))
        )
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=visible[:, None], dropout_p=dropout
        )
        return mixed.transpose(1, 2).flatten(2)


class EnhancedDecoder(nn.Module):
    """One post-layer-norm BERT layer whose queries are not its keys and values; the residual adds the query.

    Parameter names are those of the authors' `c_head`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": CrossAttention(config), "output": BertSelfOutput(config)})
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config)
        initialise(self, config.initializer_range)

    def forward(self, query: Tensor, source: Tensor, visible: Tensor) -> Tensor:
        """Decode rows: query (b, r, d), source (b, t, d), visible bool (b, r, t); gives (b, r, d)."""
        attended = self.attention["output"](self.attention["self"](query, source, visible), query)
        return self.output(self.intermediate(attended), attended)


@dataclass(frozen=True)
class DecoderRows:
    """What the decoder rebuilds, and from what.

    Attributes:
        rows: Positions, (b, r); short texts repeat position 0.
        real: Which of the rows count, bool (b, r).
        visible: Which columns each row may look at, bool (b, r, t).
    """

    rows: Tensor
    real: Tensor
    visible: Tensor

    def __post_init__(self) -> None:
        # A row that may look at nothing gives NaN in some attention kernels; rows without loss look at column 0.
        self.visible[..., 0] |= ~self.real

    @classmethod
    def explicit(cls, row_labels: Tensor, visible: Tensor) -> "DecoderRows":
        """Take given masks: rows are those with a label in `row_labels` (b, t); `visible` is (b, t, t)."""
        rows, real = select_rows(row_labels != IGNORED)
        return cls(rows, real, visible.bool().gather(1, rows[..., None].expand(-1, -1, visible.shape[2])))


class DecoderMLM(Term):
    """Mean cross-entropy of rebuilding the clean tokens of the decoded rows.

    Keys and values are the sentence vector as it is (position 0) and the clean tokens through the encoder's embedding
    module. Over an encoder whose embeddings have no positions, the decoder has its own.

    Args:
        backbone: The encoder.
        query: What each row asks with: `raw` adds the position's row of the table to the sentence vector (RetroMAE);
            `embedded` sends the vector through the embedding module as if it were a word (DupMAE).
        ratio: Share of a text's tokens, specials included, that are hidden from each row.
        row_fraction: Share of the rows that are rebuilt; 1 is the paper, less is cheaper.
        pool: None draws a fresh mask for every row (section 3.2 of the paper); a number draws that many masks a text
            and lets rows share them with replacement, as the authors' code does with 256.
        hide_word: Hide a row's whole word from it. The authors hide its token only, and so a row may see the other
            pieces of its own word.
    """

    has_bottleneck: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        query: str = "embedded",
        ratio: float = 0.5,
        row_fraction: float = 1.0,
        pool: int | None = None,
        hide_word: bool = False,
    ) -> None:
        super().__init__(backbone)
        if query not in QUERIES:
            raise InputError(f"query is {query!r}; expected {' or '.join(QUERIES)}")
        check_share("decoder mask ratio", ratio, 0.9)
        check_share("row_fraction", row_fraction, 1.0)
        if pool is not None and pool < 1:
            raise InputError(f"pool is {pool}; expected at least 1 mask, or none for a fresh mask a row")
        self.query, self.ratio, self.row_fraction = query, ratio, row_fraction
        self.pool, self.hide_word = pool, hide_word
        self.decoder = EnhancedDecoder(backbone.layer_settings())
        self.positions = own_positions(backbone)

    def draw(self, batch: Batch, masks: Masks, vocabulary: Vocabulary, generator: torch.Generator) -> DecoderRows:
        """Draw the rows to rebuild, and what is hidden from each."""
        rows, real = select_rows(batch.content, self.row_fraction, generator)
        budget = budgets(batch.attention_mask, self.ratio)
        if self.pool is None:
            hidden = whole_word_mask(batch.words, budget, generator, rows.shape[1])
        else:
            pool = batch.attention_mask.sum(1, keepdim=True).clamp(max=self.pool)  # (b, 1)
            drawn = whole_word_mask(batch.words, budget, generator, int(pool.max()))
            pick = (torch.rand(rows.shape, generator=generator, device=rows.device) * pool).long()  # (b, r)
            hidden = drawn.gather(1, pick[..., None].expand(-1, -1, batch.words.shape[1]))
        if self.hide_word:
            own = batch.words.gather(1, rows)  # (b, r)
            hidden |= (own[..., None] == batch.words[:, None]) & real[..., None]
        return DecoderRows(rows, real, row_visibility(batch.attention_mask, rows, hidden))

    def forward(self, view: EncoderView, drawn: DecoderRows) -> Tensor:
        """The loss, one number."""
        ids, backbone = view.batch.ids, view.backbone
        text = embedded_text(backbone, ids, self.positions)
        source = torch.cat((view.vector[:, None], text[:, 1:]), 1)  # (b, t, d)
        decoded = self.decoder(self.asked(view.vector, drawn.rows, backbone), source, drawn.visible)  # (b, r, d)
        return view.head.loss(decoded[drawn.real], ids.gather(1, drawn.rows)[drawn.real], backbone.words)

    def asked(self, vector: Tensor, rows: Tensor, backbone: Backbone) -> Tensor:
        """What each row (b, r) asks with, (b, r, d), given the sentence vectors (b, d)."""
        repeated = vector[:, None].expand(-1, rows.shape[1], -1)  # (b, r, d)
        where = backbone.positions if self.positions is None else self.positions
        if self.query == "raw":
            return repeated + where(rows)
        asked = backbone.embed_vectors(repeated, rows)
        return asked if self.positions is None else asked + self.positions(rows)
