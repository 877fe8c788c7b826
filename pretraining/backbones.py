"""Backbones: what objectives use of an encoder, whatever family it is of."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import BertConfig

from indexes.errors import InputError


class HeadPlace(NamedTuple):
    """Where a masked-language model keeps the parts of its head."""

    dense: str
    norm: str
    bias: str
    loaded: Mapping[str, Any] = {}
    """The settings with which it must be loaded to have them there."""


class LayerParts(NamedTuple):
    """What the parts of a layer are called."""

    stack: str
    """The list of layers, within the model."""
    attention_output: str
    attention_norm: str | None
    """None: norms come before, not after."""
    inner: str
    """The feed-forward network's first linear map."""
    output: str
    output_norm: str | None
    relations: tuple[str, str, str] | None
    """The linear maps that make queries, keys and values; None: one map makes all."""


class Family(NamedTuple):
    """How the models of one architecture are put together."""

    heads: tuple[HeadPlace, ...]
    layers: LayerParts
    words: str = "word_embeddings"
    """The name of the word embeddings within the embedding module."""
    padded_positions: bool = False
    """Whether positions are counted from the padding token's id + 1 on."""
    types: bool = False
    """Whether the embedding module takes token types."""
    activation: str = "hidden_act"
    """What the setting of the head's activation is called."""
    epsilon: str = "layer_norm_eps"
    """What that of its norm is called."""


