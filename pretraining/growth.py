"""Growth in width: a wider encoder that computes what a narrower one does (bert2BERT's FPI)."""

import copy
import re
from typing import Any

import torch
from torch import Tensor, nn

from indexes.errors import InputError
from pretraining.backbones import FAMILIES
from pretraining.heads import VocabularyHead
from pretraining.layers import with_weights
from pretraining.masking import seeded

_WIDTHS = ("hidden_size", "num_attention_heads", "dim", "n_heads", "pooler_hidden_size", "embedding_size")
_INNER_WIDTHS = ("intermediate_size", "hidden_dim")
_EVENNESS = 0.5


def widen(backbone: Any, factor: int, *, inner: int | None = None, seed: int = 0) -> Any:
    """A model with `factor` times the hidden units and heads, whose vectors are the old ones repeated `factor` times.

    Every unit is copied, and what reads it shares its weight out among the copies: W'[i, (j, k)] = W[i, j] a[i, j, k],
    Σ_k a = 1. The paper's shares are equal, and then copies of a unit have equal gradients and stay copies; drawn at
    random they compute the same and do not. Layer norms see every unit equally often, so mean and variance are the old
    ones: that is why only whole multiples are exact, and others are refused. Heads keep their size; there are more of
    them. The feed-forward network's inner units pass no norm, and may grow to any number, copies chosen at random.

    Source: Chen et al., "bert2BERT: Towards Reusable Pretrained Language Models" (ACL 2022), function-preserving
    initialization; it is Net2Net's wider layer (Chen, Goodfellow & Shlens, ICLR 2016) for transformers.

    Args:
        backbone: A model of transformers with norms after its layers (all of `backbones` but ModernBERT).
        factor: How many copies of each hidden unit; 1 leaves them as they are.
        inner: Inner units of the feed-forward networks; None: `factor` times as many.
        seed: Of the shares and of which inner units are copied.

    Raises:
        InputError: The model is not of such a kind, the factor is not a whole number from 1, or `inner` is too small.
    """
    kind = backbone.config.model_type
    if kind not in FAMILIES or FAMILIES[kind].layers.attention_norm is None:
        known = ", ".join(name for name, family in FAMILIES.items() if family.layers.attention_norm)
        raise InputError(f"the model is a {kind} model; growth in width supports {known}")
    config, old_inner, new_inner = _wider(backbone.config, factor, inner)
    generator = seeded(torch.device("cpu"), seed)
    every = torch.arange(old_inner)
    rest = torch.randperm(old_inner, generator=generator)[: new_inner % old_inner]
    inner_units = torch.cat((every.repeat(new_inner // old_inner), rest))
    parts = FAMILIES[kind].layers
    weights: dict[str, Tensor] = {}
    for name, module in backbone.named_modules():
        within = re.sub(rf"^{re.escape(parts.stack)}\.\d+\.", "", name)
        ends = tuple(inner_units if within == part else None for part in (parts.inner, parts.output))
        if own := dict(module.named_parameters(recurse=False)):
            grown = _grown(name, module, factor, ends, generator)
            weights |= {f"{name}.{key}": value.to(own[key].dtype) for key, value in grown.items()}
    return with_weights(backbone, config, weights)


def widen_head(head: VocabularyHead, config: Any, factor: int, seed: int = 0) -> VocabularyHead:
    """The vocabulary head of a widened model: the same logits.

    It compares rows with the word embeddings, `factor` copies of each number in both; the last norm is divided by it.

    Args:
        head: The narrow model's.
        config: The wide model's.
        factor: As for `widen`.
        seed: Of the shares.
    """
    generator = seeded(torch.device("cpu"), seed)
    wide = VocabularyHead(config).to(head.bias.dtype)
    dense = _grown("dense", head.transform.dense, factor, (None, None), generator)
    norm = _grown("norm", head.transform.LayerNorm, factor, (None, None), generator)
    wide.transform.dense.load_state_dict(dense)
    wide.transform.LayerNorm.load_state_dict({key: value / factor for key, value in norm.items()})
    wide.bias.data.copy_(head.bias)
    return wide


def split_columns(weight: Tensor, units: Tensor, generator: torch.Generator) -> Tensor:
    """Share out each column (o, i) among the copies of its unit: (o, n), where `units` (n,) are the units copied.

    The shares of a row's copies of a unit sum to 1, and are unequal; a unit that has one copy keeps its column.
    """
    raw = 1 + _EVENNESS * (2 * torch.rand(len(weight), len(units), generator=generator, dtype=torch.float64) - 1)
    sums = torch.zeros(weight.shape, dtype=torch.float64).index_add_(1, units, raw)  # (o, i)
    return weight.double()[:, units] * (raw / sums[:, units])


def _grown(
    name: str, module: nn.Module, factor: int, ends: tuple[Tensor | None, ...], generator: torch.Generator
) -> dict[str, Tensor]:
    """The parameters of a module, wider; `ends`: which units it gives and reads, None: all, `factor` times."""
    own = {key: value.detach() for key, value in module.named_parameters(recurse=False)}
    if isinstance(module, nn.LayerNorm):
        return {key: value.repeat(factor) for key, value in own.items()}
    if isinstance(module, nn.Embedding):
        return {"weight": own["weight"].repeat(1, factor)}
    if not isinstance(module, nn.Linear):
        raise InputError(
            f"the model's {name} is a {type(module).__name__}, for which exact growth in width is not known"
        )
    out, read = (
        torch.arange(size).repeat(factor) if units is None else units
        for size, units in zip(own["weight"].shape, ends, strict=True)
    )
    grown = {key: value[out] for key, value in own.items()}
    return {**grown, "weight": split_columns(grown["weight"], read, generator)}


def _wider(config: Any, factor: int, inner: int | None) -> tuple[Any, int, int]:
    """The settings of the wide model, and the inner units before and after.

    Raises:
        InputError: A value is too small, or nothing would grow.
    """
    config = copy.deepcopy(config)
    old = next(int(getattr(config, name)) for name in _INNER_WIDTHS if getattr(config, name, None))
    new = factor * old if inner is None else inner
    if factor < 1 or new < old:
        raise InputError(
            f"grow_width is {factor} and inner_size {new}; expected whole multiples from 1 and at least {old}"
        )
    if factor == 1 and new == old:
        raise InputError(f"grow_width is 1 and inner_size {new}, as the model has them; take a larger one")
    stated = {
        name for name, value in config.to_dict().items() if isinstance(value, int) and not isinstance(value, bool)
    }
    for name in stated & {*_WIDTHS}:
        setattr(config, name, factor * getattr(config, name))
    for name in stated & {*_INNER_WIDTHS}:
        setattr(config, name, new)
    return config, old, new
