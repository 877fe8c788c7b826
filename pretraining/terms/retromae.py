"""RetroMAE's enhanced decoding (Xiao et al. 2022, arXiv 2205.12035) and DupMAE's variant of its query (2305.02564).

One post-layer-norm BERT layer rebuilds the clean text from the sentence vector. Every row i asks with the sentence
vector at position i and looks at its own random half of the clean tokens, never at token i.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.bert.modeling_bert import BertIntermediate, BertOutput, BertSelfOutput

from pretraining.heads import VocabularyHead, initialise
from pretraining.view import EncoderView

Query = Literal["raw", "embedded"]


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


def decoder_query(vector: Tensor, rows: Tensor, embedding: Any, variant: Query) -> Tensor:
    """What each row asks with, (b, r, d).

    Args:
        vector: Sentence vectors, (b, d).
        rows: Positions, (b, r).
        embedding: The encoder's embedding module (BertEmbeddings).
        variant: `raw` adds the position's row of the table (RetroMAE); `embedded` sends the vector through the
            embedding module as if it were a word: position, type, layer norm, dropout (DupMAE).
    """
    repeated = vector[:, None].expand(-1, rows.shape[1], -1)  # (b, r, d)
    if variant == "raw":
        return repeated + embedding.position_embeddings(rows)
    return embedding(inputs_embeds=repeated, position_ids=rows, token_type_ids=torch.zeros_like(rows))


def decoder_mlm(
    view: EncoderView, decoder: EnhancedDecoder, embedding: Any, head: VocabularyHead, variant: Query
) -> Tensor:
    """Mean cross-entropy of rebuilding the decoded rows' clean tokens.

    Keys and values are the sentence vector as it is (position 0) and the clean tokens through the encoder's embedding
    module.
    """
    batch = view.batch
    source = torch.cat((view.vector[:, None], embedding(input_ids=batch.ids)[:, 1:]), 1)  # (b, t, d)
    query = decoder_query(view.vector, batch.rows, embedding, variant)
    decoded = decoder(query, source, batch.visible)  # (b, r, d)
    labels = batch.ids.gather(1, batch.rows)
    return head.loss(decoded[batch.real], labels[batch.real], embedding.word_embeddings.weight)