_BERT_LAYERS = LayerParts(
    stack="encoder.layer",
    attention_output="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    inner="intermediate.dense",
    output="output.dense",
    output_norm="output.LayerNorm",
    relations=("attention.self.query", "attention.self.key", "attention.self.value"),
)
_BERT_HEAD = HeadPlace("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias")
_ROBERTA = Family(
    (HeadPlace("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),), _BERT_LAYERS, padded_positions=True
)
_DEBERTA = "lm_predictions.lm_head"
_DEBERTA_HEAD = HeadPlace(f"{_DEBERTA}.dense", f"{_DEBERTA}.LayerNorm", f"{_DEBERTA}.bias")
FAMILIES = {
    "bert": Family((_BERT_HEAD,), _BERT_LAYERS, types=True),
    "roberta": _ROBERTA._replace(types=True),
    "xlm-roberta": _ROBERTA._replace(types=True),
    "mpnet": _ROBERTA._replace(
        layers=_BERT_LAYERS._replace(
            attention_output="attention.attn.o",
            attention_norm="attention.LayerNorm",
            relations=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        )
    ),
    "distilbert": Family(
        (HeadPlace("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),),
        LayerParts(
            stack="transformer.layer",
            attention_output="attention.out_lin",
            attention_norm="sa_layer_norm",
            inner="ffn.lin1",
            output="ffn.lin2",
            output_norm="output_layer_norm",
            relations=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        ),
        activation="activation",
    ),
    "deberta-v2": Family(
        (_DEBERTA_HEAD._replace(loaded={"legacy": False}), _BERT_HEAD._replace(loaded={"legacy": True})),
        _BERT_LAYERS._replace(
            relations=("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj")
        ),
        types=True,
    ),
    "modernbert": Family(
        (HeadPlace("head.dense", "head.norm", "decoder.bias"),),
        LayerParts("layers", "attn.Wo", None, "mlp.Wi", "mlp.Wo", None, None),
        words="tok_embeddings",
        activation="classifier_activation",
        epsilon="norm_eps",
    ),
}
"""By transformers' `model_type`; DeBERTa-v3 is a deberta-v2."""

_LEAST_POSITIONS = 512


class Backbone:
    """An encoder of transformers, used as it is: training what is computed here trains whatever else holds it.

    Shapes: b batch, t tokens, r rows, d dim, v vocabulary.

    Args:
        module: A model without head, such as a BertModel.

    Raises:
        InputError: It is of a family that is not known here, or keeps its output apart from its word embeddings.
    """

    def __init__(self, module: Any) -> None:
        refuse_unsupported(module.config)
        self.module, self.config = module, module.config
        self.family = FAMILIES[module.config.model_type]
        self._first = module.config.pad_token_id + 1 if self.family.padded_positions else 0
        table = getattr(module.embeddings, "position_embeddings", None)
        used = getattr(module.embeddings, "position_biased_input", True)
        self._positions = table if used else None

    @property
    def words(self) -> Tensor:
        """The word embeddings (v, d), to which output is tied."""
        return getattr(self.module.embeddings, self.family.words).weight

    @property
    def has_positions(self) -> bool:
        """Whether embeddings say where a token is; else attention alone does (rotary, relative)."""
        return self._positions is not None

    @property
    def longest(self) -> int:
        """Tokens of the longest text, special ones included."""
        return int(self.config.max_position_embeddings) - self._first

    def run(
        self, ids: Tensor, attention_mask: Tensor, *, layers: bool = False, types: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The last layer (b, t, d) for ids and mask (b, t); and all, the embeddings first, if they are asked for.

        `types` (b, t) are token types, where the family has them; by default all are 0.
        """
        where = self._places(torch.arange(ids.shape[1], device=ids.device)[None].expand_as(ids))
        where |= {} if types is None else {"token_type_ids": types}
        output = self.module(input_ids=ids, attention_mask=attention_mask, output_hidden_states=layers, **where)
        return output.last_hidden_state, tuple(output.hidden_states or ())

    def embed(self, ids: Tensor) -> Tensor:
        """E(x): the embeddings (b, t, d) of a text's tokens (b, t), the first at position 0."""
        where = self._places(torch.arange(ids.shape[1], device=ids.device)[None].expand_as(ids))
        return self.module.embeddings(input_ids=ids, **where)

    def embed_vectors(self, vectors: Tensor, rows: Tensor) -> Tensor:
        """What the embedding module makes of vectors (b, r, d), as if they were words at positions (b, r)."""
        types = {"token_type_ids": torch.zeros_like(rows)} if self.family.types else {}
        return self.module.embeddings(input_ids=None, inputs_embeds=vectors, **self._places(rows), **types)

    def positions(self, rows: Tensor) -> Tensor:
        """The table's rows (b, r, d) for positions (b, r); only where there is a table."""
        assert self._positions is not None  # noqa: S101 - else the caller has a table of its own
        return self._positions(rows + self._first)

    def _places(self, rows: Tensor) -> dict[str, Tensor]:
        # Left to themselves, RoBERTa's kin count up to the tokens that are no padding, and a random token may be one.
        return {"position_ids": rows + self._first} if self.has_positions else {}

    def layer_settings(self) -> BertConfig:
        """The settings of plain layers as wide as this encoder's, for decoders; its own ones where it is a BERT."""
        config = self.config
        layer = BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=getattr(config, "intermediate_size", None) or config.hidden_dim,
            hidden_act=activation_of(config),
            hidden_dropout_prob=_first_of(config, "hidden_dropout_prob", "dropout", "mlp_dropout"),
            attention_probs_dropout_prob=_first_of(config, "attention_probs_dropout_prob", "attention_dropout"),
            layer_norm_eps=epsilon_of(config),
            initializer_range=config.initializer_range,
            max_position_embeddings=max(self.longest, _LEAST_POSITIONS),
        )
        layer._attn_implementation = "sdpa"
        return layer


def activation_of(config: Any) -> str:
    """The activation of the vocabulary head."""
    return str(getattr(config, FAMILIES[config.model_type].activation, "gelu"))


def epsilon_of(config: Any) -> float:
    """What the norm of the vocabulary head adds to variances."""
    return float(getattr(config, FAMILIES[config.model_type].epsilon, 1e-12))


def refuse_unsupported(config: Any) -> None:
    """Refuse a model that objectives cannot be computed on.

    Raises:
        InputError: Its family is not known here, its word embeddings are of another width than its layers, or its
            output is not tied to them.
    """
    kind = getattr(config, "model_type", type(config).__name__)
    if kind not in FAMILIES:
        raise InputError(f"the base is a {kind} model; pretraining supports {', '.join(FAMILIES)}: choose such a base")
    width = getattr(config, "embedding_size", None) or config.hidden_size
    if width != config.hidden_size:
        raise InputError(
            f"the base's embeddings have {width} dimensions and its layers {config.hidden_size}; expected as many"
        )
    if not getattr(config, "tie_word_embeddings", True):
        raise InputError("the base does not tie its output to its word embeddings; choose a base with tied embeddings")


def _first_of(config: Any, *names: str) -> float:
    return next(float(getattr(config, name)) for name in names if hasattr(config, name))
